//! The linear program, as data: what `decompose` solves, `extensive` writes out and `check` verifies.
//!
//! Formulation (symbols as in docs/ARCHITECTURE.md, "The linear program"). Capacity is decided once for all demand
//! paths (the next plan comes in a minute); what each path misses is recourse. Every source of nodes `i` has launches
//! `x_it` and nodes `n_it`; nodes of sources that serve the same classes and are lost together form a pool.

use std::collections::BTreeMap;
use std::rc::Rc;

use fleet::{Market, Refusal};

use crate::flow::Network;
use crate::input::{DomainLevel, PlanInput, SpreadBy};
use crate::keys::{Block, DomainId};
use crate::serves::{fragment_serves, whole_node_serves};
use crate::source::{Profile, Source};

/// Which classes a pool serves, and how much of it each can use.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// `(class, share of the pool's GPUs that it can use)`, by class.
    pub serves: Vec<(usize, f64)>,
    /// Domain that is lost as one, where N-1 is asked for.
    pub domain: Option<usize>,
}

/// The problem of one plan: pools of sources, demand by path, and what limits them.
#[derive(Debug, Clone)]
pub struct Model {
    /// Lengths in hours, `[T]`.
    pub hours: Vec<f64>,
    /// Start of each period in seconds, `[T+1]`.
    pub start_s: Vec<f64>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Sources.
    pub sources: Vec<Source>,
    /// Profile of each offer.
    pub profiles: Vec<Rc<Profile>>,
    /// Sources of each pool.
    pub pool_sources: Vec<Vec<usize>>,
    /// Names of the domains that N-1 loses one at a time.
    pub domains: Vec<String>,
    /// GPUs of a claim, `[K]`.
    pub claim_gpus: Vec<f64>,
    /// Missed claims for each claim that is without GPUs in a period, `[T][K]`: whoever finds none goes without until a
    /// launch of that moment arrives or the claim ends, over several short periods, and is missed once.
    pub miss_share: Vec<Vec<f64>>,
    /// Dollars for a claim without GPUs in a period, `[T][K]`.
    pub miss_usd: Vec<Vec<f64>>,
    /// Targets, `[K]`.
    pub hit_rate_target: Vec<f64>,
    /// Demand in GPUs, `[S][T][K]`.
    pub demand_gpus: Vec<Vec<Vec<f64>>>,
    /// Weights, `[S]`.
    pub weights: Vec<f64>,
    /// Demand in GPUs that must be covered when a domain is lost, `[T][K]`; empty without N-1.
    pub outage_gpus: Vec<Vec<f64>>,
    /// Units of each quota that launches already on their way leave, `[Q][T]`.
    pub quota_left: Vec<Vec<f64>>,
    /// Whether nodes that exist or are on their way exceed it, `[Q][T]`: nothing of it can be launched then.
    pub quota_full: Vec<Vec<bool>>,
    /// Dollars an hour of the budget that they leave, `[T]`; empty without a budget.
    pub budget_left_usd_per_h: Vec<f64>,
    /// Claims without GPUs that the target allows, mean over the paths, `[T][K]`.
    pub allowed_misses: Vec<Vec<f64>>,
    /// Period by which half of what can be launched now is healthy, `[K]`. Before it the past has decided, and the
    /// target asks for no more than what keeping every node gives.
    pub first_period: Vec<usize>,
    /// Share of launches of now that has arrived at the start of each period, `[K][T]`.
    pub arrived_share: Vec<Vec<f64>>,
    /// Penalty for a missed claim beyond the target, dollars, `[T][K]`.
    pub target_penalty_usd: Vec<Vec<f64>>,
    /// Penalty for a GPU of the outage demand that is not covered, dollars, `[T][K]`.
    pub outage_penalty_usd: Vec<Vec<f64>>,
    /// Spread rows.
    pub spreads: Vec<SpreadRow>,
    /// Why each offer serves no class, where it serves none.
    pub refusals: BTreeMap<usize, Refusal>,
}

/// Classes with the bits of their shares, and the domain.
type PoolKey = (Vec<(usize, u64)>, Option<usize>);

