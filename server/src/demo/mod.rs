//! What moves when there is no real cloud: simulated hosts with their agents, and clients that claim and release. Both
//! speak to the API as real ones would.

mod clients;
mod hosts;

pub use hosts::Habits;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use fleet::rng::Rng;
use providers::{Clock, SimProvider};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::config::DemoPart;

/// Plays the agents of simulated hosts until `stop` says so.
pub fn play_hosts(
    router: Router,
    clouds: Vec<Arc<SimProvider>>,
    clock: Clock,
    habits: Habits,
    stop: watch::Receiver<bool>,
) {
    tokio::spawn(hosts::play(Caller { router, secret: None }, clouds, clock, habits, stop));
}

/// Plays clients until `stop` says so.
pub fn play_clients(router: Router, demo: DemoPart, classes: Vec<String>, stop: watch::Receiver<bool>) {
    tokio::spawn(clients::play(Caller { router, secret: None }, demo, classes, stop));
}

/// Minutes of past demand that are made up.
pub const PAST_STEPS: i64 = 120;

/// Two hours of demand as the clients of a demo make it: `(class, milliseconds since 1970, claims)` by the minute.
/// Claims that come at random and live for a while are Poisson in number.
#[must_use]
pub fn past(demo: &DemoPart, classes: &[&str], now_ms: i64) -> Vec<(String, i64, f64)> {
    let mut rng = Rng::new(3);
    let mean = demo.claims_per_min * demo.claim_mean_s / 60.0 / classes.len().max(1) as f64;
    let mut rows = Vec::new();
    for minute in (1..=PAST_STEPS).rev() {
        for class in classes {
            // As many as uniform draws multiply to under e^-mean (Knuth).
            let (mut count, mut product) = (-1.0, 1.0);
            while product > (-mean.min(500.0)).exp() {
                product *= rng.unit();
                count += 1.0;
            }
            rows.push(((*class).to_owned(), now_ms / 60_000 * 60_000 - minute * 60_000, count));
        }
    }
    rows
}

/// Calls the API without a socket between.
#[derive(Debug, Clone)]
struct Caller {
    router: Router,
    secret: Option<String>,
}

impl Caller {
    fn with(&self, secret: &str) -> Self {
        Self { router: self.router.clone(), secret: Some(secret.to_owned()) }
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> (StatusCode, Value) {
        self.call(Method::POST, path, serde_json::to_string(body).unwrap_or_default()).await
    }

    async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, String::new()).await.1
    }

    /// The status and the JSON of the answer; `Null` where it has none.
    async fn call(&self, method: Method, path: &str, text: String) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(secret) = &self.secret {
            request = request.header(header::AUTHORIZATION, format!("Bearer {secret}"));
        }
        let Ok(request) = request.body(Body::from(text)) else { return (StatusCode::BAD_REQUEST, Value::Null) };
        let Ok(response) = self.router.clone().oneshot(request).await;
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap_or_default();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}
