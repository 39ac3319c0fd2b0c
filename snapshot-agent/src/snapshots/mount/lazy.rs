//! An image whose content comes when it is touched.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use snapshots::image::Image;
use snapshots::manifest::Kind;
use snapshots::trace::Trace;
use snapshots::{Manifest, ObjectId};

use crate::snapshots::host::{FetchError, Leaves, Wanted, runs};
use crate::snapshots::image::{DATA_STREAM, META_STREAM};
use crate::snapshots::store;

/// Most bytes of an image's metadata, which lie in memory: ten million files.
const META_BYTES_MAX: u64 = 1 << 30;

/// An image on this host: all of its metadata, and content as far as it was touched.
#[derive(Debug)]
pub struct LazyImage {
    /// Its object.
    pub id: ObjectId,
    /// Its metadata, checked.
    pub meta: Vec<u8>,
    /// Its length, bytes.
    pub bytes: u64,
    leaves: Arc<Leaves>,
    wanted: Vec<Wanted>,
    /// First byte of each leaf.
    starts: Vec<u64>,
    touched: Touched,
}

/// Leaves by their first touch.
#[derive(Debug)]
struct Touched {
    order: Mutex<Vec<u32>>,
    /// So that what was touched before takes no lock.
    seen: Vec<AtomicBool>,
}

/// How much of an image was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Bytes of leaves that were touched.
    pub touched_bytes: u64,
    /// Bytes of the image.
    pub bytes: u64,
}

impl LazyImage {
    /// The image of a manifest and an index. Its metadata is fetched and checked here: what a kernel could be harmed with is refused.
    ///
    /// # Errors
    /// The object is no image, or makes no sense.
    pub async fn open(
        leaves: Arc<Leaves>,
        id: ObjectId,
        manifest: &Manifest,
        index_bytes: &[u8],
    ) -> anyhow::Result<Self> {
        let streams: Vec<&str> = manifest.streams.iter().map(|stream| &stream.name[..]).collect();
        anyhow::ensure!(
            matches!(manifest.kind, Kind::Image | Kind::Cache) && streams == [META_STREAM, DATA_STREAM],
            "object {id} is of kind '{}' and holds files, not a tree: store it with --kind image or --kind cache",
            manifest.kind.name()
        );
        let meta_bytes = manifest.streams[0].bytes;
        anyhow::ensure!(
            meta_bytes <= META_BYTES_MAX,
            "object {id} has {meta_bytes} bytes of metadata: at most {META_BYTES_MAX} are mounted"
        );
        let index = store::index(index_bytes, manifest.index)?;
        let ranges = manifest.ranges(&index).with_context(|| format!("object {id}"))?;
        store::check_zeros(&index)?;
        let mut starts = Vec::with_capacity(index.leaves());
        let (mut wanted, mut bytes) = (Vec::with_capacity(index.leaves()), 0);
        for record in (0..index.leaves()).filter_map(|i| index.leaf(i)) {
            starts.push(bytes);
            bytes += u64::from(record.content_bytes);
            wanted.push(Wanted { pack: index.pack_of(&record), record });
        }
        let mut meta = Vec::new();
        for wanted in &wanted[ranges[0].clone()] {
            let content = leaves.get(*wanted).await?;
            let from = meta.len();
            meta.resize(from + wanted.record.content_bytes as usize, 0);
            content.read(0, &mut meta[from..])?;
        }
        Image::open(&meta, bytes).and_then(|image| image.check()).with_context(|| format!("object {id}"))?;
        let seen = wanted.iter().map(|_| AtomicBool::new(false)).collect();
        let touched = Touched { order: Mutex::default(), seen };
        Ok(Self { id, meta, bytes, leaves, wanted, starts, touched })
    }

    /// The leaf that a byte lies in.
    fn leaf_at(&self, at: u64) -> usize {
        self.starts.partition_point(|start| *start <= at).saturating_sub(1)
    }

    /// The parts of a range: leaf, first byte in it, range of the answer.
    fn parts(&self, at: u64, bytes: usize) -> Vec<(usize, usize, std::ops::Range<usize>)> {
        let end = self.bytes.min(at.saturating_add(bytes as u64));
        let (mut parts, mut next) = (Vec::new(), at);
        while next < end {
            let leaf = self.leaf_at(next);
            let leaf_end = self.starts[leaf] + u64::from(self.wanted[leaf].record.content_bytes);
            let until = leaf_end.min(end);
            parts.push((leaf, (next - self.starts[leaf]) as usize, (next - at) as usize..(until - at) as usize));
            next = until;
        }
        parts
    }

    fn touch(&self, leaf: usize) {
        if !self.touched.seen[leaf].load(Ordering::Relaxed) && !self.touched.seen[leaf].swap(true, Ordering::Relaxed) {
            self.touched.order.lock().unwrap_or_else(PoisonError::into_inner).push(leaf as u32);
        }
    }

    /// A range, if nothing has to be waited for; shorter at the end of the image.
    ///
    /// # Errors
    /// The disk fails.
    pub fn ready(&self, at: u64, bytes: usize) -> std::io::Result<Option<Vec<u8>>> {
        if let Some(inside) = usize::try_from(at).ok().and_then(|at| self.meta.get(at..at.checked_add(bytes)?)) {
            return Ok(Some(inside.to_vec()));
        }
        let parts = self.parts(at, bytes);
        let contents: Option<Vec<_>> = parts.iter().map(|(leaf, ..)| self.leaves.ready(&self.wanted[*leaf])).collect();
        let Some(contents) = contents else { return Ok(None) };
        let mut out = vec![0; parts.last().map_or(0, |(.., range)| range.end)];
        for ((leaf, from, range), content) in parts.into_iter().zip(contents) {
            self.touch(leaf);
            content.read(from, &mut out[range])?;
        }
        Ok(Some(out))
    }

    /// A range, fetched where it is not on this host; shorter at the end of the image.
    ///
    /// # Errors
    /// A leaf is in no tier, or the disk fails.
    pub async fn read(&self, at: u64, bytes: usize) -> Result<Vec<u8>, ReadError> {
        let parts = self.parts(at, bytes);
        let mut out = vec![0; parts.last().map_or(0, |(.., range)| range.end)];
        for (leaf, from, range) in parts {
            self.touch(leaf);
            let content = self.leaves.get(self.wanted[leaf]).await?;
            content.read(from, &mut out[range])?;
        }
        Ok(out)
    }

    /// What this run touched, in order.
    #[must_use]
    pub fn touched(&self) -> Vec<u32> {
        self.touched.order.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How much was touched.
    #[must_use]
    pub fn share(&self) -> Share {
        let of = |leaf: &u32| u64::from(self.wanted[*leaf as usize].record.content_bytes);
        Share { touched_bytes: self.touched().iter().map(of).sum(), bytes: self.bytes }
    }

    /// Fetches what earlier runs touched, in their order, as long stretches of packs.
    pub async fn prefetch(self: &Arc<Self>, trace: &Trace) {
        let order = trace.order(self.wanted.len());
        let missing = |wanted: &Wanted| !self.leaves.cache().holds(wanted.record.id);
        let wanted = order.iter().map(|leaf| self.wanted[*leaf as usize]).filter(missing);
        // What cannot be had now is said to whoever touches it.
        futures::future::join_all(runs(wanted).into_iter().map(|run| self.leaves.ahead(run))).await;
    }
}

/// Why a range cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A leaf is in no tier.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The disk fails.
    #[error("the disk fails")]
    Disk(#[from] std::io::Error),
}
