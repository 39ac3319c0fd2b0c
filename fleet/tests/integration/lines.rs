//! Who waits, and who may pass whom.

use fleet::book::{Book, Ceiling, Ceilings, ClaimError, ClaimRequest, Identity, Limits, NodeError, Queue, Taken};
use fleet::rng::Rng;
use fleet::{ClaimState, OnEmpty};

use crate::fleets::{ask, book, class, idle_nodes, offer};

fn units(count: u32) -> ClaimRequest {
    ClaimRequest { count, wait_ms: Some(600_000), ..ask("small", OnEmpty::Queue) }
}

fn from(caller: &str) -> ClaimRequest {
    ClaimRequest { caller: caller.into(), ..units(1) }
}

#[test]
fn a_gang_that_no_zone_has_nodes_for_holds_nobody_up() {
    let mut book = book();
    idle_nodes(&mut book, 0, 4, 0);
    let (gang, taken) = book.claim(units(64), 0).expect("waits");
    assert_eq!(taken, Taken::Queued);
    for i in 0..32 {
        let (_, taken) = book.claim(units(1), i).expect("free");
        assert_eq!(taken, Taken::Granted, "claim {i}: 32 GPUs are free");
    }
    assert_eq!(book.claim(units(1), 40).expect("waits").1, Taken::Queued);
    assert_eq!(book.claims()[&gang].state, ClaimState::Queued);
}

#[test]
fn a_gang_that_was_passed_often_enough_gets_the_next_gpus_of_its_zone() {
    let mut book = book();
    idle_nodes(&mut book, 0, 2, 0);
    idle_nodes(&mut book, 1, 1, 0);
    let claims: Vec<u64> = (0..24).map(|i| book.claim(units(1), i).expect("free").0).collect();
    let on = |book: &Book, zone: &str| {
        let of = |id: &&u64| book.nodes()[&book.claims()[*id].parts[0].node].offer.zone == zone;
        claims.iter().filter(of).copied().collect::<Vec<u64>>()
    };
    let (in_a, in_b) = (on(&book, "a"), on(&book, "b"));
    let (gang, _) = book.claim(units(12), 100).expect("waits");
    // Twelve GPUs pass it, one by one as they become free.
    for (i, id) in in_a.iter().take(12).enumerate() {
        let (next, _) = book.claim(units(1), 200).expect("waits");
        book.release(*id, "done", 300).expect("open");
        assert_eq!(book.claims()[&next].state, ClaimState::Granted, "{i}: it may be passed by as much as it asks for");
    }
    // Now it holds zone a, whose 16 GPUs are enough for it; zone b has 8.
    let (late, _) = book.claim(units(1), 400).expect("waits");
    book.release(in_b[0], "done", 500).expect("open");
    assert_eq!(book.claims()[&late].state, ClaimState::Granted, "another zone is not held");
    let (later, _) = book.claim(units(1), 600).expect("waits");
    let live = |book: &Book| -> Vec<u64> {
        let zone_a = |c: &&fleet::book::Claim| c.state.is_live() && book.nodes()[&c.parts[0].node].offer.zone == "a";
        book.claims().values().filter(zone_a).map(|c| c.id).collect()
    };
    for (freed, id) in live(&book).into_iter().enumerate().take(12) {
        assert_eq!(book.claims()[&gang].state, ClaimState::Queued, "{freed} of 12 are free");
        assert_eq!(book.claim(units(1), 700).expect("waits").1, Taken::Queued, "what is free in its zone is its");
        book.release(id, "done", 800).expect("open");
    }
    assert_eq!(book.claims()[&gang].state, ClaimState::Granted);
    assert_eq!(book.claims()[&later].state, ClaimState::Queued);
    assert_eq!(book.breaches(), []);
}

