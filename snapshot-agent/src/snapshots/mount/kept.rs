//! What a mount has to know of its image, kept on the host: it starts again although the object was removed meanwhile, and where
//! all content is here, although the store is away.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use snapshots::{Index, Manifest, ObjectId};

/// Images of which this is kept; the oldest go.
const IMAGES_MAX: usize = 64;

/// Manifests and indexes in a cache folder.
#[derive(Debug)]
pub struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// Those in a cache folder.
    #[must_use]
    pub fn open(cache: &Path) -> Self {
        Self { folder: cache.join("images") }
    }

    /// An image's manifest and index, if both are here and whole.
    #[must_use]
    pub fn get(&self, id: ObjectId) -> Option<(Manifest, Vec<u8>)> {
        let manifest = Manifest::read(&fs::read(self.folder.join(format!("{id}.json"))).ok()?, id).ok()?;
        let index = fs::read(self.folder.join(format!("{id}.index"))).ok()?;
        Index::read(&index, manifest.index).ok()?;
        Some((manifest, index))
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
        let over = all.len().saturating_sub(2 * IMAGES_MAX);
        all.drain(..over).try_for_each(|(_, path)| fs::remove_file(path))
    }
}
