//! A rough version of the problem, solved first: one path, few periods. It finds the offers that matter and about how many
//! GPUs of each pool, so that the real problem starts near its end.

use solver::{Limits, SolverError};

use super::master::{Decision, Master};
use super::resolve::{Effort, resolve};
use super::start::Start;
use crate::input::{PlanInput, Scenario};
use crate::keys::Period;
use crate::model::Model;

/// Periods merged into one.
const MERGE: usize = 3;

/// Solves the rough problem.
///
/// # Errors
/// The solver gives no optimum.
pub fn explore(input: &PlanInput, model: &Model, first: &[usize], effort: Effort) -> Result<Start, SolverError> {
    let periods = input.period_s.len();
    let groups: Vec<Vec<usize>> =
        std::iter::once(vec![0]).chain((1..periods).collect::<Vec<_>>().chunks(MERGE).map(<[_]>::to_vec)).collect();
    let rough_input = merged(input, &groups);
    let rough = Model::build(&rough_input);
    let limits = Limits { time_limit_s: effort.time_limit_s, presolve: true };
    let mut master = Master::new(&rough_input, &rough, limits)?;
    master.add_sources(first)?;
    master.first_cuts()?;
    let found = resolve(&rough_input, &rough, &mut master, Effort { gap: 5e-3, ..effort })?;
    let rough_gpus = master.pool_gpus(&found.solution);
    let group_of = |t: usize| groups.iter().position(|g| g.contains(&t)).unwrap_or(0);
    Ok(Start {
        sources: master.used_sources(&found.solution),
        linear_usd: master.linear_usd(&found.solution),
        decisions: decisions(model, &groups, &master.made(&found.solution)),
        pool_gpus: (0..periods).map(|t| rough_gpus[group_of(t)].clone()).collect(),
    })
}

/// Each decision in all periods of its group. Sources have the same numbers in both problems.
fn decisions(model: &Model, groups: &[Vec<usize>], made: &[Decision]) -> Vec<Decision> {
    let each = |decision: &Decision| -> Vec<Decision> {
        match *decision {
            Decision::Launch(id, group) => {
                let can = |t: &&usize| **t < model.sources[id.0].launch_end;
                groups[group.0].iter().filter(can).map(|t| Decision::Launch(id, Period(*t))).collect()
            }
            Decision::Release(id, group) => groups[group.0].iter().map(|t| Decision::Release(id, Period(*t))).collect(),
        }
    };
    made.iter().flat_map(each).collect()
}

/// Most paths of the rough problem.
const PATHS: usize = 16;

/// The input with merged periods, and some of the paths.
fn merged(input: &PlanInput, groups: &[Vec<usize>]) -> PlanInput {
    let classes = input.classes.len();
    let table = |rows: &Vec<Vec<f64>>| -> Vec<Vec<f64>> {
        let mean = |g: &Vec<usize>, k: usize| g.iter().map(|t| rows[*t][k]).sum::<f64>() / g.len() as f64;
        groups.iter().map(|g| (0..classes).map(|k| mean(g, k)).collect()).collect()
    };
    let every = input.scenarios.len().div_ceil(PATHS);
    // From the last on: the paths that go highest are there.
    let some: Vec<&Scenario> = input.scenarios.iter().rev().step_by(every).collect();
    let total: f64 = some.iter().map(|s| s.weight).sum();
    let path = |s: &&Scenario| Scenario {
        weight: s.weight / total,
        claims: table(&s.claims),
        new_claims: table(&s.new_claims),
    };
    let scenarios = some.iter().map(path).collect();
    let mut rough = input.clone();
    rough.period_s = groups.iter().map(|g| g.iter().map(|t| input.period_s[*t]).sum()).collect();
    rough.scenarios = scenarios;
    let first_of = |values: &[f64]| groups.iter().filter_map(|g| values.get(g[0]).copied()).collect::<Vec<f64>>();
    for state in &mut rough.offers {
        let arriving = std::mem::take(&mut state.arriving_nodes);
        let sum = |g: &Vec<usize>| g.iter().filter_map(|t| arriving.get(*t)).sum();
        state.arriving_nodes = groups.iter().map(sum).collect();
        let planned = std::mem::take(&mut state.planned_nodes);
        let sum = |g: &Vec<usize>| g.iter().filter_map(|t| planned.get(*t)).sum();
        state.planned_nodes = groups.iter().map(sum).collect();
        state.expected_nodes.clear();
        for group in &mut state.nodes {
            group.kept_nodes = first_of(&group.kept_nodes);
        }
    }
    for commitment in &mut rough.commitments {
        commitment.nodes = first_of(&commitment.nodes);
    }
    rough
}
