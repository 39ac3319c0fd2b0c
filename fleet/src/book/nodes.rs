//! Nodes: what the cloud, the agent, the operator and time do to them.

use std::collections::{BTreeMap, BTreeSet};

use crate::cause::{Cause, Cell};
use crate::claim::ClaimEvent;
use crate::gpu_set::GpuSet;
use crate::node::{IllegalNodeEvent, NodeEvent, NodeState};
use crate::offer::OfferKey;
use crate::remedy::Remedy;

use super::{Book, Change, DesiredVersion, IntentAction, Node, NodeChange, NodeFacts, Pending, What};

/// Why a node cannot do what was asked. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is no such node, or it is gone.
    #[error("there is no node n-{0}")]
    Unknown(u64),
    /// The report is of an older boot.
    #[error("node n-{node} runs boot {now}; a report of boot {reported} changes nothing")]
    OtherBoot {
        /// The node.
        node: u64,
        /// The boot that is known.
        now: String,
        /// The boot of the report.
        reported: String,
    },
    /// The agent says something about its host that the cloud did not sell.
    #[error("node n-{node} was bought with {bought} GPUs and reports {reported}")]
    OtherHardware {
        /// The node.
        node: u64,
        /// GPUs bought.
        bought: u32,
        /// GPUs reported.
        reported: u32,
    },
    /// The agent names GPUs that it cannot have.
    #[error("node n-{node} has {gpus} GPUs and names {named} serial numbers")]
    OtherSerials {
        /// The node.
        node: u64,
        /// GPUs that it has.
        gpus: u32,
        /// Serial numbers that it names.
        named: usize,
    },
    /// It holds claims or is in another state.
    #[error("node n-{node} is {state} and is not given back")]
    NotIdle {
        /// The node.
        node: u64,
        /// Its state.
        state: &'static str,
    },
    /// More GPUs than a set can hold.
    #[error("a node of {0} GPUs is more than the 64 that are supported")]
    TooLarge(u32),
    /// The node's state does not allow it.
    #[error(transparent)]
    Illegal(#[from] IllegalNodeEvent),
}

impl Book {
    fn node(&self, id: u64) -> Result<&Node, NodeError> {
        self.nodes.get(&id).ok_or(NodeError::Unknown(id))
    }

    /// A node that is to be launched.
    pub(super) fn request_node(&mut self, offer: OfferKey, gpus: u32, intent: Option<u64>, now_ms: i64) -> u64 {
        let id = self.new_id();
        let node = Node {
            id,
            offer,
            gpus,
            state: NodeState::Requested,
            free: GpuSet::first(gpus),
            instance: None,
            intent,
            boot: None,
            asked_at_ms: now_ms,
            since_ms: now_ms,
            proof_at_ms: None,
            heard_at_ms: None,
            out: false,
            report_seq: None,
            care: None,
            repairs: Vec::new(),
            diagnosis: None,
            yield_ms: None,
            claimed_last: false,
            released_at_ms: None,
            serials: Vec::new(),
            serials_proved: false,
            driver: None,
            image: None,
            domain: None,
            desired: DesiredVersion::at(now_ms),
            sent_back: false,
            copies: BTreeMap::new(),
            staging: None,
            cause: None,
            reason: String::new(),
        };
        self.insert_node(node);
        self.changes.nodes.insert(id);
        id
    }

    /// One event of a node's life, with its reason. Keeps shelves and the log in step.
    ///
    /// # Errors
    /// The event cannot happen now.
    pub fn node_event(&mut self, id: u64, event: NodeEvent, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        let before = self.node(id)?.state;
        let after = before.after(event)?;
        self.edit_node(id, |node| node.went(event, after, reason, now_ms))?;
        if before != after {
            let node = NodeFacts::of(self.node(id)?);
            self.note_node(NodeChange { id, from: Some(before), to: after, event: Some(event), node }, reason, now_ms);
        }
        Ok(())
    }

    pub(super) fn note_node(&mut self, change: NodeChange, reason: &str, at_ms: i64) {
        self.changes.events.push(Change { at_ms, what: What::Node(change), reason: reason.to_owned() });
    }

    /// The cloud accepted the launch of a node as `instance`.
    ///
    /// # Errors
    /// It is not `requested`.
    pub fn accepted(&mut self, id: u64, instance: &str, now_ms: i64) -> Result<(), NodeError> {
        self.node_event(id, NodeEvent::Accepted, &format!("the provider launched {instance}"), now_ms)?;
        self.edit_node(id, |node| node.instance = Some(instance.to_owned()))?;
        self.by_instance.entry(instance.to_owned()).or_default().insert(id);
        Ok(())
    }

