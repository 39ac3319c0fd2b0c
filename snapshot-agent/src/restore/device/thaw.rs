//! Device memory of a captured tree, brought back: made and filled by this host's own child while the processes come back, and
//! given to them when they have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, bail, ensure};
use snapshots::IndexRecord;
use snapshots::leaf::{Codec, LEAF_BYTES};

use super::driver::Driver;
use super::mover::Mover;
use super::{Part, own_number};
use crate::gpu::bulk::{Run, Uuid};
use crate::restore::capture::timed;
use crate::restore::held::Held;
use crate::restore::records::Captured;
use crate::snapshots::commands::size;
use crate::snapshots::host::arena::{self, Arena, OnDisk};

/// Leaves that are read and copied at a time: half a gigabyte.
const BATCH_LEAVES: usize = 256;
/// What a context and a process's modules and graphs take beside, bytes.
const CONTEXT_BYTES: u64 = 1 << 30;

/// Bulk memory as it lies on the disk: a part, its file, and its leaves in their order.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What it is.
    pub part: Part,
    /// Its stream as a file.
    pub file: PathBuf,
    /// Its leaves.
    pub leaves: Vec<IndexRecord>,
}

/// Everything that can be made ready before processes come back.
#[derive(Debug)]
pub struct Prepared {
    /// Numbers of processes that wait for their memory, or to be let go on.
    served: Vec<i32>,
    stored: Vec<Stored>,
    mover: Mover,
    driver: Driver,
    memory: Option<(Arc<Arena>, u32)>,
    /// All of it in memory, where that was asked for.
    loaded: Option<arena::Held>,
    /// GPUs that the processes had, with those in their places, where these are others.
    pairs: Vec<(Uuid, Uuid)>,
    /// Free memory of each GPU when it was looked at.
    free: BTreeMap<Uuid, u64>,
}

/// What filling memory took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filled {
    /// Bytes on GPUs.
    pub bytes: u64,
    /// Seconds of copying.
    pub seconds: f64,
}

/// Memory that is being filled. What is being copied is waited for when it is dropped: nothing of it stays on GPUs.
#[derive(Debug)]
pub struct Filling {
    /// None: it was waited for.
    thread: Option<JoinHandle<anyhow::Result<(Mover, Filled)>>>,
    served: Vec<i32>,
    /// In the order of areas.
    parts: Vec<Part>,
    driver: Driver,
    pairs: Vec<(Uuid, Uuid)>,
}

/// Which GPU stands in the place of each: the same one where all are there, else by their order.
fn pairs(had: &[Uuid], here: &[Uuid]) -> anyhow::Result<Vec<(Uuid, Uuid)>> {
    if had.iter().all(|gpu| here.contains(gpu)) {
        return Ok(Vec::new());
    }
    ensure!(had.len() <= here.len(), "it had {} GPUs, this host has {}", had.len(), here.len());
    Ok(had.iter().copied().zip(here.iter().copied()).collect())
}

impl Prepared {
    /// Starts CUDA and pins memory: of `memory_bytes` at most, less where less is needed. With `load`, all that there is has
    /// room there and is read off the disk now.
    ///
    /// # Errors
    /// There is no driver or no room, or the disk has something else.
    pub fn new(captured: &Captured, stored: Vec<Stored>, memory_bytes: u64, load: bool) -> anyhow::Result<Self> {
        let (mut mover, mut driver) = (Mover::new()?, Driver::new()?);
        let starts = std::thread::spawn(move || {
            driver.start();
            driver
        });
        let gpus = mover.open()?;
        let driver = starts.join().ok().context("a thread ended")?;
        let here: Vec<Uuid> = gpus.iter().map(|(gpu, _)| *gpu).collect();
        let pairs = pairs(&captured.gpus, &here)?;
        let served = captured.served.clone();
        let mut prepared =
            Self { served, stored, mover, driver, memory: None, loaded: None, pairs, free: gpus.into_iter().collect() };
        let all = prepared.on_disk();
        let needed = all.len().min(if load { usize::MAX } else { 4 * BATCH_LEAVES }) * LEAF_BYTES;
        ensure!(
            !load || needed as u64 <= memory_bytes,
            "its device memory has {needed} bytes, more than the {memory_bytes} of memory that it may take: raise --memory-gib"
        );
        if needed > 0 {
            let bytes = (needed as u64).min(memory_bytes).max(2 * (BATCH_LEAVES.min(all.len()) * LEAF_BYTES) as u64);
            let arena =
                Arc::new(Arena::allocate(bytes).context("no memory for its device memory: lower --memory-gib")?);
            let number = prepared.mover.pin(&arena.path(), arena.bytes())?;
            if load {
                prepared.loaded = Some(arena.load(&all)?.0);
            }
            prepared.memory = Some((arena, number));
        }
        Ok(prepared)
    }

