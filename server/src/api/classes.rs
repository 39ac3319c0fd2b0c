//! Classes: read, written whole, with a version against edits that cross.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::edits::{edit, text_of, with_version};
use super::problem::{ApiError, Code, Problem};
use super::{App, Body, Listed};
use crate::config::ClassSpec;

/// A class and how it fares.
#[derive(Debug, Serialize, ToSchema)]
pub struct ClassView {
    /// What it asks for.
    pub spec: ClassSpec,
    /// Claims granted within its wait, since the beginning.
    pub hits: u64,
    /// Claims that were not.
    pub misses: u64,
    /// Claims that have GPUs.
    pub active: usize,
    /// Claims that wait.
    pub waiting: usize,
    /// GPUs that one of its claims could take at once, whole claims only counted by their size.
    pub free_gpus: u64,
}

fn view(app: &App, name: &str) -> Option<ClassView> {
    let book = app.ledger.book();
    let rule = book.classes().get(name)?;
    let tally = book.tallies().get(name).copied().unwrap_or_default();
    Some(ClassView {
        spec: ClassSpec::of(rule),
        hits: tally.hits,
        misses: tally.misses,
        active: book.claims().values().filter(|c| c.class == name && c.state.is_live()).count(),
        waiting: book.queue(name),
        free_gpus: book.offers_of(name).iter().map(|p| book.free_gpus(*p)).sum(),
    })
}

/// All classes.
#[utoipa::path(
    get, path = "/v1/classes", tag = "classes",
    responses((status = 200, description = "All of them", body = Listed<ClassView>))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<ClassView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let names: Vec<String> = app.ledger.book().classes().keys().cloned().collect();
    Ok(Json(Listed { items: names.iter().filter_map(|n| view(&app, n)).collect(), next: None }))
}

/// One class, with its version as `ETag`.
#[utoipa::path(
    get, path = "/v1/classes/{name}", tag = "classes", params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The class", body = ClassView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Result<Response, ApiError> {
    caller.may(Role::Viewer)?;
    let missing = || ApiError::new(Code::UnknownClass, format!("there is no class '{name}'"));
    let document = app.store.document("class", &name).await?.ok_or_else(missing)?;
    let body = view(&app, &name).ok_or_else(missing)?;
    Ok(with_version(document.version, body))
}

/// Writes a class whole.
#[utoipa::path(
    put, path = "/v1/classes/{name}", tag = "classes", request_body = ClassSpec,
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "Written", body = ClassView),
        (status = 412, description = "Somebody else edited it first", body = Problem),
        (status = 428, description = "`If-Match` is missing", body = Problem),
    )
)]
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(spec): Body<ClassSpec>,
) -> Result<Response, ApiError> {
    caller.may(Role::Operator)?;
    if spec.name != name {
        return Err(ApiError::new(
            Code::InvalidRequest,
            format!("the body is class '{}', the path '{name}'", spec.name),
        ));
    }
    let rule = spec.rule().map_err(|e| ApiError::new(Code::OutOfRange, e.to_string()))?;
    let version = edit(&app, &caller, "class", &name, text_of(&rule)?, "write class", &headers).await?;
    let body = view(&app, &name).ok_or_else(|| ApiError::new(Code::UnknownClass, "deleted meanwhile"))?;
    Ok(with_version(version, body))
}

/// Deletes a class. Its claims keep their GPUs until they end.
#[utoipa::path(
    delete, path = "/v1/classes/{name}", tag = "classes", params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Deleted"), (status = 412, description = "Somebody else edited it first", body = Problem))
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    caller.may(Role::Operator)?;
    edit(&app, &caller, "class", &name, String::new(), "delete class", &headers).await?;
    Ok(StatusCode::NO_CONTENT)
}
