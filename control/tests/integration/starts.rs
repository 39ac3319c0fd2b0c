//! What a host is told to have brought up, whatever becomes of its node.

use control::reports::desired;
use fleet::NodeState;
use fleet::StartedBy;
use fleet::book::ClaimRequest;

use crate::staging::fleet;

#[test]
fn what_claims_have_stays_ordered_until_they_end() {
    let mut book = fleet(1);
    let snapshots: Vec<fleet::Snapshot> = book.snapshots().values().cloned().collect();
    book.set_snapshots(snapshots.into_iter().map(|s| fleet::Snapshot { started_by: StartedBy::Agent, ..s }));
    let ask = ClaimRequest { snapshot: Some("popular".into()), ..ClaimRequest::of("chat") };
    let (id, _) = book.claim(ask, 10).expect("free");
    let node = book.claims()[&id].parts[0].node;
    let told = |book: &fleet::book::Book| desired(book, node).starts.expect("always said");
    let orders = told(&book);
    assert_eq!((orders.len(), orders[0].claim.as_str(), orders[0].gpus.len()), (1, format!("c-{id}").as_str(), 8));
    book.drain(node, "somebody wants it empty", 20).expect("in use");
    assert_eq!(book.nodes()[&node].state, NodeState::Draining);
    assert_eq!(told(&book), orders, "a node that drains lets its claims go on");
    book.release(id, "done", 30).expect("granted");
    assert!(told(&book).is_empty());
}
