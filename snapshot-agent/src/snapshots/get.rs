//! An object out of a store, as files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use snapshots::{IndexRecord, Manifest, PackId};

use super::host::cache::Cache;
use super::store::{self, Store};

/// Packs that are fetched at the same time: each is 64 MiB of memory.
const PACKS_AT_ONCE: usize = 6;

/// Where a leaf goes.
#[derive(Debug, Clone, Copy)]
struct Target {
    record: IndexRecord,
    /// Number of the stream.
    stream: usize,
    /// First byte in it.
    at: u64,
}

/// Writes the streams of an object as files below `folder`, which must not be there yet: it appears whole or not at all. Every
/// byte is verified; `told` hears of each stretch.
///
/// # Errors
/// The folder is there or cannot be written, or the store fails or holds something else.
pub async fn get(store: &Store, manifest: &Manifest, folder: &Path, told: impl Fn(u64)) -> anyhow::Result<u64> {
    get_some(store, manifest, folder, &Which { streams: &|_| true, local: None }, told).await
}

/// Which part of an object is written, and what of it is on this host already.
#[allow(missing_debug_implementations, reason = "a function has none")]
pub struct Which<'a> {
    /// Whether a stream of this name is wanted.
    pub streams: &'a (dyn Fn(&str) -> bool + Sync),
    /// Leaves that are here.
    pub local: Option<&'a Cache>,
}

/// As [`get`], of a part of the streams, and from this host where it has them.
///
/// # Errors
/// As [`get`].
pub async fn get_some(
    store: &Store,
    manifest: &Manifest,
    folder: &Path,
    which: &Which<'_>,
    told: impl Fn(u64),
) -> anyhow::Result<u64> {
    if folder.exists() {
        anyhow::bail!("{} is there already: name a folder that is not", folder.display());
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut make = tempfile::Builder::new();
    // Not private as temporary folders are: it gets what the user's umask says.
    make.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let partial = make.prefix(".partial-").tempdir_in(parent);
    let partial = partial.with_context(|| format!("cannot write into {}", parent.display()))?;
    let bytes = write(store, manifest, partial.path(), which, told).await?;
    let done = partial.keep();
    fs::rename(&done, folder).with_context(|| format!("cannot rename {} to {}", done.display(), folder.display()))?;
    Ok(bytes)
}

/// The content of one stream that has at most so many bytes, verified; by the bytes of the object's index.
///
/// # Errors
/// There is none of this name, it is longer, or the store fails or holds something else.
pub async fn stream(
    store: &Store,
    (manifest, index): (&Manifest, &[u8]),
    name: &str,
    most: u64,
) -> anyhow::Result<Vec<u8>> {
    let number = manifest.streams.iter().position(|stream| stream.name == name);
    let number = number.with_context(|| format!("it has no {name}"))?;
    let bytes = manifest.streams[number].bytes;
    anyhow::ensure!(bytes <= most, "its {name} has {bytes} bytes: at most {most} are read");
    let index = store::index(index, manifest.index)?;
    let (mut content, mut scratch) = (Vec::new(), Vec::new());
    for mut record in manifest.ranges(&index)?[number].clone().filter_map(|i| index.leaf(i)) {
        let pack = index.pack_of(&record);
        let (from, length) = (u64::from(record.place.offset), u64::from(record.place.stored_bytes));
        let stored = match pack {
            Some(pack) => store.pack_range(pack, from..from + length).await?,
            None => bytes::Bytes::new(),
        };
        record.place.offset = 0;
        content.extend_from_slice(store::leaf(&record, pack.unwrap_or(PackId([0; 32])), &stored, &mut scratch)?);
    }
    Ok(content)
}

async fn write(
    store: &Store,
    manifest: &Manifest,
    folder: &Path,
    which: &Which<'_>,
    told: impl Fn(u64),
) -> anyhow::Result<u64> {
    let index_bytes = store.index(manifest.index).await?;
    let index = store::index(&index_bytes, manifest.index)?;
    let ranges = manifest.ranges(&index)?;
    let mut files = Vec::with_capacity(manifest.streams.len());
    let mut packs: BTreeMap<PackId, Vec<Target>> = BTreeMap::new();
    let (mut scratch, mut bytes) = (Vec::new(), 0);
    let wanted = manifest.streams.iter().zip(ranges).filter(|(stream, _)| (which.streams)(&stream.name));
    for (number, (stream, range)) in wanted.enumerate() {
        bytes += stream.bytes;
        // A manifest's names stay below the folder.
        let path = folder.join(&stream.name);
        let shown = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(shown)?;
        }
        let file = File::create_new(&path).with_context(shown)?;
        // What is not written are zeros.
        file.set_len(stream.bytes).with_context(shown)?;
        files.push(file);
        let mut at = 0;
        for record in range.filter_map(|i| index.leaf(i)) {
            let here = which.local.and_then(|cache| cache.get(record.id));
            if let Some(content) = here {
                scratch.resize(record.content_bytes as usize, 0);
                content.read(0, &mut scratch).context("the cache cannot be read")?;
                files[number].write_all_at(&scratch, at).with_context(shown)?;
                told(record.content_bytes.into());
                at += u64::from(record.content_bytes);
                continue;
            }
            match index.pack_of(&record) {
                Some(pack) => packs.entry(pack).or_default().push(Target { record, stream: number, at }),
                // Nothing is written, but that these are the zeros that the index means is.
                None => {
                    store::leaf(&record, PackId([0; 32]), &[], &mut Vec::new())?;
                    told(record.content_bytes.into());
                }
            }
            at += u64::from(record.content_bytes);
        }
    }
    let files = Arc::new(files);
    let of = files.clone();
    let fetches = packs.into_iter().map(move |(pack, targets)| {
        let (store, files) = (store.clone(), of.clone());
        async move {
            let bytes = store.pack(pack).await?;
            let written = tokio::task::spawn_blocking(move || write_pack(pack, &bytes, &targets, &files));
            written.await.context("a thread ended")?
        }
    });
    let fetches = futures::stream::iter(fetches).buffer_unordered(PACKS_AT_ONCE);
    let tell = |written| {
        told(written);
        std::future::ready(Ok(()))
    };
    fetches.try_for_each(tell).await?;
    let synced = tokio::task::spawn_blocking(move || files.iter().try_for_each(File::sync_all));
    synced.await.context("a thread ended")?.context("the files cannot be written to the disk")?;
    Ok(bytes)
}

/// Verifies the leaves of a pack and writes each to where it goes; bytes that were written.
fn write_pack(pack: PackId, bytes: &[u8], targets: &[Target], files: &[File]) -> anyhow::Result<u64> {
    let (mut scratch, mut written) = (Vec::new(), 0);
    for target in targets {
        let content = store::leaf(&target.record, pack, bytes, &mut scratch)?;
        let file = &files[target.stream];
        file.write_all_at(content, target.at).context("the files cannot be written")?;
        // Has the kernel begin to write them to the disk, so that little is left to wait for at the end.
        let _ =
            rustix::fs::fadvise(file, target.at, NonZeroU64::new(content.len() as u64), rustix::fs::Advice::DontNeed);
        written += content.len() as u64;
    }
    Ok(written)
}
