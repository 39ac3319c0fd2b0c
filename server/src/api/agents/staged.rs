//! What agents say of the snapshots on their hosts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use fleet::book::CopyFact;
use protocol::agent::Registered;
use protocol::staging::{CopyReport, StagingReport};
use snapshots::ObjectId;

use super::super::Body;
use super::super::problem::{ApiError, Code, Problem};
use super::secrets::Secret;
use super::told;
use crate::app::App;

/// Copies of one report.
const COPIES_MAX: usize = 1000;
/// Characters of a problem that are kept.
const PROBLEM_MAX: usize = 300;
/// Largest disk and memory that make sense, bytes: 1 PiB.
const ROOM_MAX: u64 = 1 << 50;

/// An agent says which snapshots its host has, all of them.
#[utoipa::path(
    post, path = "/v1/agents/{instance}/staged", tag = "agents", request_body = StagingReport,
    params(("instance" = String, Path, description = "The cloud's name for the host")),
    responses(
        (status = 200, description = "Noted", body = Registered),
        (status = 409, description = "The report is of another boot", body = Problem),
    )
)]
pub async fn staged(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Body(report): Body<StagingReport>,
) -> Result<Json<Registered>, ApiError> {
    let host = secret.host(&app, &instance)?;
    bounded(&report)?;
    let fact = |copy: &CopyReport| CopyFact {
        presence: copy.presence,
        bytes: copy.bytes.min(ROOM_MAX),
        problem: copy.problem.chars().take(PROBLEM_MAX).collect(),
    };
    let facts: BTreeMap<String, CopyFact> =
        report.copies.iter().map(|copy| (copy.object.clone(), fact(copy))).collect();
    let traffic = report.traffic;
    app.ledger.write(move |book, now_ms| book.staged(host.id, &report.boot, (&report.room, &facts), now_ms)).await??;
    app.metrics.moved(host.id, traffic);
    Ok(Json(told(&app, host)?))
}

fn bounded(report: &StagingReport) -> Result<(), ApiError> {
    let wrong = |detail: String| Err(ApiError::new(Code::OutOfRange, detail));
    if report.copies.len() > COPIES_MAX {
        return wrong(format!("{} copies; {COPIES_MAX} are the most", report.copies.len()));
    }
    if let Some(copy) = report.copies.iter().find(|copy| copy.object.parse::<ObjectId>().is_err()) {
        let shown: String = copy.object.chars().take(80).collect();
        return wrong(format!("'{shown}' is no object's id"));
    }
    let room = &report.room;
    let rates = [room.fetch_bytes_per_s, room.disk_bytes_per_s];
    let odd = |rate: &f64| !(rate.is_finite() && *rate >= 0.0);
    if room.disk_bytes > ROOM_MAX || room.memory_bytes > ROOM_MAX || rates.iter().flatten().any(odd) {
        return wrong(format!("room: at most {ROOM_MAX} bytes, and rates that are numbers"));
    }
    if room.peer.as_ref().is_some_and(|peer| peer.parse::<std::net::SocketAddr>().is_err()) {
        return wrong("room.peer: give an address and a port, 10.0.0.7:7071".into());
    }
    Ok(())
}
