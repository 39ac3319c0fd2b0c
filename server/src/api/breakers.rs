//! Breakers: causes for which nothing is reset or ended, since many nodes failed for them at the same time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Of;
use control::breakers::{Closed, FaultLog, OpenBreaker};
use health::breaker::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed};
use crate::app::App;
use crate::store::ClosedBreakers;

/// A breaker that is not closed.
#[derive(Debug, Serialize, ToSchema)]
pub struct BreakerView {
    /// Cloud, region and instance type, `aws/us-east-1/p5.48xlarge`.
    pub cell: String,
    /// What the faults have in common: `xid:79`, `driver:580.82.09`, `image:…`.
    pub cause: String,
    /// `open`; `half-open` while one node is tried.
    pub state: String,
    /// Since when, milliseconds since 1970.
    pub since_ms: i64,
    /// The node that is tried, `n-17`.
    pub canary: Option<String>,
}

/// Which breaker.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Cloud, region and instance type.
    pub cell: String,
    /// What the faults have in common.
    pub cause: String,
}

async fn all(app: &App) -> Result<Vec<BreakerView>, ApiError> {
    let faults: FaultLog = app.store.single_or_default().await?;
    let one = |b: OpenBreaker| {
        let (state, since_ms, canary) = match b.state {
            State::Open { since_ms, .. } => ("open", since_ms, None),
            State::HalfOpen { since_ms, canary, .. } => ("half-open", since_ms, Some(format!("n-{canary}"))),
        };
        BreakerView { cell: b.cell.to_string(), cause: b.cause.to_string(), state: state.into(), since_ms, canary }
    };
    Ok(faults.open.into_iter().map(one).collect())
}

/// Breakers that are not closed.
#[utoipa::path(
    get, path = "/v1/breakers", tag = "fleet",
    responses((status = 200, description = "All of them", body = Listed<BreakerView>))
)]
pub async fn list(Of(app): Of<Arc<App>>, caller: Caller) -> Result<Json<Listed<BreakerView>>, ApiError> {
    caller.may(Role::Viewer)?;
    Ok(Json(Listed { items: all(&app).await?, next: None }))
}

/// Closes a breaker: faults until now do not open it again.
#[utoipa::path(
    post, path = "/v1/breakers/close", tag = "fleet", request_body = Which,
    responses(
        (status = 200, description = "It is closed within seconds", body = Listed<BreakerView>),
        (status = 404, description = "It is not open", body = Problem),
    )
)]
pub async fn close(
    Of(app): Of<Arc<App>>,
    caller: Caller,
    Body(which): Body<Which>,
) -> Result<Json<Listed<BreakerView>>, ApiError> {
    caller.may(Role::Operator)?;
    let mut open = all(&app).await?;
    let Some(at) = open.iter().position(|b| (&b.cell, &b.cause) == (&which.cell, &which.cause)) else {
        let detail = format!("no breaker of {} for {} is open", which.cell, which.cause);
        return Err(ApiError::new(Code::NotFound, detail));
    };
    open.remove(at);
    app.audit(&caller.name, "close breaker", &format!("{} {}", which.cell, which.cause)).await?;
    let it = Closed { cell: which.cell.into(), cause: which.cause.into(), at_ms: app.now_ms() };
    // Others close breakers too, and the loop takes away what it has heard.
    let mut crossed = None;
    for _ in 0..8 {
        let read = app.store.single::<ClosedBreakers>().await?;
        let (version, mut closed) = read.map_or((0, ClosedBreakers::default()), |d| (d.version, d.record));
        closed.0.push(it.clone());
        match app.ledger.edit_single(&closed, version).await? {
            Ok(_) => return Ok(Json(Listed { items: open, next: None })),
            Err(other) => crossed = Some(other),
        }
    }
    Err(crossed.map_or_else(|| ApiError::new(Code::Busy, "try again"), Into::into))
}
