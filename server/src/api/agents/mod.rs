//! Agents: one on each host. They register with the secret that their launch was given, and report for their own node only.

pub mod report;
mod secrets;
pub mod staged;
pub mod started;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use control::reports;
use fleet::NodeState;
use protocol::agent::{Desired, OLDEST_PROTOCOL, PROTOCOL, Register, Registered, Work};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Body;
use super::problem::{ApiError, Code, Problem};
use crate::app::App;
use crate::errors::Seldom;
use crate::secrets::{agent_token, peer_key};
use crate::store::{HostLimits, Subject};

pub use secrets::host_of_token;
use secrets::{ProvenHost, Secret};

/// Seconds between heartbeats.
const HEARTBEAT_S: u32 = 10;

/// An agent starts.
#[utoipa::path(
    post, path = "/v1/agents/register", tag = "agents", request_body = Register,
    responses(
        (status = 200, description = "Poll; the gate follows", body = Registered),
        (status = 403, description = "The secret is of another launch", body = Problem),
        (status = 409, description = "The host is not what was bought", body = Problem),
        (status = 422, description = "Agent and server do not understand each other", body = Problem),
    )
)]
pub async fn register(
    State(app): State<Arc<App>>,
    secret: Secret,
    Body(host): Body<Register>,
) -> Result<Json<Registered>, ApiError> {
    let joined = secret.joining(&app, &host.instance, &host.boot)?;
    understood(&host)?;
    if host.boot.is_empty() || host.boot.len() > report::BOOT_MAX {
        let detail = format!("boot: 1 to {} bytes", report::BOOT_MAX);
        return Err(ApiError::new(Code::OutOfRange, detail));
    }
    app.ledger.write(move |book, now_ms| book.register(joined.id, &host.boot, host.gpus, now_ms)).await??;
    Ok(Json(told(&app, ProvenHost { renews: true, ..joined })?))
}

/// Agents of other versions are told so: half understood, they would do half of what is asked.
fn understood(host: &Register) -> Result<(), ApiError> {
    static STRANGERS: Seldom = Seldom::new();
    if (OLDEST_PROTOCOL..=PROTOCOL).contains(&host.protocol) {
        return Ok(());
    }
    let mend = if host.protocol < OLDEST_PROTOCOL { "update the agent of the host" } else { "update the server first" };
    let spoken = format!("the agent speaks protocol {}, the server {OLDEST_PROTOCOL} to {PROTOCOL}", host.protocol);
    if let Some(held_back) = STRANGERS.now(&spoken) {
        tracing::warn!(instance = host.instance, held_back, "an agent is refused: {spoken}: {mend}");
    }
    Err(ApiError::new(Code::AgentVersion, format!("{spoken}: {mend}")))
}

/// Which state an agent knows.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Poll {
    /// `version` of the state that it knows; without it the answer comes at once.
    pub known: Option<i64>,
    /// Seconds to wait for another, 60 at most; 30 without it.
    pub wait_s: Option<f64>,
}

/// The desired state of a host, as soon as it is another than the one that is known.
#[utoipa::path(
    get, path = "/v1/agents/{instance}/desired", tag = "agents",
    params(("instance" = String, Path, description = "The cloud's name for the host"), Poll),
    responses(
        (status = 200, description = "What to do; the same as before when the wait is over", body = Desired),
        (status = 403, description = "The secret is of another launch", body = Problem),
    )
)]
pub async fn desired(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Query(poll): Query<Poll>,
) -> Result<Json<Desired>, ApiError> {
    let id = secret.host(&app, &instance)?.id;
    let wait_s = poll.wait_s.unwrap_or(30.0);
    if !(0.0..=60.0).contains(&wait_s) {
        return Err(ApiError::new(Code::OutOfRange, format!("wait_s: {wait_s} is not in 0..=60")));
    }
    let now = || Ok::<_, ApiError>(reports::desired(&*app.book()?, id));
    let waiter = app.ledger.waiter(Subject::Node(id));
    // A book that is not known says nothing of the host: it goes on waiting.
    let waiting = waiter.until(|| app.book().is_ok_and(|book| poll.known != Some(reports::version(&book, id))));
    // Over or not, the state is told as it is then.
    let _ = tokio::time::timeout(Duration::from_secs_f64(wait_s), waiting).await;
    let mut desired = now()?;
    if let Some(staging) = &mut desired.staging {
        let book = app.book()?;
        staging.peer_key = book.nodes().get(&id).map(|node| peer_key(&app.join_key, &node.offer));
    }
    if let Work::Gate { learned, .. } = &mut desired.health.work {
        let offer = app.book()?.nodes().get(&id).map(|n| n.offer.clone());
        if let Some(offer) = offer {
            let HostLimits(mut limits) = app.store.single_or_default().await?;
            let kind = format!("{}/{}", offer.provider, offer.instance_type);
            *learned = limits.remove(&kind).unwrap_or_default().medians;
        }
    }
    Ok(Json(desired))
}

fn told(app: &App, host: ProvenHost) -> Result<Registered, ApiError> {
    let book = app.book()?;
    let node = book.nodes().get(&host.id);
    Ok(Registered {
        node: format!("n-{}", host.id),
        heartbeat_s: HEARTBEAT_S,
        // A node that the book has forgotten has ended.
        state: node.map_or(NodeState::Terminated, |n| n.state),
        token: host.renews.then(|| agent_token(&app.join_key, host.id, app.now_ms())),
        report_seq: node.and_then(|n| n.report_seq).unwrap_or(0),
    })
}
