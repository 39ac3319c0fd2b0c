//! Claims: asked for, granted or queued, kept by heartbeats, given back.

use crate::claim::{ClaimEvent, ClaimState, IllegalClaimEvent, OnEmpty};
use crate::node::NodeEvent;

use super::{Book, Change, Claim, ClaimChange, ClassRule, Limits, Part, Queue, What};

/// What a scheduler asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Name of the class.
    pub class: String,
    /// Units of the class's claim size, all or none, in one zone.
    pub count: u32,
    /// The client's idempotency key.
    pub key: Option<String>,
    /// What was asked, to tell a retry from another request with the same key.
    pub digest: String,
    /// Who holds it, in the client's words.
    pub holder: String,
    /// Who calls, as the server knows him; empty where it does not.
    pub caller: String,
    /// What to do when nothing is free; the class's rule without it.
    pub on_empty: Option<OnEmpty>,
    /// How long it waits at most, milliseconds; the class's wait without it.
    pub wait_ms: Option<i64>,
    /// Time between heartbeats, milliseconds; the class's lease without it.
    pub lease_ms: Option<i64>,
    /// The snapshot that it starts from: a node that has it is rather taken.
    pub snapshot: Option<String>,
    /// The client does not wait for an answer beyond this moment, milliseconds since 1970.
    pub answer_by_ms: Option<i64>,
}

impl ClaimRequest {
    /// One unit of a class, by the class's own rules, of a client that says nothing else.
    #[must_use]
    pub fn of(class: impl Into<String>) -> Self {
        Self {
            class: class.into(),
            count: 1,
            key: None,
            digest: String::new(),
            holder: String::new(),
            caller: String::new(),
            on_empty: None,
            wait_ms: None,
            lease_ms: None,
            snapshot: None,
            answer_by_ms: None,
        }
    }
}

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It has GPUs.
    Granted,
    /// It has GPUs of another model than the class's first.
    Substituted,
    /// It waits.
    Queued,
    /// The same request was made before: this is its claim as it stands.
    Before,
}

/// Why a claim cannot be made or changed. Nothing was changed, except that a claim that found nothing is written down as
/// failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// There is no such class.
    #[error("there is no class '{0}'")]
    UnknownClass(String),
    /// The class has no such snapshot.
    #[error("class '{class}' has no snapshot '{snapshot}'")]
    UnknownSnapshot {
        /// The class.
        class: String,
        /// The snapshot.
        snapshot: String,
    },
    /// There is no such claim, or it has ended long ago.
    #[error("there is no claim c-{0}")]
    UnknownClaim(u64),
    /// A number is out of its range.
    #[error("{name}: {value} is not in {least}..={most}")]
    OutOfRange {
        /// Which.
        name: &'static str,
        /// What was asked.
        value: i64,
        /// Least.
        least: i64,
        /// Most.
        most: i64,
    },
    /// The key was used for another request.
    #[error("the idempotency key belongs to claim c-{0}, which asked for something else")]
    KeyReused(u64),
    /// Nothing is free and the claim does not wait.
    #[error("no GPUs of class '{class}' are free ({arriving} nodes are on their way)")]
    Empty {
        /// The class.
        class: String,
        /// Nodes that serve it and are on their way.
        arriving: usize,
    },
    /// Too many claims wait already.
    #[error("{waiting} claims of this {} wait already, and {all} in all: nobody has more of the queue than is free", .of.name())]
    QueueFull {
        /// Whose share is full.
        of: Queue,
        /// Claims that wait of these.
        waiting: usize,
        /// Claims that wait.
        all: usize,
    },
    /// No zone will ever have so many GPUs.
    #[error("{wanted} GPUs of class '{class}' in one zone can never be had: {limit} allows {most}")]
    NeverFits {
        /// The class.
        class: String,
        /// GPUs that were asked for.
        wanted: u64,
        /// The most of any zone.
        most: u64,
        /// What limits it, for people.
        limit: String,
    },
    /// It belongs to another caller.
    #[error("claim c-{id} belongs to '{caller}'")]
    NotYours {
        /// The claim.
        id: u64,
        /// Whose it is.
        caller: String,
    },
    /// The answer would come too late.
    #[error("the client's deadline has passed")]
    TooLate,
    /// It has ended.
    #[error("claim c-{id} has ended: it is {state}")]
    Ended {
        /// The claim.
        id: u64,
        /// Its state.
        state: &'static str,
    },
    /// The claim's state does not allow it.
    #[error(transparent)]
    Illegal(#[from] IllegalClaimEvent),
}

