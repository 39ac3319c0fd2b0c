//! The plan checker: recomputes what a plan promises from the input alone, and trusts no number of the solver.
//!
//! Every plan passes through it before anyone acts on it (CAP-7).

use std::collections::BTreeMap;

use fleet::OfferKey;

use crate::flow::{Flow, Network};
use crate::input::{PlanInput, starts};
use crate::model::Model;
use crate::plan::Plan;

/// A rule that a plan breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Short stable name of the rule.
    pub rule: &'static str,
    /// What and by how much.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// Nodes and GPUs that may differ by rounding.
const TOLERANCE: f64 = 1e-3;

/// All rules that `plan` breaks; `model` must be built from `input`.
#[must_use]
pub fn check(input: &PlanInput, model: &Model, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut fail = |rule, what: String| found.push(Violation { rule, what });
    let index: BTreeMap<&OfferKey, usize> = input.offers.iter().enumerate().map(|(p, o)| (&o.offer.key, p)).collect();
    let periods = input.period_s.len();
    if plan.epoch != input.epoch {
        fail("epoch", format!("plan {} of input {}", plan.epoch, input.epoch));
    }
    let mut launched = vec![0.0; input.offers.len()];
    for launch in &plan.launches {
        match index.get(&launch.offer) {
            Some(&p) => launched[p] += f64::from(launch.nodes),
            None => fail("known-offer", format!("launch at {}", launch.offer)),
        }
    }
    let mut released = vec![0.0; input.offers.len()];
    for release in &plan.releases {
        match index.get(&release.offer) {
            Some(&p) => released[p] += f64::from(release.nodes),
            None => fail("known-offer", format!("release at {}", release.offer)),
        }
    }
    for (p, state) in input.offers.iter().enumerate() {
        let key = &state.offer.key;
        if launched[p] > state.launch_limit_nodes + TOLERANCE {
            fail("launch-limit", format!("{} of {} at {key}", launched[p], state.launch_limit_nodes));
        }
        if launched[p] > 0.0 && model.refusals.contains_key(&p) {
            fail("useful", format!("launch at {key}, which serves no class"));
        }
        if launched[p] > 0.0 && released[p] > 0.0 {
            fail("no-swap", format!("{key} is launched and released at once"));
        }
        let idle = state.nodes.iter().filter(|g| g.claims.is_empty());
        let free: f64 = idle.map(|g| f64::from(g.nodes) - g.kept_nodes.first().copied().unwrap_or(0.0)).sum();
        let free = free + state.arriving_nodes.first().copied().unwrap_or(0.0);
        let spare: usize = plan.spare.iter().filter(|s| s.offer == *key).map(|s| s.since_s.len()).sum();
        if released[p] + spare as f64 > free + TOLERANCE {
            fail("idle-only", format!("{} released and {spare} spare of {free} free at {key}", released[p]));
        }
    }
    check_limits(input, plan, &launched, &released, &mut fail);
    let mut nodes = vec![vec![0.0; periods]; input.offers.len()];
    for target in &plan.targets {
        match index.get(&target.offer) {
            Some(&p) if target.nodes.len() == periods && target.launches.len() == periods => {
                nodes[p].clone_from(&target.nodes);
                check_flow(input, p, target, launched[p], released[p], &mut fail);
            }
            Some(_) => fail("shape", format!("target of {} has not {periods} periods", target.offer)),
            None => fail("known-offer", format!("target at {}", target.offer)),
        }
    }
    for (p, state) in input.offers.iter().enumerate() {
        let kept: f64 = state.nodes.iter().map(|g| g.kept_nodes.first().copied().unwrap_or(0.0)).sum();
        if nodes[p].first().copied().unwrap_or(0.0) < kept - TOLERANCE * (1.0 + kept) {
            fail(
                "kept",
                format!("{}: {kept:.3} nodes cannot be released yet, {:.3} are left", state.offer.key, nodes[p][0]),
            );
        }
    }
    check_promise(model, plan, &nodes, &mut fail);
    found
}

