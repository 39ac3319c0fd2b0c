//! What a missed claim counts for: one price for each class, the same at all moments, so that its long-run hit rate is met
//! where that is cheap and a rare dear burst is let go.
//!
//! The price is found on the class's own past, as people find the knobs of simple rules: at a price `m` the newsvendor
//! holds room until the chance of a shortage is `ε = c·w/m`, with `c` the dollars of a claim's GPUs for a second and `w` the
//! seconds that a claim goes without; what room by the forecasts of each moment would have missed is known. That replay
//! knows nothing of whole nodes, of room that classes share, of nodes that are lost or that stay for a while: what the plans
//! themselves expect to miss is held against it over the last days, and the price moves slowly to where *they* meet the
//! target. What comes true moves it too: misses beyond those that the target allows raise it, misses left unspent lower it
//! (dual ascent on the long-run target; as adaptive conformal inference moves its quantile, Gibbs & Candès 2021).
//! The operator's price of a miss is its floor, and it has a cap.

mod replay;

use fleet::UsdMicros;
use fleet::book::Tally;
use serde::{Deserialize, Serialize};

use crate::assumptions::TARGET_MAX;
use crate::base_stock::newsvendor_penalty_usd;
use crate::forecast::Mix;
use crate::input::{MissPrice, PriceBasis, ServicePoint};
use crate::plan::micros;

/// A past tells a price when so many of its steps can be replayed, and so many claims began in them.
const STEPS_MIN: usize = 200;
const CLAIMS_MIN: f64 = 30.0;
/// Share of the allowed misses that is left for days on which everything goes wrong, and the most that is left: a class with
/// a target of 99 % aims at 99.5, one with 90 % at 92.
const LEFT_SHARE: f64 = 0.5;
const LEFT_MAX: f64 = 0.02;
/// The price may become so many times the operator's or the closed form's, whichever is more.
const CAP_TIMES: f64 = 10.0;
/// How much a day's worth of allowed misses moves the price, as a power of e.
const GAIN: f64 = 0.5;
/// Days' worth of misses that are remembered, unspent or overspent.
const DAYS_MAX: f64 = 4.0;
/// Misses that came true raise the price at most so many times: what room costs stands in the replay, and a burst that no room
/// meets is not met at a higher price either.
const PUSH_TIMES_MAX: f64 = 2.0;
/// A quiet class has not proven its target before it was allowed so many misses (the rule of three: none among `n` is
/// 95 % sure of a rate below `3 / n`; Hanley & Lippman-Hand 1983).
const FEWEST_MISSES: f64 = 3.0;
/// Expected misses after which plans are believed as much as the replay.
const BELIEVED_MISSES: f64 = 10.0;
/// Days that plans are held against the replay, and hours in which the price follows.
const HELD_DAYS: f64 = 2.0;
const FOLLOWS_H: f64 = 6.0;
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
    pub mix: &'a Mix,
    /// From a decision to its nodes, seconds: by when half of the launches have arrived, and nearly all.
    pub lead_s: f64,
    /// Nearly all.
    pub late_s: f64,
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
        newsvendor_penalty_usd(self.without_usd(), self.hit_rate_target.min(TARGET_MAX))
    }

    fn cap_usd(&self) -> f64 {
        CAP_TIMES * self.miss_cost_usd_micros.usd().max(self.closed_form_usd())
    }

    fn enough_past(&self, replayed: &replay::Replayed) -> bool {
        replayed.steps >= STEPS_MIN && replayed.new_claims >= CLAIMS_MIN
    }
}

/// Share of its claims that a class with a target means to miss.
fn allowed(target: f64) -> f64 {
    let allowed = 1.0 - target.min(TARGET_MAX);
    allowed - (LEFT_SHARE * allowed).min(LEFT_MAX)
}

/// Where a class's price starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Base {
    usd: f64,
    /// Dollars of a claim's GPUs while it goes without.
    #[serde(default)]
    without_usd: f64,
    cap_usd: f64,
    basis: PriceBasis,
    curve: Vec<ServicePoint>,
}

impl Base {
    /// A price within the operator's and the cap.
    fn within(&self, usd: f64, floor: UsdMicros) -> f64 {
        usd.clamp(floor.usd(), self.cap_usd.max(floor.usd()))
    }