    /// Each leaf once.
    fn on_disk(&self) -> Vec<OnDisk> {
        let mut each = BTreeMap::new();
        for stored in &self.stored {
            for (leaf, at) in leaves(stored).filter(|(leaf, _)| leaf.codec != Codec::Zero) {
                each.entry(leaf.id).or_insert_with(|| on_disk(stored, leaf, at));
            }
        }
        each.into_values().collect()
    }

    fn gpu(&self, had: Uuid) -> Uuid {
        self.pairs.iter().find(|(old, _)| *old == had).map_or(had, |(_, new)| *new)
    }

    /// Begins to make and fill memory.
    ///
    /// # Errors
    /// A GPU has not so much memory.
    pub fn fill(mut self) -> anyhow::Result<Filling> {
        let areas: Vec<(Uuid, Vec<u64>)> = self.stored.iter().map(|stored| self.area(&stored.part)).collect();
        let mut needed: BTreeMap<Uuid, u64> = BTreeMap::new();
        for (gpu, segments) in &areas {
            *needed.entry(*gpu).or_default() += segments.iter().sum::<u64>();
        }
        for (gpu, bytes) in needed {
            let free = self.free.get(&gpu).copied().unwrap_or(0);
            ensure!(
                bytes + CONTEXT_BYTES <= free,
                "it needs {} of a GPU's memory and {} are free: another process holds it",
                size(bytes + CONTEXT_BYTES),
                size(free)
            );
        }
        let (memory, loaded) = (self.memory.take(), self.loaded.take());
        let Self { served, stored, mut mover, driver, pairs, .. } = self;
        let parts: Vec<Part> = stored.iter().map(|stored| stored.part.clone()).collect();
        let bytes = parts.iter().map(Part::bytes).sum();
        let thread = std::thread::spawn(move || {
            mover.create(areas)?;
            let mut took = Vec::new();
            if let Some((arena, number)) = memory {
                timed(&mut took, "copies", || copy_all(&mut mover, &stored, &arena, number))?;
            }
            drop(loaded);
            Ok((mover, Filled { bytes, seconds: took.iter().map(|(_, seconds)| seconds).sum() }))
        });
        Ok(Filling { thread: Some(thread), served, parts, driver, pairs })
    }

    fn area(&self, part: &Part) -> (Uuid, Vec<u64>) {
        (self.gpu(part.gpu), part.segments.iter().map(|(_, bytes)| *bytes).collect())
    }
}

/// Leaves of a part with where each begins.
fn leaves(stored: &Stored) -> impl Iterator<Item = (&IndexRecord, u64)> {
    let mut at = 0;
    stored.leaves.iter().map(move |leaf| {
        let begins = at;
        at += u64::from(leaf.content_bytes);
        (leaf, begins)
    })
}

fn on_disk(stored: &Stored, leaf: &IndexRecord, at: u64) -> OnDisk {
    OnDisk { id: leaf.id, bytes: leaf.content_bytes, path: stored.file.clone(), at }
}

/// Reads batches and copies each while the next is read.
fn copy_all(mover: &mut Mover, stored: &[Stored], arena: &Arc<Arena>, number: u32) -> anyhow::Result<()> {
    let all: Vec<(u32, &Stored, &IndexRecord, u64)> = (0..)
        .zip(stored)
        .flat_map(|(area, stored)| leaves(stored).map(move |(leaf, at)| (area, stored, leaf, at)))
        .collect();
    let mut before = None;
    for batch in all.chunks(BATCH_LEAVES) {
        let stored = batch.iter().filter(|(_, _, leaf, _)| leaf.codec != Codec::Zero);
        let wanted: Vec<OnDisk> = stored.map(|(_, stored, leaf, at)| on_disk(stored, leaf, *at)).collect();
        let held = arena.load(&wanted)?.0;
        let mut runs: Vec<Run> = Vec::new();
        for (area, _, leaf, at) in batch {
            let place = if leaf.codec == Codec::Zero { None } else { arena.place(leaf.id) };
            add(
                &mut runs,
                Run {
                    area: *area,
                    at: *at,
                    from: place.map(|place| (number, place)),
                    bytes: leaf.content_bytes.into(),
                },
            );
        }
        mover.copy_in(runs)?;
        // The one before is done with before its place is read into again.
        let done = before.replace(held);
        if done.is_some() {
            mover.copied()?;
        }
        drop(done);
    }
    if before.is_some() {
        mover.copied()?;
    }
    Ok(())
}

