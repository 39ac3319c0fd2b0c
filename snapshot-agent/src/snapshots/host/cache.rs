//! Leaves on the host's disk: one file each, named by its content, so that objects share them. A file is there whole or not at
//! all. It was verified before it was written, and is once more when it is first read after a start: disks forget.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapshots::eviction::Eviction;
use snapshots::leaf::Codec;
use snapshots::{Index, LeafId, Manifest, ObjectId};

use super::kept::Kept;

/// Files that are kept open.
const OPEN_MAX: usize = 400;
/// What a leaf costs that has to be fetched again, beside its bytes: one request to an object store, seconds.
const REQUEST_S: f64 = 0.05;
/// And for its bytes, in bytes a second.
const FETCH_BYTES_PER_S: f64 = 1e9;

/// Why a folder is no cache.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot hold a cache: give a folder that this process may write to", folder.display())]
pub struct CacheError {
    /// The folder.
    pub folder: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// The content of a leaf, verified.
#[derive(Debug, Clone)]
pub enum Content {
    /// Zeros, which lie nowhere.
    Zeros,
    /// In a file of the cache. It can be read even when the cache has let go of it.
    File(Arc<File>),
    /// In memory, because the disk would not take it.
    Memory(Arc<[u8]>),
}

impl Content {
    /// Reads from `at` on; the range lies in the leaf.
    ///
    /// # Errors
    /// The disk fails.
    pub fn read(&self, at: usize, out: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::Zeros => out.fill(0),
            Self::File(file) => file.read_exact_at(out, at as u64)?,
            Self::Memory(bytes) => {
                let range = bytes.get(at..at + out.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
                out.copy_from_slice(range);
            }
        }
        Ok(())
    }
}

/// What a cache did since it was opened.
#[derive(Debug, Default)]
pub struct Counts {
    /// Leaves that were damaged on the disk, found and thrown away.
    pub damaged: AtomicU64,
    /// Leaves that the disk would not take.
    pub refused: AtomicU64,
    /// Leaves that had to go.
    pub evicted: AtomicU64,
    /// Bytes that were read off the disk to be verified.
    pub verified_bytes: AtomicU64,
}

/// Leaves on a disk.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    state: Mutex<State>,
    /// What it did.
    pub counts: Counts,
}

#[derive(Debug)]
struct State {
    /// Leaves that stay for objects that were staged when room was last made, by whichever process.
    staged: BTreeMap<ObjectId, Vec<LeafId>>,
    /// How often each leaf is pinned, here or not: one that comes again stays as it did.
    pins: BTreeMap<LeafId, u32>,
    eviction: Eviction<LeafId>,
    /// Open files of leaves that were verified since the start.
    open: BTreeMap<LeafId, Arc<File>>,
    /// Leaves that were verified since the start.
    verified: std::collections::BTreeSet<LeafId>,
    written: u64,
}

