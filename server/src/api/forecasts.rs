//! Demand that somebody knows of before it comes: a launch, a load test, a campaign.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use protocol::ForecastSpec;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::edits::{self, edit, text_of, with_version};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed};
use crate::app::App;
use crate::store::DocumentKey;

/// One that was written down.
#[derive(Debug, Serialize, ToSchema)]
pub struct ForecastView {
    /// Its name.
    pub name: String,
    /// Its version, as its `ETag` has it.
    pub version: i64,
    /// What it says.
    pub spec: ForecastSpec,
}

/// Most claims that can be declared.
const CLAIMS_MAX: f64 = 1e6;
/// The year 2100.
const TIME_MAX_MS: i64 = 4_102_444_800_000;
/// Most forecasts that are kept.
const FORECASTS_MAX: usize = 1000;
/// Longest name.
const NAME_MAX: usize = 63;

/// All that is declared.
#[utoipa::path(
    get, path = "/v1/forecasts", tag = "forecasts",
    responses((status = 200, description = "All of them, by name", body = Listed<ForecastView>))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<ForecastView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let all = app.store.all::<ForecastSpec>().await?;
    let one = |(name, found): (String, crate::store::Versioned<ForecastSpec>)| ForecastView {
        name,
        version: found.version,
        spec: found.record,
    };
    Ok(Json(Listed { items: all.into_iter().map(one).collect(), next: None }))
}

/// Declares demand.
#[utoipa::path(
    put, path = "/v1/forecasts/{name}", tag = "forecasts", request_body = ForecastSpec,
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "Written; the next plan counts on it", body = ForecastSpec),
        (status = 404, description = "There is no such class", body = Problem),
        (status = 412, description = "Somebody else edited it first", body = Problem),
        (status = 422, description = "A number is out of its range", body = Problem),
        (status = 428, description = "`If-Match` is missing", body = Problem),
    )
)]
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(spec): Body<ForecastSpec>,
) -> Result<Response, ApiError> {
    caller.may(Role::Operator)?;
    let wrong = |detail: String| Err(ApiError::new(Code::OutOfRange, detail));
    if name.is_empty() || name.len() > NAME_MAX || spec.note.len() > 1000 {
        return wrong(format!("a name has 1 to {NAME_MAX} bytes, a note 1000 at most"));
    }
    if !(spec.claims.is_finite() && spec.claims >= 0.0 && spec.claims <= CLAIMS_MAX) {
        return wrong(format!("claims: {} is not in 0..={CLAIMS_MAX}", spec.claims));
    }
    if !(0..=TIME_MAX_MS).contains(&spec.from_ms) || !(0..=TIME_MAX_MS).contains(&spec.until_ms) {
        return wrong(format!("from_ms and until_ms are milliseconds since 1970, {TIME_MAX_MS} at most"));
    }
    if spec.until_ms <= spec.from_ms {
        return wrong("until_ms must come after from_ms".into());
    }
    if app.store.named::<fleet::book::ClassRule>(&spec.class).await?.is_none() {
        return Err(ApiError::new(Code::UnknownClass, format!("there is no class '{}'", spec.class)));
    }
    // One that is there is written over, however many there are.
    let all = app.store.all::<ForecastSpec>().await?;
    if all.len() >= FORECASTS_MAX && all.iter().all(|(known, _)| *known != name) {
        return wrong(format!("there are {FORECASTS_MAX} forecasts: delete those that are over"));
    }
    let version = edit(&app, &caller, DocumentKey::Forecast(name), text_of(&spec)?, "write forecast", &headers).await?;
    Ok(with_version(version, spec))
}

/// Takes one back.
#[utoipa::path(
    delete, path = "/v1/forecasts/{name}", tag = "forecasts", params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Deleted"), (status = 412, description = "Somebody else edited it first", body = Problem))
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    caller.may(Role::Operator)?;
    edits::delete(&app, &caller, DocumentKey::Forecast(name), "delete forecast", &headers).await
}
