//! A plan, as data.

use fleet::{OfferKey, UsdMicros};
use serde::{Deserialize, Serialize};

use crate::report::PlanReport;

/// What to do now, what is meant for later, and why. Immutable; a child of the plan whose epoch it names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Number of this plan.
    pub epoch: u64,
    /// Launches to make now, whole nodes.
    pub launches: Vec<Launch>,
    /// Idle nodes to give back now, whole nodes.
    pub releases: Vec<Release>,
    /// Idle nodes that are not needed, but not given back yet.
    #[serde(default)]
    pub spare: Vec<Spare>,
    /// Healthy nodes meant for the start of each period, for offers that have or get any.
    pub targets: Vec<Target>,
    /// Why.
    pub report: PlanReport,
}

/// Nodes to launch now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Where.
    pub offer: OfferKey,
    /// How many.
    pub nodes: u32,
}

/// Idle nodes to give back now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Where.
    pub offer: OfferKey,
    /// How many.
    pub nodes: u32,
}

/// Idle nodes that are not needed. They stay until that has been so for as long as starting them again would be paid for
/// (the break-even rule of ski rental: at most twice the cost of knowing the future; Karlin et al. 1988).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spare {
    /// Where.
    pub offer: OfferKey,
    /// Seconds since each was needed, the longest first.
    pub since_s: Vec<f64>,
}

/// Nodes meant for each period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Where.
    pub offer: OfferKey,
    /// Expected healthy nodes at the start of each period, `[T]`.
    pub nodes: Vec<f64>,
    /// Launches meant for each period, `[T]`; the first is whole and done now.
    pub launches: Vec<f64>,
}

/// Dollars of the optimum as micro-dollars; numbers out of range are shown as the largest.
#[must_use]
pub fn micros(usd: f64) -> UsdMicros {
    UsdMicros::from_usd(usd).unwrap_or(UsdMicros(if usd < 0.0 { i64::MIN } else { i64::MAX }))
}
