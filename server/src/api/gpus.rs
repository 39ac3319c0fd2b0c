//! Physical GPUs across the instances that they were rented as, and the evidence of gates and diagnostics.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use control::gpus::{GpuChange, GpuRecord};
use health::weekly::History;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{Caller, Role};
use super::problem::{ApiError, Code, Problem};
use super::{Listed, PageQuery, number};
use crate::app::App;
use crate::store::{EvidenceRow, Write};

/// What passed on a GPU.
#[derive(Debug, Serialize, ToSchema)]
pub struct TestedView {
    /// When it was first seen, milliseconds since 1970.
    pub met_at_ms: i64,
    /// Level 2 passed since it joined as its present node.
    pub quick: bool,
    /// When level 3 last passed whole, milliseconds since 1970.
    pub full_at_ms: Option<i64>,
    /// Diagnostics that failed.
    pub failures: u32,
}

impl TestedView {
    fn of(history: &History) -> Self {
        let History { met_ms, quick, full_ms, failures, .. } = history;
        Self { met_at_ms: *met_ms, quick: *quick, full_at_ms: *full_ms, failures: *failures }
    }
}

/// A fault that took its node out.
#[derive(Debug, Serialize, ToSchema)]
pub struct FaultView {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// The node that it was, `n-17`.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// A GPU, or all of a host where they tell no serial numbers.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpuView {
    /// Serial number, or `provider:instance`.
    pub serial: String,
    /// Cloud that rented it out last.
    pub provider: String,
    /// As which instance type.
    pub instance_type: String,
    /// As which instance.
    pub instance: String,
    /// As which node, `n-17`.
    pub node: String,
    /// When it last passed or failed something, milliseconds since 1970.
    pub seen_at_ms: i64,
    /// What passed on it.
    pub history: TestedView,
    /// Faults that took its nodes out, the newest last.
    pub faults: Vec<FaultView>,
    /// Nodes with it are not taken: it took several out.
    pub blocked: bool,
}

impl GpuView {
    fn of(gpu: &GpuRecord, now_ms: i64) -> Self {
        let fault = |f: &control::gpus::GpuFault| FaultView {
            at_ms: f.at_ms,
            node: format!("n-{}", f.node),
            reason: f.reason.clone(),
        };
        Self {
            serial: gpu.serial.clone(),
            provider: gpu.provider.clone(),
            instance_type: gpu.instance_type.clone(),
            instance: gpu.instance.clone(),
            node: format!("n-{}", gpu.node),
            seen_at_ms: gpu.seen_at_ms,
            history: TestedView::of(&gpu.history),
            faults: gpu.faults.iter().map(fault).collect(),
            blocked: gpu.blocked_by(now_ms).is_some(),
        }
    }
}

/// GPUs by serial number.
#[derive(Debug, Serialize, ToSchema)]
pub struct GpuList {
    /// The GPUs.
    pub items: Vec<GpuView>,
    /// `after` of the next page; absent on the last one.
    pub next: Option<String>,
}

/// Which GPUs.
#[derive(Debug, Deserialize, IntoParams)]
pub struct GpuQuery {
    /// `next` of the page before.
    #[serde(default)]
    pub after: String,
    /// Items, 1 to 1000; 100 without it.
    pub limit: Option<u32>,
}

/// GPUs that were seen in the last months, by serial number.
#[utoipa::path(
    get, path = "/v1/gpus", tag = "fleet", params(GpuQuery),
    responses((status = 200, description = "A page of them", body = GpuList))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<GpuQuery>,
) -> Result<Json<GpuList>, ApiError> {
    caller.may(Role::Viewer)?;
    let limit = query.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(ApiError::new(Code::OutOfRange, format!("limit: {limit} is not in 1..=1000")));
    }
    let gpus = app.store.gpus(&query.after, limit.into()).await?;
    let next = (gpus.len() == limit as usize).then(|| gpus.last().map(|g| g.serial.clone())).flatten();
    let now_ms = app.now_ms();
    Ok(Json(GpuList { items: gpus.iter().map(|g| GpuView::of(g, now_ms)).collect(), next }))
}

/// Says that a GPU is well: faults until now do not keep its nodes from being taken.
#[utoipa::path(
    post, path = "/v1/gpus/{serial}/clear", tag = "fleet",
    params(("serial" = String, Path, description = "Its serial number")),
    responses(
        (status = 200, description = "It is taken again", body = GpuView),
        (status = 404, description = "Nobody has seen it", body = Problem),
    )
)]
pub async fn clear(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(serial): Path<String>,
) -> Result<Json<GpuView>, ApiError> {
    caller.may(Role::Operator)?;
    let named = std::slice::from_ref(&serial);
    if app.store.gpus_named(named).await?.is_empty() {
        return Err(ApiError::new(Code::NotFound, format!("no GPU '{serial}' has been seen")));
    }
    let now_ms = app.now_ms();
    let cleared = Write::Gpus { names: vec![serial.clone()], change: GpuChange::Cleared };
    app.ledger.record(cleared, None).await?;
    app.audit(&caller.name, "clear GPU", &serial).await?;
    let found = app.store.gpus_named(named).await?;
    let gpu = found.first().ok_or_else(|| ApiError::new(Code::NotFound, format!("GPU '{serial}' is forgotten")))?;
    Ok(Json(GpuView::of(gpu, now_ms)))
}

/// What gates and diagnostics said of a node, every number with its limits; the oldest first.
#[utoipa::path(
    get, path = "/v1/nodes/{id}/evidence", tag = "fleet",
    params(("id" = String, Path, description = "`n-17`"), PageQuery),
    responses((status = 200, description = "A page of it; kept for 30 days", body = Listed<EvidenceRow>))
)]
pub async fn evidence(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(page): Query<PageQuery>,
) -> Result<Json<Listed<EvidenceRow>>, ApiError> {
    caller.may(Role::Viewer)?;
    let rows = app.store.evidence(number(&id, 'n')?, page.page()?).await?;
    let last = rows.last().map(|r| r.id.unsigned_abs());
    Ok(Json(page.listed(rows, last)))
}
