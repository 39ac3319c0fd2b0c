//! The manifest of an object: what it is, its streams, and the id of its index. Small, and published last: an object without one
//! does not exist.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::index::IndexRecord;
use crate::{Index, ObjectId};

/// The newest format that this build reads and writes.
pub const FORMAT: u32 = 1;
/// Most bytes of a manifest.
pub const MANIFEST_BYTES_MAX: usize = 64 << 10;
const NAME_BYTES_MAX: usize = 255;

/// What an object holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A process at rest: host memory, device memory, and what the runtime needs to bring it back.
    Snapshot,
    /// A root filesystem.
    Image,
    /// Weights of a model, in the layout of their files.
    Weights,
    /// Compiled graphs and kernels.
    Cache,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Snapshot, Self::Image, Self::Weights, Self::Cache];

    /// As manifests write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Image => "image",
            Self::Weights => "weights",
            Self::Cache => "cache",
        }
    }
}

/// One stream of bytes, a run of the index's leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stream {
    /// A relative path of letters, digits and `._-+=@,`, such as `cpu/pages-1`; no two are the same.
    pub name: String,
    /// Leaves, which follow those of the stream before.
    pub leaves: u64,
    /// Bytes of their content.
    pub bytes: u64,
}

/// An object that this one needs, stored and collected apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// What it holds.
    pub kind: Kind,
    /// Its manifest.
    pub id: ObjectId,
}

/// A manifest. Its id is the hash of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format of this document.
    pub format: u32,
    /// Names of what a reader has to understand, beyond the format, to use this object.
    #[serde(default)]
    pub critical: BTreeSet<String>,
    /// What the object holds.
    pub kind: Kind,
    /// Its index.
    pub index: ObjectId,
    /// Its streams, in the order of the index.
    pub streams: Vec<Stream>,
    /// What it needs beside.
    #[serde(default)]
    pub references: Vec<Reference>,
    /// What people and tools write beside: nothing here changes how it is read.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Features that a manifest may call critical and that this build knows.
const KNOWN_CRITICAL: [&str; 0] = [];

/// Why bytes are no manifest that this build can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not those that were asked for.
    #[error("the manifest has hash {found}, not {expected}; fetch it from another copy")]
    Hash {
        /// Asked for.
        expected: ObjectId,
        /// Of the bytes.
        found: ObjectId,
    },
    /// Too long.
    #[error("the manifest has {0} bytes, at most {MANIFEST_BYTES_MAX} are read: an object of fewer streams fits")]
    TooLong(usize),
    /// Written by a newer build.
    #[error("the manifest has format {0}, this build reads {FORMAT}; update it")]
    Newer(u64),
    /// It asks for something that this build does not know.
    #[error("the manifest asks for '{0}', which this build does not know; update it")]
    Critical(String),
    /// No document of this kind.
    #[error("this is no manifest")]
    Syntax(#[from] serde_json::Error),
    /// A name that is no plain relative path.
    #[error("stream name '{0}' is no relative path of letters, digits and ._-+=@,")]
    Name(String),
    /// Two streams of one name.
    #[error("stream '{0}' is named twice")]
    Twice(String),
    /// A name that is also the folder of another.
    #[error("stream '{0}' is also the folder of another")]
    Folder(String),
    /// Streams and index do not fit.
    #[error("stream '{stream}' has {leaves} leaves and {bytes} bytes by the manifest, its index says otherwise")]
    Stream {
        /// The stream.
        stream: String,
        /// By the manifest.
        leaves: u64,
        /// By the manifest.
        bytes: u64,
    },
    /// Leaves that belong to no stream.
    #[error("{0} leaves of the index belong to no stream")]
    Rest(usize),
}

/// What is read before anything else, so that a newer document is named as such and not as one that makes no sense.
#[derive(Deserialize)]
struct Head {
    format: u64,
    #[serde(default)]
    critical: BTreeSet<String>,
}

impl Manifest {
    /// The manifest in `bytes`, which are those of `id`. Fields that this build does not know are passed over unless the document
    /// calls them critical.
    ///
    /// # Errors
    /// The bytes are others, too many, of a newer format, or make no sense.
    pub fn read(bytes: &[u8], id: ObjectId) -> Result<Self, ManifestError> {
        let found = ObjectId::of(bytes);
        if found != id {
            return Err(ManifestError::Hash { expected: id, found });
        }
        Self::parse(bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let head: Head = serde_json::from_slice(bytes)?;
        if head.format != u64::from(FORMAT) {
            return Err(ManifestError::Newer(head.format));
        }
        if let Some(name) = head.critical.iter().find(|name| !KNOWN_CRITICAL.contains(&name.as_str())) {
            return Err(ManifestError::Critical(name.clone()));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check_names()?;
        Ok(manifest)
    }

    fn check_names(&self) -> Result<(), ManifestError> {
        let mut seen = BTreeSet::new();
        for Stream { name, .. } in &self.streams {
            if !is_plain_path(name) {
                return Err(ManifestError::Name(name.chars().take(80).collect()));
            }
            if !seen.insert(name.as_str()) {
                return Err(ManifestError::Twice(name.clone()));
            }
        }
        let folders = seen.iter().flat_map(|name| name.match_indices('/').map(|(at, _)| &name[..at]));
        match folders.into_iter().find(|folder| seen.contains(folder)) {
            Some(folder) => Err(ManifestError::Folder(folder.to_owned())),
            None => Ok(()),
        }
    }

    /// The bytes of the manifest, and its id.
    ///
    /// # Errors
    /// A name is no relative path or there twice, or the document is too long.
    pub fn write(&self) -> Result<(ObjectId, Vec<u8>), ManifestError> {
        self.check_names()?;
        let bytes = serde_json::to_vec_pretty(self)?;
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        Ok((ObjectId::of(&bytes), bytes))
    }

    /// Bytes of all streams.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.streams.iter().map(|stream| stream.bytes).fold(0, u64::saturating_add)
    }

    /// The leaves of each stream, as ranges of the index.
    ///
    /// # Errors
    /// Streams and index do not fit.
    pub fn ranges(&self, index: &Index) -> Result<Vec<std::ops::Range<usize>>, ManifestError> {
        let mut from = 0_usize;
        let mut ranges = Vec::with_capacity(self.streams.len());
        for stream in &self.streams {
            let wrong =
                || ManifestError::Stream { stream: stream.name.clone(), leaves: stream.leaves, bytes: stream.bytes };
            let leaves = usize::try_from(stream.leaves).map_err(|_| wrong())?;
            let until = from.checked_add(leaves).filter(|until| *until <= index.leaves()).ok_or_else(wrong)?;
            let content = |record: IndexRecord| u64::from(record.content_bytes);
            let bytes: u64 = (from..until).filter_map(|i| index.leaf(i)).map(content).sum();
            if bytes != stream.bytes {
                return Err(wrong());
            }
            ranges.push(from..until);
            from = until;
        }
        match index.leaves() - from {
            0 => Ok(ranges),
            rest => Err(ManifestError::Rest(rest)),
        }
    }
}

/// Whether a stream may have this name: a path that stays where it is put, on every system.
#[must_use]
pub fn is_plain_path(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+=@,".contains(&byte);
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(plain);
    name.len() <= NAME_BYTES_MAX && name.split('/').all(part)
}
