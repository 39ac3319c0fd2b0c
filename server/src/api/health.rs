//! Liveness, readiness, metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::auth::{Caller, Role};
use super::problem::ApiError;
use crate::app::App;

/// Whether the process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "It does", body = String)))]
pub async fn live() -> &'static str {
    "ok\n"
}

/// Whether requests can be answered: the state is read, and a claim could be written. That is tried, at most once a second.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses((status = 200, description = "They can", body = String), (status = 503, description = "Not now", body = String))
)]
pub async fn ready(State(app): State<Arc<App>>) -> impl IntoResponse {
    if let Some(why) = app.not_ready() {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    }
    if let Err(why) = app.can_write().await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    }
    let off = app.clock_is_off_s().map(|s| format!("; the clock of this machine is off by {s} s"));
    (StatusCode::OK, format!("ok{}\n", off.unwrap_or_default()))
}

/// Counts and levels in the text format of Prometheus (OpenMetrics).
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, description = "OpenMetrics text", body = String)))]
pub async fn metrics(State(app): State<Arc<App>>, caller: Caller) -> Result<impl IntoResponse, ApiError> {
    caller.may(Role::Viewer)?;
    let text = app.metrics.text(&*app.book()?);
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}
