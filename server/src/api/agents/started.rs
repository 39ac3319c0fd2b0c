//! What agents say of what they bring up for claims.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use protocol::agent::Registered;
use protocol::starts::{StartReport, StartsReport};

use super::super::Body;
use super::super::problem::{ApiError, Code, Problem};
use super::secrets::Secret;
use super::told;
use crate::app::App;

/// Starts of one report: more than a host has GPUs.
const STARTS_MAX: usize = 64;

/// An agent says how far it has come with what it brings up for claims.
#[utoipa::path(
    post, path = "/v1/agents/{instance}/started", tag = "agents", request_body = StartsReport,
    params(("instance" = String, Path, description = "The cloud's name for the host")),
    responses(
        (status = 200, description = "Noted", body = Registered),
        (status = 409, description = "The report is of another boot", body = Problem),
    )
)]
pub async fn started(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Body(report): Body<StartsReport>,
) -> Result<Json<Registered>, ApiError> {
    let host = secret.host(&app, &instance)?;
    let count = report.starts.len();
    if count > STARTS_MAX {
        return Err(ApiError::new(Code::OutOfRange, format!("{count} starts; {STARTS_MAX} are the most")));
    }
    let facts: Option<Vec<_>> = report.starts.iter().map(StartReport::fact).collect();
    let facts =
        facts.ok_or_else(|| ApiError::new(Code::OutOfRange, "a start names no claim, or its seconds are none"))?;
    let node = host.id;
    let became = app.ledger.write(move |book, now_ms| {
        let mut became = Vec::new();
        for (claim, fact) in facts.clone() {
            let attempt = fact.attempts.last().cloned();
            let predicted = book.started(node, &report.boot, (claim, fact), now_ms)?;
            let class = book.claims().get(&claim).map(|claim| claim.class.clone());
            became
                .extend(predicted.zip(class).map(|((predicted, ready_s), class)| (class, predicted, ready_s, attempt)));
        }
        Ok::<_, fleet::book::NodeError>(became)
    });
    for (class, predicted, ready_s, attempt) in became.await?? {
        app.metrics.ready(&predicted, ready_s);
        app.metrics.came_up(&class, attempt.as_ref());
    }
    Ok(Json(told(&app, host)?))
}
