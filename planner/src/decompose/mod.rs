//! Solves the whole problem without ever writing it out: rows are cut in where a path's demand cannot be covered
//! (Gale-Hoffman conditions, found by a flow), columns are priced in where an offer pays at the current prices, and a
//! bound that needs no solver says how far the result can be from the optimum of the extensive form.

mod flow;
mod master;
mod price;
mod scout;

use solver::{Limits, Solution, SolverError};

pub use master::Master;
pub use price::{Duals, Profit};

use crate::columns::Links;
use crate::extensive;
use crate::input::PlanInput;
use crate::model::{EPS, Model, Source};

/// Problems of so few sources are solved with all of them from the start.
const SMALL: usize = 60;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Stop when the objective is within this share of the bound.
    pub gap: f64,
    /// Time limit of one call of the solver, seconds.
    pub time_limit_s: f64,
    /// Most rounds of cuts and columns.
    pub rounds: usize,
    /// Bring in more sources where they pay. Off for re-solves with whole-number launches.
    pub price: bool,
}

impl Default for Effort {
    fn default() -> Self {
        Self { gap: 8e-4, time_limit_s: 20.0, rounds: 300, price: true }
    }
}

/// An optimum of the linear program, with its certificate.
#[derive(Debug, Clone)]
pub struct Optimum {
    /// The restricted problem's solution.
    pub solution: Solution,
    /// Prices.
    pub duals: Duals,
    /// Objective in dollars: feasible in the extensive form.
    pub objective_usd: f64,
    /// Lower bound in dollars on the optimum of the extensive form.
    pub bound_usd: f64,
    /// Rounds of cuts and columns.
    pub rounds: usize,
}

impl Optimum {
    /// How far the objective can be from the optimum, as a share of it.
    #[must_use]
    pub fn gap(&self) -> f64 {
        gap(self.objective_usd, self.bound_usd)
    }
}

/// `(upper − lower) / |upper|`, at least 0.
#[must_use]
pub fn gap(upper: f64, lower: f64) -> f64 {
    if upper == f64::INFINITY {
        return f64::INFINITY;
    }
    ((upper - lower) / upper.abs().max(1e-9)).max(0.0)
}

/// Solves `model`. The master is kept for re-solves with changed bounds.
///
/// # Errors
/// The solver gives no optimum.
pub fn solve<'a>(input: &'a PlanInput, model: &'a Model, effort: Effort) -> Result<(Master<'a>, Optimum), SolverError> {
    let limits = Limits { time_limit_s: effort.time_limit_s, presolve: true };
    let mut master = Master::new(input, model, limits)?;
    master.seed_sets();
    let mut sources = first_sources(input, model, &master.links);
    if model.sources.len() <= SMALL {
        sources = (0..model.sources.len()).collect();
    } else if model.weights.len() > 3 {
        let scouted = scout::explore(input, &sources, effort)?;
        sources = scouted.sources;
        scouted.sets.into_iter().for_each(|mask| {
            master.register(mask);
        });
        master.aim_at(scouted.pool_gpus);
    }
    master.add_sources(&sources)?;
    master.seed_cuts()?;
    let optimum = resolve(input, model, &mut master, effort)?;
    Ok((master, optimum))
}

