//! A store of objects: packs, indexes and manifests under one address, a folder or a bucket.
//!
//! ```text
//! packs/7d/7d0c…       leaves
//! indexes/<id>         which leaves an object has, and where they lie
//! objects/<id>.json    manifests: what is here exists, and all that it names was stored before
//! sealed.json          with which key all of it is sealed, if it is; see [`seal`]
//! ```

mod address;
pub mod lease;
mod mark;
pub mod seal;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use address::AddressError;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use snapshots::leaf::Codec;
use snapshots::manifest::{MANIFEST_BYTES_MAX, ManifestError};
use snapshots::pack::PACK_BYTES;
use snapshots::{Index, IndexRecord, LeafId, Manifest, ObjectId, PackId};
use tokio::sync::OnceCell;

use self::seal::{SealError, SealKey, Sealed};

/// Nothing at all for so long is no answer.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Most bytes of an index that is read: 20 million leaves, 40 TiB.
const INDEX_BYTES_MAX: u64 = 1 << 30;

/// What went wrong with a store, and where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address leads nowhere.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Others are at work, beside which this cannot run.
    #[error(
        "process {process} on {host} is writing or collecting: try again when it is done, or wait longer; what a dead process left ends after half an hour"
    )]
    Busy {
        /// Its host.
        host: String,
        /// Its number.
        process: u32,
    },
    /// What killed processes left cannot be deleted.
    #[error("what killed processes left cannot be deleted")]
    Unfinished(#[source] std::io::Error),
    /// This process stood still for so long that it was taken for dead.
    #[error("this took so long that the store gave up the lease: try again")]
    LeaseLost,
    /// An object that others need.
    #[error("object {id} is needed by object {by}: remove that one first")]
    Needed {
        /// The object.
        id: ObjectId,
        /// Who needs it.
        by: ObjectId,
    },
    /// An object that another one needs is gone.
    #[error("object {id}, which object {by} needs, is not there: store it again, or remove that one")]
    Missing {
        /// The object.
        id: ObjectId,
        /// Who needs it.
        by: ObjectId,
    },
    /// The store did not do what was asked.
    #[error("the store failed at {path}")]
    Backend {
        /// Where.
        path: Path,
        /// Its words.
        source: object_store::Error,
    },
    /// Something is longer than anything of its sort.
    #[error("{path} has {bytes} bytes, where at most {most} make sense; fetch it from another copy")]
    TooLong {
        /// Where.
        path: Path,
        /// Its length.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// It is sealed, and not with the key that was given.
    #[error("the store is sealed with key {sealed}, not with {given}: give the key file of its tenant")]
    OtherKey {
        /// The store's.
        sealed: String,
        /// The one that was given.
        given: String,
    },
    /// It is sealed.
    #[error(
        "the store is sealed with key {0}: give its key file with --key-file, or under [[staging.key]] in join.toml"
    )]
    Sealed(String),
    /// Objects lie in it in the clear.
    #[error("objects lie in the store in the clear: seal a new one, and leave the key away for this one")]
    NotSealed,
    /// There is no such object.
    #[error("there is no object {0}: 'pilotlight-agent store ls' lists those that are")]
    NoObject(ObjectId),
    /// A manifest cannot be used.
    #[error("object {id}")]
    Manifest {
        /// The object.
        id: ObjectId,
        /// Why.
        source: ManifestError,
    },
    /// An index cannot be used.
    #[error("index {id}")]
    Index {
        /// The index.
        id: ObjectId,
        /// Why.
        source: snapshots::index::IndexError,
    },
    /// A pack that ends before a leaf.
    #[error("pack {pack} ends before leaf {leaf}; fetch it from another copy")]
    Short {
        /// The pack.
        pack: PackId,
        /// The leaf.
        leaf: LeafId,
    },
    /// A leaf is not what its id says.
    #[error("pack {pack}")]
    Leaf {
        /// Where it lies.
        pack: PackId,
        /// What is wrong.
        source: snapshots::leaf::LeafError,
    },
}

/// A store.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// Where it is, if it is a folder.
    folder: Option<PathBuf>,
    /// The same without the seal, and the key.
    below: Arc<dyn ObjectStore>,
    key: Option<Arc<SealKey>>,
    /// It was seen to be sealed with this key, or not at all.
    looked: Arc<OnceCell<()>>,
}

