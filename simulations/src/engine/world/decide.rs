//! Decisions: what a policy sees, and what is done of what it wants.

use std::collections::{BTreeMap, BTreeSet};

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

use super::super::events::Event;
use super::super::{Disturbance, SimError};
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
        let serves: Vec<&[usize]> =
            self.rules[..self.planned].iter().map(|k| self.book.offers_of(&k.class.name)).collect();
        let lost_in_s = if policy.foresees() { self.losses_ahead(&inputs.ids) } else { Vec::new() };
        let (active, queued) = (&self.active[..self.planned], &self.queued[..self.planned]);
        let seen = Seen { inputs: &inputs, serves: &serves, nodes: &nodes, active, queued, lost_in_s: &lost_in_s };
        let decided = policy.decide(&seen);
        // The history was lent, with the present at its end.
        self.history = inputs.history;
        self.history.claims.iter_mut().for_each(|row| row.truncate(row.len() - 1));
        let decision = decided.map_err(|what| SimError::Policy { at_s: self.now_s(), what })?;
        if self.measured() {
            self.out.counts.decisions += 1;
            self.out.counts.changes += u64::from(!decision.launches.is_empty() || !decision.releases.is_empty());
            self.out.counts.fallbacks += u64::from(decision.fell_back);
        }
        if self.setup.plan_delay_s > 0.0 {
            self.queue.push(self.now_ms + ms(self.setup.plan_delay_s), Event::Carry(self.late.len() as u32));
            self.late.push(Some(decision));
        } else {
            self.carry_out(&decision)?;
        }
        if self.setup.staging.is_some() {
            self.outlook = policy.outlook();
        }
        self.stage()
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
        let lent = History { step_s: self.history.step_s, claims: Vec::new(), filled_steps: Vec::new() };
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
            outlook: self.outlook.as_ref(),
            periods: 0,
            now_ms: self.book_ms(),
        };
        Inputs { quotas: self.setup.quotas.clone(), ..Inputs::of(&known, history) }
    }

    /// Seconds until each of these nodes is lost as things stand, infinite where it is not: of its own fate, of its offer's
    /// capacity, which takes the youngest first, and of outages.
    fn losses_ahead(&self, ids: &[u64]) -> Vec<f64> {
        let machine = |id: &u64| self.machine_of.get(id).map(|m| &self.machines[*m as usize]);
        let mut lost_ms: BTreeMap<u64, u64> =
            ids.iter().filter_map(|id| Some((*id, machine(id)?.lost_ms.unwrap_or(u64::MAX)))).collect();
        for (at_s, what) in self.setup.disturbances.iter().filter(|(at_s, _)| ms(*at_s) > self.now_ms) {
            let (offers, left): (&[usize], usize) = match what {
                Disturbance::Down(offers) => (offers, 0),
                Disturbance::Reclaim(p) => {
                    (std::slice::from_ref(p), self.setup.supply[*p].capacity.at(*at_s).max(0.0) as usize)
                }
                _ => continue,
            };
            for p in offers {
                let here: Vec<u64> =
                    ids.iter().copied().filter(|i| machine(i).is_some_and(|m| m.offer == *p)).collect();
                here.iter().skip(left).for_each(|id| {
                    lost_ms.entry(*id).and_modify(|at| *at = (*at).min(ms(*at_s)));
                });
            }
        }
        let seconds = |id: &u64| match lost_ms.get(id) {
            Some(at) if *at < u64::MAX => (at.saturating_sub(self.now_ms)) as f64 / 1000.0,
            _ => f64::INFINITY,
        };
        ids.iter().map(seconds).collect()
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
            free_gpus: node.free.count() + self.book.borrowed_gpus(node.id),
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
        let new = |id: &&u64| self.machine_of.get(id).is_some_and(|m| self.machines[*m as usize].is_new(self.now_ms));
        let new: Vec<u64> = decision.releases.iter().filter(new).copied().collect();
        let done = intend(&mut self.book, &Wanted { releases: &decision.releases, ..wanted.clone() }, now_ms);
        if self.measured() {
            let goes = |id: &&u64| self.book.nodes().get(id).is_none_or(|node| !node.takes_claims());
            self.out.counts.reversals += new.iter().filter(goes).count() as u64;
            self.out.counts.releases += u64::from(done.released);
        }
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
