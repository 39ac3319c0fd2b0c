//! Looks at the faults of the last hour, and holds repairs and ends back where many have a cause in common; see
//! [`control::breakers`].

use control::breakers::FaultLog;
use control::learning::Learnt;

use super::{Context, LoopError};
use crate::store::{ClosedBreakers, Page};

/// Name of this reader of the log.
const READER: &str = "breakers";
/// Events that are read at once, and pages of one run.
const AT_ONCE: i64 = 2_000;
const PAGES: usize = 100;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (app, now_ms) = (&context.app, context.app.now_ms());
    let mut faults: FaultLog = app.store.single_or_default().await?;
    let before = faults.clone();
    if faults.seq == 0 {
        // What was before is over.
        faults.seq = app.store.last_seq().await?.max(1);
    }
    faults.seq = app.board.read_until(READER, faults.seq);
    for _ in 0..PAGES {
        let events = app.store.events(Page { after: faults.seq, limit: AT_ONCE }).await?;
        events.iter().for_each(|event| faults.hear(&event.change));
        faults.seq = events.last().map_or(faults.seq, |e| e.seq);
        if events.len() < AT_ONCE as usize {
            break;
        }
    }
    let closed = app.store.single::<ClosedBreakers>().await?;
    if let Some(closed) = &closed {
        faults.forget(&closed.record.0, now_ms);
    }
    let learnt: Learnt = app.store.single_or_default().await?;
    let (new, changed) = {
        let book = app.book()?;
        let new = faults.look(&book, &learnt.health.faults_per_gpu_h(), now_ms);
        (new, *book.held() != faults.held())
    };
    for (cell, cause) in &new {
        tracing::error!(%cell, %cause, "many nodes fail for one cause: nothing is reset or ended for it; look at it");
    }
    app.metrics.broken(faults.open.len());
    // A commit wakes all who wait for news.
    if faults.says_the_same_as(&before) && before.seq > 0 {
        app.board.set_read_until(READER, faults.seq);
    } else {
        app.ledger.put(&faults, Some(term)).await?;
    }
    if changed {
        app.ledger.put(&faults.held(), Some(term)).await?;
    }
    // Only now, and only what was read: what a person closes meanwhile is for the next look.
    if let Some(closed) = closed.filter(|c| !c.record.0.is_empty()) {
        let _ = app.ledger.edit_single(&ClosedBreakers::default(), closed.version).await?;
    }
    Ok(format!("{} open, {} faults in the last hour", faults.open.len(), faults.faults()))
}
