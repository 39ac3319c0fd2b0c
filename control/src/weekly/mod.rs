//! Weekly diagnostics: lends idle nodes to them, calls them back when idle ones become few, and says which nodes claims take
//! last. What is lent is decided by [`health::weekly`]; here it gets to know the fleet.

mod decide;
mod need;
mod outlook;
mod rollouts;
mod settings;

use std::collections::BTreeMap;

use fleet::book::Book;
use health::dcgm::{TEST_DEADLINE_S, level_deadline_s};
use health::weekly::{Arrivals, Run};
use serde::{Deserialize, Serialize};

pub use decide::{Orders, decide, reserve};
pub use outlook::Outlook;
use rollouts::Rollouts;
pub use settings::Diagnostics;

/// What is remembered from one look to the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WeeklyMemory {
    /// What came of each class within the time to yield.
    arrivals: BTreeMap<String, Arrivals>,
    /// When the present window began, milliseconds since 1970, and the claims of each class until then.
    window: (i64, BTreeMap<String, u64>),
    /// Nodes for whose test the planner was asked for another, and since when, milliseconds since 1970.
    surge: BTreeMap<u64, i64>,
    /// Drivers and images, and since when they are there.
    rollouts: Rollouts,
}

/// Windows that were missed are not counted: nobody looked.
const MISSED_WINDOWS: i64 = 3;
/// Margin over the agent's own deadlines, milliseconds.
const MARGIN_MS: i64 = 120_000;

impl WeeklyMemory {
    /// Notes what came, and what is being rolled out. Returns whether that is worth writing down.
    pub fn look(&mut self, book: &Book, rules: &Diagnostics, now_ms: i64) -> bool {
        let before = self.rollouts.clone();
        self.rollouts.look(book, now_ms);
        self.arrived(book, rules.yield_max_s, now_ms) || self.rollouts != before
    }

    /// Notes for whose test the planner is asked for another. Returns whether that is worth writing down.
    pub fn ordered(&mut self, orders: &Orders) -> bool {
        let changed = self.surge != orders.surge;
        self.surge.clone_from(&orders.surge);
        changed
    }

    /// Notes what came in the window that is over. Returns whether one is.
    fn arrived(&mut self, book: &Book, window_s: f64, now_ms: i64) -> bool {
        let window_ms = (window_s * 1000.0) as i64;
        let passed_ms = now_ms - self.window.0;
        if (0..window_ms).contains(&passed_ms) {
            return false;
        }
        let now: BTreeMap<String, u64> = book.tallies().iter().map(|(k, t)| (k.clone(), t.hits + t.misses)).collect();
        if (0..MISSED_WINDOWS * window_ms).contains(&passed_ms) {
            let windows = u32::try_from(passed_ms / window_ms).unwrap_or(1).max(1);
            for (class, claims) in &now {
                let came = claims.saturating_sub(self.window.1.get(class).copied().unwrap_or(0));
                let each = u32::try_from(came).unwrap_or(u32::MAX).div_ceil(windows);
                self.arrivals.entry(class.clone()).or_default().saw(now_ms, each);
            }
        }
        self.arrivals.retain(|class, _| book.classes().contains_key(class));
        self.window = (now_ms, now);
        true
    }
}

impl Orders {
    /// Whether the book is not yet as ordered.
    #[must_use]
    pub fn changes(&self, book: &Book) -> bool {
        let last = |n: &fleet::book::Node| n.claimed_last != self.last.contains(&n.id);
        !self.lend.is_empty() || !self.call_back.is_empty() || book.nodes().values().any(last)
    }

    /// Does what is ordered. What was claimed or has ended meanwhile stays as it is.
    pub fn carry_out(&self, book: &mut Book, now_ms: i64) {
        for (node, reason) in &self.call_back {
            book.call_back(*node, reason, now_ms).ok();
        }
        for (node, run) in &self.lend {
            book.lend(*node, run.word(), now_ms + longest_ms(run), now_ms).ok();
        }
        book.take_last(&self.last);
    }
}

/// When it is over in any case: the agent's deadlines, and some time to start.
fn longest_ms(run: &Run) -> i64 {
    let deadline_s = match run {
        Run::Quick => level_deadline_s(2),
        Run::Full => level_deadline_s(3),
        Run::Slice(_) => TEST_DEADLINE_S,
    };
    // What asks for it is repeated.
    2 * i64::from(deadline_s) * 1000 + MARGIN_MS
}
