//! A simulated cloud: what it grants, when a node is healthy, what it takes back. Pure: time and randomness are
//! arguments, so that a run repeats byte for byte.

use fleet::rng::Rng;
use serde::{Deserialize, Serialize};

/// A distribution of times in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dist {
    /// Always the same.
    Fixed(f64),
    /// Log-normal by its median and 99th percentile.
    #[serde(rename_all = "snake_case")]
    LogNormal {
        /// Half are shorter.
        median_s: f64,
        /// One in a hundred is longer.
        p99_s: f64,
    },
    /// `[[seconds, share of times up to it], …]`, joined by straight lines; both rise, the last share is 1.
    Points(Vec<(f64, f64)>),
}

/// The 99th percentile of the standard normal distribution.
const Z_99: f64 = 2.326_347_874;

impl Dist {
    /// Refuses parameters that make no sense.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let good = match self {
            Self::Fixed(s) => *s >= 0.0 && *s <= 1e7,
            Self::LogNormal { median_s, p99_s } => *median_s > 0.0 && p99_s >= median_s && *p99_s <= 1e7,
            Self::Points(points) => {
                points.windows(2).all(|w| w[1].0 > w[0].0 && w[1].1 >= w[0].1)
                    && points.iter().all(|p| p.0 >= 0.0 && p.0 <= 1e7 && p.1 >= 0.0)
                    && points.last().is_some_and(|p| (p.1 - 1.0).abs() < 1e-9)
            }
        };
        if good {
            Ok(())
        } else {
            Err("is no distribution: a number of seconds, { median_s, p99_s } with 0 < median_s <= p99_s, or points that \
                 rise in time and share and end at share 1"
                .into())
        }
    }

    /// One draw, seconds.
    pub fn sample(&self, rng: &mut Rng) -> f64 {
        match self {
            Self::Fixed(s) => *s,
            Self::LogNormal { median_s, p99_s } => median_s * ((p99_s / median_s).ln() / Z_99 * rng.normal()).exp(),
            Self::Points(_) => self.quantile(rng.unit()),
        }
    }

    /// The `q` quantile of points; of the others by their formula.
    fn quantile(&self, q: f64) -> f64 {
        let Self::Points(points) = self else { return self.mean_s() };
        let mut before = (points[0].0, 0.0);
        for &(at, share) in points {
            if q <= share {
                let span = share - before.1;
                return if span > 0.0 { before.0 + (at - before.0) * (q - before.1) / span } else { at };
            }
            before = (at, share);
        }
        before.0
    }

    /// Mean, seconds.
    #[must_use]
    pub fn mean_s(&self) -> f64 {
        match self {
            Self::Fixed(s) => *s,
            Self::LogNormal { median_s, p99_s } => {
                let sigma = (p99_s / median_s).ln() / Z_99;
                median_s * (sigma * sigma / 2.0).exp()
            }
            Self::Points(_) => (0..200).map(|i| self.quantile((f64::from(i) + 0.5) / 200.0)).sum::<f64>() / 200.0,
        }
    }

    /// As points of a cumulative distribution, for the planner's prior.
    #[must_use]
    pub fn points(&self) -> Vec<(f64, f64)> {
        match self {
            Self::Fixed(s) => vec![(*s, 1.0)],
            Self::Points(points) => points.clone(),
            Self::LogNormal { median_s, p99_s } => {
                let sigma = (p99_s / median_s).ln() / Z_99;
                // Normal quantiles of 2 %, 10 %, 25 %, …
                let z = [
                    (-2.054, 0.0),
                    (-1.282, 0.1),
                    (-0.674, 0.25),
                    (0.0, 0.5),
                    (0.674, 0.75),
                    (1.282, 0.9),
                    (2.326, 1.0),
                ];
                z.iter().map(|(z, share)| (median_s * (sigma * z).exp(), *share)).collect()
            }
        }
    }
}

/// A value that changes at known times: `(seconds, value from then on)`, rising in time; the first holds before, too.
#[derive(Debug, Clone, PartialEq)]
pub struct Steps(pub Vec<(f64, f64)>);

