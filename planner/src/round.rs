//! Whole nodes for what is done now: launches of the first period and the nodes kept in it.
//!
//! The linear optimum is rounded in several ways, each is solved again with those numbers fixed, and the cheapest is
//! kept. Where that is too far from the bound and the problem is small, a bounded branch and bound looks further.

use solver::SolverError;

use crate::columns;
use crate::decompose::{self, Effort, Master, Optimum};
use crate::input::PlanInput;
use crate::keys::{ColKey, Period, QuotaId, RateGroupId, RowKey, SourceId};
use crate::model::{EPS, Model};

/// When to look beyond simple rounding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refine {
    /// Accept a rounding within this share of the bound.
    pub gap: f64,
    /// Most re-solves of the branch and bound.
    pub solves: usize,
    /// Only for problems of at most so many rows.
    pub rows: usize,
}

impl Default for Refine {
    fn default() -> Self {
        Self { gap: 0.005, solves: 60, rows: 4000 }
    }
}

/// Whole numbers for the first period.
#[derive(Debug, Clone)]
pub struct Rounded {
    /// `(source, launches now)`, only where more than 0.
    pub launches: Vec<(usize, f64)>,
    /// The program solved again with them fixed.
    pub optimum: Optimum,
    /// How they were found.
    pub rule: Rule,
}

/// How launches became whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// All up.
    Ceil,
    /// To the nearest.
    Nearest,
    /// Fractions of one pool are added up and launched at its cheapest sources.
    Pooled,
    /// Branch and bound.
    Branched,
}

/// Rounds the optimum that `master` holds.
///
/// # Errors
/// The solver gives no optimum even for the rounding that only launches more.
pub fn round(
    input: &PlanInput,
    model: &Model,
    master: &mut Master,
    relaxed: &Optimum,
    effort: Effort,
    refine: Refine,
) -> Result<Rounded, SolverError> {
    let effort = Effort { price: false, ..effort };
    let mut rooms = Rooms::new(input, model, master, relaxed);
    let kept = whole_nodes(input, model, master, relaxed, &mut rooms);
    let mut best: Option<Rounded> = None;
    let mut tried: Vec<Vec<(usize, f64)>> = Vec::new();
    let mut failure = None;
    for rule in [Rule::Nearest, Rule::Pooled, Rule::Ceil] {
        let launches = whole_launches(input, model, master, relaxed, rule, rooms.clone());
        if tried.contains(&launches) {
            continue;
        }
        // No release where a launch is made: a node in hand is better than one that may be refused.
        let swap = |i: usize| launches.iter().any(|(j, _)| *j == i);
        let stay = |&(i, n): &(usize, f64)| (i, if swap(i) { model.sources[i].appear[0].floor() } else { n });
        let kept: Vec<(usize, f64)> = kept.iter().map(stay).collect();
        fix(model, master, &launches, &kept)?;
        tried.push(launches.clone());
        match decompose::resolve(input, model, master, effort) {
            Ok(optimum) if best.as_ref().is_none_or(|b| optimum.objective_usd < b.optimum.objective_usd) => {
                best = Some(Rounded { launches, optimum, rule });
            }
            Ok(_) => {}
            Err(error) => failure = Some(error),
        }
        // A rounding this close to the bound cannot be improved by much.
        let close = |b: &Rounded| decompose::gap(b.optimum.objective_usd, relaxed.bound_usd) <= 0.4 * refine.gap;
        if best.as_ref().is_some_and(close) {
            break;
        }
    }
    let mut best = best.ok_or_else(|| failure.unwrap_or(SolverError::Infeasible))?;
    let far = decompose::gap(best.optimum.objective_usd, relaxed.bound_usd) > refine.gap;
    if far && master.size().0 <= refine.rows {
        branch(input, model, master, &mut best, effort, refine)?;
    }
    Ok(best)
}

/// Nodes of the first period, rounded up: a release waits until a whole node is not needed. Where that would break a
/// limit, the node is released.
fn whole_nodes(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    relaxed: &Optimum,
    rooms: &mut Rooms,
) -> Vec<(usize, f64)> {
    let mut kept = Vec::new();
    for &i in master.active.iter().filter(|i| model.sources[**i].appear[0] > 0.0) {
        let source = &model.sources[i];
        let nodes = master.nodes(&relaxed.solution, i)[0];
        let up = (nodes - 1e-4).ceil().clamp(0.0, source.appear[0].floor());
        let down = nodes.floor().max(source.kept[0].ceil()).min(up);
        let fits = rooms.take(&units(input, model, master, i), up - nodes);
        kept.push((i, if fits { up } else { down }));
    }
    kept
}

