//! Keeps a claim: beats while a person, or a command, has need of its GPUs, and gives it back after that.

use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::{Client, Refused, text};
use server::api::Code;

/// A command that was told to end has this time before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// A heartbeat that was not answered is sent again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// Exit code where the claim was lost under the command: a failure that may pass (`EX_TEMPFAIL` of sysexits.h).
const LOST: u8 = 75;

/// A person's wish to end: Ctrl-C, or SIGTERM.
pub struct Ends {
    interrupt: Signal,
    terminate: Signal,
}

impl Ends {
    /// From now on signals are heard here.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> anyhow::Result<Self> {
        let (interrupt, terminate) = (SignalKind::interrupt(), SignalKind::terminate());
        Ok(Self { interrupt: signal(interrupt)?, terminate: signal(terminate)? })
    }

    /// Waits for one.
    pub async fn wished(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What became of a claim while it was kept.
enum Lost {
    /// Others need its GPUs: it has until its lease ends.
    CalledBack,
    /// It has ended.
    Ended(String),
}

/// Beats until the claim is lost: three times a lease, and again soon where the server does not answer.
async fn beat(client: &Client, claim: &Value) -> anyhow::Result<Lost> {
    let path = format!("/v1/claims/{}/heartbeat", text(claim, "id"));
    loop {
        let began = Instant::now();
        let pause = match client.post(&path, &json!({})).await {
            Ok(kept) if !kept["called_back_at_ms"].is_null() => return Ok(Lost::CalledBack),
            Ok(kept) => pause_of(&kept),
            Err(error) if Refused::is(&error, Code::ClaimEnded) || Refused::is(&error, Code::NotFound) => {
                return Ok(Lost::Ended(error.to_string()));
            }
            Err(error) if error.is::<Refused>() && !Refused::may_pass(&error) => return Err(error),
            Err(error) => {
                eprintln!("no heartbeat, trying again: {error:#}");
                AGAIN
            }
        };
        tokio::time::sleep(pause.saturating_sub(began.elapsed())).await;
    }
}

/// A third of what is left of the lease.
fn pause_of(claim: &Value) -> Duration {
    let left_ms = claim["lease_until_ms"].as_i64().unwrap_or(0) - crate::output::now_ms();
    // By this machine's clock, which may be off: never less than a moment, nor more than shortest leases allow for long.
    Duration::from_millis(u64::try_from(left_ms / 3).unwrap_or(0)).clamp(AGAIN, Duration::from_secs(20))
}

/// Gives a claim back; one that has ended already is no error.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub async fn release(client: &Client, claim: &Value) -> anyhow::Result<()> {
    let id = text(claim, "id");
    match client.post(&format!("/v1/claims/{id}/release"), &json!({})).await {
        Ok(_) => eprintln!("{id} is given back"),
        Err(error) if Refused::is(&error, Code::ClaimEnded) => {}
        Err(error) => return Err(error.context(format!("{id} could not be given back; its lease ends by itself"))),
    }
    Ok(())
}

/// Keeps a claim until a person ends it.
///
/// # Errors
/// The claim was lost, or the server refuses.
pub async fn until_ended(client: &Client, claim: &Value, ends: &mut Ends) -> anyhow::Result<ExitCode> {
    eprintln!("kept until Ctrl-C");
    let lost = tokio::select! {
        lost = beat(client, claim) => lost?,
        () = ends.wished() => {
            release(client, claim).await?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    match lost {
        Lost::CalledBack => {
            eprintln!("others need its GPUs");
            release(client, claim).await?;
            Ok(ExitCode::from(LOST))
        }
        Lost::Ended(why) => bail!("the claim is lost: {why}"),
    }
}

/// Runs a command while the claim is kept; gives it back when the command has ended, and ends as it did. A command whose claim
/// is lost or called back is told to end.
///
/// # Errors
/// The command does not start, or the server refuses.
pub async fn run(client: &Client, claim: &Value, command: &[String], ends: &mut Ends) -> anyhow::Result<ExitCode> {
    let started = spawn(claim, command);
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            release(client, claim).await?;
            return Err(error);
        }
    };
    let mut lost = false;
    let status = tokio::select! {
        status = child.wait() => status?,
        said = beat(client, claim) => {
            lost = true;
            match said {
                Ok(Lost::CalledBack) => eprintln!("others need the GPUs of {}: the command is told to end", text(claim, "id")),
                Ok(Lost::Ended(why)) => eprintln!("the claim is lost, the command is told to end: {why}"),
                Err(error) => eprintln!("the claim cannot be kept, the command is told to end: {error:#}"),
            }
            end(&mut child).await?
        }
        () = ends.wished() => end_and_beat(client, claim, &mut child).await?,
    };
    release(client, claim).await?;
    Ok(if lost { ExitCode::from(LOST) } else { code_of(status) })
}

fn spawn(claim: &Value, command: &[String]) -> anyhow::Result<Child> {
    let [program, arguments @ ..] = command else { bail!("name a command after --") };
    let parts = || claim["gpus"].as_array().into_iter().flatten();
    let list = |of: &dyn Fn(&Value) -> String| parts().map(of).collect::<Vec<_>>().join(",");
    let indices = |part: &Value| {
        let numbers = part["indices"].as_array().into_iter().flatten();
        numbers.map(Value::to_string).collect::<Vec<_>>().join("+")
    };
    let mut starting = Command::new(program);
    starting.args(arguments).kill_on_drop(true);
    starting.env("PILOTLIGHT_CLAIM", text(claim, "id")).env("PILOTLIGHT_GPUS", claim["gpus"].to_string());
    starting.env("PILOTLIGHT_NODES", list(&|part| text(part, "node")));
    starting.env("PILOTLIGHT_INSTANCES", list(&|part| text(part, "instance")));
    starting.env("PILOTLIGHT_GPU_INDICES", list(&indices));
    starting.spawn().with_context(|| format!("cannot run '{program}'"))
}

/// Ends a command while its claim is kept: what it has to save needs the GPUs.
async fn end_and_beat(client: &Client, claim: &Value, child: &mut Child) -> anyhow::Result<ExitStatus> {
    tokio::select! {
        status = end(child) => status,
        // Lost or not, the command has been told.
        _ = async { beat(client, claim).await.ok(); std::future::pending::<()>().await } => bail!("never"),
    }
}

/// Tells a command to end, and kills one that does not.
async fn end(child: &mut Child) -> anyhow::Result<ExitStatus> {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
        // One that has ended meanwhile needs no signal.
        rustix::process::kill_process(id, rustix::process::Signal::TERM).ok();
    }
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return Ok(status?);
    }
    eprintln!("the command did not end within {} s and is killed", GRACE.as_secs());
    child.kill().await?;
    Ok(child.wait().await?)
}

/// As a shell says it: 128 and the signal where one ended it.
fn code_of(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
