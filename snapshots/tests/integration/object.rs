//! Objects in memory, for tests.

use std::collections::{BTreeMap, HashMap};

use snapshots::builder::{Finished, Known, Pack};
use snapshots::leaf::{self, Codec, Compression, LEAF_BYTES};
use snapshots::manifest::Kind;
use snapshots::{Index, LeafId, Manifest, ObjectBuilder, ObjectId, PackId};

/// What a store holds of one object or several.
#[derive(Debug, Clone)]
pub struct Store {
    pub packs: HashMap<PackId, Vec<u8>>,
    pub known: HashMap<LeafId, Known>,
    pub index: (ObjectId, Vec<u8>),
    pub manifest: (ObjectId, Vec<u8>),
}

impl Store {
    pub fn new() -> Self {
        let nothing = || (ObjectId::of(&[]), Vec::new());
        Self { packs: HashMap::new(), known: HashMap::new(), index: nothing(), manifest: nothing() }
    }

    /// Writes an object of these streams; says which packs it brought.
    pub fn write(&mut self, streams: &[(&str, &[u8])], compression: Compression) -> Vec<PackId> {
        let mut new: Vec<Pack> = Vec::new();
        let known = self.known.clone();
        let mut builder = ObjectBuilder::new(compression, |id| known.get(&id).copied());
        for (name, content) in streams {
            builder.stream(name);
            content.chunks(LEAF_BYTES).for_each(|leaf| new.extend(builder.add(leaf)));
        }
        let labels = BTreeMap::from([("made-by".to_owned(), "a test".to_owned())]);
        let Finished { pack, index, manifest } = builder.finish(Kind::Snapshot, vec![], labels).expect("plain names");
        new.extend(pack);
        let kept = new.iter().map(|pack| pack.id).collect();
        self.packs.extend(new.into_iter().map(|pack| (pack.id, pack.bytes)));
        (self.index, self.manifest) = (index, manifest);
        let index = Index::read(&self.index.1, self.index.0).expect("an index");
        for (pack, leaf) in index.stored() {
            self.known.insert(leaf.id, Known { pack, place: leaf.place, codec: leaf.codec });
        }
        kept
    }

    /// Reads all streams, verifying all; what is wrong, in words.
    pub fn read(&self) -> Result<Vec<(String, Vec<u8>)>, String> {
        let words = |error: &dyn std::error::Error| error.to_string();
        let manifest = Manifest::read(&self.manifest.1, self.manifest.0).map_err(|e| words(&e))?;
        let index = Index::read(&self.index.1, manifest.index).map_err(|e| words(&e))?;
        let packs: Vec<PackId> = index.packs().collect();
        let ranges = manifest.ranges(&index).map_err(|e| words(&e))?;
        let mut streams = Vec::new();
        for (stream, range) in manifest.streams.iter().zip(ranges) {
            let mut content = Vec::new();
            for record in range.filter_map(|i| index.leaf(i)) {
                let mut out = vec![0xAA; record.content_bytes as usize];
                let from = record.place.offset as usize;
                let stored: &[u8] = match record.codec {
                    Codec::Zero => &[],
                    Codec::Raw | Codec::Zstd => {
                        let pack = self.packs.get(&packs[record.pack as usize]).ok_or("a pack is missing")?;
                        pack.get(from..from + record.place.stored_bytes as usize).ok_or("a pack is too short")?
                    }
                };
                leaf::read(record.id, record.codec, stored, &mut out).map_err(|e| words(&e))?;
                content.extend(out);
            }
            streams.push((stream.name.clone(), content));
        }
        Ok(streams)
    }
}