/// What is left under quotas, budget and launch rates beside the linear optimum.
#[derive(Clone)]
struct Rooms(Vec<f64>);

impl Rooms {
    fn new(input: &PlanInput, model: &Model, master: &Master, relaxed: &Optimum) -> Self {
        let periods = model.periods();
        let room = |left: &Vec<f64>, row: &dyn Fn(usize) -> RowKey| {
            master.room(&relaxed.solution, |t| left[t], row, periods).max(0.0)
        };
        let mut rooms: Vec<f64> = model
            .quota_left
            .iter()
            .enumerate()
            .map(|(q, left)| room(left, &|t| RowKey::Quota(QuotaId(q), Period(t))))
            .collect();
        // Without a budget there are no rows, and the room is infinite.
        rooms.push(room(&model.budget_left_usd_per_h, &|t| RowKey::Budget(Period(t))));
        let rate = input.policy.launch_rate_nodes_per_min.map_or(f64::INFINITY, |r| r * model.hours[0] * 60.0);
        for g in 0..columns::rate_groups(input).len() {
            rooms.push(
                master.room(&relaxed.solution, |_| rate, |_| RowKey::Rate(RateGroupId(g), Period(0)), 1).max(0.0),
            );
        }
        Self(rooms)
    }

    /// Takes `amount` times the units when every limit has them (a negative amount gives back).
    fn take(&mut self, units: &[(usize, f64)], amount: f64) -> bool {
        let fits = units.iter().all(|(limit, unit)| self.0[*limit] >= amount * unit - 1e-9);
        if fits {
            units.iter().for_each(|(limit, unit)| self.0[*limit] -= amount * unit);
        }
        fits
    }
}

/// Units of each limit that one node of a source takes.
fn units(input: &PlanInput, model: &Model, master: &Master, i: usize) -> Vec<(usize, f64)> {
    let budget = input.quotas.len();
    let mut units: Vec<(usize, f64)> = master.links[i].quotas.iter().map(|&(q, units)| (q.0, units)).collect();
    units.push((budget, model.sources[i].price_usd_per_h));
    units
}

fn whole_launches(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    relaxed: &Optimum,
    rule: Rule,
    rooms: Rooms,
) -> Vec<(usize, f64)> {
    let mut wanted: Vec<(usize, f64)> = Vec::new();
    for &i in master.active.iter().filter(|i| model.sources[**i].launch_end > 0) {
        let launches = master.value(&relaxed.solution, ColKey::Launch(SourceId(i), Period(0)));
        if launches > EPS {
            wanted.push((i, launches));
        }
    }
    let cost = |i: usize| model.sources[i].cost_usd_per_h / model.sources[i].gpus;
    wanted.sort_by(|a, b| {
        let pools = model.sources[a.0].pool.cmp(&model.sources[b.0].pool);
        pools.then(cost(a.0).total_cmp(&cost(b.0))).then(a.0.cmp(&b.0))
    });
    let mut pool = usize::MAX;
    // GPUs that were rounded up before they were needed, in this pool.
    let mut ahead = 0.0;
    let mut whole = Vec::new();
    for &(i, launches) in &wanted {
        let source = &model.sources[i];
        if source.pool != pool {
            (pool, ahead) = (source.pool, 0.0);
        }
        let limit = source.launch_limit[0].floor();
        let count = match rule {
            Rule::Nearest => launches.round(),
            Rule::Ceil | Rule::Branched => (launches - 1e-4).ceil(),
            Rule::Pooled => {
                let count = (launches - ahead / source.gpus - 1e-4).ceil().clamp(0.0, limit);
                ahead += (count - launches) * source.gpus;
                count
            }
        };
        whole.push(count.min(limit));
    }
    stay_within_limits(input, model, master, &wanted, &mut whole, rooms);
    wanted.iter().zip(whole).filter(|(_, count)| *count >= 1.0).map(|(&(i, _), count)| (i, count)).collect()
}

/// Takes back roundings up that would break a quota, the budget or a launch rate; the largest fractions are kept.
fn stay_within_limits(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    wanted: &[(usize, f64)],
    whole: &mut [f64],
    mut rooms: Rooms,
) {
    let units = |i: usize| {
        let mut units = units(input, model, master, i);
        units.extend(master.links[i].rate.map(|g| (input.quotas.len() + 1 + g.0, 1.0)));
        units
    };
    for (&(i, x), count) in wanted.iter().zip(whole.iter()) {
        rooms.take(&units(i), count.min(x.floor()) - x);
    }
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|a, b| wanted[*b].1.fract().total_cmp(&wanted[*a].1.fract()).then(a.cmp(b)));
    for j in order {
        let (i, x) = wanted[j];
        let more = whole[j] - x.floor();
        if more > 0.0 && !rooms.take(&units(i), more) {
            whole[j] = x.floor();
        }
    }
}

