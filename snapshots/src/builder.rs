//! Writing an object: content in, packs, index and manifest out, in the order in which they have to be stored.

use std::collections::BTreeMap;

use crate::index::{self, IndexRecord};
use crate::leaf::{self, Codec, Compression};
use crate::manifest::{FORMAT, Kind, Manifest, ManifestError, Reference, Stream};
use crate::pack::{PackBuilder, Place};
use crate::{LeafId, ObjectId, PackId};

/// A pack that is full, to be stored before the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pack {
    /// Its name.
    pub id: PackId,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Where a store has a leaf already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The pack.
    pub pack: PackId,
    /// Where it lies there.
    pub place: Place,
    /// How it is stored.
    pub codec: Codec,
}

/// An object that is being written.
#[derive(Debug)]
pub struct ObjectBuilder<F> {
    known: F,
    compression: Compression,
    /// Ids of packs; `None` for the one that is being filled.
    packs: Vec<Option<PackId>>,
    /// Numbers of packs that the store had.
    number_of: BTreeMap<PackId, u32>,
    open: PackBuilder,
    /// Buffers of packs that are stored.
    spare: Vec<Vec<u8>>,
    /// Number of the pack that is being filled, once something lies in it.
    open_number: Option<u32>,
    placed: BTreeMap<LeafId, IndexRecord>,
    leaves: Vec<IndexRecord>,
    streams: Vec<Stream>,
}

/// What is stored last: the pack, if any, then the index, then the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The last pack.
    pub pack: Option<Pack>,
    /// Id and bytes of the index.
    pub index: (ObjectId, Vec<u8>),
    /// Id and bytes of the manifest.
    pub manifest: (ObjectId, Vec<u8>),
}

impl<F: Fn(LeafId) -> Option<Known>> ObjectBuilder<F> {
    /// Nothing yet; `known` says where the store has a leaf already, so that it is not stored again.
    pub fn new(compression: Compression, known: F) -> Self {
        Self {
            known,
            compression,
            packs: Vec::new(),
            number_of: BTreeMap::new(),
            open: PackBuilder::default(),
            spare: Vec::new(),
            open_number: None,
            placed: BTreeMap::new(),
            leaves: Vec::new(),
            streams: Vec::new(),
        }
    }

    /// Takes back the bytes of a pack that is stored, for one to come.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.spare.push(buffer);
    }

    /// Begins a stream: what is added from now on belongs to it.
    pub fn stream(&mut self, name: &str) {
        self.streams.push(Stream { name: name.into(), leaves: 0, bytes: 0 });
    }

    /// Adds a leaf of 1 to [`leaf::LEAF_BYTES`] bytes to the stream that was begun last. Returns a pack that got full.
    ///
    /// # Panics
    /// Without a stream, without content, or with more than a leaf has.
    pub fn add(&mut self, content: &[u8]) -> Option<Pack> {
        assert!(!content.is_empty(), "a leaf has content");
        let stream = self.streams.last_mut().expect("a stream was begun");
        stream.leaves += 1;
        stream.bytes += content.len() as u64;
        // What is there already is not compressed for nothing.
        let (id, content_bytes) = (leaf::id_of(content), content.len() as u32);
        if let Some(record) = self.placed.get(&id) {
            self.leaves.push(*record);
            return None;
        }
        let mut full = None;
        let record = if let Some(Known { pack, place, codec }) = (self.known)(id) {
            IndexRecord { id, codec, content_bytes, pack: self.number(pack), place }
        } else {
            let stored = leaf::encode(id, content, self.compression);
            let nowhere = Place { offset: 0, stored_bytes: 0 };
            let (pack, place) = if stored.codec == Codec::Zero {
                (0, nowhere)
            } else {
                if !self.open.has_room(&stored) {
                    full = self.close();
                }
                (self.open_number(), self.open.add(&stored))
            };
            IndexRecord { id, codec: stored.codec, content_bytes, pack, place }
        };
        self.placed.insert(id, record);
        self.leaves.push(record);
        full
    }

    fn number(&mut self, id: PackId) -> u32 {
        let packs = &mut self.packs;
        *self.number_of.entry(id).or_insert_with(|| {
            packs.push(Some(id));
            packs.len() as u32 - 1
        })
    }

    /// Number of the pack that is being filled; begins one where none is.
    fn open_number(&mut self) -> u32 {
        if let Some(number) = self.open_number {
            return number;
        }
        if let Some(buffer) = self.spare.pop() {
            self.open = PackBuilder::within(buffer);
        }
        self.packs.push(None);
        let number = self.packs.len() as u32 - 1;
        self.open_number = Some(number);
        number
    }

    fn close(&mut self) -> Option<Pack> {
        let number = self.open_number.take()?;
        let (id, bytes) = std::mem::take(&mut self.open).finish();
        self.packs[number as usize] = Some(id);
        Some(Pack { id, bytes })
    }

    /// The last pack, the index and the manifest.
    ///
    /// # Errors
    /// A stream's name is no relative path or there twice, or the manifest is too long.
    pub fn finish(
        mut self,
        kind: Kind,
        references: Vec<Reference>,
        labels: BTreeMap<String, String>,
    ) -> Result<Finished, ManifestError> {
        let pack = self.close();
        let packs: Vec<PackId> = self.packs.into_iter().flatten().collect();
        let index = index::write(&packs, &self.leaves);
        let manifest = Manifest {
            format: FORMAT,
            critical: [].into(),
            kind,
            index: index.0,
            streams: self.streams,
            references,
            labels,
        };
        Ok(Finished { pack, index, manifest: manifest.write()? })
    }
}
