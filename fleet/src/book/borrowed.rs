//! Idle GPUs as a loan to claims that are called back when others need them. Borrowers never wait before others, nothing is
//! launched for them, and no GPUs are lent that serve a class which would not wait until they are back.

use std::collections::{BTreeMap, BTreeSet};

use crate::claim::OnEmpty;
use crate::node::NodeState;

use super::{Book, ClassRule, Node};

impl Book {
    /// Claims whose GPUs are borrowed.
    #[must_use]
    pub fn borrowed(&self) -> &BTreeSet<u64> {
        &self.borrowed
    }

    /// GPUs that are borrowed.
    #[must_use]
    pub fn lent_gpus(&self) -> u64 {
        let parts = self.borrowed.iter().filter_map(|id| self.claims.get(id)).flat_map(|claim| &claim.parts);
        parts.map(|part| u64::from(part.gpus.count())).sum()
    }

    /// GPUs of a node that are borrowed.
    #[must_use]
    pub fn borrowed_gpus(&self, node: u64) -> u32 {
        let parts = self.borrowed.iter().filter_map(|id| self.claims.get(id)).flat_map(|claim| &claim.parts);
        parts.filter(|part| part.node == node).map(|part| part.gpus.count()).sum()
    }

    /// Takes offers away from borrowers that serve a class which does not wait for a call-back.
    pub(super) fn keep_what_cannot_wait(&mut self) {
        let cannot_wait = |rule: &&ClassRule| rule.wait_ms < self.limits.call_back_ms || rule.on_empty == OnEmpty::Fail;
        let others = self.classes.values().filter(|rule| !rule.class.borrows()).filter(cannot_wait);
        let kept: BTreeSet<usize> = others.flat_map(|rule| self.offers_of(&rule.class.name).iter().copied()).collect();
        for (name, rule) in &self.classes {
            if let Some(offers) = self.within.get_mut(name).filter(|_| rule.class.borrows()) {
                offers.retain(|p| !kept.contains(p));
            }
        }
    }

    /// Offers that borrowers may take of now: nobody else waits for their GPUs.
    pub(super) fn lendable(&self, offers: &[usize]) -> Vec<usize> {
        let others = |class: &&String| self.classes.get(*class).is_some_and(|rule| !rule.class.borrows());
        let waiting = self.waiting.iter().filter(|(_, line)| !line.is_empty()).map(|(class, _)| class).filter(others);
        let wanted: BTreeSet<usize> = waiting.flat_map(|class| self.offers_of(class).iter().copied()).collect();
        offers.iter().copied().filter(|p| !wanted.contains(p)).collect()
    }

    /// Calls a borrowed claim back: it keeps its GPUs until it lets them go, or for `call_back_ms`. Again changes nothing.
    pub(super) fn call_back_claim(&mut self, id: u64, reason: &str, now_ms: i64) {
        let until_ms = now_ms + self.limits.call_back_ms;
        let Some(claim) = self.claims.get_mut(&id).filter(|c| c.borrowed && c.called_back_at_ms.is_none()) else {
            return;
        };
        self.due.remove(&(claim.due_at_ms(), id));
        claim.called_back_at_ms = Some(now_ms);
        claim.lease_until_ms = claim.lease_until_ms.min(until_ms);
        reason.clone_into(&mut claim.reason);
        self.due.insert((claim.due_at_ms(), id));
        self.changes.claims.insert(id);
    }

    /// Calls back what is borrowed of a node.
    pub(super) fn call_back_node(&mut self, node: u64, reason: &str, now_ms: i64) {
        let on_it = |id: &&u64| self.claims.get(id).is_some_and(|claim| claim.parts.iter().any(|p| p.node == node));
        let claims: Vec<u64> = self.borrowed.iter().filter(on_it).copied().collect();
        claims.into_iter().for_each(|id| self.call_back_claim(id, reason, now_ms));
    }

    /// Whether all that has GPUs of a node has borrowed them.
    pub(super) fn is_all_borrowed(&self, node: &Node) -> bool {
        node.state == NodeState::Claimed && self.borrowed_gpus(node.id) + node.free.count() >= node.gpus
    }

