//! Numbered properties that must hold at every moment. The simulator, the fault tests and the server call the same
//! functions.

use std::collections::BTreeMap;

use crate::node::NodeState;

/// A node as the invariants see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeView {
    /// Identity.
    pub id: u64,
    /// State.
    pub state: NodeState,
    /// GPUs it has.
    pub gpus: u32,
}

/// A live claim as the invariants see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimView {
    /// Identity.
    pub id: u64,
    /// Node that holds it.
    pub node: u64,
    /// GPUs of it.
    pub gpus: u32,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// CAP-1: more GPUs claimed than the node has.
    #[error("CAP-1: node {node} has {gpus} GPUs and live claims for {claimed}")]
    GpuClaimedTwice {
        /// The node.
        node: u64,
        /// What it has.
        gpus: u32,
        /// What is claimed.
        claimed: u32,
    },
    /// CAP-1: one GPU in two live claims, or in one and free.
    #[error("CAP-1: GPUs {gpus} of node {node} are in use twice")]
    SameGpuTwice {
        /// The node.
        node: u64,
        /// Indices of the GPUs.
        gpus: String,
    },
    /// CAP-1: a live claim on a node that is not there.
    #[error("CAP-1: claim {claim} is on node {node}, which is gone")]
    ClaimWithoutNode {
        /// The claim.
        claim: u64,
        /// The node.
        node: u64,
    },
    /// CAP-5: a node that is not proven healthy holds a claim, or an idle one does.
    #[error("CAP-5: node {node} is {state:?} and has live claims for {claimed} GPUs")]
    WrongState {
        /// The node.
        node: u64,
        /// Its state.
        state: NodeState,
        /// What is claimed.
        claimed: u32,
    },
}

/// CAP-1 and CAP-5 over all nodes and live claims; the first broken one.
///
/// # Errors
/// What is broken.
pub fn check(nodes: impl Iterator<Item = NodeView>, claims: impl Iterator<Item = ClaimView>) -> Result<(), Broken> {
    let mut claimed: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
    for claim in claims {
        let slot = claimed.entry(claim.node).or_insert((0, claim.id));
        slot.0 = slot.0.saturating_add(claim.gpus);
    }
    for node in nodes {
        let here = claimed.remove(&node.id).map_or(0, |(gpus, _)| gpus);
        if here > node.gpus {
            return Err(Broken::GpuClaimedTwice { node: node.id, gpus: node.gpus, claimed: here });
        }
        // A node that drains or fell silent may still hold what it was given; the rest may not.
        let holds = matches!(node.state, NodeState::Claimed | NodeState::Draining | NodeState::Lost);
        if (here > 0 && !holds) || (here == 0 && node.state == NodeState::Claimed) {
            return Err(Broken::WrongState { node: node.id, state: node.state, claimed: here });
        }
    }
    match claimed.into_iter().next() {
        Some((node, (_, claim))) => Err(Broken::ClaimWithoutNode { claim, node }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_planted_break_is_found() {
        let node = |id, state| NodeView { id, state, gpus: 8 };
        let claim = |id, node, gpus| ClaimView { id, node, gpus };
        let run = |nodes: &[NodeView], claims: &[ClaimView]| check(nodes.iter().copied(), claims.iter().copied());
        let good = [node(1, NodeState::Claimed), node(2, NodeState::Idle), node(3, NodeState::Draining)];
        assert_eq!(run(&good, &[claim(1, 1, 4), claim(2, 1, 4), claim(3, 3, 1)]), Ok(()));
        assert!(matches!(run(&good, &[claim(1, 1, 4), claim(2, 1, 5)]), Err(Broken::GpuClaimedTwice { .. })));
        assert!(matches!(run(&good, &[claim(1, 1, 1), claim(2, 2, 1)]), Err(Broken::WrongState { node: 2, .. })));
        assert!(matches!(run(&good, &[]), Err(Broken::WrongState { node: 1, .. })));
        assert!(matches!(run(&good, &[claim(1, 1, 1), claim(2, 7, 1)]), Err(Broken::ClaimWithoutNode { .. })));
        let bad = [node(1, NodeState::Quarantined)];
        assert!(matches!(run(&bad, &[claim(1, 1, 1)]), Err(Broken::WrongState { .. })));
    }
}
