//! Diagnostics that the control plane asks for: lent, yielded, recorded, with a stand-in for `dcgmi`.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::secrets::host_secret;

use crate::daemon::{Plane, Running, daemon_of, plane, said, stand};
use crate::stand::Stand;

/// A document in which these tests pass on two GPUs.
fn passing(serials: [&str; 2], tests: &[&str]) -> Value {
    let result =
        |gpu: usize| json!({ "entity_group": "GPU", "entity_group_id": 1, "entity_id": gpu, "status": "Pass" });
    let test = |name: &&str| json!({ "name": name, "results": [result(0), result(1)] });
    let tests: Vec<Value> = tests.iter().map(test).collect();
    let entity = |gpu: usize| json!({ "device_id": "2335", "entity_id": gpu, "serial_num": serials[gpu] });
    json!({
        "DCGM Diagnostic": { "test_categories": [{ "category": "Hardware", "tests": tests }] },
        "entity_groups": [{ "entity_group": "GPU", "entity_group_id": 1, "entities": [entity(0), entity(1)] }],
        "metadata": { "version": "4.5.2", "Driver Version Detected": "580.82.09" },
    })
}

/// A host whose `dcgmi` is this script; `passing.json` lies beside it.
fn host(serials: [&str; 2], script: &str) -> Stand {
    let mut stand = stand();
    for (gpu, serial) in stand.script["gpus"].as_array_mut().unwrap().iter_mut().zip(serials) {
        gpu["serial"] = json!(serial);
    }
    let root = stand.root().to_owned();
    std::fs::write(root.join("passing.json"), passing(serials, &["software", "memory", "pcie"]).to_string()).unwrap();
    let text = format!("#!/bin/bash\ncd {}\necho \"$@\" >> asked\n{script}\n", root.display());
    std::fs::write(root.join("dcgmi"), text).unwrap();
    std::fs::set_permissions(root.join("dcgmi"), std::fs::Permissions::from_mode(0o755)).unwrap();
    stand
}

/// Two hosts that are wanted, idle.
async fn two(scripts: [&str; 2]) -> (Plane, [Stand; 2], [Running; 2]) {
    let plane = plane().await;
    let hour_ms = 3_600_000;
    let now_ms = plane.server.app.now_ms();
    let forecast = json!({ "class": "chat", "from_ms": now_ms, "until_ms": now_ms + hour_ms, "claims": 2.0 });
    plane.put("/v1/forecasts/launch", &forecast).await;
    let stands = [host(["s-1", "s-2"], scripts[0]), host(["s-3", "s-4"], scripts[1])];
    let start = |i: usize| {
        let name = ["lab-1", "lab-2"][i];
        daemon_of(name, &stands[i], &plane.server.url, &host_secret(&plane.server.app.join_key, name))
    };
    let agents = [start(0), start(1)];
    (plane, stands, agents)
}

