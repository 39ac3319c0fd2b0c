//! Lends idle nodes to diagnostics and calls them back; see [`control::weekly`].

use std::collections::BTreeMap;

use control::gpus::GpuRecord;
use control::weekly::{Outlook, WeeklyMemory, decide};

use super::{Context, LoopError};

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let rules = &*context.diagnostics;
    if !rules.enabled {
        return Ok("off".into());
    }
    if context.planning.dry_run || context.paused().await? {
        return Ok("paused".into());
    }
    let (app, now_ms) = (&context.app, context.app.now_ms());
    let mut memory: WeeklyMemory = app.store.single_or_default().await?;
    let found = app.store.gpus("", i64::MAX).await?;
    let gpus: BTreeMap<&str, &GpuRecord> = found.iter().map(|g| (g.serial.as_str(), &**g)).collect();
    let plan = context.newest_plan().await?;
    let outlook = plan.as_ref().map(Outlook::of).unwrap_or_default();
    let (orders, remembers, changes) = {
        let book = app.book()?;
        let looked = memory.look(&book, rules, now_ms);
        let orders = decide(&book, &gpus, &memory, &outlook, rules, now_ms);
        let ordered = memory.ordered(&orders);
        let changes = orders.changes(&book);
        (orders, looked || ordered, changes)
    };
    if remembers {
        app.ledger.put(&memory, Some(term)).await?;
    }
    app.metrics.tested(orders.due, orders.stale);
    app.board.set_uncounted(orders.uncounted.clone());
    let text = format!(
        "{} due, {} stale, {} diagnosing, {} lent, {} called back{}",
        orders.due,
        orders.stale,
        orders.diagnosing,
        orders.lend.len(),
        orders.call_back.len(),
        orders.why
    );
    if changes {
        let breaches = app.ledger.write_as_leader(term, move |book, now_ms| orders.carry_out(book, now_ms)).await?;
        breaches.iter().for_each(|breach| app.metrics.breached(breach));
    }
    Ok(text)
}
