//! The base-stock rule: what to do without a solver, and closed forms that the program must reproduce.
//!
//! Order-up-to levels are near-optimal when misses are dear beside holding (Huh, Janakiraman, Muckstadt and
//! Rusmevichientong 2009, "Asymptotic optimality of order-up-to policies in lost sales inventory systems").

use statrs::distribution::{ContinuousCDF, DiscreteCDF, Normal, Poisson};

use crate::appraise;
use crate::input::PlanInput;
use crate::model::Model;
use crate::plan::{Launch, Plan, Target};
use crate::report::{FallbackCause, Method};
use crate::source::Source;

/// The miss penalty at which holding for a share `hit` of periods without a miss is right (newsvendor):
/// `m = c·α/(1−α)`, with `c` = dollars to hold one unit for one period.
#[must_use]
pub fn newsvendor_penalty_usd(hold_usd: f64, hit: f64) -> f64 {
    hold_usd * hit / (1.0 - hit)
}

/// Order-up-to level by the normal approximation over lead time `L` and review period `R`:
/// `μ(L+R) + z·√((L+R)σ² + μ²·Var L)`. `mean` and `var` are of the demand of one second; times in seconds.
/// Returns `None` for a share outside (0, 1) or numbers that are not finite.
#[must_use]
pub fn normal_level(mean: f64, var: f64, lead_s: f64, lead_var: f64, review_s: f64, hit: f64) -> Option<f64> {
    let normal = Normal::new(0.0, 1.0).ok()?;
    let spread = (lead_s + review_s) * var + mean * mean * lead_var;
    let valid = hit > 0.0 && hit < 1.0 && spread >= 0.0 && spread.is_finite();
    valid.then(|| mean * (lead_s + review_s) + normal.inverse_cdf(hit) * spread.sqrt())
}

/// Smallest `n` with `P(Poisson(mean) ≤ n) ≥ hit`.
#[must_use]
pub fn poisson_level(mean: f64, hit: f64) -> Option<u64> {
    if !(hit > 0.0 && hit < 1.0) {
        return None;
    }
    if mean <= 0.0 {
        return Some(0);
    }
    let poisson = Poisson::new(mean).ok()?;
    (0..=(mean + 12.0 * mean.sqrt() + 20.0) as u64).find(|n| poisson.cdf(*n) >= hit)
}

/// A plan without the solver: for each class, launch at its cheapest offers until the level of its hit rate over the
/// lead time is covered by nodes that exist, arrive, or are launched. It never releases.
#[must_use]
pub fn fallback(input: &PlanInput, model: &Model, cause: FallbackCause, error: String) -> Plan {
    let launched = order_up_to(input, model);
    made(input, model, &launched, Method::BaseStock { cause, error })
}

/// A plan that launches nothing and releases nothing.
#[must_use]
pub fn hold(input: &PlanInput, model: &Model, error: String) -> Plan {
    made(input, model, &vec![0.0; input.offers.len()], Method::Hold { error })
}

/// Nodes to launch of each offer, `[P]`.
fn order_up_to(input: &PlanInput, model: &Model) -> Vec<f64> {
    let mut launched = vec![0.0_f64; input.offers.len()];
    // GPUs that exist or arrive, by source, handed to classes in order.
    let idle = |s: &Source| (s.appear.iter().sum::<f64>() - s.claimed[0]).max(0.0) * s.gpus;
    let mut left: Vec<f64> = model.sources.iter().map(idle).collect();
    let mut beside: Vec<f64> = model.pools.iter().map(|p| p.fixed_gpus[0]).collect();
    let mut room: Vec<f64> = quota_room(input);
    let mut rate_left = launch_room(input);
    let spent: f64 = model.sources.iter().map(|s| s.appear[0] * s.price_usd_per_h).sum();
    let mut budget_left = model.budget_left_usd_per_h.first().map_or(f64::INFINITY, |left| left - spent);
    for k in (0..input.classes.len()).filter(|k| !input.classes[*k].borrows()) {
        let mut missing = level_gpus(input, model, k);
        for (pool, gpus) in model.pools.iter().zip(&mut beside) {
            if let Some(&(_, share)) = pool.serves.iter().find(|(c, _)| *c == k) {
                let taken = (*gpus * share).min(missing);
                *gpus -= taken;
                missing -= taken;
            }
        }
        for (i, source) in model.sources.iter().enumerate() {
            if let Some(&(_, share)) = model.pools[source.pool].serves.iter().find(|(c, _)| *c == k) {
                let taken = (left[i] * share).min(missing);
                left[i] -= taken / share;
                missing -= taken;
            }
        }
        let serves = |i: &usize| {
            model.sources[*i].launch_end > 0 && model.pools[model.sources[*i].pool].serves.iter().any(|(c, _)| *c == k)
        };
        let mut offers: Vec<usize> = (0..model.sources.len()).filter(serves).collect();
        let rate = |i: &usize| model.sources[*i].cost_usd_per_h / model.sources[*i].gpus;
        offers.sort_by(|a, b| rate(a).total_cmp(&rate(b)).then(a.cmp(b)));
        for i in offers {
            if missing <= 0.0 {
                break;
            }
            let source = &model.sources[i];
            let state = &input.offers[source.offer];
            let units = |q: usize| input.quotas[q].members.iter().find(|(p, _)| *p == source.offer).map(|m| m.1);
            let quota = (0..room.len()).filter_map(|q| units(q).map(|u| room[q] / u.max(1e-9)));
            let provider = rate_left.entry(state.offer.key.provider.clone()).or_insert(f64::INFINITY);
            let paid = budget_left / source.price_usd_per_h.max(1e-9);
            let most = quota.fold(provider.min(paid), f64::min).min(source.launch_limit[0] - launched[source.offer]);
            let share = model.pools[source.pool].serves.iter().find(|(c, _)| *c == k).map_or(1.0, |(_, share)| *share);
            let useful = source.gpus * share * state.fill.max(0.05);
            let nodes = (missing / useful).ceil().min(most.floor()).max(0.0);
            launched[source.offer] += nodes;
            *provider -= nodes;
            budget_left -= nodes * source.price_usd_per_h;
            missing -= nodes * useful;
            for (q, left) in room.iter_mut().enumerate() {
                *left -= nodes * units(q).unwrap_or(0.0);
            }
        }
    }
    launched
}

