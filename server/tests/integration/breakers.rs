//! Many nodes that fail for one cause: they are out, and nothing is done to them until it is understood.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};
use server::secrets::agent_token;

use crate::api::Running;
use crate::gpus::{gated, quiet};

/// What its agent says of a node that has passed its gate.
async fn passive(run: &Running, id: u64, instance: &str, cause: &str) {
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let body = json!({
        "boot": "b1", "seq": 9, "checks": "passive", "verdict": "fail",
        "conditions": [{ "cause": cause, "effect": "quarantine", "raised_at_ms": 0, "text": "a test" }],
    });
    let url = format!("{}/v1/agents/{instance}/report", run.server.url);
    let sent = run.http.post(url).bearer_auth(token).body(body.to_string()).send().await.expect("answers");
    assert_eq!(sent.status(), StatusCode::OK);
}

async fn until(run: &Running, path: &str, so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let began = tokio::time::Instant::now();
    loop {
        let items = run.get(path).await["items"].as_array().expect("list").clone();
        if so(&items) {
            return items;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{path}: {items:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cause_that_many_have_in_common_holds_its_nodes_until_it_is_closed() {
    let run = quiet().await;
    // Before this nothing is counted: what was is over.
    let looked = |l: &(&str, server::board::Status)| l.0 == "breakers" && l.1.runs > 0;
    while !run.server.app.board.all().iter().any(looked) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut nodes = Vec::new();
    for i in 0..20 {
        let name = format!("i-{i}");
        nodes.push((gated(&run, &name, &[], "pass").await.0, name));
    }
    for (id, name) in &nodes[..3] {
        passive(&run, *id, name, "xid:79").await;
    }
    let open = until(&run, "/v1/breakers", |b| b.iter().any(|b| b["cause"] == "xid:79")).await;
    let of: Vec<(&Value, &Value)> = open.iter().map(|b| (&b["cause"], &b["state"])).collect();
    assert_eq!(of, [(&json!("xid:79"), &json!("open")), (&json!("driver:580.1"), &json!("open"))], "{open:?}");
    // A node that has ended is forgotten.
    let ends = || {
        let book = run.server.app.book().expect("read");
        let ends = |i: &fleet::book::Intent, id: u64| i.action == fleet::book::IntentAction::Terminate { node: id };
        let ended = |id: u64| {
            let gone = book.nodes().get(&id).is_none_or(|n| n.state == fleet::NodeState::Terminating);
            gone || book.intents().values().any(|i| ends(i, id))
        };
        nodes[..4].iter().filter(|(id, _)| ended(*id)).count()
    };
    let before = ends();
    // From here on it would end them.
    run.post("/v1/resume", &json!({})).await;
    passive(&run, nodes[3].0, &nodes[3].1, "xid:79").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ends(), before, "nobody is ended while they are open");
    assert_eq!(run.get(&format!("/v1/nodes/n-{}", nodes[3].0)).await["state"], "quarantined", "but it is out");
    for cause in ["xid:79", "driver:580.1"] {
        let cell = open[0]["cell"].clone();
        let (status, _) = run.post("/v1/breakers/close", &json!({ "cell": cell, "cause": cause })).await;
        assert_eq!(status, StatusCode::OK);
    }
    until(&run, "/v1/breakers", <[Value]>::is_empty).await;
    let began = tokio::time::Instant::now();
    while ends() == before {
        assert!(began.elapsed() < Duration::from_secs(20), "closed, and they are ended");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (status, _) = run.post("/v1/breakers/close", &json!({ "cell": "a/b/c", "cause": "x" })).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
