//! The API as its users meet it: schedulers, operators, agents, and those who mean harm.

use std::time::Duration;

use protocol::agent::PROTOCOL;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use server::api::{Code, document};
use server::config::Config;
use server::secrets::{agent_token, join_secret};
use server::serve::{Server, start};
use server::store::{TokenRow, Write};
use server::tokens::hash_of;
use tokio::sync::watch;

pub const CONFIG: &str = r#"
listen = "127.0.0.1:0"
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = { lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }
[[provider]]
kind = "sim"
offers = "offers.csv"
speed = 200.0
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
gpus_per_claim = 2
hit_rate = 0.99
miss_cost_usd = 100.0
wait_s = 20
"#;

const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
sim,r,a,h8,on-demand,H100-SXM,8,20,,0
sim,r,b,h8,on-demand,H100-SXM,8,22,,0
";

pub struct Running {
    pub server: Server,
    pub http: Client,
    _stop: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

async fn running() -> Running {
    running_with(CONFIG).await
}

pub async fn running_with(config: &str) -> Running {
    running_in(tempfile::tempdir().expect("temp"), config).await
}

async fn running_in(folder: tempfile::TempDir, config: &str) -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    std::fs::write(folder.path().join("offers.csv"), OFFERS).expect("written");
    std::fs::write(folder.path().join("pilotlight.toml"), config).expect("written");
    let config = Config::read(&folder.path().join("pilotlight.toml")).expect("sensible");
    let (stop, stopped) = watch::channel(false);
    let database = format!("sqlite:{}", folder.path().join("x.db").display());
    let server = start(config, Some(database), false, stopped).await.expect("starts");
    Running { server, http: Client::new(), _stop: stop, _folder: folder }
}

impl Running {
    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.raw(path, body.to_string()).await
    }

    async fn raw(&self, path: &str, body: String) -> (StatusCode, Value) {
        let sent = self.http.post(format!("{}{path}", self.server.url)).body(body).send().await.expect("answers");
        (sent.status(), sent.json().await.unwrap_or_default())
    }

    pub async fn get(&self, path: &str) -> Value {
        let got = self.http.get(format!("{}{path}", self.server.url)).send().await.expect("answers");
        assert!(got.status().is_success(), "{path}: {}", got.status());
        got.json().await.expect("JSON")
    }
}

/// A claim finds nothing, the planner hears of it, a node is launched, boots, passes the gate, and the claim gets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_makes_the_fleet_grow_and_is_given_back() {
    let run = running().await;
    let ask = json!({ "class": "chat", "holder": "test", "idempotency_key": "k1", "on_empty": "queue" });
    let (status, claim) = run.post("/v1/claims", &ask).await;
    assert_eq!((status, &claim["state"]), (StatusCode::ACCEPTED, &json!("queued")), "{claim}");
    let id = claim["id"].as_str().expect("text").to_owned();
    let granted = run.get(&format!("/v1/claims/{id}?wait_s=20")).await;
    assert_eq!(granted["state"], "granted", "{granted}");
    assert_eq!(granted["gpus"][0]["indices"], json!([0, 1]));
    let (status, again) = run.post("/v1/claims", &ask).await;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &json!(id)), "a retry gets the same claim");
    let (status, _) = run.post("/v1/claims", &json!({ "class": "chat", "idempotency_key": "k1" })).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let (status, active) = run.post(&format!("/v1/claims/{id}/heartbeat"), &json!({ "lease_s": 60 })).await;
    assert_eq!((status, &active["state"]), (StatusCode::OK, &json!("active")));
    for _ in 0..2 {
        let (status, released) = run.post(&format!("/v1/claims/{id}/release"), &json!({})).await;
        assert_eq!((status, &released["state"]), (StatusCode::OK, &json!("released")), "twice is once");
    }
    let (status, ended) = run.post(&format!("/v1/claims/{id}/heartbeat"), &json!({})).await;
    assert_eq!((status, &ended["code"]), (StatusCode::CONFLICT, &json!("claim-ended")));
    let events = run.get("/v1/events?limit=1000").await;
    let mine = events["items"].as_array().expect("list").iter().filter(|e| e["subject"] == json!(id));
    let life: Vec<&str> = mine.filter_map(|e| e["to"].as_str()).collect();
    assert_eq!(life, ["queued", "granted", "active", "released"]);
    let plan = run.get("/v1/plan").await;
    assert!(plan["epoch"].as_u64() >= Some(1) && plan["acted"] == "yes", "{plan}");
    let text = run.http.get(format!("{}/metrics", run.server.url)).send().await.expect("answers").text().await;
    let text = text.expect("text");
    for name in ["pilotlight_claims_total", "pilotlight_nodes", "pilotlight_claim_duration_seconds_bucket"] {
        assert!(text.contains(name), "{name} is missing");
    }
    run.server.app.book().expect("read").breaches().is_empty().then_some(()).expect("sound");
}

