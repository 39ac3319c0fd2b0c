//! What faults, boots and repairs say about a place, for the planner: rates with their intervals.
//!
//! A place of its own has seen little, so what its like have seen counts too: rates are shrunk along instance type within a
//! cloud and region, the type in the cloud, the GPU model, and everything. At each step the parent knows what the others have
//! seen, and is worth a few events of the child's own. Few places are bad, and those are very bad ([`belief`]): such a one says
//! little about its like, and they say little about it. All faults are episodes, counted once for a host; those of a common
//! cause ([`breaker`](crate::breaker)) are not a place's.

mod belief;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use belief::{Belief, PerHour, Seen, Share};

/// Where: what is shrunk along, the widest last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Cloud.
    pub provider: String,
    /// Its region.
    pub region: String,
    /// Its instance type.
    pub instance_type: String,
    /// GPU model.
    pub gpu: String,
}

/// What was counted at a place; what is old counts less.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// GPU-hours in service.
    pub gpu_hours: f64,
    /// Faults that took a node out of service.
    pub faults: f64,
    /// Launched nodes whose boot gate gave an answer, or that did not come so far.
    pub boots: f64,
    /// Those that passed it.
    pub passed: f64,
    /// Node-hours in which a node was billed and should have served.
    pub node_hours: f64,
    /// Those of them in quarantine or repair.
    pub out_node_hours: f64,
    /// Seconds from a fault to service again, or to the node's end, the newest last.
    pub repairs_s: Vec<f64>,
    /// Speed of each host at its last gate, as a share of the median of its type, the newest last.
    pub speeds: Vec<f64>,
    /// When the counts were last made less, seconds since 1970.
    pub at_s: f64,
}

/// Half-life of what was counted, seconds: two weeks.
const HALF_LIFE_S: f64 = 14.0 * 86_400.0;
/// Samples that are kept.
const SAMPLES_MAX: usize = 200;
/// Faults of a GPU-hour before anything is seen: 3e-4 a day, as published for large fleets, worth two events.
pub const FAULTS_PER_GPU_H: f64 = 3e-4 / 24.0;
const FAULTS_WORTH: f64 = 2.0;
/// Faults in a bad place: ten times as many (eight times between clouds were published), and wide enough for a thousand.
const BAD_FAULTS: f64 = 10.0;
const BAD_FAULTS_WORTH: f64 = 0.25;
/// Boots that pass, before anything is seen: 199 of 200 (Modal: 99.6 %).
const BOOTS: Share = Share { a: 199.0, b: 1.0 };
/// Boots that a parent is worth.
const BOOTS_WORTH: f64 = 20.0;
/// Boots that pass in a bad place: any share of them.
const BAD_BOOTS: Share = Share { a: 1.0, b: 1.0 };
/// Share of places that are bad before anything is seen, and the places that this is worth.
const BAD_SHARE: f64 = 0.02;
const BAD_SHARE_WORTH: f64 = 10.0;
/// Share of node-hours out of service before anything is seen, and the node-hours that it is worth.
const OUT_SHARE: f64 = 0.005;
const OUT_WORTH_H: f64 = 200.0;
/// Time out of service before anything is seen, seconds: 50 % and 95 %.
const REPAIR_S: (f64, f64) = (600.0, 1800.0);
/// Samples below which a quantile of theirs says little.
const SAMPLES_MIN: usize = 5;

impl Counts {
    /// Lets what is old count less.
    pub fn age(&mut self, now_s: f64) {
        if self.at_s > 0.0 {
            let factor = 0.5_f64.powf((now_s - self.at_s).max(0.0) / HALF_LIFE_S);
            for count in [
                &mut self.gpu_hours,
                &mut self.faults,
                &mut self.boots,
                &mut self.passed,
                &mut self.node_hours,
                &mut self.out_node_hours,
            ] {
                *count *= factor;
            }
        }
        self.at_s = self.at_s.max(now_s);
    }

    /// A node was out for so long.
    pub fn repaired(&mut self, seconds: f64) {
        push(&mut self.repairs_s, seconds.max(0.0));
    }

    /// A host passed its gate at this share of its type's median speed.
    pub fn measured(&mut self, speed: f64) {
        push(&mut self.speeds, speed.clamp(0.05, 1.5));
    }

    fn of_faults(&self) -> Seen {
        Seen { events: self.faults, others: self.gpu_hours }
    }

    fn of_boots(&self) -> Seen {
        Seen { events: self.passed, others: (self.boots - self.passed).max(0.0) }
    }
}

fn push(samples: &mut Vec<f64>, value: f64) {
    if value.is_finite() {
        samples.push(value);
    }
    let excess = samples.len().saturating_sub(SAMPLES_MAX);
    samples.drain(..excess);
}

/// A rate with what it may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Expected.
    pub mean: f64,
    /// It is less with a probability of 5 %.
    pub q05: f64,
    /// It is more with a probability of 5 %.
    pub q95: f64,
    /// The same for 10 %: what is told is changed when it leaves this.
    pub q10: f64,
    /// The same for 10 %.
    pub q90: f64,
}

