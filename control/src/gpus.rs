//! Physical GPUs and what was seen of them, across the instances that they were rented as.
use std::borrow::Cow;
use std::collections::BTreeSet;

use fleet::book::Node;
use health::weekly::{History, Run};
use serde::{Deserialize, Serialize};

/// A GPU, or all of a host where they tell no serial numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecord {
    /// Serial number, or `provider:instance`.
    pub serial: String,
    /// Cloud that rented it out last.
    pub provider: String,
    /// As which instance type.
    pub instance_type: String,
    /// As which instance.
    pub instance: String,
    /// As which node.
    pub node: u64,
    /// When it last passed or failed something, milliseconds since 1970.
    pub seen_at_ms: i64,
    /// What passed on it.
    pub history: History,
    /// Faults that took its node out, the newest last.
    #[serde(default)]
    pub faults: Vec<GpuFault>,
    /// When diagnostics were last tried and said nothing, milliseconds since 1970; 0 since they did.
    #[serde(default)]
    pub tried_at_ms: i64,
    /// They gave way then.
    #[serde(default)]
    pub gave_way: bool,
    /// When a person said that it is well, milliseconds since 1970: faults before it do not count.
    #[serde(default)]
    pub cleared_at_ms: i64,
}

/// A fault that took a node out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFault {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// The node that it was.
    pub node: u64,
    /// Why.
    pub reason: String,
}

/// Faults that are remembered of each GPU.
const FAULTS_MAX: usize = 16;
/// A GPU that took so many nodes out within [`BLOCKED_WITHIN_MS`] is not taken again.
const BLOCKED_AT: usize = 2;
const BLOCKED_WITHIN_MS: i64 = 30 * 86_400_000;
/// A GPU that was not seen for so long is forgotten, and what was seen of it sooner, milliseconds.
pub const GPUS_KEPT_MS: i64 = 180 * 86_400_000;
/// Evidence is kept for so long, milliseconds.
pub const EVIDENCE_KEPT_MS: i64 = 30 * 86_400_000;

impl GpuRecord {
    /// Rented as this node from now on. A diagnostic of level 2 is due in the first idle gap of each node.
    pub fn met(&mut self, node: &Node, now_ms: i64) {
        if self.seen_at_ms == 0 {
            self.history.met_ms = now_ms;
        }
        if self.node != node.id {
            self.history.quick = false;
            self.tried_at_ms = 0;
        }
        self.node = node.id;
        self.provider.clone_from(&node.offer.provider);
        self.instance_type.clone_from(&node.offer.instance_type);
        self.instance = node.instance.clone().unwrap_or_default();
        self.seen_at_ms = now_ms;
    }

    /// It took its node out.
    pub fn failed(&mut self, reason: &str, now_ms: i64) {
        self.faults.push(GpuFault { at_ms: now_ms, node: self.node, reason: reason.to_owned() });
        let excess = self.faults.len().saturating_sub(FAULTS_MAX);
        self.faults.drain(..excess);
    }

    /// The last fault that keeps it from being taken again; none where it may be.
    #[must_use]
    pub fn blocked_by(&self, now_ms: i64) -> Option<&GpuFault> {
        let counts = |f: &&GpuFault| f.at_ms > self.cleared_at_ms && now_ms - f.at_ms < BLOCKED_WITHIN_MS;
        let nodes: BTreeSet<u64> = self.faults.iter().filter(counts).map(|f| f.node).collect();
        (nodes.len() >= BLOCKED_AT).then(|| self.faults.last()).flatten()
    }
}

/// Under which names the GPUs of a node are known: by their serial numbers once it has passed a gate with them. What a host says
/// that never passed one is noted of the instance: nobody can spoil GPUs that he only names.
#[must_use]
pub fn gpu_names(node: &Node) -> Cow<'_, [String]> {
    if node.serials.is_empty() || !node.serials_proved {
        let instance = node.instance.as_deref().unwrap_or("?");
        return Cow::Owned(vec![format!("{}:{instance}", node.offer.provider)]);
    }
    Cow::Borrowed(&node.serials)
}

/// What changes the record of a GPU.
#[derive(Debug, Clone, PartialEq)]
pub enum GpuChange {
    /// It was looked at as a part of this node.
    Seen {
        /// The node.
        node: Box<Node>,
        /// What diagnostics said of it.
        tested: Tested,
        /// Why it took its node out, where it did.
        fault: Option<String>,
    },
    /// A person says that it is well: faults until now do not count.
    Cleared,
}

/// What diagnostics said of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tested {
    /// None were run.
    No,
    /// This passed.
    Passed(Run),
    /// They failed: it is the next to be tested.
    Failed,
    /// They said nothing; `gave_way`: to a claim.
    Nothing {
        /// To a claim.
        gave_way: bool,
    },
}

impl GpuChange {
    /// Changes a record.
    pub fn apply(&self, gpu: &mut GpuRecord, now_ms: i64) {
        let (node, tested, fault) = match self {
            Self::Cleared => {
                gpu.cleared_at_ms = now_ms;
                return;
            }
            Self::Seen { node, tested, fault } => (node, tested, fault),
        };
        gpu.met(node, now_ms);
        match tested {
            Tested::No => {}
            Tested::Passed(run) => {
                gpu.tried_at_ms = 0;
                gpu.history.passed(run, now_ms);
            }
            Tested::Failed => {
                (gpu.history.quick, gpu.tried_at_ms) = (false, 0);
                gpu.history.failures += 1;
            }
            Tested::Nothing { gave_way } => (gpu.tried_at_ms, gpu.gave_way) = (now_ms, *gave_way),
        }
        if let Some(reason) = fault {
            gpu.failed(reason, now_ms);
        }
    }
}
