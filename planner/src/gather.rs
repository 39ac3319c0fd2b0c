//! From what is observed to a `PlanInput`: the one way in, for the control plane and for the simulator.

use std::collections::BTreeMap;

use fleet::{Class, Market, Offer, UsdMicros};
use health::rates::Brief;

use crate::base_stock;
use crate::input::{
    Commitment, LeadTime, MissPrice, NodeGroup, OfferState, PlanInput, Policy, Quota, Scenario, starts,
};
use crate::plan::Plan;
use crate::supply::{self, Supply};

/// A node as the planner sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedNode {
    /// Index of its offer.
    pub offer: usize,
    /// Seconds since its launch.
    pub age_s: f64,
    /// Whether it is proven healthy; otherwise it is on its way.
    pub healthy: bool,
    /// Live claims, `(class, claims)`, by class.
    pub claims: Vec<(usize, u32)>,
    /// What claims are expected to lose if it goes with the copies that lie on it. Not money that is paid.
    pub copies_usd_micros: UsdMicros,
}

/// Estimates of one offer's supply at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Nodes that may be launched now.
    pub launch_limit_nodes: f64,
    /// Share of launches that become healthy.
    pub fill: f64,
    /// Launch to healthy.
    pub lead_time: LeadTime,
    /// Losses per node-hour.
    pub hazard_per_h: f64,
    /// Shortest time that is billed, seconds.
    pub min_hold_s: u32,
    /// Share of a node's work that is had of it.
    pub usable_share: f64,
    /// Faults of a node in an hour, among the losses: they cut its claims without a word before.
    pub faults_per_h: f64,
    /// What claims are expected to lose on a launched node until its copies have come. Not money that is paid.
    pub restage_usd_micros: UsdMicros,
}

/// What is assumed of an offer until launches tell more.
#[derive(Debug, Clone, PartialEq)]
pub struct Prior {
    /// Launch to healthy.
    pub lead_time: LeadTime,
    /// Shortest time that is billed, seconds.
    pub min_hold_s: u32,
}

/// Share of launches that is expected to become healthy where nothing is known.
const PRIOR_FILL: f64 = 0.9;

impl Estimate {
    /// The one way from what is known of an offer to its estimate: what was learnt of its supply (nothing, where nobody
    /// launched there), the fill that its provider hints at, how nodes at its place fare, and what is assumed until then.
    #[must_use]
    pub fn of(
        offer: &Offer,
        learnt: Option<&Supply>,
        hinted_fill: Option<f64>,
        health: &Brief,
        prior: &Prior,
        now_s: f64,
    ) -> Self {
        let mut supply = match learnt {
            Some(supply) => supply.clone(),
            None => Supply::new(supply::Rules::default(), now_s, PRIOR_FILL, offer.interruption_per_h),
        };
        supply.published_hazard(offer.interruption_per_h);
        if let Some(fill) = hinted_fill {
            supply.hint(fill);
        }
        Self {
            launch_limit_nodes: supply.launch_limit_nodes(now_s),
            fill: supply.fill(),
            lead_time: supply.lead_time(&prior.lead_time),
            hazard_per_h: supply.hazard_per_h(),
            min_hold_s: prior.min_hold_s,
            usable_share: 1.0,
            faults_per_h: 0.0,
            restage_usd_micros: UsdMicros::ZERO,
        }
        .with_health(offer.gpus_per_node, health)
    }

    /// With what the health of its nodes adds: launches that fail their gate, and nodes that are lost to faults.
    #[must_use]
    pub fn with_health(self, gpus_per_node: u32, health: &Brief) -> Self {
        let faults_per_h = f64::from(gpus_per_node) * health.faults_per_gpu_h.max(0.0);
        Self {
            fill: self.fill * health.boot_pass.clamp(0.0, 1.0),
            hazard_per_h: self.hazard_per_h + faults_per_h,
            faults_per_h,
            usable_share: health.usable_share.clamp(0.01, 1.0),
            ..self
        }
    }
}

/// Claims that would borrow idle GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct Borrower {
    /// Their class.
    pub class: Class,
    /// How many have GPUs or wait for them.
    pub claims: f64,
}

