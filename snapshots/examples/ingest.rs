//! Benchmark: writing an object and reading it back, on one core, beside hashing the same bytes with BLAKE3: the target is 80 % of
//! that rate for each. In turns, medians of nine.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use snapshots::builder::Pack;
use snapshots::leaf::{Codec, Compression, LEAF_BYTES};
use snapshots::manifest::Kind;
use snapshots::{Index, ObjectBuilder, leaf};

const BYTES: usize = 256 << 20;

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// In the buffers of packs that are stored, as a long put does.
fn write(content: &[u8], spare: Vec<Pack>) -> (Vec<Pack>, Vec<u8>) {
    let mut builder = ObjectBuilder::new(Compression::Never, |_| None);
    spare.into_iter().for_each(|pack| builder.recycle(pack.bytes));
    builder.stream("gpu/0");
    let mut packs: Vec<Pack> = content.chunks(LEAF_BYTES).filter_map(|leaf| builder.add(leaf)).collect();
    let finished = builder.finish(Kind::Weights, vec![], BTreeMap::new()).expect("a plain name");
    packs.extend(finished.pack);
    (packs, finished.index.1)
}

fn read(packs: &[Pack], index: &[u8], out: &mut [u8]) {
    let index = Index::read(index, snapshots::ObjectId::of(index)).expect("an index");
    for i in 0..index.leaves() {
        let record = index.leaf(i).expect("a leaf");
        let from = record.place.offset as usize;
        let stored = match record.codec {
            Codec::Zero => &[][..],
            Codec::Raw | Codec::Zstd => {
                &packs[record.pack as usize].bytes[from..from + record.place.stored_bytes as usize]
            }
        };
        leaf::read(record.id, record.codec, stored, &mut out[..record.content_bytes as usize]).expect("verified");
    }
}

fn main() {
    let mut rng = fleet::rng::Rng::new(1);
    let content: Vec<u8> = (0..BYTES / 8).flat_map(|_| rng.bits().to_le_bytes()).collect();
    let (mut packs, index) = write(&content, vec![]);
    let mut out = vec![0; LEAF_BYTES];
    let mut times = [vec![], vec![], vec![]];
    for _ in 0..9 {
        times[0].push(seconds(|| {
            content.chunks(LEAF_BYTES).for_each(|leaf| {
                black_box(blake3::hash(leaf));
            })
        }));
        let spare = std::mem::take(&mut packs);
        times[1].push(seconds(|| packs = write(&content, spare).0));
        times[2].push(seconds(|| read(&packs, &index, &mut out)));
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    // Each turn's share by itself: other work on the machine meets all three alike.
    let share = |times_of: &[f64]| {
        let of_turn = |(hash, time): (&f64, &f64)| 100.0 * hash / time;
        median(times[0].iter().zip(times_of).map(of_turn).collect())
    };
    let rate = |times_of: &[f64]| BYTES as f64 / median(times_of.to_vec()) / 1e9;
    println!("BLAKE3 alone     {:.2} GB/s on this core", rate(&times[0]));
    println!("written          {:.2} GB/s, {:.0} % of that", rate(&times[1]), share(&times[1]));
    println!("read, verified   {:.2} GB/s, {:.0} % of that", rate(&times[2]), share(&times[2]));
}
