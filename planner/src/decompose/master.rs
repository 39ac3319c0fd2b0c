//! The restricted problem: a few sources, the cuts found so far, in one HiGHS session.

use std::collections::{HashMap, HashSet};

use solver::{Limits, Session, Solution, SolverError};

use crate::columns::{self, ColKey, ColSpec, Links, RowKey, RowSpec};
use crate::decompose::flow::{ClassSet, Network};
use crate::decompose::price::Duals;
use crate::extensive;
use crate::input::PlanInput;
use crate::model::Model;

/// GPUs by which demand may pass capacity before a cut is added.
const SHORT_GPUS: f64 = 1e-6;
/// Paths cut for each set and period before the first solve.
const SEED_CUTS: usize = 1;
/// Cuts added for one path and period in one round.
const CUTS_PER_BLOCK: usize = 4;

/// A set of classes whose joint demand is cut.
#[derive(Debug)]
struct Set {
    mask: ClassSet,
    /// `(pool, share of its GPUs that the set can use)`.
    pools: Vec<(usize, f64)>,
}

/// What a solution of the restricted problem breaks in the whole one.
#[derive(Debug)]
pub struct Violations {
    cuts: Vec<(usize, usize, usize)>,
    spreads: Vec<(usize, usize)>,
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

/// The restricted problem and what it has found.
#[derive(Debug)]
pub struct Master<'a> {
    input: &'a PlanInput,
    model: &'a Model,
    /// Links of every source.
    pub links: Vec<Links>,
    session: Session,
    rows: HashMap<RowKey, usize>,
    cols: HashMap<ColKey, usize>,
    /// Sources in the problem, in the order they came.
    pub active: Vec<usize>,
    is_active: Vec<bool>,
    aim: Option<Vec<Vec<f64>>>,
    /// Sources came since the last solve.
    fresh_cols: bool,
    sets: Vec<Set>,
    set_index: HashMap<ClassSet, usize>,
    cuts: HashSet<(usize, usize, usize)>,
    /// Spread rows that were violated once.
    spreads: HashSet<(usize, usize)>,
    /// Solves and simplex iterations so far.
    pub solves: usize,
    /// See `solves`.
    pub iterations: i64,
    /// Solves that had to be repeated without the last basis.
    pub cold_restarts: usize,
}

