//! So many nodes of one offer, always: what an analytic check or a plain reservation does.

use super::{Decision, LaunchOrder, Policy, Seen};

/// Keeps `nodes` nodes of the first offer.
#[derive(Debug, Clone, Copy)]
pub struct FixedNodes {
    /// How many.
    pub nodes: u32,
}

impl Policy for FixedNodes {
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String> {
        let have = seen.nodes.iter().filter(|n| n.offer == 0 && !n.draining).count() as u32;
        let nodes = self.nodes.saturating_sub(have);
        let launches = if nodes > 0 { vec![LaunchOrder { offer: 0, nodes, label: None }] } else { Vec::new() };
        Ok(Decision { launches, ..Decision::default() })
    }
}