impl Cache {
    /// The cache in a folder, which is made if it is not there, with room for `budget_bytes`. What is in it already counts.
    ///
    /// # Errors
    /// The folder cannot be made, read or written to.
    pub fn open(folder: &Path, budget_bytes: u64) -> Result<Self, CacheError> {
        let wrong = |source| CacheError { folder: folder.to_owned(), source };
        let leaves = folder.join("leaves");
        // What lies here in the clear may be sealed where it comes from: a new folder is its owner's alone.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&leaves).map_err(wrong)?;
        // Says now, and not at the first leaf, that it is read-only.
        tempfile::tempfile_in(folder).map_err(wrong)?;
        let mut eviction = Eviction::new(budget_bytes);
        for group in fs::read_dir(&leaves).map_err(wrong)? {
            // What is no folder is not ours, and what is gone was taken by another process that has the same cache.
            let Ok(entries) = fs::read_dir(group.map_err(wrong)?.path()) else { continue };
            for entry in entries.filter_map(Result::ok) {
                let name = entry.file_name();
                match name.to_str().map(|name| (name, name.parse::<LeafId>())) {
                    Some((_, Ok(id))) => {
                        if let Ok(meta) = entry.metadata() {
                            eviction.admit(id, meta.len(), seconds(meta.len()));
                        }
                    }
                    Some((name, Err(_))) if is_left_over(name) => drop(fs::remove_file(entry.path())),
                    _ => {}
                }
            }
        }
        let state = State {
            staged: BTreeMap::new(),
            pins: BTreeMap::new(),
            eviction,
            open: BTreeMap::new(),
            verified: [].into(),
            written: 0,
        };
        let cache = Self { folder: folder.to_owned(), state: Mutex::new(state), counts: Counts::default() };
        let gone = cache.state().evict(folder);
        cache.let_go(&gone);
        Ok(cache)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a leaf, whether it is there or not.
    #[must_use]
    pub fn path(&self, id: LeafId) -> PathBuf {
        let name = id.to_string();
        self.folder.join("leaves").join(&name[..2]).join(&name)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Bytes and leaves that it holds.
    #[must_use]
    pub fn held(&self) -> (u64, usize) {
        let state = self.state();
        (state.eviction.bytes(), state.eviction.entries())
    }

    /// A leaf that is open already: no I/O, no verification. What a mount's readers meet when it is warm.
    #[must_use]
    pub fn ready(&self, id: LeafId) -> Option<Content> {
        let state = self.state();
        state.open.get(&id).map(|file| Content::File(file.clone()))
    }

    /// Whether it is on the disk, verified or not.
    #[must_use]
    pub fn holds(&self, id: LeafId) -> bool {
        self.state().eviction.holds(id)
    }

    /// A leaf, verified since the start. One that is damaged is thrown away, and counts as not there.
    #[must_use]
    pub fn get(&self, id: LeafId) -> Option<Content> {
        if let Some(content) = self.ready(id) {
            return Some(content);
        }
        if !self.state().eviction.holds(id) {
            return None;
        }
        let file = match File::open(self.path(id)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            // Too many open files, say: nothing is known against the leaf.
            Err(_) => return None,
        };
        let known = self.state().verified.contains(&id);
        let verified = |file: &File| {
            let bytes = file.metadata().map_or(0, |meta| meta.len());
            self.counts.verified_bytes.fetch_add(bytes, Ordering::Relaxed);
            is_whole(id, file)
        };
        let Some(file) = file.filter(|file| known || verified(file)) else {
            self.counts.damaged.fetch_add(1, Ordering::Relaxed);
            self.state().eviction.remove(id);
            drop(fs::remove_file(self.path(id)));
            return None;
        };
        let mut state = self.state();
        state.eviction.used(id);
        Some(Content::File(state.keep_open(id, file)))
    }

    /// Writes a leaf whose content was verified. Where the disk does not take it, the content stays in memory as long as somebody
    /// holds it.
    #[must_use]
    pub fn insert(&self, id: LeafId, content: &[u8]) -> Content {
        match self.write(id, content) {
            Ok(file) => {
                let mut state = self.state();
                state.eviction.admit(id, content.len() as u64, seconds(content.len() as u64));
                let kept = state.keep_open(id, file);
                state.repin(id);
                let gone = state.evict(&self.folder);
                for id in &gone {
                    state.open.remove(id);
                    state.verified.remove(id);
                }
                drop(state);
                self.let_go(&gone);
                Content::File(kept)
            }
            Err(error) => {
                if self.counts.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        "the cache in {} takes no more: {error}; reads go on without it",
                        self.folder.display()
                    );
                }
                Content::Memory(content.into())
            }
        }
    }

    /// Keeps these leaves until [`Self::unpin`]; how many are here.
    pub fn pin(&self, leaves: &[LeafId]) -> usize {
        let mut state = self.state();
        leaves.iter().filter(|id| state.pin(**id)).count()
    }

    /// Throws a leaf away that was found damaged.
    pub fn discard(&self, id: LeafId) {
        self.counts.damaged.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        state.eviction.remove(id);
        state.open.remove(&id);
        state.verified.remove(&id);
        drop(state);
        drop(fs::remove_file(self.path(id)));
    }

    /// Lets go of leaves that were pinned.
    pub fn unpin(&self, leaves: &[LeafId]) {
        let mut state = self.state();
        leaves.iter().for_each(|id| state.unpin(*id));
    }

