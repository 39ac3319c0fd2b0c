//! The driver's checkpoints of other processes (CUDA driver API, `cuCheckpointProcess*`, from CUDA 12.8 on). Six functions,
//! looked up by name, since bindings of older versions lack them.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};

use health::gate::{Look, Unseen};
use libloading::Library;
use serde::{Deserialize, Serialize};

use super::bulk::Uuid;
use super::cuda;

/// What is done to a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Says what state it is in. Fails for one that does not use CUDA.
    State,
    /// Holds its calls and waits for what it has submitted, so many milliseconds at most.
    Lock(u32),
    /// Takes its memory and handles off the GPUs, into its own host memory.
    Checkpoint,
    /// Brings them back: each GPU that it had, and the one in its place. Without any, onto the same ones.
    Restore(Vec<(Uuid, Uuid)>),
    /// Lets its calls go on.
    Unlock,
}

/// State of a process (`CUprocessState`). One that this build does not know is a later driver's, not a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It runs.
    Running,
    /// Its calls are held.
    Locked,
    /// It has nothing on a GPU.
    Checkpointed,
    /// It is lost: end it.
    Failed,
    /// Of a later driver.
    Other(u32),
}

/// Arguments of a call: 64 bytes of zeros but for what is said, in every version of the API.
#[repr(C, align(8))]
struct Args([u8; 64]);

impl Args {
    fn none() -> Self {
        Self([0; 64])
    }

    /// `timeoutMs` comes first.
    fn within(timeout_ms: u32) -> Self {
        let mut args = Self::none();
        args.0[..4].copy_from_slice(&timeout_ms.to_ne_bytes());
        args
    }

    /// `gpuPairs` and `gpuPairsCount`, from CUDA 13.0 on.
    fn onto(pairs: &[(Uuid, Uuid)]) -> Self {
        let mut args = Self::none();
        if !pairs.is_empty() {
            args.0[..8].copy_from_slice(&(pairs.as_ptr() as usize).to_ne_bytes());
            args.0[8..12].copy_from_slice(&(pairs.len() as u32).to_ne_bytes());
        }
        args
    }
}

type OfState = unsafe extern "C" fn(c_int, *mut c_uint) -> c_uint;
type OfThread = unsafe extern "C" fn(c_int, *mut c_int) -> c_uint;
type OfStep = unsafe extern "C" fn(c_int, *mut Args) -> c_uint;

/// The functions.
#[derive(Debug)]
pub struct Checkpoints {
    /// Keeps them loaded.
    _library: Library,
    state: OfState,
    thread: OfThread,
    lock: OfStep,
    checkpoint: OfStep,
    restore: OfStep,
    unlock: OfStep,
}

impl Checkpoints {
    /// Starts CUDA in this process, as the driver wants it of whoever restores, and finds the functions.
    ///
    /// # Errors
    /// There is no driver, or one that lacks them.
    pub fn load() -> Look<Self> {
        cuda::start()?;
        // SAFETY: the driver's library, which CUDA has loaded already.
        let library = unsafe { Library::new("libcuda.so.1") };
        let library = library.map_err(|error| Unseen::NoDriver(error.to_string()))?;
        let step = |name: &str| -> Look<OfStep> {
            // SAFETY: functions of this name have this type in every version (cuda.h, 12.8 to 13.5).
            let found = unsafe { library.get::<OfStep>(name.as_bytes()) };
            found.map(|function| *function).map_err(|_| missing(name))
        };
        // SAFETY: as above.
        let state = unsafe { library.get::<OfState>(b"cuCheckpointProcessGetState") };
        let state = *state.map_err(|_| missing("cuCheckpointProcessGetState"))?;
        // SAFETY: as above.
        let thread = unsafe { library.get::<OfThread>(b"cuCheckpointProcessGetRestoreThreadId") };
        let thread = *thread.map_err(|_| missing("cuCheckpointProcessGetRestoreThreadId"))?;
        Ok(Self {
            state,
            thread,
            lock: step("cuCheckpointProcessLock")?,
            checkpoint: step("cuCheckpointProcessCheckpoint")?,
            restore: step("cuCheckpointProcessRestore")?,
            unlock: step("cuCheckpointProcessUnlock")?,
            _library: library,
        })
    }

    /// Does a step to a process, by its number as this process sees it; its state afterwards.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn step(&self, pid: i32, step: &Step) -> Look<State> {
        let (function, mut args) = match step {
            Step::State => return self.state(pid),
            Step::Lock(timeout_ms) => (self.lock, Args::within(*timeout_ms)),
            Step::Checkpoint => (self.checkpoint, Args::none()),
            Step::Restore(pairs) => (self.restore, Args::onto(pairs)),
            Step::Unlock => (self.unlock, Args::none()),
        };
        // SAFETY: the arguments live as long as the call, and are as long as the driver reads.
        done(step, unsafe { function(pid, &raw mut args) })?;
        self.state(pid)
    }

    /// The thread of a process that the driver's Restore runs in.
    #[must_use]
    pub fn restore_thread(&self, pid: i32) -> Option<i32> {
        let mut thread = 0;
        // SAFETY: the driver writes one number.
        let code = unsafe { (self.thread)(pid, &raw mut thread) };
        (code == 0).then_some(thread)
    }

    fn state(&self, pid: i32) -> Look<State> {
        let mut state = 0;
        // SAFETY: the driver writes one number.
        done(&Step::State, unsafe { (self.state)(pid, &raw mut state) })?;
        Ok(match state {
            0 => State::Running,
            1 => State::Locked,
            2 => State::Checkpointed,
            3 => State::Failed,
            other => State::Other(other),
        })
    }
}

fn missing(name: &str) -> Unseen {
    Unseen::MissingSymbol(format!("{name}: install driver 580 or later"))
}

fn done(step: &Step, code: c_uint) -> Look<()> {
    let why = match code {
        0 => return Ok(()),
        1 => "invalid value",
        2 => "out of memory",
        3 => "not initialized",
        304 => "operating system",
        401 => "illegal state",
        600 => "not ready: it did not finish its work in time",
        801 => "not supported",
        _ => "see CUresult in cuda.h",
    };
    let name = match step {
        Step::State => "State",
        Step::Lock(_) => "Lock",
        Step::Checkpoint => "Checkpoint",
        Step::Restore(_) => "Restore",
        Step::Unlock => "Unlock",
    };
    Err(Unseen::Error(format!("{name}: the driver answers {code} ({why})")))
}
