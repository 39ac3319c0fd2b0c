//! The shipped planner as a policy: the same forecast, the same input, the same plan, the same choice of nodes.

use fleet::Class;
use planner::error_budget::ErrorBudget;
use planner::gather::{self, ObservedNode};
use planner::rolling::{self, Memory, Moment, Rules};
use planner::scenarios::History;

use super::{Decision, LaunchOrder, Policy, Seen};

/// The planner with what it remembers.
#[derive(Debug)]
pub struct Live {
    rules: Rules,
    memory: Memory,
}

impl Live {
    /// With what earlier days left of the hit-rate targets; the default without a past.
    #[must_use]
    pub fn new(rules: Rules, budget: ErrorBudget) -> Self {
        Self { rules, memory: Memory::with_budget(budget) }
    }

    /// What is left of the hit-rate targets, for the days that come.
    #[must_use]
    pub fn error_budget(&self) -> ErrorBudget {
        self.memory.error_budget()
    }
}

impl Policy for Live {
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String> {
        let classes: Vec<Class> = seen.classes.iter().map(|k| k.class.clone()).collect();
        let claim_mean_s: Vec<f64> = seen.classes.iter().map(|k| k.claim_mean_s).collect();
        let mut history = History { step_s: seen.history.step_s, claims: seen.history.claims.clone() };
        for (k, row) in history.claims.iter_mut().enumerate() {
            row.push(f64::from(seen.active[k] + seen.queued[k]));
        }
        let (ids, nodes): (Vec<u32>, Vec<ObservedNode>) = seen
            .nodes
            .iter()
            .filter(|n| !n.draining)
            .map(|n| {
                let node =
                    ObservedNode { offer: n.offer, age_s: n.age_s, healthy: n.healthy, claims: n.claims.clone() };
                (n.id, node)
            })
            .unzip();
        let moment = Moment {
            now_s: seen.now_s,
            epoch: self.memory.parent().map_or(1, |(p, _)| p.epoch + 1),
            offers: seen.offers,
            estimates: seen.estimates,
            classes: &classes,
            claim_mean_s: &claim_mean_s,
            nodes: &nodes,
            quotas: seen.quotas,
            commitments: &[],
            judged: seen.judged,
            declared: &[],
            history: &history,
        };
        let input = rolling::input(&self.rules, &mut self.memory, &moment);
        let made = rolling::decide(&mut self.memory, &input, seen.now_s).map_err(|e| e.to_string())?;
        let releases = gather::nodes_to_release(&made, seen.offers, &nodes).into_iter().map(|i| ids[i]).collect();
        let place = |key: &fleet::OfferKey| seen.offers.iter().position(|o| o.key == *key);
        let launches = made
            .launches
            .iter()
            .filter_map(|l| place(&l.offer).map(|offer| LaunchOrder { offer, nodes: l.nodes, label: None }));
        Ok(Decision { launches: launches.collect(), releases })
    }
}
