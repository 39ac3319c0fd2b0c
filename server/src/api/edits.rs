//! What people write whole, with a version against edits that cross: `ETag` out, `If-Match` in.

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::auth::Caller;
use super::problem::{ApiError, Code};
use crate::app::App;
use crate::store::DocumentKey;

/// An answer with its version as `ETag`.
pub fn with_version(version: i64, body: impl Serialize) -> Response {
    let mut response = (StatusCode::OK, Json(body)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{version}\"")) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The version that an edit was made from: `If-Match: "3"`, `If-None-Match: *` for a new one.
pub fn expected(headers: &HeaderMap) -> Result<i64, ApiError> {
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    if text(header::IF_NONE_MATCH) == Some("*") {
        return Ok(0);
    }
    let given = text(header::IF_MATCH).and_then(|v| v.trim_matches('"').parse().ok());
    given.ok_or_else(|| {
        let detail = "send the ETag that you read as If-Match, or 'If-None-Match: *' for a new one";
        ApiError::new(Code::VersionNeeded, detail)
    })
}

/// Deletes what was read at the version that `If-Match` names.
pub async fn delete(
    app: &App,
    caller: &Caller,
    key: DocumentKey,
    action: &'static str,
    headers: &HeaderMap,
) -> Result<StatusCode, ApiError> {
    if expected(headers)? == 0 {
        let detail = "what is not there cannot be deleted: send the ETag that you read as If-Match";
        return Err(ApiError::new(Code::VersionNeeded, detail));
    }
    edit(app, caller, key, String::new(), action, headers).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Writes; notes who did; wakes the planner. Returns the new version.
pub async fn edit(
    app: &App,
    caller: &Caller,
    key: DocumentKey,
    body: String,
    action: &'static str,
    headers: &HeaderMap,
) -> Result<i64, ApiError> {
    let by = Some((caller.name.clone(), action));
    let version = app.ledger.edit(key, body, Some(expected(headers)?), by).await??;
    app.wake_planner();
    Ok(version)
}

/// The JSON text of what is written.
pub fn text_of(body: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(body).map_err(|e| ApiError::new(Code::Internal, e.to_string()))
}
