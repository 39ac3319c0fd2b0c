//! Idle GPUs as a loan to claims that are called back when others need them. Borrowers never wait before others, nothing is
//! launched for them, and no GPUs are lent that serve a class which would not wait until they are back.

use std::collections::{BTreeMap, BTreeSet};

use crate::claim::{ClaimState, OnEmpty};
use crate::node::NodeState;

use super::{Book, Claim, ClassRule, Node, Part};

impl Book {
    /// Claims whose GPUs are borrowed.
    #[must_use]
    pub fn borrowed(&self) -> &BTreeSet<u64> {
        &self.borrowed
    }

    /// GPUs that are borrowed.
    #[must_use]
    pub fn lent_gpus(&self) -> u64 {
        self.borrowed_parts().map(|part| u64::from(part.gpus.count())).sum()
    }

    /// Parts of claims that are borrowed.
    pub fn borrowed_parts(&self) -> impl Iterator<Item = &Part> {
        self.borrowed.iter().filter_map(|id| self.claims.get(id)).flat_map(|claim| &claim.parts)
    }

    /// GPUs of a node that are borrowed.
    #[must_use]
    pub fn borrowed_gpus(&self, node: u64) -> u32 {
        self.borrowed_parts().filter(|part| part.node == node).map(|part| part.gpus.count()).sum()
    }

    /// Takes offers away from borrowers that serve a class which does not wait for a call-back.
    pub(super) fn keep_what_cannot_wait(&mut self) {
        let cannot_wait = |rule: &&ClassRule| {
            rule.wait_ms < self.limits.call_back_ms + MARGIN_MS
                || matches!(rule.on_empty, OnEmpty::Fail | OnEmpty::Substitute)
        };
        let others = self.classes.values().filter(|rule| !rule.class.borrows()).filter(cannot_wait);
        let mut kept: BTreeSet<usize> = BTreeSet::new();
        for rule in others {
            kept.extend(self.offers_of(&rule.class.name));
            if rule.on_empty == OnEmpty::Substitute {
                kept.extend(self.above.get(&rule.class.name).into_iter().flatten());
            }
        }
        for (name, rule) in &self.classes {
            if let Some(offers) = self.within.get_mut(name).filter(|_| rule.class.borrows()) {
                offers.retain(|p| !kept.contains(p));
            }
        }
    }

    /// Whether claims borrow is up to their class as it is now.
    pub(super) fn follow_classes(&mut self) {
        let borrows = |claim: &Claim| self.classes.get(&claim.class).map_or(claim.borrowed, |r| r.class.borrows());
        let other = self.claims.values().filter(|claim| claim.is_open() && claim.borrowed != borrows(claim));
        for id in other.map(|claim| claim.id).collect::<Vec<_>>() {
            self.leave_line(id);
            let Some(claim) = self.claims.get_mut(&id) else { continue };
            claim.borrowed = !claim.borrowed;
            let (waits, lent) = (claim.state == ClaimState::Queued, claim.borrowed && claim.state.is_live());
            if waits {
                self.join_line(id);
            }
            if lent {
                self.borrowed.insert(id)
            } else {
                self.borrowed.remove(&id)
            };
            self.changes.claims.insert(id);
        }
    }

    /// Idle GPUs for a borrower: of the fullest nodes that have them, where nobody else waits and no test is due.
    pub(super) fn find_to_borrow(&self, claim: &Claim) -> Option<Vec<Part>> {
        let size = self.classes.get(&claim.class)?.class.gpus_per_claim;
        let offers = self.lendable(self.offers_of(&claim.class));
        let mut taken: BTreeMap<u64, u32> = BTreeMap::new();
        for _ in 0..claim.count {
            let left = |free: u32, id: u64| free - taken.get(&id).copied().unwrap_or(0);
            let able = |&(free, id): &(u32, u64)| {
                left(free, id) >= size && self.nodes.get(&id).is_some_and(|node| !node.claimed_last)
            };
            let (_, node) = offers.iter().find_map(|p| self.shelves[*p].with_free(size).find(able))?;
            *taken.entry(node).or_default() += size;
        }
        taken.into_iter().map(|(node, gpus)| self.part(node, gpus)).collect()
    }

