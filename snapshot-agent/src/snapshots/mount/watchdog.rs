//! The process that watches the one that serves. If that one ends or hangs, readers get errors from the kernel, and it is
//! mounted again: what the dead one left stays until then, so that nobody sees the folder below.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::signal::unix::{SignalKind, signal};

use super::Options;
use super::table::{ALIVE, FLOOR, is_left_behind, is_mount_point, mounts_at};
use crate::snapshots::host::CacheError;

/// How often the serving process is asked for a name.
const ASK_PERIOD: Duration = Duration::from_secs(2);
/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Beginning of the names of scratch folders; the number of their process follows.
const SCRATCH: &str = "mount-";
/// A floor, an image and an overlay.
const MOUNTS_MAX: usize = 3;
/// Starts within a minute before this gives up.
const STARTS_MAX: usize = 5;

/// Mounts and watches, until somebody unmounts or ends this process.
///
/// # Errors
/// Nothing can be mounted, or what serves ends again and again.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // A folder at which something dead is mounted has no canonical path.
    let folder = std::path::absolute(&options.folder).context("the folder has no path")?;
    while is_left_behind(&folder) {
        eprintln!("{}: what a dead process left mounted is taken away", folder.display());
        rustix::mount::unmount(folder.as_path(), UnmountFlags::DETACH).context("it cannot be taken away")?;
    }
    let folder = fs::canonicalize(&folder)
        .with_context(|| format!("{} is no folder to mount at: make it first", options.folder.display()))?;
    anyhow::ensure!(folder.is_dir(), "{} is no folder to mount at", folder.display());
    anyhow::ensure!(is_mount_point(&folder) == Some(false), "something is mounted at {} already", folder.display());
    let no_cache = |source| CacheError { folder: options.cache.clone(), source };
    fs::create_dir_all(&options.cache).map_err(no_cache)?;
    let cache = fs::canonicalize(&options.cache).context("the cache cannot be found")?;
    sweep(&cache);
    let prefix = format!("{SCRATCH}{}-", std::process::id());
    let scratch = tempfile::Builder::new().prefix(&prefix).tempdir_in(&cache).map_err(no_cache)?;
    let watched =
        Watched { folder, scratch: scratch.path().to_owned(), patience: Duration::from_secs(options.patience_s) };
    floor(&watched.folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let done = runtime.context("cannot start threads")?.block_on(watch(&watched));
    take_away(&watched.folder, &watched.scratch, 0);
    let _ = fs::remove_file(mounted_file(&watched.scratch));
    done
}

/// Takes away what dead processes left in a cache.
fn sweep(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(SCRATCH).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            let _ = rustix::mount::unmount(entry.path().as_path(), UnmountFlags::DETACH);
            drop(fs::remove_dir(entry.path()));
            drop(fs::remove_file(entry.path()));
        }
    }
}

struct Watched {
    folder: PathBuf,
    scratch: PathBuf,
    /// It hangs if it takes longer for an answer.
    patience: Duration,
}

impl Watched {
    /// Starts what serves, with the words that this process was started with.
    fn start(&self) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("this program cannot be found")?;
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).arg("--unwatched").arg("--scratch").arg(&self.scratch);
        command.spawn().context("what serves cannot be started")
    }

    /// A name that is not there, so that the kernel has to ask.
    fn ask(&self, number: u64) -> PathBuf {
        let served = if is_mount_point(&self.scratch) == Some(true) { &self.scratch } else { &self.folder };
        served.join(format!("{ALIVE}{number}"))
    }
}