impl StoreError {
    /// Whether the key is not the store's.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self, Self::Sealed(_) | Self::OtherKey { .. } | Self::NotSealed)
    }

    /// Whether what was read is not what was stored, and will not be.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use object_store::Error::Generic;
        match self {
            Self::Manifest { source, .. } => {
                matches!(source, ManifestError::Hash { .. } | ManifestError::Syntax(_) | ManifestError::TooLong(_))
            }
            Self::TooLong { .. } => true,
            Self::Backend { source: Generic { source, .. }, .. } => source.is::<SealError>(),
            _ => false,
        }
    }

    /// Whether what was asked for is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NoObject(_) | Self::Backend { source: object_store::Error::NotFound { .. }, .. })
    }
}

impl Store {
    /// The store at an address: a folder that is there, or a bucket.
    ///
    /// # Errors
    /// There is none, or it cannot be understood.
    pub fn open(address: &str, key: Option<Arc<SealKey>>) -> Result<Self, StoreError> {
        // What is no text names nothing of a cloud's.
        let text =
            std::env::vars_os().filter_map(|(name, value)| name.into_string().ok().zip(value.into_string().ok()));
        Self::open_with(address, key, text)
    }

    /// The same, with variables of clouds that are not this process's own.
    ///
    /// # Errors
    /// There is none, or it cannot be understood.
    pub fn open_with(
        address: &str,
        key: Option<Arc<SealKey>>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, StoreError> {
        let below = address::open(address, &variables.into_iter().collect())?;
        let objects = match &key {
            Some(key) => Arc::new(Sealed::new(below.clone(), key.clone())),
            None => below.clone(),
        };
        let folder = (!address.contains("://")).then(|| PathBuf::from(address));
        Ok(Self { objects, folder, below, key, looked: Arc::default() })
    }

    pub(super) fn pack_path(id: PackId) -> Path {
        let id = id.to_string();
        Path::from(format!("packs/{}/{id}", &id[..2]))
    }

    pub(super) fn index_path(id: ObjectId) -> Path {
        Path::from(format!("indexes/{id}"))
    }

    fn manifest_path(id: ObjectId) -> Path {
        Path::from(format!("objects/{id}.json"))
    }

    /// Stores bytes where nothing is yet. What is there already has the same name and so the same content.
    async fn put(&self, path: Path, bytes: impl Into<PutPayload>) -> Result<(), StoreError> {
        match self.objects.put_opts(&path, bytes.into(), PutMode::Create.into()).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(source) => Err(StoreError::Backend { path, source }),
        }
    }

