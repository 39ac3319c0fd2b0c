//! The invariants that a book alone shows, of all of it or of what changed.

use std::collections::{BTreeMap, BTreeSet};

use crate::GpuSet;
use crate::cause::Cell;
use crate::invariants::{Breach, Invariant};
use crate::node::NodeState;

use super::{Book, Changes, Claim, IntentAction, Node};

impl Book {
    /// Looks at all of the book: seconds of a minute, for a large fleet milliseconds.
    #[must_use]
    pub fn breaches(&self) -> Vec<Breach> {
        let nodes: BTreeSet<u64> = self.nodes.keys().copied().collect();
        let mut found = self.breaches_at(&nodes, self.claims.values());
        found.extend(self.launches_of_intents());
        found.extend(self.repairs());
        found
    }

    /// Looks at what changed: as dear as the change.
    #[must_use]
    pub fn breaches_in(&self, changes: &Changes) -> Vec<Breach> {
        let claims = changes.claims.iter().filter_map(|id| self.claims.get(id));
        let mut nodes = changes.nodes.clone();
        nodes.extend(claims.clone().filter(|c| c.state.is_live()).flat_map(|c| c.parts.iter().map(|p| p.node)));
        self.breaches_at(&nodes, claims)
    }

    /// CAP-1, CAP-5 and HLT-1 at some nodes, and of some claims.
    fn breaches_at<'a>(&'a self, nodes: &BTreeSet<u64>, claims: impl Iterator<Item = &'a Claim>) -> Vec<Breach> {
        let mut found = Vec::new();
        let mut used: BTreeMap<u64, GpuSet> = BTreeMap::new();
        for claim in claims.filter(|c| c.state.is_live()) {
            for part in &claim.parts {
                let Some(node) = self.nodes.get(&part.node) else {
                    let what = format!("claim c-{} is on node n-{}, which is gone", claim.id, part.node);
                    found.push(Breach::new(Invariant::Cap1, what));
                    continue;
                };
                let before = used.entry(part.node).or_default();
                if before.overlaps(part.gpus) || node.free.overlaps(part.gpus) {
                    let what = format!("GPUs {} of node n-{} are in use twice", part.gpus, part.node);
                    found.push(Breach::new(Invariant::Cap1, what));
                }
                *before = before.with(part.gpus);
            }
        }
        found.extend(nodes.iter().filter_map(|id| self.nodes.get(id)).filter_map(breach_of));
        found
    }

    /// CAP-4: an intent has no more nodes with an instance than it asked for, and no node is of two.
    fn launches_of_intents(&self) -> Vec<Breach> {
        let mut found = Vec::new();
        for intent in self.intents.values() {
            let IntentAction::Launch { nodes, .. } = &intent.action else { continue };
            let others = self.nodes.values().filter(|n| n.intent == Some(intent.id) && !nodes.contains(&n.id)).count();
            if others > 0 {
                let what = format!("intent i-{} launched {others} nodes that it did not ask for", intent.id);
                found.push(Breach::new(Invariant::Cap4, what));
            }
        }
        found
    }

    /// HLT-6: no more nodes of a cell are repaired at the same time than its breaker allows.
    fn repairs(&self) -> Vec<Breach> {
        // Most of the time nobody is repaired.
        let repaired = self.nodes.values().filter(|n| n.state == NodeState::Repairing).map(|n| Cell::of(&n.offer));
        let mut cells: BTreeMap<Cell, (usize, usize)> = BTreeMap::new();
        repaired.for_each(|cell| cells.entry(cell).or_default().1 += 1);
        if cells.is_empty() {
            return Vec::new();
        }
        for node in self.nodes.values() {
            if let Some((all, _)) = cells.get_mut(&Cell::of(&node.offer)) {
                *all += 1;
            }
        }
        // Nodes that ended since left a smaller cell: one more than its share is no breach.
        let over = |(all, repairing): &(usize, usize)| *repairing > super::holds::repairs_max(*all) + 1;
        let told = |(cell, (all, repairing)): (&Cell, &(usize, usize))| {
            Breach::new(Invariant::Hlt6, format!("{repairing} of {all} nodes of {cell} are repaired at the same time"))
        };
        cells.iter().filter(|(_, counts)| over(counts)).map(told).collect()
    }
}

