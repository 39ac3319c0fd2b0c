//! Keeps the lead, or waits for it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use super::Context;

/// Well within the lease, so that one slow write does not cost the lead.
const EVERY: Duration = Duration::from_secs(3);

pub async fn keep(context: Context, mut stop: watch::Receiver<bool>) {
    let app = &context.app;
    loop {
        let term = match app.store.lead(&app.ledger, &context.holder).await {
            Ok(term) => term.unwrap_or(0),
            Err(error) => {
                tracing::warn!(error = %crate::output::chain_of(&error), "cannot keep the lead");
                0
            }
        };
        let before = app.loops.term.swap(term, Ordering::AcqRel);
        if before != term {
            tracing::info!(term, "{}", if term > 0 { "this replica leads" } else { "another replica leads" });
            app.metrics.set_leads(term > 0);
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            _ = stop.wait_for(|s| *s) => break,
        }
    }
    app.loops.term.store(0, Ordering::Release);
    // The next replica need not wait for the lease to run out.
    let _ = app.store.step_down(&app.ledger, &context.holder).await;
}