/// What a place is like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Faults of a GPU in an hour.
    pub faults_per_gpu_h: Interval,
    /// Share of boots that pass the gate.
    pub boot_pass: Interval,
    /// The same as plans count with it: the 5 % quantiles of a place like others and of a bad one, each by its probability.
    /// That of both together jumps to the bad one's where a place is bad with 5 %.
    pub boot_pass_planned: f64,
    /// Share of node-hours in service.
    pub in_service: Interval,
    /// Time out of service, seconds: median.
    pub repair_p50_s: f64,
    /// Time out of service, seconds: 95 %.
    pub repair_p95_s: f64,
    /// Speed as a share of the type's median: 10 %.
    pub speed_p10: f64,
    /// Speed as a share of the type's median: median.
    pub speed_p50: f64,
}

/// All places, and what is believed of each by itself.
#[derive(Debug, Clone)]
pub struct Places<'a> {
    places: Vec<KnownPlace<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct KnownPlace<'a> {
    place: &'a Place,
    counts: &'a Counts,
    /// Probability that it is a bad place, by its faults and by its boots.
    bad: [f64; 2],
}

/// What others have seen at one step, without those within the next: each by the probability that it is as its like.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    gpu_hours: f64,
    faults: f64,
    passed: f64,
    failed: f64,
    node_hours: f64,
    out_node_hours: f64,
}

impl Level {
    fn add(&mut self, other: &KnownPlace<'_>) {
        let (like, counts) = (other.bad.map(|bad| 1.0 - bad), other.counts);
        self.gpu_hours += like[0] * counts.gpu_hours;
        self.faults += like[0] * counts.faults;
        self.passed += like[1] * counts.of_boots().events;
        self.failed += like[1] * counts.of_boots().others;
        self.node_hours += like[0] * like[1] * counts.node_hours;
        self.out_node_hours += like[0] * like[1] * counts.out_node_hours;
    }
}

/// What may be true of a place.
struct Posterior {
    faults: Belief<PerHour>,
    boots: Belief<Share>,
    service: Share,
}

fn faults_of(like: PerHour, bad_share: f64) -> Belief<PerHour> {
    Belief { like, bad: PerHour::of(BAD_FAULTS * FAULTS_PER_GPU_H, BAD_FAULTS_WORTH), bad_share }
}

fn boots_of(like: Share, bad_share: f64) -> Belief<Share> {
    Belief { like, bad: BAD_BOOTS, bad_share }
}

impl<'a> Places<'a> {
    /// With what was counted at each.
    #[must_use]
    pub fn of(counts: &'a BTreeMap<Place, Counts>) -> Self {
        let as_published =
            (faults_of(PerHour::of(FAULTS_PER_GPU_H, FAULTS_WORTH), BAD_SHARE), boots_of(BOOTS, BAD_SHARE));
        let known = |(place, counts): (&'a Place, &'a Counts)| {
            let faults = as_published.0.after(counts.of_faults()).bad_share;
            let boots = as_published.1.after(counts.of_boots()).bad_share;
            KnownPlace { place, counts, bad: [faults, boots] }
        };
        Self { places: counts.iter().map(known).collect() }
    }

    /// Rates of all places, each with what its like have seen.
    #[must_use]
    pub fn rates(&self) -> BTreeMap<Place, Rates> {
        self.places.iter().map(|k| (k.place.clone(), self.rates_at(k.place))).collect()
    }

    fn posterior(&self, place: &Place, own: &Counts) -> Posterior {
        // From the widest to the narrowest.
        let mut seen = [Level::default(); 3];
        let (mut bad, mut like) = ([0.0; 2], 0.0);
        for other in self.places.iter().filter(|k| k.place != place) {
            let same_type =
                (&other.place.provider, &other.place.instance_type) == (&place.provider, &place.instance_type);
            let level = if same_type { 2 } else { usize::from(other.place.gpu == place.gpu) };
            seen[level].add(other);
            if same_type {
                bad = [bad[0] + other.bad[0], bad[1] + other.bad[1]];
                like += 1.0;
            }
        }
        // Where most of its like are bad, so is this one before it is seen.
        let bad_share = bad.map(|bad| (BAD_SHARE_WORTH * BAD_SHARE + bad) / (BAD_SHARE_WORTH + like));
        let mut fault = FAULTS_PER_GPU_H;
        let mut boot = BOOTS;
        let mut out = OUT_SHARE;
        for level in &seen {
            fault = (FAULTS_WORTH + level.faults) / (FAULTS_WORTH / fault + level.gpu_hours);
            if level.passed + level.failed > 0.0 {
                let (passed, failed) = (boot.a + level.passed, boot.b + level.failed);
                let mean = passed / (passed + failed);
                boot = Share { a: BOOTS_WORTH * mean, b: BOOTS_WORTH * (1.0 - mean) };
            }
            out = (OUT_WORTH_H * out + level.out_node_hours) / (OUT_WORTH_H + level.node_hours);
        }
        let in_service_h = (own.node_hours - own.out_node_hours).max(0.0);
        let out_h = own.out_node_hours.min(own.node_hours);
        Posterior {
            faults: faults_of(PerHour::of(fault, FAULTS_WORTH), bad_share[0]).after(own.of_faults()),
            boots: boots_of(boot, bad_share[1]).after(own.of_boots()),
            service: Share { a: OUT_WORTH_H * (1.0 - out) + in_service_h, b: OUT_WORTH_H * out + out_h },
        }
    }

