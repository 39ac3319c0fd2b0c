//! Calls diagnostics back as claims take idle nodes; see [`control::weekly::reserve`].

use std::sync::Arc;

use control::weekly::{WeeklyMemory, reserve};

use super::{Context, LoopError};

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let app = &context.app;
    if !context.diagnostics.enabled || app.book()?.lent().is_empty() {
        return Ok("nothing is lent".into());
    }
    if context.planning.dry_run || context.paused().await? {
        return Ok("paused".into());
    }
    let memory: Arc<WeeklyMemory> = app.store.shared().await?;
    let back = reserve(&*app.book()?, &memory, app.now_ms());
    let count = back.len();
    if count > 0 {
        let call = move |book: &mut fleet::book::Book, now_ms: i64| {
            for (node, reason) in &back {
                // One that has come back meanwhile stays.
                book.call_back(*node, reason, now_ms).ok();
            }
        };
        app.ledger.write_as_leader(term, call).await?;
    }
    Ok(format!("{count} called back"))
}
