//! Solving the restricted problem until its certificate is good enough: cuts where it breaks the whole problem, columns
//! where a source would pay.

use solver::{Solution, SolverError};

use super::master::{Decision, Master};
use super::price::Duals;
use crate::input::PlanInput;
use crate::keys::{Period, SourceId};
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

/// `(upper − lower) / |upper|`, at least 0; a millionth of a dollar is nothing, whatever share it is.
#[must_use]
pub fn gap(upper: f64, lower: f64) -> f64 {
    if upper == f64::INFINITY {
        return f64::INFINITY;
    }
    ((upper - lower - NOTHING_USD) / upper.abs().max(1e-9)).max(0.0)
}

/// Of a source's releases those come in that earn this share of the best.
const NEARLY: f64 = 0.5;
/// Dollars that no plan is judged by: HiGHS keeps rows to a tenth of them.
pub(super) const NOTHING_USD: f64 = 1e-6;
/// New releases in one round.
const RELEASES: usize = 400;
/// Share of the gap that cuts may leave open.
const OPEN_CUTS: f64 = 0.6;
/// The objective has changed by less than this share of the gap: nothing has changed.
const SAME: f64 = 0.1;
/// The objective has risen by less than this share: cuts have little left to say, and sources are priced.
const SLOW: f64 = 3e-3;

/// Solves again from the last basis, adding cuts and columns as needed.
///
/// # Errors
/// The solver gives no optimum.
pub fn resolve(input: &PlanInput, model: &Model, master: &mut Master, effort: Effort) -> Result<Optimum, SolverError> {
    let mut rounds = 0;
    let mut before = f64::NEG_INFINITY;
    // While cuts still lift the objective much, columns would be priced by prices that mean little.
    let mut climbing = true;
    let mut were_cuts = true;
    loop {
        rounds += 1;
        let solution = master.solve()?;
        let last = rounds >= effort.rounds;
        let mut duals = None;
        // Columns that change next to nothing need no cuts before the next are priced.
        let still = gap(before, solution.objective) < SAME * effort.gap;
        if !climbing && (were_cuts || still) && !last {
            let prices = master.duals(&solution);
            let columns = wanted(input, model, master, &prices, &solution, effort);
            if !columns.is_empty() {
                columns.add(master)?;
                were_cuts = false;
                before = solution.objective;
                continue;
            }
            duals = Some(prices);
        }
        let close_usd = if last { f64::INFINITY } else { 2.0 * effort.gap * solution.objective.abs() };
        let broken = master.violations(&solution, close_usd);
        let objective_usd = solution.objective + broken.repair_usd;
        let settled = broken.is_empty() || gap(objective_usd, solution.objective) < OPEN_CUTS * effort.gap;
        climbing &= !settled && gap(solution.objective, before) >= SLOW;
        before = solution.objective;
        were_cuts = true;
        if !settled && !last {
            master.cut(broken)?;
            continue;
        }
        let duals = duals.unwrap_or_else(|| master.duals(&solution));
        let bound_usd = duals.bound_usd(input, model, &master.links);
        // With launches fixed the bound says nothing.
        let close = gap(objective_usd, bound_usd) <= effort.gap && effort.price;
        let columns = wanted(input, model, master, &duals, &solution, effort);
        // Without its later releases a node looks dearer to keep than it is, and is given back: the gap does not excuse that.
        let complete = columns.decisions.is_empty();
        if close && complete || last || columns.is_empty() && (broken.is_empty() || !effort.price) {
            return Ok(Optimum { solution, duals, objective_usd, bound_usd, rounds });
        }
        if columns.is_empty() {
            master.cut(broken)?;
        } else {
            columns.add(master)?;
        }
    }
}

/// Columns that would earn or save money at the current prices.
struct Wanted {
    sources: Vec<usize>,
    decisions: Vec<Decision>,
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.decisions.is_empty()
    }

    fn add(&self, master: &mut Master) -> Result<(), SolverError> {
        master.add_decisions(&self.decisions)?;
        master.add_sources(&self.sources)
    }
}

fn wanted(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    duals: &Duals,
    solution: &Solution,
    effort: Effort,
) -> Wanted {
    let sources = if effort.price { profitable(input, model, master, duals) } else { Vec::new() };
    Wanted { sources, decisions: better(input, model, master, duals, solution) }
}

/// Decisions outside the problem that would earn or save money at the current prices: of each source the best launch, and
/// the releases that are about the best, of nodes that it has or would launch if they could be released.
fn better(input: &PlanInput, model: &Model, master: &Master, duals: &Duals, solution: &Solution) -> Vec<Decision> {
    let mut launches = Vec::new();
    let mut wanted = Vec::new();
    for &i in &master.active {
        let (source, links, id) = (&model.sources[i], &master.links[i], SourceId(i));
        let nodes = master.nodes(solution, i);
        let profit = duals.profit(input, model, links, source, &duals.pools[source.pool]);
        let pays = profit.best_launch_usd() > EPS;
        let launch = |(u, usd): (usize, &f64)| {
            let launch = Decision::Launch(id, Period(u));
            (*usd > EPS && !master.can(launch)).then_some((*usd, launch))
        };
        let best = profit.launch_usd.iter().enumerate().filter_map(launch).max_by(|a, b| a.0.total_cmp(&b.0));
        launches.extend(best.map(|(_, launch)| launch));
        let releases = duals.releases(model, links, source);
        // What exists would be released where it comes, or after it was worth keeping.
        let comes = |t: usize| source.appear[..=t].iter().any(|n| *n > 0.0);
        let ends = |t: usize| t == 0 || source.appear[t] > 0.0 || releases.iter().all(|(other, _)| other + 1 != t);
        let can = |t: usize| nodes[t] > EPS || comes(t) && ends(t) || pays;
        let release = |t: usize| Decision::Release(id, Period(t));
        let new = releases.iter().filter(|(t, _)| !master.can(release(*t)) && can(*t));
        let new: Vec<_> = new.map(|&(t, usd)| (usd * (nodes[t] + 0.1), release(t))).collect();
        let most = new.iter().map(|(usd, _)| *usd).fold(0.0, f64::max);
        wanted.extend(new.into_iter().filter(|(usd, _)| *usd >= NEARLY * most));
    }
    wanted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    launches.extend(wanted.into_iter().take(RELEASES).map(|(_, decision)| decision));
    launches
}

/// Sources outside the problem whose launches would earn money at the current prices, the best of each pool.
fn profitable(input: &PlanInput, model: &Model, master: &Master, duals: &Duals) -> Vec<usize> {
    let mut wanted = Vec::new();
    for (pool, sources) in model.pool_sources.iter().enumerate() {
        let mut best = Vec::new();
        for &i in sources.iter().filter(|i| !master.has(**i) && model.sources[**i].launch_end > 0) {
            let profit = duals.profit(input, model, &master.links[i], &model.sources[i], &duals.pools[pool]);
            if profit.best_launch_usd() > EPS {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompose::solve;
    use crate::synthetic::{Size, fleet};

    /// However loose the gap, no launch and no release of a source that is there is left out that would pay: without its later
    /// releases a node looks dearer to keep than it is.
    #[test]
    fn a_loose_gap_leaves_no_decision_out() {
        for seed in 0..4 {
            let input = fleet(Size { offers: 150, classes: 10, scenarios: 8, periods: 8 }, seed);
            let model = Model::build(&input);
            let effort = Effort { gap: 0.05, ..Effort::default() };
            let (master, found) = solve(&input, &model, effort).expect("an optimum");
            assert_eq!(better(&input, &model, &master, &found.duals, &found.solution), [], "seed {seed}");
        }
    }
}
