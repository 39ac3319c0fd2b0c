//! What a missed claim counts for: one price for each class, the same at all moments, so that its long-run hit rate is met
//! where that is cheap and a rare dear burst is let go.
//!
//! The price is found on the class's own past, as people find the knobs of simple rules: at a price `m` the newsvendor
//! holds room until the chance of a shortage is `ε = c·w/m`, with `c` the dollars of a claim's GPUs for a second and `w` the
//! seconds that a claim goes without; what the forecast's own residuals would have missed with that room is known. From
//! there it moves slowly with what comes true: misses beyond those that the target allows raise it, misses left unspent
//! lower it (dual ascent on the long-run target; as adaptive conformal inference moves its quantile, Gibbs & Candès 2021).
//! The operator's price of a miss is its floor, and it has a cap.

use fleet::UsdMicros;
use fleet::book::Tally;
use serde::{Deserialize, Serialize};

use crate::base_stock::newsvendor_penalty_usd;
use crate::forecast::{self, Method};
use crate::input::{MissPrice, PriceBasis, ServicePoint};
use crate::plan::micros;

/// Chances of a shortage that are tried on the past, falling.
const SHORT_CHANCES: [f64; 20] = [
    1.0, 0.7, 0.5, 0.4, 0.3, 0.22, 0.16, 0.12, 0.09, 0.065, 0.048, 0.035, 0.025, 0.018, 0.012, 0.008, 0.005, 0.003,
    0.002, 0.001,
];
/// A past tells a price when so many of its steps can be replayed, and so many claims began in them.
const STEPS_MIN: usize = 200;
const CLAIMS_MIN: f64 = 30.0;
/// Claims of a season that say something of it.
const SEASON_CLAIMS_MIN: f64 = 10.0;
/// Share of the allowed misses that is aimed at: the rest is for days on which everything goes wrong.
const SPENT_SHARE: f64 = 0.85;
/// The price may become so many times the operator's, or what the closed form says, whichever is more.
const CAP_TIMES: f64 = 10.0;
/// How much a day's worth of allowed misses moves the price, as a power of e.
const GAIN: f64 = 0.5;
/// Days' worth of misses that are remembered, unspent or overspent.
const DAYS_MAX: f64 = 4.0;
/// A quiet class has not proven its target before it was allowed so many misses (the rule of three: none among `n` is
/// 95 % sure of a rate below `3 / n`; Hanley & Lippman-Hand 1983).
const FEWEST_MISSES: f64 = 3.0;
const DAY_S: f64 = 86_400.0;

/// What is known of a class when its price is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Concurrent claims so far in equal steps, `[N]`.
    pub claims: &'a [f64],
    /// Length of a step, seconds.
    pub step_s: u32,
    /// Length of the season, steps.
    pub season: usize,
    /// How the class is forecast.
    pub method: Method,
    /// From a decision to its nodes, seconds.
    pub lead_s: f64,
    /// Mean life of a claim, seconds.
    pub claim_mean_s: f64,
    /// Dollars an hour for the GPUs of one claim at its cheapest offer.
    pub claim_usd_per_h: f64,
    /// Hit rate that is promised.
    pub hit_rate_target: f64,
    /// The operator's price of a miss.
    pub miss_cost_usd_micros: UsdMicros,
}

impl Known<'_> {
    /// Dollars of a claim's GPUs while a claim goes without: until a launch of that moment arrives, or the claim ends.
    fn without_usd(&self) -> f64 {
        self.claim_usd_per_h / 3600.0 * self.lead_s.min(self.claim_mean_s).max(1.0)
    }

    fn has_target(&self) -> bool {
        self.hit_rate_target > 0.0
    }

    /// The newsvendor's price at which a shortage has the chance of a miss that the target allows:
    /// `m = c·w·α/(1−α)`.
    fn closed_form_usd(&self) -> f64 {
        newsvendor_penalty_usd(self.without_usd(), self.hit_rate_target.min(0.999_99))
    }

    fn cap_usd(&self) -> f64 {
        (CAP_TIMES * self.miss_cost_usd_micros.usd()).max(self.closed_form_usd())
    }

    fn enough_past(&self, replayed: &Replayed) -> bool {
        replayed.steps >= STEPS_MIN && replayed.new_claims >= CLAIMS_MIN
    }
}

/// Where a class's price starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    usd: f64,
    cap_usd: f64,
    basis: PriceBasis,
    curve: Vec<ServicePoint>,
}

/// The prices of all classes, and what has come true since they were looked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MissPrices {
    bases: Vec<Base>,
    classes: Vec<Spent>,
    seen_s: f64,
}

/// What a class has missed against what its target allows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Spent {
    /// Misses beyond the allowed ones, in those that the target allows on a mean day; negative where some are left.
    days: f64,
    claims_per_s: f64,
    judged: Tally,
}

