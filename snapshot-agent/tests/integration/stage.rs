//! Copies of whole objects: in memory, on the disk, and what happens when one of them is not what it was.
#![allow(clippy::disallowed_methods, reason = "real disks take real time")]

use std::path::PathBuf;
use std::sync::Arc;

use fleet::{Presence, Tier};
use snapshot_agent::snapshots::host::arena::Arena;
use snapshot_agent::snapshots::host::{Cache, Kept};
use snapshots::LeafId;

use crate::peers::{BYTES, Host, stored};
use crate::store::{Place, ok};

const NOBODY: (&[String], &str) = (&[], "zone a");

fn leaves(host: &Host) -> Vec<PathBuf> {
    let groups = std::fs::read_dir(host.cache.path().join("leaves")).unwrap().map(|group| group.unwrap().path());
    groups.flat_map(|group| std::fs::read_dir(group).unwrap().map(|leaf| leaf.unwrap().path())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_into_memory_and_out_of_it() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let arena = Arc::new(Arena::allocate(2 * BYTES as u64).unwrap());
    let mut host = Host::start_with(Some(arena.clone())).await;
    host.order_in(&object, &store, Tier::Disk, NOBODY);
    let moved = host.is(Presence::Disk).await;
    assert_eq!(moved.store_bytes, BYTES as u64);
    // Every one of ten flips on the disk is found on the way into memory, and what was flipped comes anew.
    let files = leaves(&host);
    assert_eq!(files.len(), BYTES >> 21);
    for (n, file) in files.iter().take(10).enumerate() {
        let mut content = std::fs::read(file).unwrap();
        content[n * 4099] ^= 1 << (n % 8);
        std::fs::write(file, content).unwrap();
    }
    host.order_in(&object, &store, Tier::Memory, NOBODY);
    let moved = host.is(Presence::Memory).await;
    // Neighbours of what was damaged may come with it, in the same request.
    let again = moved.store_bytes - BYTES as u64;
    assert!((10 << 21..=40 << 21).contains(&again), "{again}");
    for file in &files {
        let id: LeafId = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
        assert_eq!(LeafId::of(&arena.leaf(id).unwrap()), id);
    }
    host.order_in(&object, &store, Tier::Disk, NOBODY);
    host.is(Presence::Disk).await;
    assert!(files.iter().all(|f| arena.leaf(f.file_name().unwrap().to_str().unwrap().parse().unwrap()).is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_room_says_so() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let arena = Arc::new(Arena::allocate(BYTES as u64 / 2).unwrap());
    for (arena, why) in [(Some(arena), "raise staging.memory_gib"), (None, "set staging.memory_gib")] {
        let mut host = Host::start_with(arena).await;
        host.order_in(&object, &store, Tier::Memory, NOBODY);
        let said = |facts: &snapshot_agent::snapshots::host::stage::Facts| {
            facts.copies.values().any(|copy| copy.presence == Presence::Disk && copy.problem.contains(why))
        };
        host.facts.wait_for(said).await.unwrap();
    }
}

/// Also without the store, and though the object was removed meanwhile, what lies here is known again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_outlives_its_store() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let mut host = Host::start_with(None).await;
    host.order_in(&object, &store, Tier::Disk, NOBODY);
    host.is(Presence::Disk).await;
    ok(&store, &["rm", &object]);
    ok(&store, &["gc", "--grace-h", "0"]);
    let mut again = host.restarted().await;
    again.order_in(&object, &store, Tier::Disk, NOBODY);
    assert_eq!(again.is(Presence::Disk).await.store_bytes, 0);
}

/// A mount that has the same cache makes room with what is its own: what the daemon keeps stays, until it is wanted no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_staged_outlives_the_readers_of_the_same_cache() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let mut host = Host::start_with(None).await;
    host.order_in(&object, &store, Tier::Disk, NOBODY);
    host.is(Presence::Disk).await;
    let staged = leaves(&host);
    let there = || staged.iter().filter(|leaf| leaf.exists()).count();
    let cache = Cache::open(host.cache.path(), BYTES as u64 + (24 << 20)).unwrap();
    let read = |from: u8| {
        for seed in from..from + 40 {
            let content = crate::store::noise(2 << 20, u64::from(seed));
            drop(cache.insert(LeafId::of(&content), &content));
        }
    };
    read(0);
    assert_eq!(there(), staged.len());
    assert!(leaves(&host).len() < staged.len() + 20, "the others made room for each other");
    Kept::staged(host.cache.path()).forget(object.parse().unwrap());
    read(100);
    assert!(there() < staged.len(), "nothing keeps it any more");
}
