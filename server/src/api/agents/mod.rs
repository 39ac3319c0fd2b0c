//! Agents: one on each host. They register with the secret that their launch was given, and report for their own node only.

mod secrets;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use fleet::NodeState;
use fleet::book::{Care, Gate, Pending};
use health::policy::Effect;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, Code, Problem};
use super::{App, Body};
use crate::clock;

use secrets::{Host, Secret};
pub use secrets::{agent_token, host_secret, join_secret};

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
    /// The host's own token, where it is new: from now on it sends this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Number of the last report of this boot that counted; the next has a higher one.
    pub report_seq: u64,
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
    /// Number of the report within the boot, rising: one that comes twice counts once.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Of the gate: what would mend it.
    #[serde(default)]
    pub mend: Option<Mend>,
    /// Of passive watching: what is wrong now, all of it.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// What would mend a host that failed its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mend {
    /// Nothing is known that would.
    Nothing,
    /// The gate once more.
    Again,
    /// Its set-up.
    SetUp,
    /// A reset of the GPU.
    Reset,
    /// A reboot.
    Reboot,
    /// Another host.
    Replace,
}

/// Something that is wrong with a host until its rule ends it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Cause, `xid:63`.
    pub cause: String,
    /// GPU by its PCI address; none where it is the host's.
    #[serde(default)]
    pub gpu: Option<String>,
    /// What the policy says becomes of the node: `record`, `recheck`, `reset-at-idle`, `drain-reset`, `drain-reboot`,
    /// `quarantine`.
    #[schema(value_type = String)]
    pub effect: Effect,
    /// Only shown.
    #[serde(default)]
    pub shadow: bool,
    /// When it was raised, milliseconds since 1970.
    pub raised_at_ms: i64,
    /// The last evidence.
    #[serde(default)]
    pub text: String,
}

/// Conditions of one report.
const CONDITIONS_MAX: usize = 1000;
/// Claims on a node that is to be drained have this time, milliseconds.
const GRACE_MS: i64 = 10 * 60_000;

/// What conditions ask for: care, or a quarantine, with the cause.
fn asked(conditions: &[Condition], now_ms: i64) -> Option<Result<Pending, String>> {
    let worst = conditions.iter().filter(|c| !c.shadow).max_by_key(|c| c.effect)?;
    let cause = worst.cause.clone();
    let pending = |care, drains: bool| {
        Some(Ok(Pending { care, cause: cause.clone(), claims_until_ms: drains.then_some(now_ms + GRACE_MS) }))
    };
    match worst.effect {
        Effect::Record => None,
        Effect::Recheck => pending(Care::Recheck, false),
        Effect::ResetAtIdle => pending(Care::Reset, false),
        Effect::DrainReset => pending(Care::Reset, true),
        Effect::DrainReboot => pending(Care::Reboot, true),
        Effect::Quarantine => Some(Err(format!("{cause}: {}", worst.text).chars().take(200).collect())),
    }
}

/// Seconds between heartbeats.
const HEARTBEAT_S: u32 = 10;

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
    let joined = secret.joining(&app, &host.instance, &host.boot)?;
    app.ledger.write(move |book, now_ms| book.register(joined.id, &host.boot, host.gpus, now_ms)).await??;
    Ok(Json(told(&app, Host { renews: true, ..joined })))
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
    let host = secret.host(&app, &instance)?;
    if report.conditions.len() > CONDITIONS_MAX {
        let count = report.conditions.len();
        return Err(ApiError::new(Code::OutOfRange, format!("{count} conditions; {CONDITIONS_MAX} are the most")));
    }
    let noted = app.ledger.write(move |book, now_ms| note(book, host.id, &report, now_ms));
    noted.await??;
    Ok(Json(told(&app, host)))
}

/// Writes down what a report says; one that was seen before says nothing.
fn note(book: &mut fleet::book::Book, id: u64, report: &Report, now_ms: i64) -> Result<(), fleet::book::NodeError> {
    if !book.is_new(id, &report.boot, report.seq)? {
        return Ok(());
    }
    let reason: String = report.reason.chars().take(200).collect();
    match (report.checks, report.verdict) {
        (Checks::Gate, verdict) => {
            let mend = match report.mend {
                Some(Mend::Reset) => Some(Care::Reset),
                Some(Mend::Reboot) => Some(Care::Reboot),
                _ => None,
            };
            let (said, why) = match verdict {
                Verdict::Pass => (Gate::Passed, "every check of the gate passed".to_owned()),
                Verdict::Unmeasured => {
                    (Gate::Failed { mend }, format!("a check of the gate could not be made: {reason}"))
                }
                Verdict::Degraded | Verdict::Fail => {
                    (Gate::Failed { mend }, format!("a check of the gate failed: {reason}"))
                }
            };
            book.gate(id, &report.boot, &said, &why, now_ms)
        }
        (Checks::Passive, verdict) => {
            let healthy = match verdict {
                Verdict::Pass => Some(true),
                // A condition says what is wrong, and what is to be done; without one it is a fault.
                Verdict::Fail if report.conditions.is_empty() => Some(false),
                _ => None,
            };
            book.heard(id, &report.boot, healthy, now_ms)?;
            match asked(&report.conditions, now_ms) {
                None => book.needs(id, &report.boot, None, now_ms),
                Some(Ok(pending)) => book.needs(id, &report.boot, Some(pending), now_ms),
                // Where its state has no place for it, it is out of service already.
                Some(Err(reason)) => book.fault(id, &reason, now_ms).or(Ok(())),
            }
        }
    }
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
    /// For `repair`: `reset` or `reboot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub care: Option<String>,
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
    let id = secret.host(&app, &instance)?.id;
    let wait_s = known.wait_s.unwrap_or(30.0);
    if !(0.0..=60.0).contains(&wait_s) {
        return Err(ApiError::new(Code::OutOfRange, format!("wait_s: {wait_s} is not in 0..=60")));
    }
    let now = || {
        let book = app.ledger.book();
        // A node that the book has forgotten has ended.
        let care = |n: &fleet::book::Node| n.care.as_ref().map(|c| c.care.name().to_owned());
        book.nodes().get(&id).map_or((NodeState::Terminated, None, i64::MAX), |n| (n.state, care(n), n.since_ms))
    };
    let mut seq = app.ledger.watch();
    let waiting = async {
        loop {
            seq.borrow_and_update();
            if known.known != Some(now().2) || seq.changed().await.is_err() {
                return;
            }
        }
    };
    // Over or not, the state is told as it is then.
    let _ = tokio::time::timeout(Duration::from_secs_f64(wait_s), waiting).await;
    let (state, care, version) = now();
    let care = care.filter(|_| state == NodeState::Repairing);
    Ok(Json(Desired { node: format!("n-{id}"), work: Work::of(state), state: state.name().into(), care, version }))
}

fn told(app: &App, host: Host) -> Registered {
    let book = app.ledger.book();
    let node = book.nodes().get(&host.id);
    Registered {
        node: format!("n-{}", host.id),
        heartbeat_s: HEARTBEAT_S,
        state: node.map_or("terminated", |n| n.state.name()).to_owned(),
        token: host.renews.then(|| agent_token(&app.join_key, host.id, clock::now_ms())),
        report_seq: node.and_then(|n| n.report_seq).unwrap_or(0),
    }
}
