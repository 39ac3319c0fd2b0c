//! The agents of simulated hosts: they register when the host has started, report the gate, and then send heartbeats.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use fleet::{NodeState, Presence, Remedy, StagingRoom};
use health::Verdict;
use protocol::agent::{Checks, Desired, Diagnosis, Gate, HealthReport, PROTOCOL, Register, Registered, Work};
use protocol::staging::{CopyOrder, CopyReport, StagingReport, Traffic};
use providers::sim_provider::SimHost;
use providers::{Clock, SimProvider};
use tokio::sync::watch;

use super::Caller;

/// One host's agent.
#[derive(Debug, Clone, Default)]
struct Agent {
    /// What it got when it registered.
    token: Option<String>,
    stage: Stage,
    /// When each copy is whole, milliseconds since 1970, by object.
    copies: BTreeMap<String, i64>,
}

/// Where an agent is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Starting,
    Registered,
    Passed {
        beat_at_ms: i64,
    },
    Failed,
}

/// How agents are played.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Time between heartbeats.
    pub beat_every: Duration,
    /// Time between looks at who has something to say.
    pub look_every: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self { beat_every: Duration::from_secs(10), look_every: Duration::from_millis(200) }
    }
}

pub async fn play(
    api: Caller,
    clouds: Vec<Arc<SimProvider>>,
    clock: Clock,
    habits: Habits,
    mut stop: watch::Receiver<bool>,
) {
    let mut agents: BTreeMap<String, Agent> = BTreeMap::new();
    let beat_ms = i64::try_from(habits.beat_every.as_millis()).unwrap_or(i64::MAX);
    loop {
        step(&api, &clouds, &mut agents, beat_ms, clock.now_ms()).await;
        tokio::select! {
            biased;
            _ = stop.wait_for(|s| *s) => return,
            () = tokio::time::sleep(habits.look_every) => {}
        }
    }
}

/// What the agents of all hosts do at a moment.
async fn step(
    api: &Caller,
    clouds: &[Arc<SimProvider>],
    agents: &mut BTreeMap<String, Agent>,
    beat_ms: i64,
    now_ms: i64,
) {
    let hosts: Vec<Arc<SimHost>> = clouds.iter().flat_map(|c| c.hosts()).collect();
    if agents.len() > hosts.len() {
        let there: BTreeSet<&str> = hosts.iter().map(|h| h.instance.id.as_str()).collect();
        agents.retain(|id, _| there.contains(id.as_str()));
    }
    for host in hosts.iter().filter(|h| h.agent_at_ms <= now_ms) {
        let id = &host.instance.id;
        if !agents.contains_key(id) {
            agents.insert(id.clone(), Agent::default());
        }
        if let Some(agent) = agents.get_mut(id).filter(|a| a.stage.is_due(host, now_ms)) {
            let api = api.with(agent.token.as_ref().unwrap_or(&host.join));
            next(&api, host, agent, beat_ms, now_ms).await;
        }
    }
}

impl Stage {
    /// Whether an agent has something to say.
    fn is_due(self, host: &SimHost, now_ms: i64) -> bool {
        match self {
            Self::Starting => true,
            Self::Registered => host.gate_at_ms <= now_ms,
            Self::Passed { beat_at_ms } => beat_at_ms <= now_ms,
            Self::Failed => false,
        }
    }
}

