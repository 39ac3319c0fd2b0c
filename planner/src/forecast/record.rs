//! How good methods were on the past, and what weight that gives them.

use serde::{Deserialize, Serialize};

use super::{Method, Mix, Origins, Past, Point, place};

/// Pinball loss of forecasting quantile `q` as `forecast` when `actual` comes (Koenker & Bassett 1978).
#[must_use]
pub fn pinball(q: f64, forecast: f64, actual: f64) -> f64 {
    let miss = actual - forecast;
    if miss >= 0.0 { q * miss } else { (q - 1.0) * miss }
}

/// What a mix would have said on the past, each time with the residuals known then.
#[derive(Debug, Clone, PartialEq)]
pub struct Walk {
    /// Steps that were forecast, `[n]`, rising.
    pub targets: Vec<usize>,
    /// Quantiles that were forecast, `[quantiles][n]`.
    pub said: Vec<Vec<f64>>,
}

/// Share of the origins that only give residuals to later ones.
const UNTOLD_SHARE: f64 = 0.2;

/// Most steps that a walk tells: a week of minutes.
const WALKED_MAX: usize = 12_000;

/// Walks forward over every step of `past`: `quantiles` of the value `horizon` steps ahead, from residuals that were known
/// there; of several methods, the mean of their quantiles. Weights of regressions and the least units of residuals are those
/// of the whole past. `None` when it is too short. A burst of a few minutes is one step or two: a walk over every tenth
/// would miss nine bursts of ten, and take the tenth for ten.
#[must_use]
pub fn walk(past: &Past, mix: &Mix, horizon: usize, quantiles: &[f64]) -> Option<Walk> {
    let origins = past.origins_at_most(mix.0.iter().any(|(m, _)| m.needs_a_season()), horizon, WALKED_MAX)?;
    walk_from(past, mix, horizon, quantiles, origins)
}

fn walk_from(past: &Past, mix: &Mix, horizon: usize, quantiles: &[f64], origins: Origins) -> Option<Walk> {
    let untold = ((origins.count as f64 * UNTOLD_SHARE) as usize).max(super::ORIGINS_MIN);
    // The first origin that is told has the residuals of `untold` others.
    let behind = horizon.div_ceil(origins.stride);
    let first = untold + behind;
    let told = origins.count.checked_sub(first).filter(|told| *told > 0)?;
    let mut roots = vec![vec![0.0; told]; quantiles.len()];
    for (method, weight) in &mix.0 {
        let part = past.part(*method, horizon, origins)?;
        let mut known: Vec<f64> = part.residuals[..untold].to_vec();
        known.sort_by(f64::total_cmp);
        for i in 0..told {
            let at = first + i;
            let new = part.residuals[at - behind];
            known.insert(known.partition_point(|r| *r < new), new);
            for (row, q) in roots.iter_mut().zip(quantiles) {
                let residual = known[place(*q, known.len())];
                row[i] += weight * (part.points[at] + residual * part.units[at]).max(0.0);
            }
        }
    }
    roots.iter_mut().flatten().for_each(|root| *root *= *root);
    let targets = origins.all().skip(first).map(|origin| origin + horizon).collect();
    Some(Walk { targets, said: roots })
}

/// Seasons of the past on which methods are judged.
const JUDGED_SEASONS: usize = 2;
/// A regression that has seen less is as good as it looks only on what it has seen.
const REGRESSION_ORIGINS_MIN: usize = 300;
/// How fast weight falls with loss: a method that is a tenth worse than the best has `e⁻²` of its weight.
const SHARPNESS: f64 = 20.0;
/// Where the past tells methods apart by nothing, what is there now is believed.
const LAST_VALUE_PRIOR: f64 = 5.0;
/// Weights below this are not worth their time.
const WEIGHT_MIN: f64 = 0.03;