/// What is observed. Shapes: `P` offers, `K` classes, `T` periods.
#[derive(Debug)]
pub struct Observed<'a> {
    /// Number of the plan to make.
    pub epoch: u64,
    /// Lengths of the periods in seconds, `[T]`.
    pub period_s: &'a [u32],
    /// Offers with their present prices, `[P]`.
    pub offers: &'a [Offer],
    /// Their supply, `[P]`.
    pub estimates: &'a [Estimate],
    /// Classes, `[K]`.
    pub classes: &'a [Class],
    /// What a missed claim of each class counts for, `[K]`; without any, its class's own price.
    pub miss_prices: &'a [MissPrice],
    /// Mean life of a claim in seconds, `[K]`.
    pub claim_mean_s: &'a [f64],
    /// Nodes that exist or are on their way.
    pub nodes: &'a [ObservedNode],
    /// Quotas over the offers.
    pub quotas: &'a [Quota],
    /// Commitments over the offers.
    pub commitments: &'a [Commitment],
    /// How risk and stability are weighed.
    pub policy: &'a Policy,
    /// Who would borrow what is idle.
    pub borrowers: &'a [Borrower],
    /// The plan before, and the seconds since it was made.
    pub parent: Option<(&'a Plan, f64)>,
}

/// What the claims that a node's faults cut are worth, an hour: of a full node, at the price of a miss of the dearest class.
fn fault_cost(classes: &[Class], offer: &Offer, faults_per_h: f64) -> UsdMicros {
    let served = classes.iter().filter(|k| fleet::admission::admits_node(offer, k).is_ok());
    let full = |k: &Class| {
        let claims = f64::from(offer.gpus_per_node) / f64::from(k.gpus_per_claim.max(1));
        claims.max(1.0) * k.miss_cost_usd_micros.usd()
    };
    let usd = faults_per_h * served.map(full).fold(0.0, f64::max);
    UsdMicros::from_usd(usd).unwrap_or(UsdMicros::ZERO)
}

/// Offer, claims on each node, inside the minimum billing time.
type GroupKey = (usize, Vec<(usize, u32)>, bool);

