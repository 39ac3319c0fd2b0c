//! Classes: read, written whole, with a version against edits that cross.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use fleet::book::{Book, ClassRule};
use protocol::ClassSpec;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::edits::{self, edit, text_of, with_version};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed};
use crate::app::App;
use crate::store::{DocumentKey, Versioned};

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

/// The rule comes from the same read as its version; what is counted comes from the book.
fn view(book: &Book, rule: &ClassRule) -> ClassView {
    let name = rule.class.name.as_str();
    let tally = book.tallies().get(name).copied().unwrap_or_default();
    ClassView {
        spec: ClassSpec::of(rule),
        hits: tally.hits,
        misses: tally.misses,
        active: book.claims().values().filter(|c| c.class == name && c.state.is_live()).count(),
        waiting: book.queue(name),
        free_gpus: book.offers_of(name).iter().map(|p| book.free_gpus(*p)).sum(),
    }
}

/// All classes.
#[utoipa::path(
    get, path = "/v1/classes", tag = "classes",
    responses((status = 200, description = "All of them", body = Listed<ClassView>))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<ClassView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let rules = app.store.all::<ClassRule>().await?;
    let book = app.book()?;
    Ok(Json(Listed { items: rules.iter().map(|(_, rule)| view(&book, &rule.record)).collect(), next: None }))
}

/// One class, with its version as `ETag`.
#[utoipa::path(
    get, path = "/v1/classes/{name}", tag = "classes", params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "The class", body = ClassView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Result<Response, ApiError> {
    caller.may(Role::Viewer)?;
    let missing = || ApiError::new(Code::UnknownClass, format!("there is no class '{name}'"));
    let Versioned { version, record } = app.store.named::<ClassRule>(&name).await?.ok_or_else(missing)?;
    let body = view(&*app.book()?, &record);
    Ok(with_version(version, body))
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
    let rule = spec.rule_of_server().map_err(|e| ApiError::new(Code::OutOfRange, e.to_string()))?;
    let allowed = app.book()?.limits().allow(&rule);
    allowed.map_err(|e| ApiError::new(Code::OutOfRange, format!("{e}: the server's [limits] say so")))?;
    let key = DocumentKey::Class(name);
    let version = edit(&app, &caller, key, text_of(&rule)?, "write class", &headers).await?;
    let body = view(&*app.book()?, &rule);
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
    edits::delete(&app, &caller, DocumentKey::Class(name), "delete class", &headers).await
}