fn in_range(name: &'static str, value: i64, least: i64, most: i64) -> Result<i64, ClaimError> {
    if (least..=most).contains(&value) { Ok(value) } else { Err(ClaimError::OutOfRange { name, value, least, most }) }
}

impl Limits {
    /// Whether claims by a class's own rules are within the limits: none of a class that is not could ever be made.
    ///
    /// # Errors
    /// Its wait or its lease is too long.
    pub fn allow(&self, rule: &ClassRule) -> Result<(), ClaimError> {
        self.wait_ms(rule.wait_ms)?;
        self.lease_ms(rule.lease_ms)?;
        Ok(())
    }

    fn wait_ms(&self, asked: i64) -> Result<i64, ClaimError> {
        in_range("wait_ms", asked, 0, self.queue_max_ms)
    }

    fn lease_ms(&self, asked: i64) -> Result<i64, ClaimError> {
        in_range("lease_ms", asked, 1000, self.lease_max_ms)
    }
}

impl Book {
    /// A claim, granted at once where GPUs are free and no older claim of its class waits for them.
    ///
    /// # Errors
    /// [`ClaimError`]; the caller looks for keys of ended claims first.
    pub fn claim(&mut self, ask: ClaimRequest, now_ms: i64) -> Result<(u64, Taken), ClaimError> {
        if let Some(before) = ask.key.as_deref().and_then(|k| self.claim_of_key(k)) {
            let same = before.digest == ask.digest;
            return if same { Ok((before.id, Taken::Before)) } else { Err(ClaimError::KeyReused(before.id)) };
        }
        if let Some((id, digest)) = ask.key.as_ref().and_then(|k| self.ended_keys.get(k)) {
            return if *digest == ask.digest { Ok((*id, Taken::Before)) } else { Err(ClaimError::KeyReused(*id)) };
        }
        if ask.answer_by_ms.is_some_and(|by| now_ms >= by) {
            return Err(ClaimError::TooLate);
        }
        let mut claim = self.checked(ask, now_ms)?;
        let parts = self.find_for_new(&claim);
        if parts.is_none() {
            self.refuse_what_never_fits(&claim)?;
            self.refuse_where_full(&claim)?;
            if matches!(claim.on_empty, OnEmpty::Fail | OnEmpty::Substitute) {
                return Err(self.fail_empty(claim, now_ms));
            }
        }
        let id = self.new_id();
        claim.id = id;
        if let Some(key) = &claim.key {
            self.keys.insert(key.clone(), id);
        }
        self.claims.insert(id, claim);
        self.changes.claims.insert(id);
        match parts {
            Some(parts) => {
                if let Some((class, count)) = self.claims.get(&id).map(|c| (c.class.clone(), c.count)) {
                    self.passed(&class, count);
                }
                self.grant(id, parts, true, now_ms);
                let substituted = self.claims.get(&id).is_some_and(|c| c.substituted);
                Ok((id, if substituted { Taken::Substituted } else { Taken::Granted }))
            }
            None => {
                let claim = &self.claims[&id];
                self.due.insert((claim.due_at_ms(), id));
                let (class, reason) = (claim.class.clone(), claim.reason.clone());
                self.note(id, None, reason, now_ms);
                self.join_line(id);
                self.call_back_for(&class, now_ms);
                self.call_back_for_waiting(now_ms);
                Ok((id, Taken::Queued))
            }
        }
    }

    /// The record of a request that makes sense, queued.
    fn checked(&self, ask: ClaimRequest, now_ms: i64) -> Result<Claim, ClaimError> {
        let limits = &self.limits;
        let rule = self.classes.get(&ask.class).ok_or_else(|| ClaimError::UnknownClass(ask.class.clone()))?;
        let count = i64::from(ask.count);
        in_range("count", count, 1, i64::from(limits.count_max))?;
        let wait_ms = limits.wait_ms(ask.wait_ms.unwrap_or(rule.wait_ms))?;
        let lease_ms = limits.lease_ms(ask.lease_ms.unwrap_or(rule.lease_ms))?;
        if let Some(name) = &ask.snapshot
            && self.snapshots.get(name).is_none_or(|snapshot| snapshot.class != ask.class)
        {
            return Err(ClaimError::UnknownSnapshot { class: ask.class, snapshot: name.clone() });
        }
        Ok(Claim {
            id: 0,
            class: ask.class,
            state: ClaimState::Queued,
            count: ask.count,
            key: ask.key,
            digest: ask.digest,
            holder: ask.holder,
            caller: ask.caller,
            passed_gpus: 0,
            on_empty: ask.on_empty.unwrap_or(rule.on_empty),
            parts: Vec::new(),
            substituted: false,
            asked_at_ms: now_ms,
            deadline_at_ms: now_ms + wait_ms,
            granted_at_ms: None,
            lease_ms,
            lease_until_ms: 0,
            hit: None,
            borrowed: rule.class.borrows(),
            called_back_at_ms: None,
            snapshot: ask.snapshot,
            prediction: None,
            ready_s: None,
            start: None,
            ended_at_ms: None,
            reason: "no GPUs are free".into(),
        })
    }

