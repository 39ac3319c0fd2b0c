//! Root filesystems into a store: from a folder, or from an OCI image layout.

mod folder;
mod put;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

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
}

impl Source {
    /// The root filesystem at `path`.
    ///
    /// # Errors
    /// It cannot be read, or holds what an image cannot.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        folder::read(path)
    }

    /// The content of a file.
    fn content(&self, id: InodeId) -> anyhow::Result<Box<dyn Read + '_>> {
        match self.content.get(&id).context("a file without content")? {
            Place::File(path) => {
                Ok(Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?))
            }
        }
    }
}

impl Source {
    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of = |id: &InodeId| match self.tree.inode(*id).content {
            Content::File { bytes } => bytes,
            _ => 0,
        };
        self.content.keys().map(of).sum()
    }

    fn shown(&self, id: InodeId) -> String {
        match self.content.get(&id) {
            Some(Place::File(path)) => path.display().to_string(),
            None => "a file".into(),
        }
    }
}
