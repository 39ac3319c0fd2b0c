//! The restricted problem: a few sources, the cuts found so far, in one HiGHS session.

use std::collections::{BTreeMap, BTreeSet};

use solver::{Limits, Session, Solution, SolverError};

use super::cuts::Center;
use crate::columns::{self, ColSpec, Links, RowSpec};
use crate::decompose::price::Duals;
use crate::input::PlanInput;
use crate::keys::{
    ColKey, CommitmentId, CutId, Period, PoolId, QuotaId, RateGroupId, RowKey, ShortfallKey, SourceId, SpreadId,
};
use crate::model::Model;
use crate::recourse::{Plane, Recourse};

/// GPUs that are nothing.
pub(super) const SHORT_GPUS: f64 = 1e-6;

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
    /// Columns came since the last solve.
    pub(super) fresh_cols: bool,
    /// Columns of each source that are nodes, with the nodes of one unit, `[T]`.
    pub(super) held: Vec<Vec<(ColKey, Vec<f64>)>>,
    /// What paths and losses leave unserved.
    pub(super) recourse: Recourse,
    /// Cuts by their number.
    pub(super) cuts: Vec<(ShortfallKey, Plane)>,
    /// The best capacity so far under the present bounds.
    pub(super) center: Option<Center>,
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
            fresh_cols: false,
            held: vec![Vec::new(); model.sources.len()],
            recourse: Recourse::of(model),
            cuts: Vec::new(),
            center: None,
            spreads: BTreeSet::new(),
            solves: 0,
            iterations: 0,
            cold_restarts: 0,
        };
        let (mut rows, mut cols) = columns::shared(input, model);
        for p in (0..model.pools.len()).filter(|p| model.pools[*p].fixed_gpus.iter().any(|gpus| *gpus > 0.0)) {
            master.pool(p, &mut rows, &mut cols);
        }
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
            let known = |rows: &[RowSpec]| rows.iter().any(|r| r.key == RowKey::Pool(PoolId(source.pool), Period(0)));
            if !self.rows.contains_key(&RowKey::Pool(PoolId(source.pool), Period(0))) && !known(&rows) {
                self.pool(source.pool, &mut rows, &mut cols);
            }
            let (more_rows, more_cols) = self.source(SourceId(i));
            rows.extend(more_rows);
            cols.extend(more_cols);
        }
        self.add(&rows, cols)
    }

    /// The GPUs of a pool: of its idle nodes, and what is left of partly claimed ones.
    fn pool(&self, pool: usize, rows: &mut Vec<RowSpec>, cols: &mut Vec<ColSpec>) {
        let model = self.model;
        for t in 0..model.periods() {
            let key = RowKey::Pool(PoolId(pool), Period(t));
            let claimed = |i: &usize| model.sources[*i].gpus * model.sources[*i].claimed[t];
            let fixed = model.pools[pool].fixed_gpus[t] - model.pool_sources[pool].iter().map(claimed).sum::<f64>();
            rows.push(RowSpec { key, lower: fixed, upper: fixed });
            let mut entries = vec![(key, 1.0)];
            entries.extend(self.entries_of(pool, Period(t)));
            let key = ColKey::Pool(PoolId(pool), Period(t));
            cols.push(ColSpec { key, cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries });
        }
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

    /// Value of a column; 0 where it is not in the problem. Not of `Nodes`: see [`Master::nodes`].
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
        self.center = None;
        let (key, lower, upper) = self.in_releases(key, lower, upper);
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
        self.center = None;
        match self.rows.get(&key) {
            Some(r) => self.session.set_row_bounds(*r, lower, upper),
            None => Ok(()),
        }
    }

    /// GPUs of each pool, `[T][pools]`.
    #[must_use]
    pub fn pool_gpus(&self, solution: &Solution) -> Vec<Vec<f64>> {
        let gpus = |p: usize, t: usize| self.value(solution, ColKey::Pool(PoolId(p), Period(t))).max(0.0);
        let pools = self.model.pools.len();
        (0..self.model.periods()).map(|t| (0..pools).map(|p| gpus(p, t)).collect()).collect()
    }

    /// Sources that hold nodes in the solution, and those that exist anyway.
    #[must_use]
    pub fn used_sources(&self, solution: &Solution) -> Vec<usize> {
        let holds = |i: &usize| {
            self.model.sources[*i].must_be_modelled() || self.nodes(solution, *i).iter().any(|n| *n > SHORT_GPUS)
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
            pools: table(model.pools.len()),
            ..Duals::default()
        };
        let mut prices = Vec::new();
        for (key, row) in &self.rows {
            let price = solution.row_duals[*row];
            match *key {
                RowKey::Quota(QuotaId(q), Period(t)) => duals.quota[q][t] = -price,
                RowKey::Rate(RateGroupId(g), Period(t)) => duals.rate[g][t] = -price,
                RowKey::Commitment(CommitmentId(c), Period(t)) => duals.commitment[c][t] = -price,
                RowKey::Spread(SpreadId(r), Period(t)) => duals.spread[r][t] = -price,
                RowKey::Budget(Period(t)) => duals.budget[t] = -price,
                RowKey::Cut(CutId(cut)) if price > 0.0 => prices.push((cut, price)),
                _ => {}
            }
        }
        // A dollar of a shortfall is worth a dollar: what cuts say of one together may not pass that.
        let mut weights: BTreeMap<ShortfallKey, f64> = BTreeMap::new();
        for &(cut, price) in &prices {
            *weights.entry(self.cuts[cut].0).or_default() += price;
        }
        for (cut, price) in prices {
            let (key, plane) = &self.cuts[cut];
            let part = price / weights[key].max(1.0);
            duals.misses_usd += part * plane.constant_usd;
            plane.slope_usd.iter().for_each(|&(p, usd)| duals.pools[p][key.period.0] += part * usd);
        }
        duals.clip(model);
        duals
    }
}