    /// The nodes that an instance is or was, as far as they are known, the newest first: a machine of one's own may be one
    /// after another.
    pub fn nodes_of(&self, instance: &str) -> impl Iterator<Item = &Node> {
        let ids = self.by_instance.get(instance).into_iter().flat_map(|ids| ids.iter().rev());
        ids.filter_map(|id| self.nodes.get(id))
    }

    /// The agent of a node has started in a boot of its host. The gate follows.
    ///
    /// # Errors
    /// The node is unknown, its hardware is another, or it cannot register now.
    pub fn register(&mut self, id: u64, boot: &str, gpus: u32, now_ms: i64) -> Result<(), NodeError> {
        let node = self.node(id)?;
        if node.gpus != gpus {
            return Err(NodeError::OtherHardware { node: id, bought: node.gpus, reported: gpus });
        }
        if node.boot.as_deref() == Some(boot) {
            // The agent restarted, not the host: what clients run there runs on, and what it brought up itself it brings up anew.
            self.forget_presence(id, now_ms)?;
            return self.heard(id, boot, None, now_ms);
        }
        // What ran on the host before is gone.
        self.fail_claims(id, "its node restarted", now_ms);
        let event = match self.node(id)?.state {
            NodeState::Lost => NodeEvent::CameBack,
            NodeState::Booting | NodeState::Repairing => NodeEvent::Registered,
            // A restart that nobody announced.
            _ => {
                self.node_event(id, NodeEvent::WentSilent, "its host restarted", now_ms)?;
                NodeEvent::CameBack
            }
        };
        self.node_event(id, event, "its agent registered", now_ms)?;
        self.forget_presence(id, now_ms)?;
        self.edit_node(id, |node| {
            node.boot = Some(boot.to_owned());
            node.report_seq = None;
            node.heard_at_ms = Some(now_ms);
        })
    }

    /// A heartbeat of a node's agent. `healthy` says whether every passive check was made and passed: `None` where
    /// something was not measured, which proves nothing.
    ///
    /// # Errors
    /// The node is unknown or runs another boot.
    pub fn heard(&mut self, id: u64, boot: &str, healthy: Option<bool>, now_ms: i64) -> Result<(), NodeError> {
        let node = self.of_boot(id, boot)?;
        let (state, has_claims, heard_at_ms) = (node.state, node.has_claims(), node.heard_at_ms);
        if state == NodeState::Lost && !has_claims {
            self.node_event(id, NodeEvent::CameBack, "its agent is heard again", now_ms)?;
        }
        self.edit_unwritten(id, |node| {
            node.heard_at_ms = Some(now_ms);
            // One that lost its proof and waits for care gets it back from the gate alone.
            let waits = node.care.is_some() && node.proof_at_ms.is_none();
            if healthy == Some(true) && !waits && (node.state.takes_claims() || node.state == NodeState::Draining) {
                node.proof_at_ms = Some(now_ms);
            }
        })?;
        // Most heartbeats say nothing new; the log need not carry each.
        if heard_at_ms.is_none_or(|at| at.div_euclid(HEARD_EVERY_MS) != now_ms.div_euclid(HEARD_EVERY_MS)) {
            self.changes.nodes.insert(id);
        }
        if healthy == Some(false) {
            self.fault(id, Cause::Passive, "a passive check failed", now_ms)?;
        } else if state.takes_claims() {
            self.serve_waiting(id, now_ms);
        }
        Ok(())
    }

    /// A fault was found: no new claims, and those that it has fail.
    ///
    /// # Errors
    /// Its state does not allow it.
    pub fn fault(&mut self, id: u64, cause: Cause, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        self.node(id)?.state.after(NodeEvent::FaultFound)?;
        self.blame(id, cause);
        self.fail_claims(id, reason, now_ms);
        self.node_event(id, NodeEvent::FaultFound, reason, now_ms)
    }

    /// The node takes no more claims.
    ///
    /// # Errors
    /// Its state does not allow it.
    pub fn drain(&mut self, id: u64, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        self.node_event(id, NodeEvent::DrainStarted, reason, now_ms)
    }

    /// A person lets a node go: one in service is drained, one that is out or silent is ended, whatever holds it, once it has
    /// no claims.
    ///
    /// # Errors
    /// Its state does not allow it.
    pub fn send_back(&mut self, id: u64, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        if !matches!(self.node(id)?.state, NodeState::Quarantined | NodeState::Lost) {
            return self.drain(id, reason, now_ms);
        }
        self.edit_node(id, |node| (node.sent_back, node.out) = (true, true))
    }

    /// Drains a node that takes claims. Returns whether that changed anything.
    pub fn drain_once(&mut self, id: u64, reason: &str, now_ms: i64) -> bool {
        let able = self.nodes.get(&id).is_some_and(|n| n.state.in_service());
        able && self.drain(id, reason, now_ms).is_ok()
    }