/// No claim waits while GPUs are free for it, unless the first in line holds their zone; and nobody younger and no smaller is
/// served before it.
#[test]
fn whatever_comes_nobody_waits_beside_what_is_free_for_him() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut book = book();
        let mut below = |n: usize| rng.below(n);
        idle_nodes(&mut book, 0, 1 + below(3) as u32, 0);
        idle_nodes(&mut book, 1, below(3) as u32, 0);
        for step in 0..300_i64 {
            let live: Vec<u64> = book.claims().values().filter(|c| c.state.is_live()).map(|c| c.id).collect();
            if below(5) < 3 || live.is_empty() {
                let count = [1, 1, 1, 2, 3, 8, 12, 20][below(8)];
                let asked = book.claim(units(count), step).expect("asked");
                let older =
                    |c: &&fleet::book::Claim| c.state == ClaimState::Queued && c.id < asked.0 && c.count <= count;
                let passed = book.claims().values().find(older);
                assert!(asked.1 == Taken::Queued || passed.is_none(), "seed {seed}, step {step}: passes {passed:?}");
            } else {
                book.release(live[below(live.len())], "done", step).expect("open");
            }
            let first = book.claims().values().find(|c| c.state == ClaimState::Queued);
            let free = (book.free_gpus(0), book.free_gpus(1));
            let fits = |c: &&fleet::book::Claim| {
                c.state == ClaimState::Queued && (u64::from(c.count) <= free.0 || u64::from(c.count) <= free.1)
            };
            if let Some(first) = first.filter(|f| f.passed_gpus < f.count) {
                let waiting = book.claims().values().find(fits);
                assert!(
                    waiting.is_none(),
                    "seed {seed}, step {step}: {free:?} free beside {waiting:?}, {first:?} first"
                );
            }
            assert_eq!(book.breaches(), [], "seed {seed}, step {step}");
        }
    }
}

#[test]
fn neither_a_caller_nor_a_class_closes_the_queue_for_others() {
    let mut book = Book::new(Limits { queued_claims_max: 100, ..Limits::default() });
    book.set_offers(vec![offer("a", "H100", 8, 2.0)]);
    book.set_classes(["small", "other", "third"].map(|name| class(name, 1, &[("H100", None)])));
    let fill = |book: &mut Book, ask: &ClaimRequest| -> (usize, ClaimError) {
        let mut taken = 0;
        loop {
            match book.claim(ask.clone(), 0) {
                Ok(_) => taken += 1,
                Err(error) => return (taken, error),
            }
        }
    };
    let of = |class: &str, caller: &str| ClaimRequest { class: class.into(), ..from(caller) };
    let (taken, error) = fill(&mut book, &from("greedy"));
    assert_eq!((taken, error), (50, ClaimError::QueueFull { of: Queue::Class, waiting: 50, all: 50 }));
    let (taken, error) = fill(&mut book, &of("other", "greedy"));
    assert_eq!((taken, error), (0, ClaimError::QueueFull { of: Queue::Caller, waiting: 50, all: 50 }));
    assert_eq!(fill(&mut book, &of("other", "modest")).0, 25, "another has half of what is left");
    assert_eq!(fill(&mut book, &of("third", "third")).0, 13);
    // What ends makes room, and what is read back is counted.
    let mine: Vec<_> = book.claims().values().filter(|c| c.caller == "greedy").cloned().collect();
    for claim in &mine {
        book.release(claim.id, "gives up", 1).expect("open");
    }
    assert!(fill(&mut book, &of("third", "greedy")).0 > 0);
    let mut again = Book::new(Limits { queued_claims_max: 100, ..Limits::default() });
    again.set_offers(vec![offer("a", "H100", 8, 2.0)]);
    again.set_classes(["small", "other"].map(|name| class(name, 1, &[("H100", None)])));
    mine.into_iter().for_each(|claim| again.load_claim(claim));
    assert!(matches!(again.claim(of("other", "greedy"), 0), Err(ClaimError::QueueFull { of: Queue::Caller, .. })));
}

#[test]
fn what_can_never_fit_is_refused_with_the_limit_that_says_so() {
    let mut book = book();
    idle_nodes(&mut book, 0, 2, 0);
    let keys: Vec<_> = book.offers().iter().map(|o| o.key.clone()).collect();
    let ceiling = |name: &str, offers: &[usize], gpus| Ceiling {
        name: name.into(),
        offers: offers.iter().map(|p| keys[*p].clone()).collect(),
        gpus,
    };
    let owned = Ceilings(vec![ceiling("machines of a", &[0], 32), ceiling("machines of b", &[1], 16)]);
    let quota = Ceilings(vec![ceiling("quota 'h100'", &[0, 1], 24)]);
    book.set_ceilings(owned);
    assert_eq!(book.claim(units(32), 0).expect("may come").1, Taken::Queued);
    let refused = book.claim(units(33), 0);
    let wanted = ClaimError::NeverFits { class: "small".into(), wanted: 33, most: 32, limit: "machines of a".into() };
    assert_eq!(refused, Err(wanted));
    book.set_ceilings(quota);
    assert!(matches!(book.claim(units(25), 0), Err(ClaimError::NeverFits { most: 24, .. })));
    book.set_ceilings(Ceilings(vec![ceiling("quota '0'", &[0, 1], 0)]));
    let fits = book.claim(ClaimRequest { on_empty: Some(OnEmpty::Fail), ..units(16) }, 0);
    assert!(!matches!(fits, Err(ClaimError::NeverFits { .. })), "nodes that are there count in any case: {fits:?}");
    book.set_ceilings(Ceilings(vec![ceiling("machines of a", &[0], 8)]));
    assert_eq!(book.claim(units(64), 0).expect("zone b has no limit").1, Taken::Queued);
}

