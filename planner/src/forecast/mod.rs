//! Quantile forecasts of demand, with their errors measured on the past only.
//!
//! A forecast is a point plus the residuals that the same method left on the past (split conformal prediction; Vovk,
//! Gammerman & Shafer 2005), so that its coverage can be checked and is. Residuals are as they were, or in units of how much
//! the series moved then, times how much it moves now. Several methods are weighed for each class by their record
//! ([`weigh`]), so that none has to be the right one.

mod least_squares;
mod past;
mod paths;
mod record;

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

pub use past::Past;
pub use paths::{WeightedPath, paths};
pub use record::{Score, ScoreRules, Walk, pinball, score, walk, weigh};

/// How the middle of a forecast is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Point {
    /// The value one season before: the default that others must beat.
    SeasonalNaive,
    /// The last value.
    LastValue,
    /// Least squares on the last value, a fast and a slow level, the change over the horizon, and what the season did here
    /// and there.
    Regression,
}

/// How its residuals are carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// As they were.
    Plain,
    /// In units of the volatility: half that of the whole past, half that of the last steps.
    Volatility,
    /// In units that least squares on level, volatility and slope finds for their size.
    Learnt,
}

/// A method of forecasting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Method {
    /// How the middle is found.
    pub point: Point,
    /// How residuals are carried over.
    pub spread: Spread,
}

impl Method {
    /// The default that others must beat.
    pub const SEASONAL_NAIVE: Self = Self { point: Point::SeasonalNaive, spread: Spread::Plain };
    /// What needs the shortest past.
    pub const LAST_VALUE: Self = Self { point: Point::LastValue, spread: Spread::Plain };
    /// All methods, the default first.
    pub const ALL: [Self; 7] = [
        Self::SEASONAL_NAIVE,
        Self::LAST_VALUE,
        Self { point: Point::LastValue, spread: Spread::Volatility },
        Self { point: Point::LastValue, spread: Spread::Learnt },
        Self { point: Point::Regression, spread: Spread::Plain },
        Self { point: Point::Regression, spread: Spread::Volatility },
        Self { point: Point::Regression, spread: Spread::Learnt },
    ];

    /// The words used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.point, self.spread) {
            (Point::SeasonalNaive, Spread::Plain) => "seasonal-naive",
            (Point::SeasonalNaive, Spread::Volatility) => "seasonal-naive by volatility",
            (Point::SeasonalNaive, Spread::Learnt) => "seasonal-naive with a learnt spread",
            (Point::LastValue, Spread::Plain) => "last-value",
            (Point::LastValue, Spread::Volatility) => "last-value by volatility",
            (Point::LastValue, Spread::Learnt) => "last-value with a learnt spread",
            (Point::Regression, Spread::Plain) => "regression",
            (Point::Regression, Spread::Volatility) => "regression by volatility",
            (Point::Regression, Spread::Learnt) => "regression with a learnt spread",
        }
    }

    fn needs_a_season(self) -> bool {
        self.point != Point::LastValue
    }
}

/// Methods with their weights, which add up to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mix(pub Vec<(Method, f64)>);

impl std::fmt::Display for Mix {
    /// The heaviest first: `last-value 70 %, regression 30 %`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [(only, _)] = self.0[..] {
            return f.write_str(only.name());
        }
        let mut parts: Vec<&(Method, f64)> = self.0.iter().collect();
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let words: Vec<String> = parts.iter().map(|(m, w)| format!("{} {:.0} %", m.name(), 100.0 * w)).collect();
        f.write_str(&words.join(", "))
    }
}

impl From<Method> for Mix {
    fn from(method: Method) -> Self {
        Self(vec![(method, 1.0)])
    }
}

/// A forecaster fitted at one origin for one horizon.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Root of the point forecast.
    root: f64,
    /// Root residuals of past origins, oldest first, as they would be now.
    residuals: Vec<f64>,
    origins: Origins,
    /// The residuals sorted, when a quantile was asked.
    sorted: OnceCell<Vec<f64>>,
}

/// Past steps from which forecasts are replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Origins {
    from: usize,
    stride: usize,
    count: usize,
}

impl Origins {
    fn all(self) -> impl ExactSizeIterator<Item = usize> + Clone {
        (0..self.count).map(move |i| self.from + i * self.stride)
    }
}

/// Most past origins that residuals are taken from, spread over the last seasons.
const ORIGINS_MAX: usize = 1200;
/// Seasons that they are spread over: a week of days.
const ORIGIN_SEASONS: usize = 7;
/// Fewest past origins for a quantile.
const ORIGINS_MIN: usize = 8;
/// Rows that weights are found on.
const ROWS_MAX: usize = 600;
/// A learnt spread is at least this share of the mean error.
const LEARNT_LEAST: f64 = 0.3;
/// A volatility is at least this share of that of the whole past.
const CALM_LEAST: f64 = 0.2;
const TINY: f64 = 1e-6;

/// What one method says of a past, at its origins and now.
struct Part {
    /// Roots of the points at the origins, and now.
    points: Vec<f64>,
    now: f64,
    /// Units of the residuals at the origins, and now.
    units: Vec<f64>,
    unit_now: f64,
    /// Residuals in their units.
    residuals: Vec<f64>,
}

