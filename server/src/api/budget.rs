//! What may be spent and launched.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::auth::{Caller, Role};
use super::edits::{edit, text_of, with_version};
use super::problem::{ApiError, Code, Problem};
use super::{App, Body};
use crate::config::BudgetSpec;
use crate::store::StoreError;

impl App {
    /// The budget that is in force and its version: what was written over the API, or else the configuration's, version 0.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn budget(&self) -> Result<(BudgetSpec, i64), StoreError> {
        match self.store.document("budget", "fleet").await? {
            Some(document) => Ok((document.record()?, document.version)),
            None => Ok((self.configured_budget.clone(), 0)),
        }
    }
}

/// Budget, guards and quotas, with their version as `ETag`; version 0 is the configuration's.
#[utoipa::path(
    get, path = "/v1/budget", tag = "budget",
    responses((status = 200, description = "What is in force", body = BudgetSpec))
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, ApiError> {
    caller.may(Role::Viewer)?;
    let (budget, version) = app.budget().await?;
    Ok(with_version(version, budget))
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
    let version = edit(&app, &caller, "budget", "fleet", text_of(&budget)?, "write budget", &headers).await?;
    Ok(with_version(version, budget))
}