/// Penalty for one unit over a quota, dollars.
pub const QUOTA_PENALTY_USD: f64 = 1e5;
/// Penalty for one dollar an hour over budget.
pub const BUDGET_PENALTY_USD: f64 = 2e4;
/// Launches and nodes smaller than this are zero.
pub const EPS: f64 = 1e-6;

/// `Σ_{member} g n − share · Σ_{all} g n ≤ slack`, for each period.
#[derive(Debug, Clone)]
pub struct SpreadRow {
    /// Shown in reports.
    pub name: String,
    /// Class whose sources are meant.
    pub class: usize,
    /// Largest share.
    pub max_share: f64,
    /// Sources in the group.
    pub members: Vec<usize>,
    /// Sources that serve the class.
    pub all: Vec<usize>,
    /// Penalty for one GPU too many in one period, dollars, `[T]`.
    pub penalty_usd: Vec<f64>,
}

/// The domain of an offer at a level, as shown to people.
#[must_use]
pub fn domain_name(offer: &fleet::Offer, level: DomainLevel) -> String {
    let key = &offer.key;
    match level {
        DomainLevel::Provider => key.provider.clone(),
        DomainLevel::Region => format!("{}/{}", key.provider, key.region),
        DomainLevel::Zone if key.zone.is_empty() => format!("{}/{}", key.provider, key.region),
        DomainLevel::Zone => format!("{}/{}", key.provider, key.zone),
    }
}

impl Model {
    /// Builds it. The input must have passed [`crate::validate::problems`].
    #[must_use]
    pub fn build(input: &PlanInput) -> Self {
        let mut start_s = vec![0.0];
        for length in &input.period_s {
            start_s.push(start_s[start_s.len() - 1] + f64::from(*length));
        }
        let mut model = Self {
            hours: input.period_s.iter().map(|s| f64::from(*s) / 3600.0).collect(),
            start_s,
            pools: Vec::new(),
            sources: Vec::new(),
            profiles: Vec::new(),
            pool_sources: Vec::new(),
            domains: Vec::new(),
            claim_gpus: input.classes.iter().map(|k| f64::from(k.gpus_per_claim)).collect(),
            miss_share: Vec::new(),
            miss_usd: Vec::new(),
            hit_rate_target: input.classes.iter().map(|k| k.hit_rate_target).collect(),
            demand_gpus: Vec::new(),
            weights: input.scenarios.iter().map(|s| s.weight).collect(),
            outage_gpus: Vec::new(),
            quota_left: Vec::new(),
            quota_full: Vec::new(),
            budget_left_usd_per_h: Vec::new(),
            allowed_misses: Vec::new(),
            first_period: Vec::new(),
            arrived_share: Vec::new(),
            target_penalty_usd: Vec::new(),
            outage_penalty_usd: Vec::new(),
            spreads: Vec::new(),
            refusals: BTreeMap::new(),
        };
        model.add_limits(input);
        model.add_profiles(input);
        model.add_sources(input);
        model.add_demand(input);
        model.add_penalties(input);
        model.add_spreads(input);
        model.allow_the_past();
        model
    }

    /// Whether the hit-rate target of class `k` is a row in period `t`. A target of 0 asks for nothing.
    #[must_use]
    pub fn has_target(&self, k: usize, t: usize) -> bool {
        self.hit_rate_target[k] > 0.0 && t < self.periods()
    }

    /// Number of blocks: demand paths, then lost domains.
    #[must_use]
    pub fn blocks(&self) -> usize {
        let outages = if self.outage_gpus.is_empty() { 0 } else { self.domains.len() };
        self.weights.len() + outages
    }

    /// The domain that a block loses.
    #[must_use]
    pub fn lost_domain(&self, block: Block) -> Option<DomainId> {
        block.0.checked_sub(self.weights.len()).map(DomainId)
    }

    /// Demand of a block in GPUs, `[K]`.
    #[must_use]
    pub fn demand(&self, block: Block, t: usize) -> &[f64] {
        self.demand_gpus.get(block.0).map_or_else(|| &self.outage_gpus[t], |path| &path[t])
    }

    /// Whether a pool's nodes are there in a block.
    #[must_use]
    pub fn is_there(&self, pool: usize, block: Block) -> bool {
        self.lost_domain(block).is_none_or(|lost| self.pools[pool].domain != Some(lost.0))
    }