/// Weighs all methods by their pinball loss at `quantiles`, `horizon` steps ahead, over the last seasons: exponentially
/// in the loss over that of the best (Cesa-Bianchi & Lugosi 2006, ch. 2). The last value alone where nothing can be judged.
#[must_use]
pub fn weigh(past: &Past, horizon: usize, quantiles: &[f64]) -> Mix {
    let from = past.history.len().saturating_sub(JUDGED_SEASONS * past.season);
    // All are judged on the same steps.
    let seasonal = past.origins(true, horizon);
    let Some(origins) = seasonal.or_else(|| past.origins(false, horizon)) else { return Method::LAST_VALUE.into() };
    let able = |method: &Method| match method.point {
        Point::LastValue => true,
        Point::SeasonalNaive => seasonal.is_some(),
        Point::Regression => seasonal.is_some_and(|origins| origins.count >= REGRESSION_ORIGINS_MIN),
    };
    let loss = |method: Method| Some((method, losses(past, method, horizon, quantiles, origins, from)?));
    let fair: Vec<(Method, Vec<f64>)> = Method::ALL.into_iter().filter(able).filter_map(loss).collect();
    let least = |q: usize| fair.iter().map(|j| j.1[q]).fold(f64::INFINITY, f64::min).max(super::TINY);
    let least: Vec<f64> = (0..quantiles.len()).map(least).collect();
    let worse = |j: &(Method, Vec<f64>)| {
        j.1.iter().zip(&least).map(|(loss, least)| loss / least).sum::<f64>() / least.len().max(1) as f64
    };
    let worse: Vec<f64> = fair.iter().map(worse).collect();
    let best = worse.iter().copied().fold(f64::INFINITY, f64::min);
    let prior = |j: &(Method, Vec<f64>)| if j.0 == Method::LAST_VALUE { LAST_VALUE_PRIOR } else { 1.0 };
    let weights: Vec<f64> = worse.iter().zip(&fair).map(|(w, j)| prior(j) * (-SHARPNESS * (w - best)).exp()).collect();
    let kept = || weights.iter().filter(|w| **w >= WEIGHT_MIN);
    let total: f64 = kept().sum();
    if fair.is_empty() || !total.is_finite() {
        return Method::LAST_VALUE.into();
    }
    let all = fair.iter().zip(&weights).filter(|(_, w)| **w >= WEIGHT_MIN);
    Mix(all.map(|(j, w)| (j.0, w / total)).collect())
}

/// Mean loss at each quantile for targets from step `from` on; `None` without any.
fn losses(
    past: &Past,
    method: Method,
    horizon: usize,
    quantiles: &[f64],
    origins: Origins,
    from: usize,
) -> Option<Vec<f64>> {
    let walk = walk_from(past, &method.into(), horizon, quantiles, origins)?;
    let first = walk.targets.partition_point(|t| *t < from);
    let count = walk.targets.len() - first;
    let of = |(q, said): (&f64, &Vec<f64>)| {
        let loss = |(t, said): (&usize, &f64)| pinball(*q, *said, past.history[*t]);
        walk.targets[first..].iter().zip(&said[first..]).map(loss).sum::<f64>() / count as f64
    };
    (count > 0).then(|| quantiles.iter().zip(&walk.said).map(of).collect())
}

/// Score of one method on one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Its name; `weighed` is what plans are made from.
    pub method: String,
    /// Mean pinball loss over quantiles, origins and horizons, in the series' unit.
    pub pinball: f64,
    /// Share of actuals at or under each quantile, in the order asked.
    pub coverage: Vec<f64>,
    /// Forecasts that were scored.
    pub forecasts: usize,
}

impl Score {
    /// The name of all methods together.
    pub const WEIGHED: &'static str = "weighed";

    fn new(method: &str, quantiles: usize) -> Self {
        Self { method: method.to_owned(), pinball: 0.0, coverage: vec![0.0; quantiles], forecasts: 0 }
    }

    fn add(&mut self, quantiles: &[f64], said: &[f64], actual: f64) {
        self.forecasts += 1;
        for ((q, said), coverage) in quantiles.iter().zip(said).zip(&mut self.coverage) {
            self.pinball += pinball(*q, *said, actual);
            *coverage += f64::from(u8::from(actual <= *said));
        }
    }