/// The planner's input for demand paths `scenarios`.
///
/// Claimed nodes are kept while any of their claims is expected to live (lives are taken as exponential, so that age
/// says nothing); nodes on their way arrive by their lead time given how long they have already waited.
#[must_use]
pub fn plan_input(seen: &Observed, scenarios: Vec<Scenario>) -> PlanInput {
    let start_s = starts(seen.period_s);
    let mut groups: BTreeMap<GroupKey, (u32, Vec<f64>)> = BTreeMap::new();
    let mut arriving = vec![Vec::new(); seen.offers.len()];
    for node in seen.nodes {
        let estimate = &seen.estimates[node.offer];
        if !node.healthy {
            let row: &mut Vec<f64> = &mut arriving[node.offer];
            row.resize(start_s.len(), 0.0);
            for (total, share) in row.iter_mut().zip(arrivals(&estimate.lead_time, node.age_s, &start_s)) {
                *total += estimate.fill * share;
            }
            continue;
        }
        let young = node.age_s < f64::from(estimate.min_hold_s);
        let slot = groups.entry((node.offer, node.claims.clone(), young)).or_default();
        slot.0 += 1;
        slot.1.resize(start_s.len(), 0.0);
        for (total, start) in slot.1.iter_mut().zip(&start_s) {
            let held = young && node.age_s + start < f64::from(estimate.min_hold_s);
            *total += if held { 1.0 } else { still_claimed(&node.claims, seen.claim_mean_s, *start) };
        }
    }
    let mut nodes = vec![Vec::new(); seen.offers.len()];
    for ((offer, claims, _), (count, kept_nodes)) in groups {
        nodes[offer].push(NodeGroup { nodes: count, claims, kept_nodes });
    }
    let targets: BTreeMap<_, _> = seen
        .parent
        .iter()
        .flat_map(|(plan, ago_s)| plan.targets.iter().map(|target| (&target.offer, (target, *ago_s))))
        .collect();
    let spare: BTreeMap<_, Vec<f64>> = seen
        .parent
        .iter()
        .flat_map(|(plan, ago_s)| {
            plan.spare.iter().map(|s| (&s.offer, s.since_s.iter().map(|since| since + *ago_s).collect()))
        })
        .collect();
    let state = |(p, offer): (usize, &Offer)| {
        let estimate = &seen.estimates[p];
        let target = targets.get(&offer.key);
        let boot_usd = offer.price_usd_micros_per_h.usd() * estimate.lead_time.mean_s() / 3600.0;
        OfferState {
            offer: offer.clone(),
            launch_limit_nodes: estimate.launch_limit_nodes,
            fill: estimate.fill,
            lead_time: estimate.lead_time.clone(),
            hazard_per_h: estimate.hazard_per_h,
            usable_share: estimate.usable_share,
            fault_cost_usd_micros_per_h: fault_cost(seen.classes, offer, estimate.faults_per_h),
            launch_cost_usd_micros: UsdMicros::from_usd(boot_usd).unwrap_or(UsdMicros::ZERO),
            restage_usd_micros: estimate.restage_usd_micros,
            min_hold_s: estimate.min_hold_s,
            nodes: std::mem::take(&mut nodes[p]),
            arriving_nodes: std::mem::take(&mut arriving[p]),
            planned_nodes: target.map_or_else(Vec::new, |(t, ago_s)| shifted(&t.launches, *ago_s, seen.period_s)),
            expected_nodes: target.map_or_else(Vec::new, |(t, ago_s)| later(&t.nodes, *ago_s, seen.period_s)),
            spare_s: spare.get(&offer.key).cloned().unwrap_or_default(),
        }
    };
    let mut classes = seen.classes.to_vec();
    let mut miss_prices = seen.miss_prices.to_vec();
    let mut scenarios = scenarios;
    for borrower in seen.borrowers {
        add_borrower(borrower, &mut scenarios);
        classes.push(borrower.class.clone());
        if miss_prices.len() + 1 == classes.len() {
            miss_prices.push(MissPrice::of_borrowers());
        }
    }
    PlanInput {
        epoch: seen.epoch,
        period_s: seen.period_s.to_vec(),
        offers: seen.offers.iter().enumerate().map(state).collect(),
        classes,
        miss_prices,
        scenarios,
        quotas: seen.quotas.to_vec(),
        commitments: seen.commitments.to_vec(),
        // Without a plan before there is nothing to be true to.
        policy: if seen.parent.is_some() {
            seen.policy.clone()
        } else {
            Policy { churn: 0.0, hold: 0.0, ..seen.policy.clone() }
        },
    }
}

/// Who would borrow now would borrow later: as many on every path, in every period.
fn add_borrower(borrower: &Borrower, scenarios: &mut [Scenario]) {
    for scenario in scenarios {
        scenario.claims.iter_mut().for_each(|row| row.push(borrower.claims));
        scenario.new_claims.iter_mut().for_each(|row| row.push(0.0));
    }
}

/// Claims whose node is lost come again, all at once, before it can be replaced: each path asks for room for as many as
/// its place among the paths says (paths are ordered by how high they go), and they count among the new claims.
pub fn add_losses(seen: &Observed, scenarios: &mut [Scenario]) {
    for k in 0..seen.classes.len() {
        let losses = Losses::of(seen, k);
        if losses.rate_per_s <= 0.0 {
            continue;
        }
        let mut below = 0.0;
        for scenario in scenarios.iter_mut() {
            let place = below + 0.5 * scenario.weight;
            below += scenario.weight;
            let lost = losses.quantile(place);
            for (t, period_s) in seen.period_s.iter().enumerate() {
                scenario.claims[t][k] += lost;
                scenario.new_claims[t][k] += losses.rate_per_s * f64::from(*period_s);
            }
        }
    }
}

