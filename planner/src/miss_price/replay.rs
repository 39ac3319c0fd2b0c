//! What room by a price would have missed on a class's past.

use super::Known;
use crate::forecast::{self, Mix, Past};

/// Chances of a shortage that are tried on the past, falling.
const SHORT_CHANCES: [f64; 20] = [
    1.0, 0.7, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.09, 0.065, 0.048, 0.035, 0.025, 0.018, 0.012, 0.008, 0.005, 0.003,
    0.002, 0.001,
];
/// Claims of a season that say something of it.
const SEASON_CLAIMS_MIN: f64 = 10.0;

/// What room by a price would have done on the past.
#[derive(Debug)]
pub(super) struct Replayed {
    pub(super) steps: usize,
    pub(super) new_claims: f64,
    /// Claims that began in each season, the latest first.
    pub(super) new_by_season: Vec<f64>,
    /// Prices rising.
    pub(super) points: Vec<Point>,
}

#[derive(Debug)]
pub(super) struct Point {
    pub(super) price_usd: f64,
    pub(super) hit_rate: f64,
    pub(super) idle_claims: f64,
    /// Missed claims of each season.
    pub(super) missed: Vec<f64>,
}

impl Replayed {
    /// The price at which a typical season missed the share `aim`: the median over the seasons. A burst that no other season
    /// has is let go; what it misses moves the price when it has come true.
    pub(super) fn typical_price_usd(&self, aim: f64) -> f64 {
        let most = self.points.last().map_or(0.0, |p| p.price_usd);
        let of_season = |(i, new): (usize, &f64)| {
            let served = |p: &&Point| p.missed[i] <= aim * new;
            (*new >= SEASON_CLAIMS_MIN).then(|| self.points.iter().find(served).map_or(most, |p| p.price_usd))
        };
        let mut prices: Vec<f64> = self.new_by_season.iter().enumerate().filter_map(of_season).collect();
        prices.sort_by(f64::total_cmp);
        match prices.len() {
            0 => self.points.iter().find(|p| p.hit_rate >= 1.0 - aim).map_or(most, |p| p.price_usd),
            n => (prices[(n - 1) / 2] * prices[n / 2]).sqrt(),
        }
    }

    /// Half of this, half of `late`.
    fn half_late(mut self, late: &Self) -> Self {
        for (point, late) in self.points.iter_mut().zip(&late.points) {
            point.hit_rate = 0.5 * (point.hit_rate + late.hit_rate);
            point.idle_claims = 0.5 * (point.idle_claims + late.idle_claims);
            point.missed.iter_mut().zip(&late.missed).for_each(|(missed, late)| *missed = 0.5 * (*missed + late));
        }
        self
    }
}

/// Replays the past: launches arrive in time as often as late.
pub(super) fn replay(known: &Known) -> Option<Replayed> {
    let past = Past::of(known.claims, known.season);
    let in_time = replay_at(known, &past, known.lead_s)?;
    Some(match replay_at(known, &past, known.late_s.max(known.lead_s)) {
        Some(late) if late.new_by_season.len() == in_time.new_by_season.len() => in_time.half_late(&late),
        _ => in_time,
    })
}

/// Replays the past at each chance of a shortage. At each step, room is the quantile that was forecast a lead time before, from
/// what was known then.
fn replay_at(known: &Known, past: &Past, lead_s: f64) -> Option<Replayed> {
    let step_s = f64::from(known.step_s.max(1));
    let horizon = (lead_s / step_s).ceil().max(1.0) as usize;
    let quantiles = SHORT_CHANCES.map(|chance| 1.0 - chance);
    let walk = |mix: &Mix| forecast::walk(past, mix, horizon, &quantiles);
    let walked = walk(known.mix).or_else(|| walk(&forecast::Method::LAST_VALUE.into()))?;
    let renewed = (step_s / known.claim_mean_s.max(1.0)).min(1.0);
    let (actual, before) = (|t: usize| known.claims[t], |t: usize| known.claims[t - 1]);
    let new = |t: usize| (actual(t) - before(t)).max(0.0) + renewed * before(t).min(actual(t));
    let new_claims: f64 = walked.targets.iter().map(|t| new(*t)).sum();
    // Seasons are counted back from now.
    let season_of = |target: usize| (known.claims.len() - 1 - target) / known.season.max(1);
    let mut new_by_season = vec![0.0; season_of(*walked.targets.first()?) + 1];
    walked.targets.iter().for_each(|t| new_by_season[season_of(*t)] += new(*t));
    let steps = walked.targets.len();
    let point = |(chance, said): (f64, &Vec<f64>)| {
        let mut missed = vec![0.0; new_by_season.len()];
        let (mut idle, mut short_before, mut target_before) = (0.0, 0.0_f64, None);
        for (&t, said) in walked.targets.iter().zip(said) {
            let room = said.ceil();
            let short = (actual(t) - room).max(0.0);
            // Who is short already has been missed.
            let already = if target_before == Some(t - 1) { short_before } else { 0.0 };
            let again = if actual(t) > 0.0 { renewed * before(t).min(actual(t)) * short / actual(t) } else { 0.0 };
            missed[season_of(t)] += ((short - already).max(0.0) + again).min(new(t));
            idle += (room - actual(t)).max(0.0);
            (short_before, target_before) = (short, Some(t));
        }
        let hit_rate = if new_claims > 0.0 { 1.0 - missed.iter().sum::<f64>() / new_claims } else { 1.0 };
        let price_usd = known.without_usd() / chance;
        Point { price_usd, hit_rate, idle_claims: idle / steps.max(1) as f64, missed }
    };
    let points = SHORT_CHANCES.into_iter().zip(&walked.said).map(point).collect();
    Some(Replayed { steps, new_claims, new_by_season, points })
}