/// Paused, nothing is launched; and the fleet grows again after that.
#[tokio::test(flavor = "multi_thread")]
async fn paused_means_that_nothing_is_bought() {
    let run = running().await;
    let (status, loops) = run.post("/v1/pause", &json!({})).await;
    assert_eq!((status, &loops["paused"]), (StatusCode::OK, &json!(true)));
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 });
    let (_, claim) = run.post("/v1/claims", &ask).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(run.get("/v1/nodes").await["items"], json!([]));
    assert_eq!(run.get("/v1/plan").await["acted"], "paused", "plans are made and shown");
    run.post("/v1/resume", &json!({})).await;
    let id = claim["id"].as_str().expect("text");
    let granted = run.get(&format!("/v1/claims/{id}?wait_s=20")).await;
    assert_eq!(granted["state"], "granted", "{granted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_requests_get_an_answer_and_change_nothing() {
    let run = running().await;
    let seq = run.get("/v1/events/last").await["seq"].as_i64();
    for (body, code) in [
        ("{", "invalid-request"),
        (r#"{"class":"chat","colour":"red"}"#, "invalid-request"),
        (r#"{"class":"nobody"}"#, "unknown-class"),
        (r#"{"class":"chat","count":0}"#, "out-of-range"),
        (r#"{"class":"chat","count":1000000}"#, "out-of-range"),
        (r#"{"class":"chat","wait_s":-1}"#, "out-of-range"),
        (r#"{"class":"chat","wait_s":1e300}"#, "out-of-range"),
        (r#"{"class":"chat","lease_s":1e8}"#, "out-of-range"),
        (r#"{"class":"chat","on_empty":"hope"}"#, "invalid-request"),
        (r#"{"class":"chat","answer_within_ms":0}"#, "deadline-passed"),
        (r#"{"class":"chat","on_empty":"fail"}"#, "no-free-gpus"),
    ] {
        let (status, problem) = run.raw("/v1/claims", body.to_owned()).await;
        assert_eq!(problem["code"], code, "{body}: {status} {problem}");
        assert_eq!(problem["status"].as_u64(), Some(u64::from(status.as_u16())));
    }
    let (_, problem) = run.raw("/v1/claims", "x".repeat(300_000)).await;
    assert_eq!(problem["code"], "too-large");
    let long = json!({ "class": "chat", "idempotency_key": "k".repeat(1000) });
    assert_eq!(run.post("/v1/claims", &long).await.1["code"], "out-of-range");
    for id in ["c-1e9", "n-3", "c--1", "c-99999999999999999999"] {
        let (_, problem) = run.post(&format!("/v1/claims/{id}/release"), &json!({})).await;
        assert_eq!(problem["code"], "not-found", "{id}");
    }
    let after = run.get("/v1/events/last").await["seq"].as_i64();
    assert!(after <= seq.map(|s| s + 4), "one failed claim is all that is written: {seq:?} {after:?}");
    assert!(run.server.app.book().expect("read").claims().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_who_edit_one_class_do_not_undo_each_other() {
    let run = running().await;
    let url = format!("{}/v1/classes/chat", run.server.url);
    let read = run.http.get(&url).send().await.expect("answers");
    let version = read.headers()["etag"].to_str().expect("text").to_owned();
    let mut spec = read.json::<Value>().await.expect("JSON")["spec"].clone();
    let put = async |spec: &Value, version: Option<&str>| {
        let request = run.http.put(&url).body(spec.to_string());
        let request = version.map_or(request.try_clone().expect("text"), |v| request.header("if-match", v));
        let answer = request.send().await.expect("answers");
        (answer.status(), answer.json::<Value>().await.unwrap_or_default())
    };
    assert_eq!(put(&spec, None).await.1["code"], "version-needed");
    spec["hit_rate"] = json!(0.9);
    assert_eq!(put(&spec, Some(&version)).await.0, StatusCode::OK);
    spec["hit_rate"] = json!(0.5);
    assert_eq!(put(&spec, Some(&version)).await.1["code"], "edit-crossed");
    assert_eq!(run.get("/v1/classes/chat").await["spec"]["hit_rate"], 0.9);
    spec["hit_rate"] = json!(1.5);
    assert_eq!(put(&spec, Some(&version)).await.1["code"], "out-of-range");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_open_what_their_role_may_do() {
    let run = running().await;
    let store = &run.server.app.store;
    for (name, role) in [("v", "viewer"), ("s", "scheduler"), ("o", "operator")] {
        let row = TokenRow { name: name.into(), role: role.into(), hash: hash_of(name) };
        run.server.app.ledger.record(Write::PutToken(row), None).await.expect("written");
    }
    run.server.app.tokens.set(&store.tokens().await.expect("read"), true);
    let call = async |secret: &str, path: &str| {
        let request = run.http.post(format!("{}{path}", run.server.url)).bearer_auth(secret);
        request.body(r#"{"class":"chat","on_empty":"fail"}"#).send().await.expect("answers").status()
    };
    assert_eq!(run.post("/v1/pause", &json!({})).await.0, StatusCode::UNAUTHORIZED, "no longer open to all");
    assert_eq!(call("guess", "/v1/claims").await, StatusCode::UNAUTHORIZED);
    assert_eq!(call("v", "/v1/claims").await, StatusCode::FORBIDDEN);
    assert_eq!(call("s", "/v1/claims").await, StatusCode::SERVICE_UNAVAILABLE, "allowed, and nothing is free");
    assert_eq!(call("s", "/v1/pause").await, StatusCode::FORBIDDEN);
    assert_eq!(call("o", "/v1/pause").await, StatusCode::OK);
    run.server.app.ledger.record(Write::RevokeToken("o".into()), None).await.expect("written");
    run.server.app.tokens.set(&store.tokens().await.expect("read"), true);
    assert_eq!(call("o", "/v1/resume").await, StatusCode::UNAUTHORIZED);
}

/// An agent without the secret of a launch, or of another one, changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_speaks_for_its_own_launch_only() {
    let run = running().await;
    let (_, claim) = run.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    let id = claim["id"].as_str().expect("text");
    run.get(&format!("/v1/claims/{id}?wait_s=20")).await;
    let node = run.get("/v1/nodes").await["items"][0].clone();
    let instance = node["instance"].as_str().expect("launched").to_owned();
    let body = json!({ "boot": "b", "checks": "passive", "verdict": "fail", "reason": "it lies" });
    for secret in ["guess", "plj_0000"] {
        let request = run.http.post(format!("{}/v1/agents/{instance}/report", run.server.url)).bearer_auth(secret);
        let status = request.body(body.to_string()).send().await.expect("answers").status();
        assert_eq!(status, StatusCode::FORBIDDEN);
    }
    let id = run.server.app.book().expect("read").nodes().values().next().map(|n| n.id).expect("launched");
    let token = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let request = run.http.post(format!("{}/v1/agents/{instance}/report", run.server.url)).bearer_auth(token);
    let answer = request.body(body.to_string()).send().await.expect("answers");
    assert_eq!(answer.status(), StatusCode::CONFLICT, "a report of another boot changes nothing");
    assert_ne!(run.get(&format!("/v1/nodes/{}", node["id"].as_str().expect("text"))).await["state"], "quarantined");
}

/// A host registers once with what its launch was given; its token is its own from then on, and reports count once.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_secret_registers_once_and_reports_count_once() {
    // The simulated cloud's own agents stay out of it: its hosts take an hour to start.
    let run = running_with(&CONFIG.replace("speed = 200.0", "speed = 1.0")).await;
    run.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    let launched = || {
        let book = run.server.app.book().expect("read");
        book.nodes().values().find_map(|n| Some((n.id, n.instance.clone()?, n.intent?)))
    };
    let (id, instance, intent) = loop {
        match launched() {
            Some(found) => break found,
            None => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let secret = join_secret(&run.server.app.join_key, &run.server.app.book().expect("read").launch_token(intent));
    let call = async |path: &str, secret: &str, body: Value| {
        let request = run.http.post(format!("{}{path}", run.server.url)).bearer_auth(secret).body(body.to_string());
        let answer = request.send().await.expect("answers");
        (answer.status(), answer.json::<Value>().await.expect("JSON"))
    };
    let register = |boot: &str| json!({ "instance": instance, "boot": boot, "gpus": 8 });
    for (protocol, mend) in [(0, "update the agent"), (PROTOCOL + 1, "update the server")] {
        let host = json!({ "instance": instance, "boot": "b1", "gpus": 8, "protocol": protocol });
        let (status, refused) = call("/v1/agents/register", &secret, host).await;
        assert_eq!((status, &refused["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("agent-version")));
        assert!(refused["detail"].as_str().is_some_and(|d| d.contains(mend)), "{refused}");
    }
    let (status, told) = call("/v1/agents/register", &secret, register("b1")).await;
    assert_eq!((status, &told["state"]), (StatusCode::OK, &json!("checking")), "{told}");
    let token = told["token"].as_str().expect("its own").to_owned();
    let (status, _) = call("/v1/agents/register", &secret, register("b1")).await;
    assert_eq!(status, StatusCode::OK, "the answer may have been lost");
    let (status, refused) = call("/v1/agents/register", &secret, register("b2")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "it is used: {refused}");
    let report = format!("/v1/agents/{instance}/report");
    let gate = |seq: u64| json!({ "boot": "b1", "seq": seq, "checks": "gate", "verdict": "pass" });
    assert_eq!(call(&report, &secret, gate(1)).await.0, StatusCode::FORBIDDEN, "it registers, and nothing else");
    let mut forged = token.clone();
    forged.replace_range(4..5, "9");
    assert_eq!(call(&report, &forged, gate(1)).await.0, StatusCode::FORBIDDEN);
    let old = agent_token(&run.server.app.join_key, id, run.server.app.now_ms() - 8 * 86_400_000);
    assert_eq!(call(&report, &old, gate(1)).await.0, StatusCode::FORBIDDEN, "a week is its life");
    for _ in 0..2 {
        let (status, told) = call(&report, &token, gate(1)).await;
        assert_eq!((status, &told["report_seq"]), (StatusCode::OK, &json!(1)), "twice is once: {told}");
        assert_eq!(told["token"], Value::Null, "it is young");
    }
    let (status, _) = call("/v1/agents/register", &secret, register("b1")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "the host has spoken with its token: the secret is used");
    let aged = agent_token(&run.server.app.join_key, id, run.server.app.now_ms() - 2 * 86_400_000);
    let passive = json!({ "boot": "b1", "seq": 2, "checks": "passive", "verdict": "degraded",
        "conditions": [{ "cause": "xid:63", "effect": "reset-at-idle", "raised_at_ms": 0 }] });
    let (status, told) = call(&report, &aged, passive).await;
    assert_eq!(status, StatusCode::OK);
    assert!(told["token"].as_str().is_some_and(|t| t != aged), "after a day it gets another: {told}");
    let node = run.get(&format!("/v1/nodes/n-{id}")).await;
    let claimed_or_mended = node["care"] == "reset";
    assert!(claimed_or_mended, "what its health asks for is shown: {node}");
    let (status, told) = call("/v1/agents/register", &token, register("b2")).await;
    assert_eq!((status, &told["report_seq"]), (StatusCode::OK, &json!(0)), "a reboot: numbers begin anew");
}

async fn put(run: &Running, path: &str, version: Option<&str>, body: &Value) -> (StatusCode, Option<String>, Value) {
    let mut request = run.http.put(format!("{}{path}", run.server.url)).body(body.to_string());
    request = match version {
        Some("*") => request.header("if-none-match", "*"),
        Some(version) => request.header("if-match", version),
        None => request,
    };
    let answer = request.send().await.expect("answers");
    let tag = answer.headers().get("etag").and_then(|v| v.to_str().ok()).map(str::to_owned);
    (answer.status(), tag, answer.json().await.unwrap_or_default())
}

/// A class whose claims would wait longer than any claim may is refused when it is written, not with each claim.
#[tokio::test(flavor = "multi_thread")]
async fn a_class_beyond_the_limits_is_refused() {
    let run = running().await;
    let mut class = run.get("/v1/classes/chat").await["spec"].clone();
    class["wait_s"] = json!(7200.0);
    let (status, _, told) = put(&run, "/v1/classes/chat", Some("\"1\""), &class).await;
    assert_eq!((status, &told["code"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!("out-of-range")), "{told}");
    assert!(told["detail"].as_str().is_some_and(|d| d.contains("wait_ms: 7200000")), "{told}");
    class["wait_s"] = json!(3600.0);
    let (status, _, told) = put(&run, "/v1/classes/chat", Some("\"1\""), &class).await;
    assert_eq!(status, StatusCode::OK, "{told}");
    let folder = tempfile::tempdir().expect("temp");
    let path = folder.path().join("pilotlight.toml");
    std::fs::write(&path, CONFIG.replace("wait_s = 20", "wait_s = 7200")).expect("written");
    let refused = Config::read(&path).expect_err("no claim of it could be made");
    assert!(format!("{refused:#}").contains("class 'chat' is beyond [limits]"), "{refused:#}");
}

/// The guard that was written over the API holds the next plan back, and lets it go when it is lifted.
#[tokio::test(flavor = "multi_thread")]
async fn budgets_are_edited_and_obeyed() {
    let run = running().await;
    let budget = json!({ "spend_guard_usd_per_h": 10.0, "launch_guard_nodes_per_min": 60,
        "quota": [{ "name": "sim", "for": { "provider": "sim" }, "limit_gpus": 64.0 }] });
    assert_eq!(put(&run, "/v1/budget", None, &budget).await.2["code"], "version-needed");
    let (status, version, _) = put(&run, "/v1/budget", Some("\"0\""), &budget).await;
    assert_eq!((status, version.as_deref()), (StatusCode::OK, Some("\"1\"")));
    assert_eq!(put(&run, "/v1/budget", Some("\"0\""), &budget).await.2["code"], "edit-crossed");
    assert_eq!(run.get("/v1/budget").await["quota"][0]["for"]["provider"], "sim");
    let wrong = json!({ "spend_guard_usd_per_h": -1.0 });
    assert_eq!(put(&run, "/v1/budget", Some("\"1\""), &wrong).await.2["code"], "out-of-range");
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 });
    let (_, claim) = run.post("/v1/claims", &ask).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(run.get("/v1/nodes").await["items"], json!([]), "a node costs $20 an hour");
    let loops = run.get("/v1/loops").await.to_string();
    assert!(loops.contains("spend guard"), "it says why: {loops}");
    let open = json!({ "launch_guard_nodes_per_min": 60 });
    assert_eq!(put(&run, "/v1/budget", Some("\"1\""), &open).await.0, StatusCode::OK);
    let id = claim["id"].as_str().expect("text");
    let granted = run.get(&format!("/v1/claims/{id}?wait_s=30")).await;
    assert_eq!(granted["state"], "granted", "{granted}");
    let audit = run.get("/v1/audit").await;
    let done: Vec<&str> =
        audit["items"].as_array().expect("list").iter().filter_map(|a| a["action"].as_str()).collect();
    assert_eq!(done, ["write budget", "write budget"]);
}

/// Nobody claims anything; the fleet grows because somebody said that it will be needed.
#[tokio::test(flavor = "multi_thread")]
async fn declared_demand_is_there_before_it_comes() {
    let run = running().await;
    let now_ms = i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_millis()).expect("small");
    let spec =
        json!({ "class": "chat", "from_ms": now_ms, "until_ms": now_ms + 600_000, "claims": 10.0, "note": "launch" });
    let nobody = json!({ "class": "nobody", "from_ms": 0, "until_ms": 1, "claims": 1.0 });
    assert_eq!(put(&run, "/v1/forecasts/launch", Some("*"), &nobody).await.2["code"], "unknown-class");
    let backwards = json!({ "class": "chat", "from_ms": 2, "until_ms": 1, "claims": 1.0 });
    assert_eq!(put(&run, "/v1/forecasts/launch", Some("*"), &backwards).await.2["code"], "out-of-range");
    let (status, version, _) = put(&run, "/v1/forecasts/launch", Some("*"), &spec).await;
    assert_eq!((status, version.as_deref()), (StatusCode::OK, Some("\"1\"")));
    assert_eq!(run.get("/v1/forecasts").await["items"][0]["name"], "launch");
    // Ten claims of two GPUs each.
    let mut free = 0;
    for _ in 0..100 {
        free = run.get("/v1/classes/chat").await["free_gpus"].as_u64().expect("number");
        if free >= 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(free >= 20, "{free} GPUs are free");
    let gone = run.http.delete(format!("{}/v1/forecasts/launch", run.server.url)).header("if-match", "\"1\"");
    assert_eq!(gone.send().await.expect("answers").status(), StatusCode::NO_CONTENT);
    assert_eq!(run.get("/v1/forecasts").await["items"], json!([]));
}

/// A token that calls too often is told to wait; others are not.
#[tokio::test(flavor = "multi_thread")]
async fn callers_are_slowed_down_one_by_one() {
    let run = running_with(&CONFIG.replace("listen =", "requests_per_s_max = 5\nlisten =")).await;
    let store = &run.server.app.store;
    for name in ["a", "b"] {
        let row = TokenRow { name: name.into(), role: "viewer".into(), hash: hash_of(name) };
        run.server.app.ledger.record(Write::PutToken(row), None).await.expect("written");
    }
    run.server.app.tokens.set(&store.tokens().await.expect("read"), true);
    let call = async |secret: &str| {
        let request = run.http.get(format!("{}/v1/loops", run.server.url)).bearer_auth(secret);
        let answer = request.send().await.expect("answers");
        (answer.status().as_u16(), answer.headers().contains_key("retry-after"))
    };
    let mut answers = Vec::new();
    for _ in 0..30 {
        answers.push(call("a").await);
    }
    let slowed = answers.iter().filter(|a| **a == (429, true)).count();
    assert!((10..=20).contains(&slowed), "ten at once, the rest wait: {answers:?}");
    assert_eq!(call("b").await.0, 200);
    let mut guesses = Vec::new();
    for _ in 0..200 {
        guesses.push(call("guess").await.0);
    }
    assert!(guesses.contains(&401) && guesses.contains(&429), "guessing is slowed down");
}

/// An agent hears of a change as it happens.
#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_what_to_do() {
    let run = running().await;
    let (_, claim) = run.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    let id = claim["id"].as_str().expect("text");
    let granted = run.get(&format!("/v1/claims/{id}?wait_s=20")).await;
    let node = granted["gpus"][0]["node"].as_str().expect("text").to_owned();
    let instance = run.get(&format!("/v1/nodes/{node}")).await["instance"].as_str().expect("text").to_owned();
    let id = node.trim_start_matches("n-").parse().expect("a number");
    let secret = agent_token(&run.server.app.join_key, id, run.server.app.now_ms());
    let desired = async |query: &str| {
        let url = format!("{}/v1/agents/{instance}/desired{query}", run.server.url);
        let answer = run.http.get(url).bearer_auth(&secret).send().await.expect("answers");
        answer.json::<Value>().await.expect("JSON")
    };
    let now = desired("").await;
    assert_eq!(now["health"]["work"], "serve", "{now}");
    let known = format!("?known={}&wait_s=30", now["version"]);
    let waits = desired(&known);
    let drains = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        run.post(&format!("/v1/nodes/{node}/drain"), &json!({ "reason": "test" })).await
    };
    let began = tokio::time::Instant::now();
    let (told, (status, _)) = tokio::join!(waits, drains);
    assert_eq!((status, &told["health"]["work"]), (StatusCode::OK, &json!("drain")), "{told}");
    assert!(began.elapsed() < Duration::from_secs(10), "it did not wait for the end");
    let same = desired(&format!("?known={}&wait_s=0.1", told["version"])).await;
    assert_eq!(same["version"], told["version"]);
    let wrong = run.http.get(format!("{}/v1/agents/{instance}/desired", run.server.url)).bearer_auth("guess");
    assert_eq!(wrong.send().await.expect("answers").status(), StatusCode::FORBIDDEN);
}

/// What people watch is there: the list of names that dashboards may count on.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_their_names() {
    // Forecasts are judged when their moment has come: at the end of this horizon.
    let run = running_with(&CONFIG.replace("[5, 5, 10, 20]", "[1, 1, 1, 1]")).await;
    let (_, claim) = run.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    run.get(&format!("/v1/claims/{}?wait_s=20", claim["id"].as_str().expect("text"))).await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    let text = run.http.get(format!("{}/metrics", run.server.url)).send().await.expect("answers").text().await;
    let text = text.expect("text");
    for name in [
        "claims_total",
        "claim_duration_seconds_bucket",
        "claim_hits",
        "claim_misses",
        "hit_target_ratios",
        "claims_waiting",
        "nodes",
        "gpus_free",
        "idle_gpu_seconds_total",
        "idle_cost_usd_total",
        "miss_cost_usd",
        "launches_total",
        "lead_time_seconds_bucket",
        "supply_estimate_nodes",
        "plan_target_nodes",
        "plan_shadow_price_usd_per_hour",
        "plan_churn_nodes_total",
        "solve_duration_seconds_bucket",
        "plans_total",
        "plan_epoch",
        "forecast_judged_total",
        "forecast_covered_total",
        "forecast_pinball_loss_claims_total",
        "leads",
    ] {
        let there = text
            .lines()
            .any(|l| l.starts_with(&format!("pilotlight_{name}{{")) || l.starts_with(&format!("pilotlight_{name} ")));
        assert!(there, "pilotlight_{name} is missing:\n{text}");
    }
    let idle = text.lines().find_map(|l| l.strip_prefix("pilotlight_idle_cost_usd_total ")).expect("there");
    assert!(idle.parse::<f64>().is_ok_and(|usd| usd > 0.0), "six GPUs were idle: {idle}");
}

/// With a certificate it speaks TLS, HTTP/2 among it, and not to those who do not trust it.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("made");
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let tls = "[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
    let config = format!("{CONFIG}{tls}");
    let folder = tempfile::tempdir().expect("temp");
    std::fs::write(folder.path().join("c.pem"), &certificate).expect("written");
    std::fs::write(folder.path().join("k.pem"), &key).expect("written");
    let run = running_in(folder, &config).await;
    let port = run.server.url.rsplit(':').next().expect("a port");
    assert!(run.server.url.starts_with("https://"));
    let url = format!("https://localhost:{port}/v1/loops");
    let trusted = reqwest::Certificate::from_pem(certificate.as_bytes()).expect("PEM");
    let client = Client::builder().add_root_certificate(trusted).build().expect("built");
    let answer = client.get(&url).send().await.expect("answers");
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, reqwest::Version::HTTP_2));
    assert!(run.http.get(&url).send().await.is_err(), "nobody vouches for it");
    let plain = run.http.get(url.replace("https", "http")).send().await;
    assert!(plain.is_err(), "no plain HTTP beside it");
    assert_eq!(client.get(&url).send().await.expect("answers").status(), StatusCode::OK, "it goes on");
}

/// `docs/openapi.json` is what the server says of itself. `UPDATE_EXPECT=1` writes it anew.
#[test]
fn the_committed_description_is_the_servers() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let now = document();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &now).expect("written");
    }
    let committed = std::fs::read_to_string(&path).expect("docs/openapi.json is there");
    assert!(committed == now, "docs/openapi.json is out of date: UPDATE_EXPECT=1 writes it anew");
    let api: Value = serde_json::from_str(&now).expect("JSON");
    assert!(api["openapi"].as_str().is_some_and(|v| v.starts_with("3.1")));
    let mut names = std::collections::BTreeSet::new();
    for (path, verbs) in api["paths"].as_object().expect("paths") {
        for (verb, operation) in verbs.as_object().expect("verbs") {
            let place = format!("{verb} {path}");
            let name = operation["operationId"].as_str().expect("a name").to_owned();
            assert!(names.insert(name.clone()), "{place}: another operation is called {name}");
            assert!(operation["summary"].is_string() || operation["description"].is_string(), "{place} has no summary");
            for (status, answer) in operation["responses"].as_object().expect("responses") {
                assert!(answer["description"].as_str().is_some_and(|d| !d.is_empty()), "{place} {status}");
            }
        }
    }
}

#[test]
fn every_error_code_has_a_page() {
    for code in Code::ALL {
        let page = code.page();
        assert!(page.starts_with(&format!("# {}\n", code.title())), "{}", code.name());
        assert!(page.contains(&format!("Code: `{}`", code.name())) && page.contains("## What to do"));
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors");
    let pages = std::fs::read_dir(folder).expect("there").count();
    assert_eq!(pages, Code::ALL.len(), "a page without a code");
}
