//! Weekly diagnostics: lends idle nodes to them, calls them back when idle ones become few, and says which nodes claims take
//! last. What is lent is decided by [`health::weekly`]; here it gets to know the fleet.

mod decide;
mod need;
mod orders;
mod outlook;
mod rollouts;
mod settings;

use std::collections::BTreeMap;

use fleet::book::Book;
use health::weekly::Arrivals;
use serde::{Deserialize, Serialize};

pub use decide::{decide, reserve};
pub use orders::{Lend, Orders};
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