#[allow(clippy::disallowed_methods, reason = "deadlines are of real time")]
async fn watch(watched: &Watched) -> anyhow::Result<ExitCode> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut starts: Vec<Instant> = Vec::new();
    let mut was_mounted = false;
    loop {
        starts.retain(|start| start.elapsed() < Duration::from_secs(60));
        anyhow::ensure!(starts.len() < STARTS_MAX, "what serves ended {STARTS_MAX} times in a minute");
        // A store that is away for a moment is not the end.
        tokio::time::sleep(Duration::from_secs(2) * starts.len() as u32).await;
        starts.push(Instant::now());
        let _ = fs::remove_file(mounted_file(&watched.scratch));
        let mut child = watched.start()?;
        // What is asked before that is what the last one left.
        let is_up = |child: &Child| {
            fs::read_to_string(mounted_file(&watched.scratch)).is_ok_and(|pid| pid == child.id().to_string())
        };
        let mut ask = tokio::time::interval(ASK_PERIOD);
        let mut number = 0;
        let ended = loop {
            tokio::select! {
                _ = term.recv() => return end(child),
                _ = int.recv() => return end(child),
                _ = tokio::time::sleep(Duration::from_millis(100)) => {
                    was_mounted |= is_up(&child);
                    if let Some(status) = child.try_wait().context("what serves cannot be watched")? {
                        break Some(status);
                    }
                }
                _ = ask.tick() => {
                    number += 1;
                    if is_up(&child) && !answers(&watched.ask(number), watched.patience) {
                        tracing::error!("what serves {} hangs: it is ended, and mounts again", watched.folder.display());
                        child.kill().context("what serves cannot be ended")?;
                        child.wait().context("what serves cannot be ended")?;
                        break None;
                    }
                }
            }
        };
        match ended {
            // Unmounted by somebody.
            Some(status) if status.success() => return Ok(ExitCode::SUCCESS),
            // It has said why.
            Some(_) if !was_mounted => return Ok(ExitCode::FAILURE),
            Some(status) => {
                tracing::error!("what serves {} ended with {status}: it mounts again", watched.folder.display())
            }
            None => {}
        }
    }
}

/// Where the process that serves says that it has mounted, with its number.
fn mounted_file(scratch: &Path) -> PathBuf {
    scratch.with_extension("mounted")
}

/// Says that this process has mounted.
///
/// # Errors
/// The cache cannot be written to.
pub fn has_mounted(scratch: &Path) -> std::io::Result<()> {
    fs::write(mounted_file(scratch), std::process::id().to_string())
}

/// An empty filesystem that takes no writes, below all that is mounted at a folder: between two mounts a write fails, and
/// does not end in the folder below. Where that cannot be, such as for who is not root, it is done without.
fn floor(folder: &Path) {
    let source = format!("{FLOOR}{}", std::process::id());
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    let _ = rustix::mount::mount(source.as_str(), folder, "tmpfs", flags, Some(c"size=4k,mode=555"));
}

/// Takes away what a dead process left mounted, but for so many mounts at the folder.
pub fn take_away(folder: &Path, scratch: &Path, but: usize) {
    for _ in 0..MOUNTS_MAX {
        if mounts_at(folder).is_some_and(|mounts| mounts <= but) {
            break;
        }
        let _ = rustix::mount::unmount(folder, UnmountFlags::DETACH);
    }
    if is_mount_point(scratch) != Some(false) {
        let _ = rustix::mount::unmount(scratch, UnmountFlags::DETACH);
    }
}

/// Asks what serves to end, and waits.
#[allow(clippy::disallowed_methods, reason = "deadlines are of real time")]
fn end(mut child: Child) -> anyhow::Result<ExitCode> {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("what serves cannot be ended")?;
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if child.try_wait().context("what serves cannot be watched")?.is_some() {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().context("what serves cannot be ended")?;
    child.wait().context("what serves cannot be ended")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the kernel gets an answer for a name. The thread that asks is left behind if not: it ends with what it waits for.
fn answers(name: &Path, patience: Duration) -> bool {
    let (tell, told) = mpsc::channel();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let answer = fs::symlink_metadata(&name);
        // No such name is an answer; a connection that is gone is none.
        let _ = tell.send(!answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)));
    });
    told.recv_timeout(patience).unwrap_or(false)
}
