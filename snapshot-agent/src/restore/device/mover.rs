//! The child that moves bulk memory, seen from the agent.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use interposer_protocol::Report;

use crate::gpu::bulk::{Answer, Ask, Exported, Run, Uuid};
use crate::probe;
use crate::worker::{Program, Worker};

/// How long copies of all memory of a host may take, and pinning as much.
const PATIENCE: Duration = Duration::from_secs(300);

/// The child.
#[derive(Debug)]
pub struct Mover {
    worker: Worker,
}

impl Mover {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// This program has no path.
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::current_exe().context("this program has no path")?;
        Ok(Self { worker: Worker::new(Program { path, args: vec!["probe".into()] }) })
    }

    fn ask(&mut self, ask: Ask) -> anyhow::Result<Answer> {
        match self.worker.ask(&probe::Ask::Bulk(ask), PATIENCE) {
            Ok(probe::Answer::Bulk(answer)) => Ok(answer),
            Ok(other) => bail!("the child that moves memory answers {other:?}"),
            Err(why) => bail!("{why}"),
        }
    }

    fn done(&mut self, ask: Ask) -> anyhow::Result<()> {
        self.ask(ask).map(drop)
    }

    /// Starts CUDA on all GPUs: each with its free bytes, as CUDA counts them.
    ///
    /// # Errors
    /// There is no driver, or a GPU does not start.
    pub fn open(&mut self) -> anyhow::Result<Vec<(Uuid, u64)>> {
        match self.ask(Ask::Open)? {
            Answer::Gpus(gpus) => Ok(gpus),
            other => bail!("the child that moves memory answers {other:?}"),
        }
    }

    /// Pins memory; its number.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn pin(&mut self, memory: &Path, bytes: u64) -> anyhow::Result<u32> {
        match self.ask(Ask::Pin(memory.display().to_string(), bytes))? {
            Answer::Pinned(number) => Ok(number),
            other => bail!("the child that moves memory answers {other:?}"),
        }
    }

    /// What the library in a process says; a conversation with it has begun then.
    ///
    /// # Errors
    /// It is not there or does not answer.
    pub fn report(&mut self, pid: i32) -> anyhow::Result<Report> {
        match self.ask(Ask::Report(pid))? {
            Answer::Report(report) => Ok(report),
            other => bail!("the child that moves memory answers {other:?}"),
        }
    }

    /// Has a process allocate and free nothing.
    ///
    /// # Errors
    /// Its library does not answer.
    pub fn hold(&mut self, pid: i32) -> anyhow::Result<()> {
        self.done(Ask::Hold(pid))
    }

    /// Whether a process's library answers though its threads stand still.
    ///
    /// # Errors
    /// It is gone.
    pub fn answers(&mut self, pid: i32) -> anyhow::Result<bool> {
        match self.ask(Ask::Answers(pid))? {
            Answer::Answers(answers) => Ok(answers),
            other => bail!("the child that moves memory answers {other:?}"),
        }
    }

    /// Takes over what a process has.
    ///
    /// # Errors
    /// Its library or the driver refuses.
    pub fn export(&mut self, pid: i32) -> anyhow::Result<Vec<Exported>> {
        match self.ask(Ask::Export(pid))? {
            Answer::Areas(areas) => Ok(areas),
            other => bail!("the child that moves memory answers {other:?}"),
        }
    }

    /// Has a process let go of it.
    ///
    /// # Errors
    /// Its library or the driver refuses.
    pub fn release(&mut self, pid: i32) -> anyhow::Result<()> {
        self.done(Ask::Release(pid))
    }

    /// Copies out of areas, and waits for it.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn copy_out(&mut self, runs: Vec<Run>) -> anyhow::Result<()> {
        self.done(Ask::CopyOut(runs))
    }

    /// Makes areas, which are numbered in their order.
    ///
    /// # Errors
    /// A GPU has not so much memory.
    pub fn create(&mut self, areas: Vec<(Uuid, Vec<u64>)>) -> anyhow::Result<()> {
        self.done(Ask::Create(areas))
    }

    /// Begins to copy into areas.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn copy_in(&mut self, runs: Vec<Run>) -> anyhow::Result<()> {
        self.done(Ask::CopyIn(runs))
    }

    /// Waits for the copies that were begun first.
    ///
    /// # Errors
    /// They failed.
    pub fn copied(&mut self) -> anyhow::Result<()> {
        self.done(Ask::Copied)
    }

    /// Gives areas to a process.
    ///
    /// # Errors
    /// Its library or the driver refuses; it is to be ended then.
    pub fn give(&mut self, pid: i32, areas: Vec<(u32, Vec<u64>)>) -> anyhow::Result<()> {
        self.done(Ask::Give(pid, areas))
    }

    /// Lets go of all areas, and ends conversations.
    ///
    /// # Errors
    /// The child is gone.
    pub fn drop_all(&mut self) -> anyhow::Result<()> {
        self.done(Ask::Drop)
    }
}
