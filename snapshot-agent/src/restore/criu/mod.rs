//! CRIU, started as a command. From 4.2 on: older versions fail on kernels of 2025 and later.

mod zeros;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use snapshots::compatibility::Version;

use super::engine::{Engine, EngineError, Outlets};

const NAME: &str = "criu";
const OLDEST: [u32; 2] = [4, 2];
/// Largest deleted file that a process still holds, bytes: it goes into the images.
const GHOST_LIMIT: &str = "1G";
/// Words of its log that are shown.
const SHOWN_LINES: usize = 4;

/// CRIU.
#[derive(Debug, Clone)]
pub struct Criu {
    program: PathBuf,
}

impl Criu {
    /// The program at a path, or the one that `PATH` has.
    #[must_use]
    pub fn new(program: Option<PathBuf>) -> Self {
        Self { program: program.unwrap_or_else(|| NAME.into()) }
    }

    /// Runs it until it ends. It writes into files: what it started may outlive it and hold the ends of pipes.
    fn run(&self, args: &[&str]) -> std::io::Result<Output> {
        let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let mut command = Command::new(&self.program);
        command.args(args).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?);
        let mut child = command.process_group(0).spawn()?;
        let status = child.wait()?;
        if !status.success() {
            // Whatever ended it leaves nothing behind. Trees that came back have groups of their own.
            let group = Pid::from_child(&child);
            let _ = kill_process_group(group, Signal::KILL);
        }
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes).map(|_| bytes)
        };
        Ok(Output { status, stdout: read(&mut out)?, stderr: read(&mut err)? })
    }

    /// Runs it without the plugins that a host may have: GPUs are not its affair, and one would let processes go on too early.
    fn run_alone(&self, args: &[&str]) -> std::io::Result<Output> {
        let none = tempfile::tempdir()?;
        let folder = none.path().display().to_string();
        self.run(&[args, &["--libdir", &folder]].concat())
    }
}

/// The errors of a log, the first ones: what follows is what they led to.
fn errors(log: &Path, output: &Output) -> String {
    let said = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    // One that comes each time, and harms nothing.
    let harmless = |line: &&str| line.contains("RLIMIT_NOFILE");
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("Error")).filter(|line| !harmless(line)).collect();
    match &lines[..] {
        [] => format!("it ended with {}; its log is {}", output.status, log.display()),
        lines => lines[..lines.len().min(SHOWN_LINES)].iter().map(|line| line.trim()).collect::<Vec<_>>().join("; "),
    }
}

impl Engine for Criu {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<Version, EngineError> {
        let unusable = |why: String| EngineError::Unusable { engine: NAME, why };
        let mend = "install CRIU 4.2 or later, or name it in PILOTLIGHT_CRIU";
        let said = self.run(&["--version"]).map_err(|error| unusable(format!("{error}: {mend}")))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = said.split_once("Version: ").and_then(|(_, rest)| Version::leading(rest.trim()));
        let version = version.ok_or_else(|| unusable(format!("it does not say its version: {mend}")))?;
        if version.0 < OLDEST.to_vec() {
            return Err(unusable(format!("it is {version}: {mend}")));
        }
        let checked = self.run(&["check"]).map_err(|error| unusable(error.to_string()))?;
        if !checked.status.success() {
            return Err(unusable(errors(Path::new("/nonexistent"), &checked)));
        }
        Ok(version)
    }

    fn dump(&self, root: i32, images: &Path) -> Result<(), EngineError> {
        let failed = |why: String| EngineError::Dump { engine: NAME, why };
        let (root, folder) = (root.to_string(), images.display().to_string());
        let args = ["dump", "--tree", &root, "--images-dir", &folder, "--log-file", "dump.log", "-v2"];
        // Connections are closed on the way back: who was at their other end is gone by then.
        let kept = ["--ext-unix-sk", "--tcp-established", "--network-lock", "skip", "--link-remap", "--file-locks"];
        let more = ["--ghost-limit", GHOST_LIMIT, "--manage-cgroups=ignore"];
        let done = self.run_alone(&[&args[..], &kept, &more].concat()).map_err(|error| failed(error.to_string()))?;
        if !done.status.success() {
            return Err(failed(errors(&images.join("dump.log"), &done)));
        }
        zeros::drop_zeros(images)
            .map(drop)
            .map_err(|error| failed(format!("its images are not as they should be: {error:#}")))
    }

    fn restore(&self, images: &Path, was: &Outlets, now: (i32, i32)) -> Result<i32, EngineError> {
        let failed = |why: String| EngineError::Restore { engine: NAME, why };
        // Images may be shared by several restores at once, and may be read-only.
        let work = tempfile::tempdir().map_err(|error| failed(error.to_string()))?;
        let (folder, at) = (images.display().to_string(), work.path().display().to_string());
        let log = work.path().join("restore.log");
        let pid_file = work.path().join("root.pid");
        let pid = pid_file.display().to_string();
        let args = ["restore", "--images-dir", &folder, "--work-dir", &at, "--log-file", "restore.log", "-v2"];
        let kept = ["--restore-detached", "--pidfile", &pid, "--ext-unix-sk", "--tcp-close", "--network-lock", "skip"];
        let more = ["--link-remap", "--file-locks", "--ghost-limit", GHOST_LIMIT, "--manage-cgroups=ignore"];
        let outlets = [(&was.out, now.0), (&was.err, now.1)].map(|(was, now)| format!("fd[{now}]:{was}"));
        let ends = outlets.iter().flat_map(|outlet| ["--inherit-fd", outlet]).collect::<Vec<_>>();
        let done =
            self.run_alone(&[&args[..], &kept, &more, &ends].concat()).map_err(|error| failed(error.to_string()))?;
        if !done.status.success() {
            return Err(failed(errors(&log, &done)));
        }
        let root = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse().ok());
        root.ok_or_else(|| failed("it does not say which process is the root".into()))
    }
}
