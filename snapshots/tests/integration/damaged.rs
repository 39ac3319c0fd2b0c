//! Every flipped bit and every missing byte is found.

use fleet::rng::Rng;
use snapshots::leaf::Compression;

use super::object::Store;
use super::whole::noise;

fn store() -> Store {
    let mut store = Store::new();
    let text = b"words that compress, ".repeat(900);
    let zeros = vec![0; 5000];
    store.write(&[("meta", &text), ("gpu/0", &noise(7000, 5)), ("cpu", &zeros)], Compression::IfWorthwhile);
    store
}

/// The parts of a store that are bytes.
fn parts(store: &mut Store) -> Vec<&mut Vec<u8>> {
    let mut packs: Vec<_> = store.packs.iter_mut().collect();
    packs.sort_by_key(|(id, _)| **id);
    packs.into_iter().map(|(_, bytes)| bytes).chain([&mut store.index.1, &mut store.manifest.1]).collect()
}

#[test]
fn ten_thousand_flips() {
    let mut damaged = store();
    let whole = damaged.read().expect("whole");
    let mut rng = Rng::new(20_261_128);
    for turn in 0..10_000 {
        let part = turn % 3;
        let (at, bit) = {
            let bytes = &mut parts(&mut damaged)[part];
            let (at, bit) = (rng.below(bytes.len()), rng.below(8));
            bytes[at] ^= 1 << bit;
            (at, bit)
        };
        assert!(damaged.read().is_err(), "bit {bit} of byte {at} of part {part}");
        parts(&mut damaged)[part][at] ^= 1 << bit;
    }
    assert_eq!(damaged.read(), Ok(whole));
}

#[test]
fn what_is_cut_off_is_missed() {
    for part in 0..3 {
        let length = parts(&mut store())[part].len();
        for keep in (0..length).step_by(length / 97 + 1) {
            let mut damaged = store();
            parts(&mut damaged)[part].truncate(keep);
            assert!(damaged.read().is_err(), "{keep} of {length} bytes of part {part}");
        }
    }
}
