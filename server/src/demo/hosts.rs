//! The agents of simulated hosts: they register when the host has started, report the gate, and then send heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use providers::SimProvider;
use serde_json::json;
use tokio::sync::watch;

use super::Caller;
use crate::clock;

/// Where an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Registered,
    Passed { beat_at_ms: i64 },
    Failed,
}

/// Time between heartbeats, milliseconds.
const BEAT_MS: i64 = 10_000;

pub async fn play(api: Caller, clouds: Vec<Arc<SimProvider>>, mut stop: watch::Receiver<bool>) {
    let mut agents: BTreeMap<String, Agent> = BTreeMap::new();
    // What each host got when it registered.
    let mut tokens: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let now_ms = clock::now_ms();
        let hosts: Vec<_> = clouds.iter().flat_map(|c| c.hosts()).collect();
        agents.retain(|id, _| hosts.iter().any(|h| h.instance.id == *id));
        tokens.retain(|id, _| agents.contains_key(id));
        for host in hosts.iter().filter(|h| h.agent_at_ms <= now_ms) {
            let api = api.with(tokens.get(&host.instance.id).unwrap_or(&host.join));
            let (id, boot) = (&host.instance.id, format!("boot-{}", host.agent_at_ms));
            let path = format!("/v1/agents/{id}/report");
            let gate =
                |verdict: &str| json!({ "boot": boot, "checks": "gate", "verdict": verdict, "reason": "simulated" });
            let next = match agents.get(id) {
                None => {
                    let body = json!({ "instance": id, "boot": boot, "gpus": host.gpus });
                    let (status, told) = api.post("/v1/agents/register", &body).await;
                    if let Some(token) = told.get("token").and_then(|t| t.as_str()) {
                        tokens.insert(id.clone(), token.to_owned());
                    }
                    // The launch may not be answered yet: it tries again.
                    (status == StatusCode::OK).then_some(Agent::Registered)
                }
                Some(Agent::Registered) if host.gate_at_ms <= now_ms => {
                    let (status, _) = api.post(&path, &gate(if host.passes { "pass" } else { "fail" })).await;
                    let answered =
                        if host.passes { Agent::Passed { beat_at_ms: now_ms + BEAT_MS } } else { Agent::Failed };
                    (status == StatusCode::OK).then_some(answered)
                }
                Some(Agent::Passed { beat_at_ms }) if *beat_at_ms <= now_ms => {
                    let body = json!({ "boot": boot, "checks": "passive", "verdict": "pass" });
                    let (_, answer) = api.post(&path, &body).await;
                    if answer.get("state").is_some_and(|s| s == "diagnosing") {
                        let desired = api.get(&format!("/v1/agents/{id}/desired?wait_s=0")).await;
                        let tests = desired.get("tests").cloned().unwrap_or_default();
                        let diagnosis = json!({ "tests": tests, "action": "nothing" });
                        let body =
                            json!({ "boot": boot, "checks": "diagnosis", "verdict": "pass", "diagnosis": diagnosis });
                        api.post(&path, &body).await;
                    }
                    // Heard again after a silence: the gate follows.
                    let again = answer.get("state").is_some_and(|s| s == "checking");
                    Some(if again { Agent::Registered } else { Agent::Passed { beat_at_ms: now_ms + BEAT_MS } })
                }
                _ => None,
            };
            if let Some(next) = next {
                agents.insert(id.clone(), next);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
    }
}
