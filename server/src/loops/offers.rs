//! What the providers sell: judged by the gate, written down when it changed.

use fleet::Offer;
use providers::GateRules;

use super::{Context, LoopError};
use crate::store::Document;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let mut raw = Vec::new();
    let mut failed = Vec::new();
    for provider in context.providers.iter() {
        match provider.offers().await {
            Ok(offers) => raw.extend(offers),
            // What was known of this provider stays.
            Err(error) => failed.push(format!("{}: {error}", provider.name())),
        }
    }
    let catalogue = providers::gate(raw, GateRules::default());
    let known = context.app.ledger.book().offers().to_vec();
    let changed: Vec<&Offer> = catalogue.offers.iter().filter(|o| !known.contains(o)).collect();
    let text = format!(
        "{} offers, {} changed, {} set aside{}",
        catalogue.offers.len(),
        changed.len(),
        catalogue.set_aside.len(),
        if failed.is_empty() { String::new() } else { format!("; failed: {}", failed.join("; ")) }
    );
    if !changed.is_empty() {
        let body = serde_json::to_string(&catalogue.offers)?;
        let document = Document { kind: "offers".into(), name: "all".into(), version: 0, body };
        crate::store::write_document(&context.app.ledger, document, Some(term)).await?;
        context.app.wake_planner();
    }
    if failed.is_empty() || !catalogue.offers.is_empty() { Ok(text) } else { Err(text.into()) }
}
