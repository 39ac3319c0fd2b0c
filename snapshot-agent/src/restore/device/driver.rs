//! The driver's own checkpoints. Asked of a child, since a call into a sick driver may never come back.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use health::gate::{Look, Reading};
use snapshots::compatibility::{DRIVER_MIN, Devices, Version};

use crate::gpu::bulk::Uuid;
use crate::gpu::{ProcessState, Step};
use crate::probe::{Answer, Ask};
use crate::worker::{Program, Worker};

/// What it submitted is to be done in this time, milliseconds.
const LOCK_MS: u32 = 30_000;
/// How long the driver may take: its own rate is 4 to 5 GiB/s, and CUDA takes seconds to start.
const STEP_PATIENCE: Duration = Duration::from_secs(300);
/// And where bulk memory is not its affair: measured are 0.2 to 0.9 s.
const SPLIT_PATIENCE: Duration = Duration::from_secs(30);
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

    /// Free memory of each GPU as the management library counts it, MiB.
    pub fn free_mib(&mut self) -> Option<Vec<i64>> {
        let Ok(Answer::Survey(_, gpus)) = self.worker.ask(&Ask::Survey, SURVEY_PATIENCE) else { return None };
        let mut free = |index: u32| match self.worker.ask(&Ask::Read(index), SURVEY_PATIENCE) {
            Ok(Answer::Readings(readings)) => readings.get(&Reading::MemoryFree)?.as_ref().ok().copied(),
            _ => None,
        };
        gpus.into_iter().map(|(index, _)| free(index)).collect()
    }

    /// Starts CUDA in the child, ahead of need.
    pub fn start(&mut self) {
        // This process does not use CUDA, and what is asked of it fails; what it takes is paid then.
        let _ = self.ask(&[std::process::id().cast_signed()], Step::State, STEP_PATIENCE);
    }

    fn ask(&mut self, pids: &[i32], step: Step, patience: Duration) -> anyhow::Result<Vec<Look<ProcessState>>> {
        match self.worker.ask(&Ask::Checkpoint(pids.to_vec(), step), patience) {
            Ok(Answer::Checkpoint(states)) => Ok(states),
            Ok(other) => bail!("the driver's child answers {other:?}"),
            Err(why) => bail!("{why}"),
        }
    }

    /// Of these processes those that use CUDA.
    ///
    /// # Errors
    /// The driver cannot be asked.
    pub fn using(&mut self, pids: &[i32]) -> anyhow::Result<Vec<i32>> {
        let states = self.ask(pids, Step::State, SURVEY_PATIENCE)?;
        Ok(pids.iter().zip(states).filter(|(_, state)| state.is_ok()).map(|(pid, _)| *pid).collect())
    }

    /// Whether a driver's checkpoints can be relied on.
    ///
    /// # Errors
    /// It is too old.
    pub fn check(driver: &str) -> anyhow::Result<()> {
        let major = Version::leading(driver).and_then(|version| version.0.first().copied());
        ensure!(major.is_some_and(|major| major >= DRIVER_MIN), "driver {driver}: install {DRIVER_MIN} or later");
        Ok(())
    }

    /// Holds the calls of processes, when what they submitted is done.
    ///
    /// # Errors
    /// That takes longer than half a minute, or the driver refuses.
    pub fn lock(&mut self, pids: &[i32]) -> anyhow::Result<()> {
        self.all(pids, Step::Lock(LOCK_MS), ProcessState::Locked, STEP_PATIENCE)
    }

    /// Lets their calls go on.
    ///
    /// # Errors
    /// The driver refuses; the processes are to be ended then.
    pub fn unlock(&mut self, pids: &[i32]) -> anyhow::Result<()> {
        self.all(pids, Step::Unlock, ProcessState::Running, STEP_PATIENCE)
    }

    /// Takes all that locked processes have on GPUs into their host memory.
    ///
    /// # Errors
    /// The driver refuses; the processes are to be ended then.
    pub fn checkpoint(&mut self, pids: &[i32]) -> anyhow::Result<()> {
        self.all(pids, Step::Checkpoint, ProcessState::Checkpointed, STEP_PATIENCE)
    }

    /// Brings it back; their calls stay held. `pairs`: each GPU that they had, with the one in its place, where that is another;
    /// `split`: their bulk memory is not in it.
    ///
    /// # Errors
    /// The driver refuses; the processes are to be ended then.
    pub fn restore(&mut self, pids: &[i32], pairs: &[(Uuid, Uuid)], split: bool) -> anyhow::Result<()> {
        let patience = if split { SPLIT_PATIENCE } else { STEP_PATIENCE };
        self.all(pids, Step::Restore(pairs.to_vec()), ProcessState::Locked, patience)
    }

    fn all(&mut self, pids: &[i32], step: Step, wanted: ProcessState, patience: Duration) -> anyhow::Result<()> {
        let states = self.ask(pids, step, patience)?;
        ensure!(states.len() == pids.len(), "the driver's child answers for {} processes", states.len());
        for (pid, state) in pids.iter().zip(states) {
            match state {
                Ok(state) => ensure!(state == wanted, "process {pid} is {state:?}, not {wanted:?}"),
                Err(why) => bail!("process {pid}: {why}"),
            }
        }
        Ok(())
    }

    /// Has processes stand still, but for the driver's threads and the library's.
    ///
    /// # Errors
    /// One is gone, or somebody else traces it.
    pub fn pause(&mut self, pids: &[i32]) -> anyhow::Result<()> {
        self.worker.ask(&Ask::Pause(pids.to_vec()), STEP_PATIENCE).map(drop).map_err(|why| anyhow::anyhow!("{why}"))
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// The child is gone; they go on then, too.
    pub fn go_on(&mut self) -> anyhow::Result<()> {
        self.worker.ask(&Ask::GoOn, STEP_PATIENCE).map(drop).map_err(|why| anyhow::anyhow!("{why}"))
    }
}
