//! All of a store, read and hashed, and what is wrong written anew from where it is whole.

use std::collections::{BTreeMap, BTreeSet};

use snapshots::{IndexRecord, LeafId, ObjectId, PackId};

use super::store::lease::Lease;
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
    /// Packs and objects that were written anew from a mirror.
    pub repaired: usize,
    /// Objects that cannot be read whole.
    pub damaged: BTreeSet<ObjectId>,
}

/// Leaves of a pack, by what they are and where they lie, and the objects that need each.
type Needed = BTreeMap<(LeafId, u32), (IndexRecord, BTreeSet<ObjectId>)>;

/// Reads every object, and every leaf that one needs, once. What is wrong is written anew from the first of `mirrors` that has
/// it whole. `told` hears of packs that were read, and of how many there are.
///
/// # Errors
/// The store cannot be listed. What is wrong with what it holds is in the answer.
pub async fn verify(store: &Store, mirrors: &[Store], told: impl Fn(usize, usize)) -> Result<Found, StoreError> {
    // What is written anew must not be collected meanwhile.
    let lease = if mirrors.is_empty() { None } else { Some(Lease::take_beside_no_collection(store).await?) };
    let mut found = Found::default();
    let mut needed: BTreeMap<PackId, Needed> = BTreeMap::new();
    let ids: BTreeSet<ObjectId> = store.objects().await?.into_iter().collect();
    for &id in &ids {
        found.objects += 1;
        // One that cannot be read is named below.
        for needed in store.manifest(id).await.map(|manifest| manifest.references).unwrap_or_default() {
            if !ids.contains(&needed.id) {
                found.damaged.insert(id);
                found.faults.push(StoreError::Missing { id: needed.id, by: id });
            }
        }
        let mut read = leaves(store, id).await;
        if read.is_err() && repair_object(store, mirrors, id).await {
            found.repaired += 1;
            read = leaves(store, id).await;
        }
        match read {
            Ok(records) => {
                for (pack, record) in records {
                    let leaves = needed.entry(pack).or_default();
                    let key = (record.id, record.place.offset);
                    leaves.entry(key).or_insert((record, BTreeSet::new())).1.insert(id);
                }
            }
            Err(fault) => {
                found.damaged.insert(id);
                found.faults.push(fault);
            }
        }
    }
    found.packs = needed.len();
    for (done, (pack, leaves)) in needed.into_iter().enumerate() {
        found.bytes += leaves.values().map(|(record, _)| u64::from(record.place.stored_bytes)).sum::<u64>();
        let (bytes, faults) = faults_of(store, pack, &leaves).await;
        if !faults.is_empty() && repair_pack(store, mirrors, pack, bytes, &leaves).await {
            found.repaired += 1;
        } else {
            for (fault, objects) in faults {
                found.damaged.extend(objects);
                found.faults.push(fault);
            }
        }
        told(done + 1, found.packs);
    }
    if let Some(lease) = lease {
        lease.release().await?;
    }
    Ok(found)
}

/// A pack's bytes, and what is wrong with the leaves that are needed, with the objects that each fault damages.
async fn faults_of(store: &Store, pack: PackId, leaves: &Needed) -> (Vec<u8>, Vec<(StoreError, BTreeSet<ObjectId>)>) {
    let bytes = match store.pack(pack).await {
        Ok(bytes) => bytes,
        Err(fault) => {
            let all = leaves.values().flat_map(|(_, objects)| objects).copied().collect();
            return (Vec::new(), vec![(fault, all)]);
        }
    };
    let mut content = Vec::new();
    let mut faults = Vec::new();
    for (record, objects) in leaves.values() {
        if let Err(fault) = store::leaf(record, pack, &bytes, &mut content) {
            faults.push((fault, objects.clone()));
        }
    }
    (bytes, faults)
}

/// Writes a pack anew from a mirror that has all leaves whole; whether there is one.
async fn repair_pack(store: &Store, mirrors: &[Store], pack: PackId, own: Vec<u8>, leaves: &Needed) -> bool {
    for mirror in mirrors {
        let (copy, faults) = faults_of(mirror, pack, leaves).await;
        if !faults.is_empty() {
            continue;
        }
        // Only what is damaged here comes from there: other leaves may be whole here alone.
        let bytes = if own.len() == copy.len() { patched(own.clone(), &copy, pack, leaves) } else { copy };
        if store.replace_pack(pack, bytes).await.is_ok() {
            return true;
        }
    }
    false
}

/// A pack with its damaged leaves from a copy that has them whole.
fn patched(mut own: Vec<u8>, copy: &[u8], pack: PackId, leaves: &Needed) -> Vec<u8> {
    let mut scratch = Vec::new();
    for (record, _) in leaves.values() {
        if store::leaf(record, pack, &own, &mut scratch).is_err() {
            let from = record.place.offset as usize;
            let range = from..from + record.place.stored_bytes as usize;
            if let (Some(own), Some(copy)) = (own.get_mut(range.clone()), copy.get(range)) {
                own.copy_from_slice(copy);
            }
        }
    }
    own
}

/// Writes an object's manifest and index anew from a mirror that has both whole; whether there is one.
async fn repair_object(store: &Store, mirrors: &[Store], id: ObjectId) -> bool {
    for mirror in mirrors {
        let there = store.objects().await.is_ok_and(|ids| ids.contains(&id));
        // Removed meanwhile: it is not brought back.
        if there && leaves(mirror, id).await.is_ok() && store.replace_object(mirror, id).await.is_ok() {
            return true;
        }
    }
    false
}

/// The leaves of an object that lie in packs.
async fn leaves(store: &Store, id: ObjectId) -> Result<Vec<(PackId, IndexRecord)>, StoreError> {
    let manifest = store.manifest(id).await?;
    let bytes = store.index(manifest.index).await?;
    let index = store::index(&bytes, manifest.index)?;
    manifest.ranges(&index).map_err(|source| StoreError::Manifest { id, source })?;
    store::check_zeros(&index)?;
    Ok(index.stored().collect())
}