async fn until(plane: &Plane, what: &str, so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let nodes = plane.get("/v1/nodes").await["items"].as_array().unwrap().clone();
        if so(&nodes) {
            return nodes;
        }
        assert!(began.elapsed() < Duration::from_secs(50), "not {what}: {nodes:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn count(nodes: &[Value], state: &str) -> usize {
    nodes.iter().filter(|n| n["state"] == state).count()
}

const HANGS: &str = "trap 'exit 1' INT\nwhile true; do sleep 0.05; done";

/// Each new host is tested in its first idle gap, one after the other, and is known by its GPUs from then on.
#[tokio::test(flavor = "multi_thread")]
async fn new_hosts_are_tested_when_they_are_idle() {
    let (plane, stands, _agents) = two(["sleep 1; cat passing.json"; 2]).await;
    let began = Instant::now();
    loop {
        let gpus = plane.get("/v1/gpus").await["items"].as_array().unwrap().clone();
        if gpus.iter().filter(|g| g["history"]["quick"] == json!(true)).count() == 4 {
            assert_eq!(gpus[0]["serial"], "s-1", "{gpus:?}");
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(50), "{gpus:#?}\n{}", said(&stands[0].root().join("said")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for stand in &stands {
        assert_eq!(said(&stand.root().join("asked")), "diag -r 2 -j\n", "once");
    }
    until(&plane, "idle again", |nodes| count(nodes, "idle") == 2).await;
    let events = plane.get("/v1/events?limit=1000").await["items"].as_array().unwrap().clone();
    let both = events.iter().filter(|e| e["to"] == "diagnosing").count();
    assert_eq!(both, 2);
    let node = events.iter().find(|e| e["to"] == "diagnosing").unwrap()["subject"].as_str().unwrap().to_owned();
    let evidence = plane.get(&format!("/v1/nodes/{node}/evidence")).await["items"].as_array().unwrap().clone();
    let kinds: Vec<&str> = evidence.iter().filter_map(|e| e["checks"].as_str()).collect();
    assert_eq!(kinds, ["gate", "diagnosis", "gate"], "the whole gate, the test, the short gate");
    let numbers = |i: usize| evidence[i]["body"]["outcomes"].as_array().unwrap().len();
    assert!(numbers(2) < numbers(0), "{} and {}", numbers(2), numbers(0));
}

/// A claim calls a node back: the test is interrupted, the short gate passes, and the claim is granted.
#[tokio::test(flavor = "multi_thread")]
async fn a_test_gives_way_to_a_claim() {
    let (plane, stands, _agents) = two([HANGS; 2]).await;
    until(&plane, "tested and idle", |n| count(n, "diagnosing") == 1 && count(n, "idle") == 1).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60, "lease_s": 600 });
        let claim = plane.post("/v1/claims", &ask).await;
        ids.push(claim["id"].as_str().unwrap().to_owned());
        plane.post(&format!("/v1/claims/{}/heartbeat", ids[0]), &json!({ "lease_s": 600 })).await;
    }
    let granted = plane.get(&format!("/v1/claims/{}?wait_s=30", ids[1])).await;
    assert_eq!(granted["state"], "granted", "{granted}\n{}", said(&stands[0].root().join("said")));
    let took_ms = granted["granted_at_ms"].as_i64().unwrap() - granted["asked_at_ms"].as_i64().unwrap();
    assert!(took_ms < 20_000, "{took_ms} ms");
    let nodes = plane.get("/v1/nodes").await;
    let yielded: Vec<i64> = nodes["items"].as_array().unwrap().iter().filter_map(|n| n["yield_ms"].as_i64()).collect();
    assert_eq!(yielded.len(), 1, "{nodes}");
    let metrics = plane.text("/metrics").await;
    assert!(metrics.contains("pilotlight_diagnosis_yield_seconds_count 1"), "{metrics}");
    let gpus = plane.get("/v1/gpus").await;
    let passed = gpus["items"].as_array().unwrap().iter().any(|g| g["history"]["quick"] == json!(true));
    assert!(!passed, "what gave way proves nothing: {gpus}");
}

/// What a test finds takes the node out, and is remembered of its GPUs.
#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_fails_its_test_is_out() {
    let isolates = r#"sed 's/"entity_id":1,"status":"Pass"/"entity_id":1,"status":"Fail","warnings":[{"warning":"x","error_id":14,"error_severity":2}]/' passing.json
exit 205"#;
    let (plane, stands, _agents) = two([isolates, "cat passing.json"]).await;
    let began = Instant::now();
    let faults = loop {
        let gpus = plane.get("/v1/gpus").await;
        let mine = gpus["items"].as_array().unwrap().iter().find(|g| g["serial"] == "s-1");
        let faults = mine.map_or(Value::Null, |g| g["faults"].clone());
        if faults.as_array().is_some_and(|f| !f.is_empty()) {
            break faults;
        }
        assert!(began.elapsed() < Duration::from_secs(50), "{gpus:#}\n{}", said(&stands[0].root().join("said")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(faults[0]["reason"].to_string().contains("dcgm:14"), "{faults}");
    let node = plane.get(&format!("/v1/nodes/{}", faults[0]["node"].as_str().unwrap())).await;
    let out = ["quarantined", "terminating", "terminated"];
    assert!(out.iter().any(|state| node["state"] == *state), "{node}");
    assert!(stands[0].root().join("state/diagnosis-1.json").exists(), "its evidence is kept on the host too");
}

/// A script whose first answers have this severity on GPU 1, and which passes after them.
fn failing(severity: u32, times: usize) -> String {
    format!(
        r#"if [ $(wc -l < asked) -le {times} ]; then
sed 's/"entity_id":1,"status":"Pass"/"entity_id":1,"status":"Fail","warnings":[{{"warning":"x","error_id":14,"error_severity":{severity}}}]/' passing.json
exit 226
fi
cat passing.json"#
    )
}

/// What diagnostics ask for is made: a reset, and the whole gate; the heartbeats between do not take it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_that_a_test_asks_for_is_made() {
    let (plane, stands, _agents) = two([&failing(6, 1), "cat passing.json"]).await;
    let mended = stands[0].root().join("mended");
    let began = Instant::now();
    while !mended.exists() {
        assert!(began.elapsed() < Duration::from_secs(50), "{}", said(&stands[0].root().join("said")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    until(&plane, "healthy again", |nodes| count(nodes, "idle") == 2).await;
    assert!(said(&mended).starts_with("reset 0000:1"), "{}", said(&mended));
    let events = plane.get("/v1/events?limit=1000").await["items"].as_array().unwrap().clone();
    let mine = events.iter().find(|e| e["to"] == "repairing").unwrap()["subject"].clone();
    let life: Vec<&str> = events.iter().filter(|e| e["subject"] == mine).filter_map(|e| e["to"].as_str()).collect();
    let part = ["diagnosing", "checking", "quarantined", "repairing", "checking", "idle"];
    assert!(life.windows(part.len()).any(|w| w == part), "{life:?}");
}

/// A test that asks to be repeated is, once; what passes then has passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_doubt_is_repeated_once() {
    let (plane, stands, _agents) = two([&failing(4, 1), &failing(4, 9)]).await;
    let began = Instant::now();
    loop {
        let gpus = plane.get("/v1/gpus").await["items"].as_array().unwrap().clone();
        let of = |serial: &str| gpus.iter().find(|g| g["serial"] == serial).cloned().unwrap_or_default();
        let faults = of("s-3")["faults"].as_array().map_or(0, Vec::len);
        if of("s-1")["history"]["quick"] == json!(true) && faults == 1 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(50), "{gpus:#?}\n{}", said(&stands[1].root().join("said")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for stand in &stands {
        assert_eq!(said(&stand.root().join("asked")), "diag -r 2 -j\ndiag -r 2 -j\n", "twice each");
    }
}
