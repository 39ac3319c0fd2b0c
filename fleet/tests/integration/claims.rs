//! What a scheduler relies on.

use fleet::book::{ClaimError, ClaimRequest, Taken};
use fleet::{ClaimState, LaunchAnswer, NodeState, OnEmpty};

use crate::fleets::{ask, book, idle_nodes};

#[test]
fn a_claim_takes_the_cheapest_node_and_keeps_whole_nodes_whole() {
    let mut book = book();
    idle_nodes(&mut book, 1, 1, 0);
    let cheap = idle_nodes(&mut book, 0, 2, 0);
    let (first, taken) = book.claim(ask("small", OnEmpty::Fail), 10).expect("free");
    assert_eq!(taken, Taken::Granted);
    let (second, _) = book.claim(ask("small", OnEmpty::Fail), 20).expect("free");
    let on = |id: u64| book.claims()[&id].parts[0].node;
    assert!(cheap.contains(&on(first)) && on(first) == on(second), "the node in use is filled first");
    book.claim(ask("large", OnEmpty::Fail), 30).expect("a whole node was kept");
    book.release(first, "done", 40).expect("open");
    book.release(second, "done", 50).expect("open");
    assert_eq!(book.free_gpus(0), 8);
    assert_eq!(book.breaches(), [], "sound");
}

#[test]
fn the_four_ways_of_an_empty_class() {
    let mut book = book();
    assert!(matches!(book.claim(ask("small", OnEmpty::Fail), 0), Err(ClaimError::Empty { arriving: 0, .. })));
    idle_nodes(&mut book, 2, 1, 0);
    // The H200 is above the cap of the class: only a substitute takes it.
    assert!(matches!(book.claim(ask("small", OnEmpty::Fail), 0), Err(ClaimError::Empty { .. })));
    let (id, taken) = book.claim(ask("small", OnEmpty::Substitute), 0).expect("substitute");
    assert!(taken == Taken::Substituted && book.claims()[&id].substituted);
    let (queued, taken) = book.claim(ask("small", OnEmpty::Queue), 0).expect("waits");
    let (cold, _) = book.claim(ask("small", OnEmpty::LaunchCold), 0).expect("waits");
    assert_eq!(taken, Taken::Queued);
    book.tick(5_000);
    assert_eq!(book.claims()[&queued].state, ClaimState::Expired);
    assert_eq!((book.claims()[&cold].state, book.claims()[&cold].hit), (ClaimState::Queued, Some(false)));
    idle_nodes(&mut book, 0, 1, 9_000);
    assert_eq!(book.claims()[&cold].state, ClaimState::Granted);
    let tally = book.tallies()["small"];
    assert_eq!((tally.hits, tally.misses), (1, 4), "each claim counts once");
}

#[test]
fn a_retry_finds_its_claim_and_another_request_does_not() {
    let mut book = book();
    idle_nodes(&mut book, 0, 1, 0);
    let keyed = ClaimRequest { key: Some("k1".into()), digest: "a".into(), ..ask("small", OnEmpty::Fail) };
    let (id, _) = book.claim(keyed.clone(), 0).expect("free");
    assert_eq!(book.claim(keyed.clone(), 1), Ok((id, Taken::Before)));
    let other = ClaimRequest { digest: "b".into(), ..keyed.clone() };
    assert_eq!(book.claim(other.clone(), 2), Err(ClaimError::KeyReused(id)));
    book.release(id, "done", 3).expect("open");
    let ended = book.claims()[&id].clone();
    let changes = book.take_changes();
    book.forget_ended(&changes);
    book.know_ended(&ended);
    assert_eq!(book.claim(keyed, 4), Ok((id, Taken::Before)), "also after it has ended");
    assert_eq!(book.claim(other, 5), Err(ClaimError::KeyReused(id)));
}

#[test]
fn what_nobody_confirms_or_waits_for_comes_back() {
    let mut book = book();
    idle_nodes(&mut book, 0, 1, 0);
    let (left, _) = book.claim(ask("small", OnEmpty::Fail), 0).expect("free");
    let (kept, _) = book.claim(ask("small", OnEmpty::Fail), 0).expect("free");
    book.heartbeat(kept, None, 10_000).expect("open");
    book.tick(30_000);
    assert_eq!((book.claims()[&left].state, book.claims()[&kept].state), (ClaimState::Expired, ClaimState::Active));
    assert!(matches!(book.heartbeat(left, None, 30_001), Err(ClaimError::Ended { .. })));
    book.tick(70_000);
    assert_eq!(book.claims()[&kept].state, ClaimState::Expired);
    let late = ClaimRequest { answer_by_ms: Some(99), ..ask("small", OnEmpty::Fail) };
    assert_eq!(book.claim(late, 100), Err(ClaimError::TooLate));
}

