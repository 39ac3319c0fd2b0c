//! Looks at the faults of the last hour, and holds repairs and ends back where many have a cause in common; see
//! [`control::breakers`].

use std::collections::BTreeMap;

use control::breakers::FaultLog;
use control::learning::Learnt;

use super::log_reader::LogReader;
use super::{Context, LoopError};
use crate::store::ClosedBreakers;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (app, now_ms) = (&context.app, context.app.now_ms());
    let mut faults: FaultLog = app.store.single_or_default().await?;
    let before = faults.clone();
    if faults.seq == 0 {
        // What was before is over.
        faults.seq = app.store.last_seq().await?.max(1);
    }
    let mut reader = LogReader::after(app, app.board.breakers_read(term, faults.seq));
    loop {
        let events = reader.next().await?;
        if events.is_empty() {
            break;
        }
        events.iter().for_each(|event| faults.hear(&event.change));
    }
    faults.seq = reader.seq();
    let closed = app.store.single::<ClosedBreakers>().await?;
    if let Some(closed) = &closed {
        faults.forget(&closed.record.0, now_ms);
    }
    let usual =
        if faults.is_quiet() { BTreeMap::new() } else { app.store.shared::<Learnt>().await?.health.faults_per_gpu_h() };
    let (new, changed) = {
        let book = app.book()?;
        let new = faults.look(&book, &usual, now_ms);
        (new, *book.held() != faults.held())
    };
    for (cell, cause) in &new {
        tracing::error!(%cell, %cause, "many nodes fail for one cause: nothing is reset or ended for it; look at it");
    }
    app.metrics.broken(faults.open.len());
    // A commit wakes all who wait for news.
    if faults.says_the_same_as(&before) && before.seq > 0 {
        app.board.set_breakers_read(term, faults.seq);
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
