//! The part of a tree that is on GPUs, by the driver's own checkpoints. Asked of a child, since a call into a sick driver may
//! never come back.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use snapshots::compatibility::{DRIVER_MIN, Devices, Version};

use crate::gpu::{ProcessState, Step};
use crate::probe::{Answer, Ask};
use crate::worker::{Program, Worker};

/// What it submitted is to be done in this time, milliseconds.
const LOCK_MS: u32 = 30_000;
/// How long the driver may take: its own rate is 4 to 5 GiB/s, and CUDA takes seconds to start.
const STEP_PATIENCE: Duration = Duration::from_secs(300);
const SURVEY_PATIENCE: Duration = Duration::from_secs(30);

/// The driver, asked through a child that holds it.
#[derive(Debug)]
pub struct Driver {
    worker: Worker,
}

impl Driver {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// This program has no path.
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("this program has no path")?;
        Ok(Self { worker: Worker::new(Program { path, args: vec!["probe".into()] }) })
    }

    /// The GPUs of this host; none without a driver.
    pub fn devices(&mut self) -> Option<Devices> {
        let Ok(Answer::Survey(driver, gpus)) = self.worker.ask(&Ask::Survey, SURVEY_PATIENCE) else { return None };
        let mut names = Vec::new();
        for (index, _) in gpus {
            let Ok(Answer::Identity(identity)) = self.worker.ask(&Ask::Identity(index), SURVEY_PATIENCE) else {
                return None;
            };
            names.push(identity.name);
        }
        Some(Devices { driver: driver.version, gpus: names })
    }

    fn step(&mut self, pid: i32, step: Step) -> anyhow::Result<ProcessState> {
        match self.worker.ask(&Ask::Checkpoint(pid, step), STEP_PATIENCE) {
            Ok(Answer::Checkpoint(state)) => Ok(state),
            Ok(other) => bail!("the driver's child answers {other:?}"),
            Err(why) => bail!("{why}"),
        }
    }

    /// Of these processes those that use CUDA.
    pub fn using(&mut self, pids: &[i32]) -> Vec<i32> {
        pids.iter().copied().filter(|pid| self.step(*pid, Step::State).is_ok()).collect()
    }

    /// Takes all that processes have on GPUs into their host memory.
    ///
    /// # Errors
    /// The driver is too old or refuses; the processes are to be ended then.
    pub fn freeze(&mut self, pids: &[i32], driver: &str) -> anyhow::Result<()> {
        let major = Version::leading(driver).and_then(|version| version.0.first().copied());
        ensure!(major.is_some_and(|major| major >= DRIVER_MIN), "driver {driver}: install {DRIVER_MIN} or later");
        for (step, state) in
            [(Step::Lock(LOCK_MS), ProcessState::Locked), (Step::Checkpoint, ProcessState::Checkpointed)]
        {
            self.all(pids, step, state)?;
        }
        Ok(())
    }

    /// Brings it back onto the GPUs, and lets the processes go on.
    ///
    /// # Errors
    /// The driver refuses; the processes are to be ended then.
    pub fn thaw(&mut self, pids: &[i32]) -> anyhow::Result<()> {
        for (step, state) in [(Step::Restore, ProcessState::Locked), (Step::Unlock, ProcessState::Running)] {
            self.all(pids, step, state)?;
        }
        Ok(())
    }

    fn all(&mut self, pids: &[i32], step: Step, state: ProcessState) -> anyhow::Result<()> {
        for pid in pids {
            let is = self.step(*pid, step).with_context(|| format!("process {pid}"))?;
            ensure!(is == state, "process {pid} is {is:?} after {step:?}, not {state:?}");
        }
        Ok(())
    }
}
