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

/// Says to CUDA which GPUs a process may see.
pub const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Driver and GPUs of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// Version of the driver.
    pub driver: String,
    /// The GPUs, in the driver's order.
    pub each: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its identity as the driver writes it, `GPU-5fd4f61b-…`.
    pub id: String,
    /// The same as bytes.
    pub uuid: Option<Uuid>,
}

/// The bytes of `GPU-5fd4f61b-1df4-4a0f-a0b3-2a3f1a2b3c4d`.
fn uuid(id: &str) -> Option<Uuid> {
    let digits: String = id.strip_prefix("GPU-")?.chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32)?;
    Some(number.to_be_bytes())
}

impl Gpus {
    /// Those of these numbers; without any, all of them.
    ///
    /// # Errors
    /// There is no such GPU.
    pub fn only(&self, gpus: Option<&[u32]>) -> anyhow::Result<Self> {
        let Some(gpus) = gpus else { return Ok(self.clone()) };
        let of = |index: &u32| {
            let found = self.each.iter().find(|gpu| gpu.index == *index);
            found.cloned().with_context(|| format!("this host has no GPU {index}"))
        };
        Ok(Self { driver: self.driver.clone(), each: gpus.iter().map(of).collect::<anyhow::Result<_>>()? })
    }

    /// What a snapshot says of them.
    #[must_use]
    pub fn devices(&self) -> Devices {
        Devices { driver: self.driver.clone(), gpus: self.each.iter().map(|gpu| gpu.name.clone()).collect() }
    }

    /// Their identities, for `CUDA_VISIBLE_DEVICES`.
    #[must_use]
    pub fn visible(&self) -> String {
        self.each.iter().map(|gpu| gpu.id.as_str()).collect::<Vec<_>>().join(",")
    }

    /// The same as bytes.
    ///
    /// # Errors
    /// The driver writes one in another way.
    pub fn uuids(&self) -> anyhow::Result<Vec<Uuid>> {
        let of = |gpu: &Gpu| gpu.uuid.with_context(|| format!("GPU {} has the identity '{}'", gpu.index, gpu.id));
        self.each.iter().map(of).collect()
    }
}

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

    /// Driver and GPUs of this host; none without a driver.
    pub fn gpus(&mut self) -> Option<Gpus> {
        let Ok(Answer::Survey(driver, gpus)) = self.worker.ask(&Ask::Survey, SURVEY_PATIENCE) else { return None };
        let mut each = Vec::new();
        for (index, _) in gpus {
            let Ok(Answer::Identity(identity)) = self.worker.ask(&Ask::Identity(index), SURVEY_PATIENCE) else {
                return None;
            };
            each.push(Gpu { index, uuid: uuid(&identity.uuid), id: identity.uuid, name: identity.name });
        }
        Some(Gpus { driver: driver.version, each })
    }

    /// Free memory of GPUs as the management library counts it, MiB; without any, of all.
    pub fn free_mib(&mut self, gpus: Option<&[u32]>) -> Option<Vec<i64>> {
        let Ok(Answer::Survey(_, all)) = self.worker.ask(&Ask::Survey, SURVEY_PATIENCE) else { return None };
        let mut free = |index: u32| match self.worker.ask(&Ask::Read(index), SURVEY_PATIENCE) {
            Ok(Answer::Readings(readings)) => readings.get(&Reading::MemoryFree)?.as_ref().ok().copied(),
            _ => None,
        };
        let all = all.into_iter().map(|(index, _)| index);
        all.filter(|index| gpus.is_none_or(|gpus| gpus.contains(index))).map(&mut free).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_as_the_driver_writes_them() {
        let read = uuid("GPU-5fd4f61b-1df4-4a0f-a0b3-2a3f1a2b3c4d").expect("one");
        assert_eq!((read[0], read[4], read[15]), (0x5f, 0x1d, 0x4d));
        for wrong in [
            "",
            "GPU-",
            "5fd4f61b-1df4-4a0f-a0b3-2a3f1a2b3c4d",
            "GPU-5fd4f61b",
            "MIG-5fd4f61b-1df4-4a0f-a0b3-2a3f1a2b3c4d",
        ] {
            assert_eq!(uuid(wrong), None, "{wrong}");
        }
        let gpu = |index| Gpu { index, name: format!("H{index}"), id: format!("GPU-{index}"), uuid: None };
        let all = Gpus { driver: "580".into(), each: vec![gpu(0), gpu(1), gpu(3)] };
        assert_eq!(all.only(Some(&[3, 0])).expect("there").visible(), "GPU-3,GPU-0");
        assert!(all.only(Some(&[2])).is_err() && all.only(None).expect("all") == all);
        assert!(all.uuids().is_err());
    }
}
