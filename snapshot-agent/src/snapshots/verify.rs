//! All of a store, read and hashed.

use std::collections::{BTreeMap, BTreeSet};

use snapshots::{IndexRecord, LeafId, ObjectId, PackId};

use super::store::{self, Store, StoreError};

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Objects that were looked at.
    pub objects: usize,
    /// Packs that objects need.
    pub packs: usize,
    /// Bytes of their leaves, as they are stored.
    pub bytes: u64,
    /// What is wrong; all of it.
    pub faults: Vec<StoreError>,
    /// Objects that cannot be read whole.
    pub damaged: BTreeSet<ObjectId>,
}

/// Reads every object, and every leaf that one needs, once; `told` hears of packs that were read, and of how many there are.
///
/// # Errors
/// The store cannot be listed. What is wrong with what it holds is in the answer.
pub async fn verify(store: &Store, told: impl Fn(usize, usize)) -> Result<Found, StoreError> {
    let mut found = Found::default();
    let mut needed: BTreeMap<PackId, BTreeMap<LeafId, (IndexRecord, BTreeSet<ObjectId>)>> = BTreeMap::new();
    for id in store.objects().await? {
        found.objects += 1;
        match leaves(store, id).await {
            Ok(records) => {
                for (pack, record) in records {
                    let leaves = needed.entry(pack).or_default();
                    leaves.entry(record.id).or_insert((record, BTreeSet::new())).1.insert(id);
                }
            }
            Err(fault) => {
                found.damaged.insert(id);
                found.faults.push(fault);
            }
        }
    }
    found.packs = needed.len();
    let mut content = Vec::new();
    for (done, (pack, leaves)) in needed.into_iter().enumerate() {
        match store.pack(pack).await {
            Ok(bytes) => {
                for (record, objects) in leaves.into_values() {
                    found.bytes += u64::from(record.place.stored_bytes);
                    if let Err(fault) = store::leaf(&record, pack, &bytes, &mut content) {
                        found.damaged.extend(objects);
                        found.faults.push(fault);
                    }
                }
            }
            Err(fault) => {
                found.damaged.extend(leaves.into_values().flat_map(|(_, objects)| objects));
                found.faults.push(fault);
            }
        }
        told(done + 1, found.packs);
    }
    Ok(found)
}

/// The leaves of an object that lie in packs.
async fn leaves(store: &Store, id: ObjectId) -> Result<Vec<(PackId, IndexRecord)>, StoreError> {
    let manifest = store.manifest(id).await?;
    let bytes = store.index(manifest.index).await?;
    let index = store::index(&bytes, manifest.index)?;
    manifest.ranges(&index).map_err(|source| StoreError::Manifest { id, source })?;
    Ok(index.stored().collect())
}