    /// Missed claims, mean over the demand paths, `[T][K]`, with `gpus` of each pool `[T][pools]`, when classes are served
    /// in their order.
    #[must_use]
    pub fn missed_claims(&self, gpus: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let classes = self.claim_gpus.len();
        let order: Vec<usize> = (0..classes).collect();
        let mut missed = vec![vec![0.0; classes]; self.periods()];
        for (t, row) in missed.iter_mut().enumerate() {
            let pools = gpus[t].iter().zip(&self.pools).map(|(gpus, pool)| (*gpus, pool.serves.as_slice()));
            let network = Network::new(classes, pools);
            for (path, weight) in self.weights.iter().enumerate() {
                let (_, short) = network.short_sets(self.demand(Block(path), t), &order);
                let claims = row.iter_mut().zip(&short).zip(&self.claim_gpus);
                claims.for_each(|((missed, short), gpus)| *missed += weight * short / gpus);
            }
        }
        missed
    }

    /// Number of periods.
    #[must_use]
    pub fn periods(&self) -> usize {
        self.hours.len()
    }

    /// Length of the horizon in hours.
    #[must_use]
    pub fn horizon_h(&self) -> f64 {
        self.hours.iter().sum()
    }

    /// Launches of the past that are still on their way count against quotas and budget until they arrive. No cloud
    /// ends nodes because a quota shrank: what exists above a quota may stay, and nothing is launched beside it.
    fn add_limits(&mut self, input: &PlanInput) {
        let periods = self.periods();
        let pipe = |p: usize, t: usize| input.offers[p].arriving_nodes.iter().skip(t + 1).sum::<f64>();
        let have = |p: usize, t: usize| {
            let state = &input.offers[p];
            let nodes: f64 = state.nodes.iter().map(|g| f64::from(g.nodes)).sum();
            nodes + state.arriving_nodes.iter().take(t + 1).sum::<f64>()
        };
        for quota in &input.quotas {
            let sum = |of: &dyn Fn(usize) -> f64| quota.members.iter().map(|&(p, units)| units * of(p)).sum::<f64>();
            let left = |t: usize| (quota.limit - sum(&|p| pipe(p, t))).max(sum(&|p| have(p, t)));
            self.quota_left.push((0..periods).map(left).collect());
            let full = |t: &usize| sum(&|p| have(p, *t) + pipe(p, *t)) > quota.limit + EPS;
            self.quota_full.push((0..periods).map(|t| full(&t)).collect());
        }
        if let Some(budget) = input.policy.budget_usd_micros_per_h {
            let price = |p: usize| input.offers[p].offer.price_usd_micros_per_h.usd();
            let billed = |t: usize| (0..input.offers.len()).map(|p| price(p) * pipe(p, t)).sum::<f64>();
            self.budget_left_usd_per_h = (0..periods).map(|t| budget.usd() - billed(t)).collect();
        }
    }

    fn add_profiles(&mut self, input: &PlanInput) {
        let mut known = BTreeMap::new();
        for state in &input.offers {
            let points = state.lead_time.cdf.iter().flat_map(|p| [p.0.to_bits(), p.1.to_bits()]);
            let mut key: Vec<u64> = vec![state.fill.to_bits(), state.hazard_per_h.to_bits(), state.min_hold_s.into()];
            key.extend(points);
            let profile = known.entry(key).or_insert_with(|| Rc::new(Profile::of(state, &self.start_s, &self.hours)));
            self.profiles.push(Rc::clone(profile));
        }
    }

