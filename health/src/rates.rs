//! What faults, boots and repairs say about a place, for the planner: rates with their intervals.
//!
//! A place of its own has seen little, so what its like have seen counts too: rates are shrunk along instance type within a
//! cloud and region, the type in the cloud, the GPU model, and everything. At each step the parent knows what the others have
//! seen, and is worth a few events of the child's own. All faults are episodes, counted once for a host; those of a common cause
//! ([`breaker`](crate::breaker)) are not a place's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{Beta, ContinuousCDF, Gamma};

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
const FAULTS_PER_GPU_H: f64 = 3e-4 / 24.0;
const FAULTS_WORTH: f64 = 2.0;
/// Boots that pass, before anything is seen: 199 of 200 (Modal: 99.6 %).
const BOOTS: (f64, f64) = (199.0, 1.0);
/// Boots that a parent is worth.
const BOOTS_WORTH: f64 = 20.0;
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

    fn add(&mut self, other: &Self) {
        self.gpu_hours += other.gpu_hours;
        self.faults += other.faults;
        self.boots += other.boots;
        self.passed += other.passed;
        self.node_hours += other.node_hours;
        self.out_node_hours += other.out_node_hours;
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

/// Rates of all places, each with what its like have seen.
#[must_use]
pub fn rates(counts: &BTreeMap<Place, Counts>) -> BTreeMap<Place, Rates> {
    counts.iter().map(|(place, own)| (place.clone(), of(place, own, counts))).collect()
}

/// Parameters of what may be true of a place: shape and rate of faults per GPU-hour, `a` and `b` of boots that pass, and of
/// hours in service.
struct Posterior {
    faults: (f64, f64),
    boots: (f64, f64),
    service: (f64, f64),
}

impl Posterior {
    fn of(place: &Place, own: &Counts, counts: &BTreeMap<Place, Counts>) -> Self {
        // From the widest to the narrowest: what others have seen there, without those within the next.
        let mut seen = [Counts::default(), Counts::default(), Counts::default()];
        for (other, counted) in counts.iter().filter(|(other, _)| *other != place) {
            let same_type = (&other.provider, &other.instance_type) == (&place.provider, &place.instance_type);
            let level = if same_type { 2 } else { usize::from(other.gpu == place.gpu) };
            seen[level].add(counted);
        }
        let mut fault = FAULTS_PER_GPU_H;
        let mut boot = (BOOTS.0, BOOTS.1);
        let mut out = OUT_SHARE;
        for level in &seen {
            fault = (FAULTS_WORTH + level.faults) / (FAULTS_WORTH / fault + level.gpu_hours);
            let (passed, failed) = (boot.0 + level.passed, boot.1 + (level.boots - level.passed).max(0.0));
            let mean = passed / (passed + failed);
            boot = (BOOTS_WORTH * mean, BOOTS_WORTH * (1.0 - mean));
            out = (OUT_WORTH_H * out + level.out_node_hours) / (OUT_WORTH_H + level.node_hours);
        }
        if seen.iter().all(|level| level.boots == 0.0) {
            boot = BOOTS;
        }
        let in_service_h = (own.node_hours - own.out_node_hours).max(0.0);
        Self {
            faults: (FAULTS_WORTH + own.faults, FAULTS_WORTH / fault + own.gpu_hours),
            boots: (boot.0 + own.passed, boot.1 + (own.boots - own.passed).max(0.0)),
            service: (
                OUT_WORTH_H * (1.0 - out) + in_service_h,
                OUT_WORTH_H * out + own.out_node_hours.min(own.node_hours),
            ),
        }
    }
}

/// Of one place; one that nobody has seen is as its like.
#[must_use]
pub fn of(place: &Place, own: &Counts, counts: &BTreeMap<Place, Counts>) -> Rates {
    let posterior = Posterior::of(place, own, counts);
    Rates {
        faults_per_gpu_h: gamma(posterior.faults.0, posterior.faults.1),
        boot_pass: beta(posterior.boots.0, posterior.boots.1),
        in_service: beta(posterior.service.0, posterior.service.1),
        repair_p50_s: quantile(&own.repairs_s, 0.5).unwrap_or(REPAIR_S.0),
        repair_p95_s: quantile(&own.repairs_s, 0.95).unwrap_or(REPAIR_S.1),
        speed_p10: quantile(&own.speeds, 0.1).unwrap_or(1.0),
        speed_p50: quantile(&own.speeds, 0.5).unwrap_or(1.0),
    }
}

/// What a plan needs of them, at a tenth of the price.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Brief {
    /// Faults of a GPU in an hour, expected.
    pub faults_per_gpu_h: f64,
    /// Share of boots that pass the gate; it is less with a probability of 5 %.
    pub boot_pass: f64,
    /// Share of a node's work that is had of it: hours in service, and speed where it is less than its like's.
    pub usable_share: f64,
}

/// The brief of [`of`].
#[must_use]
pub fn brief(place: &Place, own: &Counts, counts: &BTreeMap<Place, Counts>) -> Brief {
    let Posterior { faults, boots, service } = Posterior::of(place, own, counts);
    let mean = boots.0 / (boots.0 + boots.1);
    let speed = quantile(&own.speeds, 0.5).unwrap_or(1.0);
    Brief {
        faults_per_gpu_h: faults.0 / faults.1,
        boot_pass: Beta::new(boots.0, boots.1).map_or(mean, |d| d.inverse_cdf(0.05)),
        usable_share: usable(service.0 / (service.0 + service.1), speed),
    }
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
            boot_pass: self.boot_pass.q05,
            usable_share: usable(self.in_service.mean, self.speed_p50),
        }
    }
}

fn gamma(shape: f64, rate: f64) -> Interval {
    let mean = shape / rate;
    let at = |p: f64| Gamma::new(shape, rate).map_or(mean, |d| d.inverse_cdf(p));
    Interval { mean, q05: at(0.05), q95: at(0.95), q10: at(0.1), q90: at(0.9) }
}

fn beta(a: f64, b: f64) -> Interval {
    let mean = a / (a + b);
    let at = |p: f64| Beta::new(a, b).map_or(mean, |d| d.inverse_cdf(p));
    Interval { mean, q05: at(0.05), q95: at(0.95), q10: at(0.1), q90: at(0.9) }
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

/// What the planner is told now: as before, unless a rate has left the 80 % interval that was told.
#[must_use]
pub fn tell(before: Option<&Told>, now: &Rates, now_s: f64) -> Told {
    let Some(told) = before else { return Told { rates: now.clone(), at_s: now_s } };
    let left = |was: &Interval, is: &Interval| !(was.q10..=was.q90).contains(&is.mean);
    let was = &told.rates;
    let moved = left(&was.faults_per_gpu_h, &now.faults_per_gpu_h)
        || left(&was.boot_pass, &now.boot_pass)
        || left(&was.in_service, &now.in_service)
        || (was.speed_p50 - now.speed_p50).abs() > 0.02;
    if moved && now_s - told.at_s >= TOLD_EVERY_S { Told { rates: now.clone(), at_s: now_s } } else { told.clone() }
}
