//! A node that needs care serves its claims on, takes no new ones, and gets its care when it is empty.

use fleet::book::{Book, Gate, Pending};
use fleet::{NodeState, OnEmpty, Remedy};

use crate::fleets::{ask, book, idle_nodes};

fn need(care: Remedy, cause: &str, claims_until_ms: Option<i64>) -> Option<Pending> {
    Some(Pending { remedy: care, cause: cause.into(), claims_until_ms })
}

fn one() -> (Book, u64) {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    (book, node)
}

#[test]
fn a_pending_reset_serves_on_and_is_made_when_the_node_is_empty() {
    let (mut book, node) = one();
    let claim = book.claim(ask("small", OnEmpty::Fail), 1000).expect("there is a node").0;
    book.needs(node, "boot-1", need(Remedy::Reset, "xid:63", None), 2000).expect("known");
    assert_eq!(
        (book.nodes()[&node].state, book.free_gpus(0)),
        (NodeState::Claimed, 0),
        "it serves on, and takes no more"
    );
    book.needs(node, "boot-1", need(Remedy::Reset, "xid:63", None), 90_000_000).expect("known");
    assert_eq!(book.nodes()[&node].state, NodeState::Claimed, "however long it takes");
    book.release(claim, "done", 90_000_001).expect("live");
    assert_eq!(book.nodes()[&node].state, NodeState::Repairing);
    book.gate(node, "boot-1", &Gate::passed(), "passed", 90_010_000).expect("after the reset");
    assert_eq!(book.nodes()[&node].state, NodeState::Idle);
    assert!(book.free_gpus(0) > 0 && book.nodes()[&node].care.is_none());
}

#[test]
fn what_must_be_drained_has_its_claims_until_a_deadline_that_does_not_move() {
    let (mut book, node) = one();
    book.claim(ask("small", OnEmpty::Fail), 1000).expect("there is a node");
    book.needs(node, "boot-1", need(Remedy::Reset, "xid:95", Some(602_000)), 2000).expect("known");
    book.needs(node, "boot-1", need(Remedy::Reset, "xid:95", Some(900_000)), 300_000).expect("known");
    book.heard(node, "boot-1", Some(true), 601_000).expect("same boot");
    book.tick_nodes(601_999);
    assert_eq!(book.nodes()[&node].state, NodeState::Claimed);
    book.heard(node, "boot-1", Some(true), 602_000).expect("same boot");
    book.tick_nodes(602_000);
    assert_eq!(book.nodes()[&node].state, NodeState::Repairing);
    assert!(book.claims().values().all(|c| !c.state.is_live()), "its claims failed");
}

/// Its claims were failed for a fault that is gone: what was true of it before proves nothing now.
#[test]
fn care_that_is_withdrawn_leaves_the_gate_to_one_that_lost_its_proof() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 2, 0);
    book.needs(nodes[0], "boot-1", need(Remedy::Reset, "xid:48", None), 1).expect("known");
    let claim = book.claim(ask("small", OnEmpty::Fail), 2).expect("the other is idle").0;
    book.needs(nodes[1], "boot-1", need(Remedy::Reset, "xid:95", Some(1000)), 3).expect("known");
    book.tick_nodes(1000);
    assert!(!book.claims()[&claim].state.is_live());
    assert_eq!(book.nodes()[&nodes[1]].state, NodeState::Idle, "one at a time is repaired");
    // As a report without conditions does it.
    book.heard(nodes[1], "boot-1", Some(true), 2000).expect("same boot");
    book.needs(nodes[1], "boot-1", None, 2000).expect("known");
    assert_eq!((book.breaches(), book.nodes()[&nodes[1]].state), (vec![], NodeState::Checking));
    book.gate(nodes[1], "boot-1", &Gate::passed(), "passed", 3000).expect("checking");
    assert!(book.claim(ask("small", OnEmpty::Fail), 3001).is_ok());
}

#[test]
fn the_same_cause_is_not_mended_twice_in_a_week() {
    let (mut book, node) = one();
    let day_ms = 86_400_000;
    for (at_ms, then) in [(0, NodeState::Repairing), (day_ms, NodeState::Quarantined)] {
        book.needs(node, "boot-1", need(Remedy::Reset, "xid:48", None), at_ms + 1).expect("known");
        assert_eq!(book.nodes()[&node].state, then);
        book.gate(node, "boot-1", &Gate::passed(), "passed", at_ms + 2).ok();
    }
    let (mut book, node) = one();
    for at_ms in [0, 8 * day_ms] {
        book.needs(node, "boot-1", need(Remedy::Reset, "xid:48", None), at_ms + 1).expect("known");
        assert_eq!(book.nodes()[&node].state, NodeState::Repairing, "a week is long");
        book.gate(node, "boot-1", &Gate::passed(), "passed", at_ms + 2).expect("after the reset");
    }
}

