//! Many faults at once do not take the fleet down: what is destructive waits.

use std::collections::BTreeMap;

use fleet::book::{Book, Gate, Held, HeldCause, Identity, Pending};
use fleet::{Cause, Cell, NodeState, OnEmpty, Remedy};

use crate::fleets::{ask, book, idle_nodes};

fn reset(book: &mut Book, node: u64, now_ms: i64) {
    let need = Pending { remedy: Remedy::Reset, cause: "xid:119".into(), claims_until_ms: None };
    book.needs(node, "boot-1", Some(need), now_ms).expect("known");
}

fn in_state(book: &Book, state: NodeState) -> usize {
    book.nodes().values().filter(|n| n.state == state).count()
}

fn held(book: &Book, cause: &str, canary: Option<u64>) -> Held {
    let (cell, cause) = (Cell::of(&book.offers()[0].key), cause.into());
    Held { causes: vec![HeldCause { cell, cause, canary }] }
}

#[test]
fn repairs_are_made_one_after_the_other_in_a_small_cell() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 5, 0);
    nodes.iter().for_each(|id| reset(&mut book, *id, 1000));
    assert_eq!(
        (in_state(&book, NodeState::Repairing), book.free_gpus(0)),
        (1, 0),
        "the others wait, and take no claims"
    );
    let first = book.nodes().values().find(|n| n.state == NodeState::Repairing).expect("one").id;
    book.gate(first, "boot-1", &Gate::passed(), "passed", 2000).expect("after the reset");
    book.tick_nodes(2500);
    assert_eq!(in_state(&book, NodeState::Repairing), 1, "the next one");
    assert_eq!(book.nodes()[&first].state, NodeState::Idle);
}

#[test]
fn a_held_cause_resets_and_ends_nothing_but_its_canary() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 4, 0);
    book.set_held(held(&book, "xid:119", None));
    book.blame(nodes[1], "xid:119".into());
    book.blame(nodes[0], "xid:63".into());
    reset(&mut book, nodes[0], 1000);
    assert_eq!((book.nodes()[&nodes[0]].state, book.free_gpus(0)), (NodeState::Idle, 24), "out, and not touched");
    book.fault(nodes[1], "xid:119".into(), "xid:119: x", 1000).expect("idle");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 2000), 0, "nor ended");
    book.fault(nodes[2], Cause::Passive, "another", 1000).expect("idle");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 2000), 1, "other causes are as ever");
    book.set_held(held(&book, "xid:119", Some(nodes[0])));
    book.tick_nodes(3000);
    assert_eq!(book.nodes()[&nodes[0]].state, NodeState::Repairing, "the canary");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 3000), 0);
    book.set_held(Held::default());
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 4000), 1, "closed");
}

/// A breaker holds what is automatic. A person lets a node go all the same: one that is out, and one that is silent.
#[test]
fn a_person_ends_what_is_held() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 4, 0);
    book.set_held(held(&book, "xid:119", None));
    book.blame(nodes[0], "xid:119".into());
    book.fault(nodes[0], "xid:119".into(), "xid:119: x", 1000).expect("idle");
    let (claim, _) = book.claim(ask("small", OnEmpty::Fail), 1000).expect("free");
    book.heartbeat(claim, Some(3_600_000), 1000).expect("open");
    let claimed = book.claims()[&claim].parts[0].node;
    let silent_ms = book.limits().silent_ms;
    book.tick_nodes(silent_ms + 2000);
    assert_eq!(book.nodes()[&claimed].state, NodeState::Lost);
    assert_eq!(book.clean_up(9, &BTreeMap::new(), silent_ms + 3000), 0);
    for node in [nodes[0], claimed] {
        book.send_back(node, "ops: sent back", silent_ms + 3000).expect("out");
    }
    // The host goes on saying what is wrong with it.
    book.fault(nodes[0], "xid:119".into(), "xid:119: x", silent_ms + 4000).expect("out");
    book.tick_nodes(silent_ms + 4000);
    assert_eq!(book.clean_up(9, &BTreeMap::new(), silent_ms + 5000), 1, "the other has a claim");
    assert_eq!(book.nodes()[&nodes[0]].reason, "xid:119: x", "what the cloud is told");
    book.release(claim, "done", silent_ms + 6000).expect("open");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), silent_ms + 7000), 1);
}

