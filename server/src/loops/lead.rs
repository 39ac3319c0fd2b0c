//! Keeps the lead, or waits for it.

use std::time::Duration;

use tokio::sync::watch;

use super::Context;
use crate::errors::{Seldom, chain_of};
use crate::store::{Write, WriteError};

/// Well within the lease, so that one slow write does not cost the lead.
const EVERY: Duration = Duration::from_secs(3);

/// Takes or keeps the lead. A replica whose clock is off does not lead: clouds refuse calls that are signed at the wrong time,
/// and what it would write for people is wrong. It serves claims all the same, by the database's clock.
async fn take(context: &Context) -> Result<Option<i64>, WriteError> {
    static OFF: Seldom = Seldom::new();
    let app = &context.app;
    app.metrics.set_clock_off(app.clock.off_ms());
    let Some(off_s) = app.clock_is_off_s() else { return app.ledger.lead(&context.holder).await };
    let leads = if app.store.is_shared() { "this replica does not lead until it is set right" } else { "it leads on" };
    if let Some(held_back) = OFF.now(leads) {
        tracing::warn!(off_s, held_back, "the clock of this machine is off; {leads}");
    }
    if app.store.is_shared() {
        app.ledger.record(Write::StepDown { holder: context.holder.to_string() }, None).await?;
        return Ok(None);
    }
    app.ledger.lead(&context.holder).await
}

pub async fn keep(context: Context, mut stop: watch::Receiver<bool>) {
    let (app, fails) = (&context.app, Seldom::new());
    loop {
        let term = match take(&context).await {
            Ok(term) => term.unwrap_or(0),
            Err(error) => {
                let error = chain_of(&error);
                if let Some(held_back) = fails.now(&error) {
                    tracing::warn!(error, held_back, "cannot keep the lead");
                }
                0
            }
        };
        let before = app.board.set_term(term);
        if before != term {
            tracing::info!(term, "{}", if term > 0 { "this replica leads" } else { "another replica leads" });
            app.metrics.set_leads(term > 0);
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => break,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    app.board.set_term(0);
    // The next replica need not wait for the lease to run out.
    let _ = app.ledger.record(Write::StepDown { holder: context.holder.to_string() }, None).await;
}
