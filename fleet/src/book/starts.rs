//! What hosts bring up by themselves for claims that were placed on them.

use crate::gpu_set::GpuSet;
use crate::staged::{Prediction, StartedBy};
use crate::start::{Attempt, Start, StartState};

use super::{Book, Change, NodeError, StartChange, What};

/// What an agent says of one start.
#[derive(Debug, Clone, PartialEq)]
pub struct StartFact {
    /// How far it has come.
    pub state: StartState,
    /// What was tried, the newest last.
    pub attempts: Vec<Attempt>,
    /// Why it is so, for people.
    pub problem: String,
}

impl Book {
    /// A claim has got its GPUs: its host is told to bring up what it starts from, where that is the host's affair.
    pub(super) fn order_start(&mut self, id: u64, now_ms: i64) {
        let Some(claim) = self.claims.get(&id) else { return };
        let Some(snapshot) = self.snapshot_of(claim).filter(|s| s.started_by == StartedBy::Agent) else { return };
        let (store, object) = (snapshot.store.clone(), snapshot.object.clone());
        let (state, problem) = match claim.parts.len() {
            1 => (StartState::Coming, String::new()),
            nodes => (StartState::Failed, format!("its GPUs are on {nodes} hosts, which bring up nothing together")),
        };
        let nodes: Vec<u64> = claim.parts.iter().map(|part| part.node).collect();
        let start = Start { store, object, state, attempts: Vec::new(), problem };
        self.note_start(id, None, &start, None, now_ms);
        if let Some(claim) = self.claims.get_mut(&id) {
            if state == StartState::Coming {
                // Its host is at work for it: its client has the whole lease to confirm it.
                self.due.remove(&(claim.lease_until_ms, id));
                claim.lease_until_ms = now_ms + claim.lease_ms;
                self.due.insert((claim.lease_until_ms, id));
            }
            claim.start = Some(start);
        }
        nodes.into_iter().for_each(|node| drop(self.raise_desired(node)));
    }

    /// A claim has ended: its host is told.
    pub(super) fn withdraw_start(&mut self, id: u64) {
        let Some(claim) = self.claims.get(&id).filter(|claim| claim.start.is_some()) else { return };
        let nodes: Vec<u64> = claim.parts.iter().map(|part| part.node).collect();
        nodes.into_iter().for_each(|node| drop(self.raise_desired(node)));
    }

    /// What a host is to have brought up: for each claim its start, and the GPUs that it is for.
    pub fn starts_on(&self, node: u64) -> impl Iterator<Item = (u64, &Start, GpuSet)> {
        self.claims.values().filter(|claim| claim.state.is_live()).filter_map(move |claim| match &claim.parts[..] {
            [part] if part.node == node => Some((claim.id, claim.start.as_ref()?, part.gpus)),
            _ => None,
        })
    }

    /// The agent of a node says how far a start has come. Returns what had been predicted and the seconds from the grant, if it
    /// is ready for the first time.
    ///
    /// # Errors
    /// The node is unknown, or runs another boot. That the claim has ended meanwhile is none.
    pub fn started(
        &mut self,
        node: u64,
        boot: &str,
        (id, fact): (u64, StartFact),
        now_ms: i64,
    ) -> Result<Option<(Prediction, f64)>, NodeError> {
        self.of_boot(node, boot)?;
        let here = self.starts_on(node).find(|(claim, ..)| *claim == id);
        let Some(before) = here.map(|(_, start, _)| start.clone()) else { return Ok(None) };
        let after = Start { state: fact.state, attempts: fact.attempts, problem: fact.problem, ..before.clone() };
        if after == before {
            return Ok(None);
        }
        let ready = after.state == StartState::Ready;
        let granted_ms = self.claims.get(&id).and_then(|claim| claim.granted_at_ms);
        let ready_s = granted_ms.map(|granted_ms| (now_ms - granted_ms).max(0) as f64 / 1000.0);
        if after.state != before.state {
            self.note_start(id, Some(before.state), &after, ready_s.filter(|_| ready), now_ms);
        }
        let Some(claim) = self.claims.get_mut(&id) else { return Ok(None) };
        claim.start = Some(after);
        self.changes.claims.insert(id);
        let Some(ready_s) = ready_s.filter(|_| ready && claim.ready_s.is_none()) else { return Ok(None) };
        // A start of days is no start that anybody learns from.
        let predicted = self.is_ready(id, ready_s).ok().flatten();
        Ok(predicted.map(|predicted| (predicted, ready_s)))
    }

    fn note_start(&mut self, claim: u64, from: Option<StartState>, start: &Start, ready_s: Option<f64>, at_ms: i64) {
        let Some(class) = self.claims.get(&claim).map(|claim| claim.class.clone()) else { return };
        let what = What::Start(StartChange { claim, class, from, to: start.state });
        self.changes.claims.insert(claim);
        let words = start.in_words();
        let reason = ready_s.map_or(words.clone(), |ready_s| format!("{ready_s:.2} s after the grant: {words}"));
        self.changes.events.push(Change { at_ms, what, reason });
    }
}
