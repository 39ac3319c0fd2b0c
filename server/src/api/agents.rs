//! Agents: one on each host. They register with the secret that their launch was given, and report for their own node only.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use fleet::NodeState;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::{bearer, hash_of};
use super::problem::{ApiError, Code, Problem};
use super::{App, Body};

/// The secret with which the hosts of one launch join.
#[must_use]
pub fn join_secret(key: &str, token: &str) -> String {
    // Hashed twice under the key, as HMAC does, so that nothing can be appended.
    format!("plj_{}", hash_of(&format!("{key}/{}", hash_of(&format!("{key}/{token}")))))
}

/// The secret with which one machine that you own joins, whichever launch takes it.
#[must_use]
pub fn host_secret(key: &str, instance: &str) -> String {
    join_secret(key, &format!("host/{instance}"))
}

/// The secret of a request, whatever it opens.
#[derive(Debug)]
pub struct Secret(String);

impl FromRequestParts<Arc<App>> for Secret {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let secret = bearer(parts).map(|s| Self(s.to_owned()));
        secret.ok_or_else(|| ApiError::new(Code::Unauthenticated, "an agent sends the join secret of its launch"))
    }
}

/// What an agent says when it starts.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The cloud's name for the host.
    pub instance: String,
    /// Changes with each boot of the host.
    pub boot: String,
    /// GPUs that it sees.
    pub gpus: u32,
}

/// What an agent is told.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// Its node, `n-17`.
    pub node: String,
    /// Seconds between heartbeats.
    pub heartbeat_s: u32,
    /// State of the node.
    pub state: String,
}

/// What was measured. Only `pass` proves health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every required check was made and passed.
    Pass,
    /// It works, and less well than it should.
    Degraded,
    /// A check failed.
    Fail,
    /// A check could not be made.
    Unmeasured,
}

/// Which checks a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Checks {
    /// The boot gate.
    Gate,
    /// Passive watching while the node is in use.
    Passive,
}

/// A report of an agent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The boot that it is about.
    pub boot: String,
    /// Which checks.
    pub checks: Checks,
    /// What they say.
    pub verdict: Verdict,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
}

/// Seconds between heartbeats.
const HEARTBEAT_S: u32 = 10;

/// Finds the node of an instance whose launch has this secret.
fn node_of(app: &App, secret: &Secret, instance: &str) -> Result<u64, ApiError> {
    let book = app.ledger.book();
    // The same answer for a wrong secret and an unknown host: nobody learns which hosts there are.
    let refused = || ApiError::new(Code::Forbidden, format!("no launch of {instance} has this secret"));
    let own = host_secret(&app.join_key, instance) == secret.0;
    let of_launch = |i: u64| join_secret(&app.join_key, &book.launch_token(i)) == secret.0;
    let mut mine = book.nodes_of(instance).filter(|n| own || n.intent.is_some_and(of_launch));
    let Some(id) = mine.next().map(|n| n.id) else {
        app.rates.take(None)?;
        return Err(refused());
    };
    app.rates.take_host(id)?;
    Ok(id)
}

/// An agent starts.
#[utoipa::path(
    post, path = "/v1/agents/register", tag = "agents", request_body = Register,
    responses(
        (status = 200, description = "Known; the gate follows", body = Registered),
        (status = 403, description = "The secret is of another launch", body = Problem),
        (status = 409, description = "The host is not what was bought", body = Problem),
    )
)]
pub async fn register(
    State(app): State<Arc<App>>,
    secret: Secret,
    Body(host): Body<Register>,
) -> Result<Json<Registered>, ApiError> {
    let id = node_of(&app, &secret, &host.instance)?;
    app.ledger.write(move |book, now_ms| book.register(id, &host.boot, host.gpus, now_ms)).await??;
    Ok(Json(told(&app, id)))
}