impl<'a> Master<'a> {
    /// With no sources and no cuts.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn new(input: &'a PlanInput, model: &'a Model, limits: Limits) -> Result<Self, SolverError> {
        let mut master = Self {
            input,
            model,
            links: columns::links(input, model),
            session: Session::new(limits)?,
            rows: HashMap::new(),
            cols: HashMap::new(),
            active: Vec::new(),
            is_active: vec![false; model.sources.len()],
            aim: None,
            fresh_cols: false,
            sets: Vec::new(),
            set_index: HashMap::new(),
            cuts: HashSet::new(),
            spreads: HashSet::new(),
            solves: 0,
            iterations: 0,
            cold_restarts: 0,
        };
        let (rows, cols) = columns::shared(input, model);
        master.add(&rows, cols)?;
        Ok(master)
    }

    /// Adds rows, then columns. Entries in rows that are not in the problem (yet) are left out.
    fn add(&mut self, rows: &[RowSpec], cols: Vec<ColSpec>) -> Result<(), SolverError> {
        let fresh: Vec<_> = rows.iter().map(|r| (r.lower, r.upper, Vec::new())).collect();
        for (i, row) in rows.iter().enumerate() {
            self.rows.insert(row.key, self.session.num_rows() + i);
        }
        self.session.add_rows(&fresh)?;
        let mut packed = Vec::with_capacity(cols.len());
        for (i, col) in cols.into_iter().enumerate() {
            self.cols.insert(col.key, self.session.num_cols() + i);
            let entries = col.entries.iter().filter_map(|(key, v)| self.rows.get(key).map(|r| (*r, *v))).collect();
            packed.push((col.cost, col.lower, col.upper, entries));
        }
        self.session.add_cols(&packed)
    }

    /// Whether a source is in the problem.
    #[must_use]
    pub fn has(&self, i: usize) -> bool {
        self.is_active[i]
    }

    /// Adds sources with their pools.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn add_sources(&mut self, sources: &[usize]) -> Result<(), SolverError> {
        let model = self.model;
        self.fresh_cols = self.solves > 0;
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        for &i in sources {
            assert!(!self.is_active[i], "source {i} is there already");
            self.is_active[i] = true;
            self.active.push(i);
            let source = &model.sources[i];
            if !self.rows.contains_key(&RowKey::Pool(source.pool, 0))
                && !rows.iter().any(|r: &RowSpec| r.key == RowKey::Pool(source.pool, 0))
            {
                for t in 0..model.periods() {
                    let key = RowKey::Pool(source.pool, t);
                    rows.push(RowSpec { key, lower: 0.0, upper: 0.0 });
                    let mut entries = vec![(key, 1.0)];
                    entries.extend(self.set_entries(source.pool, t));
                    let key = ColKey::Pool(source.pool, t);
                    cols.push(ColSpec { key, cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries });
                }
            }
            let (more_rows, mut more_cols) = columns::source(self.input, model, &self.links[i], i);
            rows.extend(more_rows);
            for col in &mut more_cols {
                if let ColKey::Nodes(_, t) = col.key {
                    col.entries.push((RowKey::Pool(source.pool, t), -source.gpus));
                }
            }
            cols.extend(more_cols);
        }
        self.add(&rows, cols)
    }

    /// A pool's entries in the sets that are there already.
    fn set_entries(&self, pool: usize, t: usize) -> Vec<(RowKey, f64)> {
        let mut entries = Vec::new();
        for (s, set) in self.sets.iter().enumerate() {
            let Some(&(_, share)) = set.pools.iter().find(|(p, _)| *p == pool) else { continue };
            for domain in 0..=self.model.domains.len() {
                let key = RowKey::Set(s, t, domain);
                if self.rows.contains_key(&key) && (domain == 0 || self.model.pools[pool].domain != Some(domain - 1)) {
                    entries.push((key, -share));
                }
            }
        }
        entries
    }

    /// Solves from the last basis.
    ///
    /// # Errors
    /// No optimum.
    pub fn solve(&mut self) -> Result<Solution, SolverError> {
        self.solves += 1;
        let primal = std::mem::take(&mut self.fresh_cols);
        self.session.use_primal(primal)?;
        let mut solution = self.session.solve();
        if matches!(solution, Err(SolverError::NoOptimum(_))) {
            // A warm start can end between tolerances: once more, cold.
            self.session.forget_basis()?;
            self.session.use_primal(false)?;
            solution = self.session.solve();
            self.cold_restarts += 1;
        }
        self.iterations += self.session.iterations();
        solution
    }

    /// Forgets the basis: the next solve is cold.
    ///
    /// # Errors
    /// HiGHS refuses.
    pub fn forget_basis(&mut self) -> Result<(), SolverError> {
        self.session.forget_basis()
    }

    /// Value of a column; 0 where it is not in the problem.
    #[must_use]
    pub fn value(&self, solution: &Solution, key: ColKey) -> f64 {
        // A solution from before a column came has it at 0.
        self.cols.get(&key).and_then(|c| solution.cols.get(*c)).copied().unwrap_or(0.0)
    }

    /// Units left under a limit row in its tightest period; infinite when the row is not in the problem.
    #[must_use]
    pub fn room(&self, solution: &Solution, limit: f64, row: impl Fn(usize) -> RowKey, periods: usize) -> f64 {
        let used = |t: usize| self.rows.get(&row(t)).and_then(|r| solution.rows.get(*r)).copied();
        (0..periods).filter_map(used).map(|used| limit - used).fold(f64::INFINITY, f64::min)
    }

    /// Fixes or frees a column.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn set_bounds(&mut self, key: ColKey, lower: f64, upper: f64) -> Result<(), SolverError> {
        match self.cols.get(&key) {
            Some(c) => self.session.set_col_bounds(*c, lower, upper),
            None => Ok(()),
        }
    }

    /// Replaces the bounds of a row that is in the problem.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn set_row(&mut self, key: RowKey, lower: f64, upper: f64) -> Result<(), SolverError> {
        match self.rows.get(&key) {
            Some(r) => self.session.set_row_bounds(*r, lower, upper),
            None => Ok(()),
        }
    }

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
                    let demand = extensive::demand(self.model, *block, t);
                    let classes = (0..demand.len()).filter(|k| set.mask & (1 << k) != 0);
                    classes.map(|k| demand[k]).sum::<f64>()
                };
                let mut worst: Vec<(f64, usize)> = (0..extensive::blocks(self.model)).map(|b| (need(&b), b)).collect();
                worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                seeds.extend(worst.iter().take(SEED_CUTS).filter(|(n, _)| *n > 0.0).map(|(_, b)| (s, t, *b)));
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

    /// GPUs of each pool, `[T][pools]`.
    #[must_use]
    pub fn pool_gpus(&self, solution: Option<&Solution>) -> Vec<Vec<f64>> {
        let mut gpus = vec![vec![0.0; self.model.pools.len()]; self.model.periods()];
        if let Some(solution) = solution {
            for (t, row) in gpus.iter_mut().enumerate() {
                for (p, value) in row.iter_mut().enumerate() {
                    *value = self.value(solution, ColKey::Pool(p, t)).max(0.0);
                }
            }
        }
        gpus
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
                    let accepted = self.value(solution, ColKey::Miss(k, t, s));
                    *missed += weight * (accepted + short[k] / model.claim_gpus[k]);
                }
            }
        }
        missed
    }

    /// Demand less accepted misses, GPUs, `[blocks][T][K]`.
    fn uncovered(&self, solution: &Solution) -> Vec<Vec<Vec<f64>>> {
        let model = self.model;
        let block_demand = |b| (0..model.periods()).map(|t| extensive::demand(model, b, t).to_vec()).collect();
        let mut lack: Vec<Vec<Vec<f64>>> = (0..extensive::blocks(model)).map(block_demand).collect();
        for (key, col) in &self.cols {
            if let ColKey::Miss(k, t, block) = *key {
                let left = &mut lack[block][t][k];
                let missed = solution.cols.get(*col).copied().unwrap_or(0.0);
                *left = (*left - model.claim_gpus[k] * missed).max(0.0);
            }
        }
        lack
    }

    /// Registers the sets of classes that cannot be covered in some block: with the solution's misses accepted, and
    /// with none accepted and the dearest classes served first (the sets that would bind at these nodes).
    /// Returns `(set, period, block)` of each, and the dollars that cover what is lacking by misses at their highest
    /// price: the objective plus that is reached by a solution that breaks nothing.
    fn find_sets(
        &mut self,
        solution: &Solution,
        gpus: &[Vec<f64>],
        lack: &[Vec<Vec<f64>>],
    ) -> (HashSet<(usize, usize, usize)>, f64) {
        let model = self.model;
        let paths = model.weights.len();
        let mut found = HashSet::new();
        let mut repair_usd = 0.0;
        for (t, gpus) in gpus.iter().enumerate() {
            let network = |block: usize| {
                let alive = (0..gpus.len()).filter(|p| extensive::alive(model, *p, block));
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
                if !short.is_empty() {
                    let dearest = |k: usize| self.dearest_miss_usd(k, t, block) / model.claim_gpus[k];
                    repair_usd += missing.iter().enumerate().map(|(k, gpus)| gpus * dearest(k)).sum::<f64>();
                    let (binding, _) = net.short_sets(extensive::demand(model, block, t), &order);
                    for mask in short.into_iter().chain(binding) {
                        found.insert((self.register(mask), t, block));
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
        weight * (model.miss_usd[k] * (1.0 + tail) + target)
    }

    /// Classes by the price of a missed GPU in `t`, dearest first.
    fn dearest_first(&self, solution: &Solution, t: usize) -> Vec<usize> {
        let price = |k: &usize| {
            let target = self.rows.get(&RowKey::Target(*k, t)).and_then(|r| solution.row_duals.get(*r)).map_or(0.0, |v| -v);
            (self.model.miss_usd[*k] + target) / self.model.claim_gpus[*k]
        };
        let mut order: Vec<usize> = (0..self.model.claim_gpus.len()).collect();
        order.sort_by(|a, b| price(b).total_cmp(&price(a)).then(a.cmp(b)));
        order
    }

    /// The worst broken cuts of every known set and period: `(set, period, block)`.
    fn violated(
        &self,
        gpus: &[Vec<f64>],
        lack: &[Vec<Vec<f64>>],
        chains: &HashSet<(usize, usize, usize)>,
    ) -> Vec<(usize, usize, usize)> {
        let paths = self.model.weights.len();
        let mut found: HashMap<(usize, usize), Vec<(f64, usize)>> = HashMap::new();
        for (s, set) in self.sets.iter().enumerate() {
            let classes: Vec<usize> = (0..self.model.claim_gpus.len()).filter(|k| set.mask & (1 << k) != 0).collect();
            for (t, gpus) in gpus.iter().enumerate() {
                let capacity: f64 = set.pools.iter().map(|&(p, share)| share * gpus[p]).sum();
                for (block, demand) in lack.iter().enumerate() {
                    let need: f64 = classes.iter().map(|k| demand[t][*k]).sum();
                    let lost: f64 = if block < paths {
                        0.0
                    } else {
                        let dead = set.pools.iter().filter(|(p, _)| !extensive::alive(self.model, *p, block));
                        dead.map(|&(p, share)| share * gpus[p]).sum()
                    };
                    let short = need - capacity + lost;
                    if short > SHORT_GPUS * need.max(1.0) && !self.cuts.contains(&(s, t, block)) {
                        // Distance from the point to the cut: large sets are not better for being large.
                        found.entry((t, block)).or_default().push((short / (1.0 + classes.len() as f64).sqrt(), s));
                    }
                }
            }
        }
        let mut new = Vec::new();
        for ((t, block), mut worst) in found {
            worst.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let (bind, more): (Vec<_>, Vec<_>) = worst.iter().partition(|(_, s)| chains.contains(&(*s, t, block)));
            new.extend(bind.iter().chain(more.iter().take(CUTS_PER_BLOCK)).map(|(_, s)| (*s, t, block)));
        }
        new.sort_unstable();
        new
    }

    fn add_cuts(&mut self, new: &[(usize, usize, usize)]) -> Result<(), SolverError> {
        let model = self.model;
        let paths = model.weights.len();
        let domain_of = |block: usize| if block < paths { 0 } else { block - paths + 1 };
        let (mut set_rows, mut set_keys, mut cols) = (Vec::new(), HashSet::new(), Vec::new());
        for &(s, t, block) in new {
            let domain = domain_of(block);
            let key = RowKey::Set(s, t, domain);
            if !self.rows.contains_key(&key) && set_keys.insert(key) {
                let alive = |p: &usize| domain == 0 || model.pools[*p].domain != Some(domain - 1);
                let pools = self.sets[s].pools.iter().filter(|(p, _)| alive(p));
                let entries: Vec<_> = pools
                    .filter_map(|&(p, share)| self.cols.get(&ColKey::Pool(p, t)).map(|c| (*c, -share)))
                    .collect();
                self.rows.insert(key, self.session.num_rows() + set_rows.len());
                set_rows.push((0.0, 0.0, entries));
                let gpus = ColKey::Set(s, t, domain);
                cols.push(ColSpec { key: gpus, cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries: vec![(key, 1.0)] });
            }
        }
        self.session.add_rows(&set_rows)?;
        let mut misses = HashSet::new();
        for &(s, t, block) in new {
            for k in (0..model.claim_gpus.len()).filter(|k| self.sets[s].mask & (1 << k) != 0) {
                let key = ColKey::Miss(k, t, block);
                if extensive::demand(model, block, t)[k] > 0.0 && !self.cols.contains_key(&key) && misses.insert(key) {
                    cols.push(columns::miss(self.input, model, k, t, block));
                }
            }
        }
        self.add(&[], cols)?;
        let mut cut_rows = Vec::with_capacity(new.len());
        for &(s, t, block) in new {
            let mut entries = vec![(self.cols[&ColKey::Set(s, t, domain_of(block))], 1.0)];
            let mut demand = 0.0;
            for k in (0..model.claim_gpus.len()).filter(|k| self.sets[s].mask & (1 << k) != 0) {
                demand += extensive::demand(model, block, t)[k];
                let miss = self.cols.get(&ColKey::Miss(k, t, block));
                entries.extend(miss.map(|c| (*c, model.claim_gpus[k])));
            }
            self.rows.insert(RowKey::Cut(s, t, block), self.session.num_rows() + cut_rows.len());
            self.cuts.insert((s, t, block));
            cut_rows.push((demand, f64::INFINITY, entries));
        }
        self.session.add_rows(&cut_rows)
    }

    /// Spread rows that the solution breaks: `(row, period)`.
    fn broken_spreads(&self, solution: &Solution) -> Vec<(usize, usize)> {
        let model = self.model;
        let mut broken = Vec::new();
        for (r, spread) in model.spreads.iter().enumerate() {
            for t in (0..model.periods()).filter(|t| !self.spreads.contains(&(r, *t))) {
                let gpus = |i: &usize| model.sources[*i].gpus * self.value(solution, ColKey::Nodes(*i, t));
                let sum = |of: &[usize]| of.iter().filter(|i| self.is_active[**i]).map(gpus).sum::<f64>();
                let group = sum(&spread.members);
                if group > SHORT_GPUS && group > spread.max_share * sum(&spread.all) + SHORT_GPUS {
                    broken.push((r, t));
                }
            }
        }
        broken
    }

    fn add_spread(&mut self, r: usize, t: usize) -> Result<(), SolverError> {
        let (row, slack) = columns::spread_row(self.model, r, t);
        let nodes = self.model.spreads[r].all.iter().filter_map(|i| {
            let col = self.cols.get(&ColKey::Nodes(*i, t))?;
            let (_, gpus) = self.links[*i].spreads.iter().find(|(row, _)| *row == r)?;
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

    /// Sources that hold nodes in the solution, and those that exist anyway.
    #[must_use]
    pub fn used_sources(&self, solution: &Solution) -> Vec<usize> {
        let holds = |i: &usize| {
            let source = &self.model.sources[*i];
            source.must_be_modelled()
                || (0..self.model.periods()).any(|t| self.value(solution, ColKey::Nodes(*i, t)) > SHORT_GPUS)
        };
        let mut used: Vec<usize> = self.active.iter().copied().filter(holds).collect();
        used.sort_unstable();
        used
    }

    /// Sets of classes with a cut that has a price.
    #[must_use]
    pub fn binding_sets(&self, solution: &Solution) -> Vec<ClassSet> {
        let binding = self.rows.iter().filter_map(|(key, row)| match key {
            RowKey::Cut(s, ..) if solution.row_duals[*row] > 1e-9 => Some(self.sets[*s].mask),
            _ => None,
        });
        let sets: std::collections::BTreeSet<ClassSet> = binding.collect();
        sets.into_iter().collect()
    }

    /// Rows and columns of the restricted problem.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.session.num_rows(), self.session.num_cols())
    }

    /// Prices of the shared rows, lifted to the extensive form: a cut's price is the price of demand of each of its
    /// classes.
    #[must_use]
    pub fn duals(&self, solution: &Solution) -> Duals {
        let (model, periods) = (self.model, self.model.periods());
        let table = |rows: usize| vec![vec![0.0; periods]; rows];
        let mut duals = Duals {
            quota: table(self.input.quotas.len()),
            rate: table(columns::rate_groups(self.input).len()),
            commitment: table(self.input.commitments.len()),
            spread: table(model.spreads.len()),
            budget: vec![0.0; if self.input.policy.budget_usd_micros_per_h.is_some() { periods } else { 0 }],
            target: table(model.claim_gpus.len()),
            tail: vec![0.0; if self.input.policy.cvar_weight > 0.0 { model.weights.len() } else { 0 }],
            ..Duals::default()
        };
        for (key, row) in &self.rows {
            let price = solution.row_duals[*row];
            match *key {
                RowKey::Quota(q, t) => duals.quota[q][t] = -price,
                RowKey::Rate(g, t) => duals.rate[g][t] = -price,
                RowKey::Commitment(c, t) => duals.commitment[c][t] = -price,
                RowKey::Spread(r, t) => duals.spread[r][t] = -price,
                RowKey::Budget(t) => duals.budget[t] = -price,
                RowKey::Target(k, t) => duals.target[k][t] = -price,
                RowKey::Tail(s) => duals.tail[s] = price,
                RowKey::Cut(s, t, block) if price > 0.0 => {
                    let prices = duals.cover.entry((t, block)).or_insert_with(|| vec![0.0; model.claim_gpus.len()]);
                    let mask = self.sets[s].mask;
                    (0..prices.len()).filter(|k| mask & (1 << k) != 0).for_each(|k| prices[k] += price);
                }
                _ => {}
            }
        }
        duals.clip(self.input, model);
        duals
    }
}
