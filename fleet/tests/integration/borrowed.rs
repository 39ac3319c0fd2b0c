//! Idle GPUs lent to claims that are called back.

use fleet::book::{Book, ClassRule, Limits};
use fleet::{ClaimState, IntentState, NodeState, OnEmpty, UsdMicros};

use crate::fleets::{ask, class, idle_nodes, offer};

const CALL_BACK_MS: i64 = 3_000;

fn batch(gpus_per_claim: u32) -> ClassRule {
    let mut rule = class("batch", gpus_per_claim, &[("H100", None), ("H200", None)]);
    rule.class.borrows_usd_micros_per_gpu_h = Some(UsdMicros(800_000));
    ClassRule { wait_ms: 600_000, ..rule }
}

/// One H100 node of 8 GPUs, one dearer H200 node; claims of 4 GPUs, a borrower of 2.
fn lending() -> (Book, Vec<u64>) {
    let mut book = Book::new(Limits { call_back_ms: CALL_BACK_MS, ..Limits::default() });
    book.set_offers(vec![offer("a", "H100", 8, 2.0), offer("a", "H200", 8, 4.0)]);
    book.set_classes([class("chat", 4, &[("H100", None), ("H200", None)]), batch(2)]);
    let nodes = [idle_nodes(&mut book, 0, 1, 0), idle_nodes(&mut book, 1, 1, 0)].concat();
    (book, nodes)
}

fn borrow(book: &mut Book, count: usize) -> Vec<u64> {
    let claims = (0..count).map(|_| book.claim(ask("batch", OnEmpty::Queue), 10).expect("a claim").0);
    let claims: Vec<u64> = claims.collect();
    claims.iter().for_each(|id| book.heartbeat(*id, None, 10).unwrap_or_default());
    claims
}

fn state(book: &Book, claim: u64) -> ClaimState {
    book.claims()[&claim].state
}

fn called_back(book: &Book) -> usize {
    book.claims().values().filter(|c| c.state.is_live() && c.called_back_at_ms.is_some()).count()
}

#[test]
fn a_claim_calls_back_just_what_it_needs_and_gets_it_in_time() {
    let (mut book, nodes) = lending();
    let claims = borrow(&mut book, 9);
    assert_eq!(book.borrowed().len(), 8, "all 16 GPUs, two each");
    assert_eq!(book.claims()[&claims[0]].parts[0].node, nodes[1], "what others take last is lent first");
    assert_eq!(state(&book, claims[8]), ClaimState::Queued);
    let (chat, _) = book.claim(ask("chat", OnEmpty::Queue), 100).expect("waits");
    assert_eq!((state(&book, chat), called_back(&book)), (ClaimState::Queued, 2), "two of two GPUs for four");
    // Asked again, nothing more is called back; a heartbeat gives no more time.
    book.tick_nodes(200);
    let mine: Vec<u64> = claims.iter().copied().filter(|c| book.claims()[c].called_back_at_ms.is_some()).collect();
    assert_eq!(mine.len(), 2);
    book.heartbeat(mine[0], None, 300).expect("still there");
    book.release(mine[1], "it goes", 400).expect("open");
    assert_eq!(state(&book, chat), ClaimState::Queued);
    assert_eq!(state(&book, claims[8]), ClaimState::Queued, "a borrower does not take what others wait for");
    book.tick(100 + CALL_BACK_MS);
    assert_eq!((state(&book, mine[0]), state(&book, chat)), (ClaimState::Expired, ClaimState::Granted));
    assert_eq!(book.claims()[&chat].hit, Some(true), "within its wait");
    assert_eq!(book.breaches(), []);
    // It ends: who waited to borrow gets its GPUs.
    book.release(chat, "done", 9_000).expect("open");
    assert_eq!(state(&book, claims[8]), ClaimState::Granted);
}