impl Steps {
    /// Always `value`.
    #[must_use]
    pub fn constant(value: f64) -> Self {
        Self(vec![(0.0, value)])
    }

    /// The value at a time.
    #[must_use]
    pub fn at(&self, now_s: f64) -> f64 {
        let after = self.0.partition_point(|(t, _)| *t <= now_s);
        self.0[after.saturating_sub(1)].1
    }
}

/// What the simulated cloud has of one offer.
#[derive(Debug, Clone, PartialEq)]
pub struct SimOffer {
    /// Index of its provider, for the rate limit.
    pub provider: usize,
    /// Nodes that can run at the same time.
    pub capacity: Steps,
    /// Accepted to healthy.
    pub lead: Dist,
    /// Share of boots that fail the gate.
    pub boot_failure: f64,
    /// Share of requests refused although there is room.
    pub refusal: f64,
    /// Losses per node-hour.
    pub hazard_per_h: f64,
}

impl SimOffer {
    /// Nodes without end, at once, that never fail.
    #[must_use]
    pub fn ideal() -> Self {
        Self {
            provider: 0,
            capacity: Steps::constant(1e6),
            lead: Dist::Fixed(0.0),
            boot_failure: 0.0,
            refusal: 0.0,
            hazard_per_h: 0.0,
        }
    }
}

/// A node that the cloud has granted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grant {
    /// Seconds until its gate has an answer.
    pub ready_after_s: f64,
    /// The answer.
    pub passes: bool,
    /// Seconds until the cloud takes it back; infinite for most.
    pub lost_after_s: f64,
}

/// Why a launch was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No machine is free.
    Capacity,
    /// A quota is used up.
    Quota,
    /// Too many calls.
    Throttled,
}

/// The simulated clouds.
#[derive(Debug, Clone)]
pub struct SimCloud {
    offers: Vec<SimOffer>,
    running: Vec<u32>,
    down: Vec<bool>,
    /// `(members as (offer, units), limit)`.
    quotas: Vec<(Vec<(usize, f64)>, f64)>,
    /// Launches a minute and what is left of them, for each provider: a token bucket of one minute.
    rate_per_min: f64,
    tokens: Vec<(f64, f64)>,
}

impl SimCloud {
    /// With nothing running. `rate_per_min` launches for each provider; infinite for no limit.
    #[must_use]
    pub fn new(offers: Vec<SimOffer>, quotas: Vec<(Vec<(usize, f64)>, f64)>, rate_per_min: f64) -> Self {
        let providers = offers.iter().map(|o| o.provider + 1).max().unwrap_or(0);
        let (running, down) = (vec![0; offers.len()], vec![false; offers.len()]);
        Self { offers, running, down, quotas, rate_per_min, tokens: vec![(0.0, rate_per_min); providers] }
    }

    /// Asks for one node.
    ///
    /// # Errors
    /// Why not.
    pub fn launch(&mut self, now_s: f64, offer: usize, rng: &mut Rng) -> Result<Grant, Refusal> {
        let spec = &self.offers[offer];
        if self.rate_per_min.is_finite() {
            let (at, left) = &mut self.tokens[spec.provider];
            *left = (*left + (now_s - *at) / 60.0 * self.rate_per_min).min(self.rate_per_min);
            *at = now_s;
            if *left < 1.0 {
                return Err(Refusal::Throttled);
            }
            *left -= 1.0;
        }
        for (members, limit) in &self.quotas {
            let used: f64 = members.iter().map(|(o, units)| f64::from(self.running[*o]) * units).sum();
            if members.iter().any(|(o, units)| *o == offer && used + units > limit + 1e-9) {
                return Err(Refusal::Quota);
            }
        }
        let full = f64::from(self.running[offer]) + 1.0 > spec.capacity.at(now_s) + 1e-9;
        if self.down[offer] || full || rng.unit() < spec.refusal {
            return Err(Refusal::Capacity);
        }
        self.running[offer] += 1;
        let lost_after_s = if spec.hazard_per_h > 0.0 {
            -rng.unit().max(1e-300).ln() / spec.hazard_per_h * 3600.0
        } else {
            f64::INFINITY
        };
        Ok(Grant { ready_after_s: spec.lead.sample(rng), passes: rng.unit() >= spec.boot_failure, lost_after_s })
    }