    /// The price at which the past would have missed the share `aim`, if it had missed `factor` times as much; the cap at most.
    fn asked_usd(&self, factor: f64, aim: f64) -> f64 {
        let Some(last) = self.curve.last() else { return self.usd };
        let logs = |p: &ServicePoint| (ln(p.price_usd_micros.usd()), ln(factor * (1.0 - p.hit_rate)));
        let goal = ln(aim);
        let asked = match self.curve.iter().position(|p| logs(p).1 <= goal) {
            Some(0) => logs(&self.curve[0]).0,
            Some(i) => {
                let ((price, missed), (next_price, next_missed)) = (logs(&self.curve[i - 1]), logs(&self.curve[i]));
                price + (next_price - price) * between(missed, next_missed, goal)
            }
            // Beyond the past, misses fall as the chance of a shortage does.
            None => logs(last).0 + logs(last).1 - goal,
        };
        asked.exp().min(self.cap_usd)
    }

    /// Share that the past would have missed at a price.
    fn miss_share(&self, usd: f64) -> f64 {
        let missed = |i: usize| 1.0 - self.curve[i].hit_rate;
        let price = |i: usize| ln(self.curve[i].price_usd_micros.usd());
        match self.curve.iter().position(|p| p.price_usd_micros.usd() >= usd) {
            Some(0) => missed(0),
            Some(i) => missed(i - 1) + (missed(i) - missed(i - 1)) * between(price(i - 1), price(i), ln(usd)),
            None => self.curve.last().map_or(0.0, |p| 1.0 - p.hit_rate),
        }
    }
}

/// Logarithm of a number that may be 0.
fn ln(value: f64) -> f64 {
    value.max(1e-9).ln()
}

/// Where `at` lies between two numbers, in [0, 1].
fn between(from: f64, to: f64, at: f64) -> f64 {
    if (to - from).abs() < 1e-12 { 1.0 } else { ((at - from) / (to - from)).clamp(0.0, 1.0) }
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
    /// What plans expected to miss, against what the replay said at the same prices, in claims of the last days.
    #[serde(default)]
    planned: f64,
    #[serde(default)]
    replayed: f64,
    /// Logarithm of the price asked, moved slowly.
    #[serde(default)]
    asked_ln: Option<f64>,
}

impl Spent {
    /// Misses of plans for each miss of the replay.
    fn factor(&self) -> f64 {
        (self.planned + BELIEVED_MISSES) / (self.replayed + BELIEVED_MISSES)
    }

    /// What misses that came true do to the price.
    fn push(&self) -> f64 {
        (GAIN * self.days).exp().min(PUSH_TIMES_MAX)
    }
}