    /// A claim that does not wait and found nothing. It is written down as failed; its key stays free for a retry.
    fn fail_empty(&mut self, mut claim: Claim, now_ms: i64) -> ClaimError {
        let error = ClaimError::Empty { class: claim.class.clone(), arriving: self.arriving(&claim.class) };
        let id = self.new_id();
        claim.id = id;
        claim.key = None;
        let reason = claim.reason.clone();
        claim.hit = Some(false);
        self.count(&claim.class, false);
        self.claims.insert(id, claim);
        let failed = self.claim_event(id, ClaimEvent::NodeLost, &reason, now_ms);
        debug_assert!(failed.is_ok(), "{failed:?}");
        self.note(id, None, reason, now_ms);
        error
    }

    /// Nodes on their way that will serve a class.
    #[must_use]
    pub fn arriving(&self, class: &str) -> usize {
        let serving = self.offers_of(class);
        let coming = |n: &&super::Node| n.state.is_arriving() && self.offer_of(n).is_some_and(|p| serving.contains(&p));
        self.nodes.values().filter(coming).count()
    }

    /// Gives a claim its GPUs; `fresh` where it never waited.
    pub(super) fn grant(&mut self, id: u64, parts: Vec<Part>, fresh: bool, now_ms: i64) {
        for part in &parts {
            self.take_gpus(*part, id, now_ms);
        }
        let first_model = |book: &Self, claim: &Claim| {
            let node = book.nodes.get(&parts[0].node)?;
            let offer = &book.offers[book.offer_of(node)?];
            Some(book.classes.get(&claim.class)?.class.gpus.first()?.model == offer.gpu)
        };
        let Some(claim) = self.claims.get(&id) else { return };
        let substituted = !first_model(self, claim).unwrap_or(true);
        let rule_wait_ms = self.classes.get(&claim.class).map_or(i64::MAX, |r| r.wait_ms);
        let confirm_ms = self.limits.confirm_ms;
        let from = (!fresh).then_some(claim.state);
        let reason = if substituted { "GPUs of another model were free" } else { "GPUs were free" };
        let placed = self.claim_event(id, ClaimEvent::Placed, reason, now_ms);
        debug_assert!(placed.is_ok(), "{placed:?}");
        let Some(claim) = self.claims.get_mut(&id) else { return };
        claim.substituted = substituted;
        claim.granted_at_ms = Some(now_ms);
        let judged = claim.hit.is_none().then_some(now_ms - claim.asked_at_ms <= rule_wait_ms);
        claim.hit = claim.hit.or(judged);
        self.due.remove(&(claim.deadline_at_ms, id));
        claim.lease_until_ms = now_ms + claim.lease_ms.min(confirm_ms);
        self.due.insert((claim.lease_until_ms, id));
        claim.parts = parts;
        let prediction = self.claims.get(&id).and_then(|claim| self.predict(claim));
        let Some(claim) = self.claims.get_mut(&id) else { return };
        claim.prediction = prediction;
        if claim.borrowed {
            self.borrowed.insert(id);
        }
        let class = claim.class.clone();
        if let Some(hit) = judged {
            self.count(&class, hit);
        }
        self.note(id, from, reason.into(), now_ms);
        self.order_start(id, now_ms);
    }

    /// The one way from one state of a claim to another. Who calls it writes the event.
    fn claim_event(&mut self, id: u64, event: ClaimEvent, reason: &str, now_ms: i64) -> Result<ClaimState, ClaimError> {
        let claim = self.claims.get_mut(&id).ok_or(ClaimError::UnknownClaim(id))?;
        let before = claim.state;
        claim.state = before.after(event)?;
        reason.clone_into(&mut claim.reason);
        if !claim.is_open() {
            claim.ended_at_ms = Some(now_ms);
        }
        self.changes.claims.insert(id);
        Ok(before)
    }

    /// Takes GPUs of a node that was found a moment ago.
    fn take_gpus(&mut self, part: Part, claim: u64, now_ms: i64) {
        let taken = self.edit_node(part.node, |node| {
            node.free = node.free.without(part.gpus);
            node.state
        });
        if taken.is_ok_and(|state| state != crate::NodeState::Claimed) {
            // Only nodes whose state allows it are on a shelf.
            let placed = self.node_event(part.node, NodeEvent::ClaimPlaced, &format!("claim c-{claim}"), now_ms);
            debug_assert!(placed.is_ok(), "{placed:?}");
        }
    }

