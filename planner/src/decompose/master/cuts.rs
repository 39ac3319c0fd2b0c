//! Cuts: which sets of classes a solution cannot cover, and their rows in the restricted problem.

use std::collections::{BTreeMap, BTreeSet};

use solver::{Entries, Solution, SolverError};

use super::problem::{Master, SHORT_GPUS, Set};
use crate::columns::{self, ColSpec};
use crate::flow::{ClassSet, Network};
use crate::keys::{Block, ClassId, ColKey, CutKey, Period, PoolId, RowKey, SetId, SetKey, SourceId, SpreadId};

/// Paths cut for each set and period before the first solve.
const SEED_CUTS: usize = 1;
/// Cuts added for one path and period in one round.
const CUTS_PER_BLOCK: usize = 4;

/// What a solution of the restricted problem breaks in the whole one.
#[derive(Debug)]
pub struct Violations {
    cuts: Vec<CutKey>,
    spreads: Vec<(SpreadId, Period)>,
    /// Dollars that make the solution break nothing; infinite when not measured.
    pub repair_usd: f64,
}

impl Violations {
    /// Whether nothing is broken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cuts.is_empty() && self.spreads.is_empty()
    }
}

fn cut_key(set: usize, period: usize, block: usize) -> CutKey {
    CutKey { set: SetId(set), period: Period(period), block: Block(block) }
}

