//! Nodes of a source in the restricted problem. They are no columns there: nodes that exist or arrive anyway, launches and
//! releases are, each with what it brings or takes in every period,
//!
//! `n_t = A_t + Σ_u L_ut x_u − Σ_s D_st r_s`,
//!
//! so that no row carries nodes from period to period. That nodes are kept which claims or minimum billing hold is a row
//! where something can be released; between two such periods it holds by itself, since what is held now was held before.

use std::collections::BTreeMap;

use solver::{Solution, SolverError};

use super::problem::Master;
use crate::columns::{self, ColSpec, RowSpec};
use crate::keys::{ColKey, Period, PoolId, RowKey, SourceId};
use crate::model::EPS;
use crate::source::Source;

/// A decision about a source's nodes that is a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Decision {
    /// Launching in a period.
    Launch(SourceId, Period),
    /// Giving back in a period.
    Release(SourceId, Period),
}

impl Master<'_> {
    /// Rows and columns of a source, with what can be decided now and what the parent plan launches.
    pub(super) fn source(&mut self, id: SourceId) -> (Vec<RowSpec>, Vec<ColSpec>) {
        let (input, model) = (self.input, self.model);
        let source = &model.sources[id.0];
        let (mut rows, mut cols) = columns::payments(input, model, &self.links[id.0], id);
        if source.appear.iter().any(|n| *n > 0.0) {
            let fixed = ColSpec { key: ColKey::Inventory(id), cost: 0.0, lower: 1.0, upper: 1.0, entries: Vec::new() };
            cols.push(self.holding(id, fixed, alive(source, &source.appear)));
        }
        for u in (0..source.launch_end).filter(|u| *u == 0 || source.planned[*u] > 0.0) {
            self.launch(id, Period(u), &mut rows, &mut cols);
        }
        if source.appear[0] > 0.0 {
            let free = source.appear[0] - source.kept[0];
            cols.push(self.release(id, Period(0), free));
        }
        (rows, cols)
    }

    fn launch(&mut self, id: SourceId, period: Period, rows: &mut Vec<RowSpec>, cols: &mut Vec<ColSpec>) {
        let (row, over, launch) = columns::launch(self.input, self.model, &self.links[id.0], id, period);
        rows.extend(row);
        cols.extend(over);
        let source = &self.model.sources[id.0];
        let mut launch = self.holding(id, launch, alive(source, &source.profile.arrivals[period.0]));
        // Nodes inside their minimum billing time cannot be released.
        for (key, value) in &mut launch.entries {
            if let RowKey::Floor(_, t) = *key {
                *value -= source.profile.held[period.0][t.0];
            }
        }
        launch.entries.retain(|(_, value)| *value != 0.0);
        cols.push(launch);
    }

    fn release(&mut self, id: SourceId, period: Period, most: f64) -> ColSpec {
        let source = &self.model.sources[id.0];
        let mut one = vec![0.0; self.model.periods()];
        one[period.0] = -1.0;
        let col = ColSpec {
            key: ColKey::Release(id, period),
            cost: 0.0,
            lower: 0.0,
            upper: most.max(0.0),
            entries: Vec::new(),
        };
        self.holding(id, col, alive(source, &one))
    }

    /// Adds what `nodes` cost, take and give to a column.
    fn holding(&mut self, id: SourceId, mut col: ColSpec, nodes: Vec<f64>) -> ColSpec {
        let source = &self.model.sources[id.0];
        let mut entries: BTreeMap<RowKey, f64> = BTreeMap::new();
        col.entries.drain(..).for_each(|(key, value)| *entries.entry(key).or_default() += value);
        for (t, n) in nodes.iter().enumerate().filter(|(_, n)| **n != 0.0) {
            let (cost, of_node) = columns::node(self.input, self.model, &self.links[id.0], id, t);
            col.cost += n * cost;
            of_node.into_iter().for_each(|(key, value)| *entries.entry(key).or_default() += n * value);
            entries.insert(RowKey::Pool(PoolId(source.pool), Period(t)), -source.gpus * n);
            entries.insert(RowKey::Floor(id, Period(t)), *n);
        }
        col.entries = entries.into_iter().collect();
        self.held[id.0].push((col.key, nodes));
        col
    }

    /// Lets sources launch and release in more periods.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn add_decisions(&mut self, wanted: &[Decision]) -> Result<(), SolverError> {
        self.fresh_cols = self.solves > 0;
        let (mut rows, mut cols) = (Vec::new(), Vec::new());
        let mut floors = Vec::with_capacity(wanted.len());
        for decision in wanted {
            match *decision {
                Decision::Launch(id, period) => self.launch(id, period, &mut rows, &mut cols),
                Decision::Release(id, period) => floors.push((id, period)),
            }
        }
        self.add(&rows, cols)?;
        let mut rows = Vec::with_capacity(floors.len());
        for &(id, period) in &floors {
            let source = &self.model.sources[id.0];
            let entry = |(key, nodes): &(ColKey, Vec<f64>)| {
                let held = match *key {
                    ColKey::Launch(_, u) => source.profile.held[u.0][period.0],
                    _ => 0.0,
                };
                (self.cols[key], nodes[period.0] - held)
            };
            let entries = self.held[id.0].iter().map(entry).filter(|(_, value)| *value != 0.0).collect();
            self.rows.insert(RowKey::Floor(id, period), self.session.num_rows() + rows.len());
            rows.push((source.kept[period.0], f64::INFINITY, entries));
        }
        self.session.add_rows(&rows)?;
        let cols = floors.iter().map(|&(id, period)| self.release(id, period, f64::INFINITY)).collect();
        self.add(&[], cols)
    }

    /// Nodes of a source, `[T]`.
    #[must_use]
    pub fn nodes(&self, solution: &Solution, i: usize) -> Vec<f64> {
        let mut sum = vec![0.0; self.model.periods()];
        for (key, nodes) in &self.held[i] {
            let value = self.value(solution, *key);
            if value != 0.0 {
                sum.iter_mut().zip(nodes).for_each(|(sum, n)| *sum += value * n);
            }
        }
        sum.iter_mut().for_each(|n| *n = n.max(0.0));
        sum
    }

    /// Bounds of the nodes in the first period are bounds of what is released then.
    pub(super) fn in_releases(&self, key: ColKey, lower: f64, upper: f64) -> (ColKey, f64, f64) {
        match key {
            ColKey::Nodes(id, Period(0)) => {
                let source = &self.model.sources[id.0];
                let release = |nodes: f64| (source.appear[0] - nodes.max(source.kept[0])).max(0.0);
                (ColKey::Release(id, Period(0)), release(upper), release(lower))
            }
            _ => (key, lower, upper),
        }
    }

    /// Whether a decision is a column already.
    #[must_use]
    pub fn can(&self, decision: Decision) -> bool {
        self.cols.contains_key(&match decision {
            Decision::Launch(id, period) => ColKey::Launch(id, period),
            Decision::Release(id, period) => ColKey::Release(id, period),
        })
    }

    /// Decisions that a solution makes.
    #[must_use]
    pub fn made(&self, solution: &Solution) -> Vec<Decision> {
        let decision = |key: &ColKey| match *key {
            ColKey::Launch(id, period) => Some(Decision::Launch(id, period)),
            ColKey::Release(id, period) => Some(Decision::Release(id, period)),
            _ => None,
        };
        let keys = self.held.iter().flatten().map(|(key, _)| key);
        keys.filter(|key| self.value(solution, **key) > EPS).filter_map(decision).collect()
    }
}

/// What is left in each period of nodes that come as `arriving` says, `[T]`.
fn alive(source: &Source, arriving: &[f64]) -> Vec<f64> {
    let mut left = 0.0;
    let survive = source.profile.survive.iter();
    arriving
        .iter()
        .zip(survive)
        .map(|(come, survive)| {
            left = left * survive + come;
            left
        })
        .collect()
}