impl Past<'_> {
    /// Fits `mix` for `horizon ≥ 1` steps ahead. `None` when the past is too short: a season and a few steps (a few steps
    /// for the last value).
    #[must_use]
    pub fn fit(&self, mix: &Mix, horizon: usize) -> Option<Fitted> {
        let origins = self.origins(mix.0.iter().any(|(m, _)| m.needs_a_season()), horizon)?;
        let (mut root, mut residuals) = (0.0, vec![0.0; origins.count]);
        for (method, weight) in &mix.0 {
            let part = self.part(*method, horizon, origins)?;
            root += weight * part.now;
            for (sum, residual) in residuals.iter_mut().zip(&part.residuals) {
                *sum += weight * part.unit_now * residual;
            }
        }
        Some(Fitted { root, residuals, origins, sorted: OnceCell::new() })
    }

    /// The same, by the last value where the past is too short for `mix`.
    #[must_use]
    pub fn fit_or_last(&self, mix: &Mix, horizon: usize) -> Option<Fitted> {
        self.fit(mix, horizon).or_else(|| self.fit(&Method::LAST_VALUE.into(), horizon))
    }

    /// Origins whose future is known, or `None` for too few.
    fn origins(&self, needs_a_season: bool, horizon: usize) -> Option<Origins> {
        self.origins_at_most(needs_a_season, horizon, ORIGINS_MAX)
    }

    fn origins_at_most(&self, needs_a_season: bool, horizon: usize, most: usize) -> Option<Origins> {
        let n = self.history.len();
        if horizon == 0 || self.season == 0 {
            return None;
        }
        let first = if needs_a_season { self.lag(horizon) } else { 0 };
        if n <= first + horizon + ORIGINS_MIN {
            return None;
        }
        // Multiples of the stride, so that all horizons share their origins.
        let from = first.max((n - horizon).saturating_sub((ORIGIN_SEASONS * self.season).max(ORIGINS_MAX)));
        let stride = (n - horizon - from).div_ceil(most);
        let from = from.next_multiple_of(stride);
        let count = (n - horizon).checked_sub(from)?.div_ceil(stride);
        (count > 0).then_some(Origins { from, stride, count })
    }

    /// The season's value for the target must be known at the origin, whatever the horizon.
    fn lag(&self, horizon: usize) -> usize {
        self.season * horizon.div_ceil(self.season)
    }

    fn part(&self, method: Method, horizon: usize, origins: Origins) -> Option<Part> {
        let now = self.history.len() - 1;
        let rows = || origins.all().step_by(origins.count.div_ceil(ROWS_MAX));
        let weights = match method.point {
            Point::Regression => {
                let row = |i: usize| (self.features(i, horizon), self.root[i + horizon]);
                Some(least_squares::weights(rows().map(row))?)
            }
            Point::SeasonalNaive | Point::LastValue => None,
        };
        let point = |i: usize| match (method.point, &weights) {
            (Point::SeasonalNaive, _) => self.root[i + horizon - self.lag(horizon)],
            (Point::Regression, Some(weights)) => dot(&self.features(i, horizon), weights).max(0.0),
            _ => self.root[i],
        };
        let points: Vec<f64> = origins.all().map(point).collect();
        let error = |(i, point): (usize, &f64)| self.root[i + horizon] - point;
        let errors: Vec<f64> = origins.all().zip(&points).map(error).collect();
        let learnt = match method.spread {
            Spread::Learnt => Some(self.learnt_unit(origins, &errors)?),
            Spread::Plain | Spread::Volatility => None,
        };
        // Where nothing ever moved, the first move is not beyond all measure.
        let calm = (CALM_LEAST * self.overall[now]).max(TINY);
        let unit = |i: usize| match (method.spread, &learnt) {
            (Spread::Volatility, _) => (0.5 * (self.overall[i] + self.recent[i])).max(calm),
            (_, Some((weights, least))) => dot(&self.unit_features(i), weights).max(*least),
            _ => 1.0,
        };
        let units: Vec<f64> = origins.all().map(unit).collect();
        let residuals = errors.iter().zip(&units).map(|(error, unit)| error / unit).collect();
        Some(Part { points, now: point(now), unit_now: unit(now), units, residuals })
    }

    /// What regression sees at step `i`.
    fn features(&self, i: usize, horizon: usize) -> [f64; 8] {
        let lag = self.lag(horizon);
        let (here, there) = (i.saturating_sub(lag), (i + horizon).saturating_sub(lag));
        let change = self.root[i] - self.root[i.saturating_sub(horizon)];
        let season = (self.root[there], self.around(there, i), self.around(here, i));
        [1.0, self.root[i], self.fast[i], self.slow[i], change, season.0, season.1, season.2]
    }

    fn unit_features(&self, i: usize) -> [f64; 4] {
        [1.0, self.root[i], self.recent[i], (self.fast[i] - self.slow[i]).abs()]
    }

    /// Weights of what the size of an error goes with, and the least unit.
    fn learnt_unit(&self, origins: Origins, errors: &[f64]) -> Option<([f64; 4], f64)> {
        let mean = errors.iter().map(|e| e.abs()).sum::<f64>() / errors.len().max(1) as f64;
        let row = |(i, error): (usize, &f64)| (self.unit_features(i), error.abs());
        let weights = least_squares::weights(origins.all().zip(errors).map(row))?;
        Some((weights, (LEARNT_LEAST * mean).max(TINY)))
    }
}

