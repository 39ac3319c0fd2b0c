//! Quantile forecasts of demand, with their errors measured on the past only.
//!
//! Works on square roots: the spread of counts grows about with the root of their level, so residuals become
//! comparable over the day. A forecast is a point plus the residuals that the same method left on the past
//! (split conformal prediction; Vovk, Gammerman & Shafer 2005), so that its coverage can be checked and is.

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

/// How the middle of the forecast is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The value one season before: the default that others must beat.
    SeasonalNaive,
    /// The last value.
    LastValue,
    /// The last value plus what the season did from here on.
    SeasonalShift,
    /// Least squares on the last value, the season's value there and the season's value here.
    Regression,
}

impl Method {
    /// All methods, the default first.
    pub const ALL: [Self; 4] = [Self::SeasonalNaive, Self::LastValue, Self::SeasonalShift, Self::Regression];

    /// The word used in files and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SeasonalNaive => "seasonal-naive",
            Self::LastValue => "last-value",
            Self::SeasonalShift => "seasonal-shift",
            Self::Regression => "regression",
        }
    }
}

/// A forecaster fitted at one origin for one horizon.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// Root of the point forecast.
    root: f64,
    /// Root residuals of past origins, oldest first.
    residuals: Vec<f64>,
    /// The oldest origin, and the steps between two of them.
    origins: (usize, usize),
    /// The residuals sorted, when a quantile was asked.
    sorted: OnceCell<Vec<f64>>,
}

/// Most past origins that residuals are taken from, spread over the last seasons.
const ORIGINS_MAX: usize = 1200;
/// Fewest origins that paths are drawn from.
const ALIKE_MIN: usize = 60;
/// Paths stay within so many times what was ever seen: a burst on top of a burst has no example.
const SEEN_TIMES: f64 = 1.2;
/// Seasons that they are spread over.
const ORIGIN_SEASONS: usize = 3;
/// Fewest past origins for a quantile.
const ORIGINS_MIN: usize = 8;

fn root(value: f64) -> f64 {
    value.max(0.0).sqrt()
}

/// Fits `method` to `history` (equal steps, the last is now) for `horizon ≥ 1` steps ahead. `season` is the length of
/// the season in steps. `None` when the history is too short: two seasons and a few steps (one value for `LastValue`).
#[must_use]
pub fn fit(method: Method, history: &[f64], season: usize, horizon: usize) -> Option<Fitted> {
    let n = history.len();
    if horizon == 0 || season == 0 || n == 0 {
        return None;
    }
    let needs = if method == Method::LastValue { 0 } else { season };
    // The season's value for the target must be known at the origin, whatever the horizon.
    let lag = season * horizon.div_ceil(season);
    let first = needs.max(if needs > 0 { lag } else { 0 });
    if n <= first + horizon + ORIGINS_MIN {
        return None;
    }
    // Multiples of the stride, so that all horizons share their origins.
    let from = first.max((n - horizon).saturating_sub((ORIGIN_SEASONS * season).max(ORIGINS_MAX)));
    let stride = (n - horizon - from).div_ceil(ORIGINS_MAX);
    let from = from.next_multiple_of(stride);
    let origins: Vec<usize> = (from..n - horizon).step_by(stride).collect();
    let at = |i: usize| root(history[i]);
    let features = |i: usize| [1.0, at(i), at(i + horizon - lag), at(i - if needs > 0 { lag } else { 0 })];
    let weights = match method {
        Method::SeasonalNaive => [0.0, 0.0, 1.0, 0.0],
        Method::LastValue => [0.0, 1.0, 0.0, 0.0],
        Method::SeasonalShift => [0.0, 1.0, 1.0, -1.0],
        Method::Regression => least_squares(origins.iter().map(|i| (features(*i), at(i + horizon))))?,
    };
    let point = |i: usize| {
        let x = if method == Method::LastValue { [1.0, at(i), 0.0, 0.0] } else { features(i) };
        x.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>().max(0.0)
    };
    let residuals: Vec<f64> = origins.iter().map(|i| at(i + horizon) - point(*i)).collect();
    Some(Fitted { root: point(n - 1), residuals, origins: (from, stride), sorted: OnceCell::new() })
}

