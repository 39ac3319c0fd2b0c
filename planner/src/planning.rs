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
    /// The plan broke a rule of the checker: a bug, and the plan must not be used (CAP-7).
    #[error("the plan breaks its own checker, please report this:{}", list(.0))]
    Check(Vec<check::Violation>),
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(|i| format!("\n  {i}")).collect()
}

/// Plans. Always gives a plan for a sensible input: what cannot be met is in the report, and when the solver fails the
/// base-stock rule steps in and says so.
///
/// # Errors
/// See [`PlanError`].
pub fn plan(input: &PlanInput, options: Options) -> Result<Plan, PlanError> {
    let problems = validate::problems(input);
    if !problems.is_empty() {
        return Err(PlanError::Input(problems));
    }
    let model = Model::build(input);
    let plan = match solve(input, &model, options) {
        Ok(plan) => plan,
        Err(error) => base_stock::fallback(input, &model, &error),
    };
    let violations = check::check(input, &model, &plan);
    if violations.is_empty() { Ok(plan) } else { Err(PlanError::Check(violations)) }
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
        let nodes: Vec<f64> =
            (0..model.periods()).map(|t| master.value(solution, ColKey::Nodes(SourceId(i), Period(t)))).collect();
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
