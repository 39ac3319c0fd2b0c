//! Counts of times by size: the same memory for a thousand and for a billion, and mergeable.

use serde::{Deserialize, Serialize};

/// Bins for each doubling: a quantile is right within 4.5 %.
const PER_DOUBLING: f64 = 16.0;
/// Smallest time that is told from zero, seconds.
const SMALLEST_S: f64 = 1e-3;

/// Times in logarithmic bins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Count of bin 0 (up to a millisecond), bin 1, …
    bins: Vec<u64>,
    sum_s: f64,
}

impl Histogram {
    /// Adds one time.
    pub fn add(&mut self, seconds: f64) {
        let bin = if seconds <= SMALLEST_S { 0 } else { ((seconds / SMALLEST_S).log2() * PER_DOUBLING) as usize + 1 };
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.sum_s += seconds;
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        self.bins.resize(self.bins.len().max(other.bins.len()), 0);
        self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a += b);
        self.sum_s += other.sum_s;
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bins.iter().sum()
    }

    /// Mean in seconds; 0 when empty.
    #[must_use]
    pub fn mean_s(&self) -> f64 {
        if self.count() == 0 { 0.0 } else { self.sum_s / self.count() as f64 }
    }

    /// Upper end of the bin that holds the `q` quantile, seconds.
    #[must_use]
    pub fn quantile_s(&self, q: f64) -> f64 {
        let goal = (q * self.count() as f64).ceil().max(1.0) as u64;
        self.cdf().into_iter().find(|(_, share)| *share * self.count() as f64 >= goal as f64 - 0.5).map_or(0.0, |p| p.0)
    }

    /// `(seconds, share of times up to it)` at each bin that has any.
    #[must_use]
    pub fn cdf(&self) -> Vec<(f64, f64)> {
        let total = self.count() as f64;
        let mut seen = 0;
        let mut points = Vec::new();
        for (bin, count) in self.bins.iter().enumerate().filter(|(_, c)| **c > 0) {
            seen += count;
            let end = if bin == 0 { 0.0 } else { SMALLEST_S * (bin as f64 / PER_DOUBLING).exp2() };
            points.push((end, seen as f64 / total));
        }
        points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bin() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|i| histogram.add(f64::from(i)));
        for q in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let got = histogram.quantile_s(q) / (1000.0 * q);
            assert!((1.0..1.046).contains(&got), "{q}: {got}");
        }
        assert_eq!(histogram.mean_s(), 500.5);
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!(twice.count(), 2000);
        let mut zeros = Histogram::default();
        (0..9).for_each(|_| zeros.add(0.0));
        assert_eq!((zeros.quantile_s(0.5), Histogram::default().quantile_s(0.5)), (0.0, 0.0));
    }
}