    fn counts_at(&self, place: &Place) -> Option<&'a Counts> {
        let at = self.places.binary_search_by(|k| k.place.cmp(place)).ok()?;
        self.places.get(at).map(|k| k.counts)
    }

    /// Of one place; one that nobody has seen is as its like.
    #[must_use]
    pub fn rates_at(&self, place: &Place) -> Rates {
        let nothing = Counts::default();
        let own = self.counts_at(place).unwrap_or(&nothing);
        let posterior = self.posterior(place, own);
        let service = Belief { like: posterior.service, bad: posterior.service, bad_share: 0.0 };
        Rates {
            faults_per_gpu_h: posterior.faults.interval(),
            boot_pass: posterior.boots.interval(),
            boot_pass_planned: posterior.boots.careful(),
            in_service: service.interval(),
            repair_p50_s: quantile(&own.repairs_s, 0.5).unwrap_or(REPAIR_S.0),
            repair_p95_s: quantile(&own.repairs_s, 0.95).unwrap_or(REPAIR_S.1),
            speed_p10: quantile(&own.speeds, 0.1).unwrap_or(1.0),
            speed_p50: quantile(&own.speeds, 0.5).unwrap_or(1.0),
        }
    }

    /// What a plan needs of [`rates_at`](Self::rates_at), at a tenth of the price.
    #[must_use]
    pub fn brief_at(&self, place: &Place) -> Brief {
        let nothing = Counts::default();
        let own = self.counts_at(place).unwrap_or(&nothing);
        let Posterior { faults, boots, service } = self.posterior(place, own);
        let speed = quantile(&own.speeds, 0.5).unwrap_or(1.0);
        Brief {
            faults_per_gpu_h: faults.mean(),
            boot_pass: boots.careful(),
            usable_share: usable(service.a / (service.a + service.b), speed),
        }
    }
}

/// What a plan needs to know of a place.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Brief {
    /// Faults of a GPU in an hour, expected.
    pub faults_per_gpu_h: f64,
    /// Share of boots that pass the gate, carefully: [`Rates::boot_pass_planned`].
    pub boot_pass: f64,
    /// Share of a node's work that is had of it: hours in service, and speed where it is less than its like's.
    pub usable_share: f64,
}

fn usable(in_service: f64, speed: f64) -> f64 {
    (in_service * speed.min(1.0)).clamp(0.05, 1.0)
}

impl Rates {
    /// What a plan needs of them.
    #[must_use]
    pub fn brief(&self) -> Brief {
        Brief {
            faults_per_gpu_h: self.faults_per_gpu_h.mean,
            boot_pass: self.boot_pass_planned,
            usable_share: usable(self.in_service.mean, self.speed_p50),
        }
    }
}

/// Nearest rank; none of too few.
fn quantile(samples: &[f64], p: f64) -> Option<f64> {
    if samples.len() < SAMPLES_MIN {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// What the planner was told of a place, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The rates.
    pub rates: Rates,
    /// When, seconds since 1970.
    pub at_s: f64,
}

/// The planner is told of a place this often at most, seconds.
const TOLD_EVERY_S: f64 = 900.0;

/// A rate of faults that has changed by this factor is told, and a share that has changed by so much.
const FAULTS_FACTOR: f64 = 1.5;
const SHARE_STEP: f64 = 0.02;

/// What the planner is told now: as before, unless a rate has left the 80 % interval that was told, or what plans use of it has
/// changed by much. (Where a place may be bad its interval is so wide that nothing leaves it.)
#[must_use]
pub fn tell(before: Option<&Told>, now: &Rates, now_s: f64) -> Told {
    let Some(told) = before else { return Told { rates: now.clone(), at_s: now_s } };
    // What is expected of a mixture can lie outside of its interval.
    let left = |was: &Interval, is: &Interval| !(was.q10.min(was.mean)..=was.q90.max(was.mean)).contains(&is.mean);
    let was = &told.rates;
    let (before, after) = (was.brief(), now.brief());
    let faults = after.faults_per_gpu_h / before.faults_per_gpu_h;
    let moved = left(&was.faults_per_gpu_h, &now.faults_per_gpu_h)
        || left(&was.boot_pass, &now.boot_pass)
        || left(&was.in_service, &now.in_service)
        || !(1.0 / FAULTS_FACTOR..=FAULTS_FACTOR).contains(&faults)
        || (after.boot_pass - before.boot_pass).abs() > SHARE_STEP
        || (after.usable_share - before.usable_share).abs() > SHARE_STEP;
    if moved && now_s - told.at_s >= TOLD_EVERY_S { Told { rates: now.clone(), at_s: now_s } } else { told.clone() }
}