impl MissPrices {
    /// Looks for the price of each class on its past, `[K]`; `names` are theirs. A class with too little past starts from
    /// one like it: of those with a past, the one whose GPUs cost most nearly as much.
    pub fn look(&mut self, known: &[Known], names: &[&str]) {
        let own: Vec<Option<Base>> = known.iter().map(of_past).collect();
        let base = |(k, of): (usize, &Known)| {
            if let Some(base) = &own[k] {
                return base.clone();
            }
            let (floor, cap_usd) = (of.miss_cost_usd_micros.usd(), of.cap_usd());
            if !of.has_target() {
                return Base { usd: floor, cap_usd: floor, basis: PriceBasis::Operator, curve: Vec::new() };
            }
            let apart = |j: usize| (known[j].claim_usd_per_h.max(1e-9) / of.claim_usd_per_h.max(1e-9)).ln().abs();
            let alike = (0..known.len()).filter(|j| own[*j].is_some() && known[*j].has_target());
            match alike.min_by(|a, b| apart(*a).total_cmp(&apart(*b)).then(a.cmp(b))) {
                // What it pays for room, in the price of its own.
                Some(j) => {
                    let usd = own[j].as_ref().map_or(0.0, |base| base.usd) / known[j].without_usd() * of.without_usd();
                    Base {
                        usd: usd.clamp(floor, cap_usd),
                        cap_usd,
                        basis: PriceBasis::Like(names[j].into()),
                        curve: vec![],
                    }
                }
                None => {
                    let usd = of.closed_form_usd().clamp(floor, cap_usd);
                    Base { usd, cap_usd, basis: PriceBasis::ClosedForm, curve: Vec::new() }
                }
            }
        };
        self.bases = known.iter().enumerate().map(base).collect();
    }

    /// Whether prices were looked for, for so many classes.
    #[must_use]
    pub fn has(&self, classes: usize) -> bool {
        self.bases.len() == classes
    }

    /// Takes in all that was judged so far (running totals, `[K]`) `elapsed_s` seconds after the last time.
    /// `targets` are hit rates, `[K]`. Totals that fall are a restart: counting begins again there.
    pub fn observe(&mut self, targets: &[f64], totals: &[Tally], elapsed_s: f64) {
        self.classes.resize(totals.len(), Spent::default());
        self.seen_s += elapsed_s.max(0.0);
        for ((spent, total), target) in self.classes.iter_mut().zip(totals).zip(targets) {
            let since = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now) as f64;
            let misses = since(total.misses, spent.judged.misses);
            let claims = since(total.hits, spent.judged.hits) + misses;
            spent.judged = *total;
            // What was there before the first look proves nothing.
            if elapsed_s <= 0.0 {
                continue;
            }
            let weight = (elapsed_s / self.seen_s.min(DAY_S)).min(1.0);
            spent.claims_per_s += (claims / elapsed_s - spent.claims_per_s) * weight;
            let allowed = (1.0 - target).max(0.0);
            let per_day = (allowed * spent.claims_per_s * DAY_S).max(FEWEST_MISSES);
            spent.days = (spent.days + (misses - SPENT_SHARE * allowed * claims) / per_day).clamp(-DAYS_MAX, DAYS_MAX);
        }
    }

    /// The price of each class, `[K]`; `floors` are the operator's prices.
    #[must_use]
    pub fn prices(&self, floors: &[UsdMicros]) -> Vec<MissPrice> {
        let price = |(k, base): (usize, &Base)| {
            let days = self.classes.get(k).map_or(0.0, |spent| spent.days);
            let floor = floors[k].usd();
            let cap = base.cap_usd.max(floor);
            let wanted = base.usd * (GAIN * days).exp();
            let basis = match wanted {
                wanted if wanted <= floor => PriceBasis::Operator,
                wanted if wanted > cap => PriceBasis::Cap,
                _ => base.basis.clone(),
            };
            MissPrice {
                usd_micros: micros(wanted.clamp(floor, cap)),
                basis,
                cap_usd_micros: micros(cap),
                curve: base.curve.clone(),
            }
        };
        self.bases.iter().take(floors.len()).enumerate().map(price).collect()
    }

    /// The same for another counting of the same classes, whose totals begin at 0.
    #[must_use]
    pub fn carried_over(&self) -> Self {
        let mut next = self.clone();
        next.classes.iter_mut().for_each(|spent| spent.judged = Tally::default());
        next
    }
}

