//! What may be spent and launched.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use protocol::BudgetSpec;

use super::Body;
use super::auth::{Caller, Role};
use super::edits::{edit, text_of, with_version};
use super::problem::{ApiError, Code, Problem};
use crate::app::App;
use crate::store::{DocumentKey, Versioned};

/// Budget, guards and quotas, with their version as `ETag`; version 0 is the configuration's.
#[utoipa::path(
    get, path = "/v1/budget", tag = "budget",
    responses((status = 200, description = "What is in force", body = BudgetSpec))
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Role::Viewer)?;
    let Versioned { version, record } = app.budget().await?;
    Ok(with_version(version, record))
}

/// Writes them whole: in place of the configuration's from now on. The next plan obeys.
#[utoipa::path(
    put, path = "/v1/budget", tag = "budget", request_body = BudgetSpec,
    responses(
        (status = 200, description = "Written", body = BudgetSpec),
        (status = 412, description = "Somebody else edited it first", body = Problem),
        (status = 422, description = "A number is out of its range", body = Problem),
        (status = 428, description = "`If-Match` is missing", body = Problem),
    )
)]
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Body(budget): Body<BudgetSpec>,
) -> Result<Response, ApiError> {
    caller.may(Role::Operator)?;
    budget.check().map_err(|what| ApiError::new(Code::OutOfRange, what))?;
    if let Some(quota) = budget.of_nobody(&app.providers) {
        let known = app.providers.join(", ");
        let detail =
            format!("quota '{quota}' is for a provider that is not configured: it would limit nothing ({known} are)");
        return Err(ApiError::new(Code::OutOfRange, detail));
    }
    let version = edit(&app, &caller, DocumentKey::Budget, text_of(&budget)?, "write budget", &headers).await?;
    Ok(with_version(version, budget))
}
