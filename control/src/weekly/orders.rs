//! What a look at the pools orders, and how it is carried out.

use std::collections::{BTreeMap, BTreeSet};

use fleet::NodeState;
use fleet::book::{Book, Node};
use fleet::invariants::{Breach, Invariant};
use health::dcgm::{TEST_DEADLINE_S, level_deadline_s};
use health::weekly::Run;

/// Margin over the agent's own deadlines, milliseconds.
const MARGIN_MS: i64 = 120_000;

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Orders {
    /// Nodes that are lent.
    pub lend: Vec<Lend>,
    /// Nodes that are called back, and why.
    pub call_back: Vec<(u64, String)>,
    /// Nodes that claims take last.
    pub last: BTreeSet<u64>,
    /// Nodes that the planner is not to count: those of which nobody knows whether they come back in time, and those for
    /// whose test it is asked for another.
    pub uncounted: BTreeSet<u64>,
    /// Those for whose test it is asked for another, and since when, milliseconds since 1970.
    pub surge: BTreeMap<u64, i64>,
    /// Nodes whose test is due.
    pub due: usize,
    /// Nodes whose test is stale.
    pub stale: usize,
    /// Nodes in diagnostics.
    pub diagnosing: usize,
    /// Idle nodes that stay for the claims that may come before a diagnostic has yielded, of all pools.
    pub hot_nodes: u32,
    /// Why no more are lent, for people.
    pub why: String,
}

/// A node that is lent to diagnostics.
#[derive(Debug, Clone, PartialEq)]
pub struct Lend {
    /// Which.
    pub node: u64,
    /// To what.
    pub run: Run,
    /// Idle nodes of its pool that stay (HLT-3).
    pub hot_nodes: u32,
}

/// Cloud, region, zone, instance type.
pub(super) type Place<'a> = (&'a str, &'a str, &'a str, &'a str);

pub(super) fn place(node: &Node) -> Place<'_> {
    let o = &node.offer;
    (&o.provider, &o.region, &o.zone, &o.instance_type)
}

impl Orders {
    /// Whether the book is not yet as ordered.
    #[must_use]
    pub fn changes(&self, book: &Book) -> bool {
        let last = |n: &fleet::book::Node| n.claimed_last != self.last.contains(&n.id);
        !self.lend.is_empty() || !self.call_back.is_empty() || book.nodes().values().any(last)
    }

    /// Does what is ordered. What was claimed or has ended meanwhile stays as it is, and so does a node whose reserve was
    /// claimed meanwhile. Returns what takes a pool under its hot reserve all the same: nothing, but for a bug.
    #[must_use]
    pub fn carry_out(&self, book: &mut Book, now_ms: i64) -> Vec<Breach> {
        for (node, reason) in &self.call_back {
            book.call_back(*node, reason, now_ms).ok();
        }
        let mut lent = Vec::new();
        for lend in &self.lend {
            let stay = idle_nodes(book, lend.node).is_some_and(|idle| idle > lend.hot_nodes);
            if stay && book.lend(lend.node, lend.run.word(), now_ms + longest_ms(&lend.run), now_ms).is_ok() {
                lent.push(lend);
            }
        }
        book.take_last(&self.last);
        lent.into_iter().filter_map(|lend| breach_of(book, lend)).collect()
    }
}

/// HLT-3, of a node that was lent a moment ago.
pub(super) fn breach_of(book: &Book, lend: &Lend) -> Option<Breach> {
    let idle = idle_nodes(book, lend.node)?;
    (idle < lend.hot_nodes).then(|| {
        let what = format!("node n-{} is lent with {idle} idle beside it, of {} that stay", lend.node, lend.hot_nodes);
        Breach::new(Invariant::Hlt3, what)
    })
}

/// Idle nodes in the pool of a node; none where it is gone.
fn idle_nodes(book: &Book, node: u64) -> Option<u32> {
    let pool = place(book.nodes().get(&node)?);
    let idle = book.nodes().values().filter(|n| n.state == NodeState::Idle && n.care.is_none() && place(n) == pool);
    Some(u32::try_from(idle.count()).unwrap_or(u32::MAX))
}

/// When it is over in any case: the agent's deadlines, and some time to start.
fn longest_ms(run: &Run) -> i64 {
    let deadline_s = match run {
        Run::Quick => level_deadline_s(2),
        Run::Full => level_deadline_s(3),
        Run::Slice(_) => TEST_DEADLINE_S,
    };
    // What asks for it is repeated.
    2 * i64::from(deadline_s) * 1000 + MARGIN_MS
}