    /// The client is there and keeps its claim for another lease.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn heartbeat(&mut self, id: u64, lease_ms: Option<i64>, now_ms: i64) -> Result<(), ClaimError> {
        let claim = self.open(id)?;
        // Before anything changes.
        let next = claim.state.after(ClaimEvent::Confirmed)?;
        let lease_ms = self.limits.lease_ms(lease_ms.unwrap_or(claim.lease_ms))?;
        let (before, first) = (claim.due_at_ms(), claim.state != next);
        let reason = if first { "confirmed by its client".to_owned() } else { claim.reason.clone() };
        let from = self.claim_event(id, ClaimEvent::Confirmed, &reason, now_ms)?;
        let Some(claim) = self.claims.get_mut(&id) else { return Err(ClaimError::UnknownClaim(id)) };
        claim.lease_ms = lease_ms;
        claim.lease_until_ms = now_ms + lease_ms;
        if let Some(at_ms) = claim.called_back_at_ms {
            claim.lease_until_ms = claim.lease_until_ms.min(at_ms + self.limits.call_back_ms);
        }
        let due = claim.lease_until_ms;
        self.due.remove(&(before, id));
        self.due.insert((due, id));
        if first {
            self.note(id, Some(from), reason, now_ms);
        }
        Ok(())
    }

    /// The client gives a claim back. Giving back what is released already changes nothing.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn release(&mut self, id: u64, reason: &str, now_ms: i64) -> Result<(), ClaimError> {
        self.end_claim(id, ClaimEvent::Released, reason, now_ms)
    }

    /// The client says that the GPUs do not work: the claim fails, and its nodes take no more claims.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn report_unhealthy(&mut self, id: u64, reason: &str, now_ms: i64) -> Result<(), ClaimError> {
        let claim = self.open(id)?;
        let nodes: Vec<u64> = claim.parts.iter().map(|p| p.node).collect();
        let said = format!("claim c-{id} says: {reason}");
        for node in nodes {
            // A node that is leaving already needs no second reason.
            self.drain(node, &said, now_ms).ok();
        }
        self.end_claim(id, ClaimEvent::NodeLost, &said, now_ms)
    }

    /// Whether a claim is a caller's to change. One that nobody is known to have made is anybody's.
    ///
    /// # Errors
    /// It is another's.
    pub fn is_of(&self, id: u64, caller: &str) -> Result<(), ClaimError> {
        match self.claims.get(&id) {
            Some(claim) if !claim.caller.is_empty() && claim.caller != caller => {
                Err(ClaimError::NotYours { id, caller: claim.caller.clone() })
            }
            _ => Ok(()),
        }
    }

    fn open(&self, id: u64) -> Result<&Claim, ClaimError> {
        let claim = self.claims.get(&id).ok_or(ClaimError::UnknownClaim(id))?;
        if claim.is_open() { Ok(claim) } else { Err(ClaimError::Ended { id, state: claim.state.name() }) }
    }

    /// Ends an open claim, and gives its GPUs to whoever waits.
    pub(super) fn end_claim(
        &mut self,
        id: u64,
        event: ClaimEvent,
        reason: &str,
        now_ms: i64,
    ) -> Result<(), ClaimError> {
        let claim = self.open(id)?;
        let (due, class) = (claim.due_at_ms(), claim.class.clone());
        let before = self.claim_event(id, event, reason, now_ms)?;
        let wait_ms = self.classes.get(&class).map_or(i64::MAX, |r| r.wait_ms);
        self.due.remove(&(due, id));
        let Some(claim) = self.claims.get_mut(&id) else { return Err(ClaimError::UnknownClaim(id)) };
        // A client that gives up before the wait is over has not been missed.
        let missed = before == ClaimState::Queued && claim.hit.is_none() && now_ms - claim.asked_at_ms >= wait_ms;
        claim.hit = if missed { Some(false) } else { claim.hit };
        let parts = claim.parts.clone();
        self.withdraw_start(id);
        if missed {
            self.count(&class, false);
        }
        self.note(id, Some(before), reason.to_owned(), now_ms);
        self.borrowed.remove(&id);
        if before == ClaimState::Queued {
            self.leave_line(id);
            // Those behind it may be smaller.
            self.serve_class(&class, now_ms);
        }
        for part in parts {
            self.return_gpus(part, id, now_ms);
        }
        Ok(())
    }

    fn return_gpus(&mut self, part: Part, claim: u64, now_ms: i64) {
        let given = self.edit_node(part.node, |node| {
            node.free = node.free.with(part.gpus);
            (!node.has_claims(), node.state)
        });
        let Ok((empty, state)) = given else { return };
        if empty && state == crate::NodeState::Claimed {
            let reason = format!("claim c-{claim} ended");
            let ended = self.node_event(part.node, NodeEvent::LastClaimEnded, &reason, now_ms);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
        if empty {
            let _ = self.start_care(part.node, now_ms);
        }
        self.serve_waiting(part.node, now_ms);
    }

    /// Claims that wait for what this node has.
    pub(super) fn serve_waiting(&mut self, node: u64, now_ms: i64) {
        let Some(offer) = self.nodes.get(&node).and_then(|n| self.offer_of(n)) else { return };
        let classes: Vec<String> = self
            .waiting
            .iter()
            .filter(|(class, line)| !line.is_empty() && self.offers_of(class).contains(&offer))
            .map(|(class, _)| class.clone())
            .collect();
        // The one that waits longest goes first, borrowers after all others.
        let mut by_age: Vec<(bool, i64, String)> = classes
            .into_iter()
            .filter_map(|k| {
                let first = self.waiting.get(&k)?.first()?;
                let claim = self.claims.get(&first)?;
                Some((claim.borrowed, claim.asked_at_ms, k))
            })
            .collect();
        by_age.sort();
        for (.., class) in by_age {
            self.serve_class(&class, now_ms);
        }
    }

    /// When the next thing happens by itself, milliseconds since 1970.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<i64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// What happens by itself: leases and deadlines run out, waits become misses. Returns whether anything did.
    pub fn tick(&mut self, now_ms: i64) -> bool {
        let mut any = false;
        while let Some(&(at_ms, id)) = self.due.first()
            && at_ms <= now_ms
        {
            self.due.remove(&(at_ms, id));
            any = true;
            let Some(claim) = self.claims.get(&id) else { continue };
            let waits_on = claim.on_empty == OnEmpty::LaunchCold
                && claim.state == ClaimState::Queued
                && claim.asked_at_ms + self.limits.queue_max_ms > at_ms;
            if waits_on {
                self.wait_on(id);
                continue;
            }
            let reason = match claim.state {
                ClaimState::Queued => "its deadline passed while no GPUs were free",
                _ if claim.called_back_at_ms.is_some() => "it was called back",
                ClaimState::Granted => "its client did not confirm it",
                _ => "its lease ran out without a heartbeat",
            };
            let ended = self.end_claim(id, ClaimEvent::TimedOut, reason, now_ms);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
        any
    }

    /// A cold launch takes longer than the wait: the miss is counted, and the claim stays until the longest wait.
    fn wait_on(&mut self, id: u64) {
        let longest_ms = self.limits.queue_max_ms;
        let Some(claim) = self.claims.get_mut(&id) else { return };
        let missed = claim.hit.is_none();
        claim.hit = Some(false);
        let class = claim.class.clone();
        claim.deadline_at_ms = claim.asked_at_ms + longest_ms;
        claim.reason = "waits for a node of its own".into();
        self.due.insert((claim.deadline_at_ms, id));
        self.changes.claims.insert(id);
        if missed {
            self.count(&class, false);
        }
    }

    /// The event of a claim that is in a new state.
    fn note(&mut self, id: u64, from: Option<ClaimState>, reason: String, at_ms: i64) {
        let Some(claim) = self.claims.get(&id) else { return };
        let what = What::Claim(ClaimChange { id, from, to: claim.state, class: claim.class.clone() });
        self.changes.claims.insert(id);
        self.changes.events.push(Change { at_ms, what, reason });
    }

    /// Puts a stored claim back, as it was.
    pub fn load_claim(&mut self, claim: Claim) {
        let id = claim.id;
        self.skip_ids(id + 1);
        self.drop_claim(id);
        if !claim.is_open() {
            return;
        }
        if let Some(key) = &claim.key {
            self.keys.insert(key.clone(), id);
        }
        self.due.insert((claim.due_at_ms(), id));
        if claim.borrowed && claim.state.is_live() {
            self.borrowed.insert(id);
        }
        let waits = claim.state == ClaimState::Queued;
        self.claims.insert(id, claim);
        if waits {
            self.join_line(id);
        }
    }

    fn drop_claim(&mut self, id: u64) {
        self.leave_line(id);
        let Some(old) = self.claims.remove(&id) else { return };
        self.borrowed.remove(&id);
        self.due.remove(&(old.due_at_ms(), id));
        if let Some(key) = &old.key {
            self.keys.remove(key);
        }
    }
}
