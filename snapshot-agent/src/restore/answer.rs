//! What a workload answers: whether it serves, and whether it is the one that was captured.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::held::Held;
use super::recipe::{Canary, Ready};

/// How often it is asked: what a restored process answers at once is not waited for long.
const ASKED_EVERY: Duration = Duration::from_millis(5);
/// And later, when it takes its time.
const ASKED_LATER: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(2);
/// One question of many takes at most so long.
const ONE_ANSWER: Duration = Duration::from_secs(5);
/// Longest answer that is kept, bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

fn agent(within: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(within)).http_status_as_error(false).build().into()
}

/// Waits until a workload serves.
///
/// # Errors
/// It ends, or does not serve in time, or nobody wants it any more.
#[allow(clippy::disallowed_methods, reason = "a start takes real time")]
pub fn wait_until_ready(held: &mut Held, ready: &Ready, unwanted: &AtomicBool) -> anyhow::Result<()> {
    let (began, agent) = (Instant::now(), agent(ONE_ANSWER));
    loop {
        let last = match agent.get(&ready.url).call() {
            Ok(answer) if answer.status().as_u16() < 300 => return Ok(()),
            Ok(answer) => format!("it answers {}", answer.status()),
            Err(error) => error.to_string(),
        };
        let waited = began.elapsed();
        ensure!(!unwanted.load(Ordering::Relaxed), "nobody wants it any more");
        if waited.as_secs_f64() > ready.within_s {
            bail!("it does not serve at {} within {} s: {last}", ready.url, ready.within_s);
        }
        if let Some(ended) = held.ends_within(if waited < SOON { ASKED_EVERY } else { ASKED_LATER }) {
            bail!("the workload {ended} before it served");
        }
    }
}

/// That nobody serves where a workload is to: another one's answer would be taken for its own.
///
/// # Errors
/// Somebody does.
pub fn nobody_serves(ready: &Ready) -> anyhow::Result<()> {
    let answered = agent(ONE_ANSWER).get(&ready.url).call().is_ok();
    ensure!(
        !answered,
        "something on this host answers at {} already: one workload at a time can have that address",
        ready.url
    );
    Ok(())
}

/// What a workload answers to its canary, as far as it must be the same.
///
/// # Errors
/// It does not answer, or says that it cannot.
pub fn asked(canary: &Canary) -> anyhow::Result<String> {
    let agent = agent(Duration::from_secs_f64(canary.within_s));
    let answer = match &canary.body {
        Some(body) => agent.post(&canary.url).header("content-type", "application/json").send(body.as_bytes()),
        None => agent.get(&canary.url).call(),
    };
    let mut answer = answer.with_context(|| format!("no answer at {}", canary.url))?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let body =
        body.with_context(|| format!("the answer at {} is no text of at most {ANSWER_BYTES_MAX} bytes", canary.url))?;
    ensure!(status.is_success(), "it answers {status} at {}", canary.url);
    if canary.fields.is_empty() {
        return Ok(body);
    }
    let document: Value = serde_json::from_str(&body).context("the answer is no JSON")?;
    let field =
        |pointer: &String| document.pointer(pointer).cloned().with_context(|| format!("the answer has no {pointer}"));
    let fields = canary.fields.iter().map(field).collect::<anyhow::Result<Vec<Value>>>()?;
    serde_json::to_string(&fields).context("the answer cannot be written")
}

/// Runs commands one after the other.
///
/// # Errors
/// One fails.
pub fn run(commands: &[Vec<String>], what: &str) -> anyhow::Result<()> {
    for words in commands {
        let shown = || format!("{what}: '{}'", words.join(" "));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().with_context(shown)?;
        ensure!(status.success(), "{} ended with {status}", shown());
    }
    Ok(())
}
