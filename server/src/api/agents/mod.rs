//! Agents: one on each host. They register with the secret that their launch was given, and report for their own node only.

pub mod report;
mod secrets;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use fleet::NodeState;
use fleet::book::Node;
use health::gate::Learned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{ApiError, Code, Problem};
use super::{App, Body};
use crate::clock;
use crate::loops::LIMITS;

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
    /// For `diagnose`: a level, `3`, or tests with commas between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tests: Option<String>,
    /// For `gate`: `short` after diagnostics, on a host that passed the whole gate in this boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// For `gate`: what healthy hosts of its kind have been measured at, by number, where enough have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub learned: BTreeMap<String, f64>,
    /// Changes with the state; send it back as `known` to hear of the next change.
    pub version: i64,
}

impl Desired {
    /// A node that the book has forgotten has ended.
    fn of(id: u64, node: Option<&Node>) -> Self {
        let state = node.map_or(NodeState::Terminated, |n| n.state);
        let care = node.and_then(|n| n.care.as_ref()).filter(|_| state == NodeState::Repairing);
        let diagnosis = node.and_then(|n| n.diagnosis.as_ref()).filter(|_| state == NodeState::Diagnosing);
        Self {
            node: format!("n-{id}"),
            work: Work::of(state),
            state: state.name().into(),
            care: care.map(|c| c.care.name().to_owned()),
            tests: diagnosis.map(|d| d.tests.clone()),
            scope: node.is_some_and(Node::gate_is_short).then(|| "short".to_owned()),
            learned: BTreeMap::new(),
            version: node.map_or(i64::MAX, |n| n.since_ms),
        }
    }
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
    let now = || Desired::of(id, app.ledger.book().nodes().get(&id));
    let mut seq = app.ledger.watch();
    let waiting = async {
        loop {
            seq.borrow_and_update();
            if known.known != Some(now().version) || seq.changed().await.is_err() {
                return;
            }
        }
    };
    // Over or not, the state is told as it is then.
    let _ = tokio::time::timeout(Duration::from_secs_f64(wait_s), waiting).await;
    let mut desired = now();
    if desired.work == Work::Gate {
        let offer = app.ledger.book().nodes().get(&id).map(|n| n.offer.clone());
        if let (Some(offer), Some(document)) = (offer, app.store.document("learnt", LIMITS).await?) {
            let mut limits: BTreeMap<String, Learned> = document.record()?;
            let kind = format!("{}/{}", offer.provider, offer.instance_type);
            desired.learned = limits.remove(&kind).unwrap_or_default().medians;
        }
    }
    Ok(Json(desired))
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
