//! Many faults at once do not take the fleet down: what is destructive waits.

use std::collections::BTreeMap;

use fleet::NodeState;
use fleet::book::{Book, Care, Gate, Held, Identity, Pending, cell_of};

use crate::fleets::{book, idle_nodes};

fn reset(book: &mut Book, node: u64, now_ms: i64) {
    let need = Pending { care: Care::Reset, cause: "xid:119".into(), claims_until_ms: None };
    book.needs(node, "boot-1", Some(need), now_ms).expect("known");
}

fn in_state(book: &Book, state: NodeState) -> usize {
    book.nodes().values().filter(|n| n.state == state).count()
}

fn held(book: &Book, cause: &str, canary: Option<u64>) -> Held {
    Held { causes: vec![(cell_of(&book.offers()[0].key), cause.into(), canary)] }
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
    book.gate(first, "boot-1", &Gate::Passed, "passed", 2000).expect("after the reset");
    book.tick_nodes(2500);
    assert_eq!(in_state(&book, NodeState::Repairing), 1, "the next one");
    assert_eq!(book.nodes()[&first].state, NodeState::Idle);
}

#[test]
fn a_held_cause_resets_and_ends_nothing_but_its_canary() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 4, 0);
    book.set_held(held(&book, "xid:119", None));
    nodes.iter().take(2).for_each(|id| book.blame(*id, "xid:119"));
    reset(&mut book, nodes[0], 1000);
    assert_eq!((book.nodes()[&nodes[0]].state, book.free_gpus(0)), (NodeState::Idle, 24), "out, and not touched");
    book.fault(nodes[1], "xid:119: x", 1000).expect("idle");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 2000), 0, "nor ended");
    book.fault(nodes[2], "another", 1000).expect("idle");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 2000), 1, "other causes are as ever");
    book.set_held(held(&book, "xid:119", Some(nodes[0])));
    book.tick_nodes(3000);
    assert_eq!(book.nodes()[&nodes[0]].state, NodeState::Repairing, "the canary");
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 3000), 0);
    book.set_held(Held::default());
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 4000), 1, "closed");
}

#[test]
fn a_driver_in_common_is_a_cause() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let driver = Some("580.1".to_owned());
    book.identify(node, &Identity { driver, image: Some("img-7".into()), ..Identity::default() });
    book.blame(node, "gate:memory");
    assert_eq!(book.nodes()[&node].causes(), ["gate:memory", "driver:580.1", "image:img-7"]);
    for cause in ["driver:580.1", "image:img-7"] {
        book.set_held(held(&book, cause, None));
        assert_eq!(book.held_for(&book.nodes()[&node]), Some(cause));
    }
    book.set_held(Held { causes: vec![("another/cell/h8".into(), "driver:580.1".into(), None)] });
    assert_eq!(book.held_for(&book.nodes()[&node]), None);
}

#[test]
fn a_tenth_of_a_cell_is_ended_in_an_hour() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 40, 0);
    for id in nodes.iter().take(20) {
        book.fault(*id, "a fault", 1000).expect("idle");
    }
    let cell = cell_of(&book.offers()[0].key);
    assert_eq!(book.clean_up(99, &BTreeMap::from([(cell, 1)]), 2000), 3, "a tenth of 41, and one has ended");
}

/// A gate that a reset would mend waits for it where its cause is held, and is not ended meanwhile.
#[test]
fn a_gate_waits_for_its_reset() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let again = Pending { care: Care::Recheck, cause: "log-gap".into(), claims_until_ms: None };
    book.needs(node, "boot-1", Some(again), 1).expect("known");
    book.set_held(held(&book, "gate:error-state", None));
    book.blame(node, "gate:error-state");
    book.gate(node, "boot-1", &Gate::Failed { mend: Some(Care::Reset) }, "a remap waits", 2).expect("checking");
    assert_eq!(book.nodes()[&node].state, NodeState::Quarantined);
    assert_eq!(book.clean_up(9, &BTreeMap::new(), 3), 0, "it waits");
    book.set_held(Held::default());
    book.tick_nodes(4);
    assert_eq!(book.nodes()[&node].state, NodeState::Repairing);
}