/// An agent reports. Every report is a heartbeat.
#[utoipa::path(
    post, path = "/v1/agents/{instance}/report", tag = "agents", request_body = Report,
    params(("instance" = String, Path, description = "The cloud's name for the host")),
    responses(
        (status = 200, description = "Noted", body = Registered),
        (status = 409, description = "The report is of another boot, or cannot be now", body = Problem),
    )
)]
pub async fn report(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Body(report): Body<Report>,
) -> Result<Json<Registered>, ApiError> {
    let id = node_of(&app, &secret, &instance)?;
    let reason: String = report.reason.chars().take(200).collect();
    let noted = app.ledger.write(move |book, now_ms| match (report.checks, report.verdict) {
        (Checks::Gate, verdict) => {
            let passed = verdict == Verdict::Pass;
            let why = match verdict {
                Verdict::Pass => "every check of the gate passed".to_owned(),
                Verdict::Unmeasured => format!("a check of the gate could not be made: {reason}"),
                Verdict::Degraded | Verdict::Fail => format!("a check of the gate failed: {reason}"),
            };
            book.gate(id, &report.boot, passed, &why, now_ms)
        }
        (Checks::Passive, Verdict::Pass) => book.heard(id, &report.boot, Some(true), now_ms),
        (Checks::Passive, Verdict::Fail) => book.heard(id, &report.boot, Some(false), now_ms),
        (Checks::Passive, Verdict::Degraded | Verdict::Unmeasured) => book.heard(id, &report.boot, None, now_ms),
    });
    noted.await??;
    Ok(Json(told(&app, id)))
}

/// What an agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Run the boot gate and report it.
    Gate,
    /// Watch, and let workloads run.
    Serve,
    /// Watch; workloads end, and no new ones come.
    Drain,
    /// Run diagnostics, and stop them when this changes.
    Diagnose,
    /// Reset what its last report named, and run the gate again.
    Repair,
    /// Keep all evidence; no workloads.
    Hold,
    /// The host is ended.
    End,
}

impl Work {
    fn of(state: NodeState) -> Self {
        match state {
            NodeState::Requested | NodeState::Booting | NodeState::Checking => Self::Gate,
            NodeState::Idle | NodeState::Claimed => Self::Serve,
            NodeState::Draining => Self::Drain,
            NodeState::Diagnosing => Self::Diagnose,
            NodeState::Repairing => Self::Repair,
            NodeState::Quarantined | NodeState::Lost => Self::Hold,
            NodeState::Terminating | NodeState::Terminated => Self::End,
        }
    }
}

/// The desired state of a host.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Desired {
    /// Its node, `n-17`.
    pub node: String,
    /// What it is to do.
    pub work: Work,
    /// State of the node.
    pub state: String,
    /// Changes with the state; send it back as `known` to hear of the next change.
    pub version: i64,
}

/// Which state an agent knows.
#[derive(Debug, Deserialize, IntoParams)]
pub struct Known {
    /// `version` of the state that it knows; without it the answer comes at once.
    pub known: Option<i64>,
    /// Seconds to wait for another, 60 at most; 30 without it.
    pub wait_s: Option<f64>,
}

/// The desired state of a host, as soon as it is another than the one that is known.
#[utoipa::path(
    get, path = "/v1/agents/{instance}/desired", tag = "agents",
    params(("instance" = String, Path, description = "The cloud's name for the host"), Known),
    responses(
        (status = 200, description = "What to do; the same as before when the wait is over", body = Desired),
        (status = 403, description = "The secret is of another launch", body = Problem),
    )
)]
pub async fn desired(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Query(known): Query<Known>,
) -> Result<Json<Desired>, ApiError> {
    let id = node_of(&app, &secret, &instance)?;
    let wait_s = known.wait_s.unwrap_or(30.0);
    if !(0.0..=60.0).contains(&wait_s) {
        return Err(ApiError::new(Code::OutOfRange, format!("wait_s: {wait_s} is not in 0..=60")));
    }
    let now = || {
        let book = app.ledger.book();
        // A node that the book has forgotten has ended.
        book.nodes().get(&id).map_or((NodeState::Terminated, i64::MAX), |n| (n.state, n.since_ms))
    };
    let mut seq = app.ledger.watch();
    let waiting = async {
        loop {
            seq.borrow_and_update();
            if known.known != Some(now().1) || seq.changed().await.is_err() {
                return;
            }
        }
    };
    // Over or not, the state is told as it is then.
    let _ = tokio::time::timeout(Duration::from_secs_f64(wait_s), waiting).await;
    let (state, version) = now();
    Ok(Json(Desired { node: format!("n-{id}"), work: Work::of(state), state: state.name().into(), version }))
}

fn told(app: &App, id: u64) -> Registered {
    let book = app.ledger.book();
    let state = book.nodes().get(&id).map_or("terminated", |n| n.state.name()).to_owned();
    Registered { node: format!("n-{id}"), heartbeat_s: HEARTBEAT_S, state }
}
