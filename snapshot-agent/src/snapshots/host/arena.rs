//! Copies in memory that stays: one region, allocated once when the agent starts, in huge pages where the host has reserved
//! them, touched by several threads and locked, so that a GPU's driver can register it once and read it at its bus's speed.
//!
//! The region is a memory file: a restore hands it on as a descriptor. Leaves lie in slots of 2 MiB.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::File;
use std::ops::Deref;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use snapshots::LeafId;
use snapshots::leaf::LEAF_BYTES;

/// What reads past the page cache are multiples of.
const BLOCK_BYTES: usize = 4096;
/// Threads that touch, read and verify: more of them wait for the disk than hash.
const THREADS_MAX: usize = 16;

/// Why there is no such memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {bytes} bytes for copies in memory: lower staging.memory_gib")]
pub struct ArenaError {
    doing: &'static str,
    bytes: u64,
    source: std::io::Error,
}

/// Why leaves cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// All slots are taken.
    #[error("memory has room for {free} more leaves, not for {wanted}: raise staging.memory_gib")]
    Full {
        /// Slots that are free.
        free: usize,
        /// Leaves that were to come.
        wanted: usize,
    },
    /// The disk has something else, or has them no more; the others were read.
    #[error("{} leaves are damaged on the disk, the first {}", .0.len(), .0[0])]
    Damaged(Vec<LeafId>),
    /// The disk fails.
    #[error("leaf {leaf} cannot be read")]
    Disk {
        /// Which.
        leaf: LeafId,
        /// Why.
        source: std::io::Error,
    },
}

/// A leaf on the disk.
#[derive(Debug, Clone)]
pub struct OnDisk {
    /// What it is.
    pub id: LeafId,
    /// Bytes of its content.
    pub bytes: u32,
    /// The file that it is in.
    pub path: PathBuf,
    /// Its first byte there: a multiple of 4096.
    pub at: u64,
}

/// Memory for copies.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    base: NonNull<c_void>,
    bytes: usize,
    slots: Mutex<Slots>,
    /// What it is made of, for people.
    pub about: String,
}

// SAFETY: the region lives as long as the arena; a slot is written by the one thread that took it off the free list, before
// anybody else is told of it, and only read after that.
#[allow(unsafe_code)]
unsafe impl Send for Arena {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Arena {}

#[derive(Debug)]
struct Slots {
    free: Vec<usize>,
    taken: BTreeMap<LeafId, Slot>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    number: usize,
    bytes: u32,
    users: usize,
}

/// What a loading took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loaded {
    /// Bytes that were read and verified.
    pub bytes: u64,
    /// How long that took.
    pub took: Duration,
}

