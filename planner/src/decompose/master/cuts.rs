//! Cuts: planes under what a solution leaves unserved, and spread limits that it breaks.

use solver::{Solution, SolverError};

use super::problem::{Master, SHORT_GPUS};
use crate::columns::{self, ColSpec};
use crate::decompose::resolve::NOTHING_USD;
use crate::keys::{ColKey, ComponentId, CutId, DomainId, Part, Period, PoolId, RowKey, ShortfallKey, SpreadId};
use crate::recourse::Plane;

/// How far from the best capacity so far towards the solution cuts are sought.
const TOWARDS: f64 = 0.3;
/// Within so many times what is close enough, cuts are sought at the solution alone.
const NEAR: f64 = 2.0;

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
    /// Part of the way to another one.
    fn towards(&self, gpus: &[Vec<f64>], linear_usd: f64) -> Self {
        let w = TOWARDS;
        let mean = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| a + w * (b - a)).collect();
        Self {
            gpus: self.gpus.iter().zip(gpus).map(mean).collect(),
            linear_usd: self.linear_usd + w * (linear_usd - self.linear_usd),
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

    /// Where cuts are sought first: about what is probably best. What it costs is not known.
    pub fn start_near(&mut self, gpus: Vec<Vec<f64>>, linear_usd: f64) {
        self.center = Some(Center { gpus, linear_usd, total_usd: f64::INFINITY });
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

    /// What `solution` breaks. Planes are taken between it and the best capacity so far where they break the solution, too,
    /// until the end is near: there they say more (in-out separation; Ben-Ameur & Neto 2007). What the solution itself comes
    /// to is looked at where there is no other plane, or where it may be good enough: within `close_usd` of the bound
    /// (infinite: in any case).
    pub fn violations(&mut self, solution: &Solution, close_usd: f64) -> Violations {
        let gpus = self.pool_gpus(solution);
        let spreads = self.broken_spreads(solution);
        let keys = self.shortfalls();
        let values: Vec<f64> = keys.iter().map(|key| self.value(solution, ColKey::Shortfall(*key)).max(0.0)).collect();
        let linear_usd = solution.objective - values.iter().sum::<f64>();
        let center = self.center.take();
        // Near the end the solution itself has to be looked at anyway, and nothing between says more.
        let far = |center: &&Center| center.total_usd - solution.objective >= NEAR * close_usd;
        let mut between = center.as_ref().filter(far).map(|center| center.towards(&gpus, linear_usd));
        let breaks = |plane: &Plane, usd: f64, value: f64| usd - value > NOTHING_USD * (1.0 + 1e-3 * plane.usd);
        let mut planes: Vec<Option<Plane>> = keys.iter().map(|_| None).collect();
        if let Some(between) = &mut between {
            between.total_usd = between.linear_usd;
            for ((key, value), found) in keys.iter().zip(&values).zip(&mut planes) {
                let plane = self.plane(*key, &between.gpus);
                between.total_usd += plane.usd;
                let at = plane.at(&gpus[key.period.0]);
                *found = breaks(&plane, at, *value).then_some(plane);
            }
        }
        let upper_usd = between.iter().chain(&center).map(|c| c.total_usd).fold(f64::INFINITY, f64::min);
        let asked = close_usd == f64::INFINITY;
        let whole = asked || upper_usd - solution.objective < close_usd || planes.iter().all(Option::is_none);
        let (mut repair_usd, mut missed_usd) = (0.0, 0.0);
        let mut cuts = Vec::new();
        for ((key, value), found) in keys.into_iter().zip(values).zip(planes) {
            if whole || found.is_none() {
                let here = self.plane(key, &gpus);
                missed_usd += here.usd;
                let broken = breaks(&here, here.usd, value);
                repair_usd += if broken { here.usd - value } else { 0.0 };
                cuts.extend(found.or(broken.then_some(here)).map(|plane| (key, plane)));
            } else {
                cuts.extend(found.map(|plane| (key, plane)));
            }
        }
        let here = whole.then_some(Center { gpus, linear_usd, total_usd: linear_usd + missed_usd });
        let best = center.into_iter().chain(between).chain(here);
        self.center = best.min_by(|a, b| a.total_usd.total_cmp(&b.total_usd));
        if !whole {
            repair_usd = f64::INFINITY;
        }
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
        if model.spreads.is_empty() {
            return broken;
        }
        let nodes: Vec<Vec<f64>> = (0..model.sources.len()).map(|i| self.nodes(solution, i)).collect();
        for (r, spread) in model.spreads.iter().enumerate() {
            for t in (0..model.periods()).filter(|t| !self.spreads.contains(&(SpreadId(r), Period(*t)))) {
                let sum = |of: &[usize]| of.iter().map(|i| model.sources[*i].gpus * nodes[*i][t]).sum::<f64>();
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
        let mut entries = Vec::new();
        for &i in &self.model.spreads[r.0].all {
            let gpus = self.links[i].spreads.iter().find(|(spread, _)| *spread == r).map_or(0.0, |(_, gpus)| *gpus);
            let held = self.held[i].iter().map(|(key, nodes)| (self.cols[key], gpus * nodes[t.0]));
            entries.extend(held.filter(|(_, value)| *value != 0.0));
        }
        self.rows.insert(row.key, self.session.num_rows());
        self.session.add_rows(&[(row.lower, row.upper, entries)])?;
        self.spreads.insert((r, t));
        self.add(&[], vec![slack])
    }

    /// What a solution costs but for misses, dollars.
    #[must_use]
    pub fn linear_usd(&self, solution: &Solution) -> f64 {
        let keys = self.shortfalls().into_iter();
        solution.objective - keys.map(|key| self.value(solution, ColKey::Shortfall(key)).max(0.0)).sum::<f64>()
    }

    /// Number of cuts.
    #[must_use]
    pub fn cut_count(&self) -> usize {
        self.cuts.len()
    }
}
