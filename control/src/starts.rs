//! What hosts bring up for claims: the book as orders.

use fleet::book::Book;
use protocol::starts::StartOrder;

/// What a host is to have brought up, by claim.
#[must_use]
pub fn orders(book: &Book, node: u64) -> Vec<StartOrder> {
    let order = |(claim, start, gpus): (u64, &fleet::Start, fleet::GpuSet)| StartOrder {
        claim: format!("c-{claim}"),
        store: start.store.clone(),
        object: start.object.clone(),
        gpus: gpus.indices().collect(),
    };
    book.starts_on(node).map(order).collect()
}
