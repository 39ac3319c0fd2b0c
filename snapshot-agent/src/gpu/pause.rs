//! Threads of a process that stand still for a moment, as a debugger has them: all but the driver's own and the library's. The
//! end of this process lets them go on.

#![allow(unsafe_code)]

use std::collections::BTreeMap;

use health::gate::{Look, Unseen};
use interposer_protocol::THREAD;

/// Rounds of looking for new threads.
const ROUNDS: usize = 16;
/// Names of the driver's threads begin with this.
const DRIVER: &str = "cuda";

/// Threads that stand still, each with the signal that it was about to get, or 0.
#[derive(Debug)]
pub struct Paused(BTreeMap<i32, i32>);

fn threads(pid: i32) -> Look<Vec<(i32, String)>> {
    let gone = |error: std::io::Error| Unseen::Error(format!("process {pid}: {error}"));
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)?;
    let of = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
    };
    Ok(tasks.flatten().filter_map(of).collect())
}

fn ptrace(request: libc::c_uint, thread: i32, number: i32) -> std::io::Result<()> {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: none of the requests that are made here reads or writes memory of this process.
    let done = unsafe { libc::ptrace(request, thread, nothing, number as usize as *mut libc::c_void) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

impl Paused {
    /// Has all threads of a process stand still but the driver's, the library's, and one more.
    ///
    /// # Errors
    /// It is gone, or somebody else traces it.
    pub fn new(pid: i32, but: Option<i32>) -> Look<Self> {
        let mut paused = Self(BTreeMap::new());
        for _ in 0..ROUNDS {
            let stand = |(thread, name): &(i32, String)| {
                name != THREAD && !name.starts_with(DRIVER) && Some(*thread) != but && !paused.0.contains_key(thread)
            };
            let new: Vec<i32> =
                threads(pid)?.iter().filter(|thread| stand(thread)).map(|(thread, _)| *thread).collect();
            if new.is_empty() {
                return Ok(paused);
            }
            for thread in new {
                paused.add(thread)?;
            }
        }
        Err(Unseen::Error(format!("process {pid} starts threads faster than they can be stopped")))
    }

    fn add(&mut self, thread: i32) -> Look<()> {
        let stopped = ptrace(libc::PTRACE_SEIZE, thread, 0).and_then(|()| {
            self.0.insert(thread, 0);
            ptrace(libc::PTRACE_INTERRUPT, thread, 0)?;
            let mut status = 0;
            // SAFETY: the kernel writes one number.
            let got = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
            if got != thread {
                return Err(std::io::Error::last_os_error());
            }
            // A signal that was on its way stopped it first: it gets it when it goes on.
            if libc::WIFSTOPPED(status) && status >> 16 == 0 {
                self.0.insert(thread, libc::WSTOPSIG(status));
            }
            Ok(())
        });
        match stopped {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            Err(error) => Err(Unseen::Error(format!("thread {thread} cannot be stopped: {error}"))),
            Ok(()) => Ok(()),
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for (thread, signal) in &self.0 {
            // One that has ended is free.
            let _ = ptrace(libc::PTRACE_DETACH, *thread, *signal);
        }
    }
}
