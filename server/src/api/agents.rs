//! Agents: one on each host. They register with the secret that their launch was given, and report for their own node only.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::{bearer, hash_of};
use super::problem::{ApiError, Code, Problem};
use super::{App, Body};

/// The secret with which the hosts of one launch join.
#[must_use]
pub fn join_secret(key: &str, token: &str) -> String {
    // Hashed twice under the key, as HMAC does, so that nothing can be appended.
    format!("plj_{}", hash_of(&format!("{key}/{}", hash_of(&format!("{key}/{token}")))))
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
    // A machine of one's own may be one node after another.
    let nodes = book.nodes().values().filter(|n| n.instance.as_deref() == Some(instance));
    // The same answer for a wrong secret and an unknown host: nobody learns which hosts there are.
    let refused = || ApiError::new(Code::Forbidden, format!("no launch of {instance} has this secret"));
    let token = |n: &fleet::book::Node| n.intent.map_or_else(|| instance.to_owned(), |i| book.launch_token(i));
    let mut mine = nodes.filter(|n| join_secret(&app.join_key, &token(n)) == secret.0);
    mine.next().map(|n| n.id).ok_or_else(refused)
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

fn told(app: &App, id: u64) -> Registered {
    let book = app.ledger.book();
    let state = book.nodes().get(&id).map_or("terminated", |n| n.state.name()).to_owned();
    Registered { node: format!("n-{id}"), heartbeat_s: HEARTBEAT_S, state }
}
