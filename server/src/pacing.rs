//! How fast callers may call.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use providers::{CallRate, Clock, Pace};

/// Somebody calls too fast.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("more than {per_s} requests a second; try again in {wait_ms} ms")]
pub struct TooFast {
    /// What is allowed.
    pub per_s: f64,
    /// When it may be tried again, milliseconds.
    pub wait_ms: i64,
}

/// How fast each token may call. Whoever has none that is known shares one small allowance, which slows guessing.
#[derive(Debug)]
pub struct Rates {
    clock: Clock,
    limit: CallRate,
    paces: Mutex<HashMap<Arc<str>, Pace>>,
    hosts: Mutex<HashMap<u64, Pace>>,
}

/// Calls of one host: a heartbeat each ten seconds, a long poll, reports. A workload can read its host's secret.
const HOST: CallRate = CallRate { burst: 40.0, per_s: 4.0 };
/// Hosts that are remembered before those that were quiet are forgotten.
const HOSTS_MAX: usize = 20_000;

/// Calls without a token that is known, all together.
const STRANGERS: CallRate = CallRate { burst: 100.0, per_s: 20.0 };

impl Rates {
    /// With so many requests a second for each token; twice as many at once.
    #[must_use]
    pub fn new(per_s: f64, clock: Clock) -> Self {
        Self { clock, limit: CallRate { burst: 2.0 * per_s, per_s }, paces: Mutex::default(), hosts: Mutex::default() }
    }

    /// Takes a request of the agent of a node.
    ///
    /// # Errors
    /// It calls too fast.
    pub fn take_host(&self, node: u64) -> Result<(), TooFast> {
        let now_ms = self.clock.passed_ms();
        let mut hosts = self.hosts.lock();
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, pace| !pace.is_full(now_ms));
        }
        let taken = hosts.entry(node).or_insert_with(|| Pace::new(HOST, now_ms)).take(now_ms);
        taken.map_err(|wait_ms| TooFast { per_s: HOST.per_s, wait_ms })
    }

    /// Takes a request of a token; `None` for strangers.
    ///
    /// # Errors
    /// It calls too fast.
    pub fn take(&self, token: Option<&Arc<str>>) -> Result<(), TooFast> {
        let now_ms = self.clock.passed_ms();
        let (name, limit) = match token {
            Some(name) => (Arc::clone(name), self.limit),
            None => (Arc::from(""), STRANGERS),
        };
        let mut paces = self.paces.lock();
        // Names are of tokens that were made: there are as many as an operator made.
        let taken = paces.entry(name).or_insert_with(|| Pace::new(limit, now_ms)).take(now_ms);
        taken.map_err(|wait_ms| TooFast { per_s: limit.per_s, wait_ms })
    }
}