/// Adds a run, to the one before where it goes on from there on both sides.
fn add(runs: &mut Vec<Run>, next: Run) {
    if let Some(last) = runs.last_mut()
        && last.area == next.area
        && last.at + last.bytes == next.at
    {
        let goes_on = match (last.from, next.from) {
            (Some((number, from)), Some(next)) => (number, from + last.bytes) == next,
            (None, None) => true,
            _ => false,
        };
        if goes_on {
            last.bytes += next.bytes;
            return;
        }
    }
    runs.push(next);
}

impl Filling {
    /// Brings the tree's contexts back, by the driver; its threads stand still then.
    ///
    /// # Errors
    /// The driver refuses; the tree is to be ended.
    pub fn contexts(&mut self, held: &Held) -> anyhow::Result<()> {
        let using = self.driver.using(&held.pids())?;
        ensure!(!using.is_empty(), "no process that came back uses a GPU, where one did");
        let served: Vec<i32> = self.processes(&using)?.into_values().collect();
        self.driver.pause(&served)?;
        let split = using.len() == served.len();
        let restored = self.driver.restore(&using, &self.pairs, split);
        restored.context("the driver cannot bring it back onto the GPUs")?;
        self.driver.unlock(&using)
    }

    /// Processes that have the library: by their own numbers, those of this host.
    fn processes(&self, using: &[i32]) -> anyhow::Result<BTreeMap<i32, i32>> {
        let own: BTreeMap<i32, i32> = using.iter().filter_map(|pid| Some((own_number(*pid)?, *pid))).collect();
        let of = |number: &i32| {
            let pid = own.get(number).with_context(|| format!("process {number} did not come back"))?;
            Ok((*number, *pid))
        };
        self.served.iter().map(of).collect()
    }

    /// Waits until all memory is filled, gives it to the processes, and lets them go on.
    ///
    /// # Errors
    /// The driver or a library refuses; the tree is to be ended.
    pub fn give(&mut self, held: &Held) -> anyhow::Result<Filled> {
        let processes = self.processes(&held.pids())?;
        let Some(Ok(filled)) = self.thread.take().map(JoinHandle::join) else { bail!("a thread ended") };
        let (mut mover, filled) = filled.context("its device memory cannot be filled")?;
        for (number, pid) in processes {
            let of = |(area, part): (u32, &Part)| {
                let addresses = part.segments.iter().map(|(address, _)| *address).collect();
                (part.process == number).then_some((area, addresses))
            };
            mover.give(pid, (0..).zip(&self.parts).filter_map(of).collect())?;
        }
        self.driver.go_on()?;
        mover.drop_all()?;
        Ok(filled)
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // Its child ends with what it returns.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_where_both_sides_go_on() {
        let run = |at, from: Option<u64>| Run { area: 0, at, from: from.map(|from| (3, from)), bytes: 10 };
        let mut runs = Vec::new();
        for next in [run(0, Some(100)), run(10, Some(110)), run(20, Some(200)), run(30, None), run(40, None)] {
            add(&mut runs, next);
        }
        add(&mut runs, Run { area: 1, ..run(50, None) });
        let lengths: Vec<u64> = runs.iter().map(|run| run.bytes).collect();
        assert_eq!(lengths, [20, 10, 20, 10]);
    }

    #[test]
    fn gpus_take_places_in_their_order() {
        let gpu = |n: u8| [n; 16];
        assert_eq!(pairs(&[gpu(1), gpu(2)], &[gpu(2), gpu(1)]).expect("the same"), []);
        assert_eq!(pairs(&[gpu(1)], &[gpu(3), gpu(4)]).expect("another"), [(gpu(1), gpu(3))]);
        assert!(pairs(&[gpu(1), gpu(2)], &[gpu(3)]).is_err());
    }
}
