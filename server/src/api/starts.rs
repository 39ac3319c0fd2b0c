//! What starts took that hosts made by themselves, phase by phase.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use fleet::start::by_phase;
use fleet::{Phase, Rung};
use serde::Serialize;
use utoipa::ToSchema;

use super::Listed;
use super::auth::{Caller, Role};
use super::problem::ApiError;
use crate::app::App;

/// What a phase of the starts of a class took: of its newest starts that became ready, 128 at most.
#[derive(Debug, Serialize, ToSchema)]
pub struct StartsView {
    /// The class.
    pub class: String,
    /// How they came up: `restore` or `cold start`.
    pub rung: String,
    /// The phase; absent: from the grant to the answer, all in.
    pub phase: Option<String>,
    /// In half of all starts at most so many seconds.
    pub p50_s: f64,
    /// In nine of ten.
    pub p90_s: f64,
    /// In 99 of a hundred.
    pub p99_s: f64,
    /// Starts.
    pub starts: usize,
}

/// What starts took, by class, rung and phase.
#[utoipa::path(
    get, path = "/v1/starts", tag = "snapshots",
    responses((status = 200, description = "All of them; each one's life is in the events of subject `start`", body = Listed<StartsView>))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<StartsView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let book = app.book()?;
    let mut items = Vec::new();
    for (class, starts) in &book.readiness().starts {
        let view = |((rung, phase), of): ((Rung, Option<Phase>), fleet::Quantiles)| StartsView {
            class: class.clone(),
            rung: rung.name().into(),
            phase: phase.map(|phase| phase.name().into()),
            p50_s: of.p50_s,
            p90_s: of.p90_s,
            p99_s: of.p99_s,
            starts: of.count,
        };
        items.extend(by_phase(starts).into_iter().map(view));
    }
    Ok(Json(Listed { items, next: None }))
}