impl Arena {
    /// Allocates so many bytes, rounded down to whole slots.
    ///
    /// # Errors
    /// The host has not so much memory.
    pub fn allocate(bytes: u64) -> Result<Self, ArenaError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX) / LEAF_BYTES * LEAF_BYTES;
        let failed =
            |doing| move |error: rustix::io::Errno| ArenaError { doing, bytes: bytes as u64, source: error.into() };
        let huge = Self::map(bytes, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
        let (file, base, huge) = match huge {
            Ok((file, base)) => (file, base, true),
            Err(_) => {
                available(bytes as u64)?;
                let (file, base) = Self::map(bytes, MemfdFlags::empty()).map_err(failed("map"))?;
                (file, base, false)
            }
        };
        let slots = Slots { free: (0..bytes / LEAF_BYTES).rev().collect(), taken: BTreeMap::new() };
        let mut arena = Self { file, base, bytes, slots: Mutex::new(slots), about: String::new() };
        arena.touch().map_err(failed("allocate"))?;
        let locked = arena.lock();
        let pages = if huge { "huge pages" } else { "ordinary pages: reserve huge ones with vm.nr_hugepages" };
        let pinned = if locked { "locked" } else { "not locked: raise the limit of locked memory" };
        arena.about = format!("{pages}, {pinned}");
        Ok(arena)
    }

    fn map(bytes: usize, flags: MemfdFlags) -> Result<(OwnedFd, NonNull<c_void>), rustix::io::Errno> {
        let file = rustix::fs::memfd_create("pilotlight-copies", MemfdFlags::CLOEXEC | flags)?;
        rustix::fs::ftruncate(&file, bytes as u64)?;
        // SAFETY: a new mapping, at an address that the kernel chooses, of a file that is as long; nothing else is touched.
        #[allow(unsafe_code)]
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes.max(1),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        NonNull::new(base).map(|base| (file, base)).ok_or(rustix::io::Errno::NOMEM)
    }

    /// Has every page there, by several threads: what is not reserved fails here, and not in the middle of a restore.
    fn touch(&self) -> Result<(), rustix::io::Errno> {
        if self.bytes == 0 {
            return Ok(());
        }
        // SAFETY: the region is this arena's own.
        #[allow(unsafe_code)]
        let _ = unsafe { rustix::mm::madvise(self.base.as_ptr(), self.bytes, Advice::LinuxHugepage) };
        let threads = threads();
        let each = self.bytes.div_ceil(threads).next_multiple_of(LEAF_BYTES);
        let failed: Mutex<Result<(), rustix::io::Errno>> = Mutex::new(Ok(()));
        std::thread::scope(|scope| {
            for from in (0..self.bytes).step_by(each) {
                let bytes = each.min(self.bytes - from);
                let failed = &failed;
                scope.spawn(move || {
                    // Allocates, where touching would end the process with a signal if there is no memory.
                    let done = rustix::fs::fallocate(
                        &self.file,
                        rustix::fs::FallocateFlags::empty(),
                        from as u64,
                        bytes as u64,
                    );
                    // SAFETY: the range lies in this arena's own region.
                    #[allow(unsafe_code)]
                    let mapped = done.and_then(|()| unsafe {
                        rustix::mm::madvise(self.base.as_ptr().byte_add(from), bytes, Advice::LinuxPopulateWrite)
                    });
                    // Before Linux 5.14 pages are mapped when they are first used; they are there.
                    let done = if mapped == Err(rustix::io::Errno::INVAL) { Ok(()) } else { mapped };
                    if done.is_err() {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) = done;
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> bool {
        // SAFETY: the region is this arena's own, and mapped.
        #[allow(unsafe_code)]
        let locked = unsafe { rustix::mm::mlock(self.base.as_ptr(), self.bytes) };
        locked.is_ok()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that it holds in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Reads leaves off the disk, past the page cache, and verifies each. Those that are here already are used once more. All
    /// of them come, or none; they stay until the answer is dropped.
    ///
    /// # Errors
    /// There is no room, or the disk has something else or fails.
    pub fn load(self: &Arc<Self>, leaves: &[OnDisk]) -> Result<(Held, Loaded), LoadError> {
        let began = now();
        let mut held = Held { arena: self.clone(), leaves: Vec::new() };
        let new: Vec<(usize, &OnDisk)> = {
            let mut slots = self.slots();
            let each: BTreeMap<LeafId, &OnDisk> = leaves.iter().map(|leaf| (leaf.id, leaf)).collect();
            let (here, mut new): (Vec<_>, Vec<_>) = each.into_iter().partition(|(id, _)| slots.taken.contains_key(id));
            // What lies together on the disk lies together here.
            new.sort_by_key(|(_, leaf)| (&leaf.path, leaf.at));
            if new.len() > slots.free.len() {
                return Err(LoadError::Full { free: slots.free.len(), wanted: new.len() });
            }
            for (id, _) in here {
                slots.taken.entry(id).and_modify(|slot| slot.users += 1);
                held.leaves.push(id);
            }
            new.into_iter().filter_map(|(_, leaf)| Some((slots.free.pop()?, leaf))).collect()
        };
        let read = self.read_all(&new);
        let mut slots = self.slots();
        if let Err(error) = read {
            slots.free.extend(new.iter().map(|(number, _)| *number));
            drop(slots);
            return Err(error);
        }
        for (number, leaf) in &new {
            // Somebody else may have loaded the same meanwhile.
            let slot = Slot { number: *number, bytes: leaf.bytes, users: 0 };
            let known = slots.taken.entry(leaf.id).or_insert(slot);
            known.users += 1;
            if known.number != *number {
                slots.free.push(*number);
            }
            held.leaves.push(leaf.id);
        }
        drop(slots);
        let bytes = new.iter().map(|(_, leaf)| u64::from(leaf.bytes)).sum();
        Ok((held, Loaded { bytes, took: began.elapsed() }))
    }

    fn read_all(&self, new: &[(usize, &OnDisk)]) -> Result<(), LoadError> {
        let (next, damaged) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let failed: Mutex<Result<(), LoadError>> = Mutex::new(Ok(()));
        std::thread::scope(|scope| {
            for _ in 0..threads().min(new.len()) {
                scope.spawn(|| {
                    while let Some((number, leaf)) = new.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match self.read(*number, leaf) {
                            Ok(true) => {}
                            Ok(false) => damaged.lock().unwrap_or_else(PoisonError::into_inner).push(leaf.id),
                            Err(source) => {
                                let error = LoadError::Disk { leaf: leaf.id, source };
                                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Err(error);
                                return;
                            }
                        }
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        let damaged = damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
        if damaged.is_empty() { Ok(()) } else { Err(LoadError::Damaged(damaged)) }
    }

    /// Fills a slot that nobody else has; whether the leaf is what it should be.
    fn read(&self, number: usize, leaf: &OnDisk) -> std::io::Result<bool> {
        let bytes = leaf.bytes as usize;
        if bytes > LEAF_BYTES {
            return Ok(false);
        }
        // SAFETY: the slot lies in the region, and was taken off the free list by this thread's caller: nobody else reads or
        // writes it until it is in `taken`.
        #[allow(unsafe_code)]
        let slot = unsafe {
            std::slice::from_raw_parts_mut(self.base.as_ptr().byte_add(number * LEAF_BYTES).cast::<u8>(), LEAF_BYTES)
        };
        let whole = bytes.next_multiple_of(BLOCK_BYTES);
        let direct =
            File::options().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed()).open(&leaf.path);
        let got = direct.and_then(|file| fill(&file, leaf.at, &mut slot[..whole]));
        let got = match got {
            // Filesystems in memory know no such reads.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                File::open(&leaf.path).and_then(|file| fill(&file, leaf.at, &mut slot[..whole]))
            }
            got => got,
        };
        match got {
            Ok(got) => Ok(got == bytes && LeafId::of(&slot[..bytes]) == leaf.id),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// First byte of a leaf that is held.
    #[must_use]
    pub fn place(&self, id: LeafId) -> Option<u64> {
        self.slots().taken.get(&id).map(|slot| (slot.number * LEAF_BYTES) as u64)
    }

    /// The region as a file, as long as this process has it: for another process of the same user, which registers it with a
    /// driver.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// Lets go of leaves, once each.
    fn release(&self, leaves: &[LeafId]) {
        let mut slots = self.slots();
        for id in leaves {
            let Some(slot) = slots.taken.get_mut(id) else { continue };
            slot.users = slot.users.saturating_sub(1);
            let slot = *slot;
            if slot.users == 0 {
                slots.taken.remove(id);
                slots.free.push(slot.number);
            }
        }
    }

    /// A leaf, as long as whoever looks at it holds it.
    #[must_use]
    pub fn leaf(self: &Arc<Self>, id: LeafId) -> Option<Leaf> {
        let mut slots = self.slots();
        let slot = slots.taken.get_mut(&id)?;
        slot.users += 1;
        let (number, bytes) = (slot.number, slot.bytes as usize);
        drop(slots);
        Some(Leaf { arena: self.clone(), id, number, bytes })
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, at: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], at + got as u64) {
            // What is no multiple of a block is the end.
            Ok(more) if more % BLOCK_BYTES != 0 || more == 0 => return Ok(got + more),
            Ok(more) => got += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping is this arena's own, and nothing borrows of it any more.
        #[allow(unsafe_code)]
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr(), self.bytes.max(1)) };
    }
}

/// Leaves that stay in memory as long as this is held.
#[derive(Debug)]
pub struct Held {
    arena: Arc<Arena>,
    leaves: Vec<LeafId>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.arena.release(&self.leaves);
    }
}

/// A leaf in memory; its slot is not given to another as long as this is held.
#[derive(Debug)]
pub struct Leaf {
    arena: Arc<Arena>,
    id: LeafId,
    number: usize,
    bytes: usize,
}

impl Leaf {
    /// Its first byte in the region.
    #[must_use]
    pub fn place(&self) -> u64 {
        (self.number * LEAF_BYTES) as u64
    }
}

impl Deref for Leaf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the slot was filled before it was in `taken`, and is not written again while it has users, of which this is one.
        #[allow(unsafe_code)]
        unsafe {
            let from = self.arena.base.as_ptr().byte_add(self.number * LEAF_BYTES).cast::<u8>();
            std::slice::from_raw_parts(from, self.bytes)
        }
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        self.arena.release(&[self.id]);
    }
}

/// Whether the host has so much memory that nobody needs: what is beyond would end other processes.
fn available(bytes: u64) -> Result<(), ArenaError> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    match kib {
        Some(kib) if bytes > kib * 1024 / 10 * 9 => {
            Err(ArenaError { doing: "allocate", bytes, source: std::io::ErrorKind::OutOfMemory.into() })
        }
        _ => Ok(()),
    }
}

fn threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZeroUsize::get);
    (2 * cores).clamp(4, THREADS_MAX)
}

#[allow(clippy::disallowed_methods, reason = "loading takes real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(folder: &std::path::Path, sizes: &[usize]) -> Vec<OnDisk> {
        let write = |(n, bytes): (usize, &usize)| {
            let content: Vec<u8> = (0..*bytes).map(|i| ((i * (n + 3)) >> 4) as u8).collect();
            let path = folder.join(n.to_string());
            std::fs::write(&path, &content).expect("written");
            OnDisk { id: LeafId::of(&content), bytes: *bytes as u32, path, at: 0 }
        };
        sizes.iter().enumerate().map(write).collect()
    }

    #[test]
    fn leaves_come_whole_or_not_at_all_and_slots_come_back() {
        let folder = tempfile::tempdir().expect("works");
        let arena = Arc::new(Arena::allocate(8 * LEAF_BYTES as u64 + 17).expect("memory"));
        assert_eq!(arena.bytes(), 8 * LEAF_BYTES as u64);
        let on_disk = leaves(folder.path(), &[LEAF_BYTES, 1, 4096, 4097, LEAF_BYTES - 1, 0]);
        let (held, loaded) = arena.load(&on_disk).expect("sound");
        assert_eq!(loaded.bytes, on_disk.iter().map(|leaf| u64::from(leaf.bytes)).sum::<u64>());
        let (again, loaded) = arena.load(&on_disk).expect("sound");
        assert_eq!(loaded.bytes, 0, "they are here");
        for leaf in &on_disk {
            let here = arena.leaf(leaf.id).expect("loaded");
            assert_eq!(&*here, &std::fs::read(&leaf.path).expect("read")[..]);
        }
        let ids: Vec<LeafId> = on_disk.iter().map(|leaf| leaf.id).collect();
        let seen = arena.leaf(ids[0]).expect("loaded");
        drop(held);
        assert!(arena.leaf(ids[1]).is_some(), "another holds them");
        drop(again);
        assert!(arena.leaf(ids[1]).is_none() && arena.leaf(ids[0]).is_some(), "what is looked at stays");
        drop(seen);
        assert!(arena.leaf(ids[0]).is_none());
        // Bits that have flipped, files that are too short or gone: all are named, nothing comes, and no slot is lost.
        let flip = |n: usize| {
            let mut damaged = std::fs::read(&on_disk[n].path).expect("read");
            damaged[n] ^= 1;
            std::fs::write(&on_disk[n].path, &damaged).expect("written");
        };
        flip(0);
        flip(3);
        std::fs::remove_file(&on_disk[2].path).expect("removed");
        std::fs::write(&on_disk[4].path, [0; 4096]).expect("written");
        let Err(LoadError::Damaged(mut damaged)) = arena.load(&on_disk) else { panic!("not found") };
        damaged.sort_unstable();
        let mut wanted = [0, 2, 3, 4].map(|n| ids[n]);
        wanted.sort_unstable();
        assert_eq!(damaged, wanted);
        let many = leaves(folder.path(), &[5000; 8]);
        assert!(arena.load(&many).is_ok());
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let folder = tempfile::tempdir().expect("works");
        let arena = Arc::new(Arena::allocate(2 * LEAF_BYTES as u64).expect("memory"));
        let on_disk = leaves(folder.path(), &[10, 20, 30]);
        assert!(matches!(arena.load(&on_disk), Err(LoadError::Full { free: 2, wanted: 3 })));
        assert!(arena.load(&on_disk[..2]).is_ok());
        assert!(Arena::allocate(1 << 50).is_err(), "more than the host has");
        assert_eq!(Arena::allocate(0).map(|arena| arena.bytes()).ok(), Some(0));
    }
}
