//! Where each dollar goes.

use serde::{Deserialize, Serialize};

/// Dollars by what they bought. Sums of a run; whole micro-dollars only at the edge, since shares of a node's price are
/// no whole numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Money {
    /// GPUs in use by claims.
    pub claimed_usd: f64,
    /// Healthy GPUs that waited, and the rest of nodes in part claimed.
    pub idle_usd: f64,
    /// From launch to the gate's answer, and nodes that failed it.
    pub boot_usd: f64,
    /// Nodes out of service for a fault, until they are mended or ended.
    #[serde(default)]
    pub out_usd: f64,
    /// Minimum billing beyond a node's life.
    pub churn_usd: f64,
    /// Missed claims at their class's price.
    pub misses_usd: f64,
    /// What borrowers paid for idle GPUs: it is taken off.
    #[serde(default)]
    pub lent_usd: f64,
}

impl Money {
    /// Dollars of all parts together.
    #[must_use]
    pub fn total_usd(&self) -> f64 {
        self.claimed_usd + self.idle_usd + self.boot_usd + self.out_usd + self.churn_usd + self.misses_usd
            - self.lent_usd
    }

    /// With their names, in the order they are shown.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("claimed", self.claimed_usd),
            ("idle", self.idle_usd),
            ("boot", self.boot_usd),
            ("out", self.out_usd),
            ("churn", self.churn_usd),
            ("misses", self.misses_usd),
        ]
    }
}
