//! Solving the restricted problem until its certificate is good enough: cuts where it breaks the whole problem, columns
//! where a source would pay.

use solver::{Solution, SolverError};

use super::master::Master;
use super::price::Duals;
use crate::input::PlanInput;
use crate::model::{EPS, Model};

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

/// Share of the gap that cuts may leave open.
const OPEN_CUTS: f64 = 0.3;
/// The objective has risen by less than this share: cuts have little left to say, and sources are priced.
const SLOW: f64 = 3e-3;

/// Solves again from the last basis, adding cuts and columns as needed.
///
/// # Errors
/// The solver gives no optimum.
pub fn resolve(input: &PlanInput, model: &Model, master: &mut Master, effort: Effort) -> Result<Optimum, SolverError> {
    let mut rounds = 0;
    // Objective when the last columns came, and of the last round.
    let mut before = f64::NEG_INFINITY;
    let mut priced = false;
    loop {
        rounds += 1;
        let solution = master.solve()?;
        let broken = master.violations(&solution);
        let last = rounds >= effort.rounds;
        let objective_usd = solution.objective + broken.repair_usd;
        let settled = broken.is_empty() || gap(objective_usd, solution.objective) < OPEN_CUTS * effort.gap;
        let slow = gap(solution.objective, before) < SLOW;
        before = solution.objective;
        if !settled && (priced || !slow) && !last {
            master.cut(broken)?;
            priced = false;
            continue;
        }
        let duals = master.duals(&solution);
        let bound_usd = duals.bound_usd(input, model, &master.links);
        let wanted = if effort.price { profitable(input, model, master, &duals) } else { Vec::new() };
        let close = gap(objective_usd, bound_usd) <= effort.gap || !effort.price;
        let done = settled && (close || wanted.is_empty() && broken.is_empty());
        if done || last {
            return Ok(Optimum { solution, duals, objective_usd, bound_usd, rounds });
        }
        if wanted.is_empty() {
            master.cut(broken)?;
        } else {
            master.add_sources(&wanted)?;
            priced = true;
        }
    }
}

/// Sources outside the problem whose launches would earn money at the current prices, the best of each pool.
fn profitable(input: &PlanInput, model: &Model, master: &Master, duals: &Duals) -> Vec<usize> {
    let mut wanted = Vec::new();
    for (pool, sources) in model.pool_sources.iter().enumerate() {
        let mut best = Vec::new();
        for &i in sources.iter().filter(|i| !master.has(**i) && model.sources[**i].launch_end > 0) {
            let profit = duals.profit(input, model, &master.links[i], &model.sources[i], &duals.pools[pool]);
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
