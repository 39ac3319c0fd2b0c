//! Physical GPUs are known across the nodes that they are rented as.

use fleet::LaunchAnswer;
use reqwest::StatusCode;
use serde_json::{Value, json};
use server::secrets::agent_token;

use crate::api::{CONFIG, Running, running_with};

/// A server that buys nothing by itself.
pub async fn quiet() -> Running {
    let run = running_with(&CONFIG.replace("speed = 200.0", "speed = 1.0")).await;
    run.post("/v1/pause", &json!({})).await;
    run
}

/// A node of a host with these GPUs that has registered and whose gate has said this; its state then.
pub async fn gated(run: &Running, instance: &str, serials: &[&str], verdict: &str) -> (u64, Value) {
    let offer = loop {
        if let Some(offer) = run.server.app.book().expect("read").offers().first() {
            break offer.key.clone();
        }
        tokio::task::yield_now().await;
    };
    let name = instance.to_owned();
    let made = run.server.app.ledger.write(move |book, now_ms| {
        let intent = book.intend_launch(1, &offer, 1, 60_000, now_ms).expect("known");
        book.intent_sent(intent, now_ms).expect("open");
        book.launched(intent, std::slice::from_ref(&name), LaunchAnswer::Launched, "by a test", now_ms).expect("open");
        book.nodes().values().find(|n| n.intent == Some(intent)).expect("made").id
    });
    let id = made.await.expect("written");
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let say = async |path: &str, body: Value| {
        let request = run.http.post(format!("{}{path}", run.server.url)).bearer_auth(&token).body(body.to_string());
        let answer = request.send().await.expect("answers");
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap_or_default());
    };
    say("/v1/agents/register", json!({ "instance": instance, "boot": "b1", "gpus": 8 })).await;
    let evidence =
        json!({ "outcomes": [{ "check": "memory", "numbers": [{ "name": "read_gbps", "value": 4000.0 }] }] });
    let gate = json!({
        "boot": "b1", "seq": 1, "checks": "gate", "verdict": verdict, "reason": "a test", "serials": serials,
        "driver": "580.1", "evidence": evidence, "mend": if verdict == "pass" { "nothing" } else { "replace" },
        "failed_check": if verdict == "pass" { Value::Null } else { json!("memory") },
    });
    say(&format!("/v1/agents/{instance}/report"), gate).await;
    (id, run.get(&format!("/v1/nodes/n-{id}")).await)
}

/// The agent of a node that passed its gate finds a fault.
async fn broken(run: &Running, id: u64, instance: &str) {
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let report = json!({ "boot": "b1", "seq": 2, "checks": "passive", "verdict": "fail", "reason": "a test" });
    let url = format!("{}/v1/agents/{instance}/report", run.server.url);
    let sent = run.http.post(url).bearer_auth(&token).body(report.to_string()).send().await.expect("answers");
    assert_eq!(sent.status(), StatusCode::OK);
    assert_eq!(run.get(&format!("/v1/nodes/n-{id}")).await["state"], "quarantined");
}