    /// Stores a pack where it is not there yet, and gives its buffer back.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn put_pack(&self, id: PackId, bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let bytes = Bytes::from(bytes);
        self.put(Self::pack_path(id), bytes.clone()).await?;
        Ok(bytes.into())
    }

    /// Publishes an object whose packs are there: its index, then its manifest.
    ///
    /// # Errors
    /// The store does not take them.
    pub async fn publish(&self, index: (ObjectId, Vec<u8>), manifest: (ObjectId, Vec<u8>)) -> Result<(), StoreError> {
        self.put(Self::index_path(index.0), index.1).await?;
        self.check_seal_again().await?;
        self.put(Self::manifest_path(manifest.0), manifest.1).await
    }

    /// Writes a pack over what is there under its name.
    ///
    /// # Errors
    /// The store does not take it.
    pub(super) async fn replace_pack(&self, id: PackId, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.replace(Self::pack_path(id), bytes).await
    }

    /// Writes an object's index and manifest over what is there under their names, from a store that was looked at.
    ///
    /// # Errors
    /// That store has it no more, or this one does not take it.
    pub(super) async fn replace_object(&self, from: &Self, id: ObjectId) -> Result<(), StoreError> {
        let index = from.manifest(id).await?.index;
        for path in [Self::index_path(index), Self::manifest_path(id)] {
            self.replace(path.clone(), from.bytes(path, INDEX_BYTES_MAX).await?).await?;
        }
        Ok(())
    }

    async fn replace(&self, path: Path, bytes: Vec<u8>) -> Result<(), StoreError> {
        match self.objects.put(&path, PutPayload::from(bytes)).await {
            Ok(_) => Ok(()),
            Err(source) => Err(StoreError::Backend { path, source }),
        }
    }

    /// What lies at a path, if it has at most so many bytes.
    async fn bytes(&self, path: Path, most: u64) -> Result<Vec<u8>, StoreError> {
        Self::whole(&*self.objects, path, most).await.map(Into::into)
    }

    async fn whole(objects: &dyn ObjectStore, path: Path, most: u64) -> Result<Bytes, StoreError> {
        match patiently(objects.get_opts(&path, GetOptions::default())).await {
            Ok(got) if got.meta.size > most => Err(StoreError::TooLong { path, bytes: got.meta.size, most }),
            Ok(got) => Self::collected(path, got, most).await,
            Err(source) => Err(StoreError::Backend { path, source }),
        }
    }

    /// The bytes of an answer, if they are at most so many: a server may say one length and send another.
    async fn collected(path: Path, got: GetResult, most: u64) -> Result<Bytes, StoreError> {
        let expected = got.range.end.saturating_sub(got.range.start).min(most) as usize;
        let mut chunks = match got.payload {
            GetResultPayload::Stream(chunks) => chunks,
            GetResultPayload::File(..) => {
                return got.bytes().await.map_err(|source| StoreError::Backend { path, source });
            }
        };
        let mut bytes = BytesMut::new();
        loop {
            let chunk = match patiently(chunks.try_next()).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(source) => return Err(StoreError::Backend { path, source }),
            };
            // What comes in one piece is not copied.
            if bytes.is_empty() && chunk.len() == expected {
                bytes = chunk.into();
                continue;
            }
            if (bytes.len() + chunk.len()) as u64 > most {
                return Err(StoreError::TooLong { path, bytes: (bytes.len() + chunk.len()) as u64, most });
            }
            bytes.reserve(expected.saturating_sub(bytes.len()));
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// What lies below a folder: path, bytes, and when it was written, seconds by the store's clock.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub(super) async fn listed(&self, below: &str) -> Result<Vec<(Path, u64, i64)>, StoreError> {
        let path = Path::from(below);
        let of = |meta: object_store::ObjectMeta| (meta.location, meta.size, meta.last_modified.timestamp());
        let listed = self.objects.list(Some(&path)).map_ok(of).try_collect().await;
        listed.map_err(|source| StoreError::Backend { path, source })
    }

    /// Deletes what killed processes were writing to a folder, if it is older than `grace`: files that get their names when they
    /// are whole. In a bucket nothing is seen of such.
    pub(super) fn delete_unfinished(&self, grace: Duration) -> std::io::Result<()> {
        let mut left: Vec<PathBuf> = match &self.folder {
            Some(folder) => ["packs", "indexes", "objects", "leases"].iter().map(|part| folder.join(part)).collect(),
            None => return Ok(()),
        };
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(std::fs::read_dir(path)?.filter_map(Result::ok).map(|entry| entry.path()));
            } else if is_unfinished(&path) {
                // A clock that went back makes it young.
                let age = std::fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default();
                if age >= grace {
                    std::fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes what may be gone already.
    pub(super) async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Backend { path: path.clone(), source }),
        }
    }

    /// Removes an object that no other one refers to. Its content stays until it is collected.
    ///
    /// # Errors
    /// It is not there, another object refers to it, or the store fails.
    pub async fn remove(&self, id: ObjectId) -> Result<(), StoreError> {
        self.check_seal(false).await?;
        let path = Self::manifest_path(id);
        match self.objects.head(&path).await {
            Err(object_store::Error::NotFound { .. }) => return Err(StoreError::NoObject(id)),
            Err(source) => return Err(StoreError::Backend { path, source }),
            Ok(_) => {}
        }
        for by in self.objects().await? {
            let manifest = match self.manifest(by).await {
                Ok(manifest) if by != id => manifest,
                // One that cannot be read needs nothing any more.
                Ok(_) => continue,
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            if manifest.references.iter().any(|reference| reference.id == id) {
                return Err(StoreError::Needed { id, by });
            }
        }
        self.delete(&path).await
    }

    /// Ids of all objects, in order.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub async fn objects(&self) -> Result<Vec<ObjectId>, StoreError> {
        self.check_seal(false).await?;
        let path = Path::from("objects");
        let names: Result<Vec<Option<ObjectId>>, _> = self
            .objects
            .list(Some(&path))
            .map_ok(|meta| meta.location.filename().and_then(|name| name.strip_suffix(".json")?.parse().ok()))
            .try_collect()
            .await;
        let mut ids: Vec<ObjectId> =
            names.map_err(|source| StoreError::Backend { path, source })?.into_iter().flatten().collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// A manifest.
    ///
    /// # Errors
    /// It is not there, or not what its id says.
    pub async fn manifest(&self, id: ObjectId) -> Result<Manifest, StoreError> {
        Manifest::read(&self.manifest_bytes(id).await?, id).map_err(|source| StoreError::Manifest { id, source })
    }

    /// The bytes of a manifest, to be read with [`Manifest::read`].
    ///
    /// # Errors
    /// It is not there.
    pub async fn manifest_bytes(&self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        self.check_seal(false).await?;
        match self.bytes(Self::manifest_path(id), MANIFEST_BYTES_MAX as u64).await {
            Err(error) if error.is_not_found() => Err(StoreError::NoObject(id)),
            got => got,
        }
    }

    /// The bytes of an index, to be read with [`Index::read`].
    ///
    /// # Errors
    /// It is not there.
    pub async fn index(&self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        self.bytes(Self::index_path(id), INDEX_BYTES_MAX).await
    }

    /// A stretch of a pack's bytes.
    ///
    /// # Errors
    /// It is not there, or not so long.
    pub async fn pack_range(&self, id: PackId, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        let (path, most) = (Self::pack_path(id), range.end.saturating_sub(range.start));
        if self.folder.is_some() {
            return self.objects.get_range(&path, range).await.map_err(|source| StoreError::Backend { path, source });
        }
        let options = GetOptions { range: Some(range.into()), ..GetOptions::default() };
        match patiently(self.objects.get_opts(&path, options)).await {
            Ok(got) => Self::collected(path, got, most).await,
            Err(source) => Err(StoreError::Backend { path, source }),
        }
    }

    /// A pack's bytes.
    ///
    /// # Errors
    /// It is not there.
    pub async fn pack(&self, id: PackId) -> Result<Vec<u8>, StoreError> {
        self.bytes(Self::pack_path(id), PACK_BYTES as u64).await
    }
}