    /// Calls back what the waiting claims of a class need. Asking again calls back nothing more while they are the same.
    pub(super) fn call_back_borrowed_for(&mut self, class: &str, now_ms: i64) {
        let rule = self.classes.get(class).filter(|rule| !rule.class.borrows());
        let Some(size) = rule.map(|rule| rule.class.gpus_per_claim).filter(|_| !self.borrowed.is_empty()) else {
            return;
        };
        let mut loans = self.loans(class);
        let mut called = Vec::new();
        for id in self.waiting.get(class).into_iter().flatten() {
            let units = self.claims.get(id).map_or(0, |claim| claim.count);
            for _ in 0..units {
                // A unit of several nodes takes whole ones.
                let mut missing = size;
                while missing > 0 {
                    let Some(loan) = loans.iter_mut().find(|loan| loan.left() >= missing.min(loan.gpus)) else { break };
                    let part = missing.min(loan.gpus);
                    missing -= part;
                    loan.taken += part;
                    while loan.taken > loan.free {
                        let Some((claim, gpus)) = loan.claims.pop() else { break };
                        loan.free += gpus;
                        called.push(claim);
                    }
                }
            }
        }
        let reason = format!("claims of {class} wait");
        called.into_iter().for_each(|id| self.call_back_claim(id, &reason, now_ms));
    }

    /// What serves a class and has borrowed GPUs, in the order in which the class tries it: those first of which least has to
    /// be called back.
    fn loans(&self, class: &str) -> Vec<Loan> {
        let mut of_node: BTreeMap<u64, Vec<(u64, u32, bool)>> = BTreeMap::new();
        for claim in self.borrowed.iter().filter_map(|id| self.claims.get(id)) {
            for part in &claim.parts {
                let loan = (claim.id, part.gpus.count(), claim.called_back_at_ms.is_some());
                of_node.entry(part.node).or_default().push(loan);
            }
        }
        let place = |node: &Node| {
            let offer = self.offer_of(node)?;
            self.offers_of(class).iter().position(|p| *p == offer)
        };
        let loan = |(id, borrowed): (u64, Vec<(u64, u32, bool)>)| {
            let node = self.nodes.get(&id).filter(|node| node.takes_claims() && node.proof_at_ms.is_some())?;
            let coming: u32 = borrowed.iter().filter(|loan| loan.2).map(|loan| loan.1).sum();
            let claims = borrowed.into_iter().filter(|loan| !loan.2).map(|(claim, gpus, _)| (claim, gpus)).collect();
            let free = node.free.count() + coming;
            Some((place(node)?, Loan { gpus: node.gpus, free, taken: 0, claims }))
        };
        let mut loans: Vec<(usize, Loan)> = of_node.into_iter().filter_map(loan).collect();
        loans.sort_by_key(|(place, loan)| (*place, std::cmp::Reverse(loan.free)));
        loans.into_iter().map(|(_, loan)| loan).collect()
    }

    /// Borrowed GPUs of nodes that leave, are to be mended or whose test is due, and of nodes that waiting claims need.
    pub(super) fn tick_borrowed(&mut self, now_ms: i64) {
        if self.borrowed.is_empty() {
            return;
        }
        let leaves = |node: &&Node| node.care.is_some() || node.claimed_last || !node.takes_claims();
        let claims = self.borrowed.iter().filter_map(|id| self.claims.get(id));
        let nodes: BTreeSet<u64> = claims.flat_map(|claim| claim.parts.iter().map(|part| part.node)).collect();
        let leaving: Vec<u64> =
            nodes.iter().filter_map(|id| self.nodes.get(id)).filter(leaves).map(|node| node.id).collect();
        for node in leaving {
            self.call_back_node(node, "its node is needed for something else", now_ms);
        }
        let waiting: Vec<String> = self.waiting.iter().filter(|(_, w)| !w.is_empty()).map(|(k, _)| k.clone()).collect();
        waiting.iter().for_each(|class| self.call_back_borrowed_for(class, now_ms));
    }
}

/// A node with borrowed GPUs.
struct Loan {
    gpus: u32,
    /// GPUs that are free, or called back.
    free: u32,
    /// Of these and of what can be called back, GPUs that waiting claims will take.
    taken: u32,
    /// Claims that can be called back, with their GPUs.
    claims: Vec<(u64, u32)>,
}

impl Loan {
    /// GPUs for further claims.
    fn left(&self) -> u32 {
        self.free + self.claims.iter().map(|(_, gpus)| gpus).sum::<u32>() - self.taken
    }
}
