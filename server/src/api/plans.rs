//! Plans: what was decided, from what, and what would be decided if.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use control::plan::PlanRecord;
use planner::what_if::WhatIf;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed, PageQuery};
use crate::app::App;
use crate::store::PlanRow;

/// A plan in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlanView {
    /// Its number.
    pub epoch: u64,
    /// When it was made, milliseconds since 1970.
    pub made_at_ms: i64,
    /// `yes`, `dry-run` or `paused`.
    pub acted: String,
    /// Nodes to launch.
    pub launch_nodes: u32,
    /// Nodes to give back.
    pub release_nodes: u32,
    /// The plan with its report: launches, releases, targets, classes, binding limits with their shadow prices.
    #[schema(value_type = Object)]
    pub plan: Value,
}

fn record(row: &PlanRow) -> Result<PlanRecord, ApiError> {
    serde_json::from_str(&row.body)
        .map_err(|e| ApiError::new(Code::Internal, format!("plan {} does not read: {e}", row.epoch)))
}

fn view(row: &PlanRow) -> Result<PlanView, ApiError> {
    let record = record(row)?;
    Ok(PlanView {
        epoch: record.plan.epoch,
        made_at_ms: row.made_at_ms,
        acted: record.acted.name().into(),
        launch_nodes: record.plan.launches.iter().map(|l| l.nodes).sum(),
        release_nodes: record.plan.releases.iter().map(|r| r.nodes).sum(),
        plan: serde_json::to_value(&record.plan).map_err(|e| ApiError::new(Code::Internal, e.to_string()))?,
    })
}

async fn row(app: &App, epoch: Option<i64>) -> Result<PlanRow, ApiError> {
    let newest = app.store.plans(epoch.unwrap_or(i64::MAX), 1).await?.into_iter().next();
    let found = newest.filter(|row| epoch.is_none_or(|e| e == row.epoch));
    found.ok_or_else(|| match epoch {
        Some(epoch) => ApiError::new(Code::NotFound, format!("there is no plan {epoch}")),
        None => ApiError::new(Code::NotFound, "no plan has been made yet; /v1/loops says how the planner fares"),
    })
}

/// The plan that is being carried out.
#[utoipa::path(
    get, path = "/v1/plan", tag = "plans",
    responses((status = 200, description = "The newest plan", body = PlanView), (status = 404, description = "None has been made", body = Problem))
)]
pub async fn current(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<PlanView>, ApiError> {
    caller.may(Role::Viewer)?;
    view(&row(&app, None).await?).map(Json)
}

/// Plans, the newest first.
#[utoipa::path(
    get, path = "/v1/plans", tag = "plans", params(PageQuery),
    responses((status = 200, description = "`after` is the number to go on below", body = Listed<PlanView>))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Listed<PlanView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let up_to = page.after.map_or(i64::MAX, |a| i64::try_from(a).unwrap_or(i64::MAX).saturating_sub(1));
    let limit = page.page()?.limit.min(100);
    let rows = app.store.plans(up_to, limit).await?;
    let items = rows.iter().map(view).collect::<Result<Vec<_>, _>>()?;
    let next = items.last().map(|p| p.epoch).filter(|e| *e > 1 && items.len() as i64 == limit);
    Ok(Json(Listed { items, next }))
}

/// One plan.
#[utoipa::path(
    get, path = "/v1/plans/{epoch}", tag = "plans", params(("epoch" = i64, Path, description = "Its number")),
    responses((status = 200, description = "The plan", body = PlanView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(epoch): Path<i64>,
) -> Result<Json<PlanView>, ApiError> {
    caller.may(Role::Viewer)?;
    view(&row(&app, Some(epoch)).await?).map(Json)
}

/// What a plan was made from. `pilotlight plan` reads it.
#[utoipa::path(
    get, path = "/v1/plans/{epoch}/input", tag = "plans", params(("epoch" = i64, Path, description = "Its number")),
    responses((status = 200, description = "The planner's input", body = Object), (status = 404, description = "There is none", body = Problem))
)]
pub async fn input(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(epoch): Path<i64>,
) -> Result<Json<Value>, ApiError> {
    caller.may(Role::Viewer)?;
    let record = record(&row(&app, Some(epoch)).await?)?;
    serde_json::to_value(&record.input).map(Json).map_err(|e| ApiError::new(Code::Internal, e.to_string()))
}

/// A question to the planner.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// `quota:NAME=+16`, `hit-rate:CLASS=0.999`, … as `pilotlight plan --what-if` takes them.
    pub what_if: String,
}

/// What the newest plan would be if something were different. Nothing is changed.
#[utoipa::path(
    post, path = "/v1/plan/what-if", tag = "plans", request_body = Question,
    responses((status = 200, description = "Both plans' costs and the difference", body = Object), (status = 422, description = "The question makes no sense", body = Problem))
)]
pub async fn what_if(
    State(app): State<Arc<App>>,
    caller: Caller,
    Body(question): Body<Question>,
) -> Result<Json<Value>, ApiError> {
    caller.may(Role::Viewer)?;
    let record = record(&row(&app, None).await?)?;
    let asked: WhatIf =
        question.what_if.parse().map_err(|e| ApiError::new(Code::InvalidRequest, crate::errors::chain_of(&e)))?;
    let answer = tokio::task::spawn_blocking(move || {
        planner::what_if::ask(&record.input, &record.plan, &asked, planner::rolling::options())
    });
    let answer = answer.await.map_err(|e| ApiError::new(Code::Internal, e.to_string()))?;
    let answer = answer.map_err(|e| ApiError::new(Code::OutOfRange, crate::errors::chain_of(&e)))?;
    Ok(Json(json!({ "what_if": question.what_if, "answer": serde_json::to_value(&answer).unwrap_or_default() })))
}
