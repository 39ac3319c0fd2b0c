//! Copies of snapshots on nodes: orders, reports, and the node that a claim gets for them.

use std::collections::BTreeMap;

use fleet::book::{Book, ClaimError, ClaimRequest, ClassRule, CopyFact, What};
use fleet::{OnEmpty, Presence, Readiness, Snapshot, StagingRoom, StartedBy, Tier, UsdMicros};

use crate::fleets::{ask, book, class, idle_nodes};

pub fn snapshot(name: &str, class: &str) -> Snapshot {
    Snapshot {
        name: name.into(),
        class: class.into(),
        store: "s3://models/prod".into(),
        object: name.into(),
        bytes: 28_000_000_000,
        gpu: None,
        cold_s: 300.0,
        restore_s: 2.0,
        share: 1.0,
        wait_cost_usd_micros_per_s: UsdMicros::ZERO,
        started_by: StartedBy::Client,
    }
}

fn fact(presence: Presence) -> CopyFact {
    CopyFact { presence, ..CopyFact::default() }
}

fn has(book: &mut Book, node: u64, facts: &[(&str, Presence)], now_ms: i64) -> bool {
    let facts: BTreeMap<String, CopyFact> =
        facts.iter().map(|(name, presence)| ((*name).to_owned(), fact(*presence))).collect();
    book.staged(node, "boot-1", (&StagingRoom::default(), &facts), now_ms).expect("of this boot")
}

fn words(book: &mut Book) -> Vec<String> {
    let copies = |event: fleet::book::Change| match event.what {
        What::Copy(copy) => Some(format!("{} {}", copy.snapshot, What::Copy(copy.clone()).states().1)),
        _ => None,
    };
    book.take_changes().events.into_iter().filter_map(copies).collect()
}

#[test]
fn a_claim_gets_the_node_with_the_best_copy() {
    let mut book = book();
    book.set_snapshots([snapshot("chat", "small"), snapshot("code", "small")]);
    let cheap = idle_nodes(&mut book, 0, 2, 0);
    let dear = idle_nodes(&mut book, 1, 2, 0);
    let claim = |book: &mut Book, name: Option<&str>| {
        let ask = ClaimRequest { snapshot: name.map(str::to_owned), ..ask("small", OnEmpty::Fail) };
        let (id, _) = book.claim(ask, 1).expect("free");
        let claim = book.claims()[&id].clone();
        book.release(id, "done", 1).expect("granted");
        (claim.parts[0].node, claim.prediction)
    };
    let (node, prediction) = claim(&mut book, Some("chat"));
    assert!(cheap.contains(&node), "without copies the cheapest");
    assert_eq!(prediction.map(|p| (p.tier, p.p50_s)), Some((None, 300.0)));

    has(&mut book, cheap[1], &[("chat", Presence::Fetching)], 2);
    has(&mut book, dear[0], &[("chat", Presence::Disk)], 2);
    let (node, prediction) = claim(&mut book, Some("chat"));
    assert_eq!((node, prediction.map(|p| (p.tier, p.p50_s))), (dear[0], Some((Some(Tier::Disk), 16.0))));
    assert!(cheap.contains(&claim(&mut book, Some("code")).0), "a copy of another is none");
    let (node, prediction) = claim(&mut book, None);
    assert!(cheap.contains(&node) && prediction.is_none(), "it may be either of two");

    has(&mut book, dear[1], &[("chat", Presence::Memory)], 3);
    let (node, prediction) = claim(&mut book, Some("chat"));
    assert_eq!((node, prediction.map(|p| (p.tier, p.p50_s))), (dear[1], Some((Some(Tier::Memory), 3.0))));
    // One that is out of service serves nobody.
    book.drain(dear[1], "notice", 4).expect("idle");
    assert_eq!(claim(&mut book, Some("chat")).0, dear[0]);
    // A restart takes what was in memory, and nobody knows what is on the disk until the agent says so.
    book.register(dear[0], "boot-2", 8, 5).expect("restarts");
    assert_eq!(book.copies_of("chat").next(), Some((Presence::Memory, dear[1])));

    book.set_snapshots([snapshot("chat", "small")]);
    assert!(claim(&mut book, None).1.is_some(), "the one of its class is meant");
    let ask = ClaimRequest { snapshot: Some("code".into()), ..ask("small", OnEmpty::Fail) };
    assert!(matches!(book.claim(ask, 6), Err(ClaimError::UnknownSnapshot { .. })));
}