    fn write(&self, id: LeafId, content: &[u8]) -> std::io::Result<File> {
        let path = self.path(id);
        let number = {
            let mut state = self.state();
            state.written += 1;
            state.written
        };
        // A name that no leaf has, and no other process that has the same folder.
        let partial = path.with_file_name(format!("partial-{}-{number}", std::process::id()));
        if let Some(group) = path.parent() {
            fs::create_dir_all(group)?;
        }
        let written = (|| {
            let mut file = File::options().read(true).write(true).create_new(true).open(&partial)?;
            file.write_all(content)?;
            fs::rename(&partial, &path)?;
            Ok(file)
        })();
        if written.is_err() {
            drop(fs::remove_file(&partial));
        }
        written
    }

    fn let_go(&self, gone: &[LeafId]) {
        self.counts.evicted.fetch_add(gone.len() as u64, Ordering::Relaxed);
        gone.iter().for_each(|id| drop(fs::remove_file(self.path(*id))));
    }
}

impl State {
    /// Makes room. What is staged stays, whoever staged it: another process may have since this one opened the cache.
    fn evict(&mut self, folder: &Path) -> Vec<LeafId> {
        if !self.eviction.is_full() {
            return Vec::new();
        }
        let kept = Kept::staged(folder);
        let now: std::collections::BTreeSet<ObjectId> = kept.ids().into_iter().collect();
        let gone: Vec<ObjectId> = self.staged.keys().filter(|id| !now.contains(id)).copied().collect();
        for object in gone {
            for leaf in self.staged.remove(&object).unwrap_or_default() {
                self.unpin(leaf);
            }
        }
        for object in now {
            if !self.staged.contains_key(&object)
                && let Some((manifest, index)) = kept.get(object)
            {
                let leaves: Vec<LeafId> = leaf_ids(&manifest, &index).into_iter().collect();
                for leaf in &leaves {
                    self.pin(*leaf);
                }
                self.staged.insert(object, leaves);
            }
        }
        self.eviction.evict()
    }

    /// Pins a leaf; whether it is here.
    fn pin(&mut self, id: LeafId) -> bool {
        let pins = self.pins.entry(id).or_default();
        *pins += 1;
        if *pins == 1 { self.eviction.pin(id) } else { self.eviction.holds(id) }
    }

    fn unpin(&mut self, id: LeafId) {
        let Some(pins) = self.pins.get_mut(&id) else { return };
        *pins -= 1;
        if *pins == 0 {
            self.pins.remove(&id);
            self.eviction.unpin(id);
        }
    }

    /// One that has come again is pinned as it was.
    fn repin(&mut self, id: LeafId) {
        if self.pins.contains_key(&id) && !self.eviction.is_pinned(id) {
            self.eviction.pin(id);
        }
    }

    fn keep_open(&mut self, id: LeafId, file: File) -> Arc<File> {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.verified.insert(id);
        self.open.entry(id).or_insert_with(|| Arc::new(file)).clone()
    }
}

/// Leaves of an object that lie somewhere, each once.
fn leaf_ids(manifest: &Manifest, index: &[u8]) -> std::collections::BTreeSet<LeafId> {
    let Ok(index) = Index::read(index, manifest.index) else { return [].into() };
    let leaves = (0..index.leaves()).filter_map(|i| index.leaf(i));
    leaves.filter(|leaf| leaf.codec != Codec::Zero).map(|leaf| leaf.id).collect()
}

/// Whether a file is what a process that is gone was writing.
fn is_left_over(name: &str) -> bool {
    let process = name.strip_prefix("partial-").and_then(|rest| rest.split('-').next());
    process.is_some_and(|process| !Path::new("/proc").join(process).exists())
}

fn seconds(bytes: u64) -> f64 {
    REQUEST_S + bytes as f64 / FETCH_BYTES_PER_S
}

fn is_whole(id: LeafId, file: &File) -> bool {
    let bytes = file.metadata().map(|meta| meta.len()).unwrap_or(u64::MAX);
    if bytes > snapshots::leaf::LEAF_BYTES as u64 {
        return false;
    }
    let mut content = vec![0; bytes as usize];
    file.read_exact_at(&mut content, 0).is_ok() && LeafId::of(&content) == id
}
