//! Calls of the control plane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use health::Verdict;
use health::condition::Condition;
use health::gate::Scope;
use serde::{Deserialize, Serialize};
use serde_json::json;
use ureq::http::StatusCode;
use ureq::tls::{Certificate, RootCerts, TlsConfig, parse_pem};

use super::config::Config;
use super::state::{Undiagnosed, Unreported};

/// Longest time of a call, besides that which it waits on purpose.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer, bytes.
const ANSWER_MAX: u64 = 64 << 10;
/// Conditions of one report; the control plane takes as many.
const CONDITIONS_MAX: usize = 1000;

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

/// What the agent is told of its node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Told {
    /// State of the node.
    pub state: String,
    /// Seconds between heartbeats.
    pub heartbeat_s: u32,
    /// The host's own token, where it is new.
    pub token: Option<String>,
    /// Number of the last report that counted.
    pub report_seq: u64,
}

/// What the agent is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Run the gate and report it.
    Gate,
    /// Watch.
    Serve,
    /// Watch; workloads end.
    Drain,
    /// Run diagnostics, and stop them when this changes.
    Diagnose,
    /// Reset or reboot, and run the gate.
    Repair,
    /// Keep the evidence.
    Hold,
    /// The host is ended.
    End,
}

/// The desired state.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Desired {
    /// What to do.
    pub work: Work,
    /// For a repair: `reset` or `reboot`.
    pub care: Option<String>,
    /// For diagnostics: what is run.
    pub tests: Option<String>,
    /// For a gate: how much of it.
    #[serde(default)]
    pub scope: Scope,
    /// For a gate: what healthy hosts of its kind have been measured at.
    #[serde(default)]
    pub learned: BTreeMap<String, f64>,
    /// Changes with the state.
    pub version: i64,
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
    pub fn register(&self, secret: &str, boot: &str, gpus: u32) -> Result<Told, ClientError> {
        let body = json!({ "instance": self.instance, "boot": boot, "gpus": gpus });
        self.post("/v1/agents/register", secret, &body)
    }

    /// A heartbeat: all that is wrong now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn report_passive<'a>(
        &self,
        token: &str,
        (boot, seq): (&str, u64),
        verdict: Verdict,
        reason: &str,
        conditions: impl Iterator<Item = &'a Condition>,
    ) -> Result<Told, ClientError> {
        let mut worst: Vec<&Condition> = conditions.collect();
        worst.sort_by_key(|c| (c.shadow, std::cmp::Reverse(c.effect)));
        let view = |c: &&Condition| {
            json!({
                "cause": c.cause, "gpu": c.gpu, "effect": c.effect, "shadow": c.shadow,
                "raised_at_ms": c.raised_at_ms, "text": c.text,
            })
        };
        let conditions: Vec<_> = worst.iter().take(CONDITIONS_MAX).map(view).collect();
        let body = json!({
            "boot": boot, "seq": seq, "checks": "passive", "verdict": verdict, "reason": reason, "conditions": conditions,
        });
        self.post(&format!("/v1/agents/{}/report", self.instance), token, &body)
    }

    /// What the gate said.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn report_gate(&self, token: &str, (boot, seq): (&str, u64), gate: &Unreported) -> Result<Told, ClientError> {
        let Unreported { verdict, mend, reason, serials, driver, image, domain, version, evidence, .. } = gate;
        let body = json!({
            "boot": boot, "seq": seq, "checks": "gate", "verdict": verdict, "mend": mend, "reason": reason,
            "serials": serials, "driver": driver, "version": version, "image": image, "domain": domain,
            "evidence": evidence,
        });
        self.post(&format!("/v1/agents/{}/report", self.instance), token, &body)
    }

    /// What diagnostics said.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn report_diagnosis(
        &self,
        token: &str,
        (boot, seq): (&str, u64),
        diagnosis: &Undiagnosed,
    ) -> Result<Told, ClientError> {
        let Undiagnosed { tests, verdict, action, reason, error, yield_s, serials, evidence, .. } = diagnosis;
        let body = json!({
            "boot": boot, "seq": seq, "checks": "diagnosis", "verdict": verdict, "reason": reason, "serials": serials,
            "evidence": evidence,
            "diagnosis": { "tests": tests, "action": action, "error": error, "yield_s": yield_s },
        });
        self.post(&format!("/v1/agents/{}/report", self.instance), token, &body)
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
        body: &serde_json::Value,
    ) -> Result<T, ClientError> {
        let request = self.http.post(format!("{}{path}", self.url)).header("authorization", format!("Bearer {secret}"));
        answer(request.header("content-type", "application/json").send(body.to_string()))
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
