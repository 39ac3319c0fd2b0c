//! Learns from the event log, page by page; see [`control::learning`].

use control::learning::Learnt;
use fleet::book::What;

use super::{Context, LoopError};
use crate::store::{HostLimits, Page};

/// Name of this reader of the log.
const READER: &str = "learn";
/// Events that are read at once.
const AT_ONCE: i64 = 2_000;
/// Pages of one run; the rest is for the next.
const PAGES: usize = 100;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (mut events, mut answers) = (0, 0);
    for _ in 0..PAGES {
        let (read, learnt) = page(&context, term).await?;
        events += read;
        answers += learnt;
        if read < AT_ONCE as usize {
            break;
        }
    }
    Ok(if events == 0 { "nothing new".into() } else { format!("{events} events, {answers} answers") })
}

/// Learns from the next events. Returns how many there were, and how many said something.
async fn page(context: &Context, term: i64) -> Result<(usize, usize), LoopError> {
    let app = &context.app;
    let mut learnt: Learnt = app.store.single_or_default().await?;
    let after = app.board.read_until(READER, learnt.seq);
    let events = app.store.events(Page { after, limit: AT_ONCE }).await?;
    let now_s = app.now_ms() as f64 / 1000.0;
    let Some(last) = events.last() else {
        // Where nothing happens, what was seen fades all the same.
        if learnt.health.is_due(now_s) {
            learnt.health.tell(now_s);
            write(context, &learnt, term).await?;
        }
        return Ok((0, 0));
    };
    // Claims teach nothing, and are most of what happens.
    if events.iter().all(|e| matches!(e.change.what, What::Claim(_))) && !learnt.health.is_due(now_s) {
        app.board.set_read_until(READER, last.seq);
        return Ok((events.len(), 0));
    }
    let mut count = 0;
    learnt.seq = last.seq;
    learnt.health.know(&*app.book()?);
    for event in &events {
        let heard = learnt.hear(&event.change);
        count += usize::from(heard.news);
        if let Some(lead_s) = heard.ready_after_s {
            app.metrics.node_ready(lead_s);
        }
    }
    learnt.health.tell(now_s);
    write(context, &learnt, term).await?;
    Ok((events.len(), count))
}

async fn write(context: &Context, learnt: &Learnt, term: i64) -> Result<(), LoopError> {
    let app = &context.app;
    app.ledger.put(learnt, Some(term)).await?;
    let limits = HostLimits(learnt.health.limits());
    if app.store.single_or_default::<HostLimits>().await? != limits {
        app.ledger.put(&limits, Some(term)).await?;
    }
    Ok(())
}