/// Fixes the first period. Sources that are not named launch nothing.
fn fix(
    model: &Model,
    master: &mut Master,
    launches: &[(usize, f64)],
    kept: &[(usize, f64)],
) -> Result<(), SolverError> {
    for i in master.active.clone().into_iter().filter(|i| model.sources[*i].launch_end > 0) {
        let count = launches.iter().find(|(j, _)| *j == i).map_or(0.0, |(_, x)| *x);
        master.set_bounds(ColKey::Launch(SourceId(i), Period(0)), count, count)?;
    }
    kept.iter().try_for_each(|&(i, nodes)| master.set_bounds(ColKey::Nodes(SourceId(i), Period(0)), nodes, nodes))
}

/// Depth-first branch and bound over the first period's launches and nodes, from the incumbent `best`.
fn branch(
    input: &PlanInput,
    model: &Model,
    master: &mut Master,
    best: &mut Rounded,
    effort: Effort,
    refine: Refine,
) -> Result<(), SolverError> {
    let mut whole: Vec<(ColKey, f64)> = Vec::new();
    for &i in &master.active {
        let source = &model.sources[i];
        if source.launch_end > 0 {
            whole.push((ColKey::Launch(SourceId(i), Period(0)), source.launch_limit[0].floor()));
        }
        if source.appear[0] > 0.0 {
            whole.push((ColKey::Nodes(SourceId(i), Period(0)), source.appear[0].floor()));
        }
    }
    let root: Vec<(f64, f64)> = whole.iter().map(|(_, upper)| (0.0, *upper)).collect();
    let mut open = vec![root];
    for _ in 0..refine.solves {
        let Some(bounds) = open.pop() else { break };
        for ((key, _), (low, high)) in whole.iter().zip(&bounds) {
            master.set_bounds(*key, *low, *high)?;
        }
        let optimum = match decompose::resolve(input, model, master, effort) {
            Ok(optimum) => optimum,
            Err(SolverError::Infeasible) => continue,
            // The rounding in hand is a whole plan already.
            Err(_) => break,
        };
        if optimum.objective_usd >= best.optimum.objective_usd * (1.0 - 1e-9) {
            continue;
        }
        let value = |key: &ColKey| match key {
            ColKey::Nodes(SourceId(i), Period(t)) => master.nodes(&optimum.solution, *i)[*t],
            _ => master.value(&optimum.solution, *key),
        };
        let values: Vec<f64> = whole.iter().map(|(key, _)| value(key)).collect();
        let part = |v: f64| (v - v.round()).abs();
        let widest = (0..values.len()).max_by(|a, b| part(values[*a]).total_cmp(&part(values[*b])));
        let swapped = (0..values.len().saturating_sub(1)).find(|j| is_swap(model, &whole, &values, *j));
        match (widest.filter(|j| part(values[*j]) > 1e-5), swapped) {
            (Some(j), _) => {
                let (mut down, mut up) = (bounds.clone(), bounds);
                down[j].1 = values[j].floor();
                up[j].0 = values[j].ceil();
                open.push(down);
                open.push(up);
            }
            (None, Some(j)) => {
                let (mut down, mut up) = (bounds.clone(), bounds);
                down[j].1 = 0.0;
                up[j + 1].0 = whole[j + 1].1;
                open.push(down);
                open.push(up);
            }
            (None, None) => {
                let launches = whole.iter().zip(&values).filter_map(|((key, _), v)| match key {
                    ColKey::Launch(SourceId(i), _) if v.round() >= 1.0 => Some((*i, v.round())),
                    _ => None,
                });
                *best = Rounded { launches: launches.collect(), optimum, rule: Rule::Branched };
            }
        }
    }
    Ok(())
}

/// Whether column `j` launches at a source that column `j + 1` releases nodes of.
fn is_swap(model: &Model, whole: &[(ColKey, f64)], values: &[f64], j: usize) -> bool {
    match (whole[j].0, whole[j + 1].0) {
        (ColKey::Launch(SourceId(i), _), ColKey::Nodes(SourceId(n), _)) if i == n => {
            values[j] > 0.5 && values[j + 1] < model.sources[i].appear[0].floor() - 0.5
        }
        _ => false,
    }
}
