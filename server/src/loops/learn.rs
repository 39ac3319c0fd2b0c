//! Learns from the event log; see [`control::learning`].

use std::sync::Arc;

use control::learning::Learnt;
use fleet::book::What;

use super::log_reader::LogReader;
use super::{Context, LoopError};
use crate::board::Unheard;
use crate::store::HostLimits;

/// What plans do not go by at once is heard this often, milliseconds: what was learnt is one document, and dear to write.
const HEARD_EVERY_MS: i64 = 60_000;
/// More events are not kept until then.
const UNHEARD_MAX: usize = 20_000;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (app, now_ms) = (&context.app, context.app.now_ms());
    let mut unheard = match app.board.take_unheard() {
        Some(unheard) if unheard.term == term => unheard,
        _ => {
            let learnt: Learnt = app.store.single_or_default().await?;
            Unheard { term, read_until: learnt.seq, heard_at_ms: now_ms, events: Vec::new() }
        }
    };
    let mut reader = LogReader::after(app, unheard.read_until);
    let mut read = 0;
    loop {
        let events = reader.next().await?;
        if events.is_empty() {
            break;
        }
        read += events.len();
        // Claims teach nothing, and are most of what happens.
        unheard.events.extend(events.into_iter().map(|e| e.change).filter(|c| !matches!(c.what, What::Claim(_))));
    }
    unheard.read_until = reader.seq();
    let due = now_ms - unheard.heard_at_ms >= HEARD_EVERY_MS || unheard.events.len() > UNHEARD_MAX;
    let answers = if due || !unheard.events.is_empty() { hear(&context, term, &mut unheard, due).await? } else { 0 };
    app.board.set_unheard(unheard);
    Ok(if read == 0 { "nothing new".into() } else { format!("{read} events, {answers} answers") })
}

/// Learns, where it is time or something cannot wait. Returns how many events said something.
async fn hear(context: &Context, term: i64, unheard: &mut Unheard, due: bool) -> Result<usize, LoopError> {
    let app = &context.app;
    let now_s = app.now_ms() as f64 / 1000.0;
    let known: Arc<Learnt> = app.store.shared().await?;
    if !due && !unheard.events.iter().any(|change| known.is_urgent(change)) {
        return Ok(0);
    }
    unheard.heard_at_ms = app.now_ms();
    // Where nothing happens, what was seen fades all the same.
    if unheard.events.is_empty() && !known.health.is_due(now_s) {
        return Ok(0);
    }
    let mut learnt = Learnt::clone(&known);
    let mut count = 0;
    learnt.seq = unheard.read_until;
    learnt.health.know(&*app.book()?);
    for change in &unheard.events {
        let heard = learnt.hear(change);
        count += usize::from(heard.news);
        if let Some(lead_s) = heard.ready_after_s {
            app.metrics.node_ready(lead_s);
        }
    }
    learnt.health.tell(now_s);
    app.ledger.put(&learnt, Some(term)).await?;
    let limits = HostLimits(learnt.health.limits());
    if app.store.single_or_default::<HostLimits>().await? != limits {
        app.ledger.put(&limits, Some(term)).await?;
    }
    unheard.events.clear();
    Ok(count)
}