#[test]
fn serial_numbers_are_of_the_node_that_proved_them_first_while_it_lives() {
    let mut book = book();
    let key = book.offers()[0].key.clone();
    let intent = book.intend_launch(1, &key, 2, 60_000, 0).expect("known");
    book.intent_sent(intent, 0).expect("open");
    let names = ["x".to_owned(), "y".to_owned()];
    book.launched(intent, &names, fleet::LaunchAnswer::Launched, "done", 0).expect("open");
    let [honest, liar] = [0, 1].map(|i| *book.nodes().keys().nth(i).expect("two"));
    let serials: Vec<String> = (0..8).map(|i| format!("s{i}")).collect();
    for id in [honest, liar] {
        book.register(id, "b", 8, 0).expect("booting");
    }
    book.identify(honest, &Identity { serials: serials.clone(), ..Identity::default() });
    assert_eq!(book.owner_of(liar, &serials), None, "nothing is proved yet");
    book.gate(honest, "b", &fleet::book::Gate::passed(), "passed", 0).expect("checking");
    assert_eq!(book.owner_of(liar, &serials[3..]), Some((honest, "s3")));
    assert_eq!(book.owner_of(honest, &serials), None, "they are its own");
    let mut broken = idle_nodes(&mut book, 0, 1, 0);
    let broken = broken.pop().expect("one");
    book.tick_nodes(120_001);
    assert_eq!(book.nodes()[&honest].state, fleet::NodeState::Lost);
    assert_eq!(book.owner_of(liar, &serials), None, "what is lost may have been given to another");
    // A liar passes with them meanwhile: the honest one has its own all the same.
    book.identify(liar, &Identity { serials: serials.clone(), ..Identity::default() });
    book.gate(liar, "b", &fleet::book::Gate::passed(), "passed", 120_002).ok();
    book.heard(honest, "b", None, 120_002).expect("its boot");
    assert_eq!(book.owner_of(honest, &serials), None);
    book.disown(liar);
    assert_eq!(book.owner_of(liar, &serials), Some((honest, "s0")), "it is back");
    book.fault(honest, fleet::Cause::Passive, "broken", 120_003).ok();
    assert_eq!(book.owner_of(broken, &serials), Some((honest, "s0")), "out of service it lives");
    let wrong = |named: &[&str]| book.can_have(liar, &named.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
    assert!(matches!(
        wrong(&["1", "2", "3", "4", "5", "6", "7", "8", "9"]),
        Err(NodeError::OtherSerials { gpus: 8, .. })
    ));
    assert_eq!(wrong(&["1", "2", "3", "4", "5", "6", "7", "8"]), Ok(()));
}

/// Nodes on which what is free of one and of another makes no unit together: five units of three GPUs need three nodes of eight.
#[test]
fn what_does_not_divide_counts_by_what_can_be_used() {
    let mut book = Book::new(Limits::default());
    book.set_offers(vec![offer("a", "H100", 8, 2.0), offer("b", "H100", 4, 2.0)]);
    book.set_classes([class("three", 3, &[("H100", None)]), class("eight", 8, &[("H100", None)])]);
    idle_nodes(&mut book, 0, 2, 0);
    let ask = |class: &str, count| ClaimRequest { count, wait_ms: Some(600_000), ..ask(class, OnEmpty::Queue) };
    book.claim(ask("three", 5), 0).expect("waits");
    for i in 0..20 {
        let (id, taken) = book.claim(ask("three", 1), i).expect("free");
        assert_eq!(taken, Taken::Granted, "claim {i}: two units fit on each node, and nothing can save up for five");
        book.release(id, "done", i).expect("open");
    }
    let ceiling =
        Ceiling { name: "machines".into(), offers: book.offers().iter().map(|o| o.key.clone()).collect(), gpus: 16 };
    book.set_ceilings(Ceilings(vec![ceiling]));
    assert!(matches!(book.claim(ask("three", 5), 30), Err(ClaimError::NeverFits { wanted: 15, most: 12, .. })));
    let (id, _) = book.claim(ask("eight", 2), 40).expect("free");
    book.release(id, "done", 41).expect("open");
}
