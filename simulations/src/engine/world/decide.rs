//! Decisions: what a policy sees, and what is done of what it wants.

use std::collections::BTreeSet;

use control::inputs::{Inputs, Knowledge};
use control::outcomes::NodeOutcomes;
use control::plan::{Wanted, intend};
use fleet::NodeState;
use fleet::book::Node;
use planner::gather::Prior;
use planner::input::LeadTime;
use planner::plan::Launch;
use planner::scenarios::History;
use protocol::BudgetSpec;

use super::super::SimError;
use super::super::events::Event;
use super::machines::EXPIRES_MS;
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
        let inputs = self.inputs();
        let nodes: Vec<SeenNode> = self.book.nodes().values().filter_map(|n| self.seen_node(n, &inputs)).collect();
        let serves: Vec<&[usize]> = self.rules.iter().map(|k| self.book.offers_of(&k.class.name)).collect();
        let seen = Seen { inputs: &inputs, serves: &serves, nodes: &nodes, active: &self.active, queued: &self.queued };
        let decided = policy.decide(&seen);
        // The history was lent, with the present at its end.
        self.history = inputs.history;
        self.history.claims.iter_mut().for_each(|row| row.truncate(row.len() - 1));
        let decision = decided.map_err(|what| SimError::Policy { at_s: self.now_s(), what })?;
        if self.measured() {
            self.out.counts.decisions += 1;
            self.out.counts.changes += u64::from(decision != Decision::default());
        }
        if self.setup.plan_delay_s > 0.0 {
            self.queue.push(self.now_ms + ms(self.setup.plan_delay_s), Event::Carry(self.late.len() as u32));
            self.late.push(Some(decision));
            return Ok(());
        }
        self.carry_out(&decision)
    }

    /// What plans are made from, as the server assembles it.
    fn inputs(&mut self) -> Inputs {
        if self.setup.learns_health {
            let now_s = self.now_s();
            if std::mem::take(&mut self.heard_news) || self.learnt.health.is_due(now_s) {
                self.learnt.health.tell(now_s);
            }
        } else {
            self.learnt.health = NodeOutcomes::default();
        }
        let lent = History { step_s: self.history.step_s, claims: Vec::new() };
        let mut history = std::mem::replace(&mut self.history, lent);
        for (k, row) in history.claims.iter_mut().enumerate() {
            row.push(f64::from(self.active[k] + self.queued[k]));
        }
        let known = Knowledge {
            book: &self.book,
            learnt: &self.learnt,
            market: &self.market,
            uncounted: &BTreeSet::new(),
            prior: &Prior { lead_time: LeadTime::fixed(0.0), min_hold_s: self.setup.min_hold_s },
            prior_of: &self.priors,
            quotas: &[],
            forecasts: &[],
            periods: 0,
            now_ms: self.book_ms(),
        };
        Inputs { quotas: self.setup.quotas.clone(), ..Inputs::of(&known, history) }
    }

    fn seen_node(&self, node: &Node, inputs: &Inputs) -> Option<SeenNode> {
        let idle_ms = if node.state == NodeState::Idle { self.book_ms() - node.since_ms } else { 0 };
        let serves = node.takes_claims();
        let observed = inputs.ids.binary_search(&node.id).ok().map(|i| &inputs.nodes[i]);
        let label = self.machine_of.get(&node.id).and_then(|m| self.machines[*m as usize].label);
        Some(SeenNode {
            id: node.id,
            offer: self.book.offer_of(node)?,
            healthy: serves,
            draining: !serves && !node.state.is_arriving(),
            free_gpus: node.free.count(),
            idle_s: idle_ms as f64 / 1000.0,
            claims: observed.map(|n| n.claims.clone()).unwrap_or_default(),
            label: label.or_else(|| node.intent.and_then(|i| self.labels.get(&i).copied())),
        })
    }

    pub(super) fn carry_out(&mut self, decision: &Decision) -> Result<(), SimError> {
        let budget = BudgetSpec { launch_guard_nodes_per_min: u32::MAX, ..BudgetSpec::default() };
        let epoch = self.out.counts.decisions.max(1);
        let wanted = Wanted { epoch, launches: &[], releases: &[], budget: &budget, launch_expires_ms: EXPIRES_MS };
        let now_ms = self.book_ms();
        let done = intend(&mut self.book, &Wanted { releases: &decision.releases, ..wanted.clone() }, now_ms);
        self.out.counts.releases += if self.measured() { u64::from(done.released) } else { 0 };
        for order in &decision.launches {
            let launch = Launch { offer: self.setup.offers[order.offer].key.clone(), nodes: order.nodes };
            let done = intend(&mut self.book, &Wanted { launches: &[launch], ..wanted.clone() }, now_ms);
            let intent = self.book.intents().keys().next_back().copied().filter(|_| done.launched > 0);
            if let (Some(intent), Some(label)) = (intent, order.label) {
                self.labels.insert(intent, label);
            }
        }
        self.act()
    }
}
