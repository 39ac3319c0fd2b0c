//! Files into a store.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;
use snapshots::builder::{Known, Pack};
use snapshots::leaf::{Compression, LEAF_BYTES};
use snapshots::manifest::{Kind, ManifestError, Reference, is_plain_path};
use snapshots::{IndexRecord, LeafId, ObjectBuilder, ObjectId};
use tokio::task::JoinSet;

use super::store::lease::Lease;
use super::store::{self, Store, StoreError};

/// Packs that are stored at the same time: each is 64 MiB of memory.
const IN_FLIGHT: usize = 4;

/// What is to be stored, beside its content.
#[derive(Debug, Clone)]
pub struct About {
    /// What it holds.
    pub kind: Kind,
    /// Whether leaves are compressed.
    pub compression: Compression,
    /// What it needs beside.
    pub references: Vec<Reference>,
    /// For people and tools.
    pub labels: BTreeMap<String, String>,
}

impl About {
    /// Nothing but what it holds.
    #[must_use]
    pub fn kind(kind: Kind) -> Self {
        Self { kind, compression: Compression::Never, references: Vec::new(), labels: BTreeMap::new() }
    }
}

/// References to objects of a store.
///
/// # Errors
/// One is not there.
pub async fn references(store: &Store, needs: &[ObjectId]) -> Result<Vec<Reference>, StoreError> {
    let mut references = Vec::new();
    for id in needs {
        references.push(Reference { kind: store.manifest(*id).await?.kind, id: *id });
    }
    Ok(references)
}

/// What storing files did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// The object.
    pub id: ObjectId,
    /// Bytes of all files.
    pub bytes: u64,
    /// Packs that were new.
    pub new_packs: usize,
    /// Bytes of new packs.
    pub new_bytes: u64,
}

/// A file, with the name that its stream gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Name of the stream.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
}

