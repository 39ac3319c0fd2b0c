//! What nothing needs, deleted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use snapshots::collection::{Listing, Stored, Sweep};

use super::store::lease::{Lease, Work};
use super::store::{self, Store, StoreError};

/// Deletions after which it is looked whether the lease is still held.
const DELETIONS_UNSEEN_MAX: usize = 64;

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// What is younger stays.
    pub grace: Duration,
    /// How long to wait for objects that are being written.
    pub patience: Duration,
    /// Says what would be deleted, and deletes nothing.
    pub dry_run: bool,
}

/// Deletes the packs and indexes that no object and no reader needs. What cannot be read stops it: it might be needed.
///
/// # Errors
/// The store fails, an object cannot be read, or others are at work.
pub async fn collect(store: &Store, terms: Terms) -> Result<Sweep, StoreError> {
    let lease = Lease::take_to_collect(store, terms.patience).await?;
    let swept = sweep(store, &lease, terms).await;
    let released = lease.release().await;
    let sweep = swept?;
    released.map(|()| sweep)
}

async fn sweep(store: &Store, lease: &Lease, terms: Terms) -> Result<Sweep, StoreError> {
    let listing = listing(store, lease, terms).await?;
    let sweep = listing.sweep();
    if terms.dry_run {
        return Ok(sweep);
    }
    // Packs first: an index without them is named by nobody, packs without an index are found again.
    let paths = sweep.packs.iter().map(|id| Store::pack_path(*id));
    for (n, path) in paths.chain(sweep.indexes.iter().map(|id| Store::index_path(*id))).enumerate() {
        if n.is_multiple_of(DELETIONS_UNSEEN_MAX) && !lease.is_held().await? {
            return Err(StoreError::LeaseLost);
        }
        store.delete(&path).await?;
    }
    store.delete_unfinished(terms.grace).map_err(StoreError::Unfinished)?;
    Ok(sweep)
}

async fn listing(store: &Store, lease: &Lease, terms: Terms) -> Result<Listing, StoreError> {
    let mut indexes_named = Vec::new();
    for id in store.objects().await? {
        match store.manifest(id).await {
            Ok(manifest) => indexes_named.push((manifest.index, true)),
            // Removed meanwhile.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    for (_, lessee) in store.leases().await? {
        if let Work::Read { index } = lessee.work {
            indexes_named.push((index, false));
        }
    }
    let mut live = BTreeMap::new();
    for (id, of_object) in indexes_named {
        if let Entry::Vacant(free) = live.entry(id) {
            let bytes = match store.index(id).await {
                Ok(bytes) => bytes,
                // A reader who came too late: there is nothing to keep for it.
                Err(error) if error.is_not_found() && !of_object => continue,
                Err(error) => return Err(error),
            };
            free.insert(store::index(&bytes, id)?.packs().collect());
        }
    }
    Ok(Listing {
        packs: named(store, "packs").await?,
        indexes: named(store, "indexes").await?,
        live,
        now_s: lease.written_s().await?,
        grace_s: i64::try_from(terms.grace.as_secs()).unwrap_or(i64::MAX),
    })
}

/// What lies below a folder under names that are ids. Other names are somebody else's.
async fn named<Id: std::str::FromStr + Ord>(store: &Store, below: &str) -> Result<BTreeMap<Id, Stored>, StoreError> {
    let listed = store.listed(below).await?.into_iter();
    let of = |(path, bytes, written_s): (object_store::path::Path, u64, i64)| {
        Some((path.filename()?.parse().ok()?, Stored { bytes, written_s }))
    };
    Ok(listed.filter_map(of).collect())
}