async fn next(api: &Caller, host: &SimHost, agent: &mut Agent, beat_ms: i64, now_ms: i64) {
    let (id, boot) = (&host.instance.id, format!("boot-{}", host.agent_at_ms));
    let path = format!("/v1/agents/{id}/report");
    let report = |checks: Checks, verdict: Verdict| HealthReport {
        boot: boot.clone(),
        checks,
        verdict,
        reason: "simulated".into(),
        seq: None,
    };
    match agent.stage {
        Stage::Starting => {
            let body = Register { instance: id.clone(), boot, gpus: host.gpus, protocol: PROTOCOL };
            let (status, told) = api.post("/v1/agents/register", &body).await;
            // The launch may not be answered yet: it tries again.
            if let Ok(Registered { token, .. }) = serde_json::from_value(told)
                && status == StatusCode::OK
            {
                agent.token = token.or_else(|| agent.token.take());
                agent.stage = Stage::Registered;
            }
        }
        Stage::Registered => {
            let verdict = if host.passes { Verdict::Pass } else { Verdict::Fail };
            let (status, _) = api.post(&path, &report(Checks::Gate(Gate::default()), verdict)).await;
            if status == StatusCode::OK {
                let passed = Stage::Passed { beat_at_ms: now_ms + beat_ms };
                agent.stage = if host.passes { passed } else { Stage::Failed };
            }
        }
        Stage::Passed { .. } => {
            let beat = report(Checks::Passive { conditions: Vec::new() }, Verdict::Pass);
            let (_, answer) = api.post(&path, &beat).await;
            let state = serde_json::from_value::<Registered>(answer).ok().map(|r| r.state);
            if state == Some(NodeState::Diagnosing) {
                let desired = api.get(&format!("/v1/agents/{id}/desired?wait_s=0")).await;
                let order = serde_json::from_value::<Desired>(desired).map(|d| d.health.work);
                if let Ok(Work::Diagnose { tests }) = order {
                    let diagnosis = Diagnosis {
                        tests,
                        remedy: Remedy::Nothing,
                        error: None,
                        yield_s: None,
                        serials: Vec::new(),
                        evidence: serde_json::Value::Null,
                    };
                    api.post(&path, &report(Checks::Diagnosis(diagnosis), Verdict::Pass)).await;
                }
            }
            stage_copies(api, id, (&boot, agent), now_ms).await;
            // Heard again after a silence: the gate follows.
            let again = state == Some(NodeState::Checking);
            agent.stage = if again { Stage::Registered } else { Stage::Passed { beat_at_ms: now_ms + beat_ms } };
        }
        Stage::Failed => {}
    }
}

/// What a simulated host keeps, and how fast it fetches.
const DISK_BYTES: u64 = 2_000_000_000_000;
const FETCH_BYTES_PER_S: f64 = 2e9;

/// Has copies come as they would on a host, one after the other.
async fn stage_copies(api: &Caller, id: &str, (boot, agent): (&str, &mut Agent), now_ms: i64) {
    let desired = api.get(&format!("/v1/agents/{id}/desired?wait_s=0")).await;
    let order = serde_json::from_value::<Desired>(desired).ok().and_then(|desired| desired.staging);
    let Some(order) = order else { return };
    let wanted: BTreeSet<&str> = order.copies.iter().map(|copy| copy.object.as_str()).collect();
    agent.copies.retain(|object, _| wanted.contains(object.as_str()));
    let mut free_at_ms = agent.copies.values().copied().max().unwrap_or(now_ms).max(now_ms);
    for copy in &order.copies {
        if !agent.copies.contains_key(&copy.object) {
            free_at_ms += (copy.bytes as f64 / FETCH_BYTES_PER_S * 1000.0) as i64;
            agent.copies.insert(copy.object.clone(), free_at_ms);
        }
    }
    let report = |copy: &CopyOrder| {
        let whole = agent.copies.get(&copy.object).is_some_and(|at_ms| *at_ms <= now_ms);
        let (presence, bytes) = if whole { (Presence::Disk, copy.bytes) } else { (Presence::Fetching, 0) };
        CopyReport { object: copy.object.clone(), presence, bytes, problem: String::new() }
    };
    let room =
        StagingRoom { disk_bytes: DISK_BYTES, fetch_bytes_per_s: Some(FETCH_BYTES_PER_S), ..StagingRoom::default() };
    let report = StagingReport {
        boot: boot.to_owned(),
        room,
        copies: order.copies.iter().map(report).collect(),
        traffic: Traffic::default(),
    };
    api.post(&format!("/v1/agents/{id}/staged"), &report).await;
}
