//! The planner over time: what it remembers from plan to plan, and how an observed moment becomes a plan. The control
//! plane and the simulator call this one function.

use fleet::{Class, Offer};
use serde::{Deserialize, Serialize};

use crate::decompose::Effort;
use crate::error_budget::ErrorBudget;
use crate::forecast::Method;
use crate::gather::{self, Estimate, Observed, ObservedNode};
use crate::input::{Commitment, PlanInput, Policy, Quota, Scenario};
use crate::plan::Plan;
use crate::planning::{Options, PlanError, plan};
use crate::scenarios::{self, Declared, History, PathRules};
use fleet::book::Tally;

/// How it plans.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Lengths of the periods, seconds.
    pub period_s: Vec<u32>,
    /// Season of the demand, seconds.
    pub season_s: u32,
    /// Demand paths.
    pub paths: usize,
    /// How risk and stability are weighed.
    pub weights: Policy,
    /// Plans on the mean of the paths instead of all of them.
    pub mean_only: bool,
}

/// Seconds after which the forecast methods are chosen again.
const CHOOSE_EVERY_S: f64 = 3600.0;

/// What is remembered between plans.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RollingMemory {
    methods: Vec<Method>,
    chosen_at_s: Option<f64>,
    parent: Option<(Plan, f64)>,
    budget: ErrorBudget,
    observed_s: f64,
}

impl RollingMemory {
    /// With what earlier days left of the hit-rate targets.
    #[must_use]
    pub fn with_budget(budget: ErrorBudget) -> Self {
        Self { budget, ..Self::default() }
    }

    /// What is left of the hit-rate targets, for the days that come.
    #[must_use]
    pub fn error_budget(&self) -> ErrorBudget {
        self.budget.carried_over()
    }

    /// The last plan, and when it was made, seconds.
    #[must_use]
    pub fn parent(&self) -> Option<&(Plan, f64)> {
        self.parent.as_ref()
    }
}

/// All that is seen at one moment. Shapes: `P` offers, `K` classes.
#[derive(Debug)]
pub struct Moment<'a> {
    /// Now, seconds from any fixed start.
    pub now_s: f64,
    /// Number of the plan to make.
    pub epoch: u64,
    /// Offers at present prices, `[P]`.
    pub offers: &'a [Offer],
    /// Estimates of their supply, `[P]`.
    pub estimates: &'a [Estimate],
    /// Classes with their targets, `[K]`.
    pub classes: &'a [Class],
    /// Mean life of a claim, seconds, `[K]`.
    pub claim_mean_s: &'a [f64],
    /// Nodes that exist or are on their way, and take or will take claims.
    pub nodes: &'a [ObservedNode],
    /// Quotas over the offers.
    pub quotas: &'a [Quota],
    /// Commitments over the offers.
    pub commitments: &'a [Commitment],
    /// Claims that hit or missed so far, `[K]`.
    pub judged: &'a [Tally],
    /// Demand that was declared.
    pub declared: &'a [Declared],
    /// Concurrent claims so far, `[K][N]`, the last is now.
    pub history: &'a History,
    /// Demand where it is known instead of forecast, with what losses bring back: for yardsticks.
    pub known: Option<&'a Scenario>,
}

/// The planner's input for a moment. `memory` learns what was judged and which forecasts are good.
#[must_use]
pub fn input(rules: &Rules, memory: &mut RollingMemory, seen: &Moment) -> PlanInput {
    let classes = aimed(memory, seen);
    let mut paths = seen.known.map_or_else(|| paths(rules, memory, seen), |known| vec![known.clone()]);
    let observed = Observed {
        epoch: seen.epoch,
        period_s: &rules.period_s,
        offers: seen.offers,
        estimates: seen.estimates,
        classes: &classes,
        claim_mean_s: seen.claim_mean_s,
        nodes: seen.nodes,
        quotas: seen.quotas,
        commitments: seen.commitments,
        policy: &rules.weights,
        parent: memory.parent.as_ref().map(|(plan, at_s)| (plan, seen.now_s - at_s)),
    };
    if seen.known.is_none() {
        gather::add_losses(&observed, &mut paths);
    }
    gather::plan_input(&observed, paths)
}

/// Plans for an input that [`input`] made, and remembers the plan.
///
/// # Errors
/// See [`PlanError`].
pub fn decide(memory: &mut RollingMemory, input: &PlanInput, now_s: f64) -> Result<Plan, PlanError> {
    let made = plan(input, options())?;
    memory.parent = Some((made.clone(), now_s));
    Ok(made)
}

/// How hard the rolling planner tries: a gap of 0.2 % is far below what the forecast is worth.
#[must_use]
pub fn options() -> Options {
    Options { effort: Effort { gap: 2e-3, ..Effort::default() }, ..Options::default() }
}

/// The classes with the hit rates to aim at.
fn aimed(memory: &mut RollingMemory, seen: &Moment) -> Vec<Class> {
    let targets: Vec<f64> = seen.classes.iter().map(|k| k.hit_rate_target).collect();
    memory.budget.observe(&targets, seen.judged, seen.now_s - memory.observed_s);
    memory.observed_s = seen.now_s;
    let aim = |(k, class): (usize, &Class)| Class {
        hit_rate_target: memory.budget.aim(k, class.hit_rate_target),
        ..class.clone()
    };
    seen.classes.iter().enumerate().map(aim).collect()
}

fn paths(rules: &Rules, memory: &mut RollingMemory, seen: &Moment) -> Vec<Scenario> {
    let again = memory.chosen_at_s.is_none_or(|at| seen.now_s - at >= CHOOSE_EVERY_S);
    if again || memory.methods.len() != seen.classes.len() {
        memory.methods = scenarios::choose(seen.history, &rules.period_s, rules.season_s);
        memory.chosen_at_s = Some(seen.now_s);
    }
    let how = PathRules {
        season_s: rules.season_s,
        paths: rules.paths,
        claim_mean_s: seen.claim_mean_s.to_vec(),
        declared: seen.declared.to_vec(),
    };
    let all = scenarios::build(seen.history, &memory.methods, &rules.period_s, &how);
    if rules.mean_only { vec![mean(&all)] } else { all }
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
