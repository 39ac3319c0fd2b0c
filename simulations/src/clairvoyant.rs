//! The least that any policy can pay for a run, by one that knows it: a linear program over the whole measured part.
//!
//! A lower bound, not a plan. Time is cut into buckets; a node's, a class's and the demand's number in a bucket are
//! means over it, so that whatever a policy does is a solution of this program that costs no more: means of covered
//! demand are covered, the rises of means are at most the rises themselves, and nodes are fractions. Misses pay once,
//! when demand begins to go unserved, and are no more than each class's hit rate allows. What exists at the start is free to choose. Faults and reclaims cost nothing here.

use std::collections::BTreeMap;

use fleet::Market;
use good_lp::{
    Constraint, Expression, ProblemVariables, ResolutionError, Solution, SolutionStatus, SolverModel, Variable, highs,
    variable,
};
use serde::{Deserialize, Serialize};

use crate::engine::{Disturbance, Setup};

/// Most buckets; more would change the bound little and the time much.
const BUCKETS_MAX: f64 = 700.0;
/// Seconds that the program may take.
const TIME_LIMIT_S: f64 = 300.0;

/// The bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Dollars of the measured part, less all that borrowers could pay.
    pub total_usd: f64,
    /// Of which nodes in use.
    pub nodes_usd: f64,
    /// Of which boots.
    pub boot_usd: f64,
    /// Of which misses.
    pub misses_usd: f64,
}

/// Offers that serve the same classes.
struct Group {
    classes: Vec<usize>,
    offers: Vec<usize>,
}

/// Why there is no bound.
#[derive(Debug, thiserror::Error)]
pub enum BoundError {
    /// The solver found no optimum.
    #[error("the bound on any policy's cost has no optimum")]
    Solver(#[from] ResolutionError),
    /// The program is too large for the time it may take.
    #[error("the bound on any policy's cost was not found in {TIME_LIMIT_S} s: simulate fewer days, classes or offers")]
    TimeLimit,
}

/// The least that any policy can pay for the measured part of a run.
///
/// # Errors
/// The solver gives no optimum.
pub fn bound(setup: &Setup) -> Result<Bound, BoundError> {
    match solve(setup, true) {
        // The hit rate cannot be had by anyone: the least without it.
        Err(BoundError::Solver(ResolutionError::Infeasible)) => solve(setup, false),
        result => result,
    }
}

/// Means over buckets, `[bucket]`.
type Series = Vec<Variable>;

/// The program while it is written: a column for each mean, rows in terms of them.
struct Program<'a> {
    setup: &'a Setup,
    buckets: usize,
    bucket_s: f64,
    vars: ProblemVariables,
    rows: Vec<Constraint>,
    nodes_usd: Expression,
    boot_usd: Expression,
    misses_usd: Expression,
}

fn solve(setup: &Setup, hit_rates: bool) -> Result<Bound, BoundError> {
    let measured_s = setup.end_s - setup.measure_from_s;
    let bucket_s = (measured_s / BUCKETS_MAX).max(60.0);
    let mut program = Program {
        setup,
        buckets: (measured_s / bucket_s).ceil() as usize,
        bucket_s,
        vars: ProblemVariables::new(),
        rows: Vec::new(),
        nodes_usd: Expression::default(),
        boot_usd: Expression::default(),
        misses_usd: Expression::default(),
    };
    let demand = mean_demand(setup, bucket_s, program.buckets);
    let mut served = program.demand(hit_rates);
    let mut quotas = vec![vec![Expression::default(); program.buckets]; setup.quotas.len()];
    for group in groups(setup, &demand) {
        program.supply(&group, &mut served, &mut quotas);
    }
    for (served, demand) in served.into_iter().zip(&demand) {
        program.rows.extend(served.into_iter().zip(demand).map(|(served, gpus)| served.geq(*gpus)));
    }
    for (used, quota) in quotas.into_iter().zip(&setup.quotas) {
        program.rows.extend(used.into_iter().map(|used| used.leq(quota.limit)));
    }
    program.solve()
}