/// Claims of one class that may be lost within a lead time.
#[derive(Debug, Default)]
struct Losses {
    /// Claims lost a second.
    rate_per_s: f64,
    /// Nodes lost alone, mean of a Poisson count, and the claims of each.
    single: (f64, f64),
    /// Spot offers: probability that the cloud takes them back, and their claims. Machines of one pool go together
    /// (Mao et al. 2025, "SkyServe": preemptions of a zone are correlated).
    pools: Vec<(f64, u32)>,
}

impl Losses {
    fn of(seen: &Observed, k: usize) -> Self {
        let mut losses = Self::default();
        let mut claims_lost = 0.0;
        let mut pools = BTreeMap::new();
        for node in seen.nodes.iter().filter(|n| n.healthy) {
            let Some((_, claims)) = node.claims.iter().find(|c| c.0 == k) else { continue };
            let estimate = &seen.estimates[node.offer];
            losses.rate_per_s += estimate.hazard_per_h / 3600.0 * f64::from(*claims);
            let within = estimate.hazard_per_h * estimate.lead_time.mean_s() / 3600.0;
            if seen.offers[node.offer].key.market == Market::Spot {
                pools.entry(node.offer).or_insert((1.0 - (-within).exp(), 0)).1 += claims;
            } else {
                losses.single.0 += within;
                claims_lost += within * f64::from(*claims);
            }
        }
        losses.single.1 = if losses.single.0 > 0.0 { claims_lost / losses.single.0 } else { 0.0 };
        losses.pools = pools.into_values().collect();
        losses
    }

    /// Claims lost that are exceeded with probability `1 - place` at most.
    fn quantile(&self, place: f64) -> f64 {
        let single = base_stock::poisson_level(self.single.0, place).unwrap_or(0) as f64 * self.single.1;
        // Distribution of the claims in lost pools, coarse where there are very many.
        let total: u32 = self.pools.iter().map(|p| p.1).sum();
        let step = total.div_ceil(LOSS_STEPS).max(1);
        let mut chance = vec![1.0];
        for &(probability, claims) in &self.pools {
            let shift = claims.div_ceil(step) as usize;
            let mut next = vec![0.0; chance.len() + shift];
            for (i, p) in chance.iter().enumerate() {
                next[i] += p * (1.0 - probability);
                next[i + shift] += p * probability;
            }
            chance = next;
        }
        let mut below = 0.0;
        let reached = |p: &f64| {
            below += p;
            below >= place - 1e-12
        };
        let steps = chance.iter().position(reached).unwrap_or(chance.len() - 1);
        single + steps as f64 * f64::from(step)
    }
}

/// Points of a distribution of losses.
const LOSS_STEPS: u32 = 500;

/// Indices of the nodes that a plan gives back: idle ones of its offers, those first whose copies are worth least, and of
/// equals the oldest.
#[must_use]
pub fn nodes_to_release(plan: &Plan, offers: &[Offer], nodes: &[ObservedNode]) -> Vec<usize> {
    let mut all = Vec::new();
    for release in &plan.releases {
        let idle = |n: &ObservedNode| n.healthy && n.claims.is_empty() && offers[n.offer].key == release.offer;
        let mut able: Vec<usize> = (0..nodes.len()).filter(|i| idle(&nodes[*i])).collect();
        let worth = |i: &usize| nodes[*i].copies_usd_micros;
        able.sort_by(|a, b| worth(a).cmp(&worth(b)).then(nodes[*b].age_s.total_cmp(&nodes[*a].age_s)).then(a.cmp(b)));
        all.extend(able.into_iter().take(release.nodes as usize));
    }
    all
}

/// Launches that a plan of `ago_s` seconds ago meant for the periods from now on. Its first period is done; the others
/// are spread evenly over their length.
pub(crate) fn shifted(launches: &[f64], ago_s: f64, period_s: &[u32]) -> Vec<f64> {
    let start = starts(period_s);
    let end = |t: usize| start[t] + f64::from(period_s[t]);
    let part = |t: usize| {
        let overlap = |u: usize| (end(t).min(end(u) - ago_s) - start[t].max(start[u] - ago_s)).max(0.0);
        let each = |u: usize| launches[u].max(0.0) * overlap(u) / f64::from(period_s[u]);
        (1..launches.len().min(period_s.len())).map(each).sum::<f64>()
    };
    (0..period_s.len()).map(part).collect()
}

