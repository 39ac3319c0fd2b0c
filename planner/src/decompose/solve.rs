//! The whole problem, from nothing.

use solver::{Limits, SolverError};

use super::master::Master;
use super::resolve::{Effort, Optimum, resolve};
use super::{scout, start};
use crate::columns::Links;
use crate::input::PlanInput;
use crate::model::{EPS, Model};
use crate::source::Source;

/// Problems of so few sources are solved with all of them from the start: what rounding tries has to be there.
const SMALL: usize = 60;

/// Solves `model`. The master is kept for re-solves with changed bounds.
///
/// # Errors
/// The solver gives no optimum.
pub fn solve<'a>(input: &'a PlanInput, model: &'a Model, effort: Effort) -> Result<(Master<'a>, Optimum), SolverError> {
    let limits = Limits { time_limit_s: effort.time_limit_s, presolve: true };
    let mut master = Master::new(input, model, limits)?;
    let mut start = None;
    if model.sources.len() <= SMALL {
        master.add_sources(&(0..model.sources.len()).collect::<Vec<_>>())?;
    } else if model.weights.len() <= 3 {
        master.add_sources(&first_sources(input, model, &master.links))?;
    } else {
        let found = match start::from_parent(model) {
            Some(found) => found,
            None => scout::explore(input, model, &first_sources(input, model, &master.links), effort)?,
        };
        master.add_sources(&found.sources)?;
        let new: Vec<_> = found.decisions.iter().copied().filter(|decision| !master.can(*decision)).collect();
        master.add_decisions(&new)?;
        start = Some(found);
    }
    master.first_cuts()?;
    if let Some(start) = start {
        master.cut_at(&start.pool_gpus)?;
        master.start_near(start.pool_gpus, start.linear_usd);
    }
    let optimum = resolve(input, model, &mut master, effort)?;
    Ok((master, optimum))
}

/// Sources to start with: all that exist or were planned, and for each class the cheapest until they can carry its
/// peak one and a half times.
fn first_sources(input: &PlanInput, model: &Model, links: &[Links]) -> Vec<usize> {
    let mut chosen: Vec<bool> = model.sources.iter().map(Source::must_be_modelled).collect();
    let classes = model.claim_gpus.len();
    let mut serving: Vec<Vec<(f64, usize)>> = vec![Vec::new(); classes];
    for (i, source) in model.sources.iter().enumerate().filter(|(_, s)| s.launch_end > 0) {
        let arrived: f64 = source.profile.arrivals[0].iter().sum();
        let hours = model.horizon_h() * arrived.max(0.01);
        for &(k, share) in &model.pools[source.pool].serves {
            let node = source.cost_usd_per_h + source.launch_cost_usd / hours;
            serving[k].push((node / (source.gpus * share), i));
        }
    }
    // Classes with the fewest offers first; what one class takes of an offer or a quota is gone for the others.
    let mut order: Vec<usize> = (0..classes).filter(|k| !input.classes[*k].borrows()).collect();
    order.sort_by_key(|k| serving[*k].len());
    let mut left: Vec<f64> = model.sources.iter().map(|s| s.launch_limit[0]).collect();
    let mut room: Vec<f64> = input.quotas.iter().map(|q| q.limit).collect();
    for k in order {
        serving[k].sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let peak = model.demand_gpus.iter().flatten().map(|row| row[k]).fold(0.0, f64::max);
        let mut missing = 1.3 * peak;
        for &(_, i) in &serving[k] {
            if missing <= 0.0 {
                break;
            }
            let source = &model.sources[i];
            let in_time: f64 = source.profile.arrivals[0].iter().take(model.first_period[k] + 1).sum();
            let quota =
                links[i].quotas.iter().map(|&(q, units)| room[q.0] / units.max(1e-9)).fold(f64::INFINITY, f64::min);
            let nodes = left[i].min(quota).min(missing / (source.gpus * in_time.max(0.05)));
            if nodes > EPS {
                chosen[i] = true;
                left[i] -= nodes;
                missing -= nodes * source.gpus * in_time;
                links[i].quotas.iter().for_each(|&(q, units)| room[q.0] -= nodes * units);
            }
        }
    }
    (0..chosen.len()).filter(|i| chosen[*i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompose::Decision;
    use crate::keys::{Period, SourceId};
    use crate::synthetic::{Size, fleet};

    /// Columns that come by need are enough: the bound looks at every source, launch and release.
    #[test]
    fn what_is_left_out_would_not_pay() {
        for seed in 0..4 {
            let input = fleet(Size { offers: 150, classes: 10, scenarios: 8, periods: 8 }, seed);
            let model = Model::build(&input);
            let effort = Effort { gap: 1e-7, rounds: 2000, ..Effort::default() };
            let (master, optimum) = solve(&input, &model, effort).expect("an optimum");
            assert!(optimum.gap() < 1e-6, "seed {seed}: {} over {}", optimum.objective_usd, optimum.bound_usd);
            let launches: usize = model.sources.iter().map(|source| source.launch_end).sum();
            let can = |i: usize, u: usize| master.can(Decision::Launch(SourceId(i), Period(u)));
            let there = |i: usize| (0..model.periods()).filter(|u| can(i, *u)).count();
            let there: usize = (0..model.sources.len()).map(there).sum();
            assert!(2 * there < launches, "seed {seed}: {there} of {launches}");
        }
    }
}