impl Program<'_> {
    fn series(&mut self) -> Series {
        (0..self.buckets).map(|_| self.vars.add(variable().min(0.0))).collect()
    }

    /// Claims that go unserved, and those that begin to: misses. The GPUs' worth of what goes unserved counts as served,
    /// `[K][buckets]`.
    fn demand(&mut self, hit_rates: bool) -> Vec<Vec<Expression>> {
        let mut served = Vec::new();
        for (k, class) in self.setup.classes.iter().enumerate() {
            let (unserved, missed) = (self.series(), self.series());
            for b in 0..self.buckets {
                let before = if b == 0 { Expression::default() } else { unserved[b - 1].into() };
                self.rows.push((missed[b] - unserved[b] + before).geq(0.0));
                self.misses_usd.add_mul(class.class.miss_cost_usd_micros.usd(), missed[b]);
            }
            if hit_rates {
                let from_ms = self.setup.measure_from_s * 1000.0;
                let new =
                    self.setup.claims.iter().filter(|c| c.class as usize == k && c.at_ms as f64 >= from_ms).count();
                let allowed = (1.0 - class.class.hit_rate_target) * new as f64;
                self.rows.push(missed.iter().sum::<Expression>().leq(allowed));
            }
            let gpus = f64::from(class.class.gpus_per_claim);
            served.push(unserved.iter().map(|claims| gpus * *claims).collect());
        }
        served
    }

    /// Nodes of a group's offers, their boots, and what they serve.
    fn supply(&mut self, group: &Group, served: &mut [Vec<Expression>], quotas: &mut [Vec<Expression>]) {
        let mut idle_gpus = vec![Expression::default(); self.buckets];
        for &k in &group.classes {
            for (b, gpus) in self.series().into_iter().enumerate() {
                served[k][b] += gpus;
                idle_gpus[b] -= gpus;
            }
        }
        for &p in &group.offers {
            let setup = self.setup;
            let offer = &setup.offers[p];
            let price = offer.price_usd_micros_per_h.usd();
            let boot_usd = price * setup.supply[p].lead.mean_s() / 3600.0;
            let launches = self.series();
            let mut before: Option<Variable> = None;
            for b in 0..self.buckets {
                let from_s = setup.measure_from_s + b as f64 * self.bucket_s;
                let to_s = from_s + self.bucket_s;
                let nodes = self.vars.add(variable().min(0.0).max(most_nodes(setup, p, from_s, to_s)));
                idle_gpus[b].add_mul(f64::from(offer.gpus_per_node), nodes);
                let rise = before.map_or_else(|| nodes.into(), |before| nodes - before);
                self.rows.push((launches[b] - rise).geq(0.0));
                for (quota, used) in setup.quotas.iter().zip(quotas.iter_mut()) {
                    let of_offer = quota.members.iter().filter(|m| m.0 == p);
                    of_offer.for_each(|(_, units)| used[b].add_mul(*units, nodes));
                }
                let hours = self.bucket_s / 3600.0;
                self.nodes_usd.add_mul(price * least_factor(setup, p, from_s, to_s) * hours, nodes);
                // What exists at the start is free to choose.
                if b > 0 {
                    self.boot_usd.add_mul(boot_usd * least_factor(setup, p, 0.0, to_s), launches[b]);
                }
                before = Some(nodes);
            }
        }
        self.rows.extend(idle_gpus.into_iter().map(|idle| idle.geq(0.0)));
    }

    fn solve(self) -> Result<Bound, BoundError> {
        let total_usd = self.nodes_usd.clone() + self.boot_usd.clone() + self.misses_usd.clone();
        let problem = self.vars.minimise(total_usd.clone()).using(highs).set_threads(1).set_time_limit(TIME_LIMIT_S);
        let solution = problem.set_option("random_seed", 1).with_all(self.rows).solve()?;
        if matches!(solution.status(), SolutionStatus::TimeLimit) {
            return Err(BoundError::TimeLimit);
        }
        Ok(Bound {
            total_usd: solution.eval(&total_usd) - lendable_usd(self.setup),
            nodes_usd: solution.eval(&self.nodes_usd),
            boot_usd: solution.eval(&self.boot_usd),
            misses_usd: solution.eval(&self.misses_usd),
        })
    }
}

/// What borrowers would pay if they had GPUs for all of their work.
fn lendable_usd(setup: &Setup) -> f64 {
    let pays = |claim: &crate::engine::ClaimSpec| {
        let class = &setup.classes[claim.class as usize].class;
        let price = class.borrows_usd_micros_per_gpu_h.map_or(0.0, fleet::UsdMicros::usd);
        price * f64::from(class.gpus_per_claim) * (claim.end_ms.saturating_sub(claim.at_ms)) as f64 / 3.6e6
    };
    setup.claims.iter().map(pays).sum()
}