#[test]
fn a_driver_in_common_is_a_cause() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let driver = Some("580.1".to_owned());
    book.identify(node, &Identity { driver, image: Some("img-7".into()), ..Identity::default() });
    book.blame(node, "gate:memory".into());
    assert_eq!(book.held_for(&book.nodes()[&node]), None, "what is well is held for nothing");
    book.fault(node, "gate:memory".into(), "a check failed", 1).expect("idle");
    let words: Vec<String> = book.nodes()[&node].causes().iter().map(ToString::to_string).collect();
    assert_eq!(words, ["gate:memory", "driver:580.1", "image:img-7"]);
    for cause in ["driver:580.1", "image:img-7"] {
        book.set_held(held(&book, cause, None));
        assert_eq!(book.held_for(&book.nodes()[&node]), Some(&Cause::from(cause)));
    }
    book.set_held(Held { causes: vec![("another/cell/h8".into(), "driver:580.1".into(), None).into()] });
    assert_eq!(book.held_for(&book.nodes()[&node]), None);
}

#[test]
fn a_tenth_of_a_cell_is_ended_in_an_hour() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 40, 0);
    for id in nodes.iter().take(20) {
        book.fault(*id, Cause::Passive, "a fault", 1000).expect("idle");
    }
    let cell = Cell::of(&book.offers()[0].key);
    assert_eq!(book.clean_up(99, &BTreeMap::from([(cell, 1)]), 2000), 3, "a tenth of 41, and one has ended");
}

/// A gate that a reset would mend waits for it where its cause is held, and is not ended meanwhile.
#[test]
fn a_gate_waits_for_its_reset() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let again = Pending { remedy: Remedy::Recheck, cause: "log-gap".into(), claims_until_ms: None };
    book.needs(node, "boot-1", Some(again), 1).expect("known");
    book.set_held(held(&book, "gate:error-state", None));
    book.blame(node, "gate:error-state".into());
    book.gate(node, "boot-1", &Gate::Failed { mend: Some(Remedy::Reset) }, "a remap waits", 2).expect("checking");
    assert_eq!(book.nodes()[&node].state, NodeState::Quarantined);
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 3), 0, "it waits");
    book.set_held(Held::default());
    book.tick_nodes(4);
    assert_eq!(book.nodes()[&node].state, NodeState::Repairing);
}

/// A host that does not come back from its reboot does not keep the others from theirs, breaker or not.
#[test]
fn a_repair_that_hangs_gives_its_place_free() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 3, 0);
    reset(&mut book, nodes[0], 1000);
    reset(&mut book, nodes[1], 1000);
    let late_ms = 1000 + book.limits().boot_max_ms + 1;
    book.heard(nodes[1], "boot-1", Some(true), late_ms).expect("same boot");
    book.set_held(held(&book, "xid:119", Some(nodes[1])));
    book.tick_nodes(late_ms);
    assert_eq!(book.nodes()[&nodes[1]].state, NodeState::Repairing, "the canary has its turn");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), late_ms), 1, "and the other is ended");
    let ends = book.intents().values().filter_map(|i| match i.action {
        fleet::book::IntentAction::Terminate { node } => Some(node),
        fleet::book::IntentAction::Launch { .. } => None,
    });
    assert_eq!(ends.collect::<Vec<_>>(), [nodes[0]]);
}

/// What is asked to end and has not yet is not asked for twice as much.
#[test]
fn ends_that_wait_count() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 20, 0);
    for id in &nodes[..10] {
        book.fault(*id, Cause::Passive, "a fault", 1000).expect("idle");
    }
    assert_eq!(book.clean_up(99, &BTreeMap::new(), 2000), 2);
    assert_eq!(book.clean_up(99, &BTreeMap::new(), 3000), 0, "the first two were not ended yet");
}

/// Only what can be mended now is looked at for a canary.
#[test]
fn a_claimed_node_is_no_canary() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 1, 0);
    book.claim(crate::fleets::ask("small", fleet::OnEmpty::Fail), 10).expect("free");
    let need = Pending { remedy: Remedy::Reset, cause: "xid:63".into(), claims_until_ms: None };
    book.needs(nodes[0], "boot-1", Some(need), 20).expect("known");
    assert!(book.out_for_faults().is_empty());
    let other = idle_nodes(&mut book, 0, 1, 30)[0];
    book.fault(other, Cause::Passive, "a fault", 40).expect("idle");
    assert_eq!(book.out_for_faults().iter().map(|n| n.id).collect::<Vec<_>>(), [other]);
}

/// A host that cannot tell who its GPUs are is still the host that it was.
#[test]
fn a_name_that_is_not_told_is_kept() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let told =
        Identity { serials: vec!["a".into(), "b".into()], driver: Some("580.1".into()), image: None, domain: None };
    book.identify(node, &told);
    book.identify(node, &Identity::default());
    assert_eq!((book.nodes()[&node].serials.len(), book.nodes()[&node].driver.as_deref()), (2, Some("580.1")));
}
