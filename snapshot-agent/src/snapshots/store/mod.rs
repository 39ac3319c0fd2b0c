//! A store of objects: packs, indexes and manifests under one address, a folder or a bucket.
//!
//! ```text
//! packs/7d/7d0c…       leaves
//! indexes/<id>         which leaves an object has, and where they lie
//! objects/<id>.json    manifests: what is here exists, and all that it names was stored before
//! ```

mod address;

use std::sync::Arc;

pub use address::AddressError;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use snapshots::leaf::Codec;
use snapshots::manifest::ManifestError;
use snapshots::{Index, IndexRecord, LeafId, Manifest, ObjectId, PackId};

/// What went wrong with a store, and where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address leads nowhere.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The store did not do what was asked.
    #[error("the store failed at {path}")]
    Backend {
        /// Where.
        path: Path,
        /// Its words.
        source: object_store::Error,
    },
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
}

impl Store {
    /// The store at an address: a folder that is there, or a bucket.
    ///
    /// # Errors
    /// There is none, or it cannot be understood.
    pub fn open(address: &str) -> Result<Self, StoreError> {
        Ok(Self { objects: address::open(address)? })
    }

    fn pack_path(id: PackId) -> Path {
        let id = id.to_string();
        Path::from(format!("packs/{}/{id}", &id[..2]))
    }

    fn index_path(id: ObjectId) -> Path {
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
        self.put(Self::manifest_path(manifest.0), manifest.1).await
    }

    async fn bytes(&self, path: Path) -> Result<Vec<u8>, StoreError> {
        let got = self.objects.get(&path).await;
        match async { got?.bytes().await }.await {
            Ok(bytes) => Ok(bytes.into()),
            Err(source) => Err(StoreError::Backend { path, source }),
        }
    }

    /// Ids of all objects, in order.
    ///
    /// # Errors
    /// The store cannot be listed.
    pub async fn objects(&self) -> Result<Vec<ObjectId>, StoreError> {
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
        let bytes = self.bytes(Self::manifest_path(id)).await?;
        Manifest::read(&bytes, id).map_err(|source| StoreError::Manifest { id, source })
    }

    /// The bytes of an index, to be read with [`Index::read`].
    ///
    /// # Errors
    /// It is not there.
    pub async fn index(&self, id: ObjectId) -> Result<Vec<u8>, StoreError> {
        self.bytes(Self::index_path(id)).await
    }

    /// A stretch of a pack's bytes.
    ///
    /// # Errors
    /// It is not there, or not so long.
    pub async fn pack_range(&self, id: PackId, range: std::ops::Range<u64>) -> Result<Bytes, StoreError> {
        let path = Self::pack_path(id);
        self.objects.get_range(&path, range).await.map_err(|source| StoreError::Backend { path, source })
    }

    /// A pack's bytes.
    ///
    /// # Errors
    /// It is not there.
    pub async fn pack(&self, id: PackId) -> Result<Vec<u8>, StoreError> {
        self.bytes(Self::pack_path(id)).await
    }
}

/// An index, checked against its id.
///
/// # Errors
/// It is not what its id says.
pub fn index(bytes: &[u8], id: ObjectId) -> Result<Index<'_>, StoreError> {
    Index::read(bytes, id).map_err(|source| StoreError::Index { id, source })
}

/// Writes the content of a leaf to `out`, from its pack's bytes, verified; `out` gets its length.
///
/// # Errors
/// The pack ends too soon or holds something else there.
pub fn leaf(record: &IndexRecord, pack: PackId, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), StoreError> {
    let from = record.place.offset as usize;
    let stored = match record.codec {
        Codec::Zero => &[][..],
        Codec::Raw | Codec::Zstd => bytes
            .get(from..from + record.place.stored_bytes as usize)
            .ok_or(StoreError::Short { pack, leaf: record.id })?,
    };
    out.resize(record.content_bytes as usize, 0);
    snapshots::leaf::read(record.id, record.codec, stored, out).map_err(|source| StoreError::Leaf { pack, source })
}
