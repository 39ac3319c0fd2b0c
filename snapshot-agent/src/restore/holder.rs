//! The first process of a workload's own namespace of processes. It does what it is told on its standard input, a line of
//! JSON each, and says what happened on its standard output; whatever ends it ends the workload with it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use serde::{Deserialize, Serialize};

use super::criu::Criu;
use super::engine::{Engine, Outlets};
use super::recipe::Recipe;

/// Numbers of a workload's processes begin here, so that the engine's own, which starts before them, takes none of theirs.
const FIRST_PID: i32 = 10_000;
/// How often ended processes are looked for.
const LOOK: Duration = Duration::from_millis(20);

/// What a holder is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Starts a workload.
    Start(Box<Recipe>),
    /// Writes it to files in a folder and ends it.
    Dump(PathBuf),
    /// Brings one back from files.
    Restore(PathBuf, Outlets),
    /// Sends it a signal.
    Signal(i32),
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// The workload runs.
    Runs(Outlets),
    /// The workload is in the files, and gone.
    Dumped,
    /// It did not work.
    Failed(String),
    /// The workload has ended, with this code or by this signal.
    Ended {
        /// Exit code.
        code: Option<i32>,
        /// Signal.
        signal: Option<i32>,
    },
}

/// Ends of the pipes that its standard output and error lead into, in this process.
struct Pipes {
    out: OwnedFd,
    err: OwnedFd,
}

/// Runs until its orders end.
///
/// # Errors
/// It is not the first process of a namespace.
pub fn hold(criu: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(std::process::id() == 1, "only 'capture' and 'restore' start this");
    close_on_exec()?;
    let engine = Criu::new(criu);
    let (tell, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(std::io::stdin()).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    let mut root = None;
    loop {
        match orders.recv_timeout(LOOK) {
            Ok(line) => {
                let order: Order = serde_json::from_str(&line).context("an order that makes no sense")?;
                say(&obey(&engine, order, &mut root).unwrap_or_else(|error| Said::Failed(format!("{error:#}"))));
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Whoever gave orders is gone, and everything here goes with this process.
            Err(RecvTimeoutError::Disconnected) => return Ok(ExitCode::SUCCESS),
        }
        // Orders and this are done by turns: whatever the engine starts is waited for by the engine.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if root == Some(pid) {
                root = None;
                let status = ExitStatus::from_raw(status.as_raw());
                say(&Said::Ended { code: status.code(), signal: status.signal() });
            }
        }
    }
}

/// What whoever started the agent left open gets into no workload, and into no snapshot.
#[allow(unsafe_code, reason = "the one call that does this has no safe form")]
fn close_on_exec() -> anyhow::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: it closes nothing here, and changes what becomes of descriptors when another program is started alone.
    let done = unsafe { libc::close_range(3, u32::MAX, flags) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()).context("cannot close what is open") }
}

#[allow(clippy::print_stdout, reason = "the agent reads it")]
fn say(said: &Said) {
    let mut out = std::io::stdout().lock();
    // Nobody listens any more: the next look at the orders ends this.
    let _ = writeln!(out, "{}", serde_json::to_string(said).unwrap_or_default()).and_then(|()| out.flush());
}

fn obey(engine: &dyn Engine, order: Order, root: &mut Option<Pid>) -> anyhow::Result<Said> {
    match order {
        Order::Start(recipe) => {
            let pipes = pipes()?;
            *root = Some(start(&recipe, &pipes)?);
            Ok(Said::Runs(outlets(&pipes)?))
        }
        Order::Dump(images) => {
            let known = root.context("no workload runs")?;
            engine.dump(known.as_raw_nonzero().get(), &images)?;
            *root = None;
            // What was written is gone, and its numbers are free again.
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
            Ok(Said::Dumped)
        }
        Order::Restore(images, was) => {
            let pipes = pipes()?;
            let pid = engine.restore(&images, &was, (pipes.out.as_raw_fd(), pipes.err.as_raw_fd()))?;
            *root = Pid::from_raw(pid);
            Ok(Said::Runs(outlets(&pipes)?))
        }
        Order::Signal(number) => {
            let signal = Signal::from_named_raw(number).context("no such signal")?;
            // One that has ended meanwhile needs none.
            if let Some(known) = *root {
                let _ = kill_process(known, signal);
            }
            Ok(Said::Runs(Outlets::default()))
        }
    }
}

/// Pipes whose other ends are passed on to this process's standard error, line by line as they come.
fn pipes() -> anyhow::Result<Pipes> {
    let pipe = || -> anyhow::Result<OwnedFd> {
        // Not closed on exec: engines pass it on by its number.
        let (read, write) = rustix::pipe::pipe().context("no pipe")?;
        rustix::io::fcntl_setfd(&read, rustix::io::FdFlags::CLOEXEC).context("no pipe")?;
        std::thread::spawn(move || {
            let mut from = std::fs::File::from(read);
            let mut bytes = [0; 16 << 10];
            while let Ok(1..) = from.read(&mut bytes).inspect(|n| drop(std::io::stderr().write_all(&bytes[..*n]))) {}
        });
        Ok(write)
    };
    Ok(Pipes { out: pipe()?, err: pipe()? })
}

fn outlets(pipes: &Pipes) -> anyhow::Result<Outlets> {
    let name = |end: &OwnedFd| -> anyhow::Result<String> {
        let link = std::fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd())).context("/proc is not there")?;
        Ok(link.to_string_lossy().into_owned())
    };
    Ok(Outlets { out: name(&pipes.out)?, err: name(&pipes.err)? })
}

fn start(recipe: &Recipe, pipes: &Pipes) -> anyhow::Result<Pid> {
    std::fs::write("/proc/sys/kernel/ns_last_pid", (FIRST_PID - 1).to_string())
        .context("cannot choose process numbers")?;
    // A session of its own: what the agent's terminal does is not its affair, and an engine can write it whole.
    let mut command = Command::new("setsid");
    command.args(&recipe.command).current_dir(&recipe.folder).env_clear();
    for name in ["PATH", "HOME", "LANG"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    command.envs(&recipe.environment).stdin(Stdio::null());
    // Nothing that this process has open gets into the workload but these two ends.
    let end = |fd: &OwnedFd| -> anyhow::Result<Stdio> {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::CLOEXEC).context("no descriptor")?;
        Ok(Stdio::from(fd.try_clone().context("no descriptor")?))
    };
    command.stdout(end(&pipes.out)?).stderr(end(&pipes.err)?);
    let child = command.spawn().with_context(|| format!("cannot start {}", recipe.command[0]))?;
    Pid::from_raw(child.id().cast_signed()).context("it has no number")
}