#[test]
fn a_gate_that_a_reset_would_mend_gets_one_and_no_second() {
    let (mut book, node) = one();
    book.needs(node, "boot-1", need(Remedy::Recheck, "log-gap", None), 1).expect("known");
    assert_eq!(book.nodes()[&node].state, NodeState::Checking);
    let failed = Gate::Failed { mend: Some(Remedy::Reset) };
    book.gate(node, "boot-1", &failed, "a remap waits", 2).expect("checking");
    assert_eq!(book.nodes()[&node].state, NodeState::Repairing);
    book.gate(node, "boot-1", &failed, "a remap waits", 3).expect("after the reset");
    assert_eq!(book.nodes()[&node].state, NodeState::Quarantined, "reset once, otherwise replace");
    assert_eq!(book.nodes()[&node].reason, "a remap waits again, after a repair");
}

#[test]
fn a_condition_that_ended_by_itself_gives_the_node_back() {
    let (mut book, node) = one();
    book.claim(ask("small", OnEmpty::Fail), 1000).expect("there is a node");
    book.needs(node, "boot-1", need(Remedy::Recheck, "thermal", None), 2000).expect("known");
    assert_eq!(book.free_gpus(0), 0);
    book.needs(node, "boot-1", None, 3000).expect("known");
    assert!(book.free_gpus(0) > 0);
}

#[test]
fn reports_count_once_and_only_of_this_boot() {
    let (mut book, node) = one();
    assert_eq!(book.is_new(node, "boot-1", Some(7)), Ok(true));
    assert_eq!(book.is_new(node, "boot-1", Some(7)), Ok(false));
    assert_eq!(book.is_new(node, "boot-1", Some(6)), Ok(false));
    assert!(book.is_new(node, "boot-0", Some(8)).is_err());
    book.register(node, "boot-2", 8, 10).expect("a new boot");
    assert_eq!(book.is_new(node, "boot-2", Some(1)), Ok(true), "numbers begin anew");
}

/// Reports that say that something is wrong prove nothing: a node that is heard is not lost for that, and its claims keep
/// their deadline.
#[test]
fn a_node_that_is_heard_is_not_lost_while_it_waits_for_its_care() {
    let (mut book, node) = one();
    book.claim(ask("small", OnEmpty::Fail), 1000).expect("there is a node");
    for second in 1..=700 {
        let at_ms = 1000 + second * 1000;
        book.heard(node, "boot-1", None, at_ms).expect("same boot");
        book.needs(node, "boot-1", need(Remedy::Reset, "xid:95", Some(at_ms + 600_000)), at_ms).expect("known");
        book.tick_nodes(at_ms);
        let state = book.nodes()[&node].state;
        assert_eq!(state, if second <= 600 { NodeState::Claimed } else { NodeState::Repairing }, "after {second} s");
    }
    // What nobody proves any more serves on, and is checked when it is empty.
    let (mut book, node) = one();
    let claim = book.claim(ask("small", OnEmpty::Fail), 1000).expect("there is a node").0;
    for at_ms in (1000..300_000).step_by(10_000) {
        book.heard(node, "boot-1", None, at_ms).expect("same boot");
        book.tick_nodes(at_ms);
    }
    assert_eq!((book.nodes()[&node].state, book.free_gpus(0)), (NodeState::Claimed, 0));
    book.release(claim, "done", 300_000).expect("live");
    assert_eq!(book.nodes()[&node].state, NodeState::Checking);
}

#[test]
fn a_fault_on_a_silent_node_ends_its_claims() {
    let (mut book, node) = one();
    book.claim(ask("small", OnEmpty::Fail), 1000).expect("there is a node");
    book.tick_nodes(200_000);
    assert_eq!(book.nodes()[&node].state, NodeState::Lost);
    book.heard(node, "boot-1", None, 201_000).expect("same boot");
    book.fault(node, "xid:79".into(), "xid:79", 201_001).expect("it holds a claim");
    assert_eq!(book.nodes()[&node].state, NodeState::Quarantined);
    assert!(book.claims().values().all(|c| !c.state.is_live()));
}
