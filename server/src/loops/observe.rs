//! What the providers run, against what is known: nodes that are gone, launches whose answer was lost, strays, and notices.

use std::sync::Arc;

use control::breakers::FaultLog;
use control::observation::{Found, Listing, most_ended, reconcile};
use fleet::book::Book;
use fleet::invariants::{Breach, Invariant};

use super::{Context, LoopError};

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (mut found, mut failed) = (Found::default(), Vec::new());
    let dry_run = context.planning.dry_run;
    for provider in context.clouds.iter().map(|c| &c.provider) {
        let name: Arc<str> = provider.name().into();
        context.recall(&**provider)?;
        let asked_at_ms = context.app.now_ms();
        let listed = match provider.list().await {
            Ok(listed) => listed,
            Err(error) => {
                // Silence is no proof that anything is gone.
                failed.push(format!("{name}: {error}"));
                continue;
            }
        };
        let notices = provider.notices().await.unwrap_or_else(|error| {
            failed.push(format!("{name}: notices: {error}"));
            Vec::new()
        });
        let said = Arc::clone(&name);
        let look = move |book: &mut Book, now_ms: i64| {
            let (instances, notices) = (&listed[..], &notices[..]);
            reconcile(book, &Listing { provider: &said, instances, notices, asked_at_ms, dry_run }, now_ms)
        };
        let seen = context.app.ledger.write_as_leader(term, look).await?;
        context.app.metrics.interrupted(&name, seen.gone + seen.noticed);
        // Before the providers have said what they sell, everything looks strange.
        if !dry_run && context.app.board.was_asked_in(term) && !context.paused().await? {
            for instance in &seen.strangers {
                // It has no node to write an intent for, and ending it twice does no harm.
                match provider.terminate(instance).await {
                    Ok(()) => tracing::warn!(instance, "ended: it has our tag, and nobody sells its kind any more"),
                    Err(error) => {
                        let what = format!("{instance} of {name} is billed, has no node, and does not end");
                        context.app.metrics.breached(&Breach::new(Invariant::Cap3, what));
                        failed.push(format!("{name}: end {instance}: {error}"));
                    }
                }
            }
        }
        found.add(seen);
    }
    let cleaned = if dry_run || context.paused().await? { 0 } else { clean_up(&context, term).await? };
    if found.any() || cleaned > 0 {
        context.app.wake_planner();
        context.app.board.actor.notify_one();
    }
    let text = format!(
        "{} instances, {} gone, {} adopted, {} to be taken back, {cleaned} to be ended",
        found.instances, found.gone, found.adopted, found.noticed
    );
    if !found.strangers.is_empty() {
        let count = found.strangers.len();
        failed.push(format!("{count} instances carry our tag and are of a kind that nobody sells"));
    }
    if failed.is_empty() { Ok(text) } else { Err(format!("{text}; failed: {}", failed.join("; ")).into()) }
}

/// Asks for the end of what will not be of use. Returns how many.
async fn clean_up(context: &Context, term: i64) -> Result<usize, LoopError> {
    let faults: Arc<FaultLog> = context.app.store.shared().await?;
    let ended = faults.ended(context.app.now_ms());
    let clean = move |book: &mut Book, now_ms: i64| book.clean_up(most_ended(book), &ended, now_ms);
    Ok(context.app.ledger.write_as_leader(term, clean).await?)
}