    /// A node has ended.
    pub fn ended(&mut self, offer: usize) {
        self.running[offer] = self.running[offer].saturating_sub(1);
    }

    /// An outage begins or ends.
    pub fn set_down(&mut self, offer: usize, down: bool) {
        self.down[offer] = down;
    }

    /// Nodes that the cloud has to take back now.
    #[must_use]
    pub fn excess(&self, now_s: f64, offer: usize) -> u32 {
        (f64::from(self.running[offer]) - self.offers[offer].capacity.at(now_s)).max(0.0).ceil() as u32
    }

    /// Its offers.
    #[must_use]
    pub fn offers(&self) -> &[SimOffer] {
        &self.offers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(capacity: f64) -> SimOffer {
        SimOffer {
            provider: 0,
            capacity: Steps(vec![(0.0, capacity), (100.0, 1.0)]),
            lead: Dist::Fixed(60.0),
            boot_failure: 0.0,
            refusal: 0.0,
            hazard_per_h: 0.0,
        }
    }

    #[test]
    fn capacity_quota_rate_and_outage_refuse() {
        let mut rng = Rng::new(1);
        let mut cloud = SimCloud::new(vec![offer(2.0)], vec![], f64::INFINITY);
        assert!(cloud.launch(0.0, 0, &mut rng).is_ok_and(|g| g.passes && g.ready_after_s == 60.0));
        assert!(cloud.launch(0.0, 0, &mut rng).is_ok());
        assert_eq!(cloud.launch(0.0, 0, &mut rng), Err(Refusal::Capacity));
        assert_eq!((cloud.excess(99.0, 0), cloud.excess(100.0, 0)), (0, 1));
        cloud.ended(0);
        cloud.set_down(0, true);
        assert_eq!(cloud.launch(0.0, 0, &mut rng), Err(Refusal::Capacity));
        let mut cloud = SimCloud::new(vec![offer(9.0)], vec![(vec![(0, 8.0)], 10.0)], f64::INFINITY);
        assert!(cloud.launch(0.0, 0, &mut rng).is_ok());
        assert_eq!(cloud.launch(0.0, 0, &mut rng), Err(Refusal::Quota));
        let mut cloud = SimCloud::new(vec![offer(9.0)], vec![], 2.0);
        assert!((0..2).all(|_| cloud.launch(0.0, 0, &mut rng).is_ok()));
        assert_eq!(cloud.launch(1.0, 0, &mut rng), Err(Refusal::Throttled));
        assert!(cloud.launch(40.0, 0, &mut rng).is_ok());
    }

    #[test]
    fn draws_have_the_mean_and_the_tail() {
        let mut rng = Rng::new(7);
        for dist in [
            Dist::LogNormal { median_s: 100.0, p99_s: 400.0 },
            Dist::Points(vec![(100.0, 0.0), (200.0, 0.5), (600.0, 1.0)]),
        ] {
            dist.check().expect("good");
            let mut draws: Vec<f64> = (0..20_000).map(|_| dist.sample(&mut rng)).collect();
            let mean = draws.iter().sum::<f64>() / draws.len() as f64;
            assert!((mean / dist.mean_s() - 1.0).abs() < 0.02, "{mean} against {}", dist.mean_s());
            draws.sort_by(f64::total_cmp);
            let median = draws[draws.len() / 2];
            assert!((median - if matches!(dist, Dist::Points(_)) { 200.0 } else { 100.0 }).abs() < 5.0, "{median}");
        }
        assert!(Dist::Fixed(f64::NAN).check().is_err());
        assert!(Dist::Points(vec![(10.0, 0.5)]).check().is_err());
    }
}