    fn add_sources(&mut self, input: &PlanInput) {
        let caps: Vec<fleet::Caps> =
            input.classes.iter().map(|k| fleet::Caps::resolve(k, input.offers.iter().map(|o| &o.offer))).collect();
        let level = input.policy.survive.map(|s| s.level);
        let mut domains = BTreeMap::new();
        let mut pools = BTreeMap::new();
        for (p, state) in input.offers.iter().enumerate() {
            let domain = level.map(|l| {
                let name = domain_name(&state.offer, l);
                *domains.entry(name.clone()).or_insert_with(|| {
                    self.domains.push(name);
                    self.domains.len() - 1
                })
            });
            let (serves, refusal) = whole_node_serves(input, p, &caps);
            let owned = state.nodes.iter().any(|g| g.claims.is_empty() && g.nodes > 0)
                || state.arriving_nodes.iter().any(|a| *a > 0.0);
            if serves.is_empty() {
                self.refusals.extend(refusal.map(|r| (p, r)));
            }
            if !serves.is_empty() || owned {
                let pool = self.intern(&mut pools, serves, domain);
                let source = self.offer_source(input, p, pool);
                self.push_source(source);
            }
            for (g, group) in state.nodes.iter().enumerate().filter(|(_, g)| !g.claims.is_empty() && g.nodes > 0) {
                let pool = self.intern(&mut pools, fragment_serves(input, p, &group.claims), domain);
                let source = self.group_source(input, p, g, pool);
                self.push_source(source);
            }
        }
    }

    fn intern(
        &mut self,
        pools: &mut BTreeMap<PoolKey, usize>,
        serves: Vec<(usize, f64)>,
        domain: Option<usize>,
    ) -> usize {
        let key = (serves.iter().map(|&(k, e)| (k, e.to_bits())).collect(), domain);
        *pools.entry(key).or_insert_with(|| {
            self.pools.push(Pool { serves, domain });
            self.pool_sources.push(Vec::new());
            self.pools.len() - 1
        })
    }

    fn push_source(&mut self, source: Source) {
        self.pool_sources[source.pool].push(self.sources.len());
        self.sources.push(source);
    }

    fn offer_source(&self, input: &PlanInput, p: usize, pool: usize) -> Source {
        let state = &input.offers[p];
        let periods = self.periods();
        let mut source = self.bare_source(input, p, None, pool);
        let idle = state.nodes.iter().filter(|g| g.claims.is_empty());
        for group in idle {
            source.appear[0] += f64::from(group.nodes);
            for (t, kept) in group.kept_nodes.iter().enumerate() {
                source.kept[t] += kept;
            }
        }
        for (t, arriving) in state.arriving_nodes.iter().enumerate() {
            source.appear[t] += arriving;
        }
        let no_launch = self.pools[pool].serves.is_empty() || state.fill == 0.0 || state.launch_limit_nodes == 0.0;
        let reaches = |t: &usize| source.profile.arrivals[*t].iter().any(|a| *a > 0.0);
        if !no_launch {
            let launch_end = (0..periods).take_while(reaches).count();
            source.launch_end = launch_end;
            source.launch_limit[..source.launch_end].fill(state.launch_limit_nodes);
            for (quota, full) in input.quotas.iter().zip(&self.quota_full) {
                if quota.members.iter().any(|(m, _)| *m == p) {
                    let exceeded = source.launch_limit.iter_mut().zip(full).filter(|(_, full)| **full);
                    exceeded.for_each(|(limit, _)| *limit = 0.0);
                }
            }
            let planned = state.planned_nodes.iter().take(source.launch_end).enumerate();
            planned.for_each(|(t, v)| source.planned[t] = v.min(source.launch_limit[t]));
        }
        source.clip_kept();
        let arrives =
            |t: &usize| source.appear[*t] > 0.0 || source.launch_end > 0 && source.profile.arrivals[0][*t] > 0.0;
        source.first = (0..periods).find(arrives).unwrap_or(periods);
        source
    }

    fn group_source(&self, input: &PlanInput, p: usize, g: usize, pool: usize) -> Source {
        let group = &input.offers[p].nodes[g];
        let mut source = self.bare_source(input, p, Some(g), pool);
        source.appear[0] = f64::from(group.nodes);
        source.kept[..group.kept_nodes.len()].copy_from_slice(&group.kept_nodes);
        source.clip_kept();
        source
    }

