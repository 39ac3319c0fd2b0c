//! What a node's health asks for: the care that it needs before it is claimed again, and reports that come twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::node::{NodeEvent, NodeState};
use crate::remedy::Remedy;

use super::{Book, Node, NodeChange, NodeError, NodeFacts};

/// Care that a node waits for until it is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What it needs: a recheck, a reset or a reboot.
    #[serde(rename = "care", alias = "remedy")]
    pub remedy: Remedy,
    /// For what: the same cause is not mended twice.
    pub cause: Cause,
    /// Claims that are still there then fail, milliseconds since 1970; none: they may go on.
    pub claims_until_ms: Option<i64>,
}

/// A reset or reboot that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// For what.
    pub cause: Cause,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
}

/// A second repair for the same cause within this time is not made: the node is replaced, milliseconds.
const REPAIRED_TWICE_MS: i64 = 7 * 86_400_000;
/// Repairs that are remembered.
const REPAIRS_MAX: usize = 8;

/// What the boot gate of a host said.
#[derive(Debug, Clone, PartialEq)]
pub enum Gate {
    /// Every required check was made and passed.
    Passed {
        /// What it measured, the slowest GPU of each number; empty for a short gate.
        rates: BTreeMap<String, f64>,
    },
    /// One did not.
    Failed {
        /// What would mend it; none where only another host would.
        mend: Option<Remedy>,
    },
}

impl Gate {
    /// Passed, and nothing is told of what was measured.
    #[must_use]
    pub fn passed() -> Self {
        Self::Passed { rates: BTreeMap::new() }
    }
}

impl Book {
    /// Whether a report is new: of the boot that runs, with a number above those that were seen. A report without a number is
    /// always new.
    ///
    /// # Errors
    /// The node is unknown, or runs another boot.
    pub fn is_new(&mut self, id: u64, boot: &str, seq: Option<u64>) -> Result<bool, NodeError> {
        self.of_boot(id, boot)?;
        let Some(seq) = seq else { return Ok(true) };
        self.edit_unwritten(id, |node| {
            let new = node.report_seq.is_none_or(|last| seq > last);
            node.report_seq = if new { Some(seq) } else { node.report_seq };
            new
        })
    }

