//! The shipped planner as a policy: the same forecast, the same input, the same plan, the same choice of nodes.

use fleet::Class;
use planner::decompose::Effort;
use planner::error_budget::ErrorBudget;
use planner::forecast::Method;
use planner::gather::{self, Observed, ObservedNode};
use planner::input::{Policy as Weights, Scenario};
use planner::plan::{Options, Plan, plan};
use planner::scenarios::{self, History, PathRules};

use super::{Decision, LaunchOrder, Policy, Seen};

/// How it plans.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveRules {
    /// Lengths of the periods, seconds.
    pub period_s: Vec<u32>,
    /// Season of the demand, seconds.
    pub season_s: u32,
    /// Demand paths.
    pub paths: usize,
    /// How risk and stability are weighed.
    pub weights: Weights,
    /// Plans on the mean of the paths instead of all of them.
    pub mean_only: bool,
}

/// Seconds after which the forecast methods are chosen again.
const CHOOSE_EVERY_S: f64 = 3600.0;

/// The planner with what it remembers.
#[derive(Debug)]
pub struct Live {
    rules: LiveRules,
    methods: Vec<Method>,
    chosen_at_s: f64,
    parent: Option<(Plan, f64)>,
    budget: ErrorBudget,
    observed_s: f64,
}

impl Live {
    /// With what earlier days left of the hit-rate targets; the default without a past.
    #[must_use]
    pub fn new(rules: LiveRules, budget: ErrorBudget) -> Self {
        Self { rules, methods: Vec::new(), chosen_at_s: f64::NEG_INFINITY, parent: None, budget, observed_s: 0.0 }
    }

    /// What is left of the hit-rate targets, for the days that come.
    #[must_use]
    pub fn error_budget(&self) -> ErrorBudget {
        self.budget.carried_over()
    }

    /// The classes with the hit rates to aim at.
    fn classes(&mut self, seen: &Seen) -> Vec<Class> {
        let targets: Vec<f64> = seen.classes.iter().map(|k| k.class.hit_rate_target).collect();
        self.budget.observe(&targets, seen.judged, seen.now_s - self.observed_s);
        self.observed_s = seen.now_s;
        let aimed = |(k, class): (usize, &crate::engine::SimClass)| Class {
            hit_rate_target: self.budget.aim(k, class.class.hit_rate_target),
            ..class.class.clone()
        };
        seen.classes.iter().enumerate().map(aimed).collect()
    }

    fn scenarios(&mut self, seen: &Seen) -> Vec<Scenario> {
        let rules = &self.rules;
        let mut history = History { step_s: seen.history.step_s, claims: seen.history.claims.clone() };
        for (k, row) in history.claims.iter_mut().enumerate() {
            row.push(f64::from(seen.active[k] + seen.queued[k]));
        }
        if seen.now_s - self.chosen_at_s >= CHOOSE_EVERY_S {
            self.methods = scenarios::choose(&history, &rules.period_s, rules.season_s);
            self.chosen_at_s = seen.now_s;
        }
        let paths = PathRules {
            season_s: rules.season_s,
            paths: rules.paths,
            claim_mean_s: seen.classes.iter().map(|k| k.claim_mean_s).collect(),
        };
        let all = scenarios::build(&history, &self.methods, &rules.period_s, &paths);
        if rules.mean_only { vec![mean(&all)] } else { all }
    }
}

fn mean(paths: &[Scenario]) -> Scenario {
    let table = |of: &dyn Fn(&Scenario) -> &Vec<Vec<f64>>| {
        let mut sum = vec![vec![0.0; of(&paths[0])[0].len()]; of(&paths[0]).len()];
        for path in paths {
            for (row, add) in sum.iter_mut().zip(of(path)) {
                row.iter_mut().zip(add).for_each(|(s, v)| *s += path.weight * v);
            }
        }
        sum
    };
    Scenario { weight: 1.0, claims: table(&|s| &s.claims), new_claims: table(&|s| &s.new_claims) }
}

impl Policy for Live {
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String> {
        let scenarios = self.scenarios(seen);
        let classes = self.classes(seen);
        let claim_mean_s: Vec<f64> = seen.classes.iter().map(|k| k.claim_mean_s).collect();
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
        let observed = Observed {
            epoch: self.parent.as_ref().map_or(1, |(p, _)| p.epoch + 1),
            period_s: &self.rules.period_s,
            offers: seen.offers,
            estimates: seen.estimates,
            classes: &classes,
            claim_mean_s: &claim_mean_s,
            nodes: &nodes,
            quotas: seen.quotas,
            commitments: &[],
            policy: &self.rules.weights,
            parent: self.parent.as_ref().map(|(plan, at_s)| (plan, seen.now_s - at_s)),
        };
        let input = gather::plan_input(&observed, scenarios);
        let options = Options { effort: Effort { gap: 2e-3, ..Effort::default() }, ..Options::default() };
        let made = plan(&input, options).map_err(|e| e.to_string())?;
        let releases = gather::nodes_to_release(&made, seen.offers, &nodes).into_iter().map(|i| ids[i]).collect();
        let place = |key: &fleet::OfferKey| seen.offers.iter().position(|o| o.key == *key);
        let launches = made
            .launches
            .iter()
            .filter_map(|l| place(&l.offer).map(|offer| LaunchOrder { offer, nodes: l.nodes, label: None }));
        let decision = Decision { launches: launches.collect(), releases };
        self.parent = Some((made, seen.now_s));
        Ok(decision)
    }
}
