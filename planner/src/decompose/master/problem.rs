//! The restricted problem: a few sources, the cuts found so far, in one HiGHS session.

use std::collections::{BTreeMap, BTreeSet};

use solver::{Limits, Session, Solution, SolverError};

use crate::columns::{self, ColSpec, Links, RowSpec};
use crate::decompose::price::Duals;
use crate::flow::ClassSet;
use crate::input::PlanInput;
use crate::keys::{
    ClassId, ColKey, CommitmentId, CutKey, DomainId, Period, PoolId, QuotaId, RateGroupId, RowKey, SetId, SetKey,
    SourceId, SpreadId,
};
use crate::model::Model;

/// GPUs by which demand may pass capacity before a cut is added.
pub(super) const SHORT_GPUS: f64 = 1e-6;

/// A set of classes whose joint demand is cut.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) mask: ClassSet,
    /// `(pool, share of its GPUs that the set can use)`.
    pub(super) pools: Vec<(usize, f64)>,
}

/// The restricted problem and what it has found.
#[derive(Debug)]
pub struct Master<'a> {
    pub(super) input: &'a PlanInput,
    pub(super) model: &'a Model,
    /// Links of every source.
    pub links: Vec<Links>,
    pub(super) session: Session,
    pub(super) rows: BTreeMap<RowKey, usize>,
    pub(super) cols: BTreeMap<ColKey, usize>,
    /// Sources in the problem, in the order they came.
    pub active: Vec<usize>,
    pub(super) is_active: Vec<bool>,
    pub(super) aim: Option<Vec<Vec<f64>>>,
    /// Sources came since the last solve.
    fresh_cols: bool,
    pub(super) sets: Vec<Set>,
    pub(super) set_index: BTreeMap<ClassSet, usize>,
    pub(super) cuts: BTreeSet<CutKey>,
    /// Sets that only one cut uses so far: the cut has the pools itself.
    pub(super) inlined: BTreeMap<SetKey, CutKey>,
    /// Spread rows that were violated once.
    pub(super) spreads: BTreeSet<(SpreadId, Period)>,
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
            rows: BTreeMap::new(),
            cols: BTreeMap::new(),
            active: Vec::new(),
            is_active: vec![false; model.sources.len()],
            aim: None,
            fresh_cols: false,
            sets: Vec::new(),
            set_index: BTreeMap::new(),
            cuts: BTreeSet::new(),
            inlined: BTreeMap::new(),
            spreads: BTreeSet::new(),
            solves: 0,
            iterations: 0,
            cold_restarts: 0,
        };
        let (rows, cols) = columns::shared(input, model);
        master.add(&rows, cols)?;
        Ok(master)
    }

    /// Adds rows, then columns. Entries in rows that are not in the problem (yet) are left out.
    pub(super) fn add(&mut self, rows: &[RowSpec], cols: Vec<ColSpec>) -> Result<(), SolverError> {
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
            if !self.rows.contains_key(&RowKey::Pool(PoolId(source.pool), Period(0)))
                && !rows.iter().any(|r: &RowSpec| r.key == RowKey::Pool(PoolId(source.pool), Period(0)))
            {
                for t in 0..model.periods() {
                    let key = RowKey::Pool(PoolId(source.pool), Period(t));
                    rows.push(RowSpec { key, lower: 0.0, upper: 0.0 });
                    let mut entries = vec![(key, 1.0)];
                    entries.extend(self.set_entries(source.pool, t));
                    let key = ColKey::Pool(PoolId(source.pool), Period(t));
                    cols.push(ColSpec { key, cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries });
                }
            }
            let (more_rows, mut more_cols) = columns::source(self.input, model, &self.links[i], SourceId(i));
            rows.extend(more_rows);
            for col in &mut more_cols {
                if let ColKey::Nodes(_, Period(t)) = col.key {
                    col.entries.push((RowKey::Pool(PoolId(source.pool), Period(t)), -source.gpus));
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
            let Some(&(_, share)) = set.pools.iter().find(|(p, _)| *p == pool) else {
                continue;
            };
            let losses = (0..self.model.domains.len()).filter(|d| self.model.pools[pool].domain != Some(*d));
            for lost in std::iter::once(None).chain(losses.map(|d| Some(DomainId(d)))) {
                let set = SetKey { set: SetId(s), period: Period(t), lost };
                let key = RowKey::Set(set);
                entries.extend(self.rows.contains_key(&key).then_some((key, -share)));
                entries.extend(self.inlined.get(&set).map(|cut| (RowKey::Cut(*cut), share)));
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
    pub fn room(
        &self,
        solution: &Solution,
        limit: impl Fn(usize) -> f64,
        row: impl Fn(usize) -> RowKey,
        periods: usize,
    ) -> f64 {
        let used = |t: usize| self.rows.get(&row(t)).and_then(|r| solution.rows.get(*r)).copied();
        (0..periods).filter_map(|t| used(t).map(|used| limit(t) - used)).fold(f64::INFINITY, f64::min)
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

    /// GPUs of each pool, `[T][pools]`.
    #[must_use]
    pub fn pool_gpus(&self, solution: Option<&Solution>) -> Vec<Vec<f64>> {
        let mut gpus = vec![vec![0.0; self.model.pools.len()]; self.model.periods()];
        if let Some(solution) = solution {
            for (t, row) in gpus.iter_mut().enumerate() {
                for (p, value) in row.iter_mut().enumerate() {
                    *value = self.value(solution, ColKey::Pool(PoolId(p), Period(t))).max(0.0);
                }
            }
        }
        gpus
    }

    /// Sources that hold nodes in the solution, and those that exist anyway.
    #[must_use]
    pub fn used_sources(&self, solution: &Solution) -> Vec<usize> {
        let holds = |i: &usize| {
            let source = &self.model.sources[*i];
            source.must_be_modelled()
                || (0..self.model.periods())
                    .any(|t| self.value(solution, ColKey::Nodes(SourceId(*i), Period(t))) > SHORT_GPUS)
        };
        let mut used: Vec<usize> = self.active.iter().copied().filter(holds).collect();
        used.sort_unstable();
        used
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
                RowKey::Quota(QuotaId(q), Period(t)) => duals.quota[q][t] = -price,
                RowKey::Rate(RateGroupId(g), Period(t)) => duals.rate[g][t] = -price,
                RowKey::Commitment(CommitmentId(c), Period(t)) => duals.commitment[c][t] = -price,
                RowKey::Spread(SpreadId(r), Period(t)) => duals.spread[r][t] = -price,
                RowKey::Budget(Period(t)) => duals.budget[t] = -price,
                RowKey::Target(ClassId(k), Period(t)) => duals.target[k][t] = -price,
                RowKey::Tail(path) => duals.tail[path.0] = price,
                RowKey::Cut(cut) if price > 0.0 => {
                    let at = (cut.period, cut.block);
                    let prices = duals.cover.entry(at).or_insert_with(|| vec![0.0; model.claim_gpus.len()]);
                    let mask = self.sets[cut.set.0].mask;
                    (0..prices.len()).filter(|k| mask & (1 << k) != 0).for_each(|k| prices[k] += price);
                }
                _ => {}
            }
        }
        duals.clip(self.input, model);
        duals
    }
}