/// The files below `root`, or `root` itself, by their names. Whatever is no regular file is refused: an object of files has no
/// links, devices or sockets, and nothing is left out silently.
///
/// # Errors
/// Something cannot be read, is no regular file or folder, or has a name that no stream has.
pub fn sources(root: &Path) -> anyhow::Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut left = vec![(root.to_owned(), String::new())];
    while let Some((path, name)) = left.pop() {
        let shown = path.display();
        let meta = std::fs::symlink_metadata(&path).with_context(|| format!("cannot read {shown}"))?;
        let of_root = || path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if meta.is_file() {
            let name = if name.is_empty() { of_root() } else { name };
            found.push(Source { name, path, bytes: meta.len() });
        } else if meta.is_dir() {
            for entry in std::fs::read_dir(&path).with_context(|| format!("cannot read {shown}"))? {
                let entry = entry.with_context(|| format!("cannot read {shown}"))?;
                let last = entry.file_name().to_string_lossy().into_owned();
                let name = if name.is_empty() { last } else { format!("{name}/{last}") };
                left.push((entry.path(), name));
            }
        } else {
            anyhow::bail!("{shown} is neither a file nor a folder: such an object holds files only");
        }
    }
    // Before anything is read.
    if let Some(source) = found.iter().find(|source| !is_plain_path(&source.name)) {
        return Err(ManifestError::Name(source.name.clone()).into());
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Where the store has leaves already.
///
/// # Errors
/// The store cannot be read.
async fn known(store: &Store) -> Result<BTreeMap<LeafId, Known>, StoreError> {
    let mut known = BTreeMap::new();
    for id in store.objects().await? {
        let manifest = match store.manifest(id).await {
            Ok(manifest) => manifest,
            // Removed meanwhile.
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        };
        let bytes = store.index(manifest.index).await?;
        let index = store::index(&bytes, manifest.index)?;
        let of = |(pack, leaf): (_, IndexRecord)| (leaf.id, Known { pack, place: leaf.place, codec: leaf.codec });
        known.extend(index.stored().map(of));
    }
    Ok(known)
}

/// Stores files as one object; `told` hears of each stretch of bytes that was read.
///
/// # Errors
/// A file or the store fails, or a name is no stream's.
pub async fn put(store: &Store, sources: &[Source], about: About, told: impl Fn(u64)) -> anyhow::Result<Done> {
    let mut writer = Writer::open(store, about.compression).await?;
    let mut content = vec![0; LEAF_BYTES];
    for source in sources {
        let shown = || format!("cannot read {}", source.path.display());
        let mut file = File::open(&source.path).with_context(shown)?;
        let before = file.metadata().with_context(shown)?;
        writer.stream(&source.name);
        let mut at = 0;
        loop {
            // What a file does not hold reads as zeros, and need not be read.
            let hole = hole_bytes(&file, at, before.len());
            let read = if hole == 0 {
                fill(&mut file, &mut content).with_context(shown)?
            } else {
                file.seek(SeekFrom::Start(at + hole)).with_context(shown)?;
                content[..hole as usize].fill(0);
                hole as usize
            };
            if read == 0 {
                break;
            }
            writer.leaf(&content[..read]).await?;
            told(read as u64);
            at += read as u64;
            // Whoever wants this to end is heard, also where nothing is waited for.
            tokio::task::yield_now().await;
        }
        let after = file.metadata().with_context(shown)?;
        let same = before.len() == after.len() && before.modified().ok() == after.modified().ok();
        anyhow::ensure!(same, "{} changed while it was read; try again", source.path.display());
    }
    writer.publish(about).await
}

/// An object on its way into a store.
pub struct Writer {
    builder: ObjectBuilder<Box<dyn Fn(LeafId) -> Option<Known> + Send>>,
    uploads: Uploads,
    bytes: u64,
    /// What is there already stays there meanwhile.
    lease: Lease,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Writer {
    /// A new object; what the store has already is not stored again.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn open(store: &Store, compression: Compression) -> Result<Self, StoreError> {
        let lease = Lease::take_beside_no_collection(store).await?;
        let known = known(store).await?;
        Ok(Self {
            lease,
            builder: ObjectBuilder::new(compression, Box::new(move |id| known.get(&id).copied())),
            uploads: Uploads { store: store.clone(), running: JoinSet::new(), packs: 0, bytes: 0 },
            bytes: 0,
        })
    }

    /// Begins a stream: what is added from now on belongs to it.
    pub fn stream(&mut self, name: &str) {
        self.builder.stream(name);
    }

    /// Adds a leaf of 1 to [`LEAF_BYTES`] bytes to the stream that was begun last.
    ///
    /// # Errors
    /// The store does not take a pack.
    pub async fn leaf(&mut self, content: &[u8]) -> anyhow::Result<()> {
        self.bytes += content.len() as u64;
        if let Some(pack) = self.builder.add(content)
            && let Some(buffer) = self.uploads.add(pack).await?
        {
            self.builder.recycle(buffer);
        }
        Ok(())
    }

    /// Stores what is left, the manifest last: until then there is no object.
    ///
    /// # Errors
    /// The store does not take it, a stream's name is none, or what it needs is gone.
    pub async fn publish(mut self, about: About) -> anyhow::Result<Done> {
        let needs: Vec<ObjectId> = about.references.iter().map(|reference| reference.id).collect();
        let finished = self.builder.finish(about.kind, about.references, about.labels)?;
        if let Some(pack) = finished.pack {
            self.uploads.add(pack).await?;
        }
        let store = self.uploads.store.clone();
        let (new_packs, new_bytes) = self.uploads.end().await?;
        let id = finished.manifest.0;
        if !self.lease.is_held().await? {
            return Err(StoreError::LeaseLost.into());
        }
        // They were there when this began; a removal since then would leave this one without them.
        references(&store, &needs).await?;
        store.publish(finished.index, finished.manifest).await?;
        if let Err(error) = self.lease.release().await {
            tracing::warn!("a lease stays until it ends by itself: {error}");
        }
        Ok(Done { id, bytes: self.bytes, new_packs, new_bytes })
    }
}

/// Bytes of the leaf at `at` of a file of `bytes`, if it lies in a hole; 0 where something is to be read. The file is read on
/// from `at`.
fn hole_bytes(file: &File, at: u64, bytes: u64) -> u64 {
    let leaf = (bytes.saturating_sub(at)).min(LEAF_BYTES as u64);
    let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => data,
        // No data from there on.
        Err(rustix::io::Errno::NXIO) => u64::MAX,
        // A filesystem that does not tell.
        Err(_) => at,
    };
    // Where there is data, it was looked for, and the place is another now; where that fails, so does reading.
    let _ = rustix::fs::seek(file, rustix::fs::SeekFrom::Start(at));
    if data >= at + leaf { leaf } else { 0 }
}

/// Reads until `content` is full or the file ends.
pub(super) fn fill(file: &mut impl Read, content: &mut [u8]) -> std::io::Result<usize> {
    let mut read = 0;
    while read < content.len() {
        match file.read(&mut content[read..]) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Packs on their way, a few at a time.
struct Uploads {
    store: Store,
    running: JoinSet<Result<Vec<u8>, StoreError>>,
    packs: usize,
    bytes: u64,
}

impl Uploads {
    /// Sends a pack on its way; the buffer of one that has arrived, where that had to be waited for.
    async fn add(&mut self, pack: Pack) -> anyhow::Result<Option<Vec<u8>>> {
        let buffer = if self.running.len() == IN_FLIGHT { self.one_arrived().await? } else { None };
        (self.packs, self.bytes) = (self.packs + 1, self.bytes + pack.bytes.len() as u64);
        let store = self.store.clone();
        self.running.spawn(async move { store.put_pack(pack.id, pack.bytes).await });
        Ok(buffer)
    }

    async fn one_arrived(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        Ok(match self.running.join_next().await {
            Some(arrived) => Some(arrived??),
            None => None,
        })
    }

    async fn end(mut self) -> anyhow::Result<(usize, u64)> {
        while self.one_arrived().await?.is_some() {}
        Ok((self.packs, self.bytes))
    }
}
