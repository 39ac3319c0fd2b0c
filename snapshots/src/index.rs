//! The index of an object: its packs, and its leaves in the order of its streams. Fixed records, little-endian, read where
//! they lie: of a memory-mapped file nothing is copied.
//!
//! ```text
//! 0   8  magic "PLINDEX\0"          32      n·32  ids of the packs
//! 8   4  format, 1                  32+n·32 m·48  records of the leaves:
//! 12  4  critical features, none              0   32  id
//! 16  4  n, packs                             32  4   number of its pack
//! 20  4  0                                    36  4   first byte in the pack
//! 24  8  m, leaves                            40  4   stored bytes
//!                                             44  3   bytes of the content
//!                                             47  1   codec
//! ```

use crate::leaf::{Codec, LEAF_BYTES};
use crate::numbers::{u32_at, u64_at};
use crate::pack::{PACK_BYTES, Place};
use crate::{LeafId, ObjectId, PackId};

const MAGIC: [u8; 8] = *b"PLINDEX\0";
/// The newest format that this build reads and writes.
pub const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 32;
const PACK_ID_BYTES: usize = 32;
const RECORD_BYTES: usize = 48;

/// One leaf of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexRecord {
    /// The leaf.
    pub id: LeafId,
    /// How it is stored.
    pub codec: Codec,
    /// Bytes of its content, at least one.
    pub content_bytes: u32,
    /// Its pack, by the index's numbers; 0 for zeros.
    pub pack: u32,
    /// Where it lies there; nowhere, 0 and 0, for zeros.
    pub place: Place,
}

/// Why bytes are no index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The bytes are not those that the manifest names.
    #[error("the index has hash {found}, its manifest says {expected}; fetch it from another copy")]
    Hash {
        /// By the manifest.
        expected: ObjectId,
        /// Of the bytes.
        found: ObjectId,
    },
    /// No index at all.
    #[error("this is no index: it does not begin with PLINDEX")]
    Magic,
    /// Written by a newer build.
    #[error("the index has format {0}, this build reads {FORMAT}; update it")]
    Newer(u32),
    /// It asks for features that this build does not know.
    #[error("the index asks for features {0:#x} that this build does not know; update it")]
    Features(u32),
    /// It is shorter or longer than its header says.
    #[error("the index has {found} bytes, its header says {expected}")]
    Length {
        /// By the header; `None` for more than can be counted.
        expected: HeaderLength,
        /// What there is.
        found: usize,
    },
    /// A record makes no sense.
    #[error("leaf {leaf} of the index: {what}")]
    Record {
        /// Number of the leaf.
        leaf: usize,
        /// What is wrong.
        what: RecordFault,
    },
}

/// Bytes that a header promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeaderLength(Option<usize>);

impl std::fmt::Display for HeaderLength {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bytes) => write!(f, "{bytes}"),
            None => write!(f, "more than can be counted"),
        }
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// A codec that this build does not know.
    #[error("codec {0} is not known to this build; update it")]
    Codec(u8),
    /// No content, or more than a leaf has.
    #[error("content of {0} bytes, a leaf has 1 to {LEAF_BYTES}")]
    Content(u32),
    /// A length that its codec does not give.
    #[error("{stored} stored bytes for {content} by its codec")]
    Stored {
        /// Stored bytes.
        stored: u32,
        /// Bytes of the content.
        content: u32,
    },
    /// Beyond the end of any pack, or somewhere although it is stored nowhere.
    #[error("it lies outside its pack")]
    Outside,
    /// A pack that the index does not name.
    #[error("pack {0} is not in the index")]
    Pack(u32),
}

/// An index whose every record was checked, over the bytes of its file.
#[derive(Debug, Clone, Copy)]
pub struct Index<'a> {
    packs: &'a [[u8; PACK_ID_BYTES]],
    records: &'a [[u8; RECORD_BYTES]],
}

impl<'a> Index<'a> {
    /// The index in `bytes`, which are those of `id`.
    ///
    /// # Errors
    /// The bytes are others, of a newer format, or make no sense.
    pub fn read(bytes: &'a [u8], id: ObjectId) -> Result<Self, IndexError> {
        let found = ObjectId::of(bytes);
        if found != id {
            return Err(IndexError::Hash { expected: id, found });
        }
        Self::parse(bytes)
    }

