//! Documents that were made to harm: each has its hash right, and is refused by name.

use proptest::prelude::*;
use serde_json::{Value, json};
use snapshots::index::{self, IndexRecord};
use snapshots::leaf::{Codec, Compression, LEAF_BYTES};
use snapshots::manifest::{Kind, MANIFEST_BYTES_MAX};
use snapshots::pack::{PACK_BYTES, Place};
use snapshots::{Index, LeafId, Manifest, ObjectId, PackId};

use super::object::Store;

fn refused(bytes: &[u8]) -> String {
    match Index::read(bytes, ObjectId::of(bytes)) {
        Ok(index) => panic!("taken: {index:?}"),
        Err(error) => error.to_string(),
    }
}

fn record() -> IndexRecord {
    let place = Place { offset: 0, stored_bytes: 10 };
    IndexRecord { id: LeafId::of(b"ten bytes!"), codec: Codec::Raw, content_bytes: 10, pack: 0, place }
}

fn index_of(record: IndexRecord) -> Vec<u8> {
    index::write(&[PackId::of(b"")], &[record]).1
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut index = index_of(record());
    index[at..at + bytes.len()].copy_from_slice(bytes);
    index
}

#[test]
fn indexes_that_lie() {
    assert!(Index::read(&index_of(record()), ObjectId::of(&index_of(record()))).is_ok());
    let leaf = 32 + 32;
    let place = |offset, stored_bytes| Place { offset, stored_bytes };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "does not begin with PLINDEX"),
        (with(0, b"ELF"), "does not begin with PLINDEX"),
        (with(8, &[2]), "format 2, this build reads 1; update it"),
        (with(12, &[4]), "features 0x4 that this build does not know"),
        (with(20, &[1]), "features 0x1"),
        (with(16, &[0xff; 4]), "its header says"),
        (with(24, &1_000_000_000_u64.to_le_bytes()), "its header says 48000000064"),
        (with(24, &[0xff; 8]), "more than can be counted"),
        ([index_of(record()), vec![0]].concat(), "113 bytes, its header says 112"),
        (with(leaf + 47, &[9]), "leaf 0 of the index: codec 9"),
        (with(leaf + 44, &[0, 0, 0]), "content of 0 bytes"),
        (with(leaf + 44, &[1, 0, 0x20]), "content of 2097153 bytes"),
        (with(leaf + 40, &[11]), "11 stored bytes for 10"),
        (with(leaf + 47, &[Codec::Zstd as u8]), "10 stored bytes for 10"),
        (with(leaf + 47, &[Codec::Zero as u8]), "10 stored bytes for 10"),
        (index_of(IndexRecord { codec: Codec::Zero, place: place(4, 0), ..record() }), "outside its pack"),
        (index_of(IndexRecord { place: place(u32::MAX, 10), ..record() }), "outside its pack"),
        (index_of(IndexRecord { place: place(PACK_BYTES as u32 - 9, 10), ..record() }), "outside its pack"),
        (index_of(IndexRecord { pack: 1, ..record() }), "pack 1 is not in the index"),
    ];
    for (bytes, says) in cases {
        let said = refused(&bytes);
        assert!(said.contains(says), "{said} instead of {says}");
    }
}

#[test]
fn kinds_have_one_name() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).expect("JSON"), json!(kind.name()));
    }
}

/// A frame that says it holds more than its leaf is not believed.
#[test]
fn a_bomb_is_no_leaf() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compresses");
    let mut out = vec![0; LEAF_BYTES];
    let error = snapshots::leaf::read(LeafId::of(b""), Codec::Zstd, &bomb, &mut out).expect_err("too long");
    assert!(error.to_string().contains("cannot be decompressed"), "{error}");
}

#[test]
fn manifests_that_lie() {
    let mut store = Store::new();
    store.write(&[("meta", b"some words"), ("cpu", b"others")], Compression::Never);
    let plain: Value = serde_json::from_slice(&store.manifest.1).expect("JSON");
    let read = |change: &dyn Fn(&mut Value)| {
        let mut document = plain.clone();
        change(&mut document);
        let bytes = serde_json::to_vec(&document).expect("JSON");
        let manifest = Manifest::read(&bytes, ObjectId::of(&bytes)).map_err(|e| e.to_string())?;
        let index = Index::read(&store.index.1, manifest.index).map_err(|e| e.to_string())?;
        manifest.ranges(&index).map_err(|e| e.to_string())
    };
    assert_eq!(read(&|_| ()), Ok(vec![0..1, 1..2]));
    assert_eq!(
        read(&|d| d["of-next-year"] = json!({ "a": 1 })),
        Ok(vec![0..1, 1..2]),
        "what is not critical is passed over"
    );
    let named = |name: &str| {
        let name = name.to_owned();
        read(&|d| d["streams"][0]["name"] = json!(name))
    };
    let names = ["", ".", "..", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "a\\b", "C:x", "a\0b", "é", "a b"];
    for name in names {
        assert!(named(name).is_err_and(|e| e.contains("no relative path")), "{name:?}");
    }
    assert!(named(&"a/".repeat(128)).is_err() && named(&"a".repeat(256)).is_err() && named(&"a".repeat(255)).is_ok());
    let cases: Vec<(Result<_, String>, &str)> = vec![
        (named("cpu"), "'cpu' is named twice"),
        (named("cpu/pages/1"), "'cpu' is also the folder of another"),
        (read(&|d| d["format"] = json!(2)), "format 2, this build reads 1"),
        (read(&|d| *d = json!({ "format": 9, "all": "else" })), "format 9"),
        (read(&|d| d["critical"] = json!(["encrypted"])), "asks for 'encrypted'"),
        (read(&|d| d["kind"] = json!("virus")), "this is no manifest"),
        (read(&|d| d["streams"][0]["mode"] = json!("setuid")), "this is no manifest"),
        (read(&|d| d["index"] = json!("xyz")), "this is no manifest"),
        (read(&|d| d["streams"][0]["bytes"] = json!(11)), "stream 'meta'"),
        (read(&|d| d["streams"][0]["leaves"] = json!(2)), "stream 'meta'"),
        (read(&|d| d["streams"][1]["leaves"] = json!(u64::MAX)), "stream 'cpu'"),
        (read(&|d| d["streams"].as_array_mut().expect("streams").truncate(1)), "1 leaves of the index belong to no"),
        (read(&|d| d["labels"]["note"] = json!("x".repeat(MANIFEST_BYTES_MAX))), "at most 65536 are read"),
    ];
    for (found, says) in cases {
        let said = found.expect_err(says);
        assert!(said.contains(says), "{said} instead of {says}");
    }
    let deep = "[".repeat(60_000);
    assert!(Manifest::read(deep.as_bytes(), ObjectId::of(deep.as_bytes())).is_err());
}

proptest! {
    /// Any bytes, and any change to bytes that are right, are read or refused; nothing panics.
    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..400), changes in prop::collection::vec((any::<u16>(), any::<u8>()), 1..6)) {
        let _ = Index::read(&bytes, ObjectId::of(&bytes)).is_ok();
        let _ = Manifest::read(&bytes, ObjectId::of(&bytes)).is_ok();
        let mut near = index_of(record());
        for (at, byte) in changes {
            let at = usize::from(at) % near.len();
            near[at] = byte;
        }
        if let Ok(index) = Index::read(&near, ObjectId::of(&near)) {
            prop_assert_eq!((0..index.leaves()).filter_map(|i| index.leaf(i)).count(), index.leaves());
        }
    }
}