    pub(super) fn of_boot(&self, id: u64, boot: &str) -> Result<&Node, NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        if node.boot.as_deref() == Some(boot) {
            return Ok(node);
        }
        let now = node.boot.clone().unwrap_or_else(|| "none".into());
        Err(NodeError::OtherBoot { node: id, now, reported: boot.to_owned() })
    }

    /// The answer of the boot gate. A host that a reset or reboot would mend gets that once for each cause, and the gate
    /// again; otherwise a failure is the end of it.
    ///
    /// # Errors
    /// The node is unknown, runs another boot, or is not being checked.
    pub fn gate(&mut self, id: u64, boot: &str, said: &Gate, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        let state = self.of_boot(id, boot)?.state;
        if state == NodeState::Repairing {
            // The gate runs when the repair is done.
            self.node_event(id, NodeEvent::Registered, "its repair is done", now_ms)?;
        }
        match said {
            Gate::Passed { rates } => {
                let called_back_ms = self.nodes.get(&id).and_then(|n| n.diagnosis.as_ref()?.called_back_ms);
                self.gate_passed(id, rates, reason, now_ms)?;
                self.proven(id, called_back_ms.map(|at| now_ms - at), now_ms)
            }
            Gate::Failed { mend } => {
                self.node_event(id, NodeEvent::GateFailed, reason, now_ms)?;
                match mend {
                    Some(care @ (Remedy::Reset | Remedy::Reboot)) => {
                        // Whichever check it was: once.
                        let need = Pending { remedy: *care, cause: Cause::Gate(None), claims_until_ms: None };
                        self.edit_node(id, |node| node.care = Some(need))?;
                        self.start_care(id, now_ms)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// The pass, with what was measured in its event: those who learn from it read nothing else.
    fn gate_passed(
        &mut self,
        id: u64,
        rates: &BTreeMap<String, f64>,
        reason: &str,
        now_ms: i64,
    ) -> Result<(), NodeError> {
        let (event, from) = (NodeEvent::GatePassed, self.nodes.get(&id).ok_or(NodeError::Unknown(id))?.state);
        let to = from.after(event)?;
        let went = |node: &mut Node| {
            node.went(event, to, reason, now_ms);
            node.serials_proved = !node.serials.is_empty();
            NodeFacts { rates: rates.clone(), ..NodeFacts::of(node) }
        };
        let node = self.edit_node(id, went)?;
        self.note_node(NodeChange { id, from: Some(from), to, event: Some(event), node }, reason, now_ms);
        Ok(())
    }

    fn proven(&mut self, id: u64, yielded_ms: Option<i64>, now_ms: i64) -> Result<(), NodeError> {
        self.edit_node(id, |node| {
            node.proof_at_ms = Some(now_ms);
            node.heard_at_ms = Some(now_ms);
            node.yield_ms = yielded_ms.or(node.yield_ms);
            // Whatever it needed, it has had: the gate is the judge.
            node.care = None;
        })?;
        if self.nodes.get(&id).is_some_and(|n| n.out) {
            // It was taken out before: being healthy again does not bring it back.
            return self.drain(id, "it was taken out of service before", now_ms);
        }
        self.serve_waiting(id, now_ms);
        Ok(())
    }

    /// What a host's conditions ask for now; none where they ask for nothing. A node takes no claims while it needs care, and
    /// gets it when it is empty.
    ///
    /// # Errors
    /// The node is unknown, or runs another boot.
    pub fn needs(&mut self, id: u64, boot: &str, need: Option<Pending>, now_ms: i64) -> Result<(), NodeError> {
        self.of_boot(id, boot)?;
        self.set_care(id, need, now_ms)
    }

    /// Notes what a node needs, and starts it where it can be.
    pub(super) fn set_care(&mut self, id: u64, need: Option<Pending>, now_ms: i64) -> Result<(), NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        let holds = node.has_claims();
        // A deadline that was set does not move on with each report.
        let need = need.filter(|n| n.remedy.is_care()).map(|n| match &node.care {
            Some(was) if was.remedy >= n.remedy && was.claims_until_ms.is_some() => was.clone(),
            _ => n,
        });
        // One whose claims were failed for it has no proof any more: the gate is to say that it is well.
        let unproven = node.state == NodeState::Idle && node.proof_at_ms.is_none();
        let recheck = |was: &Pending| Pending { remedy: Remedy::Recheck, claims_until_ms: None, ..was.clone() };
        let need = need.or_else(|| node.care.as_ref().filter(|_| unproven).map(recheck));
        if (node.state.in_service() || holds) && node.care != need {
            self.edit_node(id, |node| node.care = need)?;
            self.serve_waiting(id, now_ms);
        }
        self.start_care(id, now_ms)
    }

    /// Starts the care of a node that is empty, or whose claims have had their time.
    pub(super) fn start_care(&mut self, id: u64, now_ms: i64) -> Result<(), NodeError> {
        let Some(node) = self.nodes.get(&id) else { return Ok(()) };
        let holds = node.has_claims();
        // One that drains or is lost may hold claims yet; what becomes of it when they end is another's affair.
        let waits = node.state.in_service() || holds || node.state == NodeState::Quarantined;
        let Some(pending) = node.care.clone().filter(|_| waits) else { return Ok(()) };
        if holds {
            if pending.claims_until_ms.is_none_or(|until| now_ms < until) {
                return Ok(());
            }
            self.fail_claims(id, &format!("its node needs a {}: {}", pending.remedy.name(), pending.cause), now_ms);
            // The end of the last claim starts it.
            return Ok(());
        }
        if pending.remedy > Remedy::Recheck && !self.may_repair(id, now_ms) {
            // It takes no claims meanwhile, and is asked after each second.
            return Ok(());
        }
        let gate_failed = node.state == NodeState::Quarantined;
        let reason = if gate_failed { node.reason.clone() } else { pending.cause.to_string() };
        if !gate_failed {
            self.blame(id, pending.cause.clone());
        }
        match pending.remedy {
            Remedy::Recheck => self.node_event(id, NodeEvent::RecheckStarted, &reason, now_ms)?,
            care => self.repair(id, care, &pending.cause, &reason, now_ms)?,
        }
        // One that had its repair is out, and needs nothing more.
        self.edit_node(id, |node| node.care = if node.is_quarantined() { None } else { Some(pending) })
    }

    /// Repairs once for a cause; the second time the node is out.
    fn repair(&mut self, id: u64, care: Remedy, cause: &Cause, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        let recent = |r: &Repair| r.cause == *cause && now_ms - r.at_ms < REPAIRED_TWICE_MS;
        if node.repairs.iter().any(recent) {
            let reason = format!("{reason} again, after a repair");
            if !node.is_quarantined() {
                self.edit_node(id, |node| node.care = None)?;
                return self.fault(id, cause.clone(), &reason, now_ms);
            }
            return self.edit_node(id, |node| (node.care, node.reason) = (None, reason));
        }
        self.node_event(id, NodeEvent::RepairStarted, &format!("{}: {reason}", care.name()), now_ms)?;
        self.edit_node(id, |node| {
            node.repairs.push(Repair { cause: cause.clone(), at_ms: now_ms });
            let excess = node.repairs.len().saturating_sub(REPAIRS_MAX);
            node.repairs.drain(..excess);
        })
    }
}
