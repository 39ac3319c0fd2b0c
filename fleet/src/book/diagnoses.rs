//! Diagnostics as a loan of an idle node: lent, called back when a claim wants it, and idle again after a short gate.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::node::{NodeEvent, NodeState};

use super::{Book, NodeError};

/// What a node is lent to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What is run: a level, `3`, or tests with commas between them.
    pub tests: String,
    /// When it began, milliseconds since 1970.
    pub since_ms: i64,
    /// When it is over in any case, milliseconds since 1970.
    pub until_ms: i64,
    /// When the node was called back, milliseconds since 1970.
    pub called_back_ms: Option<i64>,
}

impl Book {
    /// Lends an idle node to diagnostics until `until_ms` at the latest.
    ///
    /// # Errors
    /// It is not idle, or its health asks for something else.
    pub fn lend(&mut self, id: u64, tests: &str, until_ms: i64, now_ms: i64) -> Result<(), NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        if !node.takes_claims() || node.out {
            return Err(NodeError::NotIdle { node: id, state: node.state.name() });
        }
        self.node_event(id, NodeEvent::DiagnosisStarted, &format!("diagnostics: {tests}"), now_ms)?;
        let tests = tests.to_owned();
        let diagnosis = Diagnosis { tests, since_ms: now_ms, until_ms, called_back_ms: None };
        self.edit_node(id, |node| node.diagnosis = Some(diagnosis))
    }

    /// Calls a node back out of diagnostics: a short gate follows.
    ///
    /// # Errors
    /// It is not in diagnostics.
    pub fn call_back(&mut self, id: u64, reason: &str, now_ms: i64) -> Result<(), NodeError> {
        self.node_event(id, NodeEvent::DiagnosisEnded, reason, now_ms)?;
        self.edit_node(id, |node| {
            if let Some(diagnosis) = &mut node.diagnosis {
                diagnosis.called_back_ms = Some(now_ms);
            }
        })
    }

    /// The host says that its diagnostics have ended. Returns whether it was in them.
    ///
    /// # Errors
    /// The node is unknown, or runs another boot.
    pub fn diagnosed(&mut self, id: u64, boot: &str, reason: &str, now_ms: i64) -> Result<bool, NodeError> {
        if self.of_boot(id, boot)?.state != NodeState::Diagnosing {
            return Ok(false);
        }
        self.node_event(id, NodeEvent::DiagnosisEnded, reason, now_ms)?;
        Ok(true)
    }

    /// The whole gate follows diagnostics that left a doubt, and not the short one.
    pub fn check_whole(&mut self, id: u64, reason: &str) {
        if !self.nodes.get(&id).is_some_and(super::Node::gate_is_short) {
            return;
        }
        let known = self.edit_node(id, |node| {
            node.diagnosis = None;
            reason.clone_into(&mut node.reason);
        });
        debug_assert!(known.is_ok(), "{known:?}");
    }

    /// Calls back as many nodes as the waiting claims of a class need, besides those that come back already.
    pub(super) fn call_back_for(&mut self, class: &str, now_ms: i64) {
        if self.lent.is_empty() {
            return;
        }
        let Some(rule) = self.classes.get(class).filter(|rule| !rule.class.borrows()) else { return };
        let size = u64::from(rule.class.gpus_per_claim);
        let serves =
            |n: &super::Node| self.offer_of(n).is_some_and(|p| self.within.get(class).is_some_and(|w| w.contains(&p)));
        let lent: Vec<(u64, u64, bool)> = self
            .lent
            .iter()
            .filter_map(|id| self.nodes.get(id))
            .filter(|n| n.care.is_none() && !n.out && serves(n))
            .map(|n| (n.id, u64::from(n.gpus), n.state == NodeState::Diagnosing))
            .collect();
        let all: u64 = lent.iter().map(|(_, gpus, _)| gpus).sum();
        let mut needed = 0;
        for id in self.waiting.get(class).into_iter().flat_map(super::lines::Line::iter) {
            needed += size * self.claims.get(id).map_or(0, |c| u64::from(c.count));
            if needed >= all {
                break;
            }
        }
        let mut coming: u64 = lent.iter().filter(|(_, _, diagnosing)| !diagnosing).map(|(_, gpus, _)| gpus).sum();
        for (id, gpus, _) in lent.into_iter().filter(|(_, _, diagnosing)| *diagnosing) {
            if coming >= needed {
                return;
            }
            coming += gpus;
            let called = self.call_back(id, &format!("claims of {class} wait"), now_ms);
            debug_assert!(called.is_ok(), "{called:?}");
        }
    }

    /// Diagnostics that take too long, and claims that wait for nodes in them.
    pub(super) fn tick_diagnoses(&mut self, now_ms: i64) {
        let over = |n: &&super::Node| {
            n.state == NodeState::Diagnosing && n.diagnosis.as_ref().is_none_or(|d| d.until_ms <= now_ms)
        };
        let late: Vec<u64> = self.lent.iter().filter_map(|id| self.nodes.get(id)).filter(over).map(|n| n.id).collect();
        for id in late {
            let called = self.call_back(id, "its diagnostics took too long", now_ms);
            debug_assert!(called.is_ok(), "{called:?}");
        }
        if self.lent.is_empty() {
            return;
        }
        let waiting: Vec<String> = self.waiting.iter().filter(|(_, w)| !w.is_empty()).map(|(k, _)| k.clone()).collect();
        for class in waiting {
            self.call_back_for(&class, now_ms);
        }
    }

    /// Nodes that claims take after others with as many free GPUs; all others are taken in their usual order.
    pub fn take_last(&mut self, last: &BTreeSet<u64>) {
        let changed: Vec<u64> =
            self.nodes.values().filter(|n| n.claimed_last != last.contains(&n.id)).map(|n| n.id).collect();
        for id in changed {
            let known = self.edit_node(id, |node| node.claimed_last = last.contains(&id));
            debug_assert!(known.is_ok(), "{known:?}");
        }
    }
}