/// An answer, if there is a sign of one within [`SILENCE_MAX`]. Only of what is read: of an upload nothing is heard until it is
/// there, and over a slow line that takes minutes.
async fn patiently<T>(answer: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    match tokio::time::timeout(SILENCE_MAX, answer).await {
        Ok(answer) => answer,
        Err(late) => Err(object_store::Error::Generic { store: "no answer", source: late.into() }),
    }
}

/// Whether a file has a name that `object_store` gives to what is not whole yet: another, a hash sign and a number.
fn is_unfinished(path: &std::path::Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let number = name.rsplit_once('#').map(|(_, number)| number.to_owned());
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// An index, checked against its id.
///
/// # Errors
/// It is not what its id says.
pub fn index(bytes: &[u8], id: ObjectId) -> Result<Index<'_>, StoreError> {
    Index::read(bytes, id).map_err(|source| StoreError::Index { id, source })
}

/// That leaves which an index calls zeros are: nothing of them is stored that could be verified.
///
/// # Errors
/// One is not.
pub fn check_zeros(index: &Index) -> Result<(), StoreError> {
    let mut seen = std::collections::BTreeSet::new();
    let zeros = (0..index.leaves()).filter_map(|i| index.leaf(i)).filter(|leaf| leaf.codec == Codec::Zero);
    for record in zeros.filter(|leaf| seen.insert((leaf.id, leaf.content_bytes))) {
        leaf(&record, PackId([0; 32]), &[], &mut Vec::new())?;
    }
    Ok(())
}

/// The content of a leaf, from its pack's bytes, verified; unpacked into `scratch` where it is compressed.
///
/// # Errors
/// The pack ends too soon or holds something else there.
pub fn leaf<'a>(
    record: &IndexRecord,
    pack: PackId,
    bytes: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], StoreError> {
    let from = record.place.offset as usize;
    let stored = match record.codec {
        Codec::Zero => &[][..],
        Codec::Raw | Codec::Zstd => bytes
            .get(from..from + record.place.stored_bytes as usize)
            .ok_or(StoreError::Short { pack, leaf: record.id })?,
    };
    let content = snapshots::leaf::content(record.id, record.codec, record.content_bytes as usize, stored, scratch);
    content.map_err(|source| StoreError::Leaf { pack, source })
}
