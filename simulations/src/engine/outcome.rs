//! What a run comes to.

use serde::{Deserialize, Serialize};

use super::{Histogram, Money};

/// Counts from `measure_from_s` on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Claims that came, lost nodes' claims among them.
    pub claims: u64,
    /// Granted within their class's wait.
    pub hits: u64,
    /// Not granted within the wait.
    pub misses: u64,
    /// Claims whose node was lost.
    pub interrupted: u64,
    /// Given up before their wait was over: neither hit nor miss.
    pub given_up: u64,
    /// Borrowed claims that were called back.
    #[serde(default)]
    pub called_back: u64,
    /// Nodes launched.
    pub launches: u64,
    /// Requests refused for want of machines.
    pub refused_capacity: u64,
    /// Requests refused by a quota.
    pub refused_quota: u64,
    /// Requests refused by a rate limit.
    pub refused_throttled: u64,
    /// Boots that failed the gate.
    pub boot_failures: u64,
    /// Nodes released by the policy.
    pub releases: u64,
    /// Of these, nodes that had not served for as long as they took to boot.
    #[serde(default)]
    pub reversals: u64,
    /// Nodes that the cloud took back.
    pub reclaims: u64,
    /// Faults of nodes in service.
    pub faults: u64,
    /// Decisions made.
    pub decisions: u64,
    /// Decisions that launched or released anything.
    pub changes: u64,
    /// Decisions for which the planner fell back to base stock: each is a bug.
    #[serde(default)]
    pub fallbacks: u64,
    /// Events of the whole run.
    pub events: u64,
}

/// Counts of one class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OfClass {
    /// Name.
    pub name: String,
    /// Hit rate that is promised.
    pub hit_rate_target: f64,
    /// Claims that came.
    pub claims: u64,
    /// Granted within the wait.
    pub hits: u64,
    /// Not granted within the wait.
    pub misses: u64,
    /// Dollars of its misses, and of the nodes that were launched for it where a policy keeps classes apart.
    pub cost_usd: f64,
}

impl OfClass {
    /// Hits over hits and misses; 1 without claims.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 1.0 } else { self.hits as f64 / all as f64 }
    }
}

/// One point of the plots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds from the start of the measured part.
    pub at_s: f64,
    /// GPUs that claims want.
    pub demand_gpus: u32,
    /// GPUs in use.
    pub claimed_gpus: u32,
    /// Healthy GPUs without a claim.
    pub idle_gpus: u32,
    /// GPUs on their way.
    pub arriving_gpus: u32,
    /// Misses so far.
    pub misses: u64,
    /// Dollars an hour for nodes.
    pub spend_usd_per_h: f64,
    /// Nodes launched and released so far.
    pub moves: u64,
}

/// A run's result. The same setup and policy give the same bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Length of the measured part, seconds.
    pub measured_s: f64,
    /// Counts.
    pub counts: Counts,
    /// By class, in the setup's order.
    pub classes: Vec<OfClass>,
    /// Money.
    pub money: Money,
    /// GPU-seconds in use by claims.
    pub claimed_gpu_s: f64,
    /// GPU-seconds that were paid.
    pub paid_gpu_s: f64,
    /// Waits of granted claims.
    pub waits: Histogram,
    /// Wait plus the phases of the cold start, of granted claims.
    pub cold_starts: Histogram,
    /// Wait and start of granted claims, by the copies that their hosts had; empty where a run has none.
    #[serde(default)]
    pub starts: Histogram,
    /// Of these: cold, from a disk, from memory.
    #[serde(default)]
    pub started_from: [u64; 3],
    /// Bytes that hosts fetched for copies.
    #[serde(default)]
    pub fetched_bytes: f64,
    /// Plots.
    pub samples: Vec<Sample>,
}

impl Outcome {
    /// Hits over hits and misses; 1 without claims.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        let all = self.counts.hits + self.counts.misses;
        if all == 0 { 1.0 } else { self.counts.hits as f64 / all as f64 }
    }

    /// GPU allocation utilisation: claimed over paid GPU-seconds.
    #[must_use]
    pub fn utilisation(&self) -> f64 {
        if self.paid_gpu_s > 0.0 { self.claimed_gpu_s / self.paid_gpu_s } else { 0.0 }
    }
}
