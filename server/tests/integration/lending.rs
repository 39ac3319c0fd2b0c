//! Idle GPUs that are lent, as schedulers meet it.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::api::{CONFIG, running_with};

/// Idle GPUs are lent, and come back when another claim needs them: who borrows hears of it while it waits for that.
#[tokio::test(flavor = "multi_thread")]
async fn borrowed_gpus_are_called_back() {
    let borrowers = r#"
[[class]]
name = "finetune"
gpus = [{ model = "H100-SXM" }]
gpus_per_claim = 2
hit_rate = 0
borrows_usd_per_gpu_h = 0.9
wait_s = 600
[limits]
call_back_ms = 1500
"#;
    let run = running_with(&format!("{CONFIG}{borrowers}")).await;
    let granted = async |class: &str| {
        let (_, claim) = run.post("/v1/claims", &json!({ "class": class, "on_empty": "queue" })).await;
        let id = claim["id"].as_str().expect("a claim").to_owned();
        let claim = run.get(&format!("/v1/claims/{id}?wait_s=30")).await;
        assert_eq!(claim["state"], "granted", "{claim}");
        run.post(&format!("/v1/claims/{id}/heartbeat"), &json!({})).await;
        claim
    };
    assert_eq!(granted("chat").await["borrowed"], false);
    // All that is free.
    let mut waits = tokio::task::JoinSet::new();
    loop {
        let (status, claim) = run.post("/v1/claims", &json!({ "class": "finetune", "on_empty": "fail" })).await;
        if status != StatusCode::CREATED {
            break;
        }
        assert_eq!(claim["borrowed"], true, "{claim}");
        let id = claim["id"].as_str().expect("a claim");
        run.post(&format!("/v1/claims/{id}/heartbeat"), &json!({})).await;
        let (http, url) = (run.http.clone(), format!("{}/v1/claims/{id}?wait_s=30", run.server.url));
        waits.spawn(async move { http.get(url).send().await.expect("answers").json::<Value>().await.expect("JSON") });
    }
    assert!(waits.len() >= 3, "the rest of a node");
    let metrics = run.http.get(format!("{}/metrics", run.server.url)).send().await.expect("answers");
    let metrics = metrics.text().await.expect("text");
    assert!(!metrics.contains("pilotlight_gpus_lent 0"), "{metrics}");
    let pools = run.get("/v1/pools").await;
    let h100 = pools["items"].as_array().expect("pools").iter().find(|pool| pool["gpu"] == "H100-SXM").expect("one");
    let (used, lent) = (h100["used"].as_u64().expect("GPUs"), h100["lent"].as_u64().expect("GPUs"));
    assert_eq!(lent, 2 * waits.len() as u64, "{h100}");
    assert!(lent < used, "chat has the others: {h100}");
    assert_eq!(granted("chat").await["borrowed"], false);
    let heard = waits.join_next().await.expect("one is called back").expect("answers");
    let called_back_ms = heard["called_back_at_ms"].as_i64().expect("called back");
    assert!(heard["lease_until_ms"].as_i64().is_some_and(|until| until <= called_back_ms + 1500), "{heard}");
}
