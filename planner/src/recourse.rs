//! What a period's capacity leaves unserved, at the least cost, over all demand paths at once.
//!
//! Capacity is decided for all paths together and nothing that a path misses in one period touches another, so the expected
//! cost of misses is a convex function of the GPUs of each pool, period by period. It is the mean of as many transport
//! problems as there are paths; each is solved by serving the dearest claims first (what can be served at all is a
//! polymatroid, so that greedy is optimal: Edmonds 1970, Megiddo 1974), and what stands in the way of a claim that is not
//! served tells what a GPU is worth in each pool: the price of the dearest claim that is stuck there. These prices are an
//! optimum of the dual, so that they give a plane that supports the cost, and the mean of the planes of some paths is one
//! cut (the L-shaped method; Van Slyke & Wets 1969): a path more costs its evaluation, not rows. Classes that the same
//! pools serve alike are one group with several prices; groups and pools that are not connected are components, each with
//! cuts of its own.

use crate::flow::{Flow, Network, TINY};
use crate::keys::{Block, DomainId, Part, Period};
use crate::model::Model;

/// Parts that the paths are cut into, at most: more say more in each round, and make the program larger.
const PARTS_MAX: usize = 4;

/// The shortage of every component and period.
#[derive(Debug)]
pub struct Recourse {
    components: Vec<Component>,
    /// First path of each part, and the number of paths.
    parts: Vec<usize>,
}

/// Pools and groups that are connected.
#[derive(Debug)]
struct Component {
    /// Pools in the model's numbers.
    pools: Vec<usize>,
    network: Network,
    /// Claims by their price, the dearest first, `[T]`.
    tiers: Vec<Vec<Tier>>,
    /// The same by the price of going without after a loss, `[T]`; empty without N-1.
    loss_tiers: Vec<Vec<Tier>>,
}

/// Claims of a class at their price.
#[derive(Debug, Clone, Copy)]
struct Tier {
    class: usize,
    group: usize,
    usd_per_gpu: f64,
}

/// A shortage at some capacity, with a plane that supports its cost: `cost ≥ constant_usd − Σ slope_usd · GPUs`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plane {
    /// Dollars at the capacity that was asked for.
    pub usd: f64,
    /// Dollars of the plane without any GPUs.
    pub constant_usd: f64,
    /// Dollars less for each GPU of a pool.
    pub slope_usd: Vec<(usize, f64)>,
}

impl Plane {
    /// Dollars of the plane with `gpus` of each pool, `[pools]`.
    #[must_use]
    pub fn at(&self, gpus: &[f64]) -> f64 {
        self.constant_usd - self.slope_usd.iter().map(|&(p, usd)| usd * gpus[p]).sum::<f64>()
    }
}

impl Recourse {
    /// Of a model.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        // The weight of what is missed is in the last paths, which go highest: each part is half of what is left.
        let paths = model.weights.len();
        let mut parts: Vec<usize> = (0..PARTS_MAX).map(|i| paths - (paths >> i)).take_while(|p| *p < paths).collect();
        parts.push(paths);
        Self { components: components(model), parts }
    }

    /// Number of parts: of the paths, then losses of domains.
    #[must_use]
    pub fn parts(&self, model: &Model) -> usize {
        self.parts.len() - 1 + model.losses()
    }

    /// The blocks of a part.
    fn blocks(&self, model: &Model, part: Part) -> std::ops::Range<usize> {
        match part.0.checked_sub(self.parts.len() - 1) {
            None => self.parts[part.0]..self.parts[part.0 + 1],
            Some(lost) => model.weights.len() + lost..model.weights.len() + lost + 1,
        }
    }

    /// Number of components.
    #[must_use]
    pub fn components(&self) -> usize {
        self.components.len()
    }

    /// What a component lacks in a period, on a part of the paths, with `gpus` of each pool, `[pools]`.
    #[must_use]
    pub fn plane(&self, model: &Model, component: usize, period: Period, part: Part, gpus: &[f64]) -> Plane {
        let of = &self.components[component];
        let blocks = self.blocks(model, part);
        let first = Block(blocks.start);
        let mut sum = Sum::new(&of.network, of.capacity(model, first, gpus));
        of.add(model, period, blocks, &mut sum, None);
        let slope = of.pools.iter().zip(&sum.slope_usd).filter(|(p, usd)| **usd > 0.0 && model.is_there(**p, first));
        Plane { usd: sum.usd, constant_usd: sum.constant_usd, slope_usd: slope.map(|(p, usd)| (*p, *usd)).collect() }
    }

    /// Claims of each class that go without, `[T][K]`, with `gpus` of each pool, `[T][pools]`: mean over the paths, or after
    /// a loss.
    #[must_use]
    pub fn lacking_claims(&self, model: &Model, lost: Option<DomainId>, gpus: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let paths = model.weights.len();
        let blocks = lost.map_or(0..paths, |lost| paths + lost.0..paths + lost.0 + 1);
        let of_period = |(t, gpus): (usize, &Vec<f64>)| {
            let mut lacking = vec![0.0; model.claim_gpus.len()];
            for of in &self.components {
                let mut sum = Sum::new(&of.network, of.capacity(model, Block(blocks.start), gpus));
                of.add(model, Period(t), blocks.clone(), &mut sum, Some(&mut lacking));
            }
            lacking.iter().zip(&model.claim_gpus).map(|(gpus, each)| gpus / each).collect()
        };
        gpus.iter().enumerate().map(of_period).collect()
    }
}

