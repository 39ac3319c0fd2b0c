//! The whole problem with every offer in every demand path and no pooling: slow, plain, and what any other solver can
//! be given to check an optimum.

use std::collections::BTreeMap;

use solver::{Col, Lp};

use crate::columns::{self, ColSpec, RowSpec};
use crate::input::PlanInput;
use crate::keys::{Block, ClassId, ColKey, GroupId, Period, PoolId, RowKey, SourceId, SpreadId};
use crate::model::Model;

/// The extensive form with the keys of its columns, in the order of `lp.cols`.
#[derive(Debug)]
pub struct Extensive {
    /// The program.
    pub lp: Lp,
    /// Key of each column.
    pub cols: Vec<ColKey>,
    /// Index of each row.
    pub rows: BTreeMap<RowKey, usize>,
}

/// Builds it. Columns: about `sources × served classes × periods × paths`.
#[must_use]
pub fn build(input: &PlanInput, model: &Model) -> Extensive {
    let links = columns::links(input, model);
    let mut form = Extensive { lp: Lp::default(), cols: Vec::new(), rows: BTreeMap::new() };
    let (rows, mut cols) = columns::shared(input, model);
    form.add_rows(&rows);
    for r in 0..model.spreads.len() {
        for t in 0..model.periods() {
            let (row, slack) = columns::spread_row(model, SpreadId(r), Period(t));
            form.add_rows(&[row]);
            cols.push(slack);
        }
    }
    for block in 0..model.blocks() {
        for t in 0..model.periods() {
            for k in 0..model.claim_gpus.len() {
                let key = RowKey::Cover(ClassId(k), Period(t), Block(block));
                form.add_rows(&[RowSpec { key, lower: model.demand(Block(block), t)[k], upper: f64::INFINITY }]);
                let mut miss = columns::miss(model, ClassId(k), Period(t), Block(block));
                miss.entries.push((key, model.claim_gpus[k]));
                cols.push(miss);
            }
        }
    }
    form.add_cols(cols);
    for (i, links) in links.iter().enumerate() {
        let (rows, mut cols) = columns::source(input, model, links, SourceId(i));
        form.add_rows(&rows);
        for col in &mut cols {
            if let ColKey::Nodes(_, Period(t)) = col.key {
                form.use_rows(model, i, t, &mut col.entries);
            }
        }
        form.add_cols(cols);
        form.add_serves(model, i);
    }
    (0..model.pools.len()).for_each(|pool| form.add_fixed(model, pool));
    form
}

impl Extensive {
    fn add_rows(&mut self, rows: &[RowSpec]) {
        for row in rows {
            let index = self.lp.add_row(row.lower, row.upper, row_name(row.key));
            self.rows.insert(row.key, index);
        }
    }

    fn add_cols(&mut self, cols: Vec<ColSpec>) {
        for col in cols {
            let entries: Vec<_> = col.entries.iter().map(|(key, v)| (self.rows[key], *v)).collect();
            let name = col_name(col.key);
            self.lp.add_col(Col { cost: col.cost, lower: col.lower, upper: col.upper, name }, entries);
            self.cols.push(col.key);
        }
    }

    /// Rows that cap what a source gives out in each block, and the node column's entries in them. Claimed nodes give
    /// nothing: what is left of them is fixed.
    fn use_rows(&mut self, model: &Model, i: usize, t: usize, entries: &mut Vec<(RowKey, f64)>) {
        let source = &model.sources[i];
        let claimed = -source.gpus * source.claimed[t];
        for block in (0..model.blocks()).filter(|b| model.is_there(source.pool, Block(*b))) {
            let key = RowKey::Use(SourceId(i), Period(t), Block(block));
            self.add_rows(&[RowSpec { key, lower: f64::NEG_INFINITY, upper: claimed }]);
            entries.push((key, -source.gpus));
            for (g, share) in capped(model, source.pool) {
                let key = RowKey::Edge(SourceId(i), Period(t), Block(block), GroupId(g));
                self.add_rows(&[RowSpec { key, lower: f64::NEG_INFINITY, upper: share * claimed }]);
                entries.push((key, -source.gpus * share));
            }
        }
    }

    fn add_serves(&mut self, model: &Model, i: usize) {
        let pool = model.sources[i].pool;
        for block in (0..model.blocks()).filter(|b| model.is_there(pool, Block(*b))) {
            for t in model.sources[i].first..model.periods() {
                for &(k, share) in &model.pools[pool].serves {
                    let (period, block) = (Period(t), Block(block));
                    let mut entries = vec![
                        (RowKey::Use(SourceId(i), period, block), 1.0),
                        (RowKey::Cover(ClassId(k), period, block), 1.0),
                    ];
                    let group = GroupId(model.group_of[k]);
                    entries.extend((share < 1.0).then_some((RowKey::Edge(SourceId(i), period, block, group), 1.0)));
                    let key = ColKey::Serve(SourceId(i), ClassId(k), period, block);
                    self.add_cols(vec![ColSpec { key, cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries }]);
                }
            }
        }
    }

    /// What is left of partly claimed nodes, and whom it serves.
    fn add_fixed(&mut self, model: &Model, pool: usize) {
        for block in (0..model.blocks()).filter(|b| model.is_there(pool, Block(*b))) {
            for (t, gpus) in model.pools[pool].fixed_gpus.iter().enumerate().filter(|(_, gpus)| **gpus > 0.0) {
                let (id, period, block) = (PoolId(pool), Period(t), Block(block));
                let limit = |key, upper| RowSpec { key, lower: f64::NEG_INFINITY, upper };
                self.add_rows(&[limit(RowKey::UseFixed(id, period, block), *gpus)]);
                for (g, share) in capped(model, pool) {
                    self.add_rows(&[limit(RowKey::EdgeFixed(id, period, block, GroupId(g)), share * gpus)]);
                }
                for &(k, share) in &model.pools[pool].serves {
                    let mut entries = vec![
                        (RowKey::UseFixed(id, period, block), 1.0),
                        (RowKey::Cover(ClassId(k), period, block), 1.0),
                    ];
                    let group = GroupId(model.group_of[k]);
                    entries.extend((share < 1.0).then_some((RowKey::EdgeFixed(id, period, block, group), 1.0)));
                    let key = ColKey::ServeFixed(id, ClassId(k), period, block);
                    self.add_cols(vec![ColSpec { key, cost: 0.0, lower: 0.0, upper: f64::INFINITY, entries }]);
                }
            }
        }
    }
}

/// Groups that can use a part of a pool only, with the part.
fn capped(model: &Model, pool: usize) -> BTreeMap<usize, f64> {
    let serves = model.pools[pool].serves.iter().filter(|(_, share)| *share < 1.0);
    serves.map(|&(k, share)| (model.group_of[k], share)).collect()
}

fn row_name(key: RowKey) -> String {
    compact(&format!("{key:?}"))
}

fn col_name(key: ColKey) -> String {
    compact(&format!("{key:?}"))
}

/// `Flow(3, 1)` to `flow_3_1`: MPS names have no blanks.
fn compact(debug: &str) -> String {
    let text = debug.replace(['(', ','], "_").replace([' ', ')'], "");
    text.to_ascii_lowercase()
}
