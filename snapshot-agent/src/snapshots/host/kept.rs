//! Manifests and indexes kept on the host: what was mounted or staged is known again although the object was removed meanwhile,
//! and where all content is here, although the store is away.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use snapshots::{Index, Manifest, ObjectId};

/// Mounted images of which this is kept; the oldest go.
const IMAGES_MAX: usize = 64;

/// Manifests and indexes in a cache folder.
#[derive(Debug, Clone)]
pub struct Kept {
    folder: PathBuf,
    most: usize,
}

impl Kept {
    /// Those of images that were mounted.
    #[must_use]
    pub fn mounted(cache: &Path) -> Self {
        Self { folder: cache.join("images"), most: IMAGES_MAX }
    }

    /// Those of objects that are staged. Their leaves are not given up by whoever opens the cache.
    #[must_use]
    pub fn staged(cache: &Path) -> Self {
        Self { folder: cache.join("staged"), most: usize::MAX }
    }

    /// Ids of all objects that are here.
    #[must_use]
    pub fn ids(&self) -> Vec<ObjectId> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok()).collect()
    }

    fn manifest(&self, id: ObjectId) -> Option<Manifest> {
        Manifest::read(&fs::read(self.folder.join(format!("{id}.json"))).ok()?, id).ok()
    }

    /// An object's manifest and index, if both are here and whole.
    #[must_use]
    pub fn get(&self, id: ObjectId) -> Option<(Manifest, Vec<u8>)> {
        let manifest = self.manifest(id)?;
        let index = fs::read(self.folder.join(format!("{id}.index"))).ok()?;
        Index::read(&index, manifest.index).ok()?;
        Some((manifest, index))
    }

    /// These objects and all that they refer to, as far as that is known here.
    #[must_use]
    pub fn with_references(&self, ids: impl IntoIterator<Item = ObjectId>) -> BTreeSet<ObjectId> {
        let (mut left, mut all) = (ids.into_iter().collect::<Vec<_>>(), BTreeSet::new());
        while let Some(id) = left.pop() {
            if all.insert(id)
                && let Some(manifest) = self.manifest(id)
            {
                left.extend(manifest.references.iter().map(|reference| reference.id));
            }
        }
        all
    }

    /// Keeps the bytes of both.
    ///
    /// # Errors
    /// The disk does not take them.
    pub fn keep(&self, id: ObjectId, manifest: &[u8], index: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        for (name, bytes) in [(format!("{id}.index"), index), (format!("{id}.json"), manifest)] {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            file.write_all(bytes)?;
            file.persist(self.folder.join(name))?;
        }
        let written = |entry: fs::DirEntry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()));
        let mut all: Vec<_> = fs::read_dir(&self.folder)?.filter_map(Result::ok).filter_map(written).collect();
        all.sort();
        let over = all.len().saturating_sub(self.most.saturating_mul(2));
        all.drain(..over).try_for_each(|(_, path)| fs::remove_file(path))
    }

    /// Forgets an object.
    pub fn forget(&self, id: ObjectId) {
        for name in [format!("{id}.json"), format!("{id}.index")] {
            // What is not there is forgotten already.
            drop(fs::remove_file(self.folder.join(name)));
        }
    }
}