impl Master<'_> {
    /// Registers each class alone as a set.
    pub fn seed_sets(&mut self) {
        (0..self.model.claim_gpus.len()).for_each(|k| {
            self.register(1 << k);
        });
    }

    /// Adds the cuts of the largest demands of every known set, so that the first solution buys something.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn seed_cuts(&mut self) -> Result<(), SolverError> {
        let mut seeds = Vec::new();
        for (s, set) in self.sets.iter().enumerate() {
            for t in 0..self.model.periods() {
                let need = |block: &usize| {
                    let demand = self.model.demand(Block(*block), t);
                    let classes = (0..demand.len()).filter(|k| set.mask & (1 << k) != 0);
                    classes.map(|k| demand[k]).sum::<f64>()
                };
                let mut worst: Vec<(f64, usize)> = (0..self.model.blocks()).map(|b| (need(&b), b)).collect();
                worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                seeds.extend(worst.iter().take(SEED_CUTS).filter(|(n, _)| *n > 0.0).map(|(_, b)| cut_key(s, t, *b)));
            }
        }
        self.add_cuts(&seeds)
    }

    /// GPUs of each pool, `[T][pools]`, that are probably near the optimum: cuts are sought between here and the
    /// current solution, where they are deeper (in-out separation; Ben-Ameur & Neto 2007).
    pub fn aim_at(&mut self, gpus: Vec<Vec<f64>>) {
        self.aim = Some(gpus);
    }

    /// Registers a set of classes and returns its index.
    pub fn register(&mut self, mask: ClassSet) -> usize {
        if let Some(&set) = self.set_index.get(&mask) {
            return set;
        }
        let mut pools = Vec::new();
        for (p, pool) in self.model.pools.iter().enumerate() {
            let share: f64 = pool.serves.iter().filter(|(k, _)| mask & (1 << k) != 0).map(|(_, e)| e).sum();
            if share > 0.0 {
                pools.push((p, share.min(1.0)));
            }
        }
        self.sets.push(Set { mask, pools });
        self.set_index.insert(mask, self.sets.len() - 1);
        self.sets.len() - 1
    }

    /// What `solution` breaks.
    pub fn violations(&mut self, solution: &Solution) -> Violations {
        let gpus = self.pool_gpus(Some(solution));
        let lack = self.uncovered(solution);
        let spreads = self.broken_spreads(solution);
        if let Some(aim) = self.aim.take() {
            let between = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(x, y)| 0.5 * (x + y)).collect();
            let between: Vec<Vec<f64>> = gpus.iter().zip(&aim).map(between).collect();
            let (chains, _) = self.find_sets(solution, &between, &lack);
            let cuts = self.violated(&gpus, &lack, &chains);
            if cuts.len() > self.cuts.len() / 50 {
                self.aim = Some(between);
            }
            if !cuts.is_empty() {
                return Violations { cuts, spreads, repair_usd: f64::INFINITY };
            }
        }
        let (chains, repair_usd) = self.find_sets(solution, &gpus, &lack);
        let repair_usd = if spreads.is_empty() { repair_usd } else { f64::INFINITY };
        Violations { cuts: self.violated(&gpus, &lack, &chains), spreads, repair_usd }
    }

    /// Adds what was found broken.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn cut(&mut self, violations: &Violations) -> Result<(), SolverError> {
        self.add_cuts(&violations.cuts)?;
        violations.spreads.iter().try_for_each(|&(r, t)| self.add_spread(r, t))
    }

    /// Missed claims, mean over the paths, `[T][K]`: those that the solution accepts, and what it leaves short where a
    /// miss costs too little for a cut.
    #[must_use]
    pub fn missed_claims(&self, solution: &Solution) -> Vec<Vec<f64>> {
        let model = self.model;
        let gpus = self.pool_gpus(Some(solution));
        let lack = self.uncovered(solution);
        let mut missed = vec![vec![0.0; model.claim_gpus.len()]; model.periods()];
        for (t, row) in missed.iter_mut().enumerate() {
            let pools = (0..model.pools.len()).map(|p| (gpus[t][p], model.pools[p].serves.as_slice()));
            let network = Network::new(row.len(), pools);
            let order = self.dearest_first(solution, t);
            for (s, weight) in model.weights.iter().enumerate() {
                let (_, short) = network.short_sets(&lack[s][t], &order);
                for (k, missed) in row.iter_mut().enumerate() {
                    let accepted = self.value(solution, ColKey::Miss(ClassId(k), Period(t), Block(s)));
                    *missed += weight * (accepted + short[k] / model.claim_gpus[k]);
                }
            }
        }
        missed
    }

    /// Demand less accepted misses, GPUs, `[blocks][T][K]`.
    fn uncovered(&self, solution: &Solution) -> Vec<Vec<Vec<f64>>> {
        let model = self.model;
        let block_demand = |b| (0..model.periods()).map(|t| model.demand(Block(b), t).to_vec()).collect();
        let mut lack: Vec<Vec<Vec<f64>>> = (0..model.blocks()).map(block_demand).collect();
        for (key, col) in &self.cols {
            if let ColKey::Miss(ClassId(k), Period(t), Block(block)) = *key {
                let left = &mut lack[block][t][k];
                let missed = solution.cols.get(*col).copied().unwrap_or(0.0);
                *left = (*left - model.claim_gpus[k] * missed).max(0.0);
            }
        }
        lack
    }

    /// Registers the sets of classes that cannot be covered in some block: with the solution's misses accepted, and
    /// with none accepted and the dearest classes served first (the sets that would bind at these nodes).
    /// Returns their cuts, and the dollars that cover what is lacking by misses at their highest
    /// price: the objective plus that is reached by a solution that breaks nothing.
    fn find_sets(&mut self, solution: &Solution, gpus: &[Vec<f64>], lack: &[Vec<Vec<f64>>]) -> (BTreeSet<CutKey>, f64) {
        let model = self.model;
        let paths = model.weights.len();
        let mut found = BTreeSet::new();
        let mut repair_usd = 0.0;
        for (t, gpus) in gpus.iter().enumerate() {
            let network = |block: usize| {
                let alive = (0..gpus.len()).filter(|p| model.is_there(*p, Block(block)));
                let pools = alive.map(|p| (gpus[p], model.pools[p].serves.as_slice()));
                Network::new(model.claim_gpus.len(), pools)
            };
            let order = self.dearest_first(solution, t);
            let all_alive = network(0);
            for (block, demand) in lack.iter().enumerate() {
                let lost;
                let net = if block < paths {
                    &all_alive
                } else {
                    lost = network(block);
                    &lost
                };
                let (short, missing) = net.short_sets(&demand[t], &order);
                // Less than the solver's own tolerance is nothing: at a penalty's price it would look like money.
                let lacks = missing.iter().sum::<f64>() > SHORT_GPUS * demand[t].iter().sum::<f64>().max(1.0);
                if !short.is_empty() && lacks {
                    let dearest = |k: usize| self.dearest_miss_usd(k, t, block) / model.claim_gpus[k];
                    repair_usd += missing.iter().enumerate().map(|(k, gpus)| gpus * dearest(k)).sum::<f64>();
                    let (binding, _) = net.short_sets(model.demand(Block(block), t), &order);
                    for mask in short.into_iter().chain(binding) {
                        let set = self.register(mask);
                        found.insert(cut_key(set, t, block));
                    }
                }
            }
        }
        (found, repair_usd)
    }

    /// Dollars for one more missed claim, at most.
    fn dearest_miss_usd(&self, k: usize, t: usize, block: usize) -> f64 {
        let model = self.model;
        let Some(weight) = model.weights.get(block) else {
            return model.outage_penalty_usd[t][k] * model.claim_gpus[k];
        };
        let target = if model.has_target(k, t) { model.target_penalty_usd[t][k] } else { 0.0 };
        let tail = self.input.policy.cvar_weight / (1.0 - self.input.policy.cvar_level);
        weight * (model.miss_usd[t][k] * (1.0 + tail) + target)
    }

    /// Classes by the price of a missed GPU in `t`, dearest first.
    fn dearest_first(&self, solution: &Solution, t: usize) -> Vec<usize> {
        let price = |k: &usize| {
            let target = self
                .rows
                .get(&RowKey::Target(ClassId(*k), Period(t)))
                .and_then(|r| solution.row_duals.get(*r))
                .map_or(0.0, |v| -v);
            (self.model.miss_usd[t][*k] + target) / self.model.claim_gpus[*k]
        };
        let mut order: Vec<usize> = (0..self.model.claim_gpus.len()).collect();
        order.sort_by(|a, b| price(b).total_cmp(&price(a)).then(a.cmp(b)));
        order
    }

    /// The worst broken cuts of every known set and period.
    fn violated(&self, gpus: &[Vec<f64>], lack: &[Vec<Vec<f64>>], chains: &BTreeSet<CutKey>) -> Vec<CutKey> {
        let paths = self.model.weights.len();
        let mut found: BTreeMap<(Period, Block), Vec<(f64, SetId)>> = BTreeMap::new();
        for (s, set) in self.sets.iter().enumerate() {
            let classes: Vec<usize> = (0..self.model.claim_gpus.len()).filter(|k| set.mask & (1 << k) != 0).collect();
            for (t, gpus) in gpus.iter().enumerate() {
                let capacity: f64 = set.pools.iter().map(|&(p, share)| share * gpus[p]).sum();
                for (block, demand) in lack.iter().enumerate() {
                    let need: f64 = classes.iter().map(|k| demand[t][*k]).sum();
                    let lost: f64 = if block < paths {
                        0.0
                    } else {
                        let dead = set.pools.iter().filter(|(p, _)| !self.model.is_there(*p, Block(block)));
                        dead.map(|&(p, share)| share * gpus[p]).sum()
                    };
                    let short = need - capacity + lost;
                    if short > SHORT_GPUS * need.max(1.0) && !self.cuts.contains(&cut_key(s, t, block)) {
                        // Distance from the point to the cut: large sets are not better for being large.
                        let depth = short / (1.0 + classes.len() as f64).sqrt();
                        found.entry((Period(t), Block(block))).or_default().push((depth, SetId(s)));
                    }
                }
            }
        }
        let mut new = Vec::new();
        for ((period, block), mut worst) in found {
            worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let cut = |set: SetId| CutKey { set, period, block };
            let (bind, more): (Vec<_>, Vec<_>) = worst.iter().partition(|(_, s)| chains.contains(&cut(*s)));
            new.extend(bind.iter().chain(more.iter().take(CUTS_PER_BLOCK)).map(|(_, s)| cut(*s)));
        }
        new.sort_unstable();
        new
    }

    /// Adds cuts. GPUs of a set that many cuts use are a column of its own.
    fn add_cuts(&mut self, new: &[CutKey]) -> Result<(), SolverError> {
        let model = self.model;
        let mut cols = self.add_shared_sets(new)?;
        let mut misses = BTreeSet::new();
        for cut in new {
            for k in self.classes_of(cut.set) {
                let key = ColKey::Miss(ClassId(k), cut.period, cut.block);
                let wanted = model.demand(cut.block, cut.period.0)[k] > 0.0;
                if wanted && !self.cols.contains_key(&key) && misses.insert(key) {
                    cols.push(columns::miss(self.input, model, ClassId(k), cut.period, cut.block));
                }
            }
        }
        self.add(&[], cols)?;
        let mut cut_rows = Vec::with_capacity(new.len());
        for &cut in new {
            let set = self.set_key(cut);
            let mut entries = match self.cols.get(&ColKey::Set(set)) {
                Some(col) => vec![(*col, 1.0)],
                None => {
                    self.inlined.insert(set, cut);
                    self.set_pools(set)
                }
            };
            let mut demand = 0.0;
            for k in self.classes_of(cut.set) {
                demand += model.demand(cut.block, cut.period.0)[k];
                let miss = self.cols.get(&ColKey::Miss(ClassId(k), cut.period, cut.block));
                entries.extend(miss.map(|c| (*c, model.claim_gpus[k])));
            }
            self.rows.insert(RowKey::Cut(cut), self.session.num_rows() + cut_rows.len());
            self.cuts.insert(cut);
            cut_rows.push((demand, f64::INFINITY, entries));
        }
        self.session.add_rows(&cut_rows)
    }

    /// Adds the rows of sets that more than one cut uses, and returns their columns.
    fn add_shared_sets(&mut self, new: &[CutKey]) -> Result<Vec<ColSpec>, SolverError> {
        let mut uses: BTreeMap<SetKey, usize> = BTreeMap::new();
        for &cut in new {
            let set = self.set_key(cut);
            *uses.entry(set).or_insert_with(|| usize::from(self.inlined.contains_key(&set))) += 1;
        }
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        for (set, _) in uses.into_iter().filter(|(_, uses)| *uses > 1) {
            let key = RowKey::Set(set);
            if !self.rows.contains_key(&key) {
                let entries = self.set_pools(set).into_iter().map(|(c, share)| (c, -share)).collect();
                self.rows.insert(key, self.session.num_rows() + rows.len());
                rows.push((0.0, 0.0, entries));
                let entries = vec![(key, 1.0)];
                cols.push(ColSpec { key: ColKey::Set(set), cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries });
            }
        }
        self.session.add_rows(&rows)?;
        Ok(cols)
    }

    /// Classes of a set.
    fn classes_of(&self, set: SetId) -> impl Iterator<Item = usize> + use<> {
        let mask = self.sets[set.0].mask;
        (0..self.model.claim_gpus.len()).filter(move |k| mask & (1 << k) != 0)
    }

    /// The GPUs that a cut has on its side.
    fn set_key(&self, cut: CutKey) -> SetKey {
        SetKey { set: cut.set, period: cut.period, lost: self.model.lost_domain(cut.block) }
    }

    /// Pool columns of a set with their shares.
    fn set_pools(&self, key: SetKey) -> Entries {
        let alive = |p: usize| key.lost.is_none_or(|lost| self.model.pools[p].domain != Some(lost.0));
        let pools = self.sets[key.set.0].pools.iter().filter(|(p, _)| alive(*p));
        let col = |p: usize| self.cols.get(&ColKey::Pool(PoolId(p), key.period)).copied();
        pools.filter_map(|&(p, share)| col(p).map(|c| (c, share))).collect()
    }

    /// Spread limits that the solution breaks.
    fn broken_spreads(&self, solution: &Solution) -> Vec<(SpreadId, Period)> {
        let model = self.model;
        let mut broken = Vec::new();
        for (r, spread) in model.spreads.iter().enumerate() {
            for t in (0..model.periods()).filter(|t| !self.spreads.contains(&(SpreadId(r), Period(*t)))) {
                let gpus =
                    |i: &usize| model.sources[*i].gpus * self.value(solution, ColKey::Nodes(SourceId(*i), Period(t)));
                let sum = |of: &[usize]| of.iter().filter(|i| self.is_active[**i]).map(gpus).sum::<f64>();
                let group = sum(&spread.members);
                if group > SHORT_GPUS && group > spread.max_share * sum(&spread.all) + SHORT_GPUS {
                    broken.push((SpreadId(r), Period(t)));
                }
            }
        }
        broken
    }

    fn add_spread(&mut self, r: SpreadId, t: Period) -> Result<(), SolverError> {
        let (row, slack) = columns::spread_row(self.model, r, t);
        let nodes = self.model.spreads[r.0].all.iter().filter_map(|i| {
            let col = self.cols.get(&ColKey::Nodes(SourceId(*i), t))?;
            let (_, gpus) = self.links[*i].spreads.iter().find(|(spread, _)| *spread == r)?;
            Some((*col, *gpus))
        });
        let entries: Vec<_> = nodes.collect();
        self.rows.insert(row.key, self.session.num_rows());
        self.session.add_rows(&[(row.lower, row.upper, entries)])?;
        self.spreads.insert((r, t));
        self.add(&[], vec![slack])
    }

    /// Number of cuts and of sets of classes.
    #[must_use]
    pub fn cut_counts(&self) -> (usize, usize) {
        (self.cuts.len(), self.sets.len())
    }

    /// Sets of classes with a cut that has a price.
    #[must_use]
    pub fn binding_sets(&self, solution: &Solution) -> Vec<ClassSet> {
        let binding = self.rows.iter().filter_map(|(key, row)| match key {
            RowKey::Cut(cut) if solution.row_duals[*row] > 1e-9 => Some(self.sets[cut.set.0].mask),
            _ => None,
        });
        let sets: BTreeSet<ClassSet> = binding.collect();
        sets.into_iter().collect()
    }
}