/// The same, by the last value where the history is too short for `method`.
#[must_use]
pub fn fit_or_last(method: Method, history: &[f64], season: usize, horizon: usize) -> Option<Fitted> {
    fit(method, history, season, horizon).or_else(|| fit(Method::LastValue, history, season, horizon))
}

/// Ridge-stabilised normal equations of four features.
fn least_squares(rows: impl Iterator<Item = ([f64; 4], f64)>) -> Option<[f64; 4]> {
    let mut a = [[0.0; 5]; 4];
    for (x, y) in rows {
        for i in 0..4 {
            for j in 0..4 {
                a[i][j] += x[i] * x[j];
            }
            a[i][4] += x[i] * y;
        }
    }
    for (i, row) in a.iter_mut().enumerate() {
        row[i] += 1e-6 * (1.0 + row[i]);
    }
    for i in 0..4 {
        let pivot = (i..4).max_by(|p, q| a[*p][i].abs().total_cmp(&a[*q][i].abs()))?;
        a.swap(i, pivot);
        if a[i][i].abs() < 1e-12 {
            return None;
        }
        for j in 0..4 {
            if j != i {
                let factor = a[j][i] / a[i][i];
                let above = a[i];
                a[j].iter_mut().zip(above).for_each(|(v, u)| *v -= factor * u);
            }
        }
    }
    Some([0, 1, 2, 3].map(|i| a[i][4] / a[i][i]))
}

impl Fitted {
    /// The `q` quantile, at least 0. Uses the `⌈q(n+1)⌉`-th residual, which covers with probability `q` on
    /// exchangeable residuals.
    #[must_use]
    pub fn quantile(&self, q: f64) -> f64 {
        let sorted = self.sorted.get_or_init(|| {
            let mut sorted = self.residuals.clone();
            sorted.sort_by(f64::total_cmp);
            sorted
        });
        let n = sorted.len();
        let place = ((q * (n as f64 + 1.0)).ceil() as usize).clamp(1, n) - 1;
        self.with(sorted[place])
    }

    /// The value when what followed the past `origin` repeats itself.
    #[must_use]
    pub fn replay(&self, origin: usize) -> f64 {
        self.replay_error(self, origin)
    }

    /// The value when this forecast errs as `other`, of another horizon, did at the past `origin`.
    #[must_use]
    pub fn replay_error(&self, other: &Self, origin: usize) -> f64 {
        let place = origin.saturating_sub(other.origins.0) / other.origins.1;
        self.with(other.residuals[place.min(other.residuals.len() - 1)])
    }

    /// The oldest and the newest past origin.
    #[must_use]
    pub fn origins(&self) -> (usize, usize) {
        (self.origins.0, self.origins.0 + self.origins.1 * (self.residuals.len() - 1))
    }

    /// What this forecast would have said at each past origin, and what came, the oldest first: `history` and `horizon` are
    /// those of the fit.
    #[must_use]
    pub fn past(&self, history: &[f64], horizon: usize) -> Vec<PastForecast> {
        let of = |(i, residual): (usize, &f64)| {
            let target = self.origins.0 + i * self.origins.1 + horizon;
            let actual = history.get(target).copied().unwrap_or(0.0);
            let before = history.get(target - 1).copied().unwrap_or(0.0);
            PastForecast { target, actual, before, residual: *residual, root: root(actual) - residual }
        };
        self.residuals.iter().enumerate().map(of).collect()
    }

    fn with(&self, residual: f64) -> f64 {
        let value = (self.root + residual).max(0.0);
        value * value
    }
}

/// A forecast of the past beside what came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PastForecast {
    /// Step that was forecast.
    pub target: usize,
    /// What came.
    pub actual: f64,
    /// What was there a step before.
    pub before: f64,
    /// Root residual.
    pub residual: f64,
    /// Root of the point forecast.
    root: f64,
}