/// A copy on a dear node is worth its price for the life of a claim, or is not.
#[test]
fn seconds_are_weighed_against_the_price() {
    let taken = |life_s: f64, wait_cost_usd_per_s: f64| {
        let mut book = book();
        let rule = ClassRule { claim_mean_s: life_s, ..class("small", 1, &[("H100", None)]) };
        book.set_classes([rule]);
        let wait_cost_usd_micros_per_s = UsdMicros::from_usd(wait_cost_usd_per_s).expect("finite");
        book.set_snapshots([Snapshot { wait_cost_usd_micros_per_s, ..snapshot("chat", "small") }]);
        let (cheap, dear) = (idle_nodes(&mut book, 0, 2, 0), idle_nodes(&mut book, 1, 1, 0));
        has(&mut book, dear[0], &[("chat", Presence::Disk)], 1);
        let (id, _) = book.claim(ask("small", OnEmpty::Fail), 2).expect("free");
        let node = book.claims()[&id].parts[0].node;
        assert!(node == dear[0] || node == cheap[0], "of the cheap ones the first");
        node == dear[0]
    };
    // 284 s of a GPU at $2 are 15.5 cents; 50 cents an hour are more from 1,120 s on.
    assert!(taken(1000.0, 0.0) && !taken(1200.0, 0.0));
    // A cent a second: $2.84 more, for six hours.
    assert!(taken(20_000.0, 0.01) && !taken(25_000.0, 0.01));
}

/// One disk is a little faster than the other; whole nodes stay whole all the same.
#[test]
fn the_fullest_of_those_with_a_copy_is_taken() {
    let mut book = book();
    book.set_snapshots([snapshot("chat", "small")]);
    let nodes = idle_nodes(&mut book, 0, 3, 0);
    let (first, _) = book.claim(ask("small", OnEmpty::Fail), 1).expect("free");
    let used = book.claims()[&first].parts[0].node;
    for (n, node) in nodes.iter().enumerate() {
        let room = StagingRoom { disk_bytes_per_s: Some(2e9 + n as f64 * 1e8), ..StagingRoom::default() };
        let facts = [("chat".to_owned(), fact(Presence::Disk))].into();
        book.staged(*node, "boot-1", (&room, &facts), 2).expect("of this boot");
    }
    for _ in 0..7 {
        let (id, _) = book.claim(ask("small", OnEmpty::Fail), 3).expect("free");
        assert_eq!(book.claims()[&id].parts[0].node, used);
    }
    let (id, _) = book.claim(ask("small", OnEmpty::Fail), 3).expect("free");
    assert_ne!(book.claims()[&id].parts[0].node, used, "it is full");
}

#[test]
fn orders_and_reports_make_the_history_of_a_copy() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let wanted: BTreeMap<String, Tier> = [("chat".to_owned(), Tier::Memory)].into();
    let before = book.nodes()[&node].desired;
    assert_eq!(book.stage(node, &wanted, 10), Ok(true));
    let after = book.nodes()[&node].desired;
    assert!(after.all > before.all && after.staging == after.all && after.health == before.health);
    assert_eq!(book.stage(node, &wanted, 11), Ok(false), "the same order is none");
    assert_eq!(words(&mut book), ["chat wanted"]);
    for (presence, word) in [
        (Presence::Fetching, "fetching"),
        (Presence::Disk, "verified"),
        (Presence::Memory, "hot"),
        (Presence::Disk, "verified"),
    ] {
        assert!(has(&mut book, node, &[("chat", presence)], 12));
        assert!(!has(&mut book, node, &[("chat", presence)], 13), "said twice, it is no news");
        assert_eq!(words(&mut book), [format!("chat {word}")]);
    }
    assert_eq!(book.stage(node, &BTreeMap::new(), 14), Ok(true));
    assert_eq!(words(&mut book), ["chat evicting"]);
    has(&mut book, node, &[], 15);
    assert_eq!(words(&mut book), ["chat gone"]);
    assert!(book.nodes()[&node].copies.is_empty());
    has(&mut book, node, &[("stray", Presence::Disk)], 16);
    assert_eq!(words(&mut book), ["stray evicting"], "what nobody asked for is to go");
    assert!(book.staged(node, "boot-0", (&StagingRoom::default(), &BTreeMap::new()), 17).is_err(), "HLT-4");
}

#[test]
fn what_starts_took_makes_predictions() {
    let mut book = book();
    book.set_snapshots([snapshot("chat", "small")]);
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    has(&mut book, node, &[("chat", Presence::Disk)], 1);
    let mut readiness = Readiness::default();
    for ready_s in [20.0, 24.0, 32.0, 24.0, 24.0] {
        let (id, _) = book.claim(ask("small", OnEmpty::Fail), 1).expect("free");
        book.heartbeat(id, None, 2).expect("granted");
        assert!(book.is_ready(id, f64::NAN).is_err() && book.is_ready(id, -1.0).is_err());
        assert_eq!(book.is_ready(id, ready_s).expect("live").map(|p| p.p50_s), Some(16.0));
        assert_eq!(book.is_ready(id, 1.0), Ok(None), "only the first word counts");
        let (name, tier, multiple) = book.learnt(&book.claims()[&id]).expect("known");
        readiness.learn(&name, tier, multiple);
        book.release(id, "done", 3).expect("live");
    }
    book.set_readiness(readiness);
    let (id, _) = book.claim(ask("small", OnEmpty::Fail), 4).expect("free");
    let prediction = book.claims()[&id].prediction.expect("known");
    assert_eq!((prediction.p50_s, prediction.p90_s, prediction.learnt_from), (24.0, 32.0, 5));
}
