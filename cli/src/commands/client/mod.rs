//! Commands that speak to a running server.

pub mod breakers;
pub mod budget;
pub mod claims;
pub mod classes;
pub mod events;
pub mod fleet;
pub mod forecasts;
pub mod gpus;
mod hold;
pub mod plans;
pub mod rates;
pub mod snapshots;
pub mod status;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use server::api::Code;

use super::Format;

/// Where the server is, and how to print.
#[derive(Debug, Clone, clap::Args)]
pub struct Remote {
    /// Where the server is.
    #[arg(long, env = "PILOTLIGHT_URL", default_value = "http://127.0.0.1:7070", global = true)]
    server: String,
    /// Token; better given by the variable, so that other users of the machine do not see it.
    #[arg(long, env = "PILOTLIGHT_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// Certificate (PEM) of whoever signed the server's, where that is not public.
    #[arg(long, env = "PILOTLIGHT_CA", global = true)]
    ca: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value = "table", global = true)]
    pub output: Format,
}

/// A connection to the server.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    remote: Remote,
}

/// Longest time to an answer; long polls end before.
const TIMEOUT: Duration = Duration::from_secs(75);

impl Client {
    /// Of the arguments.
    ///
    /// # Errors
    /// The certificate does not read.
    pub fn new(remote: &Remote) -> anyhow::Result<Self> {
        // Only the first call of a process installs it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
        if let Some(path) = &remote.ca {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let ca = reqwest::Certificate::from_pem(&pem)
                .with_context(|| format!("{} is no certificate", path.display()))?;
            builder = builder.tls_certs_merge([ca]);
        }
        Ok(Self { http: builder.build()?, remote: remote.clone() })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.remote.server.trim_end_matches('/')));
        match &self.remote.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Response> {
        let url = &self.remote.server;
        let response = request.send().await.with_context(|| {
            format!("start the server with 'pilotlight serve', or set PILOTLIGHT_URL: cannot reach {url}")
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let problem: Value = response.json().await.unwrap_or_default();
        let code = problem.get("code").and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(Refused { code, text: explain(status, &problem) }.into())
    }

    /// Reads something.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(self.request(Method::GET, path).timeout(TIMEOUT)).await?;
        response.json().await.with_context(|| format!("{path}: is the server of the same version?"))
    }

    /// Reads something with its version.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn get_versioned(&self, path: &str) -> anyhow::Result<(Value, String)> {
        let response = self.send(self.request(Method::GET, path).timeout(TIMEOUT)).await?;
        let version = response.headers().get(header::ETAG).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        Ok((response.json().await?, version))
    }

    /// Asks for something.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let response = self.send(self.request(Method::POST, path).timeout(TIMEOUT).json(body)).await?;
        Ok(response.json().await?)
    }

    /// Writes or deletes something from a version.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn edit(&self, path: &str, body: Option<&Value>, version: &str) -> anyhow::Result<()> {
        let method = if body.is_some() { Method::PUT } else { Method::DELETE };
        let request = self.request(method, path).timeout(TIMEOUT);
        let request = match version {
            "" => request.header(header::IF_NONE_MATCH, "*"),
            version => request.header(header::IF_MATCH, version),
        };
        self.send(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await?;
        Ok(())
    }

    /// A stream of events.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn stream(&self, path: &str) -> anyhow::Result<Response> {
        self.send(self.request(Method::GET, path)).await
    }

    /// All pages of a list, up to `most` items.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn all(&self, path: &str, most: usize) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut after = 0;
        let join = if path.contains('?') { '&' } else { '?' };
        while items.len() < most {
            let limit = (most - items.len()).min(1000);
            let mut page: Value = self.get(&format!("{path}{join}after={after}&limit={limit}")).await?;
            if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            match page.get("next").and_then(Value::as_u64) {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(items)
    }
}

/// The server's no.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// Its code, `unknown-class`.
    code: String,
    text: String,
}

impl Refused {
    /// Whether an error is a server's no with this code.
    #[must_use]
    pub fn is(error: &anyhow::Error, code: Code) -> bool {
        error.downcast_ref::<Self>().is_some_and(|refused| refused.code == code.name())
    }

    /// Whether it is a no of this moment: the same may be granted a moment later.
    #[must_use]
    pub fn may_pass(error: &anyhow::Error) -> bool {
        let of_now = |code: &Code| {
            matches!(code.status(), StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
                || code.status().is_server_error()
        };
        Code::ALL.iter().filter(|code| of_now(code)).any(|code| Self::is(error, *code))
    }
}

/// An error that begins with what to do.
fn explain(status: StatusCode, problem: &Value) -> String {
    let text = |key: &str| problem.get(key).and_then(Value::as_str).unwrap_or("");
    let what = if text("detail").is_empty() { status.to_string() } else { text("detail").to_owned() };
    let first = match text("code") {
        "unauthenticated" => "set PILOTLIGHT_TOKEN",
        "forbidden" => "use a token that may do this",
        "no-free-gpus" | "busy" | "queue-full" => "try again in a moment",
        "edit-crossed" => "run the command again, on top of the other edit",
        "unknown-class" => "'pilotlight class list' shows the classes",
        "storage-unavailable" => "look at the server's log",
        _ => return what,
    };
    format!("{first}: {what}")
}

/// Runs a command against the server.
///
/// # Errors
/// What the command returns.
pub fn block_on<T>(remote: &Remote, run: impl AsyncFnOnce(&Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let client = Client::new(remote)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&client))
}

/// Text of a JSON value, without quotes.
fn text(value: &Value, key: &str) -> String {
    match value.get(key) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".into(),
        Some(other) => other.to_string(),
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

/// `3 min` ago, for people.
fn ago(value: &Value, key: &str) -> String {
    match value.get(key).and_then(Value::as_i64) {
        Some(at_ms) => duration(crate::output::now_ms() - at_ms),
        None => "-".into(),
    }
}

/// A length of time in its largest sensible unit.
fn duration(ms: i64) -> String {
    match ms.max(0) / 1000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s @ 7200..=172_799 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Lets the user change a text in their editor.
fn in_editor(text: &str) -> anyhow::Result<String> {
    let file = tempfile::Builder::new().suffix(".toml").tempfile()?;
    std::fs::write(file.path(), text)?;
    let editor = std::env::var("VISUAL").or_else(|_| std::env::var("EDITOR")).unwrap_or_else(|_| "vi".into());
    let ran = std::process::Command::new("sh").arg("-c").arg(format!("{editor} \"$0\"")).arg(file.path()).status();
    match ran {
        Ok(status) if status.success() => Ok(std::fs::read_to_string(file.path())?),
        _ => bail!("set EDITOR, or give the text with --file: '{editor}' did not end well"),
    }
}
