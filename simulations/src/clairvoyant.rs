//! The least that any policy can pay for a run, by one that knows it: a linear program over the whole measured part.
//!
//! A lower bound, not a plan. Time is cut into buckets; a node's, a class's and the demand's number in a bucket are
//! means over it, so that whatever a policy does is a solution of this program that costs no more: means of covered
//! demand are covered, the rises of means are at most the rises themselves, and nodes are fractions. Misses pay once,
//! when demand begins to go unserved, and are no more than each class's hit rate allows. What exists at the start is free to choose. Faults and reclaims cost nothing here.

use std::collections::BTreeMap;

use fleet::Market;
use serde::{Deserialize, Serialize};
use solver::{Col, Limits, Lp, SolverError};

use crate::engine::{Disturbance, Setup};

/// Most buckets; more would change the bound little and the time much.
const BUCKETS_MAX: f64 = 700.0;
/// Seconds that the program may take.
const TIME_LIMIT_S: f64 = 300.0;

/// The bound.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Dollars of the measured part.
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

/// The least that any policy can pay for the measured part of a run.
///
/// # Errors
/// The solver gives no optimum.
pub fn bound(setup: &Setup) -> Result<Bound, SolverError> {
    match solve(setup, true) {
        // The hit rate cannot be had by anyone: the least without it.
        Err(SolverError::Infeasible) => solve(setup, false),
        result => result,
    }
}

fn solve(setup: &Setup, hit_rates: bool) -> Result<Bound, SolverError> {
    let measured_s = setup.end_s - setup.measure_from_s;
    let bucket_s = (measured_s / BUCKETS_MAX).max(60.0);
    let buckets = (measured_s / bucket_s).ceil() as usize;
    let demand = mean_demand(setup, bucket_s, buckets);
    let groups = groups(setup, &demand);
    let start = |b: usize| setup.measure_from_s + b as f64 * bucket_s;
    let hours = bucket_s / 3600.0;
    let mut lp = Lp::default();
    let classes = setup.classes.len();
    let cover: Vec<Vec<usize>> =
        demand.iter().map(|row| row.iter().map(|gpus| lp.add_row(*gpus, f64::INFINITY, "c")).collect()).collect();
    let begins: Vec<Vec<usize>> =
        (0..classes).map(|_| (0..buckets).map(|_| lp.add_row(0.0, f64::INFINITY, "u")).collect()).collect();
    let quotas: Vec<Vec<usize>> = setup
        .quotas
        .iter()
        .map(|q| (0..buckets).map(|_| lp.add_row(f64::NEG_INFINITY, q.limit, "q")).collect())
        .collect();
    let targets: Vec<usize> = setup
        .classes
        .iter()
        .enumerate()
        .map(|(k, class)| {
            let new = setup
                .claims
                .iter()
                .filter(|c| c.class as usize == k && c.at_ms as f64 >= setup.measure_from_s * 1000.0);
            let allowed = (1.0 - class.class.hit_rate_target) * new.count() as f64;
            lp.add_row(f64::NEG_INFINITY, if hit_rates { allowed } else { f64::INFINITY }, "t")
        })
        .collect();
    // Which columns are nodes, boots and misses, for the parts of the bound.
    let mut kinds: Vec<u8> = Vec::new();
    for (k, class) in setup.classes.iter().enumerate() {
        let gpus = f64::from(class.class.gpus_per_claim);
        for b in 0..buckets {
            // Unserved claims, and those that begin to be: misses ≥ unserved now − unserved before.
            let mut entries = vec![(cover[k][b], gpus), (begins[k][b], -1.0)];
            entries.extend((b + 1 < buckets).then(|| (begins[k][b + 1], 1.0)));
            add(&mut lp, &mut kinds, 0, 0.0, f64::INFINITY, entries);
            let miss_usd = class.class.miss_cost_usd_micros.usd();
            add(&mut lp, &mut kinds, 3, miss_usd, f64::INFINITY, vec![(begins[k][b], 1.0), (targets[k], 1.0)]);
        }
    }
    for group in &groups {
        let held: Vec<usize> = (0..buckets).map(|_| lp.add_row(0.0, f64::INFINITY, "g")).collect();
        for b in 0..buckets {
            for &k in &group.classes {
                add(&mut lp, &mut kinds, 0, 0.0, f64::INFINITY, vec![(held[b], -1.0), (cover[k][b], 1.0)]);
            }
        }
        for &p in &group.offers {
            let offer = &setup.offers[p];
            let price = offer.price_usd_micros_per_h.usd();
            let boot_usd = price * setup.supply[p].lead.mean_s() / 3600.0;
            let rises: Vec<usize> = (0..buckets).map(|_| lp.add_row(0.0, f64::INFINITY, "x")).collect();
            for b in 0..buckets {
                let mut entries = vec![(held[b], f64::from(offer.gpus_per_node)), (rises[b], -1.0)];
                entries.extend((b + 1 < buckets).then(|| (rises[b + 1], 1.0)));
                for (q, quota) in setup.quotas.iter().enumerate() {
                    entries.extend(quota.members.iter().filter(|m| m.0 == p).map(|m| (quotas[q][b], m.1)));
                }
                let most = most_nodes(setup, p, start(b), start(b) + bucket_s);
                let usd = price * least_factor(setup, p, start(b), start(b) + bucket_s) * hours;
                add(&mut lp, &mut kinds, 1, usd, most, entries);
                let usd = if b == 0 { 0.0 } else { boot_usd * least_factor(setup, p, 0.0, start(b) + bucket_s) };
                add(&mut lp, &mut kinds, 2, usd, f64::INFINITY, vec![(rises[b], 1.0)]);
            }
        }
    }
    let solution = lp.solve(Limits { time_limit_s: TIME_LIMIT_S, presolve: true })?;
    let part = |kind: u8| -> f64 {
        let of_kind = kinds.iter().zip(&solution.cols).zip(&lp.cols).filter(|((k, _), _)| **k == kind);
        of_kind.map(|((_, x), col)| x * col.cost).sum()
    };
    Ok(Bound { total_usd: solution.objective, nodes_usd: part(1), boot_usd: part(2), misses_usd: part(3) })
}

fn add(lp: &mut Lp, kinds: &mut Vec<u8>, kind: u8, cost: f64, upper: f64, entries: Vec<(usize, f64)>) {
    kinds.push(kind);
    lp.add_col(Col { cost, lower: 0.0, upper, name: String::new() }, entries);
}

/// GPUs that claims want, mean of each bucket, `[K][buckets]`.
fn mean_demand(setup: &Setup, bucket_s: f64, buckets: usize) -> Vec<Vec<f64>> {
    let mut demand = vec![vec![0.0; buckets]; setup.classes.len()];
    for claim in &setup.claims {
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
            fleet::yields(offer, class, None).is_ok()
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
