//! Packs: immutable files of leaves, one after the other, in the order in which a restore wants them.

use crate::PackId;
use crate::leaf::Stored;

/// Most bytes of a pack.
pub const PACK_BYTES: usize = 64 << 20;

/// Where a leaf lies in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub stored_bytes: u32,
}

/// A pack that is being filled.
#[derive(Debug, Default)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    table: blake3::Hasher,
}

impl PackBuilder {
    /// An empty pack in a buffer that another one left: to touch 64 MiB of new memory takes longer than to hash them.
    #[must_use]
    pub fn within(mut buffer: Vec<u8>) -> Self {
        buffer.clear();
        buffer.reserve_exact(PACK_BYTES);
        Self { bytes: buffer, ..Self::default() }
    }

    /// Whether the leaf fits in.
    #[must_use]
    pub fn has_room(&self, leaf: &Stored) -> bool {
        self.bytes.len() + leaf.bytes.len() <= PACK_BYTES
    }

    /// Adds a leaf that fits in.
    pub fn add(&mut self, leaf: &Stored) -> Place {
        let place = Place { offset: self.bytes.len() as u32, stored_bytes: leaf.bytes.len() as u32 };
        self.bytes.extend_from_slice(&leaf.bytes);
        self.table.update(&leaf.id.0).update(&[leaf.codec as u8]).update(&place.stored_bytes.to_le_bytes());
        place
    }

    /// The pack's id and bytes.
    #[must_use]
    pub fn finish(self) -> (PackId, Vec<u8>) {
        (PackId(*self.table.finalize().as_bytes()), self.bytes)
    }
}
