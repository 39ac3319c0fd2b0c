//! Clients that claim, use for a while, and release.

use std::time::Duration;

use axum::http::{Method, Request, StatusCode};
use fleet::rng::Rng;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::Caller;
use crate::config::DemoPart;

/// What starts take, seconds, by where the copy lies.
const STARTS_S: [(&str, f64); 3] = [("memory", 2.0), ("disk", 7.0), ("cold", 30.0)];

pub async fn play(api: Caller, demo: DemoPart, classes: Vec<String>, mut stop: watch::Receiver<bool>) {
    let mut rng = Rng::new(7);
    let mut number = 0_usize;
    if classes.is_empty() || demo.claims_per_min.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
        return;
    }
    loop {
        let pause_s = -rng.unit().max(1e-9).ln() * 60.0 / demo.claims_per_min;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(pause_s.min(600.0))) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
        number += 1;
        let class = classes[(rng.unit() * classes.len() as f64) as usize % classes.len()].clone();
        let life_s = -rng.unit().max(1e-9).ln() * demo.claim_mean_s;
        let life = Duration::from_secs_f64(life_s.min(3600.0));
        // From a fifth faster to two fifths slower.
        let slow = rng.between(0.8, 1.4);
        tokio::spawn(one(api.clone(), class, format!("demo-{number}"), (life, slow)));
    }
}

/// What a start takes in this demo, which claims and nobody else knows before: seconds, where something is known of it.
fn start_s(claim: &Value, slow: f64) -> Option<f64> {
    let ready = claim.get("ready")?;
    let from = ready.get("from")?.as_str()?;
    let (_, seconds) = STARTS_S.iter().find(|(tier, _)| *tier == from)?;
    Some(seconds * slow)
}

async fn one(api: Caller, class: String, holder: String, (life, slow): (Duration, f64)) {
    let ask = json!({ "class": class, "holder": holder, "on_empty": "queue", "wait_s": 120.0 });
    let (status, mut claim) = api.post("/v1/claims", &ask).await;
    let Some(id) = claim.get("id").and_then(Value::as_str).map(str::to_owned) else { return };
    if status == StatusCode::ACCEPTED {
        let path = format!("/v1/claims/{id}?wait_s=60");
        for _ in 0..3 {
            let Ok(request) = Request::builder().method(Method::GET).uri(&path).body(axum::body::Body::empty()) else {
                return;
            };
            // Waits until it is granted or has ended.
            let Ok(response) = api.router.clone().oneshot(request).await;
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap_or_default();
            claim = serde_json::from_slice(&bytes).unwrap_or_default();
            match claim.get("state").and_then(Value::as_str) {
                Some("queued") => {}
                Some("granted" | "active") => break,
                _ => return,
            }
        }
    }
    let beat = json!({ "lease_s": life.as_secs_f64() + 60.0 });
    api.post(&format!("/v1/claims/{id}/heartbeat"), &beat).await;
    let start = start_s(&claim, slow);
    if let Some(start_s) = start.filter(|start_s| *start_s < life.as_secs_f64()) {
        tokio::time::sleep(Duration::from_secs_f64(start_s)).await;
        let ready = json!({ "lease_s": life.as_secs_f64() + 60.0, "ready_s": start_s });
        api.post(&format!("/v1/claims/{id}/heartbeat"), &ready).await;
    }
    tokio::time::sleep(life.saturating_sub(Duration::from_secs_f64(start.unwrap_or(0.0)))).await;
    api.post(&format!("/v1/claims/{id}/release"), &json!({})).await;
}
