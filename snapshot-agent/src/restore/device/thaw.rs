//! Device memory of a captured tree, brought back: made and filled by this host's own child while the processes come back, and
//! given to them when they have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, bail, ensure};
use snapshots::leaf::{Codec, LEAF_BYTES};
use snapshots::{IndexRecord, LeafId};

use super::driver::Driver;
use super::mover::Mover;
use super::{Part, own_number};
use crate::gpu::bulk::{Run, Uuid};
use crate::restore::capture::timed;
use crate::restore::held::Held;
use crate::restore::records::Captured;
use crate::restore::standby::{Pinned, Standby};
use crate::snapshots::commands::size;
use crate::snapshots::host::arena::{self, OnDisk};
use crate::snapshots::host::cache::Cache;

/// Leaves that are read and copied at a time: half a gigabyte.
const BATCH_LEAVES: usize = 256;
/// What a context and a process's modules and graphs take beside, bytes.
const CONTEXT_BYTES: u64 = 1 << 30;

/// Bulk memory as it lies on the disk: a part, where it is, and its leaves in their order.
#[derive(Debug, Clone)]
pub struct Stored {
    /// What it is.
    pub part: Part,
    /// Where its leaves are.
    pub place: Place,
    /// Its leaves.
    pub leaves: Vec<IndexRecord>,
}

/// Where leaves of a stream are on the disk.
#[derive(Debug, Clone)]
pub enum Place {
    /// One after the other in a file.
    File(PathBuf),
    /// Each in the host's cache.
    Cache(Arc<Cache>),
}

/// Everything that can be made ready before processes come back.
#[derive(Debug)]
pub struct Prepared {
    /// Numbers of processes that wait for their memory, or to be let go on.
    served: Vec<i32>,
    stored: Vec<Stored>,
    standby: Standby,
    /// Leaves that this host keeps in memory; they stay there while they are copied.
    staged: BTreeMap<LeafId, arena::Leaf>,
    /// Memory for the others.
    buffer: Option<Pinned>,
    /// All of those in memory, where that was asked for.
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

/// Memory that is being filled.
#[derive(Debug)]
pub struct Filling {
    copies: Copies,
    served: Vec<i32>,
    /// In the order of areas.
    parts: Vec<Part>,
    driver: Driver,
    /// Pinned memory of the child that copies.
    pinned: (Option<Pinned>, Option<Pinned>),
    pairs: Vec<(Uuid, Uuid)>,
}

/// What copies. It is waited for when this is dropped: nothing of it stays on GPUs.
#[derive(Debug)]
struct Copies(Option<JoinHandle<anyhow::Result<(Mover, Filled)>>>);

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Its child ends with what it returns.
            drop(thread.join());
        }
    }
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
    /// Has memory for what is not in memory yet: of `memory_bytes` at most, less where less is needed. With `load`, all of that has
    /// room there and is read off the disk now. `gpus`: those that it gets; without any, it may get all.
    ///
    /// # Errors
    /// There is no driver or no room, or the disk has something else.
    pub fn new(
        captured: &Captured,
        stored: Vec<Stored>,
        (mut standby, gpus): (Standby, Option<&[Uuid]>),
        memory_bytes: u64,
        load: bool,
    ) -> anyhow::Result<Self> {
        let mut free = standby.free()?;
        if let Some(gpus) = gpus {
            free.retain(|(gpu, _)| gpus.contains(gpu));
            let place = |gpu: &Uuid| gpus.iter().position(|wanted| wanted == gpu);
            free.sort_by_key(|(gpu, _)| place(gpu));
            ensure!(free.len() == gpus.len(), "CUDA does not see all GPUs that it is to get");
        }
        let here: Vec<Uuid> = free.iter().map(|(gpu, _)| *gpu).collect();
        let pairs = pairs(&captured.gpus, &here)?;
        let served = captured.served.clone();
        let free = free.into_iter().collect();
        let (staged, buffer, loaded) = (BTreeMap::new(), None, None);
        let mut prepared = Self { served, stored, standby, staged, buffer, loaded, pairs, free };
        let mut missing = prepared.on_disk();
        if let Some((arena, _)) = &prepared.standby.staged {
            for leaf in &missing {
                prepared.staged.extend(arena.leaf(leaf.id).map(|staged| (leaf.id, staged)));
            }
            missing.retain(|leaf| !prepared.staged.contains_key(&leaf.id));
        }
        let needed = missing.len().min(if load { usize::MAX } else { 4 * BATCH_LEAVES }) * LEAF_BYTES;
        ensure!(
            !load || needed as u64 <= memory_bytes,
            "its device memory has {needed} bytes, more than the {memory_bytes} of memory that it may take: raise --memory-gib"
        );
        if needed > 0 {
            let least = 2 * (BATCH_LEAVES.min(missing.len()) * LEAF_BYTES) as u64;
            let (arena, number) = prepared.standby.buffer_of((needed as u64).min(memory_bytes).max(least))?;
            if load {
                prepared.loaded = Some(arena.load(&missing)?.0);
            }
            prepared.buffer = Some((arena, number));
        }
        Ok(prepared)
    }

    /// Who is asked for what the driver knows.
    pub fn driver(&mut self) -> &mut Driver {
        &mut self.standby.driver
    }

    /// Whether nothing of it has to be read off the disk.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.buffer.is_none() || self.loaded.is_some()
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
    pub fn fill(self) -> anyhow::Result<Filling> {
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
        let Self { served, stored, standby, staged, buffer, loaded, pairs, .. } = self;
        let Standby { mut mover, driver, staged: pinned, buffer: own } = standby;
        let staged_number = pinned.as_ref().map_or(0, |(_, number)| *number);
        let parts: Vec<Part> = stored.iter().map(|stored| stored.part.clone()).collect();
        let bytes = parts.iter().map(Part::bytes).sum();
        let thread = std::thread::spawn(move || {
            mover.create(areas)?;
            let mut took = Vec::new();
            let memory = Memory { staged, staged_number, buffer };
            timed(&mut took, "copies", || copy_all(&mut mover, &stored, &memory))?;
            drop(loaded);
            Ok((mover, Filled { bytes, seconds: took.iter().map(|(_, seconds)| seconds).sum() }))
        });
        Ok(Filling { copies: Copies(Some(thread)), served, parts, driver, pinned: (pinned, own), pairs })
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
    let (path, at) = match &stored.place {
        Place::File(file) => (file.clone(), at),
        Place::Cache(cache) => (cache.path(leaf.id), 0),
    };
    OnDisk { id: leaf.id, bytes: leaf.content_bytes, path, at }
}

