//! What is written is what is read.

use proptest::prelude::*;
use snapshots::leaf::{self, Codec, Compression, LEAF_BYTES};
use snapshots::pack::PACK_BYTES;
use snapshots::{Index, LeafId};

use super::object::Store;

/// Content of pieces that compress well, badly or not at all, some of them the same.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        (1..200_000_usize).prop_map(|n| vec![0; n]),
        (1..200_000_usize, any::<u8>()).prop_map(|(n, byte)| vec![byte; n]),
        (1..200_000_usize, any::<u64>()).prop_map(|(n, seed)| noise(n, seed)),
        Just(vec![0; LEAF_BYTES]),
        Just(noise(LEAF_BYTES, 7)),
    ];
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

pub fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut rng = fleet::rng::Rng::new(seed);
    (0..n).map(|_| rng.below(256) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_written_is_read(a in content(), b in content(), compress in any::<bool>()) {
        let compression = if compress { Compression::IfWorthwhile } else { Compression::Never };
        let mut store = Store::new();
        store.write(&[("cpu/pages-1", &a), ("meta", &b)], compression);
        prop_assert_eq!(store.read(), Ok(vec![("cpu/pages-1".to_owned(), a), ("meta".to_owned(), b)]));
    }

    /// The same content again brings no pack, and the same names.
    #[test]
    fn what_is_there_is_not_stored_again(a in content(), b in content()) {
        let mut store = Store::new();
        let streams: [(&str, &[u8]); 2] = [("a", &a), ("b", &b)];
        store.write(&streams, Compression::IfWorthwhile);
        let (packs, read) = (store.packs.len(), store.read());
        prop_assert_eq!(store.write(&streams, Compression::Never), vec![]);
        prop_assert_eq!(store.packs.len(), packs);
        prop_assert_eq!(store.read(), read);
    }
}

#[test]
fn zeros_and_repeats_take_no_room() {
    let once = noise(LEAF_BYTES, 1);
    let all = [&once[..], &vec![0; 40 * LEAF_BYTES], &once, &once].concat();
    let mut store = Store::new();
    store.write(&[("gpu/0", &all)], Compression::Never);
    assert_eq!(store.packs.values().map(Vec::len).sum::<usize>(), LEAF_BYTES);
    assert_eq!(store.read(), Ok(vec![("gpu/0".to_owned(), all)]));
}

/// More than a pack holds goes into several, none of them too long, and leaves of known packs are found beside new ones.
#[test]
fn packs_are_full_and_no_longer() {
    let leaves = PACK_BYTES / LEAF_BYTES + 3;
    let all: Vec<u8> = (0..leaves).flat_map(|i| noise(LEAF_BYTES, i as u64)).collect();
    let mut store = Store::new();
    store.write(&[("old", &all[..5 * LEAF_BYTES])], Compression::Never);
    let new = store.write(&[("all", &all)], Compression::Never);
    let lengths: Vec<usize> = new.iter().map(|id| store.packs[id].len()).collect();
    assert_eq!(lengths, [(leaves - 5) * LEAF_BYTES], "what is known is not stored again");
    let mut alone = Store::new();
    let new = alone.write(&[("all", &all)], Compression::Never);
    assert_eq!(new.iter().map(|id| alone.packs[id].len()).collect::<Vec<_>>(), [PACK_BYTES, 3 * LEAF_BYTES]);
    assert_eq!(store.read(), alone.read());
    let index = Index::read(&alone.index.1, alone.index.0).expect("an index");
    assert_eq!((index.packs().len(), index.leaves()), (2, leaves));
}

#[test]
fn leaves_are_compressed_where_it_is_worth_it() {
    let text = b"the same words again and again, ".repeat(1000);
    let hardly = [noise(100_000, 3), vec![b'x'; 20_000]].concat();
    let of = |content: &[u8], compression| leaf::store(content, compression).codec;
    assert_eq!(of(&text, Compression::IfWorthwhile), Codec::Zstd);
    assert_eq!(of(&text, Compression::Never), Codec::Raw);
    assert_eq!(of(&hardly, Compression::IfWorthwhile), Codec::Raw, "a sixth is not worth it");
    assert_eq!(of(&[0; 3], Compression::Never), Codec::Zero);
    assert_eq!(of(&[0, 0, 1], Compression::Never), Codec::Raw);
    assert_eq!(leaf::store(&[0; 3], Compression::Never).id, LeafId::of(&[0; 3]), "an id says nothing of the codec");
}
