//! Keeps the lead, or waits for it.

use std::time::Duration;

use tokio::sync::watch;

use super::Context;
use crate::errors::{Seldom, chain_of};
use crate::store::Write;

/// Well within the lease, so that one slow write does not cost the lead.
const EVERY: Duration = Duration::from_secs(3);

pub async fn keep(context: Context, mut stop: watch::Receiver<bool>) {
    let (app, fails) = (&context.app, Seldom::new());
    loop {
        let term = match app.ledger.lead(&context.holder).await {
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
