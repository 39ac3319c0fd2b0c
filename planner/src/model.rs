//! The linear program, as data: what `decompose` solves, `extensive` writes out and `check` verifies.
//!
//! Formulation (symbols as in docs/ARCHITECTURE.md, "The linear program"). Capacity is decided once for all demand
//! paths (the next plan comes in a minute); what each path misses is recourse. Every source of nodes `i` has launches
//! `x_it` and nodes `n_it`; idle nodes of sources that serve the same classes and are lost together form a pool.
//! Claims stay where they are: they are demand that is met, and what is left of their nodes is a pool of its own.

use std::collections::BTreeMap;
use std::rc::Rc;

use fleet::{Market, Refusal};

use crate::input::{DomainLevel, NodeGroup, PlanInput, SpreadBy};
use crate::keys::{Block, DomainId};
use crate::serves::{claimed_gpus, free_part_serves, whole_node_serves};
use crate::source::{Profile, Source};

/// Which classes a pool serves, and how much of it each can use.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// `(class, share of the pool's GPUs that it can use)`, by class.
    pub serves: Vec<(usize, f64)>,
    /// Domain that is lost as one, where N-1 is asked for.
    pub domain: Option<usize>,
    /// GPUs that partly claimed nodes have left, whatever is decided, `[T]`.
    pub fixed_gpus: Vec<f64>,
}

/// Classes that the same pools serve alike: one demand with several prices. What they can use of a pool, they can use
/// together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Classes.
    pub classes: Vec<usize>,
    /// `(pool, share of its GPUs that they can use)`, by pool.
    pub pools: Vec<(usize, f64)>,
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
    /// Groups of classes.
    pub groups: Vec<Group>,
    /// Group of each class, `[K]`.
    pub group_of: Vec<usize>,
    /// Names of the domains that N-1 loses one at a time.
    pub domains: Vec<String>,
    /// GPUs of a claim, `[K]`.
    pub claim_gpus: Vec<f64>,
    /// Missed claims for each claim that is without GPUs in a period, `[T][K]`: whoever finds none goes without until a
    /// launch of that moment arrives or the claim ends, over several short periods, and is missed once.
    pub miss_share: Vec<Vec<f64>>,
    /// Dollars for a claim without GPUs in a period at the price of a miss, `[T][K]`.
    pub miss_usd: Vec<Vec<f64>>,
    /// Demand in GPUs beside what claims have where they are, `[S][T][K]`.
    pub demand_gpus: Vec<Vec<Vec<f64>>>,
    /// Weights, `[S]`.
    pub weights: Vec<f64>,
    /// Demand in GPUs that must be covered when a domain is lost, beside what claims have elsewhere, `[domains][T][K]`;
    /// empty without N-1.
    pub outage_gpus: Vec<Vec<Vec<f64>>>,
    /// Units of each quota that launches already on their way leave, `[Q][T]`.
    pub quota_left: Vec<Vec<f64>>,
    /// Whether nodes that exist or are on their way exceed it, `[Q][T]`: nothing of it can be launched then.
    pub quota_full: Vec<Vec<bool>>,
    /// Dollars an hour of the budget that they leave, `[T]`; empty without a budget.
    pub budget_left_usd_per_h: Vec<f64>,
    /// Period by which half of what can be launched now is healthy, `[K]`. Before it the past has decided.
    pub first_period: Vec<usize>,
    /// Penalty for a GPU of the outage demand that is not covered, dollars, `[T][K]`.
    pub outage_penalty_usd: Vec<Vec<f64>>,
    /// Spread rows.
    pub spreads: Vec<SpreadRow>,
    /// Why each offer serves no class, where it serves none.
    pub refusals: BTreeMap<usize, Refusal>,
}

/// Classes with the bits of their shares, and the domain.
type PoolKey = (Vec<(usize, u64)>, Option<usize>);

/// GPUs that claims have, `[T][K]`, by the domain that they are lost with.
type Placed = BTreeMap<Option<usize>, Vec<Vec<f64>>>;