/// What a node by itself breaks.
fn breach_of(node: &Node) -> Option<Breach> {
    let (id, state, has_claims) = (node.id, node.state, node.has_claims());
    // A node that drains or fell silent may still hold what it was given; the rest may not.
    let holds = matches!(state, NodeState::Claimed | NodeState::Draining | NodeState::Lost);
    if (has_claims && !holds) || (!has_claims && state == NodeState::Claimed) {
        let what = format!("node n-{id} is {} and has {} claimed GPUs", state.name(), node.gpus - node.free.count());
        return Some(Breach::new(Invariant::Cap5, what));
    }
    // One that waits for its repair has lost its proof, and is given to nobody.
    let is_given = state == NodeState::Idle && node.care.is_none();
    if is_given && (node.proof_at_ms.is_none() || node.boot.is_none()) {
        return Some(Breach::new(Invariant::Hlt1, format!("node n-{id} is idle without a proof of this boot")));
    }
    if node.free.count() > node.gpus {
        return Some(Breach::new(Invariant::Cap1, format!("node n-{id} has more free GPUs than GPUs")));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::book::{Limits, Part};
    use crate::{ClaimState, IntentState, Market, OfferKey, OnEmpty};

    fn node(id: u64, state: NodeState, free: GpuSet) -> Node {
        let offer = OfferKey {
            provider: "lab".into(),
            region: "r".into(),
            zone: "z".into(),
            instance_type: "h8".into(),
            market: Market::OnDemand,
        };
        let text = serde_json::json!({
            "id": id, "offer": offer, "gpus": 8, "state": state, "free": free, "instance": null, "intent": null,
            "boot": "b", "asked_at_ms": 0, "since_ms": 0, "proof_at_ms": 1, "heard_at_ms": 1, "reason": "",
        });
        serde_json::from_value(text).expect("a node")
    }

    fn claim(id: u64, node: u64, gpus: GpuSet) -> Claim {
        Claim {
            id,
            class: "k".into(),
            state: ClaimState::Active,
            count: 1,
            key: None,
            digest: String::new(),
            holder: String::new(),
            caller: String::new(),
            passed_gpus: 0,
            on_empty: OnEmpty::Fail,
            parts: vec![Part { node, gpus }],
            substituted: false,
            asked_at_ms: 0,
            deadline_at_ms: 0,
            granted_at_ms: Some(0),
            lease_ms: 1,
            lease_until_ms: 1,
            hit: Some(true),
            borrowed: false,
            called_back_at_ms: None,
            snapshot: None,
            prediction: None,
            ready_s: None,
            start: None,
            ended_at_ms: None,
            reason: String::new(),
        }
    }

    fn book(nodes: Vec<Node>, claims: Vec<Claim>) -> Book {
        let mut book = Book::new(Limits::default());
        nodes.into_iter().for_each(|n| book.load_node(n));
        claims.into_iter().for_each(|c| book.load_claim(c));
        book
    }

    fn all_of(book: &Book) -> Changes {
        Changes {
            nodes: book.nodes().keys().copied().collect(),
            claims: book.claims().keys().copied().collect(),
            ..Changes::default()
        }
    }

    /// Each planted break is found, by the whole look and by that at what changed.
    #[test]
    fn each_planted_break_is_found() {
        let (low, high, all) = (GpuSet::first(4), GpuSet::first(8).without(GpuSet::first(4)), GpuSet::first(8));
        let none = all.without(all);
        let good = book(
            vec![node(1, NodeState::Claimed, none), node(2, NodeState::Idle, all), node(3, NodeState::Draining, high)],
            vec![claim(11, 1, low), claim(12, 1, high), claim(13, 3, low)],
        );
        assert_eq!(good.breaches(), []);
        assert_eq!(good.breaches_in(&all_of(&good)), []);
        let idle_unproven = Node { proof_at_ms: None, ..node(1, NodeState::Idle, all) };
        let planted = [
            (
                book(vec![node(1, NodeState::Claimed, none)], vec![claim(11, 1, low), claim(12, 1, all)]),
                Invariant::Cap1,
            ),
            (book(vec![node(1, NodeState::Claimed, high)], vec![claim(11, 1, all)]), Invariant::Cap1),
            (book(vec![], vec![claim(11, 7, low)]), Invariant::Cap1),
            (book(vec![node(1, NodeState::Claimed, all)], vec![]), Invariant::Cap5),
            (book(vec![node(1, NodeState::Quarantined, high)], vec![claim(11, 1, low)]), Invariant::Cap5),
            (book(vec![idle_unproven], vec![]), Invariant::Hlt1),
        ];
        for (broken, invariant) in &planted {
            for found in [broken.breaches(), broken.breaches_in(&all_of(broken))] {
                assert_eq!(found.first().map(|b| b.invariant), Some(*invariant), "{found:?}");
            }
        }
        let repairing = (0..40).map(|id| node(id, NodeState::Repairing, all)).collect();
        assert_eq!(book(repairing, vec![]).breaches()[0].invariant, Invariant::Hlt6);
        let mut bought = book(vec![Node { intent: Some(9), ..node(1, NodeState::Booting, all) }], vec![]);
        bought.load_intent(super::super::Intent {
            id: 9,
            epoch: 1,
            action: IntentAction::Launch { offer: node(1, NodeState::Idle, all).offer, nodes: vec![] },
            token: "t".into(),
            state: IntentState::Sent,
            tries: 1,
            sent_at_ms: None,
            not_before_ms: 0,
            made_at_ms: 0,
            expires_at_ms: 1,
            reason: String::new(),
        });
        assert_eq!(bought.breaches()[0].invariant, Invariant::Cap4);
    }
}
