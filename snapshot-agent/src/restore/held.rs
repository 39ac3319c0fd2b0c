//! A holder, seen from the agent.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::engine::Outlets;
use super::holder::{Order, Said};
use super::recipe::Recipe;

/// How long an engine may take for a tree.
const ENGINE_PATIENCE: Duration = Duration::from_secs(600);
/// How long a holder gets to end when its orders do.
const GRACE_LOOKS: u32 = 20;
const GRACE_LOOK: Duration = Duration::from_millis(10);
/// How long a workload gets to end by itself.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A workload below its holder. Both are gone when this is dropped.
#[derive(Debug)]
pub struct Held {
    holder: Child,
    orders: Option<ChildStdin>,
    said: Receiver<Said>,
    /// Where its output leads, as it knows it.
    pub outlets: Outlets,
}

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal.
    pub signal: Option<i32>,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "ended with code {code}"),
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => write!(f, "ended"),
        }
    }
}

impl Held {
    /// A holder without a workload, in a namespace of processes of its own.
    ///
    /// # Errors
    /// This process may not make one.
    pub fn new(criu: Option<&Path>) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
        command.arg(std::env::current_exe().context("this program has no path")?).arg("hold");
        if let Some(criu) = criu {
            command.arg("--criu").arg(criu);
        }
        let mut holder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("there is no 'unshare'")?;
        let orders = holder.stdin.take();
        let out = holder.stdout.take().context("the holder has no output")?;
        let (tell, said) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Ok(said) = serde_json::from_str(&line)
                    && tell.send(said).is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { holder, orders, said, outlets: Outlets::default() })
    }

    fn tell(&mut self, order: &Order) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().context("the holder is gone")?;
        let line = serde_json::to_string(order).context("an order that cannot be written")?;
        writeln!(orders, "{line}")
            .and_then(|()| orders.flush())
            .context("no namespace of processes can be made: run as root")
    }

    fn ask(&mut self, order: &Order, patience: Duration) -> anyhow::Result<Said> {
        self.tell(order)?;
        match self.said.recv_timeout(patience) {
            Ok(Said::Failed(why)) => bail!("{why}"),
            Ok(Said::Ended { code, signal }) => bail!("the workload {}", Ended { code, signal }),
            Ok(said) => Ok(said),
            Err(RecvTimeoutError::Timeout) => bail!("no answer in {} s", patience.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("no namespace of processes can be made: run as root"),
        }
    }

    fn runs(&mut self, order: &Order) -> anyhow::Result<()> {
        match self.ask(order, ENGINE_PATIENCE)? {
            Said::Runs(outlets) => {
                self.outlets = outlets;
                Ok(())
            }
            other => bail!("the holder says {other:?}"),
        }
    }

    /// Starts a workload.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self, recipe: &Recipe) -> anyhow::Result<()> {
        self.runs(&Order::Start(Box::new(recipe.clone())))
    }

    /// Brings one back.
    ///
    /// # Errors
    /// The engine cannot.
    pub fn restore(&mut self, images: &Path, was: &Outlets) -> anyhow::Result<()> {
        self.runs(&Order::Restore(images.to_owned(), was.clone()))
    }

    /// Writes the workload to files and ends it.
    ///
    /// # Errors
    /// The engine cannot; the workload goes on.
    pub fn dump(&mut self, images: &Path) -> anyhow::Result<()> {
        match self.ask(&Order::Dump(images.to_owned()), ENGINE_PATIENCE)? {
            Said::Dumped => Ok(()),
            other => bail!("the holder says {other:?}"),
        }
    }

    /// Numbers of the workload's processes as this process sees them.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let children = |pid: i32| -> Vec<i32> {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let of_task =
                |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let all: Vec<String> = tasks.map(of_task).collect();
            all.iter().flat_map(|text| text.split_whitespace()).filter_map(|pid| pid.parse().ok()).collect()
        };
        // The holder is the child of what made its namespace.
        let mut left: Vec<i32> = children(self.holder.id().cast_signed()).into_iter().flat_map(children).collect();
        let mut found = Vec::new();
        while let Some(pid) = left.pop() {
            left.extend(children(pid));
            found.push(pid);
        }
        found.sort_unstable();
        found
    }

    /// Ends all processes at once, without a word.
    pub fn kill(&self) -> bool {
        for pid in self.pids() {
            // One that has ended needs none.
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
        let pid = self.holder.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let first = children.split_whitespace().find_map(|child| Pid::from_raw(child.parse().ok()?));
        first.is_some_and(|first| kill_process(first, Signal::KILL).is_ok())
    }

    /// How the workload has ended, if it does within a while.
    pub fn ends_within(&mut self, patience: Duration) -> Option<Ended> {
        match self.said.recv_timeout(patience) {
            Ok(Said::Ended { code, signal }) => Some(Ended { code, signal }),
            // The holder is gone, and everything with it.
            Err(RecvTimeoutError::Disconnected) => Some(Ended { code: None, signal: None }),
            Ok(_) | Err(RecvTimeoutError::Timeout) => None,
        }
    }

    /// Asks the workload to end, and ends it when it does not, or when somebody is in a hurry.
    pub fn end(mut self, hurry: &AtomicBool) -> Option<Ended> {
        const SIGTERM: i32 = 15;
        self.tell(&Order::Signal(SIGTERM)).ok()?;
        let mut left = END_PATIENCE;
        const LOOK: Duration = Duration::from_millis(50);
        while left > Duration::ZERO && !hurry.load(Ordering::Relaxed) {
            if let Some(ended) = self.ends_within(LOOK) {
                return Some(ended);
            }
            left = left.saturating_sub(LOOK);
        }
        None
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.orders.take());
        // It looks for the end of its orders often; one that waits for an engine does not.
        for _ in 0..GRACE_LOOKS {
            if self.holder.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(GRACE_LOOK);
        }
        if !self.kill() {
            let _ = self.holder.kill();
        }
        // The end of a namespace's first process takes all others with it, and is over when they are gone: its parent waits for
        // that, and is waited for. What comes next in the same place finds nothing of them.
        let _ = self.holder.wait();
    }
}

/// Where engines are, if the command line or the environment says so.
#[derive(Debug, Clone, clap::Args)]
pub struct Where {
    /// CRIU, 4.2 or later; without it the one in PATH.
    #[arg(long, env = "PILOTLIGHT_CRIU", value_name = "FILE")]
    pub criu: Option<PathBuf>,
    /// Where the library lies that workloads have preloaded: the same on all hosts, since captured processes have it mapped.
    #[arg(
        long,
        env = "PILOTLIGHT_INTERPOSERS",
        default_value = "/var/lib/pilotlight-agent/interposers",
        value_name = "FOLDER"
    )]
    pub interposers: PathBuf,
}
