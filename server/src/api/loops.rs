//! The leader's loops: how they fare, pause and resume.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::problem::{ApiError, Problem};
use crate::app::App;
use crate::board::Status;
use crate::store::Paused;

/// A loop.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoopView {
    /// Its name.
    pub name: &'static str,
    /// How it fares.
    #[serde(flatten)]
    pub status: Status,
}

/// The loops of this replica.
#[derive(Debug, Serialize, ToSchema)]
pub struct LoopsView {
    /// Whether this replica leads; the loops of others do not run.
    pub leads: bool,
    /// Number of its term.
    pub term: Option<i64>,
    /// Whether plans are only made, not acted on.
    pub paused: bool,
    /// Seconds since the server started.
    pub uptime_s: f64,
    /// The loops.
    pub loops: Vec<LoopView>,
}

fn view(app: &App) -> LoopsView {
    LoopsView {
        leads: app.board.term().is_some(),
        term: app.board.term(),
        paused: app.board.is_paused(),
        uptime_s: app.metrics.uptime_s(),
        loops: app.board.all().into_iter().map(|(name, status)| LoopView { name, status }).collect(),
    }
}

/// How the loops fare.
#[utoipa::path(get, path = "/v1/loops", tag = "loops", responses((status = 200, description = "All of them", body = LoopsView)))]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<LoopsView>, ApiError> {
    caller.may(Role::Viewer)?;
    Ok(Json(view(&app)))
}

async fn set(app: &App, caller: &Caller, paused: bool) -> Result<Json<LoopsView>, ApiError> {
    caller.may(Role::Operator)?;
    app.ledger.put(&Paused(paused), None).await?;
    app.board.set_paused(paused);
    app.audit(&caller.name, if paused { "pause" } else { "resume" }, "").await?;
    app.wake_planner();
    Ok(Json(view(app)))
}

/// Stops acting on plans: nothing is launched and nothing given back. Claims go on.
#[utoipa::path(
    post, path = "/v1/pause", tag = "loops",
    responses((status = 200, description = "Paused", body = LoopsView), (status = 403, description = "Operators only", body = Problem))
)]
pub async fn pause(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<LoopsView>, ApiError> {
    set(&app, &caller, true).await
}

/// Acts on plans again.
#[utoipa::path(
    post, path = "/v1/resume", tag = "loops",
    responses((status = 200, description = "Resumed", body = LoopsView), (status = 403, description = "Operators only", body = Problem))
)]
pub async fn resume(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<LoopsView>, ApiError> {
    set(&app, &caller, false).await
}