/// What a plan of `ago_s` seconds ago expected at the start of each of the present periods, from its own `[T]`.
pub(crate) fn later(nodes: &[f64], ago_s: f64, period_s: &[u32]) -> Vec<f64> {
    let start = starts(period_s);
    let of_then =
        |at_s: f64| start.iter().take(nodes.len()).rposition(|s| *s <= at_s + ago_s).map_or(0.0, |u| nodes[u]);
    start.iter().take(period_s.len()).map(|at_s| of_then(*at_s)).collect()
}

/// Share of a launch that has waited `age_s` that is healthy at the start of each period and not before, `[T]`.
pub(crate) fn arrivals(lead: &LeadTime, age_s: f64, start_s: &[f64]) -> Vec<f64> {
    let left = 1.0 - lead.share_by(age_s);
    let mut before = 0.0;
    let mut shares = vec![0.0; start_s.len()];
    for (t, share) in shares.iter_mut().enumerate().skip(1) {
        // Overdue: expected at the next moment.
        let by = if left > 1e-9 { 1.0 - (1.0 - lead.share_by(age_s + start_s[t])) / left } else { 1.0 };
        *share = by - before;
        before = by;
    }
    shares
}

/// Probability that a node with these claims has any of them left after `seconds`.
fn still_claimed(claims: &[(usize, u32)], mean_s: &[f64], seconds: f64) -> f64 {
    let ended = |&(k, count): &(usize, u32)| (1.0 - (-seconds / mean_s[k].max(1.0)).exp()).powi(count as i32);
    1.0 - claims.iter().map(ended).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_conditional_and_counted_once() {
        let lead = LeadTime { cdf: vec![(100.0, 0.0), (300.0, 1.0)] };
        let start = starts(&[60, 60, 60, 300]);
        assert_eq!(start, [0.0, 60.0, 120.0, 180.0]);
        let new = arrivals(&lead, 0.0, &start);
        assert!(new[1] == 0.0 && (new[2] - 0.1).abs() < 1e-9 && (new[3] - 0.3).abs() < 1e-9, "{new:?}");
        let waited = arrivals(&lead, 200.0, &start);
        assert!((waited[1] - 0.6).abs() < 1e-9 && (waited.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{waited:?}");
        let overdue = arrivals(&lead, 900.0, &start);
        assert_eq!(overdue[1], 1.0);
    }

    #[test]
    fn meant_launches_move_with_time() {
        let all = [9.0, 2.0, 6.0];
        assert_eq!(shifted(&all, 60.0, &[60, 60, 120]), [2.0, 3.0, 3.0]);
        assert_eq!(shifted(&all, 30.0, &[60, 60, 120]), [1.0, 2.5, 4.5]);
        assert_eq!(shifted(&all, 900.0, &[60, 60, 120]), [0.0; 3]);
    }

    #[test]
    fn spot_pools_are_lost_whole() {
        let losses = Losses { rate_per_s: 1.0, single: (0.0, 0.0), pools: vec![(0.02, 30), (0.01, 10)] };
        let at = [0.5, 0.965, 0.975, 0.985, 0.9999].map(|q| losses.quantile(q));
        assert_eq!(at, [0.0, 0.0, 10.0, 30.0, 40.0], "{at:?}");
        let many = Losses { pools: vec![(0.5, 100_000); 3], ..losses };
        assert!((many.quantile(0.8) - 200_000.0).abs() <= 1200.0, "{}", many.quantile(0.8));
    }

    #[test]
    fn claims_hold_their_node() {
        assert_eq!(still_claimed(&[], &[60.0], 0.0), 0.0);
        assert_eq!(still_claimed(&[(0, 1)], &[60.0], 0.0), 1.0);
        let one = still_claimed(&[(0, 1)], &[60.0], 60.0);
        assert!((one - (-1.0_f64).exp()).abs() < 1e-12);
        assert!(still_claimed(&[(0, 2)], &[60.0], 60.0) > one);
    }
}
