//! Who waits, in which order they are served, and who may pass whom.
//!
//! The claims of a class are served in their order. One that does not fit is passed by younger ones that are smaller and do,
//! so that GPUs are not idle for a gang that is many nodes away; until they have taken as many GPUs as it asks for itself.
//! From then on the first in line holds a zone: the one with the most free GPUs of those whose nodes are enough for it, once
//! they are free. No claim of its class gets GPUs there before it. Where no zone has enough, it holds nothing: it waits for
//! nodes that are still to come, and what is free would stay idle. (Slurm's backfill keeps the first jobs of its queue from
//! being delayed in the same way, by the time at which they would start; claims here have no known end.)

use std::collections::{BTreeMap, BTreeSet};

use crate::admission::usable_share;
use crate::class::Class;

use super::{Book, Claim, ClaimError, Part};

/// The claims of a class that wait.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Numbers rise with time.
    ids: BTreeSet<u64>,
    /// The same by their units.
    sizes: BTreeMap<u32, BTreeSet<u64>>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.ids.first().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &u64> {
        self.ids.iter()
    }

    /// Units of the smallest claim.
    fn smallest(&self) -> u32 {
        self.sizes.keys().next().copied().unwrap_or(u32::MAX)
    }

    /// The first claim after another of fewer units than `below`.
    fn next(&self, after: u64, below: u32) -> Option<u64> {
        let of_size = |ids: &BTreeSet<u64>| ids.range(after + 1..).next().copied();
        self.sizes.range(..below).filter_map(|(_, ids)| of_size(ids)).min()
    }

    pub(super) fn join(&mut self, id: u64, count: u32) {
        self.ids.insert(id);
        self.sizes.entry(count).or_default().insert(id);
    }

    /// A claim leaves. Returns whether it was there.
    pub(super) fn leave(&mut self, id: u64, count: u32) -> bool {
        if let Some(same) = self.sizes.get_mut(&count) {
            same.remove(&id);
            if same.is_empty() {
                self.sizes.remove(&count);
            }
        }
        self.ids.remove(&id)
    }
}

/// Whose share of the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Of the class.
    Class,
    /// Of the caller.
    Caller,
}

impl Queue {
    /// The word that says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Caller => "caller",
        }
    }
}

/// Provider, region and zone.
pub(super) type Zone<'a> = (&'a str, &'a str, &'a str);

/// GPUs of a node with so many free ones that claims of a class can use.
pub(super) fn usable_gpus(gpus: u32, free: u32, class: &Class) -> u64 {
    usable_share(gpus, free, class).map_or(0, |share| (share * f64::from(gpus)).round() as u64)
}

impl Book {
    /// GPUs for a new claim: there is nobody that waits for fewer, and the first in line is not held up.
    pub(super) fn find_for_new(&self, claim: &Claim) -> Option<Vec<Part>> {
        let Some(line) = self.waiting.get(&claim.class).filter(|line| !line.is_empty()) else {
            return self.find(claim, None);
        };
        // One as small that waits did not fit either.
        if claim.count >= line.smallest() {
            return None;
        }
        self.find_beside_first(claim)
    }

    /// GPUs for a claim that is not the first in line: not in the zone that the first holds.
    fn find_beside_first(&self, claim: &Claim) -> Option<Vec<Part>> {
        let found = self.find(claim, None)?;
        match self.held_zone(&claim.class) {
            None => Some(found),
            held => self.find(claim, held),
        }
    }

    /// The first in line was passed by a claim.
    pub(super) fn passed(&mut self, class: &str, by: u32) {
        let Some(first) = self.waiting.get(class).and_then(Line::first) else { return };
        let size = self.classes.get(class).map_or(1, |rule| rule.class.gpus_per_claim);
        if let Some(claim) = self.claims.get_mut(&first)
            && claim.passed_gpus < claim.count.saturating_mul(size)
        {
            claim.passed_gpus = claim.passed_gpus.saturating_add(by.saturating_mul(size));
            self.changes.claims.insert(first);
        }
    }