    /// Offers that borrowers may take of now: nobody else waits for their GPUs.
    fn lendable(&self, offers: &[usize]) -> Vec<usize> {
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

    /// Calls back what waiting claims need, those that wait longest first. Asking again calls back nothing more while they
    /// are the same.
    pub(super) fn call_back_for_waiting(&mut self, now_ms: i64) {
        if self.borrowed.is_empty() {
            return;
        }
        let mut lines: Vec<(i64, u64)> = Vec::new();
        for (class, line) in &self.waiting {
            if self.classes.get(class).is_some_and(|rule| !rule.class.borrows()) {
                lines.extend(line.iter().filter_map(|id| Some((self.claims.get(id)?.asked_at_ms, *id))));
            }
        }
        if lines.is_empty() {
            return;
        }
        lines.sort_unstable();
        let mut loans = self.loans();
        let mut called = Vec::new();
        // What does not fit, by class: as many units do not fit either.
        let mut stuck: BTreeMap<&str, u32> = BTreeMap::new();
        for claim in lines.iter().filter_map(|(_, id)| self.claims.get(id)) {
            if stuck.get(claim.class.as_str()).is_some_and(|count| claim.count >= *count) {
                continue;
            }
            match self.fits(claim, &loans) {
                Some(places) => {
                    places.into_iter().for_each(|(at, gpus)| loans[at].take(gpus, &claim.class, &mut called))
                }
                None => drop(stuck.insert(&claim.class, claim.count)),
            }
        }
        for (id, class) in called {
            self.call_back_claim(id, &format!("claims of {class} wait"), now_ms);
        }
    }

    /// Places of a waiting claim in `loans`, with the GPUs that it takes there: all of it, several units in one zone.
    fn fits(&self, claim: &Claim, loans: &[Loan]) -> Option<Vec<(usize, u32)>> {
        let offers = self.offers_of(&claim.class);
        let size = self.classes.get(&claim.class)?.class.gpus_per_claim;
        let place = |loan: &Loan| offers.iter().position(|p| *p == loan.offer);
        let mut able: Vec<(usize, usize)> =
            loans.iter().enumerate().filter_map(|(at, loan)| Some((place(loan)?, at))).collect();
        // Those first of which least has to be called back.
        able.sort_by_key(|&(place, at)| (place, std::cmp::Reverse(loans[at].free.saturating_sub(loans[at].taken))));
        let in_zone = |zone: Option<(&str, &str, &str)>| {
            let here: Vec<usize> = able
                .iter()
                .map(|(_, at)| *at)
                .filter(|at| zone.is_none_or(|zone| self.zone(loans[*at].offer) == zone))
                .collect();
            let mut taken: BTreeMap<usize, u32> = BTreeMap::new();
            for _ in 0..claim.count {
                let mut missing = size;
                while missing > 0 {
                    // A unit of several nodes takes whole ones.
                    let part = |at: usize| missing.min(loans[at].gpus);
                    let left = |at: usize| loans[at].left().saturating_sub(taken.get(&at).copied().unwrap_or(0));
                    let at = here.iter().copied().find(|at| left(*at) >= part(*at))?;
                    let gpus = part(at);
                    *taken.entry(at).or_default() += gpus;
                    missing -= gpus;
                }
            }
            Some(taken.into_iter().collect::<Vec<_>>())
        };
        if claim.count == 1 && able.iter().any(|(_, at)| loans[*at].gpus >= size) {
            return in_zone(None);
        }
        let mut zones: Vec<(&str, &str, &str)> = Vec::new();
        for &(_, at) in &able {
            let zone = self.zone(loans[at].offer);
            if !zones.contains(&zone) {
                zones.push(zone);
            }
        }
        zones.into_iter().find_map(|zone| in_zone(Some(zone)))
    }

    fn zone(&self, offer: usize) -> (&str, &str, &str) {
        let key = &self.offers[offer].key;
        (&key.provider, &key.region, &key.zone)
    }

    /// Nodes that have free or borrowed GPUs.
    fn loans(&self) -> Vec<Loan> {
        let mut of_node: BTreeMap<u64, Vec<(u64, u32, bool)>> = BTreeMap::new();
        for claim in self.borrowed.iter().filter_map(|id| self.claims.get(id)) {
            for part in &claim.parts {
                let loan = (claim.id, part.gpus.count(), claim.called_back_at_ms.is_some());
                of_node.entry(part.node).or_default().push(loan);
            }
        }
        let loan = |node: &Node| {
            let borrowed = of_node.get(&node.id).map_or(&[][..], Vec::as_slice);
            let able = node.takes_claims() && node.proof_at_ms.is_some();
            let offer = self.offer_of(node).filter(|_| able && (node.free.count() > 0 || !borrowed.is_empty()))?;
            let coming: u32 = borrowed.iter().filter(|loan| loan.2).map(|loan| loan.1).sum();
            let claims: Vec<(u64, u32)> =
                borrowed.iter().filter(|loan| !loan.2).map(|(claim, gpus, _)| (*claim, *gpus)).collect();
            let lent = claims.iter().map(|(_, gpus)| gpus).sum();
            Some(Loan { offer, gpus: node.gpus, free: node.free.count() + coming, lent, taken: 0, claims })
        };
        self.nodes.values().filter_map(loan).collect()
    }

    /// Borrowed GPUs of nodes that leave, are to be mended or whose test is due, and of nodes that waiting claims need.
    pub(super) fn tick_borrowed(&mut self, now_ms: i64) {
        if self.borrowed.is_empty() {
            return;
        }
        let leaves = |node: &&Node| node.care.is_some() || node.claimed_last || !node.takes_claims();
        let may_stay = |claim: &Claim, node: &Node| {
            self.offer_of(node).is_some_and(|offer| self.offers_of(&claim.class).contains(&offer))
        };
        let mut leaving = Vec::new();
        for claim in self.borrowed.iter().filter_map(|id| self.claims.get(id)) {
            let mut nodes = claim.parts.iter().filter_map(|part| self.nodes.get(&part.node));
            if nodes.any(|node| leaves(&node) || !may_stay(claim, node)) {
                leaving.push(claim.id);
            }
        }
        for id in leaving {
            self.call_back_claim(id, "its node is needed for something else", now_ms);
        }
        self.call_back_for_waiting(now_ms);
    }
}

/// Beside the time of a call-back, this much of a class's wait is left, milliseconds: the book looks at what is due now and
/// then.
const MARGIN_MS: i64 = 2_000;

/// A node with free or borrowed GPUs.
struct Loan {
    offer: usize,
    gpus: u32,
    /// GPUs that are free, or called back.
    free: u32,
    /// GPUs that can be called back.
    lent: u32,
    /// Of all these, GPUs that waiting claims will take.
    taken: u32,
    /// Claims that can be called back, with their GPUs.
    claims: Vec<(u64, u32)>,
}

impl Loan {
    /// GPUs for further claims.
    fn left(&self) -> u32 {
        (self.free + self.lent).saturating_sub(self.taken)
    }

    /// Takes GPUs for a class; what has to come back for that is added to `called`.
    fn take(&mut self, gpus: u32, class: &str, called: &mut Vec<(u64, String)>) {
        self.taken += gpus;
        while self.taken > self.free {
            let Some((claim, gpus)) = self.claims.pop() else { return };
            (self.free, self.lent) = (self.free + gpus, self.lent - gpus);
            called.push((claim, class.to_owned()));
        }
    }
}