    fn parse(bytes: &'a [u8]) -> Result<Self, IndexError> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Err(IndexError::Magic) };
        if header[..8] != MAGIC {
            return Err(IndexError::Magic);
        }
        match u32_at(header, 8) {
            FORMAT => {}
            newer => return Err(IndexError::Newer(newer)),
        }
        match (u32_at(header, 12), u32_at(header, 20)) {
            (0, 0) => {}
            (features, 0) => return Err(IndexError::Features(features)),
            (_, reserved) => return Err(IndexError::Features(reserved)),
        }
        let (packs, leaves) = (u32_at(header, 16) as usize, u64_at(header, 24));
        let packs_bytes = packs.checked_mul(PACK_ID_BYTES);
        let records_bytes = usize::try_from(leaves).ok().and_then(|n| n.checked_mul(RECORD_BYTES));
        let expected = packs_bytes.zip(records_bytes).and_then(|(p, r)| p.checked_add(r));
        if expected != Some(rest.len()) {
            let expected = HeaderLength(expected.and_then(|n| n.checked_add(HEADER_BYTES)));
            return Err(IndexError::Length { expected, found: bytes.len() });
        }
        let (ids, records) = rest.split_at(packs * PACK_ID_BYTES);
        let index = Self { packs: ids.as_chunks().0, records: records.as_chunks().0 };
        for (leaf, record) in index.records.iter().enumerate() {
            index.check(record).map_err(|what| IndexError::Record { leaf, what })?;
        }
        Ok(index)
    }

    fn check(&self, record: &[u8; RECORD_BYTES]) -> Result<(), RecordFault> {
        let codec = Codec::from_byte(record[47]).ok_or(RecordFault::Codec(record[47]))?;
        let (pack, offset, stored) = (u32_at(record, 32), u32_at(record, 36), u32_at(record, 40));
        let content = content_bytes(record);
        if content == 0 || content as usize > LEAF_BYTES {
            return Err(RecordFault::Content(content));
        }
        let fits = match codec {
            Codec::Zero => stored == 0,
            Codec::Raw => stored == content,
            Codec::Zstd => (1..content).contains(&stored),
        };
        if !fits {
            return Err(RecordFault::Stored { stored, content });
        }
        if codec == Codec::Zero {
            return if (pack, offset) == (0, 0) { Ok(()) } else { Err(RecordFault::Outside) };
        }
        if pack as usize >= self.packs.len() {
            return Err(RecordFault::Pack(pack));
        }
        if u64::from(offset) + u64::from(stored) > PACK_BYTES as u64 {
            return Err(RecordFault::Outside);
        }
        Ok(())
    }

    /// The packs, by their numbers.
    #[must_use]
    pub fn packs(&self) -> impl ExactSizeIterator<Item = PackId> + use<'a> {
        self.packs.iter().map(|id| PackId(*id))
    }

    /// The pack that a leaf of this index lies in; none for zeros.
    #[must_use]
    pub fn pack_of(&self, leaf: &IndexRecord) -> Option<PackId> {
        let stored = leaf.codec != Codec::Zero;
        stored.then(|| self.packs.get(leaf.pack as usize).map(|id| PackId(*id))).flatten()
    }

    /// The leaves that lie in packs, with multiplicity.
    pub fn stored(&self) -> impl Iterator<Item = (PackId, IndexRecord)> {
        (0..self.leaves()).filter_map(|i| self.leaf(i)).filter_map(|leaf| Some((self.pack_of(&leaf)?, leaf)))
    }

    /// Leaves, with multiplicity.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.records.len()
    }

    /// Leaf `i`, if there are so many.
    #[must_use]
    pub fn leaf(&self, i: usize) -> Option<IndexRecord> {
        let record = self.records.get(i)?;
        let mut id = [0; 32];
        id.copy_from_slice(&record[..32]);
        Some(IndexRecord {
            id: LeafId(id),
            codec: Codec::from_byte(record[47])?,
            content_bytes: content_bytes(record),
            pack: u32_at(record, 32),
            place: Place { offset: u32_at(record, 36), stored_bytes: u32_at(record, 40) },
        })
    }
}

/// The bytes of an index, and their id.
#[must_use]
pub fn write(packs: &[PackId], leaves: &[IndexRecord]) -> (ObjectId, Vec<u8>) {
    let mut out = Vec::with_capacity(HEADER_BYTES + packs.len() * PACK_ID_BYTES + leaves.len() * RECORD_BYTES);
    out.extend_from_slice(&MAGIC);
    for number in [FORMAT, 0, packs.len() as u32, 0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&(leaves.len() as u64).to_le_bytes());
    packs.iter().for_each(|id| out.extend_from_slice(&id.0));
    for leaf in leaves {
        out.extend_from_slice(&leaf.id.0);
        for number in [leaf.pack, leaf.place.offset, leaf.place.stored_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        // A leaf's length needs 22 bits.
        out.extend_from_slice(&leaf.content_bytes.to_le_bytes()[..3]);
        out.push(leaf.codec as u8);
    }
    (ObjectId::of(&out), out)
}

fn content_bytes(record: &[u8; RECORD_BYTES]) -> u32 {
    u32::from_le_bytes([record[44], record[45], record[46], 0])
}
