//! What claims and the plan want of a pool while its nodes are lent.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, Node};
use fleet::{NodeState, OfferKey};
use health::weekly::Arrivals;

use super::Outlook;

/// What claims and the plan want of a pool.
#[derive(Debug, PartialEq)]
pub(super) struct Need {
    pub buffer_nodes: u32,
    pub hot_nodes: u32,
    pub waiting_nodes: u32,
    pub short: bool,
    pub rising: bool,
}

impl Need {
    pub(super) fn of(
        book: &Book,
        nodes: &[&Node],
        arrivals: &BTreeMap<String, Arrivals>,
        outlook: &Outlook,
        now_ms: i64,
    ) -> Self {
        let offers: BTreeSet<usize> = nodes.iter().filter_map(|n| book.offer_of(n)).collect();
        let classes = served(book, &offers);
        let hot_nodes = hot_nodes(book, nodes, &classes, arrivals, now_ms);
        let waits = classes.iter().any(|k| book.queue(k) > 0);
        let arrives = nodes.iter().any(|n| n.state.is_arriving() && !n.gate_is_short());
        let claimed = nodes.iter().filter(|n| n.state == NodeState::Claimed).count() as f64;
        let here = |offer: &OfferKey| book.offer(offer).is_some_and(|p| offers.contains(&p));
        let meant: f64 = outlook.nodes.iter().filter(|(offer, _)| here(offer)).map(|(_, nodes)| nodes).sum();
        Self {
            buffer_nodes: (meant - claimed).round().max(0.0) as u32,
            hot_nodes,
            waiting_nodes: waiting_nodes(book, nodes, &classes),
            short: waits || arrives,
            rising: outlook.rises(&classes),
        }
    }
}

/// Classes that nodes of these offers serve.
fn served<'a>(book: &'a Book, offers: &BTreeSet<usize>) -> Vec<&'a str> {
    let served = |class: &&str| book.offers_of(class).iter().any(|p| offers.contains(p));
    crate::inputs::planned(book).map(|(name, _)| name.as_str()).filter(served).collect()
}

/// Idle nodes that stay: what may come before a diagnostic has yielded.
fn hot_nodes(
    book: &Book,
    nodes: &[&Node],
    classes: &[&str],
    arrivals: &BTreeMap<String, Arrivals>,
    now_ms: i64,
) -> u32 {
    let gpus = nodes.iter().map(|n| n.gpus).max().unwrap_or(1).max(1);
    let in_nodes = |class: &str, claims: u32| {
        let each = book.classes().get(class).map_or(1, |r| r.class.gpus_per_claim);
        claims.saturating_mul(each).div_ceil(gpus)
    };
    let reserve = |class: &&str| arrivals.get(*class).map_or(1, |a| a.hot_reserve(now_ms));
    classes.iter().map(|k| in_nodes(k, reserve(k))).sum::<u32>().max(1)
}

/// Nodes that the claims which wait will take.
fn waiting_nodes(book: &Book, nodes: &[&Node], classes: &[&str]) -> u32 {
    let gpus = nodes.iter().map(|n| n.gpus).max().unwrap_or(1).max(1);
    let of_class = |class: &&str| {
        let each = book.classes().get(*class).map_or(1, |r| r.class.gpus_per_claim);
        u32::try_from(book.queue(class)).unwrap_or(u32::MAX).saturating_mul(each).div_ceil(gpus)
    };
    classes.iter().map(of_class).fold(0, u32::saturating_add)
}

/// Nodes of a pool that are to be idle or on their way to it: for claims that wait, and for those that may come.
pub(super) fn wanted_nodes(book: &Book, nodes: &[&Node], arrivals: &BTreeMap<String, Arrivals>, now_ms: i64) -> u32 {
    let offers = nodes.iter().filter_map(|n| book.offer_of(n)).collect();
    let classes = served(book, &offers);
    hot_nodes(book, nodes, &classes, arrivals, now_ms).saturating_add(waiting_nodes(book, nodes, &classes))
}