/// The price that a class's past asks for; `None` where it tells too little.
fn of_past(known: &Known) -> Option<Base> {
    let replayed = replay(known)?;
    if !known.enough_past(&replayed) {
        return None;
    }
    let (floor, cap) = (known.miss_cost_usd_micros.usd(), known.cap_usd());
    let point = |p: &Point| ServicePoint {
        price_usd_micros: micros(p.price_usd),
        hit_rate: p.hit_rate,
        idle_usd_micros_per_h: micros(p.idle_claims * known.claim_usd_per_h),
    };
    let curve: Vec<ServicePoint> = replayed.points.iter().map(point).collect();
    if !known.has_target() {
        return Some(Base { usd: floor, cap_usd: floor, basis: PriceBasis::Operator, curve });
    }
    let aim = 1.0 - SPENT_SHARE * (1.0 - known.hit_rate_target);
    let asked = replayed.typical_price_usd(aim);
    let basis = if asked > cap { PriceBasis::Cap } else { PriceBasis::Past };
    Some(Base { usd: asked.clamp(floor, cap), cap_usd: cap, basis, curve })
}

/// What room by a price would have done on the past.
#[derive(Debug)]
struct Replayed {
    steps: usize,
    new_claims: f64,
    /// Claims that began in each season.
    new_by_season: Vec<f64>,
    /// Prices rising.
    points: Vec<Point>,
}

#[derive(Debug)]
struct Point {
    price_usd: f64,
    hit_rate: f64,
    idle_claims: f64,
    /// Missed claims of each season.
    missed: Vec<f64>,
}

impl Replayed {
    /// The price at which a typical season had `aim` of its claims served: the median over the seasons. A burst that no
    /// other season has is let go; what it misses moves the price when it has come true.
    fn typical_price_usd(&self, aim: f64) -> f64 {
        let most = self.points.last().map_or(0.0, |p| p.price_usd);
        let of_season = |(i, new): (usize, &f64)| {
            let served = |p: &&Point| p.missed[i] <= (1.0 - aim) * new;
            (*new >= SEASON_CLAIMS_MIN).then(|| self.points.iter().find(served).map_or(most, |p| p.price_usd))
        };
        let mut prices: Vec<f64> = self.new_by_season.iter().enumerate().filter_map(of_season).collect();
        prices.sort_by(f64::total_cmp);
        match prices.len() {
            0 => self.points.iter().find(|p| p.hit_rate >= aim).map_or(most, |p| p.price_usd),
            n => (prices[(n - 1) / 2] * prices[n / 2]).sqrt(),
        }
    }
}

