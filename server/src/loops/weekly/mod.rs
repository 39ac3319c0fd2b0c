//! Weekly diagnostics: lends idle nodes to them, calls them back when idle ones become few, and says which nodes claims take
//! last. What is lent is decided by [`health::weekly`]; here it gets to know the fleet.

mod decide;
mod need;
mod rollouts;

use std::collections::BTreeMap;

use fleet::book::Book;
use health::dcgm::{TEST_DEADLINE_S, level_deadline_s};
use health::weekly::{Arrivals, Run};
use serde::{Deserialize, Serialize};

use decide::decide;
use rollouts::Rollouts;

use super::plan::PlanRecord;
use super::{Context, LoopError};
use crate::clock;
use crate::store::{Document, GpuRecord, write_document};

/// What is remembered from one run to the next.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
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

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let rules = &*context.diagnostics;
    if !rules.enabled {
        return Ok("off".into());
    }
    if context.planning.dry_run || context.paused().await? {
        return Ok("paused".into());
    }
    let app = &context.app;
    let now_ms = clock::now_ms();
    let mut memory: Memory = match app.store.document("learnt", "weekly").await? {
        Some(document) => document.record().unwrap_or_default(),
        None => Memory::default(),
    };
    let before = memory.rollouts.clone();
    let window_over = {
        let book = app.ledger.book();
        memory.rollouts.look(&book, now_ms);
        memory.look(&book, rules.yield_max_s, now_ms)
    };
    let gpus: BTreeMap<String, GpuRecord> =
        app.store.gpus("", i64::MAX).await?.into_iter().map(|g| (g.serial.clone(), g)).collect();
    let plan: Option<PlanRecord> =
        app.store.plans(i64::MAX, 1).await?.first().and_then(|p| serde_json::from_str(&p.body).ok());
    let orders = decide(&app.ledger.book(), &gpus, &memory, plan.as_ref(), rules, now_ms);
    if window_over || memory.surge != orders.surge || memory.rollouts != before {
        memory.surge.clone_from(&orders.surge);
        let body = serde_json::to_string(&memory)?;
        let document = Document { kind: "learnt".into(), name: "weekly".into(), version: 0, body };
        write_document(&app.ledger, document, Some(term)).await?;
    }
    app.metrics.tested(orders.due, orders.stale);
    app.loops.set_uncounted(orders.uncounted);
    let text = format!(
        "{} due, {} stale, {} diagnosing, {} lent, {} called back{}",
        orders.due,
        orders.stale,
        orders.diagnosing,
        orders.lend.len(),
        orders.call_back.len(),
        orders.why
    );
    let changed = {
        let book = app.ledger.book();
        book.nodes().values().any(|n| n.claimed_last != orders.last.contains(&n.id))
    };
    if changed || !orders.lend.is_empty() || !orders.call_back.is_empty() {
        let (lend, call_back, last) = (orders.lend, orders.call_back, orders.last);
        let write = move |book: &mut Book, now_ms: i64| {
            // What was claimed or has ended meanwhile stays as it is.
            for (node, reason) in call_back {
                book.call_back(node, &reason, now_ms).ok();
            }
            for (node, run) in lend {
                book.lend(node, run.word(), now_ms + longest_ms(&run), now_ms).ok();
            }
            book.take_last(&last);
        };
        app.ledger.write_as_leader(term, write).await?;
    }
    Ok(text)
}

impl Memory {
    /// Notes what came in the window that is over. Returns whether one is.
    fn look(&mut self, book: &Book, window_s: f64, now_ms: i64) -> bool {
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