/// Quotas, launch rates and budget as they stand after the actions; what the report admits to exceed may be exceeded.
fn check_limits(
    input: &PlanInput,
    plan: &Plan,
    launched: &[f64],
    released: &[f64],
    fail: &mut impl FnMut(&'static str, String),
) {
    let billed = |p: usize| {
        let state = &input.offers[p];
        let have: f64 = state.nodes.iter().map(|g| f64::from(g.nodes)).sum();
        have + state.arriving_nodes.iter().sum::<f64>() - released[p]
    };
    for (q, quota) in input.quotas.iter().enumerate() {
        let used: f64 = quota.members.iter().map(|&(p, units)| units * (billed(p) + launched[p])).sum();
        let admitted = plan.report.quota_excess_units.get(q).copied().unwrap_or(0.0);
        if used > quota.limit + admitted + TOLERANCE * (1.0 + used) {
            fail("quota", format!("{}: {used:.2} of {}", quota.name, quota.limit));
        }
    }
    if let Some(budget) = input.policy.budget_usd_micros_per_h {
        // Commitments are paid already; what exists cannot be helped: only launches may not pass the budget.
        let price = |p: usize| input.offers[p].offer.price_usd_micros_per_h.usd();
        let committed: f64 = input
            .commitments
            .iter()
            .map(|c| c.nodes.first().copied().unwrap_or(0.0) * c.offers.iter().map(|p| price(*p)).fold(0.0, f64::max))
            .sum();
        let all = 0..input.offers.len();
        let new: f64 = all.clone().map(|p| price(p) * launched[p]).sum();
        let spend: f64 = all.map(|p| price(p) * billed(p)).sum::<f64>() + new - committed;
        if new > 0.0 && spend > budget.usd() * (1.0 + TOLERANCE) + TOLERANCE {
            fail("budget", format!("${spend:.2}/h with the launches, of ${:.2}/h", budget.usd()));
        }
    }
    if let Some(rate) = input.policy.launch_rate_nodes_per_min {
        let mut by_provider: BTreeMap<&str, f64> = BTreeMap::new();
        for (p, count) in launched.iter().enumerate() {
            *by_provider.entry(&input.offers[p].offer.key.provider).or_default() += count;
        }
        let limit = rate * f64::from(input.period_s[0]) / 60.0;
        for (provider, count) in by_provider.into_iter().filter(|(_, count)| *count > limit + TOLERANCE) {
            fail("launch-rate", format!("{count} launches at {provider}, limit {limit}"));
        }
    }
}

/// No node comes from nowhere: targets are at most what survives, what arrives, and what was launched.
fn check_flow(
    input: &PlanInput,
    p: usize,
    target: &crate::plan::Target,
    launched: f64,
    released: f64,
    fail: &mut impl FnMut(&'static str, String),
) {
    let state = &input.offers[p];
    let starts = starts(&input.period_s);
    if (target.launches[0] - launched).abs() > TOLERANCE {
        fail("whole", format!("{} means {} launches now, not {launched}", target.offer, target.launches[0]));
    }
    let have: f64 = state.nodes.iter().map(|g| f64::from(g.nodes)).sum();
    for (t, start) in starts.iter().enumerate() {
        let survive = if t == 0 { 1.0 } else { (-state.hazard_per_h * (start - starts[t - 1]) / 3600.0).exp() };
        let before = if t == 0 { have - released } else { target.nodes[t - 1] };
        let mut arriving = state.arriving_nodes.get(t).copied().unwrap_or(0.0);
        for u in 0..t {
            let by = |at: f64| {
                if at > starts[u] { state.lead_time.share_by(at - starts[u]) } else { 0.0 }
            };
            arriving += target.launches[u] * state.fill * (by(*start) - by(starts[t - 1]));
        }
        let most = before * survive + arriving;
        // The solver leaves numbers of its own tolerance below zero.
        if target.nodes[t] < -TOLERANCE || target.launches[t] < -TOLERANCE {
            fail("flow", format!("{} has {} nodes in period {t}", target.offer, target.nodes[t]));
            return;
        }
        if target.nodes[t] > most + TOLERANCE * (1.0 + most.abs()) {
            fail("flow", format!("{} has {:.3} nodes in period {t}, at most {most:.3}", target.offer, target.nodes[t]));
            return;
        }
    }
}

/// The plan may not promise more than its nodes can serve.
fn check_promise(model: &Model, plan: &Plan, nodes: &[Vec<f64>], fail: &mut impl FnMut(&'static str, String)) {
    let network = Network::new(model.groups.iter().map(|g| g.pools.clone()).collect(), model.pools.len());
    let by_group = |demand: &[f64]| {
        let mut sums = vec![0.0; model.groups.len()];
        demand.iter().zip(&model.group_of).for_each(|(gpus, g)| sums[*g] += gpus);
        sums
    };
    for t in 0..model.periods() {
        let mut gpus: Vec<f64> = model.pools.iter().map(|p| p.fixed_gpus[t]).collect();
        for source in &model.sources {
            gpus[source.pool] += ((nodes[source.offer][t] - source.claimed[t]) * source.gpus).max(0.0);
        }
        let mut flow = Flow::new(&network, &gpus);
        let mut least = 0.0;
        for (path, weight) in model.demand_gpus.iter().zip(&model.weights) {
            flow.reset();
            let lack = |(g, gpus): (usize, &f64)| flow.serve(g, *gpus);
            least += weight * by_group(&path[t]).iter().enumerate().map(lack).sum::<f64>();
        }
        let claimed: f64 =
            plan.report.classes.iter().enumerate().map(|(k, c)| c.expected_misses[t] * model.claim_gpus[k]).sum();
        for (k, class) in plan.report.classes.iter().enumerate().take(model.claim_gpus.len()) {
            let able: f64 = model.groups[model.group_of[k]].pools.iter().map(|&(p, share)| share * gpus[p]).sum();
            let least: f64 =
                model.weights.iter().enumerate().map(|(s, w)| w * (model.demand_gpus[s][t][k] - able).max(0.0)).sum();
            let told = class.expected_misses[t] * model.claim_gpus[k];
            if told < least - TOLERANCE * (1.0 + least) {
                fail(
                    "promise",
                    format!("period {t}: {} must miss {least:.3} GPUs, the report says {told:.3}", class.class),
                );
            }
        }
        if plan.report.classes.len() != model.claim_gpus.len() || claimed < least - TOLERANCE * (1.0 + least) {
            fail("promise", format!("period {t}: {least:.3} GPUs must be missed, the report says {claimed:.3}"));
        }
    }
}
