//! Diagnostics are a loan: claims come first, and what comes back is checked.

use std::collections::BTreeSet;

use fleet::book::{Book, ClaimRequest, Gate, NodeError, Pending, Taken};
use fleet::{ClaimState, NodeState, OnEmpty, Remedy};

use crate::fleets::{ask, book, idle_nodes};

fn lent(count: u32) -> (Book, Vec<u64>) {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, count, 0);
    for id in &nodes {
        book.lend(*id, "3", 2_400_000, 1000).expect("idle");
    }
    (book, nodes)
}

fn diagnosing(book: &Book) -> usize {
    book.nodes().values().filter(|n| n.state == NodeState::Diagnosing).count()
}

#[test]
fn a_claim_calls_a_node_back_and_gets_it_after_the_short_gate() {
    let (mut book, nodes) = lent(2);
    assert_eq!(book.free_gpus(0), 0, "what is lent is not handed out");
    let (claim, taken) = book.claim(ask("small", OnEmpty::Queue), 2000).expect("waits");
    assert_eq!((taken, diagnosing(&book)), (Taken::Queued, 1), "one is enough");
    book.claim(ask("small", OnEmpty::Queue), 2100).expect("waits");
    book.tick_nodes(2200);
    assert_eq!(diagnosing(&book), 1, "and is enough for a second small one");
    let back = *nodes.iter().find(|id| book.nodes()[id].state == NodeState::Checking).expect("one");
    assert!(book.nodes()[&back].gate_is_short());
    book.gate(back, "boot-1", &Gate::passed(), "passed", 14_000).expect("checking");
    assert_eq!(book.claims()[&claim].state, ClaimState::Granted);
    let node = &book.nodes()[&back];
    assert_eq!((node.yield_ms, &node.diagnosis), (Some(12_000), &None), "from the call to the grant");
    let many = ClaimRequest { count: 7, ..ask("small", OnEmpty::Queue) };
    book.claim(many, 15_000).expect("waits");
    assert_eq!(diagnosing(&book), 0, "seven more do not fit on the first");
    assert_eq!(book.breaches(), [], "sound");
}

#[test]
fn a_claim_of_another_class_calls_nothing_back() {
    let (mut book, _) = lent(1);
    book.set_classes([crate::fleets::class("other", 1, &[("H200", None)])]);
    book.claim(ask("other", OnEmpty::Queue), 2000).expect("waits");
    assert_eq!(diagnosing(&book), 1);
}

#[test]
fn diagnostics_end_by_themselves_by_their_deadline_and_for_better_reasons() {
    let (mut book, nodes) = lent(4);
    assert!(book.diagnosed(nodes[0], "boot-1", "passed", 3000).expect("known"));
    assert!(!book.diagnosed(nodes[0], "boot-1", "passed", 3001).expect("known"), "once");
    book.gate(nodes[0], "boot-1", &Gate::passed(), "passed", 4000).expect("checking");
    assert_eq!(book.nodes()[&nodes[0]].yield_ms, None, "nobody called it");
    let reset = Pending { remedy: Remedy::Reset, cause: "xid:63".into(), claims_until_ms: None };
    book.needs(nodes[1], "boot-1", Some(reset), 5000).expect("known");
    assert_eq!(book.nodes()[&nodes[1]].state, NodeState::Repairing, "what its health asks for goes first");
    assert!(matches!(book.lend(nodes[1], "3", 9000, 6000), Err(NodeError::NotIdle { .. })));
    assert!(book.drain_once(nodes[2], "the provider takes it back", 6000));
    for id in [nodes[0], nodes[3]] {
        book.heard(id, "boot-1", Some(true), 2_400_000).expect("same boot");
    }
    book.tick_nodes(2_400_000);
    assert_eq!(book.nodes()[&nodes[3]].state, NodeState::Checking, "too long");
    assert!(book.nodes()[&nodes[3]].gate_is_short());
    book.register(nodes[3], "boot-2", 8, 2_400_001).expect("restarted");
    let node = &book.nodes()[&nodes[3]];
    assert!(node.state == NodeState::Checking && !node.gate_is_short(), "a new boot has a whole gate");
}

