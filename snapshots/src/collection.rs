//! Which packs and indexes nothing needs. Mark and sweep: what objects and leases name stays, and so does what is young.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ObjectId, PackId};

/// A stored thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Bytes.
    pub bytes: u64,
    /// When it was written, seconds, by the store's clock.
    pub written_s: i64,
}

/// A store, as it was listed.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All packs.
    pub packs: BTreeMap<PackId, Stored>,
    /// All indexes.
    pub indexes: BTreeMap<ObjectId, Stored>,
    /// The packs of each index that an object or a lease names.
    pub live: BTreeMap<ObjectId, BTreeSet<PackId>>,
    /// Now, seconds, by the same clock.
    pub now_s: i64,
    /// What is younger stays, seconds.
    pub grace_s: i64,
}

/// What to delete, and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Packs that nothing needs.
    pub packs: Vec<PackId>,
    /// Indexes that nothing needs.
    pub indexes: Vec<ObjectId>,
    /// Bytes of both.
    pub bytes: u64,
    /// Things that nothing needs but that are too young.
    pub young: usize,
    /// Bytes of packs that stay.
    pub kept_bytes: u64,
}

impl Listing {
    /// What nothing needs.
    #[must_use]
    pub fn sweep(&self) -> Sweep {
        let needed: BTreeSet<PackId> = self.live.values().flatten().copied().collect();
        let mut sweep = Sweep::default();
        for (id, stored) in &self.packs {
            if needed.contains(id) || !sweep.takes(self, stored) {
                sweep.kept_bytes += stored.bytes;
            } else {
                sweep.packs.push(*id);
            }
        }
        for (id, stored) in &self.indexes {
            if !self.live.contains_key(id) && sweep.takes(self, stored) {
                sweep.indexes.push(*id);
            }
        }
        sweep
    }
}

impl Sweep {
    /// Whether something that nothing needs is old enough; counts it.
    fn takes(&mut self, listing: &Listing, stored: &Stored) -> bool {
        // A clock that went back makes things younger, never older.
        let old = listing.now_s.saturating_sub(stored.written_s) >= listing.grace_s;
        if old {
            self.bytes += stored.bytes;
        } else {
            self.young += 1;
        }
        old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(n: u8) -> PackId {
        PackId([n; 32])
    }

    #[test]
    fn what_is_needed_or_young_stays() {
        let at = |written_s| Stored { bytes: 10, written_s };
        let (live, dead) = (ObjectId([1; 32]), ObjectId([2; 32]));
        let listing = Listing {
            packs: [(pack(1), at(0)), (pack(2), at(0)), (pack(3), at(950)), (pack(4), at(2000))].into(),
            indexes: [(live, at(0)), (dead, at(0))].into(),
            live: [(live, [pack(1)].into())].into(),
            now_s: 1000,
            grace_s: 100,
        };
        let sweep = listing.sweep();
        assert_eq!(sweep.packs, [pack(2)]);
        assert_eq!(sweep.indexes, [dead]);
        assert_eq!((sweep.bytes, sweep.young, sweep.kept_bytes), (20, 2, 30));
    }
}
