//! Writes demand down: the most claims at the same time in each minute, by class.

use control::sampler::demand;

use super::{Context, LoopError};
use crate::store::Write;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (app, now_ms) = (&context.app, context.app.now_ms());
    let finished = {
        let book = app.book()?;
        let now = demand(&book);
        let sampled = app.board.sampler().look(&now, now_ms);
        if let Some(seconds) = sampled.passed_s {
            app.metrics.passed(&book, &now, seconds, now_ms);
        }
        sampled.finished
    };
    let Some(step) = finished else { return Ok("sampled".into()) };
    let rows: Vec<_> = step.claims.into_iter().map(|(class, most)| (class, step.at_ms, most as f64)).collect();
    let text = format!("{} classes written", rows.len());
    app.ledger.record(Write::Demand(rows), Some(term)).await?;
    app.ledger.record(Write::ForgetOld, Some(term)).await?;
    Ok(text)
}
