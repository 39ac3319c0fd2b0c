//! Calls of the control plane.

use std::sync::Arc;
use std::time::Duration;

use protocol::agent::{Desired, HealthReport, PROTOCOL, Register, Registered};
use protocol::staging::StagingReport;
use protocol::starts::StartsReport;
use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;
use ureq::tls::{Certificate, RootCerts, TlsConfig, parse_pem};

use super::config::Config;

/// Longest time of a call, besides that which it waits on purpose.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// A call that did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error("the control plane is not reachable")]
    Unreachable(#[source] Box<ureq::Error>),
    /// It says no.
    #[error("the control plane refuses: {status}: {detail}")]
    Refused {
        /// The status.
        status: u16,
        /// Its words.
        detail: String,
    },
    /// It says something else than what was asked.
    #[error("the control plane answers nonsense: {0}")]
    Nonsense(String),
}

impl ClientError {
    /// Whether the secret is not taken any more.
    #[must_use]
    pub fn is_stranger(&self) -> bool {
        matches!(self, Self::Refused { status: 401 | 403, .. })
    }
}

/// The control plane, seen from one host.
#[derive(Debug, Clone)]
pub struct Client {
    http: ureq::Agent,
    url: String,
    instance: String,
}

impl Client {
    /// Of the control plane of a configuration.
    ///
    /// # Errors
    /// Its certificates do not read.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let mut tls =
            TlsConfig::builder().unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if let Some(path) = &config.join.ca {
            let pem = std::fs::read(path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
            let read = parse_pem(&pem).filter_map(|item| match item {
                Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            });
            let roots: Vec<Certificate<'static>> = read.collect();
            anyhow::ensure!(!roots.is_empty(), "{} has no certificate", path.display());
            tls = tls.root_certs(RootCerts::new_with_certs(&roots));
        }
        let config_of_calls = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("pilotlight-agent/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls.build());
        Ok(Self {
            http: config_of_calls.build().into(),
            url: config.join.url.trim_end_matches('/').to_owned(),
            instance: config.instance.clone(),
        })
    }

    /// Registers, with the join secret or with the token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn register(&self, secret: &str, boot: &str, gpus: u32) -> Result<Registered, ClientError> {
        let body = Register { instance: self.instance.clone(), boot: boot.to_owned(), gpus, protocol: PROTOCOL };
        self.post("/v1/agents/register", secret, &body)
    }

    /// Reports.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn report(&self, token: &str, report: &HealthReport) -> Result<Registered, ClientError> {
        self.post(&format!("/v1/agents/{}/report", self.instance), token, report)
    }

    /// Says which snapshots the host has.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn staged(&self, token: &str, report: &StagingReport) -> Result<Registered, ClientError> {
        self.post(&format!("/v1/agents/{}/staged", self.instance), token, report)
    }

    /// Says how far it has come with what it brings up for claims.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn started(&self, token: &str, report: &StartsReport) -> Result<Registered, ClientError> {
        self.post(&format!("/v1/agents/{}/started", self.instance), token, report)
    }

    /// The desired state, as soon as it is another than that of `known`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn desired(&self, token: &str, known: Option<i64>, wait: Duration) -> Result<Desired, ClientError> {
        let known = known.map_or_else(String::new, |v| format!("&known={v}"));
        let url = format!("{}/v1/agents/{}/desired?wait_s={}{known}", self.url, self.instance, wait.as_secs());
        let request = self.http.get(url).header("authorization", format!("Bearer {token}"));
        answer(request.config().timeout_global(Some(TIMEOUT + wait)).build().call())
    }

    fn post<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        secret: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let text = serde_json::to_string(body).map_err(|e| ClientError::Nonsense(e.to_string()))?;
        let request = self.http.post(format!("{}{path}", self.url)).header("authorization", format!("Bearer {secret}"));
        answer(request.header("content-type", "application/json").send(text))
    }
}

fn answer<T: for<'de> Deserialize<'de>>(
    answered: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<T, ClientError> {
    let mut response = answered.map_err(|e| ClientError::Unreachable(Box::new(e)))?;
    let status = response.status();
    let read = response.body_mut().with_config().limit(ANSWER_MAX).read_to_string();
    let text = read.map_err(|e| ClientError::Nonsense(e.to_string()))?;
    if status != StatusCode::OK {
        let said = serde_json::from_str::<serde_json::Value>(&text).ok();
        let detail = said.and_then(|p| Some(p.get("detail")?.as_str()?.to_owned())).unwrap_or_default();
        let detail = detail.chars().take(300).collect();
        return Err(ClientError::Refused { status: status.as_u16(), detail });
    }
    serde_json::from_str(&text).map_err(|e| ClientError::Nonsense(e.to_string()))
}
