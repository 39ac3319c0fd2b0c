//! What hosts bring up for claims: ordered with the grant, reported, and withdrawn with the claim's end.

use fleet::book::{Book, Change, ClaimRequest, NodeError, StartFact, What};
use fleet::{Attempt, OnEmpty, Phase, Rung, Snapshot, StartState, StartedBy};

use crate::fleets::{ask, book, idle_nodes};
use crate::staging::snapshot;

fn captured(class: &str) -> Snapshot {
    Snapshot { object: "f00d".into(), started_by: StartedBy::Agent, ..snapshot("chat", class) }
}

fn fact(state: StartState, phases: &[(Phase, f64)]) -> StartFact {
    let attempts = vec![Attempt { rung: Rung::Restore, phases: phases.to_vec(), problem: String::new() }];
    StartFact { state, attempts, problem: String::new() }
}

fn life(book: &mut Book) -> Vec<String> {
    let start = |event: Change| match event.what {
        What::Start(_) => Some(format!("{}: {}", event.what.states().1, event.reason)),
        _ => None,
    };
    book.take_changes().events.into_iter().filter_map(start).collect()
}

#[test]
fn a_start_is_ordered_with_the_grant_and_withdrawn_with_the_end() {
    let mut book = book();
    book.set_snapshots([captured("small")]);
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let heard = book.nodes()[&node].desired;
    let (id, _) = book.claim(ask("small", OnEmpty::Fail), 1_000).expect("free");
    assert!(book.nodes()[&node].desired.all > heard.all, "its agent hears of it");
    let claim = &book.claims()[&id];
    assert_eq!(claim.lease_until_ms, 1_000 + claim.lease_ms, "a client that waits for it has the whole lease");
    let told: Vec<_> = book.starts_on(node).map(|(claim, start, gpus)| (claim, start.object.clone(), gpus)).collect();
    assert_eq!(told, [(id, "f00d".to_owned(), book.claims()[&id].parts[0].gpus)]);

    // What is declared anew is for new claims.
    book.set_snapshots([]);
    assert_eq!(book.starts_on(node).count(), 1);
    let phases = [(Phase::Processes, 0.4), (Phase::Canary, 0.1)];
    let boot = "boot-1";
    let coming = (id, fact(StartState::Coming, &[]));
    assert_eq!(book.started(node, boot, coming, 1_100), Ok(None));
    book.set_snapshots([captured("small")]);
    let ready = book.started(node, boot, (id, fact(StartState::Ready, &phases)), 1_900).expect("of this boot");
    assert_eq!(ready.map(|(_, seconds)| seconds), Some(0.9));
    assert_eq!(book.claims()[&id].ready_s, Some(0.9));
    assert_eq!(book.started(node, boot, (id, fact(StartState::Ready, &phases)), 5_000), Ok(None), "said again");
    let other = book.started(node, "boot-0", (id, fact(StartState::Failed, &[])), 5_000);
    assert!(matches!(other, Err(NodeError::OtherBoot { .. })));
    let words = [
        "coming: its host brings it up",
        "ready: 0.90 s after the grant: restore in 0.50 s (processes 0.40, canary 0.10)",
    ];
    assert_eq!(life(&mut book), words);

    let heard = book.nodes()[&node].desired.all;
    book.release(id, "done", 6_000).expect("granted");
    assert!(book.nodes()[&node].desired.all > heard, "its agent hears of the end");
    assert_eq!(book.starts_on(node).count(), 0);
    assert_eq!(book.started(node, boot, (id, fact(StartState::Ended, &phases)), 6_100), Ok(None), "too late");
}

#[test]
fn what_a_client_brings_up_is_not_ordered() {
    let mut book = book();
    book.set_snapshots([Snapshot { started_by: StartedBy::Client, ..captured("small") }]);
    let node = idle_nodes(&mut book, 0, 1, 0)[0];
    let ask = ClaimRequest { snapshot: Some("chat".into()), ..ask("small", OnEmpty::Fail) };
    let (id, _) = book.claim(ask, 1).expect("free");
    assert!(book.claims()[&id].start.is_none() && book.starts_on(node).count() == 0);
    let said = (id, fact(StartState::Ready, &[]));
    assert_eq!(book.started(node, "boot-1", said, 2), Ok(None), "an agent that says so all the same changes nothing");
    assert_eq!(book.claims()[&id].ready_s, None);
}