impl PastForecast {
    /// The forecast with a root residual on top.
    #[must_use]
    pub fn with(&self, residual: f64) -> f64 {
        (self.root + residual).max(0.0).powi(2)
    }
}

/// Pinball loss of forecasting quantile `q` as `forecast` when `actual` comes (Koenker & Bassett 1978).
#[must_use]
pub fn pinball(q: f64, forecast: f64, actual: f64) -> f64 {
    let miss = actual - forecast;
    if miss >= 0.0 { q * miss } else { (q - 1.0) * miss }
}

/// Score of one method on one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Which.
    pub method: Method,
    /// Mean pinball loss over quantiles, origins and horizons, in the series' unit.
    pub pinball: f64,
    /// Share of actuals at or under each quantile, in the order asked.
    pub coverage: Vec<f64>,
    /// Forecasts that were scored.
    pub forecasts: usize,
}

/// What is scored.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRules {
    /// Season in steps.
    pub season: usize,
    /// Horizons in steps.
    pub horizons: Vec<usize>,
    /// Quantiles.
    pub quantiles: Vec<f64>,
    /// Forecasts are made from this step on: what lies before is the past.
    pub from: usize,
    /// Origins are so many steps apart.
    pub stride: usize,
}

/// Walks forward over `series` from `rules.from`: at every origin each method sees the past only.
/// Methods that could not forecast at all are left out.
#[must_use]
pub fn score(series: &[f64], methods: &[Method], rules: &ScoreRules) -> Vec<Score> {
    let mut scores = Vec::new();
    for &method in methods {
        let mut loss = 0.0;
        let mut count = 0usize;
        let mut under = vec![0usize; rules.quantiles.len()];
        for origin in (rules.from..series.len()).step_by(rules.stride.max(1)) {
            for &h in &rules.horizons {
                let Some(actual) = series.get(origin + h) else {
                    continue;
                };
                let Some(fitted) = fit(method, &series[..=origin], rules.season, h) else {
                    continue;
                };
                count += 1;
                for (i, q) in rules.quantiles.iter().enumerate() {
                    let forecast = fitted.quantile(*q);
                    loss += pinball(*q, forecast, *actual);
                    under[i] += usize::from(*actual <= forecast);
                }
            }
        }
        if count > 0 {
            let coverage = under.iter().map(|u| *u as f64 / count as f64).collect();
            let pinball = loss / (count * rules.quantiles.len()) as f64;
            scores.push(Score { method, pinball, coverage, forecasts: count });
        }
    }
    scores
}

/// The method with the lowest pinball loss on the last `window` steps of the past; seasonal-naive unless another beats
/// it, last value when the history is too short for a season.
#[must_use]
pub fn choose(history: &[f64], season: usize, horizon: usize, window: usize) -> Method {
    let rules = ScoreRules {
        season,
        horizons: vec![horizon],
        quantiles: vec![0.5, 0.9, 0.99],
        from: history.len().saturating_sub(window + horizon),
        stride: (window / 24).max(1),
    };
    let scores = score(history, &Method::ALL, &rules);
    let most = scores.iter().map(|s| s.forecasts).max().unwrap_or(0);
    let fair = scores.into_iter().filter(|s| s.forecasts == most);
    fair.min_by(|a, b| a.pinball.total_cmp(&b.pinball)).map_or(Method::LastValue, |s| s.method)
}

/// A path `[horizons][K]` with its probability.
pub type WeightedPath = (f64, Vec<Vec<f64>>);