/// Penalty for one unit over a quota, dollars.
pub const QUOTA_PENALTY_USD: f64 = 1e5;
/// Penalty for one dollar an hour over budget.
pub const BUDGET_PENALTY_USD: f64 = 2e4;
/// Share of a GPU's price that lending it counts for at most.
const LENT_SHARE: f64 = 0.95;
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
            groups: Vec::new(),
            group_of: vec![0; input.classes.len()],
            domains: Vec::new(),
            claim_gpus: input.classes.iter().map(|k| f64::from(k.gpus_per_claim)).collect(),
            miss_share: Vec::new(),
            miss_usd: Vec::new(),
            demand_gpus: Vec::new(),
            weights: input.scenarios.iter().map(|s| s.weight).collect(),
            outage_gpus: Vec::new(),
            quota_left: Vec::new(),
            quota_full: Vec::new(),
            budget_left_usd_per_h: Vec::new(),
            first_period: Vec::new(),
            outage_penalty_usd: Vec::new(),
            spreads: Vec::new(),
            refusals: BTreeMap::new(),
        };
        model.add_limits(input);
        model.add_profiles(input);
        let placed = model.add_sources(input);
        model.add_groups();
        model.add_demand(input, &placed);
        model.add_penalties(input);
        model.add_spreads(input);
        model
    }

    /// Number of blocks: demand paths, then lost domains.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.weights.len() + self.losses()
    }

    /// Number of domains that are lost, one at a time; 0 without N-1.
    #[must_use]
    pub fn losses(&self) -> usize {
        self.outage_gpus.len()
    }

    /// The domain that a block loses.
    #[must_use]
    pub fn lost_domain(&self, block: Block) -> Option<DomainId> {
        block.0.checked_sub(self.weights.len()).map(DomainId)
    }

    /// Demand of a block in GPUs, `[K]`.
    #[must_use]
    pub fn demand(&self, block: Block, t: usize) -> &[f64] {
        match self.lost_domain(block) {
            None => &self.demand_gpus[block.0][t],
            Some(DomainId(lost)) => &self.outage_gpus[lost][t],
        }
    }

    /// Whether a pool's nodes are there in a block.
    #[must_use]
    pub fn is_there(&self, pool: usize, block: Block) -> bool {
        self.lost_domain(block).is_none_or(|lost| self.pools[pool].domain != Some(lost.0))
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

    /// Sources and pools; returns the GPUs that claims have.
    fn add_sources(&mut self, input: &PlanInput) -> Placed {
        let caps: Vec<fleet::Caps> =
            input.classes.iter().map(|k| fleet::Caps::resolve(k, input.offers.iter().map(|o| &o.offer))).collect();
        let level = input.policy.survive.map(|s| s.level);
        let mut domains = BTreeMap::new();
        let mut pools = BTreeMap::new();
        let mut placed = Placed::new();
        for (p, state) in input.offers.iter().enumerate() {
            let domain = level.map(|l| {
                let name = domain_name(&state.offer, l);
                *domains.entry(name.clone()).or_insert_with(|| {
                    self.domains.push(name);
                    self.domains.len() - 1
                })
            });
            let (serves, refusal) = whole_node_serves(input, p, &caps);
            let owned = state.nodes.iter().any(|g| g.nodes > 0) || state.arriving_nodes.iter().any(|a| *a > 0.0);
            if serves.is_empty() {
                self.refusals.extend(refusal.map(|r| (p, r)));
            }
            if !serves.is_empty() || owned {
                let pool = self.intern(&mut pools, serves, domain);
                let source = self.source(input, p, pool);
                self.place_claims(input, p, &source, placed.entry(domain).or_default());
                for (free, gpus) in free_parts(input, p, &source) {
                    let pool = self.intern(&mut pools, free_part_serves(input, p, free, &caps), domain);
                    self.pools[pool].fixed_gpus.iter_mut().zip(gpus).for_each(|(sum, gpus)| *sum += gpus);
                }
                self.pool_sources[source.pool].push(self.sources.len());
                self.sources.push(source);
            }
        }
        placed
    }

    fn intern(
        &mut self,
        pools: &mut BTreeMap<PoolKey, usize>,
        serves: Vec<(usize, f64)>,
        domain: Option<usize>,
    ) -> usize {
        let key = (serves.iter().map(|&(k, e)| (k, e.to_bits())).collect(), domain);
        *pools.entry(key).or_insert_with(|| {
            self.pools.push(Pool { serves, domain, fixed_gpus: vec![0.0; self.hours.len()] });
            self.pool_sources.push(Vec::new());
            self.pools.len() - 1
        })
    }

    /// Adds the GPUs that claims on an offer's nodes have while the nodes are claimed.
    fn place_claims(&self, input: &PlanInput, p: usize, source: &Source, placed: &mut Vec<Vec<f64>>) {
        placed.resize(self.periods(), vec![0.0; self.claim_gpus.len()]);
        for group in input.offers[p].nodes.iter().filter(|g| !g.claims.is_empty()) {
            for (row, nodes) in placed.iter_mut().zip(kept_alive(group, &source.profile)) {
                group.claims.iter().for_each(|&(k, n)| row[k] += nodes * f64::from(claimed_gpus(input, p, k, n)));
            }
        }
    }

    /// Classes with the same pools and shares.
    fn add_groups(&mut self) {
        let mut pools_of: Vec<Vec<(usize, f64)>> = vec![Vec::new(); self.claim_gpus.len()];
        for (p, pool) in self.pools.iter().enumerate() {
            pool.serves.iter().for_each(|&(k, share)| pools_of[k].push((p, share)));
        }
        let mut known: BTreeMap<Vec<(usize, u64)>, usize> = BTreeMap::new();
        for (k, pools) in pools_of.into_iter().enumerate() {
            let key = pools.iter().map(|&(p, share)| (p, share.to_bits())).collect();
            let group = *known.entry(key).or_insert_with(|| {
                self.groups.push(Group { classes: Vec::new(), pools });
                self.groups.len() - 1
            });
            self.groups[group].classes.push(k);
            self.group_of[k] = group;
        }
    }

    fn source(&self, input: &PlanInput, p: usize, pool: usize) -> Source {
        let state = &input.offers[p];
        let periods = self.periods();
        let mut source = self.bare_source(input, p, pool);
        for group in &state.nodes {
            source.appear[0] += f64::from(group.nodes);
            for (t, kept) in kept_alive(group, &source.profile).enumerate() {
                source.kept[t] += kept;
                source.claimed[t] += if group.claims.is_empty() { 0.0 } else { kept };
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
        state.expected_nodes.iter().zip(&mut source.expected).for_each(|(nodes, expected)| *expected = *nodes);
        source.clip_kept();
        let arrives =
            |t: &usize| source.appear[*t] > 0.0 || source.launch_end > 0 && source.profile.arrivals[0][*t] > 0.0;
        source.first = (0..periods).find(arrives).unwrap_or(periods);
        source
    }

    fn bare_source(&self, input: &PlanInput, p: usize, pool: usize) -> Source {
        let state = &input.offers[p];
        let periods = self.periods();
        // At least a second of the node, so that launching for nothing is never free.
        let boot_usd = state.launch_cost_usd_micros.usd().max(state.offer.price_usd_micros_per_h.usd() / 3600.0);
        Source {
            offer: p,
            pool,
            gpus: f64::from(state.offer.gpus_per_node),
            price_usd_per_h: state.offer.price_usd_micros_per_h.usd(),
            cost_usd_per_h: state.offer.price_usd_micros_per_h.usd() / state.usable_share
                + state.fault_cost_usd_micros_per_h.usd(),
            appear: vec![0.0; periods],
            kept: vec![0.0; periods],
            claimed: vec![0.0; periods],
            profile: Rc::clone(&self.profiles[p]),
            launch_limit: vec![0.0; periods],
            launch_cost_usd: boot_usd + state.restage_usd_micros.usd(),
            boot_usd,
            planned: vec![0.0; periods],
            expected: vec![0.0; periods],
            first: 0,
            launch_end: 0,
        }
    }

    fn add_demand(&mut self, input: &PlanInput, placed: &Placed) {
        let classes = self.claim_gpus.len();
        // Of those that are lost in a domain, its own; everywhere, where nothing is.
        let met = |t: usize, k: usize, lost: Option<usize>| -> f64 {
            let left = placed.iter().filter(|(domain, _)| lost.is_none() || **domain != lost);
            left.map(|(_, gpus)| gpus.get(t).map_or(0.0, |row| row[k])).sum()
        };
        let everywhere: Vec<Vec<f64>> =
            (0..self.periods()).map(|t| (0..classes).map(|k| met(t, k, None)).collect()).collect();
        let mut mean = vec![vec![0.0; classes]; self.periods()];
        for scenario in &input.scenarios {
            let row = |(row, met): (&Vec<f64>, &Vec<f64>)| {
                (0..classes).map(|k| (row[k] * self.claim_gpus[k] - met[k]).max(0.0)).collect()
            };
            self.demand_gpus.push(scenario.claims.iter().zip(&everywhere).map(row).collect());
            for (t, row) in mean.iter_mut().enumerate() {
                for (k, mean) in row.iter_mut().enumerate() {
                    *mean += scenario.weight * scenario.claims[t][k] * self.claim_gpus[k];
                }
            }
        }
        if let Some(survive) = input.policy.survive {
            let after = |lost: usize| {
                let row = |t: usize| -> Vec<f64> {
                    let lacks = |k: usize| (mean[t][k] * survive.share - met(t, k, Some(lost))).max(0.0);
                    (0..classes).map(|k| if input.classes[k].borrows() { 0.0 } else { lacks(k) }).collect()
                };
                (0..self.periods()).map(row).collect()
            };
            self.outage_gpus = (0..self.domains.len()).map(after).collect();
        }
    }

    /// Penalties are far above what covering a loss can cost, and in the order outage > spread.
    fn add_penalties(&mut self, input: &PlanInput) {
        let periods = self.periods();
        let classes = input.classes.len();
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
        self.first_period = arriving.iter().map(|arrivals| half_arrived(arrivals)).collect();
        self.count_misses_once(input);
        // Nothing can be done about a loss before launches arrive.
        for (t, row) in self.outage_gpus.iter_mut().flat_map(|domain| domain.iter_mut().enumerate()) {
            row.iter_mut().zip(&self.first_period).filter(|(_, first)| t < **first).for_each(|(gpus, _)| *gpus = 0.0);
        }
        for t in 0..periods {
            let hold: Vec<f64> = (0..classes).map(|k| gpu_h[k].max(0.01) * (self.hours[t] + busy_h[k])).collect();
            self.outage_penalty_usd.push(hold.iter().map(|h| 5.0 * h).collect());
        }
    }

    /// A claim without GPUs in one short period is a part of a miss: prices are of whole misses.
    fn count_misses_once(&mut self, input: &PlanInput) {
        // Mean lead time of the offers that serve each class, whether or not they can be launched now.
        let mut leads = vec![(0.0_f64, 0.0_f64); self.claim_gpus.len()];
        for source in &self.sources {
            for &(k, _) in &self.pools[source.pool].serves {
                leads[k].0 += input.offers[source.offer].lead_time.mean_s();
                leads[k].1 += 1.0;
            }
        }
        let idle_usd_per_gpu_h = self.cheapest_gpu_usd_per_h();
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
            let usd = |(k, share): (usize, &f64)| match input.classes[k].borrows_usd_micros_per_gpu_h {
                Some(price) => price.usd().min(idle_usd_per_gpu_h[k]) * self.claim_gpus[k] * self.hours[t],
                None => input.miss_price_usd(k) * share,
            };
            self.miss_usd.push(row.iter().enumerate().map(usd).collect());
            self.miss_share.push(row);
        }
    }

    /// What a GPU costs at least, a little less than that, `[K]`: what borrowers pay counts for no more, so that nothing is
    /// bought for them.
    fn cheapest_gpu_usd_per_h(&self) -> Vec<f64> {
        let mut cheapest = vec![f64::INFINITY; self.claim_gpus.len()];
        for source in &self.sources {
            for &(k, share) in &self.pools[source.pool].serves {
                cheapest[k] = cheapest[k].min(LENT_SHARE * source.cost_usd_per_h / source.gpus / share);
            }
        }
        cheapest
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

/// Period by which half of all that arrives has come; their number when nothing does.
fn half_arrived(arrivals: &[f64]) -> usize {
    let total: f64 = arrivals.iter().sum();
    let mut come = 0.0;
    let half = |a: &f64| {
        come += a;
        total > 0.0 && come >= 0.5 * total
    };
    arrivals.iter().position(half).unwrap_or(arrivals.len())
}

/// Nodes of a group that must be kept in each period: no more than what is left of them, since with whole nodes kept now a
/// hair more would be impossible.
fn kept_alive<'a>(group: &'a NodeGroup, profile: &'a Profile) -> impl Iterator<Item = f64> + 'a {
    let mut alive = f64::from(group.nodes);
    group.kept_nodes.iter().zip(&profile.survive).map(move |(kept, survive)| {
        alive *= survive;
        kept.min(alive)
    })
}

/// GPUs beside claims on an offer's partly claimed nodes, by how many a node has, `[T]`.
fn free_parts(input: &PlanInput, p: usize, source: &Source) -> BTreeMap<u32, Vec<f64>> {
    let state = &input.offers[p];
    let mut parts: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for group in state.nodes.iter().filter(|g| !g.claims.is_empty()) {
        let used: u32 = group.claims.iter().map(|&(k, n)| claimed_gpus(input, p, k, n)).sum();
        let free = state.offer.gpus_per_node.saturating_sub(used);
        if free > 0 {
            let row = parts.entry(free).or_insert_with(|| vec![0.0; source.kept.len()]);
            let nodes = kept_alive(group, &source.profile);
            row.iter_mut().zip(nodes).for_each(|(gpus, nodes)| *gpus += f64::from(free) * nodes);
        }
    }
    parts
}
