//! What moves when there is no real cloud: simulated hosts with their agents, and clients that claim and release. Both
//! speak to the API as real ones would.

mod clients;
mod hosts;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use providers::SimProvider;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt;

use crate::config::DemoPart;

/// Plays the agents of simulated hosts until `stop` says so.
pub fn play_hosts(router: Router, clouds: Vec<Arc<SimProvider>>, stop: watch::Receiver<bool>) {
    tokio::spawn(hosts::play(Caller { router, secret: None }, clouds, stop));
}

/// Plays clients until `stop` says so.
pub fn play_clients(router: Router, demo: DemoPart, classes: Vec<String>, stop: watch::Receiver<bool>) {
    tokio::spawn(clients::play(Caller { router, secret: None }, demo, classes, stop));
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

    /// The status and the JSON of the answer; `Null` where it has none.
    async fn post(&self, path: &str, body: &impl Serialize) -> (StatusCode, Value) {
        let mut request = Request::builder().method(Method::POST).uri(path);
        if let Some(secret) = &self.secret {
            request = request.header(header::AUTHORIZATION, format!("Bearer {secret}"));
        }
        let text = serde_json::to_string(body).unwrap_or_default();
        let Ok(request) = request.body(Body::from(text)) else { return (StatusCode::BAD_REQUEST, Value::Null) };
        let Ok(response) = self.router.clone().oneshot(request).await;
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.unwrap_or_default();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }
}
