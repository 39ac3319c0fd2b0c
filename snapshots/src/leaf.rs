//! Leaves: what is hashed, stored, cached and verified as one.

use std::borrow::Cow;
use std::sync::LazyLock;

use crate::LeafId;

/// Most bytes of a leaf: a huge page of x86-64, and the unit in which CUDA maps device memory
/// (`cuMemGetAllocationGranularity`), so that no copy crosses a seam.
pub const LEAF_BYTES: usize = 2 << 20;

/// How a leaf's content is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Codec {
    /// All zeros, of which nothing is stored.
    Zero = 0,
    /// As it is.
    Raw = 1,
    /// One zstd frame (RFC 8878).
    Zstd = 2,
}

impl Codec {
    /// The codec of a byte, if this build knows it.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Zero, Self::Raw, Self::Zstd].into_iter().find(|codec| *codec as u8 == byte)
    }
}

/// Whether leaves are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Never: weights and device memory hardly shrink and have to be read at the speed of the disk.
    Never,
    /// Where a leaf shrinks to two thirds or less.
    IfWorthwhile,
}

/// Level 1: a restore waits for decompression, whose speed hardly depends on it.
const ZSTD_LEVEL: i32 = 1;

/// A leaf as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<'a> {
    /// Of the content.
    pub id: LeafId,
    /// How the content is stored.
    pub codec: Codec,
    /// Bytes of the content.
    pub content_bytes: u32,
    /// What is stored.
    pub bytes: Cow<'a, [u8]>,
}

/// Why stored bytes are not the leaf that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The stored bytes have another length than their record says.
    #[error("leaf {id}: {found} bytes are stored, its record says {expected}; fetch it from another copy")]
    Length {
        /// The leaf.
        id: LeafId,
        /// By the record.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// They cannot be decompressed to the length that the record says.
    #[error("leaf {id} cannot be decompressed; fetch it from another copy")]
    Compressed {
        /// The leaf.
        id: LeafId,
        /// What the decompressor says.
        source: std::io::Error,
    },
    /// The content has another hash.
    #[error("leaf {id} has content of hash {found}; fetch it from another copy")]
    Content {
        /// The leaf.
        id: LeafId,
        /// Hash of the content that was found.
        found: LeafId,
    },
}

/// A leaf of `content`, of at most [`LEAF_BYTES`] bytes.
///
/// # Panics
/// Content longer than a leaf.
#[must_use]
pub fn store(content: &[u8], compression: Compression) -> Stored<'_> {
    encode(id_of(content), content, compression)
}

/// The id of content, known before anything is compressed.
pub(crate) fn id_of(content: &[u8]) -> LeafId {
    assert!(content.len() <= LEAF_BYTES, "a leaf has at most {LEAF_BYTES} bytes, not {}", content.len());
    if is_zero(content) { zero_id(content.len()) } else { LeafId::of(content) }
}

/// A leaf of content whose id is known.
pub(crate) fn encode(id: LeafId, content: &[u8], compression: Compression) -> Stored<'_> {
    let content_bytes = content.len() as u32;
    if is_zero(content) {
        return Stored { id, codec: Codec::Zero, content_bytes, bytes: Cow::Borrowed(&[]) };
    }
    if compression == Compression::IfWorthwhile
        && let Ok(bytes) = zstd::bulk::compress(content, ZSTD_LEVEL)
        && bytes.len() <= content.len() / 3 * 2
    {
        return Stored { id, codec: Codec::Zstd, content_bytes, bytes: Cow::Owned(bytes) };
    }
    Stored { id, codec: Codec::Raw, content_bytes, bytes: Cow::Borrowed(content) }
}

/// The content of a stored leaf of `content_bytes`, verified: what is stored itself where it lies as it is, and `scratch` where
/// it had to be unpacked.
///
/// # Errors
/// The stored bytes are not this leaf.
pub fn content<'a>(
    id: LeafId,
    codec: Codec,
    content_bytes: usize,
    stored: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], LeafError> {
    if codec != Codec::Raw {
        scratch.resize(content_bytes, 0);
        read(id, codec, stored, scratch)?;
        return Ok(scratch);
    }
    if stored.len() != content_bytes {
        return Err(LeafError::Length { id, expected: content_bytes, found: stored.len() });
    }
    let found = LeafId::of(stored);
    if found == id { Ok(stored) } else { Err(LeafError::Content { id, found }) }
}

/// Writes the content of a stored leaf to `out`, whose length is that of the content, and verifies it: what `out` holds after
/// an error is not the leaf.
///
/// # Errors
/// The stored bytes are not this leaf.
pub fn read(id: LeafId, codec: Codec, stored: &[u8], out: &mut [u8]) -> Result<(), LeafError> {
    let length = |expected| LeafError::Length { id, expected, found: stored.len() };
    match codec {
        Codec::Zero if !stored.is_empty() => return Err(length(0)),
        Codec::Zero => {
            out.fill(0);
            let found = zero_id(out.len());
            return if found == id { Ok(()) } else { Err(LeafError::Content { id, found }) };
        }
        Codec::Raw if stored.len() != out.len() => return Err(length(out.len())),
        Codec::Raw => out.copy_from_slice(stored),
        Codec::Zstd => {
            let wrong = |source| LeafError::Compressed { id, source };
            let mut decompressor = zstd::bulk::Decompressor::new().map_err(wrong)?;
            let written = decompressor.decompress_to_buffer(stored, out).map_err(wrong)?;
            if written != out.len() {
                return Err(LeafError::Length { id, expected: out.len(), found: written });
            }
        }
    }
    let found = LeafId::of(out);
    if found == id { Ok(()) } else { Err(LeafError::Content { id, found }) }
}

/// In blocks, so that the compiler takes whole vectors and a leaf with content is known by its first block.
fn is_zero(content: &[u8]) -> bool {
    content.chunks(4096).all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// The id of so many zeros; of a whole leaf it is hashed once.
fn zero_id(bytes: usize) -> LeafId {
    static WHOLE: LazyLock<LeafId> = LazyLock::new(|| LeafId::of(&vec![0; LEAF_BYTES]));
    if bytes == LEAF_BYTES { *WHOLE } else { LeafId::of(&vec![0; bytes]) }
}
