//! Cuts: planes under what a solution leaves unserved, and spread limits that it breaks.

use solver::{Solution, SolverError};

use super::problem::{Master, SHORT_GPUS};
use crate::columns::{self, ColSpec};
use crate::keys::{
    ColKey, ComponentId, CutId, DomainId, Part, Period, PoolId, RowKey, ShortfallKey, SourceId, SpreadId,
};
use crate::recourse::Plane;

/// Dollars that are nothing beside what is missed.
const SAME_USD: f64 = 1e-9;

/// What a solution of the restricted problem breaks in the whole one.
#[derive(Debug)]
pub struct Violations {
    cuts: Vec<(ShortfallKey, Plane)>,
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

/// A capacity that is possible, and what it comes to.
#[derive(Debug)]
pub(super) struct Center {
    /// `[T][pools]`.
    gpus: Vec<Vec<f64>>,
    /// All but misses.
    linear_usd: f64,
    total_usd: f64,
}

impl Center {
    /// Half way to another one.
    fn towards(&self, gpus: &[Vec<f64>], linear_usd: f64) -> Self {
        let mean = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| 0.5 * (a + b)).collect();
        Self {
            gpus: self.gpus.iter().zip(gpus).map(mean).collect(),
            linear_usd: 0.5 * (self.linear_usd + linear_usd),
            total_usd: f64::INFINITY,
        }
    }
}

impl Master<'_> {
    /// Adds the planes without any GPUs, so that the first solution buys something.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn first_cuts(&mut self) -> Result<(), SolverError> {
        self.cut_at(&vec![vec![0.0; self.model.pools.len()]; self.model.periods()])
    }

    /// Adds the planes at `gpus` of each pool, `[T][pools]`: what is probably near the optimum.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn cut_at(&mut self, gpus: &[Vec<f64>]) -> Result<(), SolverError> {
        let planes = self.shortfalls().into_iter().map(|key| (key, self.plane(key, gpus)));
        let all: Vec<(ShortfallKey, Plane)> = planes.filter(|(_, plane)| plane.constant_usd > 0.0).collect();
        self.add_cuts(all)
    }

    fn shortfalls(&self) -> Vec<ShortfallKey> {
        let mut keys = Vec::new();
        for component in (0..self.recourse.components()).map(ComponentId) {
            for period in (0..self.model.periods()).map(Period) {
                let parts = (0..self.recourse.parts(self.model)).map(Part);
                keys.extend(parts.map(|part| ShortfallKey { component, period, part }));
            }
        }
        keys
    }

    fn plane(&self, key: ShortfallKey, gpus: &[Vec<f64>]) -> Plane {
        self.recourse.plane(self.model, key.component.0, key.period, key.part, &gpus[key.period.0])
    }

    /// What `solution` breaks. Planes are taken half way to the best capacity so far where they break the solution, too:
    /// there they say more (in-out separation; Ben-Ameur & Neto 2007).
    pub fn violations(&mut self, solution: &Solution) -> Violations {
        let gpus = self.pool_gpus(solution);
        let spreads = self.broken_spreads(solution);
        let keys = self.shortfalls();
        let values: Vec<f64> = keys.iter().map(|key| self.value(solution, ColKey::Shortfall(*key)).max(0.0)).collect();
        let linear_usd = solution.objective - values.iter().sum::<f64>();
        let center = self.center.take();
        let between = center.as_ref().map(|center| center.towards(&gpus, linear_usd));
        let mut cuts = Vec::new();
        let (mut repair_usd, mut missed_usd, mut between_usd) = (0.0, 0.0, 0.0);
        for (key, value) in keys.into_iter().zip(values) {
            let here = self.plane(key, &gpus);
            missed_usd += here.usd;
            let breaks = |plane: &Plane, usd: f64| usd - value > SAME_USD * (1.0 + plane.usd);
            let broken = breaks(&here, here.usd);
            repair_usd += if broken { here.usd - value } else { 0.0 };
            let inner = between.as_ref().map(|center| self.plane(key, &center.gpus));
            between_usd += inner.as_ref().map_or(0.0, |plane| plane.usd);
            let inner = inner.filter(|plane| breaks(plane, plane.at(&gpus[key.period.0])));
            cuts.extend(inner.or(broken.then_some(here)).map(|plane| (key, plane)));
        }
        let here = Center { gpus, linear_usd, total_usd: linear_usd + missed_usd };
        let between = between.map(|center| Center { total_usd: center.linear_usd + between_usd, ..center });
        let best = center.into_iter().chain(between).chain([here]);
        self.center = best.min_by(|a, b| a.total_usd.total_cmp(&b.total_usd));
        if !spreads.is_empty() {
            (repair_usd, self.center) = (f64::INFINITY, None);
        }
        Violations { cuts, spreads, repair_usd }
    }

    /// Adds what was found broken.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn cut(&mut self, violations: Violations) -> Result<(), SolverError> {
        self.add_cuts(violations.cuts)?;
        violations.spreads.into_iter().try_for_each(|(r, t)| self.add_spread(r, t))
    }

    /// Missed claims, mean over the paths, `[T][K]`.
    #[must_use]
    pub fn missed_claims(&self, solution: &Solution) -> Vec<Vec<f64>> {
        self.recourse.lacking_claims(self.model, None, &self.pool_gpus(solution))
    }

    /// Claims of each class that cannot be covered when a domain is lost, `[domains][T][K]`.
    #[must_use]
    pub fn uncovered_claims(&self, solution: &Solution) -> Vec<Vec<Vec<f64>>> {
        let gpus = self.pool_gpus(solution);
        let after = |lost| self.recourse.lacking_claims(self.model, Some(DomainId(lost)), &gpus);
        (0..self.model.losses()).map(after).collect()
    }

    fn add_cuts(&mut self, new: Vec<(ShortfallKey, Plane)>) -> Result<(), SolverError> {
        let fresh: std::collections::BTreeSet<ColKey> = new.iter().map(|(key, _)| ColKey::Shortfall(*key)).collect();
        let col = |key| ColSpec { key, cost: 1.0, lower: 0.0, upper: f64::INFINITY, entries: Vec::new() };
        self.add(&[], fresh.into_iter().filter(|key| !self.cols.contains_key(key)).map(col).collect())?;
        let mut rows = Vec::with_capacity(new.len());
        for (key, plane) in new {
            let mut entries = vec![(self.cols[&ColKey::Shortfall(key)], 1.0)];
            let col = |p: usize| self.cols.get(&ColKey::Pool(PoolId(p), key.period));
            entries.extend(plane.slope_usd.iter().filter_map(|&(p, usd)| Some((*col(p)?, usd))));
            self.rows.insert(RowKey::Cut(CutId(self.cuts.len())), self.session.num_rows() + rows.len());
            rows.push((plane.constant_usd, f64::INFINITY, entries));
            self.cuts.push((key, plane));
        }
        self.session.add_rows(&rows)
    }

    /// A pool's entries in the cuts that are there already.
    pub(super) fn entries_of(&self, pool: usize, period: Period) -> Vec<(RowKey, f64)> {
        let of_period = self.cuts.iter().enumerate().filter(|(_, (key, _))| key.period == period);
        let entry = |(number, (_, plane)): (usize, &(ShortfallKey, Plane))| {
            let (_, usd) = plane.slope_usd.iter().find(|(p, _)| *p == pool)?;
            Some((RowKey::Cut(CutId(number)), *usd))
        };
        of_period.filter_map(entry).collect()
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

    /// Number of cuts.
    #[must_use]
    pub fn cut_count(&self) -> usize {
        self.cuts.len()
    }
}