impl Component {
    /// GPUs of its pools in a block.
    fn capacity(&self, model: &Model, block: Block, gpus: &[f64]) -> Vec<f64> {
        self.pools.iter().map(|p| if model.is_there(*p, block) { gpus[*p].max(0.0) } else { 0.0 }).collect()
    }

    fn add(
        &self,
        model: &Model,
        period: Period,
        blocks: std::ops::Range<usize>,
        sum: &mut Sum,
        mut lacking: Option<&mut Vec<f64>>,
    ) {
        for block in blocks.map(Block) {
            let of_loss = model.lost_domain(block).is_some();
            let tiers = &(if of_loss { &self.loss_tiers } else { &self.tiers })[period.0];
            let weight = model.weights.get(block.0).copied().unwrap_or(1.0);
            let lacking = lacking.as_mut().map(|l| l.as_mut_slice());
            sum.add(tiers, weight, model.demand(block, period.0), lacking);
        }
    }
}

/// The sum over paths.
struct Sum<'a> {
    network: &'a Network,
    flow: Flow<'a>,
    /// GPUs that the only group can use, where there is one; then no flow is needed.
    alone: Option<f64>,
    /// What a GPU more is worth to each group on this path, dollars.
    worth_usd: Vec<f64>,
    usd: f64,
    constant_usd: f64,
    slope_usd: Vec<f64>,
}

impl<'a> Sum<'a> {
    fn new(network: &'a Network, capacity: Vec<f64>) -> Self {
        let (groups, pools) = (network.pools_of.len(), capacity.len());
        let usable = || network.pools_of[0].iter().map(|(p, share)| share.min(1.0) * capacity[*p]).sum();
        let alone = (groups == 1).then(usable);
        Self {
            network,
            flow: Flow::new(network, &capacity),
            alone,
            worth_usd: vec![0.0; groups],
            usd: 0.0,
            constant_usd: 0.0,
            slope_usd: vec![0.0; pools],
        }
    }

    /// Adds a path of `weight` with `demand` GPUs `[K]`. What classes lack is added to `lacking`, times the weight.
    fn add(&mut self, tiers: &[Tier], weight: f64, demand: &[f64], mut lacking: Option<&mut [f64]>) {
        self.worth_usd.fill(0.0);
        let mut left = self.alone;
        if left.is_none() {
            self.flow.reset();
        }
        let mut short = false;
        for tier in tiers.iter().filter(|tier| demand[tier.class] > TINY) {
            let gpus = demand[tier.class];
            let lack = match &mut left {
                Some(left) => {
                    let lack = (gpus - *left).max(0.0);
                    *left = (*left - gpus).max(0.0);
                    lack
                }
                None => self.flow.serve(tier.group, gpus),
            };
            if lack <= TINY {
                continue;
            }
            short = true;
            self.usd += weight * tier.usd_per_gpu * lack;
            if let Some(lacking) = &mut lacking {
                lacking[tier.class] += weight * lack;
            }
            // Claims come by price: who is stuck first is stuck for the dearest.
            let worth = |worth: &mut f64| *worth = worth.max(tier.usd_per_gpu);
            worth(&mut self.worth_usd[tier.group]);
            self.flow.newly_stuck().iter().for_each(|g| worth(&mut self.worth_usd[*g]));
        }
        if short && lacking.is_none() {
            self.support(tiers, weight, demand);
        }
    }

    /// Adds the plane of a path by what GPUs are worth on it.
    fn support(&mut self, tiers: &[Tier], weight: f64, demand: &[f64]) {
        for tier in tiers {
            self.constant_usd += weight * demand[tier.class] * tier.usd_per_gpu.min(self.worth_usd[tier.group]);
        }
        for (p, slope) in self.slope_usd.iter_mut().enumerate() {
            *slope += weight * self.network.worth_of(p, &self.worth_usd);
        }
    }
}