    fn bare_source(&self, input: &PlanInput, p: usize, group: Option<usize>, pool: usize) -> Source {
        let state = &input.offers[p];
        let periods = self.periods();
        Source {
            offer: p,
            group,
            pool,
            gpus: f64::from(state.offer.gpus_per_node),
            price_usd_per_h: state.offer.price_usd_micros_per_h.usd(),
            cost_usd_per_h: state.offer.price_usd_micros_per_h.usd() / state.usable_share
                + state.fault_cost_usd_micros_per_h.usd(),
            appear: vec![0.0; periods],
            kept: vec![0.0; periods],
            profile: Rc::clone(&self.profiles[p]),
            launch_limit: vec![0.0; periods],
            // At least a second of the node, so that launching for nothing is never free.
            launch_cost_usd: state.launch_cost_usd_micros.usd().max(state.offer.price_usd_micros_per_h.usd() / 3600.0),
            planned: vec![0.0; periods],
            first: 0,
            launch_end: 0,
        }
    }

    fn add_demand(&mut self, input: &PlanInput) {
        let gpus = &self.claim_gpus;
        let scale = |row: &Vec<f64>| row.iter().zip(gpus).map(|(d, g)| d * g).collect::<Vec<_>>();
        self.demand_gpus = input.scenarios.iter().map(|s| s.claims.iter().map(scale).collect()).collect();
        let classes = gpus.len();
        for t in 0..self.periods() {
            let mut allowed = vec![0.0; classes];
            let mut mean = vec![0.0; classes];
            for scenario in &input.scenarios {
                for k in 0..classes {
                    let miss_share = 1.0 - input.classes[k].hit_rate_target;
                    allowed[k] += scenario.weight * miss_share * scenario.new_claims[t][k];
                    mean[k] += scenario.weight * scenario.claims[t][k] * self.claim_gpus[k];
                }
            }
            self.allowed_misses.push(allowed);
            if let Some(survive) = input.policy.survive {
                self.outage_gpus.push(mean.iter().map(|d| d * survive.share).collect());
            }
        }
    }

    /// Penalties are far above what meeting the target can cost, and in the order target > outage > spread.
    fn add_penalties(&mut self, input: &PlanInput) {
        let periods = self.periods();
        let classes = input.classes.len();
        let weight_min = self.weights.iter().copied().fold(1.0, f64::min);
        let mut gpu_h = vec![0.0_f64; classes];
        let mut busy_h = vec![0.0_f64; classes];
        let mut arriving: Vec<Vec<f64>> = vec![vec![0.0; periods]; classes];
        for source in self.sources.iter().filter(|s| s.launch_end > 0 || s.must_be_modelled()) {
            let state = &input.offers[source.offer];
            let node_h =
                (source.launch_cost_usd / source.price_usd_per_h.max(1e-6)).max(f64::from(state.min_hold_s) / 3600.0);
            for &(k, share) in &self.pools[source.pool].serves {
                gpu_h[k] = gpu_h[k].max(source.cost_usd_per_h / source.gpus / share / state.fill.max(0.05));
                busy_h[k] = busy_h[k].max(node_h);
                for (t, arrivals) in source.profile.arrivals[0].iter().enumerate() {
                    arriving[k][t] += source.launch_limit[0] * source.gpus * arrivals;
                }
            }
        }
        self.arrived_share = arriving.iter().map(|a| arrived_share(a)).collect();
        let half = |shares: &Vec<f64>| shares.iter().position(|s| *s >= 0.5).unwrap_or(shares.len());
        self.first_period = self.arrived_share.iter().map(half).collect();
        self.count_misses_once(input);
        // Nothing can be done about a loss before launches arrive.
        for (t, row) in self.outage_gpus.iter_mut().enumerate() {
            row.iter_mut().zip(&self.first_period).filter(|(_, first)| t < **first).for_each(|(gpus, _)| *gpus = 0.0);
        }
        for t in 0..periods {
            let hold: Vec<f64> = (0..classes).map(|k| gpu_h[k].max(0.01) * (self.hours[t] + busy_h[k])).collect();
            let target = (0..classes).map(|k| 5.0 * hold[k] * self.claim_gpus[k] / weight_min);
            self.target_penalty_usd.push(target.collect());
            self.outage_penalty_usd.push(hold.iter().map(|h| 5.0 * h).collect());
        }
    }