#[test]
fn a_gang_is_all_or_none_and_in_one_zone() {
    let mut book = book();
    idle_nodes(&mut book, 0, 2, 0);
    idle_nodes(&mut book, 1, 1, 0);
    let three = ClaimRequest { count: 3, ..ask("large", OnEmpty::Fail) };
    assert!(matches!(book.claim(three.clone(), 0), Err(ClaimError::Empty { .. })), "three nodes, in two zones");
    idle_nodes(&mut book, 2, 1, 0);
    let (id, _) = book.claim(three, 0).expect("zone a has three now");
    assert_eq!(book.claims()[&id].parts.len(), 3);
    assert_eq!(book.breaches(), [], "sound");
}

#[test]
fn claims_of_a_lost_node_fail_and_a_silent_one_is_not_given_out() {
    let mut book = book();
    let nodes = idle_nodes(&mut book, 0, 2, 0);
    let (id, _) = book.claim(ask("small", OnEmpty::Fail), 0).expect("free");
    book.heartbeat(id, Some(3_600_000), 0).expect("open");
    let node = book.claims()[&id].parts[0].node;
    book.gone(node, "reclaimed", 1_000).expect("known");
    assert_eq!((book.claims()[&id].state, book.nodes()[&node].state), (ClaimState::Failed, NodeState::Terminated));
    assert_eq!(book.breaches(), [], "sound");
    book.tick_nodes(61_000);
    let other = nodes.into_iter().find(|n| *n != node).expect("two");
    assert_eq!(book.nodes()[&other].state, NodeState::Lost);
    assert!(matches!(book.claim(ask("small", OnEmpty::Fail), 61_000), Err(ClaimError::Empty { .. })));
    // Being heard again is no proof of health: the gate is.
    book.heard(other, "boot-1", Some(true), 62_000).expect("same boot");
    assert_eq!(book.nodes()[&other].state, NodeState::Checking);
    assert!(book.heard(other, "boot-0", Some(true), 62_000).is_err(), "a report of another boot changes nothing");
    book.gate(other, "boot-1", &fleet::book::Gate::passed(), "passed", 63_000).expect("checking");
    book.claim(ask("small", OnEmpty::Fail), 64_000).expect("proven again");
}

#[test]
fn an_agent_that_lies_about_its_hardware_is_refused() {
    let mut book = book();
    let key = book.offers()[0].key.clone();
    let intent = book.intend_launch(1, &key, 1, 60_000, 0).expect("known offer");
    book.launched(intent, &["x".into()], LaunchAnswer::Launched, "done", 0).expect("open");
    let id = *book.nodes().keys().next().expect("one");
    assert!(book.register(id, "b", 4, 0).is_err());
    assert!(book.gate(id, "b", &fleet::book::Gate::passed(), "trust me", 0).is_err(), "it has not registered");
    assert_eq!(book.nodes()[&id].state, NodeState::Booting);
}

#[test]
fn heartbeats_are_written_down_now_and_then() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    book.take_changes();
    let mut written = 0;
    for beat in 1..=12 {
        book.heard(node, "boot-1", Some(true), beat * 10_000).expect("same boot");
        written += usize::from(book.take_changes().nodes.contains(&node));
    }
    assert!((5..=7).contains(&written), "about every 20 s of two minutes, not each and not never: {written}");
}

#[test]
fn time_in_which_nobody_could_be_heard_does_not_count() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let (id, _) = book.claim(ask("small", OnEmpty::Fail), 0).expect("free");
    book.heartbeat(id, Some(60_000), 0).expect("open");
    // An hour without the database.
    book.forgive(3_600_000);
    book.tick(3_610_000);
    book.tick_nodes(3_610_000);
    assert_eq!((book.claims()[&id].state, book.nodes()[&node].state), (ClaimState::Active, NodeState::Claimed));
    book.tick(3_661_000);
    assert_eq!(book.claims()[&id].state, ClaimState::Expired, "and then it does");
}

#[test]
fn a_node_that_was_taken_out_does_not_come_back() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    book.drain(node, "an operator says so", 0).expect("idle");
    book.tick_nodes(61_000);
    assert_eq!(book.nodes()[&node].state, NodeState::Lost);
    book.heard(node, "boot-1", Some(true), 62_000).expect("same boot");
    book.gate(node, "boot-1", &fleet::book::Gate::passed(), "passed", 63_000).expect("checking");
    assert_eq!(book.nodes()[&node].state, NodeState::Draining);
    assert!(matches!(book.claim(ask("small", OnEmpty::Fail), 64_000), Err(ClaimError::Empty { .. })));
}

#[test]
fn an_agent_that_restarts_costs_no_claim() {
    let mut book = book();
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let (id, _) = book.claim(ask("small", OnEmpty::Fail), 0).expect("free");
    book.heartbeat(id, Some(3_600_000), 0).expect("open");
    book.tick_nodes(61_000);
    book.register(node, "boot-1", 8, 62_000).expect("the same boot");
    assert_eq!(book.claims()[&id].state, ClaimState::Active);
    book.register(node, "boot-2", 8, 63_000).expect("another boot");
    assert_eq!((book.claims()[&id].state, book.nodes()[&node].state), (ClaimState::Failed, NodeState::Checking));
}
