//! What the providers sell: judged by the gate, written down when it changed.

use std::collections::BTreeSet;

use fleet::Offer;
use providers::GateRules;

use super::{Context, LoopError};
use crate::store::Document;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let mut raw = Vec::new();
    let (mut failed, mut silent) = (Vec::new(), BTreeSet::new());
    for provider in context.clouds.iter().map(|c| &c.provider) {
        // Reservations are sold only when they are known. What was told before stays where there is no answer.
        match provider.hints().await {
            Ok(hints) => context.app.loops.set_hints(provider.name(), hints),
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
    let (known, in_use) = {
        let book = context.app.ledger.book();
        let in_use: BTreeSet<_> = book.nodes().values().map(|n| n.offer.clone()).collect();
        (book.offers().to_vec(), in_use)
    };
    let changed: Vec<&Offer> = catalogue.offers.iter().filter(|o| !known.contains(o)).collect();
    let mut sold: BTreeSet<_> = catalogue.offers.iter().map(|o| o.key.clone()).collect();
    // What a provider that did not answer sold a moment ago is still sold; what has nodes stays known.
    let mut listed = catalogue.offers.clone();
    for offer in known.iter().filter(|o| !sold.contains(&o.key)) {
        if silent.contains(&offer.key.provider) || in_use.contains(&offer.key) {
            listed.push(offer.clone());
        }
    }
    let still = known.iter().filter(|o| silent.contains(&o.key.provider) && context.app.loops.is_sold(&o.key));
    sold.extend(still.map(|o| o.key.clone()).collect::<Vec<_>>());
    context.app.loops.set_sold(sold);
    if !context.app.loops.was_asked_in(term) {
        context.app.loops.set_asked_in(term);
        context.app.wake_planner();
    }
    let text = format!(
        "{} offers, {} changed, {} set aside{}",
        catalogue.offers.len(),
        changed.len(),
        catalogue.set_aside.len(),
        if failed.is_empty() { String::new() } else { format!("; failed: {}", failed.join("; ")) }
    );
    if !changed.is_empty() {
        let body = serde_json::to_string(&listed)?;
        let document = Document { kind: "offers".into(), name: "all".into(), version: 0, body };
        crate::store::write_document(&context.app.ledger, document, Some(term)).await?;
        context.app.wake_planner();
    }
    if failed.is_empty() || !catalogue.offers.is_empty() { Ok(text) } else { Err(text.into()) }
}