#[test]
fn a_node_in_diagnostics_can_be_given_back_and_a_due_one_is_taken_last() {
    let (mut book, nodes) = lent(3);
    book.intend_release(1, nodes[0], 2000).expect("nobody uses it");
    for id in &nodes[1..] {
        book.call_back(*id, "by hand", 2000).expect("lent");
        book.gate(*id, "boot-1", &Gate::passed(), "passed", 3000).expect("checking");
    }
    book.take_last(&BTreeSet::from([nodes[1]]));
    let (claim, _) = book.claim(ask("large", OnEmpty::Fail), 4000).expect("free");
    assert_eq!(book.claims()[&claim].parts[0].node, nodes[2]);
    book.take_last(&BTreeSet::new());
    assert!(!book.nodes()[&nodes[1]].claimed_last && book.free_gpus(0) == 8);
}

/// Diagnostics that left a doubt are followed by the whole gate, and its agent hears of it though the state is the same.
#[test]
fn a_doubt_asks_for_the_whole_gate() {
    let (mut book, nodes) = lent(1);
    book.call_back(nodes[0], "claims wait", 2000).expect("lent");
    let node = book.nodes()[&nodes[0]].clone();
    assert!(node.gate_is_short());
    book.check_whole(nodes[0], "memory failed once");
    let whole = book.nodes()[&nodes[0]].clone();
    assert_eq!((whole.state, whole.gate_is_short()), (NodeState::Checking, false));
    assert_eq!(whole.desired.health, node.desired.all + 1, "its agent may be at the short one");
    book.check_whole(nodes[0], "again");
    assert_eq!(book.nodes()[&nodes[0]].desired, whole.desired, "once");
}

/// One machine is one node after another: an order of the second is none that its agent has seen of the first.
#[test]
fn nodes_of_one_machine_share_no_version() {
    let (mut book, nodes) = lent(1);
    let instance = book.nodes()[&nodes[0]].instance.clone().expect("it runs");
    let mut seen = std::collections::BTreeSet::new();
    let mut note = |book: &fleet::book::Book, id: u64| {
        let version = book.nodes()[&id].desired.health;
        assert!(seen.insert(version), "version {version} twice");
    };
    note(&book, nodes[0]);
    for (at_ms, reason) in [(1000, "claims wait"), (1000, "again")] {
        book.call_back(nodes[0], reason, at_ms).ok();
    }
    note(&book, nodes[0]);
    book.gone(nodes[0], "ended", 2000).expect("a node");
    let offer = book.offers()[0].key.clone();
    let intent = book.intend_launch(9, &offer, 1, 60_000, 3000).expect("an offer");
    book.intent_sent(intent, 3000).expect("open");
    book.launched(intent, std::slice::from_ref(&instance), fleet::LaunchAnswer::Launched, "a test", 3000)
        .expect("open");
    let next = book.nodes().values().find(|n| n.intent == Some(intent)).expect("made").id;
    note(&book, next);
    book.register(next, "boot-2", 8, 3000).expect("booting");
    note(&book, next);
}

/// Two orders within one millisecond are two orders, and those of another subsystem are none to health.
#[test]
fn each_order_has_a_version_of_its_own() {
    let (mut book, nodes) = lent(1);
    let desired = |book: &fleet::book::Book| book.nodes()[&nodes[0]].desired;
    let lent = desired(&book);
    book.call_back(nodes[0], "claims wait", 1000).expect("lent");
    let back = desired(&book);
    assert!(back.all > lent.all && back.health == back.all);
    book.heard(nodes[0], "boot-1", None, 1500).expect("its boot");
    assert_eq!(desired(&book), back, "a heartbeat changes nothing");
    book.raise_desired(nodes[0]).expect("a node");
    assert_eq!(
        desired(&book),
        fleet::book::DesiredVersion { all: back.all + 1, health: back.health, staging: back.staging }
    );
}
