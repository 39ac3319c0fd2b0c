//! Threads of a process that stand still for a moment, as a debugger has them: all but the driver's own and the library's. The
//! end of this process lets them go on.

#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use health::gate::{Look, Unseen};
use interposer_protocol::THREAD;

/// Rounds of looking for new threads.
const ROUNDS: usize = 16;
/// As the driver names its threads: this one, and others by numbers (580: `cuda00001400006`).
const EVENTS: &str = "cuda-EvtHandlr";

fn is_drivers(name: &str) -> bool {
    let number = name.strip_prefix("cuda").unwrap_or_default();
    name == EVENTS || (number.len() == 11 && number.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

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

fn wait(thread: i32) -> std::io::Result<i32> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one number.
        let got = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        let error = std::io::Error::last_os_error();
        match got {
            _ if got == thread => return Ok(status),
            _ if error.kind() == std::io::ErrorKind::Interrupted => {}
            _ => return Err(error),
        }
    }
}

/// Whether a thread is no more, but for its number.
fn has_ended(thread: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/stat")).unwrap_or_default();
    // The name, in brackets, may hold anything.
    let state = status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

impl Paused {
    /// Has all threads of a process stand still but the driver's, the library's, and one more.
    ///
    /// # Errors
    /// It is gone, or somebody else traces it.
    pub fn new(pid: i32, but: Option<i32>) -> Look<Self> {
        let (mut paused, mut ended) = (Self(BTreeMap::new()), BTreeSet::new());
        for _ in 0..ROUNDS {
            let stand = |(thread, name): &(i32, String)| {
                let of_others = name == THREAD || is_drivers(name) || Some(*thread) == but;
                (*thread == pid || !of_others) && !paused.0.contains_key(thread) && !ended.contains(thread)
            };
            let new: Vec<i32> =
                threads(pid)?.iter().filter(|thread| stand(thread)).map(|(thread, _)| *thread).collect();
            if new.is_empty() {
                return Ok(paused);
            }
            for thread in new {
                paused.add(thread)?;
                if !paused.0.contains_key(&thread) {
                    ended.insert(thread);
                }
            }
        }
        Err(Unseen::Error(format!("process {pid} starts threads faster than they can be stopped")))
    }

    fn add(&mut self, thread: i32) -> Look<()> {
        let stopped = ptrace(libc::PTRACE_SEIZE, thread, 0).and_then(|()| {
            self.0.insert(thread, 0);
            ptrace(libc::PTRACE_INTERRUPT, thread, 0)?;
            let status = wait(thread)?;
            // A signal that was on its way stopped it first: it gets it when it goes on.
            if libc::WIFSTOPPED(status) && status >> 16 == 0 {
                self.0.insert(thread, libc::WSTOPSIG(status));
            }
            Ok(())
        });
        match stopped {
            // It has ended meanwhile, or is about to.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) || has_ended(thread) => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_threads_are_told_from_others() {
        assert!(is_drivers("cuda00001400006") && is_drivers("cuda-EvtHandlr"));
        for other in ["cuda_serve", "cuda", "cuda-server", "python3", "cudaworker00001"] {
            assert!(!is_drivers(other), "{other}");
        }
    }

    #[test]
    fn threads_stand_still_and_go_on() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("started");
        let pid = child.id().cast_signed();
        let state = || {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("there");
            status.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).expect("a state")
        };
        let paused = Paused::new(pid, None).expect("traced");
        assert_eq!(state(), 't');
        drop(paused);
        assert_ne!(state(), 't');
        child.kill().expect("killed");
        // Nobody has waited for it yet.
        while state() != 'Z' {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(has_ended(pid) && Paused::new(pid, None).is_ok());
        child.wait().expect("ended");
    }
}
