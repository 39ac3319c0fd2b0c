//! What may be true of a rate: a place is as its like, or one of the few bad ones. Each is a conjugate distribution, and what
//! was seen says how probable each is. With the first alone (two events at 3e-4 a GPU-day) a place that breaks a hundred times
//! as often is believed only after thousands of GPU-days; a bad one is known by its third fault.

use statrs::distribution::{Beta, ContinuousCDF, Gamma};
use statrs::function::gamma::ln_gamma;

use super::Interval;

/// A distribution of a rate that stays of its kind with what is seen.
pub(super) trait Conjugate: Copy {
    /// What was seen: events, and what they were events of.
    fn after(self, seen: Seen) -> Self;
    /// Logarithm of how probable that was, up to a term that is the same for all of its kind.
    fn ln_evidence(self, seen: Seen) -> f64;
    fn mean(self) -> f64;
    fn cdf(self, x: f64) -> f64;
    fn quantile(self, p: f64) -> f64;
}

/// Events, and the hours (of a rate in time) or the events that did not happen (of a share).
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub events: f64,
    pub others: f64,
}

/// Gamma: of events in time (Poisson).
#[derive(Debug, Clone, Copy)]
pub(super) struct PerHour {
    pub shape: f64,
    pub rate_h: f64,
}

impl PerHour {
    /// With this mean, and worth so many events.
    pub(super) fn of(mean: f64, worth: f64) -> Self {
        Self { shape: worth, rate_h: worth / mean }
    }
}

impl Conjugate for PerHour {
    fn after(self, seen: Seen) -> Self {
        Self { shape: self.shape + seen.events, rate_h: self.rate_h + seen.others }
    }

    fn ln_evidence(self, seen: Seen) -> f64 {
        let after = self.after(seen);
        ln_gamma(after.shape) - ln_gamma(self.shape) + self.shape * self.rate_h.ln() - after.shape * after.rate_h.ln()
    }

    fn mean(self) -> f64 {
        self.shape / self.rate_h
    }

    fn cdf(self, x: f64) -> f64 {
        Gamma::new(self.shape, self.rate_h).map_or(f64::NAN, |d| d.cdf(x))
    }

    fn quantile(self, p: f64) -> f64 {
        Gamma::new(self.shape, self.rate_h).map_or(self.mean(), |d| d.inverse_cdf(p))
    }
}

/// Beta: of a share of tries.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    pub a: f64,
    pub b: f64,
}

impl Conjugate for Share {
    fn after(self, seen: Seen) -> Self {
        Self { a: self.a + seen.events, b: self.b + seen.others }
    }

    fn ln_evidence(self, seen: Seen) -> f64 {
        let ln_beta = |s: Self| ln_gamma(s.a) + ln_gamma(s.b) - ln_gamma(s.a + s.b);
        ln_beta(self.after(seen)) - ln_beta(self)
    }

    fn mean(self) -> f64 {
        self.a / (self.a + self.b)
    }

    fn cdf(self, x: f64) -> f64 {
        Beta::new(self.a, self.b).map_or(f64::NAN, |d| d.cdf(x))
    }

    fn quantile(self, p: f64) -> f64 {
        Beta::new(self.a, self.b).map_or(self.mean(), |d| d.inverse_cdf(p))
    }
}

/// As its like, or bad with this probability.
#[derive(Debug, Clone, Copy)]
pub(super) struct Belief<D> {
    pub like: D,
    pub bad: D,
    pub bad_share: f64,
}

impl<D: Conjugate> Belief<D> {
    /// What is believed after this was seen.
    pub(super) fn after(self, seen: Seen) -> Self {
        let ln_odds = self.bad.ln_evidence(seen) - self.like.ln_evidence(seen) + self.bad_share.ln()
            - (1.0 - self.bad_share).ln();
        let bad_share = 1.0 / (1.0 + (-ln_odds).exp());
        Self { like: self.like.after(seen), bad: self.bad.after(seen), bad_share }
    }

    pub(super) fn mean(self) -> f64 {
        (1.0 - self.bad_share) * self.like.mean() + self.bad_share * self.bad.mean()
    }

    /// It is less with a probability of `p`.
    pub(super) fn quantile(self, p: f64) -> f64 {
        let (like, bad) = (self.like.quantile(p), self.bad.quantile(p));
        // Between those of the two.
        let (mut low, mut high) = (like.min(bad), like.max(bad));
        let below = |x: f64| (1.0 - self.bad_share) * self.like.cdf(x) + self.bad_share * self.bad.cdf(x) < p;
        for _ in 0..HALVINGS {
            let middle = 0.5 * (low + high);
            if below(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        0.5 * (low + high)
    }

    /// The 5 % quantiles of the two, each by its probability: it moves with the probability, and does not jump.
    pub(super) fn careful(self) -> f64 {
        (1.0 - self.bad_share) * self.like.quantile(0.05) + self.bad_share * self.bad.quantile(0.05)
    }

    pub(super) fn interval(self) -> Interval {
        let at = |p| self.quantile(p);
        Interval { mean: self.mean(), q05: at(0.05), q95: at(0.95), q10: at(0.1), q90: at(0.9) }
    }
}

/// A quantile is known to a millionth of what lies between those of the two.
const HALVINGS: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums over the prior on a fine grid: no conjugacy, no closed form.
    fn by_hand(belief: Belief<PerHour>, seen: Seen) -> (f64, f64) {
        let (mut all, mut mean, mut bad) = (0.0, 0.0, 0.0);
        let density = |d: PerHour, x: f64| {
            ((d.shape - 1.0) * x.ln() - d.rate_h * x + d.shape * d.rate_h.ln() - ln_gamma(d.shape)).exp()
        };
        for i in 0..200_000 {
            // By the logarithm, so that both scales are seen: x dlnx.
            let x = (1e-15_f64.ln() + (10.0_f64.ln() - 1e-15_f64.ln()) * f64::from(i) / 200_000.0).exp();
            let likelihood = (seen.events * x.ln() - x * seen.others).exp();
            let of = |d, share: f64| share * density(d, x) * likelihood * x;
            let (l, b) = (of(belief.like, 1.0 - belief.bad_share), of(belief.bad, belief.bad_share));
            all += l + b;
            mean += (l + b) * x;
            bad += b;
        }
        (mean / all, bad / all)
    }

    #[test]
    fn what_is_believed_is_bayes_rule() {
        let belief = Belief { like: PerHour::of(1e-3, 2.0), bad: PerHour::of(1e-2, 0.5), bad_share: 0.02 };
        for (events, others) in [(0.0, 5000.0), (1.0, 100.0), (3.0, 50.0), (8.0, 1000.0)] {
            let seen = Seen { events, others };
            let (mean, bad) = by_hand(belief, seen);
            let after = belief.after(seen);
            assert!((after.mean() / mean - 1.0).abs() < 1e-3, "{seen:?}: {} not {mean}", after.mean());
            assert!((after.bad_share / bad - 1.0).abs() < 2e-3, "{seen:?}: {} not {bad}", after.bad_share);
            let (q05, q95) = (after.quantile(0.05), after.quantile(0.95));
            let cdf = |x| (1.0 - after.bad_share) * after.like.cdf(x) + after.bad_share * after.bad.cdf(x);
            assert!((cdf(q05) - 0.05).abs() < 1e-3 && (cdf(q95) - 0.95).abs() < 1e-3, "{q05} {q95}");
        }
    }
}
