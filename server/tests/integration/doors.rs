//! Who is let in from where, and whose claims are whose.

use reqwest::StatusCode;
use serde_json::{Value, json};
use server::store::{TokenRow, Write};
use server::tokens::hash_of;

use crate::api::{CONFIG, Running, running_with};

/// A page of another site, on this machine's browser: by its origin, or under a name of its own that leads here.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_sites_are_not_let_in_while_no_token_is_needed() {
    let run = running_with(CONFIG).await;
    let own = run.server.url.clone();
    let send = async |path: &str, headers: &[(&str, &str)]| {
        let mut request = run.http.post(format!("{}{path}", run.server.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.expect("answers").status()
    };
    assert_eq!(send("/v1/pause", &[]).await, StatusCode::OK, "a tool sends no origin");
    assert_eq!(send("/v1/resume", &[("origin", &own)]).await, StatusCode::OK, "a page of this server");
    for other in
        ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", "http://localhost.evil.example"]
    {
        assert_eq!(send("/v1/pause", &[("origin", other)]).await, StatusCode::FORBIDDEN, "{other}");
    }
    let port = own.rsplit(':').next().expect("a port");
    for host in [format!("evil.example:{port}"), format!("127.0.0.1.evil.example:{port}"), "a b".into()] {
        let status = send("/v1/pause", &[("host", &host)]).await;
        assert!([StatusCode::FORBIDDEN, StatusCode::BAD_REQUEST].contains(&status), "{host}: {status}");
    }
    assert_eq!(send("/v1/resume", &[("host", &format!("localhost:{port}"))]).await, StatusCode::OK);
    let paused = run.get("/v1/loops").await;
    assert!(!paused.to_string().contains("\"paused\":true"), "{paused}");
}

async fn with_tokens(tokens: &[(&str, &str)]) -> Running {
    let run = running_with(CONFIG).await;
    for (name, role) in tokens {
        let token = TokenRow { name: (*name).into(), role: (*role).into(), hash: hash_of(&format!("secret-{name}")) };
        run.server.app.ledger.record(Write::PutToken(token), None).await.expect("written");
    }
    let rows = run.server.app.store.tokens().await.expect("read");
    run.server.app.tokens.set(&rows, false);
    run
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_its_callers_and_the_operators() {
    let run = with_tokens(&[("a", "scheduler"), ("b", "scheduler"), ("op", "operator")]).await;
    let post = async |who: &str, path: &str, body: Value| {
        let sent = run.http.post(format!("{}{path}", run.server.url));
        // The name of the scheme is the same in any case.
        let sent = sent.header("authorization", format!("bearer  secret-{who}")).body(body.to_string());
        let answer = sent.send().await.expect("answers");
        (answer.status(), answer.json::<Value>().await.expect("JSON"))
    };
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 });
    let (status, claim) = post("a", "/v1/claims", ask.clone()).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{claim}");
    let id = claim["id"].as_str().expect("text").to_owned();
    let path = |what: &str| format!("/v1/claims/{id}/{what}");
    let got = run.http.get(format!("{}/v1/claims/{id}?wait_s=30", run.server.url)).bearer_auth("secret-b");
    let got = got.send().await.expect("answers").json::<Value>().await.expect("JSON");
    assert_eq!(got["state"], "granted", "everybody may look: {got}");
    for what in ["heartbeat", "release", "report-unhealthy"] {
        let body = if what == "report-unhealthy" { json!({ "reason": "x" }) } else { json!({}) };
        let (status, said) = post("b", &path(what), body).await;
        assert_eq!((status, &said["code"]), (StatusCode::FORBIDDEN, &json!("forbidden")), "{what}");
    }
    assert_eq!(post("a", &path("heartbeat"), json!({})).await.0, StatusCode::OK);
    assert_eq!(post("op", &path("heartbeat"), json!({})).await.0, StatusCode::OK);
    assert_eq!(post("op", &path("release"), json!({})).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_may_have_less_time() {
    let run = running_with(CONFIG).await;
    let ask = |within: Value| json!({ "class": "chat", "on_empty": "queue", "idempotency_key": "k", "answer_within_ms": within });
    let (_, first) = run.post("/v1/claims", &ask(json!(5000))).await;
    for within in [json!(2000), Value::Null] {
        let (status, again) = run.post("/v1/claims", &ask(within)).await;
        assert_eq!((status, &again["id"]), (StatusCode::OK, &first["id"]), "{again}");
    }
}

/// Edits that cannot work are refused, and a full list can still be edited.
#[tokio::test(flavor = "multi_thread")]
async fn edits_that_cannot_work_are_refused() {
    let run = running_with(CONFIG).await;
    let send = async |method: reqwest::Method, path: &str, header: (&str, &str), body: Value| {
        let request = run.http.request(method, format!("{}{path}", run.server.url)).header(header.0, header.1);
        let answer = request.body(body.to_string()).send().await.expect("answers");
        (answer.status(), answer.json::<Value>().await.unwrap_or_default())
    };
    let new = ("if-none-match", "*");
    for path in ["/v1/classes/nobody", "/v1/forecasts/nobody", "/v1/snapshots/nobody"] {
        let (status, said) = send(reqwest::Method::DELETE, path, new, json!({})).await;
        assert_eq!((status, &said["code"]), (StatusCode::PRECONDITION_REQUIRED, &json!("version-needed")), "{path}");
    }
    let quota =
        |provider: &str| json!({ "quota": [{ "name": "q", "for": { "provider": provider }, "limit_gpus": 8 }] });
    let (status, said) = send(reqwest::Method::PUT, "/v1/budget", new, quota("smi")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{said}");
    assert!(said["detail"].to_string().contains("'q' is for a provider that is not configured"), "{said}");
    let (status, said) = send(reqwest::Method::PUT, "/v1/budget", new, quota("sim")).await;
    assert_eq!(status, StatusCode::OK, "{said}");
    // The plan makes a limit of it that claims are told of.
    let ask = json!({ "class": "chat", "count": 5, "on_empty": "queue" });
    let mut last = (StatusCode::OK, Value::Null);
    for _ in 0..100 {
        last = run.post("/v1/claims", &ask).await;
        if last.0 == StatusCode::UNPROCESSABLE_ENTITY {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(last.1["code"], "never-fits", "{}", last.1);
    assert!(last.1["detail"].to_string().contains("quota 'q' allows 8"), "{}", last.1);
    let spec = json!({ "class": "chat", "from_ms": 1, "until_ms": 2, "claims": 1.0 });
    for i in 0..1000 {
        let body = spec.to_string();
        let key = server::store::DocumentKey::Forecast(format!("f{i}"));
        run.server.app.ledger.edit(key, body, Some(0), None).await.expect("written").expect("new");
    }
    let (status, _) = send(reqwest::Method::PUT, "/v1/forecasts/f7", ("if-match", "\"1\""), spec.clone()).await;
    assert_eq!(status, StatusCode::OK, "one that is there can be edited");
    let (status, _) = send(reqwest::Method::PUT, "/v1/forecasts/another", new, spec).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

/// A claim that fails wakes the planner, and the next finds GPUs.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_fails_wakes_a_plan() {
    let run = running_with(&CONFIG.replace("[planning]\nevery_s = 1", "[planning]\nevery_s = 3600")).await;
    // The first plan has been made, and wants nothing.
    let epoch = async || run.get("/v1/plans?limit=1").await["items"][0]["epoch"].as_u64().unwrap_or(0);
    for _ in 0..100 {
        if epoch().await > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let before = epoch().await;
    let (status, _) = run.post("/v1/claims", &json!({ "class": "chat", "on_empty": "fail" })).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    for _ in 0..50 {
        if epoch().await > before {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("no plan after {before}");
}
