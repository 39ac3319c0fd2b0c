//! Root filesystems into a store: from a folder, or from an OCI image layout.

mod folder;
mod frames;
mod oci;
mod put;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use snapshots::image::{Content, InodeId, Tree};

pub use put::put;

/// Stream of an image's metadata, with which a mount begins.
pub const META_STREAM: &str = "root/meta";
/// Stream of the content of its files, which follows.
pub const DATA_STREAM: &str = "root/data";

/// A root filesystem, with where the content of its files is.
#[derive(Debug)]
pub struct Source {
    /// Its tree.
    pub tree: Tree,
    /// By inode.
    content: BTreeMap<InodeId, Place>,
}

/// Where a file's content is.
#[derive(Debug, Clone)]
enum Place {
    /// A file of its own.
    File(PathBuf),
    /// A stretch of a file that holds many.
    Spooled {
        /// The file.
        file: Arc<File>,
        /// First byte.
        at: u64,
    },
}

/// A stretch of a file, read without a place of its own in it.
struct Stretch {
    file: Arc<File>,
    at: u64,
    until: u64,
}

impl Read for Stretch {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.until - self.at).unwrap_or(usize::MAX).min(out.len());
        let read = self.file.read_at(&mut out[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Source {
    /// The root filesystem at `path`: a folder, or an OCI image layout.
    ///
    /// # Errors
    /// It cannot be read, or holds what an image cannot.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if oci::is_layout(path) { oci::read(path) } else { folder::read(path) }
    }

    /// The content of a file.
    fn content(&self, id: InodeId) -> anyhow::Result<Box<dyn Read + '_>> {
        match self.content.get(&id).context("a file without content")? {
            Place::File(path) => {
                Ok(Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
            }
            Place::Spooled { file, at } => {
                let Content::File { bytes } = self.tree.inode(id).content else { anyhow::bail!("no file has content") };
                Ok(Box::new(Stretch { file: file.clone(), at: *at, until: at + bytes }))
            }
        }
    }
}

impl Source {
    /// Bytes of all files that have a name.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let (mut files, mut left) = (BTreeMap::new(), vec![Tree::ROOT]);
        while let Some(id) = left.pop() {
            match &self.tree.inode(id).content {
                Content::Directory(entries) => left.extend(entries.values()),
                Content::File { bytes } => drop(files.insert(id, *bytes)),
                _ => {}
            }
        }
        files.into_values().sum()
    }

    /// That a file is as it was when the tree was read.
    fn check_unchanged(&self, id: InodeId) -> anyhow::Result<()> {
        if let Some(Place::File(path)) = self.content.get(&id) {
            let now = std::fs::symlink_metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            let was = &self.tree.inode(id).meta;
            let same = (now.mtime(), now.mtime_nsec()) == (was.mtime_s, i64::from(was.mtime_ns));
            anyhow::ensure!(same, "{} changed while it was read; try again", path.display());
        }
        Ok(())
    }

    fn shown(&self, id: InodeId) -> String {
        match self.content.get(&id) {
            Some(Place::File(path)) => path.display().to_string(),
            Some(Place::Spooled { .. }) | None => "a file".into(),
        }
    }
}