    /// The zone that the first in line holds, if it was passed often enough.
    fn held_zone(&self, class: &str) -> Option<Zone<'_>> {
        let first = self.claims.get(&self.waiting.get(class)?.first()?)?;
        let rule = &self.classes.get(class)?.class;
        let wanted = first.count.saturating_mul(rule.gpus_per_claim);
        if first.borrowed || first.passed_gpus < wanted {
            return None;
        }
        // GPUs there that such claims can use once they are free, and now.
        let mut zones: BTreeMap<Zone<'_>, (u64, u64)> = BTreeMap::new();
        let within = self.within.get(class)?;
        for node in self.nodes.values() {
            let Some(offer) = self.offer_of(node).filter(|p| within.contains(p)) else { continue };
            if (node.state.is_arriving() || node.state.in_service()) && !node.out {
                let zone = zones.entry(self.zone_of(offer)).or_default();
                zone.0 += usable_gpus(node.gpus, node.gpus, rule);
                zone.1 += usable_gpus(node.gpus, node.free.count(), rule);
            }
        }
        let enough = zones.into_iter().filter(|(_, (all, _))| *all >= u64::from(wanted));
        enough.max_by_key(|(_, (_, free))| *free).map(|(zone, _)| zone)
    }

    pub(super) fn zone_of(&self, offer: usize) -> Zone<'_> {
        let key = &self.offers[offer].key;
        (&key.provider, &key.region, &key.zone)
    }

    /// Grants what fits of the claims of a class, in their order.
    pub(super) fn serve_class(&mut self, class: &str, now_ms: i64) {
        // As many units did not fit.
        let (mut last, mut too_many) = (0, u32::MAX);
        while let Some(id) = self.waiting.get(class).and_then(|line| line.next(last, too_many)) {
            last = id;
            let Some(claim) = self.claims.get(&id) else { continue };
            let count = claim.count;
            let is_first = self.waiting.get(class).and_then(Line::first) == Some(id);
            let found = if is_first { self.find(claim, None) } else { self.find_beside_first(claim) };
            let Some(parts) = found else {
                too_many = count;
                continue;
            };
            if !is_first {
                self.passed(class, count);
            }
            self.leave_line(id);
            self.grant(id, parts, false, now_ms);
        }
    }

    /// A claim stands in line.
    pub(super) fn join_line(&mut self, id: u64) {
        let Some(claim) = self.claims.get(&id) else { return };
        self.waiting.entry(claim.class.clone()).or_default().join(id, claim.count);
        *self.waiting_of.entry((claim.caller.clone(), claim.borrowed)).or_default() += 1;
    }

    /// A claim leaves its line, if it is in one.
    pub(super) fn leave_line(&mut self, id: u64) {
        let Some(claim) = self.claims.get(&id) else { return };
        let left = self.waiting.get_mut(&claim.class).is_some_and(|line| line.leave(id, claim.count));
        let key = (claim.caller.clone(), claim.borrowed);
        if left && let Some(mine) = self.waiting_of.get_mut(&key) {
            *mine -= 1;
            if *mine == 0 {
                self.waiting_of.remove(&key);
            }
        }
    }

    /// A class, and a caller, may have as many claims wait as there are places free: one alone has a half of the queue, and
    /// whoever comes anew always finds a place (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
    /// switches", 1998, with factor 1). Borrowers stand in no other's way: they have a queue of their own.
    pub(super) fn refuse_where_full(&self, claim: &Claim) -> Result<(), ClaimError> {
        let borrows = |class: &String| self.classes.get(class).is_some_and(|rule| rule.class.borrows());
        let lines = || self.waiting.iter().filter(|(class, _)| borrows(class) == claim.borrowed).map(|(_, line)| line);
        let all: usize = lines().map(Line::len).sum();
        let free = self.limits.queued_claims_max.saturating_sub(all);
        let full = |of, waiting| Err(ClaimError::QueueFull { of, waiting, all });
        let of_class = self.queue(&claim.class);
        if of_class >= free {
            return full(Queue::Class, of_class);
        }
        if claim.caller.is_empty() {
            return Ok(());
        }
        let mine = self.waiting_of.get(&(claim.caller.clone(), claim.borrowed)).copied().unwrap_or(0);
        if mine >= free { full(Queue::Caller, mine) } else { Ok(()) }
    }
}