/// Replays the past at each chance of a shortage. At each step, room is what the forecast of a lead time before said, and
/// its residuals' quantile on top.
fn replay(known: &Known) -> Option<Replayed> {
    let step_s = f64::from(known.step_s.max(1));
    let horizon = (known.lead_s / step_s).ceil().max(1.0) as usize;
    let fitted = forecast::fit_or_last(known.method, known.claims, known.season, horizon)?;
    let past = fitted.past(known.claims, horizon);
    let renewed = (step_s / known.claim_mean_s.max(1.0)).min(1.0);
    let mut residuals: Vec<f64> = past.iter().map(|p| p.residual).collect();
    residuals.sort_by(f64::total_cmp);
    let new = |now: f64, before: f64| (now - before).max(0.0) + renewed * before.min(now);
    let new_claims: f64 = past.iter().map(|p| new(p.actual, p.before)).sum();
    // Seasons are counted back from now.
    let season_of = |target: usize| (known.claims.len() - 1 - target) / known.season.max(1);
    let mut new_by_season = vec![0.0; season_of(past.first()?.target) + 1];
    past.iter().for_each(|p| new_by_season[season_of(p.target)] += new(p.actual, p.before));
    let mut points: Vec<Point> = Vec::new();
    for chance in SHORT_CHANCES {
        let place = ((1.0 - chance) * residuals.len() as f64).ceil() as usize;
        let on_top = residuals[place.clamp(1, residuals.len()) - 1];
        let mut missed = vec![0.0; new_by_season.len()];
        let (mut idle, mut short_before, mut target_before) = (0.0, 0.0_f64, None);
        for p in &past {
            let room = p.with(on_top).ceil();
            let short = (p.actual - room).max(0.0);
            // Who is short already has been missed.
            let before = if target_before == Some(p.target - 1) { short_before } else { 0.0 };
            let again = if p.actual > 0.0 { renewed * p.before.min(p.actual) * short / p.actual } else { 0.0 };
            missed[season_of(p.target)] += ((short - before).max(0.0) + again).min(new(p.actual, p.before));
            idle += (room - p.actual).max(0.0);
            (short_before, target_before) = (short, Some(p.target));
        }
        let hit_rate = if new_claims > 0.0 { 1.0 - missed.iter().sum::<f64>() / new_claims } else { 1.0 };
        let price_usd = known.without_usd() / chance;
        points.push(Point { price_usd, hit_rate, idle_claims: idle / past.len().max(1) as f64, missed });
    }
    Some(Replayed { steps: past.len(), new_claims, new_by_season, points })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleet::rng::Rng;

    fn known(claims: &[f64], target: f64) -> Known<'_> {
        Known {
            claims,
            step_s: 300,
            season: 288,
            method: Method::LastValue,
            lead_s: 300.0,
            claim_mean_s: 3600.0,
            claim_usd_per_h: 12.0,
            hit_rate_target: target,
            miss_cost_usd_micros: UsdMicros(1_000_000),
        }
    }

    /// A walk that returns to its level, of five days.
    fn series(seed: u64, noise: f64) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        let mut walk = 0.0;
        let mut next = || {
            walk = 0.9 * walk + noise * rng.normal();
            (20.0 + walk).round().max(0.0)
        };
        (0..5 * 288).map(|_| next()).collect()
    }

    fn price(claims: &[f64], target: f64) -> MissPrice {
        let mut prices = MissPrices::default();
        prices.look(&[known(claims, target)], &["k"]);
        prices.prices(&[UsdMicros(1_000_000)]).remove(0)
    }

    #[test]
    fn a_higher_target_asks_for_a_higher_price_within_floor_and_cap() {
        let claims = series(1, 2.0);
        let prices: Vec<f64> =
            [0.0, 0.5, 0.9, 0.99, 0.999_99].iter().map(|t| price(&claims, *t).usd_micros.usd()).collect();
        assert!(prices.windows(2).all(|w| w[0] <= w[1]) && prices[3] > prices[0], "{prices:?}");
        assert_eq!(prices[0], 1.0, "without a target a miss costs what the operator says");
        assert_eq!(price(&claims, 0.0).basis, PriceBasis::Operator);
        let curve = price(&claims, 0.99).curve;
        assert!(curve.windows(2).all(|w| w[0].hit_rate <= w[1].hit_rate + 1e-9), "{curve:?}");
        let next = price(&claims, 0.9).next_point_usd_per_h().expect("the past tells");
        assert!(next > 0.0 && next < 12.0, "{next}");
    }

    /// What the curve says at the price is what its room gives on the same past.
    #[test]
    fn the_price_gives_the_target_on_the_past() {
        let claims = series(2, 3.0);
        let found = price(&claims, 0.97);
        let at = found.curve.iter().find(|p| p.price_usd_micros == found.usd_micros).expect("on the curve");
        assert!(at.hit_rate >= 0.97 && at.hit_rate < 0.999, "{at:?}");
    }

    #[test]
    fn too_little_past_starts_from_its_like_or_the_closed_form() {
        let (long, short) = (series(3, 2.0), vec![4.0; 20]);
        let mut prices = MissPrices::default();
        let dear = Known { claim_usd_per_h: 48.0, ..known(&short, 0.99) };
        prices.look(&[known(&long, 0.99), dear], &["old", "new"]);
        let found = prices.prices(&[UsdMicros(1_000_000); 2]);
        assert_eq!(found[1].basis, PriceBasis::Like("old".into()));
        let times = found[1].usd_micros.usd() / found[0].usd_micros.usd();
        assert!((times - 4.0).abs() < 0.01, "GPUs four times as dear: {times}");
        prices.look(&[known(&short, 0.99)], &["new"]);
        let alone = prices.prices(&[UsdMicros(1_000_000)]).remove(0);
        assert_eq!(alone.basis, PriceBasis::ClosedForm);
        assert!((alone.usd_micros.usd() - 99.0).abs() < 0.1, "c·w·α/(1−α) = $1 × 99: {alone:?}");
    }

    /// Days of `hits` and `misses` an hour.
    fn after(hours: u64, hits: u64, misses: u64) -> f64 {
        let claims = series(4, 2.0);
        let mut prices = MissPrices::default();
        prices.look(&[known(&claims, 0.99)], &["k"]);
        for hour in 0..=hours {
            let elapsed_s = if hour == 0 { 0.0 } else { 3600.0 };
            prices.observe(&[0.99], &[Tally { hits: hits * hour, misses: misses * hour }], elapsed_s);
        }
        prices.prices(&[UsdMicros(10_000)])[0].usd_micros.usd()
    }

    #[test]
    fn misses_raise_the_price_and_their_absence_lowers_it() {
        let start = after(0, 0, 0);
        assert!(after(48, 500, 0) < 0.5 * start && after(48, 475, 25) > 1.5 * start);
        let even = after(48, 9915, 85);
        assert!((even / start - 1.0).abs() < 0.05, "what is allowed leaves it: {start} {even}");
        assert!(after(480, 500, 0) >= 0.01 && after(480, 0, 500) <= 100.0, "floor and cap hold");
        // None among a hundred claims says little of one in a hundred.
        assert!(after(24, 4, 0) > 0.8 * start);
    }
}
