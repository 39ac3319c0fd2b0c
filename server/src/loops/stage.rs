//! Decides which snapshots lie on which hosts, and learns from starts; see [`control::staging`].

use control::staging::{Outlook, learn, situate};

use super::{Context, LoopError};

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let app = &context.app;
    let learnt = {
        let book = app.book()?;
        if book.snapshots().is_empty() && book.nodes().values().all(|node| node.copies.is_empty()) {
            return Ok("no snapshots are declared".into());
        }
        learn(&book)
    };
    if let Some(readiness) = learnt {
        app.ledger.put(&readiness, Some(term)).await?;
    }
    let Some(plan) = context.newest_plan().await? else { return Ok("waits for a plan".into()) };
    let outlook = Outlook::of(&plan.input);
    // Claims need the book while the plan is made.
    let situated = situate(&*app.book()?, &outlook);
    let orders = tokio::task::spawn_blocking(move || situated.plan()).await?;
    app.metrics.staged(orders.saved_s, orders.fetch_bytes);
    let copies: usize = orders.copies.values().map(std::collections::BTreeMap::len).sum();
    let text = format!("{copies} copies on {} hosts save {:.0} s", orders.copies.len(), orders.saved_s);
    if context.planning.dry_run || context.paused().await? {
        return Ok(format!("{text} (not acted on)"));
    }
    if orders.changes(&*app.book()?) == 0 {
        return Ok(text);
    }
    let told = app.ledger.write_as_leader(term, move |book, now_ms| orders.carry_out(book, now_ms)).await?;
    Ok(format!("{text}; {told} told"))
}
