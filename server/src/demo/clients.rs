//! Clients that claim, use for a while, and release.

use std::time::Duration;

use axum::http::{Method, Request, StatusCode};
use fleet::rng::Rng;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::Caller;
use crate::config::DemoPart;

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
        tokio::spawn(one(api.clone(), class, format!("demo-{number}"), Duration::from_secs_f64(life_s.min(3600.0))));
    }
}

async fn one(api: Caller, class: String, holder: String, life: Duration) {
    let ask = json!({ "class": class, "holder": holder, "on_empty": "queue", "wait_s": 120.0 });
    let (status, claim) = api.post("/v1/claims", &ask).await;
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
            let claim: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            match claim.get("state").and_then(Value::as_str) {
                Some("queued") => {}
                Some("granted" | "active") => break,
                _ => return,
            }
        }
    }
    let beat = json!({ "lease_s": life.as_secs_f64() + 60.0 });
    api.post(&format!("/v1/claims/{id}/heartbeat"), &beat).await;
    tokio::time::sleep(life).await;
    api.post(&format!("/v1/claims/{id}/release"), &json!({})).await;
}
