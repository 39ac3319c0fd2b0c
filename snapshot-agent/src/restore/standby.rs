//! Children that have CUDA started and memory pinned before anybody asks for them: seconds that no restore waits for. They hold a
//! context on each GPU, about half a gigabyte of its memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;

use super::device::driver::Driver;
use super::device::mover::Mover;
use crate::gpu::bulk::Uuid;
use crate::snapshots::host::arena::Arena;

/// Memory, with its number in the child that has it pinned.
pub type Pinned = (Arc<Arena>, u32);

/// A child that moves memory, and one that asks the driver.
#[derive(Debug)]
pub struct Standby {
    /// Moves memory.
    pub mover: Mover,
    /// Asks the driver.
    pub driver: Driver,
    /// Memory with leaves that this host keeps there.
    pub staged: Option<Pinned>,
    /// Memory for what is read while it is copied.
    pub buffer: Option<Pinned>,
}

impl Standby {
    /// Starts both, and pins what this host keeps in memory.
    ///
    /// # Errors
    /// There is no driver, or it refuses.
    pub fn start(staged: Option<&Arc<Arena>>) -> anyhow::Result<Self> {
        let (mut mover, mut driver) = (Mover::new()?, Driver::new()?);
        let starts = std::thread::spawn(move || {
            driver.start();
            driver
        });
        mover.open()?;
        let pin =
            |arena: &Arc<Arena>| Ok::<_, anyhow::Error>((arena.clone(), mover.pin(&arena.path(), arena.bytes())?));
        let staged = staged.filter(|arena| arena.bytes() > 0).map(pin).transpose()?;
        let driver = starts.join().ok().context("a thread ended")?;
        Ok(Self { mover, driver, staged, buffer: None })
    }

    /// GPUs with their free bytes, as CUDA counts them.
    ///
    /// # Errors
    /// The child is gone, or a GPU is.
    pub fn free(&mut self) -> anyhow::Result<Vec<(Uuid, u64)>> {
        self.mover.open()
    }

    /// Pinned memory of so many bytes or more, for one restore at a time.
    ///
    /// # Errors
    /// The host has not so much, or the driver refuses.
    pub fn buffer_of(&mut self, bytes: u64) -> anyhow::Result<Pinned> {
        if let Some(known) = self.buffer.as_ref().filter(|(arena, _)| arena.bytes() >= bytes) {
            return Ok(known.clone());
        }
        let arena = Arc::new(Arena::allocate(bytes).context("no memory for its device memory: lower --memory-gib")?);
        let number = self.mover.pin(&arena.path(), arena.bytes())?;
        self.buffer = Some((arena.clone(), number));
        Ok((arena, number))
    }
}

/// Those that are ready.
#[derive(Debug, Default)]
pub struct Standbys {
    /// What this host keeps in memory.
    staged: Option<Arc<Arena>>,
    ready: Mutex<Vec<Standby>>,
    /// Some are kept ready; otherwise each goes when it is done.
    keeps: AtomicBool,
}

impl Standbys {
    /// None yet.
    #[must_use]
    pub fn new(staged: Option<Arc<Arena>>) -> Self {
        Self { staged, ready: Mutex::default(), keeps: AtomicBool::new(false) }
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, Vec<Standby>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is ready, or a new one.
    ///
    /// # Errors
    /// As [`Standby::start`].
    pub fn take(&self) -> anyhow::Result<Standby> {
        let known = self.ready().pop();
        known.map_or_else(|| Standby::start(self.staged.as_ref()), Ok)
    }

    /// One that is whole after a restore is ready for the next, if any are kept.
    pub fn put(&self, standby: Standby) {
        let mut ready = self.ready();
        if ready.is_empty() && self.keeps.load(Ordering::Relaxed) {
            ready.push(standby);
        }
    }

    /// Has one ready, from now on.
    ///
    /// # Errors
    /// As [`Standby::start`].
    pub fn have_one(&self) -> anyhow::Result<()> {
        self.keeps.store(true, Ordering::Relaxed);
        if self.ready().is_empty() {
            let standby = Standby::start(self.staged.as_ref())?;
            self.put(standby);
        }
        Ok(())
    }

    /// Lets go of them, also of those that are being made or used: nothing of this host is on a GPU then.
    pub fn clear(&self) {
        let mut ready = self.ready();
        self.keeps.store(false, Ordering::Relaxed);
        ready.clear();
    }
}
