//! The driver's checkpoints of other processes (CUDA driver API, `cuCheckpointProcess*`, from CUDA 12.8 on). Five functions,
//! looked up by name, since bindings of older versions lack them.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint};

use health::gate::{Look, Unseen};
use libloading::Library;
use serde::{Deserialize, Serialize};

use super::cuda;

/// What is done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Says what state it is in. Fails for one that does not use CUDA.
    State,
    /// Holds its calls and waits for what it has submitted, so many milliseconds at most.
    Lock(u32),
    /// Takes its memory and handles off the GPUs, into its own host memory.
    Checkpoint,
    /// Brings them back.
    Restore,
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
}

type OfState = unsafe extern "C" fn(c_int, *mut c_uint) -> c_uint;
type OfStep = unsafe extern "C" fn(c_int, *mut Args) -> c_uint;

/// The functions.
#[derive(Debug)]
pub struct Checkpoints {
    /// Keeps them loaded.
    _library: Library,
    state: OfState,
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
        Ok(Self {
            state,
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
    pub fn step(&self, pid: i32, step: Step) -> Look<State> {
        let (function, mut args) = match step {
            Step::State => return self.state(pid),
            Step::Lock(timeout_ms) => (self.lock, Args::within(timeout_ms)),
            Step::Checkpoint => (self.checkpoint, Args::none()),
            Step::Restore => (self.restore, Args::none()),
            Step::Unlock => (self.unlock, Args::none()),
        };
        // SAFETY: the arguments live as long as the call, and are as long as the driver reads.
        done(step, unsafe { function(pid, &raw mut args) })?;
        self.state(pid)
    }

    fn state(&self, pid: i32) -> Look<State> {
        let mut state = 0;
        // SAFETY: the driver writes one number.
        done(Step::State, unsafe { (self.state)(pid, &raw mut state) })?;
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

fn done(step: Step, code: c_uint) -> Look<()> {
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
    Err(Unseen::Error(format!("{step:?}: the driver answers {code} ({why})")))
}