fn made(input: &PlanInput, model: &Model, launched: &[f64], method: Method) -> Plan {
    let periods = model.periods();
    let mut launches = Vec::new();
    let mut targets = Vec::new();
    for (p, state) in input.offers.iter().enumerate() {
        if launched[p] >= 1.0 {
            launches.push(Launch { offer: state.offer.key.clone(), nodes: launched[p] as u32 });
        }
        let have: f64 = state.nodes.iter().map(|g| f64::from(g.nodes)).sum();
        if launched[p] >= 1.0 || have > 0.0 || !state.arriving_nodes.is_empty() {
            let profile = &model.profiles[p];
            let mut nodes = vec![0.0; periods];
            for t in 0..periods {
                let before = if t == 0 { have } else { nodes[t - 1] * profile.survive[t] };
                let arriving = state.arriving_nodes.get(t).copied().unwrap_or(0.0);
                nodes[t] = before + arriving + launched[p] * profile.arrivals[0][t];
            }
            let mut meant = vec![0.0; periods];
            meant[0] = launched[p];
            targets.push(Target { offer: state.offer.key.clone(), nodes, launches: meant });
        }
    }
    let report = appraise::of_fallback(input, model, &targets, method);
    Plan { epoch: input.epoch, launches, releases: Vec::new(), spare: Vec::new(), targets, report }
}

/// The class's hit-rate quantile over the demand paths of its peak until launches of now have arrived, in GPUs.
fn level_gpus(input: &PlanInput, model: &Model, k: usize) -> f64 {
    let until = (model.first_period[k] + 1).min(model.periods());
    let peak = |path: &Vec<Vec<f64>>| path[..until].iter().map(|row| row[k]).fold(0.0, f64::max);
    let mut peaks: Vec<(f64, f64)> = model.demand_gpus.iter().map(peak).zip(model.weights.iter().copied()).collect();
    peaks.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut below = 0.0;
    for (level, weight) in &peaks {
        below += weight;
        if below >= input.classes[k].hit_rate_target - 1e-9 {
            return *level;
        }
    }
    peaks.last().map_or(0.0, |p| p.0)
}

fn quota_room(input: &PlanInput) -> Vec<f64> {
    let used = |p: usize| {
        let state = &input.offers[p];
        state.nodes.iter().map(|g| f64::from(g.nodes)).sum::<f64>() + state.arriving_nodes.iter().sum::<f64>()
    };
    let room = |q: &crate::input::Quota| q.limit - q.members.iter().map(|&(p, units)| units * used(p)).sum::<f64>();
    input.quotas.iter().map(|q| room(q).max(0.0)).collect()
}

fn launch_room(input: &PlanInput) -> std::collections::BTreeMap<String, f64> {
    let Some(rate) = input.policy.launch_rate_nodes_per_min else {
        return std::collections::BTreeMap::new();
    };
    let limit = rate * f64::from(input.period_s[0]) / 60.0;
    input.offers.iter().map(|o| (o.offer.key.provider.clone(), limit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_levels() {
        assert!((newsvendor_penalty_usd(2.0, 0.99) - 198.0).abs() < 1e-9);
        assert_eq!(poisson_level(10.0, 0.99), Some(18));
        assert_eq!(poisson_level(0.0, 0.99), Some(0));
        assert_eq!(poisson_level(10.0, 1.0), None);
        let level = normal_level(0.1, 0.1, 540.0, 0.0, 60.0, 0.975).expect("valid");
        assert!((level - (60.0 + 1.959_964 * 60.0_f64.sqrt())).abs() < 1e-3, "{level}");
    }
}
