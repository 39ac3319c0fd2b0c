//! Limits that a fleet teaches: a host that is much slower than its like is not as it should be, whatever a table says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::report::{Bound, Report};
use crate::verdict::Verdict;

/// Hosts that must have passed before anything is learned of their kind.
pub const HOSTS_MIN: usize = 20;
/// Shares of the median below which a GPU is degraded, and fails.
const WARN_SHARE: f64 = 0.92;
const FAIL_SHARE: f64 = 0.85;
/// What is learned: rates, where more is better.
const RATES: [&str; 6] = ["read_gbps", "h2d_gbps", "d2h_gbps", "tensor_tflops", "fp32_gflops", "peer_gbps"];

/// The median of each number among healthy hosts of one cloud and instance type.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// By the name of the number.
    pub medians: BTreeMap<String, f64>,
}

impl Learned {
    /// A bound that asks for at least what was learned, and never for less than before.
    #[must_use]
    pub(super) fn raise(&self, name: &str, bound: Bound) -> Bound {
        let Some(median) = self.medians.get(name).filter(|m| m.is_finite()) else { return bound };
        let more = |before: Option<f64>, share: f64| Some(before.map_or(median * share, |b| b.max(median * share)));
        Bound {
            fail_below: more(bound.fail_below, FAIL_SHARE),
            warn_below: more(bound.warn_below, WARN_SHARE),
            ..bound
        }
    }
}

/// The rate of the slowest GPU of a host, by the name of the number: a host is as good as that.
#[must_use]
pub fn slowest(report: &Report) -> BTreeMap<String, f64> {
    least(report.outcomes.iter().flat_map(|o| &o.numbers).map(|n| (n.name.as_str(), n.value)))
}

fn least<'a>(numbers: impl Iterator<Item = (&'a str, f64)>) -> BTreeMap<String, f64> {
    let mut slowest: BTreeMap<String, f64> = BTreeMap::new();
    for (name, value) in numbers.filter(|(name, value)| RATES.contains(name) && value.is_finite()) {
        let least = slowest.entry(name.to_owned()).or_insert(value);
        *least = least.min(value);
    }
    slowest
}

/// The median of each number over hosts; none of what fewer than `hosts_min` have.
pub fn medians<'a>(
    hosts: impl IntoIterator<Item = &'a BTreeMap<String, f64>>,
    hosts_min: usize,
) -> BTreeMap<String, f64> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in hosts.into_iter().flatten() {
        values.entry(name).or_default().push(*value);
    }
    let median = |mut v: Vec<f64>| {
        v.sort_by(f64::total_cmp);
        v[v.len() / 2]
    };
    let enough = values.into_iter().filter(|(_, v)| v.len() >= hosts_min.max(1));
    enough.map(|(name, v)| (name.to_owned(), median(v))).collect()
}

/// What reports of hosts of one cloud and instance type teach; only those that passed count, each host once. Nothing before
/// [`HOSTS_MIN`] of them.
pub fn learn<'a>(reports: impl IntoIterator<Item = &'a Report>) -> Learned {
    let hosts: Vec<_> = reports.into_iter().filter(|r| r.verdict == Verdict::Pass).map(slowest).collect();
    Learned { medians: medians(&hosts, HOSTS_MIN) }
}