    /// The cloud says that it will take a node back. Returns whether that is news: a notice that comes twice is not.
    pub fn reclaim_noticed(&mut self, id: u64, now_ms: i64) -> bool {
        let able = self.nodes.get(&id).is_some_and(|n| n.state.in_service());
        able && self.node_event(id, NodeEvent::ReclaimNoticed, "the provider takes it back", now_ms).is_ok()
    }

    /// The cloud says that it is gone. Its claims fail.
    ///
    /// # Errors
    /// It is unknown.
    pub fn gone(&mut self, id: u64, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        self.node(id)?;
        self.fail_claims(id, reason, now_ms);
        self.node_event(id, NodeEvent::Gone, reason, now_ms)
    }

    /// Fails the live claims of a node that can serve them no longer.
    pub(super) fn fail_claims(&mut self, id: u64, reason: &str, now_ms: i64) {
        let on_it = |c: &&super::Claim| c.state.is_live() && c.parts.iter().any(|p| p.node == id);
        let lost: Vec<u64> = self.claims.values().filter(on_it).map(|c| c.id).collect();
        if lost.is_empty() {
            return;
        }
        // It must not be granted to the next in line while its claims end.
        let known = self.edit_node(id, |node| node.proof_at_ms = None);
        debug_assert!(known.is_ok(), "{known:?}");
        for claim in lost {
            let ended = self.end_claim(claim, ClaimEvent::NodeLost, reason, now_ms);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
    }

    /// Agents that fell silent and proofs that are too old. Called about once a second.
    pub fn tick_nodes(&mut self, now_ms: i64) {
        let limits = self.limits;
        let silent = |n: &Node| n.heard_at_ms.is_some_and(|at| now_ms - at > limits.silent_ms);
        let unproven = |n: &Node| {
            n.state.takes_claims()
                && n.care.is_none()
                && n.proof_at_ms.is_some_and(|at| now_ms - at > limits.proof_max_age_ms)
        };
        let listens = |n: &Node| n.state.in_service() || matches!(n.state, NodeState::Checking | NodeState::Draining);
        // One pass over all nodes each second: most of the time there is nothing to do.
        let (mut aged, mut quiet, mut any_cared) = (Vec::new(), Vec::new(), false);
        for node in self.nodes.values() {
            any_cared |= node.care.is_some();
            match (silent(node), unproven(node)) {
                (true, _) if listens(node) => quiet.push((node.id, Cause::Silent, "its agent is silent")),
                // It is heard, and what runs on it runs on; it takes nothing new before it has been checked.
                (false, true) if node.has_claims() => aged.push(node.id),
                (false, true) if listens(node) => {
                    quiet.push((node.id, Cause::Silent, "its proof of health is too old"));
                }
                _ => {}
            }
        }
        any_cared |= !aged.is_empty();
        for id in aged {
            let again = Pending { remedy: Remedy::Recheck, cause: Cause::StaleProof, claims_until_ms: None };
            let asked = self.set_care(id, Some(again), now_ms);
            debug_assert!(asked.is_ok(), "{asked:?}");
        }
        for (id, cause, reason) in quiet {
            self.blame(id, cause);
            let lost = self.node_event(id, NodeEvent::WentSilent, reason, now_ms);
            debug_assert!(lost.is_ok(), "{lost:?}");
        }
        self.tick_diagnoses(now_ms);
        self.tick_borrowed(now_ms);
        if !any_cared {
            return;
        }
        let cared: Vec<u64> = self.nodes.values().filter(|n| n.care.is_some()).map(|n| n.id).collect();
        for id in cared {
            let started = self.start_care(id, now_ms);
            debug_assert!(started.is_ok(), "{started:?}");
        }
    }

    /// Ends what will not be of use: drained nodes without claims, failed and lost ones, boots that take too long.
    /// `most` of them at a time, none whose cause is held, and of each cell a share in the hour, of which `ended` were,
    /// so that one bad cause does not take the fleet down (HLT-6). Returns how many.
    pub fn clean_up(&mut self, most: usize, ended: &BTreeMap<Cell, usize>, now_ms: i64) -> usize {
        let limits = self.limits;
        let ending: BTreeSet<u64> = self
            .intents
            .values()
            .filter_map(|i| match i.action {
                IntentAction::Terminate { node } => Some(node),
                IntentAction::Launch { .. } => None,
            })
            .collect();
        let why = |n: &Node| {
            let waited_ms = now_ms - n.since_ms;
            let is_empty = !n.has_claims();
            match n.state {
                NodeState::Terminating if waited_ms > ENDED_WITHIN_MS => Some("the provider still runs it"),
                NodeState::Terminating => None,
                _ if n.sent_back && is_empty => Some("a person sends it back"),
                NodeState::Draining if is_empty => Some("its last claim has ended"),
                NodeState::Quarantined => Some("it failed a check"),
                NodeState::Lost if is_empty && waited_ms > limits.boot_max_ms => Some("its agent stays silent"),
                NodeState::Booting | NodeState::Checking | NodeState::Repairing if waited_ms > limits.boot_max_ms => {
                    Some("it did not become healthy in time")
                }
                _ => None,
            }
        };
        let under_way = self.nodes.values().filter(|n| n.state == NodeState::Terminating).count() + ending.len();
        let mut left = self.ends_left(ended);
        // What is asked to end already was counted when it was asked; what is to leave anyway is no fault.
        let mut may_end = |n: &Node| {
            let ends = matches!(n.state, NodeState::Draining | NodeState::Terminating | NodeState::Booting);
            let planned = n.sent_back || ends;
            let waits_for_care = n.state == NodeState::Quarantined && n.care.is_some();
            if planned {
                return true;
            }
            // A repair that does not end is no use to any canary.
            let hangs = n.state == NodeState::Repairing;
            if waits_for_care || (!hangs && self.held_for(n).is_some()) {
                return false;
            }
            let room = left.entry(Cell::of(&n.offer)).or_default();
            *room = match *room {
                0 => return false,
                more => more - 1,
            };
            true
        };
        let free: Vec<(u64, &str)> = self
            .nodes
            .values()
            .filter(|n| !ending.contains(&n.id))
            .filter_map(|n| Some((n, why(n)?)))
            .filter(|(n, _)| may_end(n))
            .map(|(n, why)| (n.id, why))
            .take(most.saturating_sub(under_way))
            .collect();
        for (id, reason) in &free {
            let asked = self.intend_end(*id, reason, now_ms);
            debug_assert!(asked.is_ok(), "{asked:?}");
        }
        free.len()
    }

    /// Nobody could be heard for so long, because the server or its database was away: leases, proofs and silences do not
    /// count that time. Waiting clients have deadlines of their own, which stay.
    pub fn forgive(&mut self, gap_ms: i64) {
        // All of it is written: another replica, or this one after a crash, must not count the time either.
        self.changes.nodes.extend(self.nodes.keys());
        self.changes.claims.extend(self.claims.values().filter(|c| c.state.is_live()).map(|c| c.id));
        for node in self.nodes.values_mut() {
            node.heard_at_ms = node.heard_at_ms.map(|at| at.saturating_add(gap_ms));
            node.proof_at_ms = node.proof_at_ms.map(|at| at.saturating_add(gap_ms));
        }
        // One that was called back has to go all the same: others wait for it by a deadline that stays.
        for claim in self.claims.values_mut().filter(|c| c.state.is_live() && c.called_back_at_ms.is_none()) {
            self.due.remove(&(claim.lease_until_ms, claim.id));
            claim.lease_until_ms = claim.lease_until_ms.saturating_add(gap_ms);
            self.due.insert((claim.lease_until_ms, claim.id));
        }
    }

    /// Something else than health's part of what its agent is to do has changed: the agent hears of it, and health goes on.
    /// Agents of protocol 1 know one number for everything: whoever calls this first ends that they are taken
    /// (`protocol::agent::OLDEST_PROTOCOL`).
    ///
    /// # Errors
    /// The node is unknown.
    pub fn raise_desired(&mut self, id: u64) -> Result<(), NodeError> {
        self.edit_node(id, |node| node.desired.all += 1)
    }

    /// Puts a stored node back, as it was.
    pub fn load_node(&mut self, node: Node) {
        let id = node.id;
        self.skip_ids(id + 1);
        self.remove_node(id);
        if node.state != NodeState::Terminated {
            let desired = node.desired.or_at(node.since_ms);
            self.insert_node(Node { desired, ..node });
        }
    }
}

impl Node {
    /// It went into a state: what that changes of its record.
    pub(super) fn went(&mut self, event: NodeEvent, after: NodeState, reason: &str, now_ms: i64) {
        if self.state != after {
            self.since_ms = now_ms;
        }
        self.state = after;
        self.out = self.out || matches!(event, NodeEvent::DrainStarted | NodeEvent::ReclaimNoticed);
        if !matches!(event, NodeEvent::DiagnosisStarted | NodeEvent::DiagnosisEnded) {
            self.diagnosis = None;
        }
        if after == NodeState::Quarantined {
            // A fault outweighs what it needed before.
            self.care = None;
        }
        if event == NodeEvent::LastClaimEnded {
            self.released_at_ms = Some(now_ms);
        }
        self.reason = reason.to_owned();
        if matches!(after, NodeState::Checking | NodeState::Quarantined | NodeState::Lost | NodeState::Repairing) {
            self.proof_at_ms = None;
        }
    }
}

/// A node whose end was asked for so long ago is asked to end again, milliseconds.
const ENDED_WITHIN_MS: i64 = 15 * 60_000;
/// Heartbeats are written down this often, milliseconds.
const HEARD_EVERY_MS: i64 = 20_000;
