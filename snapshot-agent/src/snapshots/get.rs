//! An object out of a store, as files.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use snapshots::{Index, Manifest, PackId};
use tokio::task::JoinHandle;

use super::store::{self, Store, StoreError};

/// Packs that are kept while an object is read: what repeats lies near.
const PACKS_KEPT: usize = 4;
/// Packs that are fetched at the same time: each is 64 MiB of memory.
const PACKS_AHEAD: usize = 6;

/// Packs in the order in which an object wants them.
struct Packs {
    store: Store,
    /// Those that nobody has asked for yet.
    next: std::vec::IntoIter<PackId>,
    ahead: VecDeque<(PackId, JoinHandle<Result<Vec<u8>, StoreError>>)>,
    kept: VecDeque<(PackId, Vec<u8>)>,
}

impl Packs {
    fn new(store: &Store, index: &Index) -> Self {
        let mut seen = BTreeSet::new();
        let order: Vec<PackId> = index.stored().map(|(pack, _)| pack).filter(|pack| seen.insert(*pack)).collect();
        Self { store: store.clone(), next: order.into_iter(), ahead: VecDeque::new(), kept: VecDeque::new() }
    }

    async fn bytes(&mut self, id: PackId) -> anyhow::Result<&[u8]> {
        let place = match self.kept.iter().position(|(kept, _)| *kept == id) {
            Some(place) => place,
            None => {
                self.kept.truncate(PACKS_KEPT - 1);
                let bytes = self.fetched(id).await?;
                self.kept.push_front((id, bytes));
                0
            }
        };
        Ok(&self.kept[place].1)
    }

    async fn fetched(&mut self, id: PackId) -> anyhow::Result<Vec<u8>> {
        while self.ahead.len() < PACKS_AHEAD
            && let Some(next) = self.next.next()
        {
            let store = self.store.clone();
            self.ahead.push_back((next, tokio::spawn(async move { store.pack(next).await })));
        }
        // What is not next was let go of, and is fetched again.
        match self.ahead.pop_front_if(|(next, _)| *next == id) {
            Some((_, fetch)) => Ok(fetch.await.context("a fetch ended")??),
            None => Ok(self.store.pack(id).await?),
        }
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        self.ahead.iter().for_each(|(_, fetch)| fetch.abort());
    }
}

/// Writes the streams of an object as files below `folder`, which must not be there yet: it appears whole or not at all. Every
/// byte is verified; `told` hears of each stretch.
///
/// # Errors
/// The folder is there or cannot be written, or the store fails or holds something else.
pub async fn get(store: &Store, manifest: &Manifest, folder: &Path, told: impl Fn(u64)) -> anyhow::Result<u64> {
    if folder.exists() {
        anyhow::bail!("{} is there already: name a folder that is not", folder.display());
    }
    let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut make = tempfile::Builder::new();
    // Not private as temporary folders are: it gets what the user's umask says.
    make.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let partial = make.prefix(".partial-").tempdir_in(parent);
    let partial = partial.with_context(|| format!("cannot write into {}", parent.display()))?;
    let bytes = write(store, manifest, partial.path(), told).await?;
    let done = partial.keep();
    fs::rename(&done, folder).with_context(|| format!("cannot rename {} to {}", done.display(), folder.display()))?;
    Ok(bytes)
}

async fn write(store: &Store, manifest: &Manifest, folder: &Path, told: impl Fn(u64)) -> anyhow::Result<u64> {
    let index_bytes = store.index(manifest.index).await?;
    let index = store::index(&index_bytes, manifest.index)?;
    let ranges = manifest.ranges(&index)?;
    let mut packs = Packs::new(store, &index);
    let (mut content, mut bytes) = (Vec::new(), 0);
    for (stream, range) in manifest.streams.iter().zip(ranges) {
        // A manifest's names stay below the folder.
        let path = folder.join(&stream.name);
        let shown = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(shown)?;
        }
        let mut file = fs::File::create_new(&path).with_context(shown)?;
        for record in range.filter_map(|i| index.leaf(i)) {
            let (pack, stored) = match index.pack_of(&record) {
                None => (PackId([0; 32]), &[][..]),
                Some(pack) => (pack, packs.bytes(pack).await?),
            };
            store::leaf(&record, pack, stored, &mut content)?;
            file.write_all(&content).with_context(shown)?;
            bytes += content.len() as u64;
            told(content.len() as u64);
        }
        file.sync_all().with_context(shown)?;
    }
    Ok(bytes)
}