    /// A claim without GPUs in one short period is a part of a miss: costs and targets are of whole misses.
    fn count_misses_once(&mut self, input: &PlanInput) {
        // Mean lead time of the offers that serve each class, whether or not they can be launched now.
        let mut leads = vec![(0.0_f64, 0.0_f64); self.claim_gpus.len()];
        for source in self.sources.iter().filter(|s| s.group.is_none()) {
            for &(k, _) in &self.pools[source.pool].serves {
                leads[k].0 += input.offers[source.offer].lead_time.mean_s();
                leads[k].1 += 1.0;
            }
        }
        for t in 0..self.periods() {
            let length_s = self.hours[t] * 3600.0;
            let mean = |of: fn(&crate::input::Scenario) -> &Vec<Vec<f64>>, k: usize| -> f64 {
                input.scenarios.iter().map(|s| s.weight * of(s)[t][k]).sum()
            };
            let share = |k: usize| {
                // Nobody goes without for longer than a claim lives (Little 1961: number over rate).
                let life_s = length_s * mean(|s| &s.claims, k) / mean(|s| &s.new_claims, k).max(1e-9);
                let without_s = (leads[k].0 / leads[k].1.max(1.0)).min(life_s);
                (length_s / without_s.max(length_s)).min(1.0)
            };
            let row: Vec<f64> = (0..self.claim_gpus.len()).map(share).collect();
            self.miss_usd.push(input.classes.iter().zip(&row).map(|(k, s)| k.miss_cost_usd_micros.usd() * s).collect());
            self.allowed_misses[t].iter_mut().zip(&row).for_each(|(allowed, share)| *allowed /= share);
            self.miss_share.push(row);
        }
    }

    /// Before launches of now have all arrived, the target allows that share of the misses that remain when every node
    /// is kept. Without it, launching more than is needed would be the only way to keep the target early, and what is too
    /// much would then stand idle (the inventory position counts what is on its way; Scarf 1960).
    fn allow_the_past(&mut self) {
        let mut gpus = vec![vec![0.0; self.pools.len()]; self.periods()];
        for source in &self.sources {
            let mut alive = 0.0;
            for (t, row) in gpus.iter_mut().enumerate() {
                alive = alive * source.profile.survive[t] + source.appear[t];
                row[source.pool] += alive * source.gpus;
            }
        }
        let least = self.missed_claims(&gpus);
        for (t, allowed) in self.allowed_misses.iter_mut().enumerate() {
            for (k, allowed) in allowed.iter_mut().enumerate() {
                let arrived = if t < self.first_period[k] { 0.0 } else { self.arrived_share[k][t] };
                *allowed = allowed.max(arrived * *allowed + (1.0 - arrived) * least[t][k]);
            }
        }
    }

    fn add_spreads(&mut self, input: &PlanInput) {
        for spread in &input.policy.spread {
            let serves = |s: &Source| self.pools[s.pool].serves.iter().any(|(k, _)| *k == spread.class);
            let all: Vec<usize> = (0..self.sources.len()).filter(|i| serves(&self.sources[*i])).collect();
            let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for &i in &all {
                let offer = &input.offers[self.sources[i].offer].offer;
                let name = match spread.by {
                    SpreadBy::Provider => domain_name(offer, DomainLevel::Provider),
                    SpreadBy::Region => domain_name(offer, DomainLevel::Region),
                    SpreadBy::Zone => domain_name(offer, DomainLevel::Zone),
                    SpreadBy::Spot if offer.key.market == Market::Spot => "spot".to_owned(),
                    SpreadBy::Spot => continue,
                };
                groups.entry(name).or_default().push(i);
            }
            for (name, members) in groups {
                let penalty = (0..self.periods()).map(|t| 0.2 * self.outage_penalty_usd[t][spread.class]);
                self.spreads.push(SpreadRow {
                    name: format!("{} in {name}", input.classes[spread.class].name),
                    class: spread.class,
                    max_share: spread.max_share,
                    members,
                    all: all.clone(),
                    penalty_usd: penalty.collect(),
                });
            }
        }
    }
}

/// Share of all arrivals that has come by each period; 0 when nothing comes.
fn arrived_share(arrivals: &[f64]) -> Vec<f64> {
    let total: f64 = arrivals.iter().sum();
    let mut come = 0.0;
    let mut by = |a: &f64| {
        come += a;
        if total > 0.0 { (come / total).min(1.0) } else { 0.0 }
    };
    arrivals.iter().map(&mut by).collect()
}
