//! Writes demand down: the most claims at the same time in each minute, by class.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, Ordering};

use fleet::book::Book;

use super::{Context, LoopError};
use crate::clock;
use crate::store;

/// Length of a step of the demand, seconds.
pub const STEP_S: u32 = 60;

/// The step that is being sampled: `(its start, ms; highest so far by class)`.
static OPEN: Mutex<(i64, BTreeMap<String, usize>)> = Mutex::new((0, BTreeMap::new()));

/// When the last sample was taken, milliseconds since 1970.
static LAST_MS: AtomicI64 = AtomicI64::new(0);

/// Claims that have GPUs or wait, by class.
pub fn demand(book: &Book) -> BTreeMap<String, usize> {
    let mut counts: BTreeMap<String, usize> = book.classes().keys().map(|k| (k.clone(), 0)).collect();
    for claim in book.claims().values() {
        *counts.entry(claim.class.clone()).or_default() += claim.count as usize;
    }
    counts
}

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let step_ms = i64::from(STEP_S) * 1000;
    let start_ms = clock::now_ms() / step_ms * step_ms;
    let now_ms = clock::now_ms();
    let now = {
        let book = context.app.ledger.book();
        let now = demand(&book);
        let last_ms = LAST_MS.swap(now_ms, Ordering::Relaxed);
        // After a pause, or as a new leader, what happened meanwhile is not known.
        let seconds = (now_ms - last_ms) as f64 / 1000.0;
        if (0.0..=60.0).contains(&seconds) {
            context.app.metrics.passed(&book, &now, seconds, now_ms);
        }
        now
    };
    let finished = {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let finished = (open.0 != start_ms && open.0 != 0).then(|| std::mem::take(&mut *open));
        open.0 = start_ms;
        for (class, count) in now {
            let most = open.1.entry(class).or_default();
            *most = count.max(*most);
        }
        finished
    };
    let Some((at_ms, classes)) = finished else { return Ok("sampled".into()) };
    let rows: Vec<(String, i64, f64)> = classes.into_iter().map(|(class, most)| (class, at_ms, most as f64)).collect();
    let text = format!("{} classes written", rows.len());
    store::write_demand(&context.app.ledger, rows, Some(term)).await?;
    store::forget_old(&context.app.ledger, start_ms, Some(term)).await?;
    Ok(text)
}
