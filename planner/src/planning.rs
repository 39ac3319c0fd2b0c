//! From an input to a plan: check the input, solve, round, act, explain, and check the plan.

use std::collections::BTreeMap;

use crate::appraise;
use crate::base_stock;
use crate::check;
use crate::decompose::{self, Effort, Master, Optimum};
use crate::input::{PlanInput, Quota};
use crate::keys::{ColKey, Period, SourceId};
use crate::model::{EPS, Model};
use crate::plan::{Launch, Plan, Release, Spare, Target};
use crate::report::FallbackCause;
use crate::round::{self, Refine, Rounded};
use crate::validate::{self, InputError};

/// How a plan is made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Options {
    /// How hard the linear program is solved.
    pub effort: Effort,
    /// When rounding is refined.
    pub refine: Refine,
    /// What one more and one less of a binding limit is worth is measured for at most so many limits.
    pub sensitivities: usize,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The input makes no sense.
    #[error("the input cannot be planned:{}", list(.0))]
    Input(Vec<InputError>),
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(|i| format!("\n  {i}")).collect()
}

/// Plans. Always gives a plan for a sensible input: what cannot be met is in the report, and when the solver fails, or what it
/// found breaks a rule of the checker, the base-stock rule steps in and says so.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(input: &PlanInput, options: Options) -> Result<Plan, PlanError> {
    let problems = validate::problems(input);
    if !problems.is_empty() {
        return Err(PlanError::Input(problems));
    }
    let model = Model::build(input);
    Ok(usable(input, &model, solve(input, &model, options)))
}

