//! Who waits, in which order they are served, and who may pass whom.
//!
//! The claims of a class are served in their order. One that does not fit is passed by younger ones that are smaller and do,
//! so that GPUs are not idle for a gang that is many nodes away; until they have taken as many GPUs as it asks for itself.
//! From then on the first in line holds a zone: the one with the most free GPUs of those whose nodes are enough for it, once
//! they are free. No claim of its class gets GPUs there before it. Where no zone has enough, it holds nothing: it waits for
//! nodes that are still to come, and what is free would stay idle. (Slurm's backfill keeps the first jobs of its queue from
//! being delayed in the same way, by the time at which they would start; claims here have no known end.)

use std::collections::{BTreeMap, VecDeque};

use crate::node::NodeState;

use super::{Book, Claim, ClaimError, Part};

/// The claims of a class that wait.
#[derive(Debug, Default)]
pub(super) struct Line {
    ids: VecDeque<u64>,
    /// How many there are of each number of units.
    sizes: BTreeMap<u32, usize>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn first(&self) -> Option<u64> {
        self.ids.front().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &u64> {
        self.ids.iter()
    }

    /// Units of the smallest claim.
    fn smallest(&self) -> u32 {
        self.sizes.keys().next().copied().unwrap_or(u32::MAX)
    }

    /// A claim stands in line: numbers rise with time.
    pub(super) fn join(&mut self, id: u64, count: u32) {
        let place = self.ids.partition_point(|c| *c < id);
        self.ids.insert(place, id);
        *self.sizes.entry(count).or_default() += 1;
    }

    /// A claim leaves, if it was there.
    pub(super) fn leave(&mut self, id: u64, count: u32) {
        let Ok(place) = self.ids.binary_search(&id) else { return };
        self.ids.remove(place);
        if let Some(same) = self.sizes.get_mut(&count) {
            *same -= 1;
            if *same == 0 {
                self.sizes.remove(&count);
            }
        }
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
type Zone = (String, String, String);

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
        self.find(claim, self.held_zone(&claim.class).as_ref())
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
    fn held_zone(&self, class: &str) -> Option<Zone> {
        let first = self.claims.get(&self.waiting.get(class)?.first()?)?;
        let wanted = first.count.saturating_mul(self.classes.get(class)?.class.gpus_per_claim);
        if first.borrowed || first.passed_gpus < wanted {
            return None;
        }
        // GPUs there that will be free, and that are.
        let mut zones: BTreeMap<Zone, (u64, u64)> = BTreeMap::new();
        let within = self.within.get(class)?;
        for node in self.nodes.values() {
            let Some(offer) = self.offer_of(node).filter(|p| within.contains(p)) else { continue };
            let comes = node.state.is_arriving() || matches!(node.state, NodeState::Idle | NodeState::Claimed);
            if comes && !node.out {
                let zone = zones.entry(self.zone_of(offer)).or_default();
                zone.0 += u64::from(node.gpus);
                zone.1 += u64::from(node.free.count());
            }
        }
        let enough = zones.into_iter().filter(|(_, (all, _))| *all >= u64::from(wanted));
        enough.max_by_key(|(_, (_, free))| *free).map(|(zone, _)| zone)
    }

    pub(super) fn zone_of(&self, offer: usize) -> Zone {
        let key = &self.offers[offer].key;
        (key.provider.clone(), key.region.clone(), key.zone.clone())
    }

    /// Grants what fits of the claims of a class, in their order.
    pub(super) fn serve_class(&mut self, class: &str, now_ms: i64) {
        // As many units did not fit.
        let (mut place, mut too_many) = (0, u32::MAX);
        loop {
            let Some(line) = self.waiting.get(class).filter(|line| line.smallest() < too_many) else { return };
            let Some(&id) = line.ids.get(place) else { return };
            let Some(claim) = self.claims.get(&id).filter(|claim| claim.count < too_many) else {
                place += 1;
                continue;
            };
            let count = claim.count;
            let held = if place == 0 { None } else { self.held_zone(class) };
            let Some(parts) = self.find(claim, held.as_ref()) else {
                (place, too_many) = (place + 1, count);
                continue;
            };
            if place > 0 {
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
        *self.waiting_of.entry(claim.caller.clone()).or_default() += 1;
    }

    /// A claim leaves its line.
    pub(super) fn leave_line(&mut self, id: u64) {
        let Some(claim) = self.claims.get(&id) else { return };
        let Some(line) = self.waiting.get_mut(&claim.class) else { return };
        let before = line.len();
        line.leave(id, claim.count);
        if line.len() < before
            && let Some(mine) = self.waiting_of.get_mut(&claim.caller)
        {
            *mine -= 1;
            if *mine == 0 {
                self.waiting_of.remove(&claim.caller);
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
        // Of both queues: a look at each claim is needed only where that is too many.
        let mine = self.waiting_of.get(&claim.caller).copied().unwrap_or(0);
        if claim.caller.is_empty() || mine < free {
            return Ok(());
        }
        let is_mine = |id: &&u64| self.claims.get(id).is_some_and(|c| c.caller == claim.caller);
        let mine = lines().map(|line| line.iter().filter(is_mine).count()).sum();
        if mine >= free { full(Queue::Caller, mine) } else { Ok(()) }
    }
}