/// What a plan expects of a class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// New claims a second.
    pub claims_per_s: f64,
    /// Share of them that will be missed.
    pub miss_share: f64,
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
            let without_usd = of.without_usd();
            let (floor, cap_usd) = (of.miss_cost_usd_micros.usd(), of.cap_usd());
            if !of.has_target() {
                return Base {
                    without_usd,
                    usd: floor,
                    cap_usd: floor,
                    basis: PriceBasis::Operator,
                    curve: Vec::new(),
                };
            }
            let apart = |j: usize| (known[j].claim_usd_per_h.max(1e-9) / of.claim_usd_per_h.max(1e-9)).ln().abs();
            let alike = (0..known.len()).filter(|j| own[*j].is_some() && known[*j].has_target());
            match alike.min_by(|a, b| apart(*a).total_cmp(&apart(*b)).then(a.cmp(b))) {
                // What it pays for room, in the price of its own.
                Some(j) => {
                    let usd = own[j].as_ref().map_or(0.0, |base| base.usd) / known[j].without_usd() * of.without_usd();
                    Base {
                        without_usd,
                        usd: usd.clamp(floor, cap_usd),
                        cap_usd,
                        basis: PriceBasis::Like(names[j].into()),
                        curve: vec![],
                    }
                }
                None => {
                    let usd = of.closed_form_usd().clamp(floor, cap_usd);
                    Base { without_usd, usd, cap_usd, basis: PriceBasis::ClosedForm, curve: Vec::new() }
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

    /// Takes in what the plan that held for `elapsed_s` seconds expected of each class, `[K]`; `targets` are hit rates and
    /// `floors` the operator's prices, `[K]`.
    pub fn expect(&mut self, targets: &[f64], floors: &[UsdMicros], expected: &[Expected], elapsed_s: f64) {
        self.classes.resize(self.classes.len().max(self.bases.len()), Spent::default());
        if elapsed_s <= 0.0 {
            return;
        }
        let keep = (-elapsed_s / (HELD_DAYS * DAY_S)).exp();
        let step = 1.0 - (-elapsed_s / (FOLLOWS_H * 3600.0)).exp();
        let wishes = targets.iter().zip(floors);
        for (((spent, base), of), (target, floor)) in self.classes.iter_mut().zip(&self.bases).zip(expected).zip(wishes)
        {
            if base.curve.is_empty() || *target <= 0.0 {
                spent.asked_ln = None;
                continue;
            }
            // Plans may expect less than the replay; more is what bursts carry that a typical season lets go.
            let aim = allowed(*target);
            let asked =
                ln(base.usd * base.asked_usd(spent.factor().min(1.0), aim) / base.asked_usd(1.0, aim).max(1e-9));
            let before = *spent.asked_ln.get_or_insert(asked);
            let claims = of.claims_per_s * elapsed_s;
            spent.planned = keep * spent.planned + claims * of.miss_share;
            let used_usd = base.within(before.exp() * spent.push(), *floor);
            spent.replayed = keep * spent.replayed + claims * base.miss_share(used_usd);
            spent.asked_ln = Some(before + step * (asked - before));
        }
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
            let per_day = ((1.0 - target.min(TARGET_MAX)) * spent.claims_per_s * DAY_S).max(FEWEST_MISSES);
            spent.days = (spent.days + (misses - allowed(*target) * claims) / per_day).clamp(-DAYS_MAX, DAYS_MAX);
        }
    }

    /// The price of each class, `[K]`; `floors` are the operator's prices.
    #[must_use]
    pub fn prices(&self, floors: &[UsdMicros]) -> Vec<MissPrice> {
        let price = |(k, base): (usize, &Base)| {
            let floor = floors[k].usd();
            let cap = base.cap_usd.max(floor);
            let wanted = self.wanted_usd(k);
            let basis = match wanted {
                wanted if wanted <= floor => PriceBasis::Operator,
                wanted if wanted > cap => PriceBasis::Cap,
                _ => base.basis.clone(),
            };
            MissPrice {
                usd_micros: micros(base.within(wanted, floors[k])),
                basis,
                cap_usd_micros: micros(cap),
                curve: base.curve.clone(),
            }
        };
        self.bases.iter().take(floors.len()).enumerate().map(price).collect()
    }

    /// The price of a class, before floor and cap.
    fn wanted_usd(&self, k: usize) -> f64 {
        let Some(spent) = self.classes.get(k) else { return self.bases[k].usd };
        spent.asked_ln.map_or(self.bases[k].usd, f64::exp) * spent.push()
    }

    /// Chance of a shortage at which each class's room pays at its price, `[K]`; `None` where that is not known.
    #[must_use]
    pub fn short_chances(&self, floors: &[UsdMicros]) -> Vec<Option<f64>> {
        let chance = |(k, (base, floor)): (usize, (&Base, &UsdMicros))| {
            let chance = base.without_usd / base.within(self.wanted_usd(k), *floor);
            (base.without_usd > 0.0 && chance.is_finite()).then_some(chance)
        };
        self.bases.iter().zip(floors).enumerate().map(chance).collect()
    }

    /// The same for other classes: each place has the place that it had before, if any. Prices are to be looked for again.
    pub fn rearrange(&mut self, before: &[Option<usize>]) {
        let of = |place: &Option<usize>| place.and_then(|i| self.classes.get(i)).cloned().unwrap_or_default();
        self.classes = before.iter().map(of).collect();
        self.bases.clear();
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
    let replayed = replay::replay(known)?;
    if !known.enough_past(&replayed) {
        return None;
    }
    let (floor, cap, without_usd) = (known.miss_cost_usd_micros.usd(), known.cap_usd(), known.without_usd());
    let point = |p: &replay::Point| ServicePoint {
        price_usd_micros: micros(p.price_usd),
        hit_rate: p.hit_rate,
        idle_usd_micros_per_h: micros(p.idle_claims * known.claim_usd_per_h),
    };
    let curve: Vec<ServicePoint> = replayed.points.iter().map(point).collect();
    if !known.has_target() {
        return Some(Base { without_usd, usd: floor, cap_usd: floor, basis: PriceBasis::Operator, curve });
    }
    let base = Base { without_usd, usd: 0.0, cap_usd: cap, basis: PriceBasis::Past, curve };
    let asked = replayed.typical_price_usd(allowed(known.hit_rate_target));
    let basis = if asked >= cap { PriceBasis::Cap } else { PriceBasis::Past };
    Some(Base { usd: asked.clamp(floor, cap), basis, ..base })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast;
    use fleet::rng::Rng;

    static LAST_VALUE: std::sync::LazyLock<Mix> = std::sync::LazyLock::new(|| forecast::Method::LAST_VALUE.into());

    fn known(claims: &[f64], target: f64) -> Known<'_> {
        Known {
            claims,
            step_s: 300,
            season: 288,
            mix: &LAST_VALUE,
            lead_s: 300.0,
            late_s: 300.0,
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
        let next = found.curve.iter().position(|p| p.price_usd_micros >= found.usd_micros).expect("on the curve");
        let (here, aim) = (&found.curve[next - 1..=next], 1.0 - allowed(0.97));
        assert!(
            here[0].hit_rate < aim + 0.01 && here[1].hit_rate >= aim - 0.01,
            "a typical day is near the mean: {here:?}"
        );
    }

    /// A minute in which ten claims come, once a day at another time: a walk over every tenth minute would see one day's.
    #[test]
    fn short_bursts_count_for_what_they_are() {
        let day = 1440;
        let at_burst = |i: usize| i % day == 100 + 97 * (i / day);
        let claims: Vec<f64> = (0..8 * day).map(|i| if at_burst(i) { 14.0 } else { 4.0 }).collect();
        let of = Known { step_s: 60, season: day, lead_s: 60.0, late_s: 60.0, ..known(&claims, 0.99) };
        let replayed = replay::replay(&of).expect("a past");
        let cheap = &replayed.points[10];
        let bursts = cheap.missed.iter().filter(|missed| **missed >= 9.0).count();
        assert!(bursts >= 5, "ten claims a day without room: {:?}", cheap.missed);
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

    /// Room that classes share, or that stays for a while, is not in the replay: plans that expect to miss less than it says
    /// bring the price down to where they miss what is allowed. Plans that expect more do not raise it.
    #[test]
    fn the_price_goes_to_where_plans_meet_the_target() {
        let claims = series(5, 3.0);
        let end = |times: f64| {
            let mut prices = MissPrices::default();
            prices.look(&[known(&claims, 0.97)], &["k"]);
            let mut shares = Vec::new();
            for _ in 0..10 * 24 * 60 {
                let usd = prices.prices(&[UsdMicros(10_000)])[0].usd_micros.usd();
                let miss_share = times * prices.bases[0].miss_share(usd);
                shares.push(miss_share);
                prices.expect(&[0.97], &[UsdMicros(10_000)], &[Expected { claims_per_s: 0.2, miss_share }], 60.0);
            }
            let last_day = &shares[shares.len() - 1440..];
            (prices.prices(&[UsdMicros(10_000)])[0].usd_micros.usd(), last_day.iter().sum::<f64>() / 1440.0)
        };
        let (as_said, half, double) = (end(1.0), end(0.5), end(2.0));
        assert!(half.0 < 0.9 * as_said.0, "{half:?} {as_said:?}");
        assert!((double.0 - as_said.0).abs() < 2e-6, "a micro-dollar of rounding: {as_said:?} {double:?}");
        assert!((half.1 / as_said.1 - 1.0).abs() < 0.1, "plans miss {half:?}, the replay {as_said:?}");
    }

    #[test]
    fn what_is_remembered_follows_its_class() {
        let claims = series(6, 2.0);
        let mut prices = MissPrices::default();
        let look =
            |prices: &mut MissPrices, names: &[&str]| prices.look(&vec![known(&claims, 0.99); names.len()], names);
        let of = |prices: &MissPrices, k: usize| prices.prices(&[UsdMicros(10_000); 3])[k].usd_micros;
        look(&mut prices, &["a", "b"]);
        prices.observe(&[0.99; 2], &[Tally::default(); 2], 0.0);
        prices.observe(&[0.99; 2], &[Tally { hits: 500, misses: 0 }, Tally { hits: 400, misses: 100 }], 3600.0);
        let (calm, missed) = (of(&prices, 0), of(&prices, 1));
        assert!(missed > calm);
        prices.rearrange(&[Some(1), None, Some(0)]);
        assert!(!prices.has(3), "prices are looked for again");
        look(&mut prices, &["b", "new", "a"]);
        assert_eq!((of(&prices, 0), of(&prices, 2)), (missed, calm));
        assert!(of(&prices, 1) >= calm && of(&prices, 1) < missed, "a new class owes nothing");
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
        assert!(after(48, 500, 0) < 0.65 * start && after(48, 475, 25) > 1.5 * start);
        assert!(after(480, 250, 250) <= 2.0 * start + 1e-6, "a burst that no room meets is let go");
        let even = after(48, 9950, 50);
        assert!((even / start - 1.0).abs() < 0.05, "what is allowed leaves it: {start} {even}");
        assert!(after(480, 500, 0) >= 0.01 && after(480, 0, 500) <= 1000.0, "floor and cap hold");
        // None among a hundred claims says little of one in a hundred.
        assert!(after(24, 4, 0) > 0.8 * start);
    }
}
