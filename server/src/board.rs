//! What is known of the leader's loops on this replica: how they fare, what they share, whether acting is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use control::offers::Market;
use control::sampler::Sampler;
use fleet::book::Change;
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
    /// The term in which breakers read the event log, and up to where: what came since they wrote told them nothing.
    breakers_read: Mutex<(i64, i64)>,
    /// What is to be learnt from.
    unheard: Mutex<Option<Unheard>>,
    /// Term of this replica's lead; 0 while another leads.
    term: AtomicI64,
    /// Plans that were made wake the actor.
    pub actor: Notify,
}

/// Events that were read, and not learnt from yet: another replica, or this one in another term, reads them again.
#[derive(Debug, Clone)]
pub struct Unheard {
    /// Term of the lead in which they were read.
    pub term: i64,
    /// The last event that was read.
    pub read_until: i64,
    /// When something was last learnt, milliseconds since 1970.
    pub heard_at_ms: i64,
    /// Without those that teach nothing.
    pub events: Vec<Change>,
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

    /// Where breakers go on in the event log, that wrote down `written` last.
    #[must_use]
    pub fn breakers_read(&self, term: i64, written: i64) -> i64 {
        let (in_term, seq) = *self.breakers_read.lock();
        if in_term == term { written.max(seq) } else { written }
    }

    /// Breakers have read the event log up to here.
    pub fn set_breakers_read(&self, term: i64, seq: i64) {
        *self.breakers_read.lock() = (term, seq);
    }

    /// Takes what is to be learnt from. A run that fails leaves nothing: the next reads again what was not learnt.
    #[must_use]
    pub fn take_unheard(&self) -> Option<Unheard> {
        self.unheard.lock().take()
    }

    /// Leaves it for the next time.
    pub fn set_unheard(&self, unheard: Unheard) {
        *self.unheard.lock() = Some(unheard);
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