/// The cloud says that a node is gone: its GPUs may be others' now.
async fn gone(run: &Running, id: u64) {
    let gone = run.server.app.ledger.write(move |book, now_ms| book.gone(id, "a test", now_ms));
    gone.await.expect("written").expect("there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gpu_that_took_nodes_out_is_not_taken_again_until_a_person_clears_it() {
    let run = quiet().await;
    let (never, node) = gated(&run, "i-0", &["g-2"], "fail").await;
    assert_eq!(node["state"], "quarantined", "{node}");
    gone(&run, never).await;
    let (first, _) = gated(&run, "i-1", &["g-1", "g-2"], "pass").await;
    broken(&run, first, "i-1").await;
    gone(&run, first).await;
    let (second, node) = gated(&run, "i-2", &["g-2", "g-3"], "pass").await;
    assert_eq!(node["state"], "idle", "once may be anything, and a host that proved nothing says nothing: {node}");
    gone(&run, second).await;
    let (third, _) = gated(&run, "i-3", &["g-2"], "pass").await;
    broken(&run, third, "i-3").await;
    gone(&run, third).await;
    let (_, node) = gated(&run, "i-4", &["g-9", "g-2"], "pass").await;
    assert_eq!(node["state"], "quarantined");
    assert!(node["reason"].to_string().contains("its GPU g-2 took nodes out before"), "{node}");
    let gpus = run.get("/v1/gpus?limit=2").await;
    let page = |gpus: &Value| {
        gpus["items"].as_array().expect("list").iter().map(|g| g["serial"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!((page(&gpus), &gpus["next"]), (vec!["\"g-1\"".to_owned(), "\"g-2\"".into()], &json!("g-2")));
    let two = &gpus["items"][1];
    assert_eq!((&two["blocked"], &two["node"]), (&json!(true), &json!(format!("n-{third}"))));
    assert_eq!(two["faults"][0]["node"], format!("n-{first}"));
    let others = run.get("/v1/gpus?after=g-3").await;
    let fourth = others["items"].as_array().expect("list").iter().find(|g| g["serial"] == "sim:i-4").expect("kept");
    assert_eq!(fourth["faults"], json!([]), "what came with it is not to blame: {others}");
    let (status, cleared) = run.post("/v1/gpus/g-2/clear", &json!({})).await;
    assert_eq!((status, &cleared["blocked"]), (StatusCode::OK, &json!(false)));
    let (_, node) = gated(&run, "i-5", &["g-2"], "pass").await;
    assert_eq!(node["state"], "idle", "{node}");
    // Two that lie about it, and do not pass: it is not theirs.
    for liar in ["i-6", "i-7"] {
        let (_, node) = gated(&run, liar, &["g-2"], "fail").await;
        assert_eq!(node["state"], "quarantined", "{node}");
        let gpus = run.get("/v1/gpus").await;
        let two = gpus["items"].as_array().expect("list").iter().find(|g| g["serial"] == "g-2").expect("known");
        assert_eq!((&two["blocked"], &two["instance"]), (&json!(false), &json!("i-5")), "{two}");
    }
    let (_, node) = gated(&run, "i-8", &["g-2"], "pass").await;
    assert_eq!(node["state"], "quarantined");
    assert!(node["reason"].to_string().contains("it names GPU g-2, which is n-"), "{node}");
    assert_eq!(run.post("/v1/gpus/nobody/clear", &json!({})).await.0, StatusCode::NOT_FOUND);
    let evidence = run.get(&format!("/v1/nodes/n-{never}/evidence")).await;
    let kept = &evidence["items"][0];
    assert_eq!((&kept["verdict"], &kept["reason"]), (&json!("fail"), &json!("a test")), "{evidence}");
    assert_eq!(kept["body"]["outcomes"][0]["numbers"][0]["value"], json!(4000.0), "every number");
}

/// What a gate said that something else had asked for is not noted; nor is a second fault of one incident a second node.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_answers_the_state_that_asked_for_it() {
    let run = quiet().await;
    let (id, node) = gated(&run, "i-1", &["g-1"], "pass").await;
    assert_eq!(node["state"], "idle");
    let ledger = &run.server.app.ledger;
    let lent = move |book: &mut fleet::book::Book, now_ms: i64| {
        book.lend(id, "2", now_ms + 60_000, now_ms).expect("idle");
        book.call_back(id, "a claim waits", now_ms + 1).expect("lent");
        book.nodes()[&id].desired.health
    };
    let version = ledger.write(lent).await.expect("written");
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let say = async |body: Value| {
        let url = format!("{}/v1/agents/i-1/report", run.server.url);
        let sent = run.http.post(url).bearer_auth(&token).body(body.to_string()).send().await.expect("answers");
        (sent.status(), sent.json::<Value>().await.expect("JSON"))
    };
    let found = json!({
        "boot": "b1", "seq": 2, "checks": "diagnosis", "verdict": "fail", "reason": "memory failed once", "serials": ["g-1"],
        "tests": "2", "remedy": "recheck",
    });
    let (status, told) = say(found).await;
    assert_eq!((status, &told["state"]), (StatusCode::OK, &json!("checking")), "{told}");
    let gate = |seq: u64, version: i64| json!({ "boot": "b1", "seq": seq, "checks": "gate", "verdict": "pass", "version": version, "serials": ["g-1"] });
    let (status, told) = say(gate(3, version)).await;
    assert_eq!(
        (status, &told["state"]),
        (StatusCode::OK, &json!("checking")),
        "the short one is not enough now: {told}"
    );
    let now = ledger.book().expect("read").nodes()[&id].desired.health;
    assert!(now > version && !ledger.book().expect("read").nodes()[&id].gate_is_short());
    // Another subsystem's order is heard at once, and health's stays what it was.
    let polled = async |known: i64| -> Value {
        let url = format!("{}/v1/agents/i-1/desired?known={known}&wait_s=20", run.server.url);
        let sent = run.http.get(url).bearer_auth(&token).send().await.expect("answers");
        sent.json().await.expect("JSON")
    };
    let raised = async {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        ledger.write(move |book, _| book.raise_desired(id)).await.expect("written").expect("a node");
    };
    let (desired, ()) = tokio::join!(polled(now), raised);
    assert_eq!((&desired["version"], &desired["health"]["version"]), (&json!(now + 1), &json!(now)), "{desired}");
    assert_eq!((&desired["health"]["work"], &desired["health"]["scope"]), (&json!("gate"), &json!("whole")));
    let (_, told) = say(gate(4, now)).await;
    assert_eq!(told["state"], "idle", "{told}");
    let gpu = run.get("/v1/gpus").await["items"][0].clone();
    assert_eq!(
        (&gpu["history"]["failures"], &gpu["history"]["quick"]),
        (&json!(1), &json!(false)),
        "it is tested again"
    );
}

/// A host whose GPUs tell no serial numbers is known by its instance.
#[tokio::test(flavor = "multi_thread")]
async fn without_serials_the_instance_is_what_is_known() {
    let run = quiet().await;
    gated(&run, "i-1", &[], "pass").await;
    assert_eq!(run.get("/v1/gpus").await["items"][0]["serial"], "sim:i-1");
    let long = vec!["x".repeat(65)];
    let id = run.server.app.book().expect("read").nodes().keys().next().copied().expect("one");
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let body = json!({ "boot": "b1", "checks": "gate", "verdict": "pass", "serials": long });
    let request = run.http.post(format!("{}/v1/agents/i-1/report", run.server.url)).bearer_auth(token);
    assert_eq!(
        request.body(body.to_string()).send().await.expect("answers").status(),
        StatusCode::UNPROCESSABLE_ENTITY
    );
}

/// What one host can say is bounded: names, serial numbers, evidence.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_says_no_more_than_it_can_have() {
    let run = quiet().await;
    let (id, _) = gated(&run, "i-1", &["g-1"], "pass").await;
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let say = async |path: &str, body: Value| {
        let url = format!("{}/v1/agents{path}", run.server.url);
        run.http.post(url).bearer_auth(&token).body(body.to_string()).send().await.expect("answers").status()
    };
    let gate = |seq: u64, serials: Vec<String>| json!({ "boot": "b1", "seq": seq, "checks": "gate", "verdict": "pass", "serials": serials });
    let many: Vec<String> = (0..9).map(|i| format!("s-{i}")).collect();
    assert_eq!(say("/i-1/report", gate(2, many)).await, StatusCode::UNPROCESSABLE_ENTITY);
    let boot = "b".repeat(129);
    let register = json!({ "instance": "i-1", "boot": boot, "gpus": 8, "protocol": protocol::agent::PROTOCOL });
    assert_eq!(say("/register", register).await, StatusCode::UNPROCESSABLE_ENTITY);
    for i in 0..80 {
        let evidence = server::store::EvidenceRow {
            id: 0,
            at_ms: i,
            node: id,
            checks: "gate".into(),
            verdict: "pass".into(),
            reason: String::new(),
            body: json!({ "i": i }),
        };
        run.server.app.ledger.record(server::store::Write::Evidence(evidence), None).await.expect("written");
    }
    let kept = run.get(&format!("/v1/nodes/n-{id}/evidence?limit=1000")).await;
    let kept = kept["items"].as_array().expect("list");
    assert_eq!((kept.len(), &kept[63]["body"]["i"]), (64, &json!(79)), "the newest");
    let large = json!({ "boot": "b1", "seq": 3, "checks": "diagnosis", "verdict": "fail", "reason": "r", "tests": "2",
        "remedy": "replace", "serials": [], "evidence": { "text": "x".repeat(100_000) } });
    assert_eq!(say("/i-1/report", large).await, StatusCode::OK);
    let kept = run.get(&format!("/v1/nodes/n-{id}/evidence?limit=1000")).await;
    let last = kept["items"].as_array().expect("list").last().expect("one").clone();
    assert!(last["body"]["left_out_bytes"].as_u64() > Some(100_000), "{last}");
}