/// Where leaves are copied from.
struct Memory {
    staged: BTreeMap<LeafId, arena::Leaf>,
    staged_number: u32,
    buffer: Option<Pinned>,
}

impl Memory {
    /// Pinned memory with a leaf: by its number, and the first byte there.
    fn place(&self, leaf: &IndexRecord) -> Option<(u32, u64)> {
        if leaf.codec == Codec::Zero {
            return None;
        }
        let staged = self.staged.get(&leaf.id).map(|staged| (self.staged_number, staged.place()));
        let buffer = self.buffer.as_ref();
        staged.or_else(|| buffer.and_then(|(arena, number)| Some((*number, arena.place(leaf.id)?))))
    }
}

/// Reads batches of what is not in memory, and copies each while the next is read.
fn copy_all(mover: &mut Mover, stored: &[Stored], memory: &Memory) -> anyhow::Result<()> {
    let all: Vec<(u32, &Stored, &IndexRecord, u64)> = (0..)
        .zip(stored)
        .flat_map(|(area, stored)| leaves(stored).map(move |(leaf, at)| (area, stored, leaf, at)))
        .collect();
    let mut before = None;
    for batch in all.chunks(BATCH_LEAVES) {
        let stored = batch.iter().filter(|(_, _, leaf, _)| leaf.codec != Codec::Zero);
        let missing = stored.filter(|(_, _, leaf, _)| !memory.staged.contains_key(&leaf.id));
        let wanted: Vec<OnDisk> = missing.map(|(_, stored, leaf, at)| on_disk(stored, leaf, *at)).collect();
        let held = match &memory.buffer {
            Some((arena, _)) => Some(arena.load(&wanted)?.0),
            None => None,
        };
        let mut runs: Vec<Run> = Vec::new();
        for (area, _, leaf, at) in batch {
            let from = memory.place(leaf);
            ensure!(from.is_some() || leaf.codec == Codec::Zero, "a part of its device memory is gone from memory");
            add(&mut runs, Run { area: *area, at: *at, from, bytes: leaf.content_bytes.into() });
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

    /// Waits until all memory is filled, gives it to the processes, and lets them go on. What did it is ready for the next.
    ///
    /// # Errors
    /// The driver or a library refuses; the tree is to be ended.
    pub fn give(mut self, held: &Held) -> anyhow::Result<(Filled, Standby)> {
        let (mover, filled) = self.given(held).inspect_err(|_| {
            // Its end comes before its threads go on, which is when this goes.
            held.kill();
        })?;
        let (staged, buffer) = self.pinned;
        Ok((filled, Standby { mover, driver: self.driver, staged, buffer }))
    }

    fn given(&mut self, held: &Held) -> anyhow::Result<(Mover, Filled)> {
        let processes = self.processes(&held.pids())?;
        let Some(Ok(filled)) = self.copies.0.take().map(JoinHandle::join) else { bail!("a thread ended") };
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
        Ok((mover, filled))
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
