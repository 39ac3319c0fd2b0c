//! Whatever happens, in whatever order: no GPU is given twice, and what is stored is what is known.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, ClaimRequest, ClassRule, CopyFact, Gate, Limits, Pending};
use fleet::{Cause, NodeState, OnEmpty, Presence, Remedy, StagingRoom, Tier, UsdMicros};
use proptest::prelude::*;

use crate::fleets::{ask, book, class, idle_nodes};

/// Applies one of many things to the book; refusals are fine.
fn happen(book: &mut Book, what: (u8, u64, u8), now_ms: i64) {
    let (kind, pick, more) = what;
    let nodes: Vec<u64> = book.nodes().keys().copied().collect();
    let claims: Vec<u64> = book.claims().keys().copied().collect();
    let node = nodes.get(pick as usize % nodes.len().max(1)).copied().unwrap_or(0);
    let claim = claims.get(pick as usize % claims.len().max(1)).copied().unwrap_or(0);
    let class = ["large", "small", "small", "batch"][usize::from(more % 4)];
    let on_empty = [OnEmpty::Fail, OnEmpty::Queue, OnEmpty::LaunchCold, OnEmpty::Substitute][usize::from(more % 4)];
    match kind {
        0..=5 => {
            let count = 1 + u32::from(more / 64);
            book.claim(ClaimRequest { count, ..ask(class, on_empty) }, now_ms).ok();
        }
        6..=8 => drop(book.release(claim, "done", now_ms)),
        9 => drop(book.heartbeat(claim, None, now_ms)),
        10 => drop(idle_nodes(book, usize::from(more % 3), 1, now_ms)),
        11 => drop(book.gone(node, "reclaimed", now_ms)),
        12 => drop(book.fault(node, Cause::Passive, "a fault", now_ms)),
        13 => drop(book.drain(node, "notice", now_ms)),
        14 => drop(book.heard(node, "boot-1", Some(more % 5 > 0), now_ms)),
        15 => drop(book.register(node, if more % 2 == 0 { "boot-1" } else { "boot-2" }, 8, now_ms)),
        16 => {
            let mend = [None, Some(Remedy::Reset), Some(Remedy::Recheck)][usize::from(more % 3)];
            let said = if more % 2 == 0 { Gate::passed() } else { Gate::Failed { mend } };
            drop(book.gate(node, "boot-1", &said, "gate", now_ms));
        }
        19 => {
            let care = [Remedy::Recheck, Remedy::Reset, Remedy::Reboot][usize::from(more % 3)];
            let claims_until_ms = (more % 2 == 0).then_some(now_ms + 5000);
            let need = Pending { remedy: care, cause: format!("xid:{}", more % 4).into(), claims_until_ms };
            drop(book.needs(node, "boot-1", (more < 200).then_some(need), now_ms));
        }
        20 => drop(book.lend(node, "3", now_ms + 60_000, now_ms)),
        21 => drop(book.diagnosed(node, "boot-1", "passed", now_ms)),
        22 => drop(book.call_back(node, "by hand", now_ms)),
        23 => book.take_last(&nodes.iter().copied().filter(|n| n % 3 == pick % 3).collect()),
        24 => {
            let tier = if more % 2 == 0 { Tier::Disk } else { Tier::Memory };
            let wanted = (0..more % 3).map(|n| (format!("s{n}"), tier)).collect();
            drop(book.stage(node, &wanted, now_ms));
        }
        25 => {
            let presence = [Presence::Absent, Presence::Fetching, Presence::Disk, Presence::Memory];
            let fact =
                |n: u8| CopyFact { presence: presence[usize::from(more.wrapping_add(n) % 4)], ..CopyFact::default() };
            let facts = (0..pick as u8 % 4).map(|n| (format!("s{n}"), fact(n))).collect();
            drop(book.staged(node, "boot-1", (&StagingRoom::default(), &facts), now_ms));
        }
        17 => drop(book.intend_release(1, node, now_ms)),
        18 => {
            if let Ok(intent) = book.intend_end(node, "by hand", now_ms) {
                book.termination_taken(intent, more % 2 == 0, now_ms).ok();
            }
        }
        _ => {
            book.tick(now_ms);
            book.tick_nodes(now_ms);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_twice_and_nothing_is_forgotten(
        steps in proptest::collection::vec((0_u8..28, any::<u64>(), any::<u8>(), 0_i64..20_000), 1..120)
    ) {
        let mut book = book();
        let mut batch = class("batch", 2, &[("H100", None)]);
        batch.class.borrows_usd_micros_per_gpu_h = Some(UsdMicros(1));
        let patient = book.classes().values().cloned().map(|rule| ClassRule { wait_ms: 20_000, ..rule });
        let rules: Vec<ClassRule> = patient.chain([batch]).collect();
        book.set_classes(rules);
        idle_nodes(&mut book, 0, 1, 0);
        let (mut now_ms, mut stored_nodes, mut stored_claims) = (0, BTreeMap::new(), BTreeMap::new());
        let mut stored_intents = BTreeMap::new();
        for (kind, pick, more, pause_ms) in steps {
            now_ms += pause_ms;
            happen(&mut book, (kind, pick, more), now_ms);
            prop_assert_eq!(book.breaches(), vec![]);
            // What can be claimed is what healthy nodes have free.
            for p in 0..book.offers().len() {
                let key = &book.offers()[p].key;
                let ready = book.nodes().values().filter(|n| n.offer == *key && n.takes_claims());
                let free: u64 = ready.filter(|n| n.proof_at_ms.is_some()).map(|n| u64::from(n.free.count())).sum();
                prop_assert_eq!(book.free_gpus(p), free);
            }
            // One whose claims were failed for a repair waits for its turn without a proof, and is given to nobody.
            let unproven = |n: &fleet::book::Node| n.state == NodeState::Idle && n.care.is_none() && n.proof_at_ms.is_none();
            prop_assert!(!book.nodes().values().any(unproven), "HLT-1");
            let held = |n: &fleet::book::Node| n.care.as_ref().is_some_and(|c| c.remedy > Remedy::Recheck) && !book.may_repair(n.id, now_ms);
            let careless = |n: &fleet::book::Node| n.care.is_some() && n.state == NodeState::Idle && !held(n);
            // One that waits for its turn is asked after each second.
            let ticked = kind >= 26;
            prop_assert!(!ticked || !book.nodes().values().any(careless), "an empty node that needs care gets it");
            let repairing = book.nodes().values().filter(|n| n.state == NodeState::Repairing).count();
            prop_assert!(repairing <= 3, "one in each cell at the same time, where cells are small");
            for node in book.nodes().values() {
                let lent = node.state == NodeState::Diagnosing;
                prop_assert!(!lent || (node.diagnosis.is_some() && node.free.count() == node.gpus), "{:?}", node);
                let short = node.diagnosis.is_some();
                prop_assert!(!short || lent || node.gate_is_short(), "{:?}", node);
            }
            let live = |c: &&fleet::book::Claim| c.borrowed && c.state.is_live();
            let borrowed: Vec<u64> = book.claims().values().filter(live).map(|c| c.id).collect();
            prop_assert_eq!(book.borrowed().iter().copied().collect::<Vec<_>>(), borrowed);
            let late = |c: &fleet::book::Claim| c.called_back_at_ms.is_some_and(|at| c.lease_until_ms > at + book.limits().call_back_ms);
            prop_assert!(!book.claims().values().any(late), "called back, and kept for longer");
            // Claims are served from what hosts have, and from nothing else.
            for name in ["s0", "s1", "s2", "s3"] {
                let there = book.nodes().values().filter(|n| n.copies.contains_key(name));
                let there: BTreeSet<(Presence, u64)> = there.map(|n| (n.copies[name].presence, n.id)).collect();
                prop_assert_eq!(book.copies_of(name).collect::<BTreeSet<_>>(), there);
            }
            let changes = book.take_changes();
            for id in &changes.nodes { stored_nodes.insert(*id, book.nodes()[id].clone()); }
            for id in &changes.claims { stored_claims.insert(*id, book.claims()[id].clone()); }
            for id in &changes.intents { stored_intents.insert(*id, book.intents()[id].clone()); }
            book.forget_ended(&changes);
        }
        // A book made of what was stored is the same book.
        let mut again = Book::new(Limits::default());
        again.set_offers(book.offers().to_vec());
        again.set_classes(book.classes().values().cloned());
        stored_nodes.into_values().for_each(|n| again.load_node(n));
        stored_claims.into_values().for_each(|c| again.load_claim(c));
        stored_intents.into_values().for_each(|i| again.load_intent(i));
        prop_assert_eq!(again.breaches(), vec![]);
        let heard = |n: &fleet::book::Node| (n.id, n.state, n.free, n.boot.clone(), n.reason.clone(), n.diagnosis.clone(), n.claimed_last, n.copies.clone());
        prop_assert_eq!(again.nodes().values().map(heard).collect::<Vec<_>>(), book.nodes().values().map(heard).collect::<Vec<_>>());
        prop_assert_eq!(again.claims(), book.claims());
        prop_assert_eq!(again.intents(), book.intents());
        for class in ["small", "large"] {
            prop_assert_eq!(again.queue(class), book.queue(class));
        }
        for p in 0..book.offers().len() {
            prop_assert_eq!(again.free_gpus(p), book.free_gpus(p));
        }
    }
}