/// The first that breaks no rule (CAP-7): what was found, order-up-to levels, nothing at all.
fn usable(input: &PlanInput, model: &Model, found: Result<Plan, solver::SolverError>) -> Plan {
    let broken = |plan: &Plan| {
        let violations = check::check(input, model, plan);
        (!violations.is_empty()).then(|| violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    };
    let (cause, error) = match found {
        Ok(plan) => match broken(&plan) {
            None => return plan,
            Some(rules) => (FallbackCause::Checker, format!("the optimum breaks a rule, please report this: {rules}")),
        },
        Err(error) => (FallbackCause::Solver, error.to_string()),
    };
    let plan = base_stock::fallback(input, model, cause, error.clone());
    match broken(&plan) {
        None => plan,
        Some(rules) => {
            base_stock::hold(input, model, format!("{error}; order-up-to levels break a rule as well: {rules}"))
        }
    }
}

fn solve(input: &PlanInput, model: &Model, options: Options) -> Result<Plan, solver::SolverError> {
    let (mut master, relaxed) = decompose::solve(input, model, options.effort)?;
    let sensitivities =
        appraise::sensitivities(input, model, &mut master, &relaxed, options.effort, options.sensitivities)?;
    let rounded = round::round(input, model, &mut master, &relaxed, options.effort, options.refine)?;
    let (launches, releases, spare, targets) = actions(input, model, &master, &rounded);
    let report = appraise::of_optimum(input, model, &master, &relaxed, &rounded, sensitivities);
    Ok(Plan { epoch: input.epoch, launches, releases, spare, targets, report })
}

/// What the rounded optimum does, by offer.
fn actions(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    rounded: &Rounded,
) -> (Vec<Launch>, Vec<Release>, Vec<Spare>, Vec<Target>) {
    let solution = &rounded.optimum.solution;
    let (mut launches, mut releases, mut spare) = (Vec::new(), Vec::new(), Vec::new());
    for &(i, nodes) in &rounded.launches {
        let offer = input.offers[model.sources[i].offer].offer.key.clone();
        launches.push(Launch { offer, nodes: nodes as u32 });
    }
    let mut by_offer: BTreeMap<usize, Target> = BTreeMap::new();
    for &i in &master.active {
        let source = &model.sources[i];
        let key = &input.offers[source.offer].offer.key;
        let nodes = master.nodes(solution, i);
        let meant: Vec<f64> =
            (0..model.periods()).map(|t| master.value(solution, ColKey::Launch(SourceId(i), Period(t)))).collect();
        let unneeded = (source.appear[0] - nodes[0] + EPS).floor().max(0.0) as usize;
        if unneeded > 0 {
            let hurry = in_the_way(input, source.offer, rounded, model);
            let (gone, since_s) = give_back(input, source.offer, unneeded, hurry);
            if gone > 0 {
                releases.push(Release { offer: key.clone(), nodes: gone as u32 });
            }
            if !since_s.is_empty() {
                spare.push(Spare { offer: key.clone(), since_s });
            }
        }
        if nodes.iter().chain(&meant).any(|v| *v > EPS) {
            let empty =
                || Target { offer: key.clone(), nodes: vec![0.0; nodes.len()], launches: vec![0.0; nodes.len()] };
            let target = by_offer.entry(source.offer).or_insert_with(empty);
            target.nodes.iter_mut().zip(&nodes).for_each(|(a, b)| *a += b);
            target.launches.iter_mut().zip(&meant).for_each(|(a, b)| *a += b);
        }
    }
    (launches, releases, spare, by_offer.into_values().collect())
}

/// Of `unneeded` nodes of an offer, how many go now, and since when the others have been spare.
fn give_back(input: &PlanInput, offer: usize, unneeded: usize, hurry: bool) -> (usize, Vec<f64>) {
    let state = &input.offers[offer];
    let mut since_s: Vec<f64> = state.spare_s.iter().copied().take(unneeded).collect();
    since_s.resize(unneeded, 0.0);
    let hold_s = if hurry { 0.0 } else { state.release_after_s() * input.policy.hold };
    let gone = since_s.iter().take_while(|s| **s >= hold_s).count();
    (gone, since_s.split_off(gone))
}

/// Whether an offer's spare nodes take room that is needed: under a quota of theirs and of launches, or under a budget.
fn in_the_way(input: &PlanInput, offer: usize, rounded: &Rounded, model: &Model) -> bool {
    let launched = |p: usize| rounded.launches.iter().any(|&(i, _)| model.sources[i].offer == p);
    let member = |q: &Quota, p: usize| q.members.iter().any(|m| m.0 == p);
    let quota = |q: &Quota| member(q, offer) && q.members.iter().any(|m| launched(m.0));
    let budget = input.policy.budget_usd_micros_per_h.is_some();
    budget || input.quotas.iter().any(quota)
}

/// The relaxed optimum alone, for benchmarks and what-if questions about the bound.
///
/// # Errors
/// The solver gives no optimum.
pub fn relaxed(input: &PlanInput, model: &Model, effort: Effort) -> Result<Optimum, solver::SolverError> {
    decompose::solve(input, model, effort).map(|(_, optimum)| optimum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Method;
    use crate::synthetic::{Size, fleet};

    /// A plan that breaks a rule is never used: another steps in that breaks none, and says why.
    #[test]
    fn a_plan_that_breaks_a_rule_is_not_used() {
        let size = Size { offers: 20, classes: 3, scenarios: 8, periods: 4 };
        for seed in 0..6 {
            let input = fleet(size, seed);
            let model = Model::build(&input);
            let found = solve(&input, &model, Options::default()).expect("an optimum");
            let whole = usable(&input, &model, Ok(found.clone()));
            assert!(!whole.report.method.fell_back() && whole.report.method.broken_rules().is_none());
            let mut broken = found;
            broken.launches = vec![Launch { offer: input.offers[0].offer.key.clone(), nodes: 1_000_000 }];
            let plan = usable(&input, &model, Ok(broken));
            assert!(plan.report.method.fell_back(), "seed {seed}");
            assert!(plan.report.method.broken_rules().is_some_and(|rules| !rules.is_empty()));
            assert_eq!(check::check(&input, &model, &plan), []);
            let late = usable(&input, &model, Err(solver::SolverError::TimeLimit));
            assert!(late.report.method.fell_back() && late.report.method.broken_rules().is_none());
        }
    }

    #[test]
    fn holding_breaks_no_rule() {
        for seed in 0..6 {
            let input = fleet(Size { offers: 20, classes: 3, scenarios: 8, periods: 4 }, seed);
            let model = Model::build(&input);
            let plan = base_stock::hold(&input, &model, "a test".into());
            assert!(plan.launches.is_empty() && plan.releases.is_empty());
            assert_eq!(check::check(&input, &model, &plan), []);
            assert!(matches!(plan.report.method, Method::Hold { .. }));
        }
    }
}
