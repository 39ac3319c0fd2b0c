//! What is known of the leader's loops on this replica: how they fare, what they share, whether acting is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use control::offers::Market;
use control::sampler::Sampler;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::sync::Notify;
use utoipa::ToSchema;

/// How a loop fares.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Status {
    /// What it is for.
    pub about: &'static str,
    /// Seconds between runs, unless it is woken.
    pub period_s: f64,
    /// Runs since the start.
    pub runs: u64,
    /// Runs that failed since the last that did not.
    pub failures: u64,
    /// When it last ran, milliseconds since 1970.
    pub ran_at_ms: Option<i64>,
    /// How long that took, milliseconds.
    pub took_ms: i64,
    /// What came of it.
    pub result: String,
    /// What went wrong last.
    pub error: Option<String>,
}

/// The state of all loops.
#[derive(Debug, Default)]
pub struct Board {
    loops: Mutex<BTreeMap<&'static str, Status>>,
    /// Nothing is launched or released while it is set.
    paused: AtomicBool,
    /// What is sold, and what providers hint at.
    market: Mutex<Market>,
    /// The step of the demand that is being sampled.
    sampler: Mutex<Sampler>,
    /// The term in which the providers were last asked what they sell.
    asked_in: AtomicI64,
    /// Nodes that plans do not count, though they are there: their test may take them away for long.
    uncounted: Mutex<BTreeSet<u64>>,
    /// Up to where the loops that read the event log have read on this replica, past what they have written down: what came
    /// since told them nothing.
    read_until: Mutex<BTreeMap<&'static str, i64>>,
    /// Term of this replica's lead; 0 while another leads.
    term: AtomicI64,
    /// Plans that were made wake the actor.
    pub actor: Notify,
}

impl Board {
    /// All loops by name.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, Status)> {
        self.loops.lock().iter().map(|(name, status)| (*name, status.clone())).collect()
    }

    /// The loops, for whoever runs them.
    pub fn statuses(&self) -> MutexGuard<'_, BTreeMap<&'static str, Status>> {
        self.loops.lock()
    }

    /// Whether plans are acted on.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Stops or resumes acting on plans.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// What is sold, and what providers hint at.
    pub fn market(&self) -> MutexGuard<'_, Market> {
        self.market.lock()
    }

    /// The step of the demand that is being sampled.
    pub fn sampler(&self) -> MutexGuard<'_, Sampler> {
        self.sampler.lock()
    }

    /// Where a reader of the event log goes on, that wrote down `written` last.
    #[must_use]
    pub fn read_until(&self, reader: &'static str, written: i64) -> i64 {
        self.read_until.lock().get(reader).map_or(written, |seq| written.max(*seq))
    }

    /// A reader of the event log has read up to here, and has nothing to write down.
    pub fn set_read_until(&self, reader: &'static str, seq: i64) {
        self.read_until.lock().insert(reader, seq);
    }

    /// Nodes that plans do not count.
    #[must_use]
    pub fn uncounted(&self) -> BTreeSet<u64> {
        self.uncounted.lock().clone()
    }

    /// Replaces the nodes that plans do not count.
    pub fn set_uncounted(&self, nodes: BTreeSet<u64>) {
        *self.uncounted.lock() = nodes;
    }

    /// Whether the providers were asked in this term what they sell: before that a plan would go by what was long ago.
    #[must_use]
    pub fn was_asked_in(&self, term: i64) -> bool {
        self.asked_in.load(Ordering::Acquire) == term
    }

    /// They were asked in this term.
    pub fn set_asked_in(&self, term: i64) {
        self.asked_in.store(term, Ordering::Release);
    }

    /// The term in which this replica leads, if it does.
    #[must_use]
    pub fn term(&self) -> Option<i64> {
        Some(self.term.load(Ordering::Acquire)).filter(|t| *t > 0)
    }

    /// Says in which term this replica leads; 0 for none. Returns the one before.
    pub fn set_term(&self, term: i64) -> i64 {
        self.term.swap(term, Ordering::AcqRel)
    }
}
