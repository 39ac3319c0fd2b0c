//! What the providers sell: judged by the gate, written down when it changed.

use std::collections::BTreeSet;

use providers::GateRules;

use super::{Context, LoopError};
use crate::store::OfferTable;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let app = &context.app;
    let (mut raw, mut failed, mut silent) = (Vec::new(), Vec::new(), BTreeSet::new());
    for provider in context.clouds.iter().map(|c| &c.provider) {
        // Reservations are sold only when they are known. What was told before stays where there is no answer.
        match provider.hints().await {
            Ok(hints) => app.board.market().set_hints(provider.name(), hints, app.now_ms()),
            Err(error) => tracing::warn!(provider = provider.name(), error = %error, "no hints"),
        }
        match provider.offers().await {
            Ok(offers) => raw.extend(offers),
            // What was known of this provider stays.
            Err(error) => {
                silent.insert(provider.name().to_owned());
                failed.push(format!("{}: {error}", provider.name()));
            }
        }
    }
    let catalogue = providers::gate(raw, GateRules::default());
    let found = {
        let book = app.book()?;
        app.board.market().asked(&book, &catalogue.offers, &silent)
    };
    if !app.board.was_asked_in(term) {
        app.board.set_asked_in(term);
        app.wake_planner();
    }
    let text = format!(
        "{} offers, {} changed, {} set aside{}",
        catalogue.offers.len(),
        found.changed,
        catalogue.set_aside.len(),
        if failed.is_empty() { String::new() } else { format!("; failed: {}", failed.join("; ")) }
    );
    if found.changed > 0 {
        app.ledger.put(&OfferTable(found.table), Some(term)).await?;
        app.wake_planner();
    }
    if failed.is_empty() || !catalogue.offers.is_empty() { Ok(text) } else { Err(text.into()) }
}