/// Solves again from the last basis, adding cuts and columns as needed.
///
/// # Errors
/// The solver gives no optimum.
pub fn resolve(input: &PlanInput, model: &Model, master: &mut Master, effort: Effort) -> Result<Optimum, SolverError> {
    let mut rounds = 0;
    // Objective when the last columns came, and of the last round: columns are priced when cuts have little left to say.
    let mut before = f64::NEG_INFINITY;
    let mut priced = false;
    loop {
        rounds += 1;
        let solution = master.solve()?;
        let broken = master.violations(&solution);
        let last = rounds >= effort.rounds;
        let objective_usd = solution.objective + broken.repair_usd;
        let settled = broken.is_empty() || gap(objective_usd, solution.objective) < 0.3 * effort.gap;
        let slow = gap(solution.objective, before) < 3e-3;
        before = solution.objective;
        if !settled && (priced || !slow) && !last {
            master.cut(&broken)?;
            priced = false;
            continue;
        }
        let duals = master.duals(&solution);
        let values = duals.pool_values(model);
        let bound_usd = duals.bound_usd(input, model, &master.links, &values);
        let wanted = if effort.price { profitable(input, model, master, &duals, &values) } else { Vec::new() };
        let close = gap(objective_usd, bound_usd) <= effort.gap || !effort.price;
        let done = settled && (close || wanted.is_empty() && broken.is_empty());
        if done || last {
            return Ok(Optimum { solution, duals, objective_usd, bound_usd, rounds });
        }
        if wanted.is_empty() {
            master.cut(&broken)?;
        } else {
            // Where it was is near where it will be: few of the cuts that the new sources ask for are needed.
            let near = master.pool_gpus(Some(&solution));
            master.aim_at(near);
            master.add_sources(&wanted)?;
            priced = true;
        }
    }
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
    let mut order: Vec<usize> = (0..classes).collect();
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
                links[i].quotas.iter().map(|&(q, units)| room[q] / units.max(1e-9)).fold(f64::INFINITY, f64::min);
            let nodes = left[i].min(quota).min(missing / (source.gpus * in_time.max(0.05)));
            if nodes > EPS {
                chosen[i] = true;
                left[i] -= nodes;
                missing -= nodes * source.gpus * in_time;
                links[i].quotas.iter().for_each(|&(q, units)| room[q] -= nodes * units);
            }
        }
    }
    (0..chosen.len()).filter(|i| chosen[*i]).collect()
}

/// Sources outside the problem whose launches would earn money at the current prices, the best of each pool.
fn profitable(input: &PlanInput, model: &Model, master: &Master, duals: &Duals, values: &[Vec<f64>]) -> Vec<usize> {
    let mut wanted = Vec::new();
    for (pool, sources) in model.pool_sources.iter().enumerate() {
        let mut best = Vec::new();
        for &i in sources.iter().filter(|i| !master.has(**i) && model.sources[**i].launch_end > 0) {
            let profit = duals.profit(input, model, &master.links[i], &model.sources[i], &values[pool]);
            if profit.best_launch_usd > EPS {
                best.push((profit.launches_usd, i));
            }
        }
        best.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        wanted.extend(best.into_iter().take(2));
    }
    // The most profitable first, and not all at once: prices move when the first few are in.
    wanted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    wanted.into_iter().take(80).map(|(_, i)| i).collect()
}

/// GPUs of each class that cannot be served in each block, `[blocks][T][K]`, with `gpus` of each pool `[T][pools]`.
fn missed_gpus(model: &Model, gpus: &[Vec<f64>]) -> Vec<Vec<Vec<f64>>> {
    let order: Vec<usize> = (0..model.claim_gpus.len()).collect();
    let missed = |block: usize, t: usize| {
        let alive = (0..model.pools.len()).filter(|p| extensive::alive(model, *p, block));
        let pools = alive.map(|p| (gpus[t][p], model.pools[p].serves.as_slice()));
        flow::Network::new(order.len(), pools).short_sets(extensive::demand(model, block, t), &order).1
    };
    (0..extensive::blocks(model)).map(|b| (0..model.periods()).map(|t| missed(b, t)).collect()).collect()
}

/// The fewest GPUs of `demand` `[K]` that pools of `(GPUs, [(class, share)])` cannot serve.
#[must_use]
pub fn fewest_missed_gpus(pools: &[(f64, Vec<(usize, f64)>)], demand: &[f64]) -> f64 {
    let order: Vec<usize> = (0..demand.len()).collect();
    let network = flow::Network::new(demand.len(), pools.iter().map(|(gpus, serves)| (*gpus, serves.as_slice())));
    network.short_sets(demand, &order).1.iter().sum()
}

/// Missed claims, mean over the demand paths, `[T][K]`, when classes are served in their order.
#[must_use]
pub fn missed_claims(model: &Model, gpus: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let missed = missed_gpus(model, gpus);
    let mean = |t: usize, k: usize| {
        model.weights.iter().enumerate().map(|(s, w)| w * missed[s][t][k] / model.claim_gpus[k]).sum()
    };
    (0..model.periods()).map(|t| (0..model.claim_gpus.len()).map(|k| mean(t, k)).collect()).collect()
}
