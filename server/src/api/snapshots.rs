//! Snapshots that claims start from, and their copies on hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use fleet::book::Book;
use fleet::{Snapshot, Tier};
use protocol::SnapshotSpec;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::edits::{self, edit, text_of, with_version};
use super::problem::{ApiError, Code, Problem};
use super::{Body, Listed};
use crate::app::App;
use crate::store::{DocumentKey, Versioned};

/// Most snapshots that are kept.
const SNAPSHOTS_MAX: usize = 2000;

/// A snapshot with its copies.
#[derive(Debug, Serialize, ToSchema)]
pub struct SnapshotView {
    /// Its name.
    pub name: String,
    /// Its version, as its `ETag` has it.
    pub version: i64,
    /// What it is.
    pub spec: SnapshotSpec,
    /// Copies on hosts, by state: `wanted`, `fetching`, `verified`, `hot`, `evicting`.
    pub copies: BTreeMap<String, u32>,
    /// Seconds to readiness from `memory`, from `disk`, and `cold`.
    pub ready: BTreeMap<String, Ready>,
}

/// Seconds to readiness.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    /// In half of all cases at most so many.
    pub p50_s: f64,
    /// In nine of ten.
    pub p90_s: f64,
    /// Starts that this was learnt from; 0: it is what was declared.
    pub learnt_from: u32,
}

/// A copy on a host.
#[derive(Debug, Serialize, ToSchema)]
pub struct CopyView {
    /// The node, `n-17`.
    pub node: String,
    /// The cloud's name for it.
    pub instance: Option<String>,
    /// The snapshot; absent where nothing of that id is declared any more.
    pub snapshot: Option<String>,
    /// Id of the object.
    pub object: String,
    /// `wanted`, `fetching`, `verified`, `hot` or `evicting`.
    pub state: String,
    /// Where it is to lie, `disk` or `memory`; absent where it is to go.
    pub wanted: Option<String>,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes of the whole; absent where nothing of that id is declared any more.
    pub of_bytes: Option<u64>,
    /// When its state last changed, milliseconds since 1970.
    pub since_ms: i64,
    /// What stands in its way.
    pub problem: String,
}

fn view(found: Versioned<Snapshot>, book: &Book) -> SnapshotView {
    let snapshot = found.record;
    let mut copies: BTreeMap<String, u32> = BTreeMap::new();
    let nodes = book.copies_of(&snapshot.object).filter_map(|(_, id)| book.nodes().get(&id));
    let states = nodes.filter_map(|node| node.copies.get(&snapshot.object)?.state());
    states.for_each(|state| *copies.entry(state.name().into()).or_default() += 1);
    let ready = [Some(Tier::Memory), Some(Tier::Disk), None].map(|tier| {
        let predicted = book.readiness().predict(&snapshot.name, tier, snapshot.ready_s(tier, None));
        let ready = Ready { p50_s: predicted.p50_s, p90_s: predicted.p90_s, learnt_from: predicted.learnt_from };
        (tier.map_or("cold", Tier::name).to_owned(), ready)
    });
    let spec = SnapshotSpec::of(&snapshot);
    SnapshotView { name: snapshot.name, version: found.version, spec, copies, ready: ready.into() }
}

/// All snapshots.
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "snapshots",
    responses((status = 200, description = "All of them, by name", body = Listed<SnapshotView>))
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<SnapshotView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let all = app.store.all::<Snapshot>().await?;
    let book = app.book()?;
    Ok(Json(Listed { items: all.into_iter().map(|(_, found)| view(found, &book)).collect(), next: None }))
}

/// One snapshot.
#[utoipa::path(
    get, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "It, with its version as `ETag`", body = SnapshotView), (status = 404, description = "There is none", body = Problem))
)]
pub async fn get(State(app): State<Arc<App>>, caller: Caller, Path(name): Path<String>) -> Result<Response, ApiError> {
    caller.may(Role::Viewer)?;
    let found = app.store.named::<Snapshot>(&name).await?;
    let found = found.ok_or_else(|| ApiError::new(Code::NotFound, format!("there is no snapshot '{name}'")))?;
    Ok(with_version(found.version, view(found, &*app.book()?)))
}

/// Declares a snapshot: hosts have it before claims ask for it.
#[utoipa::path(
    put, path = "/v1/snapshots/{name}", tag = "snapshots", request_body = SnapshotSpec,
    params(("name" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "Written; the next staging plan counts on it", body = SnapshotSpec),
        (status = 404, description = "There is no such class", body = Problem),
        (status = 412, description = "Somebody else edited it first", body = Problem),
        (status = 422, description = "Something makes no sense", body = Problem),
        (status = 428, description = "`If-Match` is missing", body = Problem),
    )
)]
pub async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(spec): Body<SnapshotSpec>,
) -> Result<Response, ApiError> {
    caller.may(Role::Operator)?;
    let snapshot = spec.snapshot(&name).map_err(|what| ApiError::new(Code::OutOfRange, what))?;
    {
        let book = app.book()?;
        if !book.classes().contains_key(&spec.class) {
            return Err(ApiError::new(Code::UnknownClass, format!("there is no class '{}'", spec.class)));
        }
        if let Some(other) = book.snapshot_of_object(&snapshot.object).filter(|other| other.name != name) {
            let detail = format!("object: it is snapshot '{}' already; one object is one snapshot", other.name);
            return Err(ApiError::new(Code::OutOfRange, detail));
        }
        if book.snapshots().len() >= SNAPSHOTS_MAX && !book.snapshots().contains_key(&name) {
            let detail = format!("there are {SNAPSHOTS_MAX} snapshots: delete those that nobody starts from");
            return Err(ApiError::new(Code::OutOfRange, detail));
        }
    }
    let key = DocumentKey::Snapshot(name);
    let version = edit(&app, &caller, key, text_of(&snapshot)?, "write snapshot", &headers).await?;
    Ok(with_version(version, spec))
}

/// Takes one back: its copies leave the hosts. What is in the store stays there.
#[utoipa::path(
    delete, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path, description = "Its name")),
    responses((status = 204, description = "Deleted"), (status = 412, description = "Somebody else edited it first", body = Problem))
)]
pub async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    caller.may(Role::Operator)?;
    edits::delete(&app, &caller, DocumentKey::Snapshot(name), "delete snapshot", &headers).await
}

/// Copies of snapshots on hosts, by node.
#[utoipa::path(
    get, path = "/v1/staging", tag = "snapshots",
    responses((status = 200, description = "All of them; their history is in the events of subject `copy`", body = Listed<CopyView>))
)]
pub async fn copies(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<Listed<CopyView>>, ApiError> {
    caller.may(Role::Viewer)?;
    let book = app.book()?;
    let named: BTreeMap<&str, &Snapshot> = book.snapshots().values().map(|s| (s.object.as_str(), s)).collect();
    let mut items = Vec::new();
    for node in book.nodes().values() {
        for (object, copy) in &node.copies {
            let Some(state) = copy.state() else { continue };
            let snapshot = named.get(object.as_str());
            items.push(CopyView {
                node: format!("n-{}", node.id),
                instance: node.instance.clone(),
                snapshot: snapshot.map(|s| s.name.clone()),
                object: object.clone(),
                state: state.name().into(),
                wanted: copy.wanted.map(|tier| tier.name().into()),
                bytes: copy.bytes,
                of_bytes: snapshot.map(|s| s.bytes),
                since_ms: copy.since_ms,
                problem: copy.problem.clone(),
            });
        }
    }
    Ok(Json(Listed { items, next: None }))
}