#[test]
fn nothing_is_lent_that_serves_a_class_which_does_not_wait() {
    for impatient in [
        ClassRule { wait_ms: CALL_BACK_MS + 1_000, ..class("chat", 4, &[("H100", None)]) },
        ClassRule { on_empty: OnEmpty::Fail, ..class("chat", 4, &[("H100", None)]) },
        ClassRule { on_empty: OnEmpty::Substitute, ..class("chat", 4, &[("H100", Some(1.0))]) },
    ] {
        let (mut book, nodes) = lending();
        book.set_classes([impatient, batch(2)]);
        borrow(&mut book, 8);
        assert_eq!((book.borrowed_gpus(nodes[0]), book.borrowed_gpus(nodes[1])), (0, 8));
    }
    // Those who borrow already are called back when a class no longer waits.
    let (mut book, nodes) = lending();
    borrow(&mut book, 8);
    book.set_classes([ClassRule { on_empty: OnEmpty::Fail, ..class("chat", 4, &[("H100", None)]) }, batch(2)]);
    book.tick_nodes(20);
    assert_eq!(called_back(&book), 4);
    book.tick(20 + CALL_BACK_MS);
    assert_eq!((book.borrowed_gpus(nodes[0]), book.borrowed_gpus(nodes[1])), (0, 8));
}

/// What comes back for one class is not counted for another.
#[test]
fn two_classes_that_wait_call_back_for_each() {
    let (mut book, _) = lending();
    book.set_classes([class("chat", 4, &[("H100", None)]), class("code", 4, &[("H100", None)]), batch(2)]);
    borrow(&mut book, 8);
    let (first, _) = book.claim(ask("chat", OnEmpty::Queue), 100).expect("waits");
    let (second, _) = book.claim(ask("code", OnEmpty::Queue), 200).expect("waits");
    assert_eq!(called_back(&book), 4);
    book.tick(200 + CALL_BACK_MS);
    assert_eq!((state(&book, first), state(&book, second)), (ClaimState::Granted, ClaimState::Granted));
}

/// A class that is edited takes its claims along, and a node whose test is due is not lent again.
#[test]
fn claims_follow_their_class_and_tests_come_first() {
    let (mut book, nodes) = lending();
    let claims = borrow(&mut book, 9);
    let mut plain = batch(2);
    plain.class.borrows_usd_micros_per_gpu_h = None;
    book.set_classes([class("chat", 4, &[("H100", None), ("H200", None)]), plain]);
    assert!(book.borrowed().is_empty() && !book.claims()[&claims[8]].borrowed);
    book.release(claims[0], "done", 50).expect("open");
    assert_eq!(state(&book, claims[8]), ClaimState::Granted, "it waits as others do");
    book.set_classes([class("chat", 4, &[("H100", None), ("H200", None)]), batch(2)]);
    assert_eq!(book.borrowed().len(), 8);
    let (waits, _) = book.claim(ask("batch", OnEmpty::Queue), 60).expect("waits");
    book.take_last(&[nodes[0]].into());
    book.tick_nodes(100);
    book.tick(100 + CALL_BACK_MS);
    assert_eq!((book.borrowed_gpus(nodes[0]), book.nodes()[&nodes[0]].state), (0, NodeState::Idle));
    assert_eq!(state(&book, waits), ClaimState::Queued);
}

#[test]
fn a_lent_node_is_given_back_after_its_borrowers_have_gone() {
    let (mut book, nodes) = lending();
    let claims = borrow(&mut book, 1);
    let intent = book.intend_release(3, nodes[1], 1_000).expect("only borrowed");
    assert_eq!(book.nodes()[&nodes[1]].state, NodeState::Draining);
    assert_eq!(book.intents()[&intent].not_before_ms, 1_000 + CALL_BACK_MS);
    assert!(book.intents()[&intent].state == IntentState::Pending && called_back(&book) == 1);
    book.tick(1_000 + CALL_BACK_MS);
    assert_eq!(state(&book, claims[0]), ClaimState::Expired);
    // One that others have a part of stays.
    book.claim(ask("chat", OnEmpty::Queue), 6_000).expect("free");
    borrow(&mut book, 2);
    assert!(book.intend_release(4, nodes[0], 7_000).is_err());
}

#[test]
fn a_gang_calls_back_as_many_nodes_as_it_takes() {
    let (mut book, _) = lending();
    idle_nodes(&mut book, 0, 2, 0);
    let mut wide = class("train", 16, &[("H100", None)]);
    wide.class.multi_node = true;
    book.set_classes([class("chat", 4, &[("H100", None), ("H200", None)]), wide, batch(2)]);
    borrow(&mut book, 16);
    assert_eq!(book.borrowed().len(), 16);
    idle_nodes(&mut book, 0, 1, 50);
    let (train, _) = book.claim(ask("train", OnEmpty::Queue), 100).expect("waits");
    assert_eq!(called_back(&book), 4, "one node, beside one that is idle");
    book.tick(100 + CALL_BACK_MS);
    assert_eq!(state(&book, train), ClaimState::Granted);
}