/// GPUs that claims want, mean of each bucket, `[K][buckets]`.
fn mean_demand(setup: &Setup, bucket_s: f64, buckets: usize) -> Vec<Vec<f64>> {
    let mut demand = vec![vec![0.0; buckets]; setup.classes.len()];
    // Who borrows is promised nothing.
    for claim in setup.claims.iter().filter(|claim| !setup.classes[claim.class as usize].class.borrows()) {
        let gpus = f64::from(setup.classes[claim.class as usize].class.gpus_per_claim);
        let from = (claim.at_ms as f64 / 1000.0 - setup.measure_from_s).max(0.0);
        let to = (claim.end_ms as f64 / 1000.0).min(setup.end_s) - setup.measure_from_s;
        let mut b = (from / bucket_s) as usize;
        while b < buckets && (b as f64) * bucket_s < to {
            let (start, end) = (b as f64 * bucket_s, (b + 1) as f64 * bucket_s);
            demand[claim.class as usize][b] += gpus * (to.min(end) - from.max(start)).max(0.0) / bucket_s;
            b += 1;
        }
    }
    demand
}

/// Groups of offers, without offers that others of their group beat in price and boot cost and that are not needed.
fn groups(setup: &Setup, demand: &[Vec<f64>]) -> Vec<Group> {
    let mut groups: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
    for (p, offer) in setup.offers.iter().enumerate() {
        let serves = |k: &usize| {
            let class = &setup.classes[*k].class;
            fleet::offer_share(offer, class, None).is_ok()
        };
        let classes: Vec<usize> = (0..setup.classes.len()).filter(serves).collect();
        if !classes.is_empty() {
            groups.entry(classes).or_default().push(p);
        }
    }
    let boot = |p: usize| gpu_usd(setup, p) * setup.supply[p].lead.mean_s();
    let mut all = Vec::new();
    for (classes, mut offers) in groups {
        let peak: f64 = classes.iter().map(|k| demand[*k].iter().copied().fold(0.0, f64::max)).sum();
        offers.sort_by(|a, b| gpu_usd(setup, *a).total_cmp(&gpu_usd(setup, *b)).then(a.cmp(b)));
        let mut kept: Vec<usize> = Vec::new();
        for p in offers {
            // GPUs that are always there of offers that are as cheap to run and to boot.
            let better = kept.iter().filter(|q| boot(**q) <= boot(p) + 1e-12 && steady(setup, **q));
            let covered: f64 = better.map(|q| always_gpus(setup, *q)).sum();
            if covered < peak || !steady(setup, p) {
                kept.push(p);
            }
        }
        all.push(Group { classes, offers: kept });
    }
    all
}

fn gpu_usd(setup: &Setup, p: usize) -> f64 {
    setup.offers[p].gpu_price_usd_micros_per_h().usd()
}

/// Whether nothing ever happens to its price or quota.
fn steady(setup: &Setup, p: usize) -> bool {
    let touched =
        |d: &Disturbance| matches!(d, Disturbance::Price(offers, _) | Disturbance::Down(offers) if offers.contains(&p));
    !setup.disturbances.iter().any(|(_, d)| touched(d))
        && !setup.quotas.iter().any(|q| q.members.iter().any(|m| m.0 == p))
}

fn always_gpus(setup: &Setup, p: usize) -> f64 {
    let least = setup.supply[p].capacity.0.iter().map(|s| s.1).fold(f64::INFINITY, f64::min);
    least * f64::from(setup.offers[p].gpus_per_node)
}

/// Most nodes that can run at any time of a span. Rented nodes stay when the stock is gone: only spot is taken back.
fn most_nodes(setup: &Setup, p: usize, from_s: f64, to_s: f64) -> f64 {
    let steps = &setup.supply[p].capacity;
    let from_s = if setup.offers[p].key.market == Market::Spot { from_s } else { 0.0 };
    let inside = steps.0.iter().filter(|s| s.0 > from_s && s.0 < to_s).map(|s| s.1);
    inside.fold(steps.at(from_s), f64::max)
}

/// Lowest price factor of a span.
fn least_factor(setup: &Setup, p: usize, from_s: f64, to_s: f64) -> f64 {
    let (mut now, mut least) = (1.0_f64, f64::INFINITY);
    for (at, what) in &setup.disturbances {
        if let Disturbance::Price(offers, factor) = what
            && offers.contains(&p)
        {
            if *at >= to_s {
                break;
            }
            if *at > from_s {
                least = least.min(now);
            }
            now = *factor;
        }
    }
    least.min(now)
}
