//! What operators did.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::problem::{ApiError, Problem};
use super::{Listed, PageQuery};
use crate::app::App;

/// One thing that was done.
#[derive(Debug, Serialize, ToSchema)]
pub struct AuditView {
    /// Its number.
    pub id: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Name of the token.
    pub token: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub detail: String,
}

/// What operators did, the oldest first.
#[utoipa::path(
    get, path = "/v1/audit", tag = "events", params(PageQuery),
    responses((status = 200, description = "A page of it", body = Listed<AuditView>), (status = 403, description = "Operators only", body = Problem))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Listed<AuditView>>, ApiError> {
    caller.may(Role::Operator)?;
    let rows = app.store.audits(page.page()?).await?;
    let last = rows.last().map(|r| r.id.unsigned_abs());
    let one = |r: crate::store::AuditRow| AuditView {
        id: r.id,
        at_ms: r.at_ms,
        token: r.token,
        action: r.action,
        detail: r.detail,
    };
    Ok(Json(page.listed(rows.into_iter().map(one).collect(), last)))
}