    fn mean(mut self) -> Self {
        let count = self.forecasts.max(1) as f64;
        self.pinball /= count * self.coverage.len().max(1) as f64;
        self.coverage.iter_mut().for_each(|c| *c /= count);
        self
    }
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

/// Origins after which methods are weighed again.
const WEIGH_EVERY: usize = 6;

/// Walks forward over `series` from `rules.from`: at every origin each method, and all of them weighed, see the past only.
/// Methods that could not forecast at all are left out.
#[must_use]
pub fn score(series: &[f64], rules: &ScoreRules) -> Vec<Score> {
    let blank = |name: &str| Score::new(name, rules.quantiles.len());
    let mut scores: Vec<Score> = Method::ALL.iter().map(|m| blank(m.name())).collect();
    let mut weighed = blank(Score::WEIGHED);
    let mut mixes: Vec<Mix> = Vec::new();
    for (turn, origin) in (rules.from..series.len()).step_by(rules.stride.max(1)).enumerate() {
        let past = Past::of(&series[..=origin], rules.season);
        if turn.is_multiple_of(WEIGH_EVERY) {
            mixes = rules.horizons.iter().map(|h| weigh(&past, *h, &rules.quantiles)).collect();
        }
        for (h, mix) in rules.horizons.iter().zip(&mixes) {
            let Some(actual) = series.get(origin + h) else { continue };
            let add = |mix: &Mix, score: &mut Score| {
                let Some(fitted) = past.fit(mix, *h) else { return };
                let said: Vec<f64> = rules.quantiles.iter().map(|q| fitted.quantile(*q)).collect();
                score.add(&rules.quantiles, &said, *actual);
            };
            Method::ALL.iter().zip(&mut scores).for_each(|(method, score)| add(&(*method).into(), score));
            add(mix, &mut weighed);
        }
    }
    scores.push(weighed);
    scores.into_iter().filter(|s| s.forecasts > 0).map(Score::mean).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Spread;
    use super::super::tests::daily;
    use super::*;
    use fleet::rng::Rng;

    #[test]
    fn coverage_is_what_was_asked() {
        let series = daily(48 * 40, 4.0);
        let rules =
            ScoreRules { season: 48, horizons: vec![1, 6], quantiles: vec![0.5, 0.9, 0.99], from: 48 * 14, stride: 3 };
        let scores = score(&series, &rules);
        assert_eq!(scores.len(), Method::ALL.len() + 1);
        for score in scores {
            for (asked, got) in rules.quantiles.iter().zip(&score.coverage) {
                assert!((asked - got).abs() < 0.06, "{}: {asked} asked, {got} covered", score.method);
            }
        }
    }

    /// What is said at a past step does not change with what came after it, but for the weights of regressions.
    #[test]
    fn a_walk_knows_what_was_known() {
        let series = daily(48 * 20, 4.0);
        let said = |upto: usize, method: Method| {
            let past = Past::of(&series[..upto], 48);
            walk(&past, &method.into(), 6, &[0.9]).expect("long enough")
        };
        for method in [Method::SEASONAL_NAIVE, Method::LAST_VALUE, Method::ALL[2]] {
            let (long, short) = (said(48 * 20, method), said(48 * 18, method));
            let last = *short.targets.last().expect("some");
            let of = |walk: &Walk| walk.said[0][walk.targets.iter().position(|t| *t == last).expect("there")];
            let (a, b) = (of(&long), of(&short));
            assert!((a - b).abs() < 0.05 * b, "{method:?}: {a} {b}");
        }
    }

    #[test]
    fn weight_goes_to_who_was_right() {
        let season = daily(48 * 12, 2.0);
        let mix = weigh(&Past::of(&season, 48), 12, &[0.9, 0.99]);
        let of = |point: Point| mix.0.iter().filter(|(m, _)| m.point == point).map(|(_, w)| w).sum::<f64>();
        assert!(of(Point::LastValue) < 0.05, "half a day away the last value says nothing: {mix:?}");
        // Calm and wild hours take turns: who knows how much it moves now is right.
        let mut rng = Rng::new(7);
        let mut level = 900.0;
        let turns: Vec<f64> = (0..48 * 40)
            .map(|i| {
                let noise = if i / 150 % 2 == 0 { 1.0 } else { 15.0 };
                level += 0.05 * (900.0 - level) + noise * rng.normal();
                level
            })
            .collect();
        let mix = weigh(&Past::of(&turns, 48), 2, &[0.9, 0.99]);
        let plain = mix.0.iter().filter(|(m, _)| m.spread == Spread::Plain).map(|(_, w)| w).sum::<f64>();
        assert!(plain < 0.2, "{mix:?}");
        assert!((mix.0.iter().map(|(_, w)| w).sum::<f64>() - 1.0).abs() < 1e-9);
    }

    /// However long the past is, no method is left out for having other origins than others: on a walk the last value counts.
    #[test]
    fn all_methods_are_judged_on_the_same_steps() {
        let mut rng = Rng::new(11);
        let mut level = 900.0;
        let mut next = || {
            level = f64::max(level + 5.0 * rng.normal(), 1.0);
            level
        };
        let walk: Vec<f64> = (0..48 * 90).map(|_| next()).collect();
        for days in (4..90).step_by(2) {
            let mix = weigh(&Past::of(&walk[..48 * days], 48), 1, &[0.9, 0.99]);
            let of = |point: Point| mix.0.iter().filter(|(m, _)| m.point == point).map(|(_, w)| w).sum::<f64>();
            assert!(of(Point::LastValue) > 0.15, "{days} days: {mix}");
        }
    }

    #[test]
    fn short_histories_fall_back() {
        assert!(Past::of(&[1.0; 10], 48).fit(&Method::SEASONAL_NAIVE.into(), 1).is_none());
        assert!(weigh(&Past::of(&[5.0; 30], 48), 1, &[0.9]).0.iter().all(|(m, _)| m.point == Point::LastValue));
        for few in [vec![], vec![1.0], vec![0.0; 9]] {
            assert_eq!(weigh(&Past::of(&few, 48), 1, &[0.9]), Method::LAST_VALUE.into());
        }
    }

    #[test]
    fn pinball_is_least_at_the_quantile() {
        let at = |f: f64| (0..=100).map(|y| pinball(0.9, f, f64::from(y))).sum::<f64>();
        assert!(at(90.0) <= at(80.0) && at(90.0) <= at(99.0));
    }
}