fn dot<const N: usize>(a: &[f64; N], b: &[f64; N]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Place of the `q` quantile among `n` sorted residuals: the `⌈q(n+1)⌉`-th, which covers with probability `q` on exchangeable
/// residuals.
fn place(q: f64, n: usize) -> usize {
    ((q * (n as f64 + 1.0)).ceil() as usize).clamp(1, n.max(1)) - 1
}

impl Fitted {
    /// The `q` quantile, at least 0.
    #[must_use]
    pub fn quantile(&self, q: f64) -> f64 {
        let sorted = self.sorted.get_or_init(|| {
            let mut sorted = self.residuals.clone();
            sorted.sort_by(f64::total_cmp);
            sorted
        });
        self.with(sorted[place(q, sorted.len())])
    }

    /// The value when this forecast errs as `other`, of another horizon, did at the past `origin`.
    #[must_use]
    pub fn replay_error(&self, other: &Self, origin: usize) -> f64 {
        let place = origin.saturating_sub(other.origins.from) / other.origins.stride;
        self.with(other.residuals[place.min(other.residuals.len() - 1)])
    }

    /// The oldest and the newest past origin.
    #[must_use]
    pub fn origins(&self) -> (usize, usize) {
        let Origins { from, stride, count } = self.origins;
        (from, from + stride * (count - 1))
    }

    fn with(&self, residual: f64) -> f64 {
        (self.root + residual).max(0.0).powi(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleet::rng::Rng;

    pub(super) fn daily(n: usize, noise: f64) -> Vec<f64> {
        let mut rng = Rng::new(3);
        (0..n)
            .map(|i| {
                let day = (i as f64 / 48.0 * std::f64::consts::TAU).sin();
                (50.0 + 30.0 * day + noise * rng.normal()).max(0.0)
            })
            .collect()
    }

    #[test]
    fn a_season_without_noise_is_forecast_exactly() {
        let series = daily(48 * 6, 0.0);
        for method in Method::ALL.into_iter().filter(|m| m.needs_a_season()) {
            let fitted = Past::of(&series[..240], 48).fit(&method.into(), 6).expect("long enough");
            assert!((fitted.quantile(0.5) - series[245]).abs() < 0.25, "{method:?}: {}", fitted.quantile(0.5));
        }
    }

    #[test]
    fn the_future_is_not_seen() {
        let mut series = daily(48 * 10, 3.0);
        for method in Method::ALL {
            for horizon in [4, 47] {
                let before = Past::of(&series[..300], 48).fit(&method.into(), horizon).expect("fit");
                series[300..].fill(1e6);
                assert_eq!(Past::of(&series[..300], 48).fit(&method.into(), horizon), Some(before));
            }
        }
        // At a past origin neither: what regression sees there does not change with what came after it.
        let (short, long) = (Past::of(&series[..200], 48), Past::of(&series, 48));
        for horizon in [1, 4, 44, 47, 48] {
            assert_eq!(short.features(199, horizon), long.features(199, horizon), "{horizon}");
            assert_eq!(short.unit_features(199), long.unit_features(199));
        }
    }

    #[test]
    fn a_mix_is_between_its_parts() {
        let series = daily(48 * 12, 4.0);
        let past = Past::of(&series, 48);
        let of = |mix: &Mix| past.fit(mix, 6).expect("fit").quantile(0.9);
        let [a, b] = [Method::ALL[0], Method::ALL[5]];
        let (low, high) = (of(&a.into()).min(of(&b.into())), of(&a.into()).max(of(&b.into())));
        let mixed = of(&Mix(vec![(a, 0.5), (b, 0.5)]));
        assert!(low * 0.9 <= mixed && mixed <= high * 1.02, "{low} {mixed} {high}");
    }

    #[test]
    fn a_series_that_moves_more_now_has_a_wider_forecast() {
        let mut rng = Rng::new(5);
        let mut level = 400.0;
        let calm: Vec<f64> = (0..48 * 10)
            .map(|_| {
                level += 0.1 * (400.0 - level) + 2.0 * rng.normal();
                level
            })
            .collect();
        let mut wild = calm.clone();
        for (i, v) in wild.iter_mut().rev().take(20).enumerate() {
            *v += if i % 2 == 0 { 30.0 } else { -30.0 };
        }
        for spread in [Spread::Volatility, Spread::Learnt] {
            let method = Method { point: Point::LastValue, spread };
            let width = |series: &[f64]| {
                let fitted = Past::of(series, 48).fit(&method.into(), 2).expect("fit");
                fitted.quantile(0.95) - fitted.quantile(0.5)
            };
            assert!(width(&wild) > 1.5 * width(&calm), "{spread:?}: {} {}", width(&wild), width(&calm));
        }
    }
}