/// Connected groups with their pools.
fn components(model: &Model) -> Vec<Component> {
    let mut of_pool: Vec<Option<usize>> = vec![None; model.pools.len()];
    let mut sets: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
    for (g, group) in model.groups.iter().enumerate() {
        let mut joined: Vec<usize> = group.pools.iter().filter_map(|(p, _)| of_pool[*p]).collect();
        joined.sort_unstable();
        joined.dedup();
        let into = joined.first().copied().unwrap_or_else(|| {
            sets.push(Default::default());
            sets.len() - 1
        });
        for other in joined.into_iter().skip(1) {
            let (groups, pools) = std::mem::take(&mut sets[other]);
            pools.iter().for_each(|p| of_pool[*p] = Some(into));
            sets[into].0.extend(groups);
            sets[into].1.extend(pools);
        }
        sets[into].0.push(g);
        for &(p, _) in &group.pools {
            if of_pool[p] != Some(into) {
                of_pool[p] = Some(into);
                sets[into].1.push(p);
            }
        }
    }
    let used = sets.into_iter().filter(|(groups, _)| !groups.is_empty());
    used.map(|(groups, pools)| component(model, &groups, pools)).collect()
}

fn component(model: &Model, groups: &[usize], mut pools: Vec<usize>) -> Component {
    // Those with the fewest other uses are used first.
    pools.sort_by_key(|p| (model.pools[*p].serves.len(), *p));
    let place = |p: usize| pools.iter().position(|q| *q == p).unwrap_or_default();
    let edges = |g: &usize| model.groups[*g].pools.iter().map(|&(p, share)| (place(p), share)).collect();
    let network = Network::new(groups.iter().map(edges).collect(), pools.len());
    let tiers = |usd_per_gpu: &dyn Fn(usize, usize) -> f64| {
        let of_period = |t: usize| {
            let of_group = |(group, g): (usize, &usize)| {
                let classes = model.groups[*g].classes.iter();
                classes.map(|k| Tier { class: *k, group, usd_per_gpu: usd_per_gpu(t, *k) }).collect::<Vec<_>>()
            };
            let mut all: Vec<Tier> = groups.iter().enumerate().flat_map(of_group).collect();
            all.sort_by(|a, b| b.usd_per_gpu.total_cmp(&a.usd_per_gpu).then(a.class.cmp(&b.class)));
            all
        };
        (0..model.periods()).map(of_period).collect::<Vec<_>>()
    };
    let tiers_of_paths = tiers(&|t, k| model.miss_usd[t][k] / model.claim_gpus[k]);
    let loss_tiers = if model.losses() > 0 { tiers(&|t, k| model.outage_penalty_usd[t][k]) } else { Vec::new() };
    Component { pools, network, tiers: tiers_of_paths, loss_tiers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{Size, fleet};
    use fleet::rng::Rng;

    /// Planes touch the cost where they are taken and are under it everywhere else, and classes of one group are served by
    /// their price.
    #[test]
    fn planes_support_the_expected_cost() {
        for seed in 0..12 {
            let input = fleet(Size { offers: 60, classes: 12, scenarios: 20, periods: 3 }, seed);
            let model = Model::build(&input);
            assert!(model.groups.len() <= model.claim_gpus.len());
            let recourse = Recourse::of(&model);
            let mut rng = Rng::new(seed);
            let mut gpus = || (0..model.pools.len()).map(|_| rng.between(0.0, 60.0).round()).collect::<Vec<f64>>();
            for component in 0..recourse.components() {
                for part in (0..recourse.parts(&model)).map(Part) {
                    let points: Vec<Vec<f64>> = (0..5).map(|_| gpus()).collect();
                    let planes: Vec<Plane> =
                        points.iter().map(|at| recourse.plane(&model, component, Period(1), part, at)).collect();
                    for (plane, at) in planes.iter().zip(&points) {
                        let touches = (plane.at(at) - plane.usd).abs() <= 1e-6 * (1.0 + plane.usd);
                        assert!(touches, "seed {seed}: {} at a cost of {}", plane.at(at), plane.usd);
                        for (other, there) in planes.iter().zip(&points) {
                            let under = plane.at(there) <= other.usd + 1e-6 * (1.0 + other.usd);
                            assert!(under, "seed {seed}: {} over a cost of {}", plane.at(there), other.usd);
                        }
                    }
                }
            }
        }
    }
}
