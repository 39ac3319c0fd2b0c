//! Decisions: what a policy sees, and what is done of what it wants.

use fleet::NodeState;

use super::super::SimError;
use super::super::events::Event;
use super::{CHECK_EVERY, World, ms};
use crate::policies::{Decision, Policy, Seen, SeenNode};

impl World<'_> {
    pub(super) fn decide(&mut self, policy: &mut dyn Policy) -> Result<(), SimError> {
        self.queue.push(self.now_ms + u64::from(self.setup.plan_every_s) * 1000, Event::Decide);
        if self.now_ms < self.silent_until_ms {
            return Ok(());
        }
        if self.out.counts.decisions.is_multiple_of(CHECK_EVERY) {
            self.check_invariants()?;
        }
        let now_s = self.now_s();
        if self.places.tell(now_s) {
            self.estimates = (0..self.offers.len()).map(|p| self.estimate(p)).collect();
        }
        for (estimate, supply) in self.estimates.iter_mut().zip(&self.supply) {
            estimate.launch_limit_nodes = supply.launch_limit_nodes(now_s);
        }
        let nodes: Vec<SeenNode> = self.alive.iter().map(|id| self.seen_node(*id)).collect();
        let seen = Seen {
            now_s,
            offers: &self.offers,
            estimates: &self.estimates,
            classes: &self.setup.classes,
            nodes: &nodes,
            active: &self.active,
            queued: &self.queued,
            judged: &self.judged,
            history: &self.history,
            quotas: &self.setup.quotas,
        };
        let decision = policy.decide(&seen).map_err(|what| SimError::Policy { at_s: now_s, what })?;
        if self.measured() {
            self.out.counts.decisions += 1;
            self.out.counts.changes += u64::from(decision != Decision::default());
        }
        if self.setup.plan_delay_s > 0.0 {
            self.queue.push(self.now_ms + ms(self.setup.plan_delay_s), Event::Act(self.late.len() as u32));
            self.late.push(Some(decision));
            return Ok(());
        }
        self.act(&decision)
    }

    fn seen_node(&self, id: u32) -> SeenNode {
        let node = &self.nodes[id as usize];
        let idle = node.claims.is_empty();
        SeenNode {
            id,
            offer: node.offer as usize,
            age_s: (self.now_ms - node.born_ms) as f64 / 1000.0,
            healthy: !node.state.is_arriving(),
            draining: node.state == NodeState::Draining,
            free_gpus: node.free,
            idle_s: if idle { (self.now_ms - node.idle_since_ms) as f64 / 1000.0 } else { 0.0 },
            claims: node.classes.clone(),
            label: node.label,
        }
    }

    pub(super) fn act(&mut self, decision: &Decision) -> Result<(), SimError> {
        for id in &decision.releases {
            self.release(*id)?;
        }
        for order in &decision.launches {
            self.launch(order.offer, order.nodes, order.label)?;
        }
        Ok(())
    }
}
