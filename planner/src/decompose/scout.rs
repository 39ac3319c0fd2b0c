//! A rough version of the problem, solved first: one path, few periods. It finds the offers that matter and about how many
//! GPUs of each pool, so that the real problem starts near its end.

use solver::{Limits, SolverError};

use super::master::Master;
use super::resolve::{Effort, resolve};
use crate::input::{PlanInput, Scenario};
use crate::model::Model;

/// Periods merged into one.
const MERGE: usize = 3;

/// What the rough problem found.
#[derive(Debug)]
pub struct Scouted {
    /// Sources that hold nodes.
    pub sources: Vec<usize>,
    /// GPUs of each pool, `[T][pools]`, in the periods of the real problem.
    pub pool_gpus: Vec<Vec<f64>>,
}

/// Solves the rough problem.
///
/// # Errors
/// The solver gives no optimum.
pub fn explore(input: &PlanInput, first: &[usize], effort: Effort) -> Result<Scouted, SolverError> {
    let periods = input.period_s.len();
    let groups: Vec<Vec<usize>> =
        std::iter::once(vec![0]).chain((1..periods).collect::<Vec<_>>().chunks(MERGE).map(<[_]>::to_vec)).collect();
    let rough_input = merged(input, &groups);
    let rough = Model::build(&rough_input);
    let limits = Limits { time_limit_s: effort.time_limit_s, presolve: true };
    let mut master = Master::new(&rough_input, &rough, limits)?;
    master.add_sources(first)?;
    master.first_cuts()?;
    let found = resolve(&rough_input, &rough, &mut master, Effort { gap: 1e-3, ..effort })?;
    let rough_gpus = master.pool_gpus(&found.solution);
    let group_of = |t: usize| groups.iter().position(|g| g.contains(&t)).unwrap_or(0);
    Ok(Scouted {
        sources: master.used_sources(&found.solution),
        pool_gpus: (0..periods).map(|t| rough_gpus[group_of(t)].clone()).collect(),
    })
}

/// The input with merged periods and one path: each class at the level that its target asks for.
fn merged(input: &PlanInput, groups: &[Vec<usize>]) -> PlanInput {
    let classes = input.classes.len();
    let level = |k: usize, t: usize, new: bool| {
        let value = |s: &Scenario| {
            if new { s.new_claims[t][k] } else { s.claims[t][k] }
        };
        let mut levels: Vec<f64> = input.scenarios.iter().map(value).collect();
        levels.sort_by(f64::total_cmp);
        levels[((input.classes[k].hit_rate_target * levels.len() as f64) as usize).min(levels.len() - 1)]
    };
    let table = |new: bool| {
        let row = |g: &Vec<usize>| -> Vec<f64> {
            let peak = |k: usize| g.iter().map(|t| level(k, *t, new)).fold(0.0, f64::max);
            (0..classes).map(peak).collect()
        };
        groups.iter().map(row).collect::<Vec<_>>()
    };
    let mut rough = input.clone();
    rough.period_s = groups.iter().map(|g| g.iter().map(|t| input.period_s[*t]).sum()).collect();
    rough.scenarios = vec![Scenario { weight: 1.0, claims: table(false), new_claims: table(true) }];
    let first_of = |values: &[f64]| groups.iter().filter_map(|g| values.get(g[0]).copied()).collect::<Vec<f64>>();
    for state in &mut rough.offers {
        let arriving = std::mem::take(&mut state.arriving_nodes);
        let sum = |g: &Vec<usize>| g.iter().filter_map(|t| arriving.get(*t)).sum();
        state.arriving_nodes = groups.iter().map(sum).collect();
        let planned = std::mem::take(&mut state.planned_nodes);
        let sum = |g: &Vec<usize>| g.iter().filter_map(|t| planned.get(*t)).sum();
        state.planned_nodes = groups.iter().map(sum).collect();
        for group in &mut state.nodes {
            group.kept_nodes = first_of(&group.kept_nodes);
        }
    }
    for commitment in &mut rough.commitments {
        commitment.nodes = first_of(&commitment.nodes);
    }
    rough
}