/// Joint paths of several series: in each path, all series and horizons repeat the residuals of one past origin, which
/// keeps their correlation. `histories` are `[K][N]` with equal steps; the result has at most `count` paths whose
/// weights add up to 1.
///
/// All past origins are ranked by how high their path goes, summed over the series; the ranks are cut into strata that
/// are finer towards the top, and each stratum is told by its middle path. No chance is involved, so that plans of
/// neighbouring minutes see neighbouring paths, and the tail that a hit rate of 99 % asks for is always there.
///
/// Beyond `reach` steps, `[K]`, paths spread no further: what will be decided later will know more. Whoever can have a node
/// in ten minutes needs room in an hour for what cannot be foreseen ten minutes before, no more.
#[must_use]
pub fn paths(
    histories: &[Vec<f64>],
    methods: &[Method],
    season: usize,
    horizons: &[usize],
    reach: &[usize],
    count: usize,
) -> Vec<WeightedPath> {
    let fitted: Vec<Vec<Option<Fitted>>> = histories
        .iter()
        .zip(methods)
        .map(|(history, method)| horizons.iter().map(|h| fit_or_last(*method, history, season, *h)).collect())
        .collect();
    let errs: Vec<Option<Fitted>> = histories
        .iter()
        .zip(methods)
        .zip(reach)
        .map(|((history, method), steps)| fit_or_last(*method, history, season, (*steps).max(1)))
        .collect();
    let fits = || fitted.iter().flatten().flatten();
    let first = fits().map(|f| f.origins().0).max().unwrap_or(0);
    let last = fits().map(|f| f.origins().1).min().unwrap_or(0).max(first);
    let stride = fits().map(|f| f.origins.1).max().unwrap_or(1);
    let most: Vec<f64> = histories.iter().map(|h| SEEN_TIMES * h.iter().copied().fold(0.0, f64::max)).collect();
    let value = |k: usize, h: usize, origin: usize| {
        let now = histories[k].last().copied().unwrap_or(0.0);
        let far = errs[k].as_ref().filter(|_| horizons[h] > reach[k]);
        fitted[k][h].as_ref().map_or(now, |f| f.replay_error(far.unwrap_or(f), origin).min(most[k]))
    };
    let peak = |origin: usize| -> f64 {
        let of = |k: usize| (0..horizons.len()).map(|h| value(k, h, origin)).fold(0.0, f64::max);
        (0..histories.len()).map(of).sum()
    };
    let origins = alike(histories, (first..=last).step_by(stride).collect());
    let mut ranked: Vec<(f64, usize)> = origins.into_iter().map(|o| (peak(o), o)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    strata(ranked.len(), count)
        .into_iter()
        .map(|(from, to)| {
            let origin = ranked[(from + to) / 2].1;
            let row = |h: usize| (0..histories.len()).map(|k| value(k, h, origin)).collect();
            ((to - from) as f64 / ranked.len() as f64, (0..horizons.len()).map(row).collect())
        })
        .collect()
}

/// The origins at which demand stood most like now: a service that idles and one at its peak do not move alike
/// (nearest neighbours in the roots of the levels, each by its own spread).
fn alike(histories: &[Vec<f64>], mut origins: Vec<usize>) -> Vec<usize> {
    let keep = (origins.len() / 3).max(ALIKE_MIN);
    if origins.len() <= keep {
        return origins;
    }
    let spread = |row: &Vec<f64>| {
        let roots: Vec<f64> = origins.iter().map(|o| root(row[*o])).collect();
        let mean = roots.iter().sum::<f64>() / roots.len() as f64;
        (roots.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / roots.len() as f64).sqrt().max(1e-6)
    };
    let scale: Vec<f64> = histories.iter().map(spread).collect();
    let far = |o: usize| -> f64 {
        let of = |(row, scale): (&Vec<f64>, &f64)| {
            let now = row.last().copied().unwrap_or(0.0);
            (root(row[o]) - root(now)).abs() / scale
        };
        histories.iter().zip(&scale).map(of).sum()
    };
    let mut ranked: Vec<(f64, usize)> = origins.drain(..).map(|o| (far(o), o)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    ranked.into_iter().take(keep).map(|r| r.1).collect()
}

/// Cuts `0..len` into at most `count` ranges that get narrower towards the top, by the same factor each: the last is about
/// a hundredth of the first, whatever their number, and at least one wide.
fn strata(len: usize, count: usize) -> Vec<(usize, usize)> {
    const LAST_OF_FIRST: f64 = 0.0125;
    let shrink = LAST_OF_FIRST.powf(1.0 / (count.max(2) - 1) as f64);
    let share = |i: usize| shrink.powi(i as i32);
    let total: f64 = (0..count).map(share).sum();
    let mut cuts = vec![0];
    let mut upto = 0.0;
    for i in 0..count {
        upto += share(i) / total;
        let cut = ((upto * len as f64).round() as usize).min(len);
        if cut > cuts[cuts.len() - 1] {
            cuts.push(cut);
        }
    }
    cuts.windows(2).map(|w| (w[0], w[1])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleet::rng::Rng;

    fn daily(n: usize, noise: f64) -> Vec<f64> {
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
        for method in [Method::SeasonalNaive, Method::SeasonalShift, Method::Regression] {
            let fitted = fit(method, &series[..240], 48, 6).expect("long enough");
            assert!((fitted.quantile(0.5) - series[245]).abs() < 0.05, "{method:?}");
        }
    }

    #[test]
    fn coverage_is_what_was_asked() {
        let series = daily(48 * 40, 4.0);
        let rules =
            ScoreRules { season: 48, horizons: vec![1, 6], quantiles: vec![0.5, 0.9, 0.99], from: 48 * 14, stride: 3 };
        for score in score(&series, &Method::ALL, &rules) {
            for (asked, got) in rules.quantiles.iter().zip(&score.coverage) {
                assert!((asked - got).abs() < 0.06, "{:?}: {asked} asked, {got} covered", score.method);
            }
        }
    }

    #[test]
    fn the_future_is_not_seen() {
        let mut series = daily(48 * 10, 3.0);
        let before = fit(Method::Regression, &series[..300], 48, 4).expect("fit");
        series[300..].fill(1e6);
        assert_eq!(fit(Method::Regression, &series[..300], 48, 4), Some(before));
    }

    #[test]
    fn short_histories_fall_back() {
        assert!(fit(Method::SeasonalNaive, &[1.0; 10], 48, 1).is_none());
        assert_eq!(choose(&[5.0; 30], 48, 1, 10), Method::LastValue);
        let paths = paths(&[vec![3.0]], &[Method::SeasonalNaive], 48, &[1, 2], &[1], 4);
        assert_eq!(paths, vec![(1.0, vec![vec![3.0]; 2])]);
    }

    #[test]
    fn paths_spread_no_further_than_a_decision_reaches() {
        let series = daily(48 * 20, 6.0);
        let spread = |reach: usize| {
            let paths = paths(std::slice::from_ref(&series), &[Method::LastValue], 48, &[1, 2, 24], &[reach], 400);
            let at = |h: usize| {
                let values = || paths.iter().map(|(_, path)| path[h][0]);
                values().fold(0.0, f64::max) - values().fold(f64::INFINITY, f64::min)
            };
            [at(0), at(1), at(2)]
        };
        let (far, near) = (spread(24), spread(2));
        assert!(far[2] > 1.5 * far[0], "a day's rhythm is in the errors of half a day: {far:?}");
        assert_eq!(far[..1], near[..1], "what can be decided in time is as it was");
        assert!(near[2] < 0.8 * far[2], "{near:?} {far:?}");
    }

    #[test]
    fn strata_cover_everything_and_are_finest_at_the_top() {
        for (len, count) in [(600, 12), (5, 12), (1, 3), (600, 1)] {
            let cut = strata(len, count);
            assert_eq!((cut[0].0, cut[cut.len() - 1].1), (0, len));
            assert!(cut.windows(2).all(|w| w[0].1 == w[1].0) && cut.len() <= count);
        }
        let top = strata(600, 12)[11];
        assert!(top.1 - top.0 <= 6, "the top stratum is a hundredth: {top:?}");
        assert!(strata(600, 100).len() > 60, "more paths are more paths");
    }

    #[test]
    fn pinball_is_least_at_the_quantile() {
        let at = |f: f64| (0..=100).map(|y| pinball(0.9, f, f64::from(y))).sum::<f64>();
        assert!(at(90.0) <= at(80.0) && at(90.0) <= at(99.0));
    }
}
