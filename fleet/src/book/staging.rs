//! Copies of snapshots on nodes: which are wanted, which are there, and which node a claim gets for them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::staged::{CopyState, Prediction, Presence, Readiness, Snapshot, StagedCopy, StagingRoom, Tier};

use super::{Book, Change, Claim, ClaimError, CopyChange, Node, NodeError, What};

/// What an agent says of one copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyFact {
    /// What is there.
    pub presence: Presence,
    /// How many bytes of it.
    pub bytes: u64,
    /// What stands in its way, for people.
    pub problem: String,
}

/// Longest start that can be told, seconds.
const READY_S_MAX: f64 = 86_400.0;

impl Book {
    /// Snapshots by name.
    #[must_use]
    pub fn snapshots(&self) -> &BTreeMap<String, Snapshot> {
        &self.snapshots
    }

    /// The snapshots, whole.
    pub fn set_snapshots(&mut self, snapshots: impl IntoIterator<Item = Snapshot>) {
        self.snapshots = snapshots.into_iter().map(|s| (s.name.clone(), s)).collect();
        self.named = self.snapshots.values().map(|s| (s.object.clone(), s.name.clone())).collect();
        let mut of_class: BTreeMap<&String, Vec<&String>> = BTreeMap::new();
        self.snapshots.values().for_each(|s| of_class.entry(&s.class).or_default().push(&s.name));
        let alone = of_class.into_iter().filter(|(_, names)| names.len() == 1);
        self.only = alone.map(|(class, names)| (class.clone(), names[0].clone())).collect();
    }

    /// The snapshot that an object is.
    #[must_use]
    pub fn snapshot_of_object(&self, object: &str) -> Option<&Snapshot> {
        self.snapshots.get(self.named.get(object)?)
    }

    /// What starts took.
    #[must_use]
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// What starts took.
    pub fn set_readiness(&mut self, readiness: Readiness) {
        self.readiness = readiness;
    }

    /// Says of which objects a node is to have copies, and where. Returns whether that is another order than before.
    ///
    /// # Errors
    /// The node is unknown.
    pub fn stage(&mut self, id: u64, wanted: &BTreeMap<String, Tier>, now_ms: i64) -> Result<bool, NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        if node.is_told(wanted) {
            return Ok(false);
        }
        let mut copies = node.copies.clone();
        for copy in copies.values_mut() {
            copy.wanted = None;
        }
        for (object, tier) in wanted {
            copies.entry(object.clone()).or_insert_with(|| StagedCopy::nothing(now_ms)).wanted = Some(*tier);
        }
        self.set_copies(id, copies, now_ms)?;
        self.edit_node(id, |node| node.desired.staging_changed(now_ms))?;
        Ok(true)
    }

    /// The agent of a node says what it can keep, and all that it has. Returns whether that is news.
    ///
    /// # Errors
    /// The node is unknown or runs another boot.
    pub fn staged(
        &mut self,
        id: u64,
        boot: &str,
        (room, facts): (&StagingRoom, &BTreeMap<String, CopyFact>),
        now_ms: i64,
    ) -> Result<bool, NodeError> {
        let node = self.of_boot(id, boot)?;
        let mut copies = node.copies.clone();
        for object in facts.keys().filter(|object| !node.copies.contains_key(*object)) {
            // It was there before anybody here asked for it.
            copies.insert(object.clone(), StagedCopy::nothing(now_ms));
        }
        for (object, copy) in &mut copies {
            let fact = facts.get(object).cloned().unwrap_or_default();
            (copy.presence, copy.bytes, copy.problem) = (fact.presence, fact.bytes, fact.problem);
        }
        let same = |(a, b): ((&String, &StagedCopy), (&String, &StagedCopy))| {
            a.0 == b.0 && StagedCopy { bytes: 0, ..a.1.clone() } == StagedCopy { bytes: 0, ..b.1.clone() }
        };
        let alike = copies.len() == node.copies.len() && copies.iter().zip(&node.copies).all(same);
        if alike && node.staging.as_ref() == Some(room) {
            // How far it has come is seen, and need not be written down each time.
            self.edit_unwritten(id, |node| node.copies = copies)?;
            return Ok(false);
        }
        self.set_copies(id, copies, now_ms)?;
        let room = room.clone();
        self.edit_node(id, |node| node.staging = Some(room))?;
        Ok(true)
    }

    /// The agent has started: it says anew what it can keep, and what is there.
    pub(super) fn forget_presence(&mut self, id: u64, now_ms: i64) -> Result<(), NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        if node.staging.is_none() && node.copies.is_empty() {
            return Ok(());
        }
        let mut copies = node.copies.clone();
        self.edit_node(id, |node| node.staging = None)?;
        for copy in copies.values_mut() {
            (copy.presence, copy.bytes) = (Presence::Absent, 0);
        }
        self.set_copies(id, copies, now_ms)
    }

    /// Notes each copy that is in another state, and drops those of which nothing is left.
    fn set_copies(&mut self, id: u64, mut copies: BTreeMap<String, StagedCopy>, now_ms: i64) -> Result<(), NodeError> {
        let node = self.nodes.get(&id).ok_or(NodeError::Unknown(id))?;
        let mut events = Vec::new();
        for (object, copy) in &mut copies {
            let from = node.copies.get(object).and_then(StagedCopy::state);
            let to = copy.state();
            if from != to {
                copy.since_ms = now_ms;
                let named = self.named.get(object).cloned();
                let snapshot = named.unwrap_or_else(|| object.chars().take(12).collect());
                let what = CopyChange { node: id, object: object.clone(), snapshot, from, to };
                let reason = if copy.problem.is_empty() { reason_of(to) } else { &copy.problem };
                events.push(Change { at_ms: now_ms, what: What::Copy(what), reason: reason.to_owned() });
            }
        }
        copies.retain(|_, copy| copy.state().is_some());
        self.changes.events.extend(events);
        self.edit_node(id, |node| node.copies = copies)
    }

    /// Notes where copies of a node lie, and which of them a claim could start from now.
    pub(super) fn index_copies(&mut self, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        let offer = self.offer_of(node).filter(|_| node.can_be_claimed());
        for (object, copy) in &node.copies {
            self.copies.entry(object.clone()).or_default().insert((Reverse(copy.presence), id));
            if let Some((tier, p)) = copy.presence.tier().zip(offer) {
                let shelves = self.claimable_copies.entry(object.clone()).or_default();
                shelves.entry((tier, p)).or_default().put(id, node.free.count(), node.claimed_last);
            }
        }
    }

    /// Forgets them, before the node changes.
    pub(super) fn unindex_copies(&mut self, id: u64) {
        let Some(node) = self.nodes.get(&id) else { return };
        let offer = self.offer_of(node);
        for (object, copy) in &node.copies {
            if let Some(nodes) = self.copies.get_mut(object) {
                nodes.remove(&(Reverse(copy.presence), id));
                if nodes.is_empty() {
                    self.copies.remove(object);
                }
            }
            if let Some((tier, p)) = copy.presence.tier().zip(offer)
                && let Some(shelves) = self.claimable_copies.get_mut(object)
            {
                if let Some(shelf) = shelves.get_mut(&(tier, p)) {
                    shelf.take(id, node.free.count(), node.claimed_last);
                }
                shelves.retain(|_, shelf| shelf.free_gpus() > 0);
                if shelves.is_empty() {
                    self.claimable_copies.remove(object);
                }
            }
        }
    }

    /// Nodes that have a copy of an object or are to, with what is there: those that have all of it first.
    pub fn copies_of(&self, object: &str) -> impl Iterator<Item = (Presence, u64)> + '_ {
        self.copies.get(object).into_iter().flatten().map(|(Reverse(presence), id)| (*presence, *id))
    }

    /// What a claim starts from: what it names, or the one snapshot of its class.
    pub(super) fn snapshot_of(&self, claim: &Claim) -> Option<&Snapshot> {
        match &claim.snapshot {
            Some(name) => self.snapshots.get(name),
            None => self.snapshots.get(self.only.get(&claim.class)?),
        }
    }

    /// The node where a claim of one unit costs least, of those of `offers`, the cheapest first, with as many GPUs free: its
    /// seconds to readiness, and what the GPUs cost for the life of a claim. Of nodes of one offer with copies in the same tier
    /// the fullest: how fast each one's disk was measured is noise beside whole nodes. `plain` is the one without a copy.
    pub(super) fn cheapest_start(&self, plain: u64, offers: &[usize], claim: &Claim, gpus: u32) -> u64 {
        let (Some(snapshot), Some(rule)) = (self.snapshot_of(claim), self.classes.get(&claim.class)) else {
            return plain;
        };
        let Some(copies) = self.claimable_copies.get(&snapshot.object) else { return plain };
        let usd = |tier: Option<Tier>, p: usize| {
            let ready_s = self.readiness.predict(&snapshot.name, tier, snapshot.ready_s(tier, None)).p50_s;
            let life_h = rule.claim_mean_s / 3600.0;
            let offer = &self.offers[p];
            ready_s * snapshot.second_usd(gpus, offer)
                + offer.gpu_price_usd_micros_per_h().usd() * f64::from(gpus) * life_h
        };
        let known = self.nodes.get(&plain).and_then(|node| Some((node, self.offer_of(node)?)));
        let Some((node, p)) = known else { return plain };
        let mut best = (usd(node.copies.get(&snapshot.object).and_then(|copy| copy.presence.tier()), p), plain);
        for tier in [Tier::Memory, Tier::Disk] {
            // Of one tier the cheapest offer costs least.
            let found = offers.iter().find_map(|p| Some((*p, copies.get(&(tier, *p))?.best_fit(gpus)?.1)));
            if let Some((p, id)) = found
                && usd(Some(tier), p) < best.0
            {
                best = (usd(Some(tier), p), id);
            }
        }
        best.1
    }

    /// Seconds to readiness of a claim on its nodes; none where it is not known what it starts from.
    pub(super) fn predict(&self, claim: &Claim) -> Option<Prediction> {
        let snapshot = self.snapshot_of(claim)?;
        let of = |part: &super::Part| {
            let node = self.nodes.get(&part.node)?;
            let tier = node.copies.get(&snapshot.object).and_then(|copy| copy.presence.tier());
            let ready_s = snapshot.ready_s(tier, node.staging.as_ref());
            Some(self.readiness.predict(&snapshot.name, tier, ready_s))
        };
        // It is ready when the slowest of its nodes is.
        claim.parts.iter().filter_map(of).max_by(|a, b| a.p50_s.total_cmp(&b.p50_s))
    }

    /// The client says that what it started is ready, so many seconds after the grant. Only the first word counts; returns
    /// what had been predicted.
    ///
    /// # Errors
    /// There is no such open claim, or the time is none.
    pub fn is_ready(&mut self, id: u64, ready_s: f64) -> Result<Option<Prediction>, ClaimError> {
        if !(0.0..=READY_S_MAX).contains(&ready_s) {
            let (value, most) = (ready_s.clamp(-1.0, 1e15) as i64, READY_S_MAX as i64);
            return Err(ClaimError::OutOfRange { name: "ready_s", value, least: 0, most });
        }
        let claim = self.claims.get_mut(&id).ok_or(ClaimError::UnknownClaim(id))?;
        if claim.ready_s.is_some() || !claim.state.is_live() {
            return Ok(None);
        }
        claim.ready_s = Some(ready_s);
        self.changes.claims.insert(id);
        Ok(claim.prediction)
    }

    /// The multiple of what was thought that a claim's start took, for [`Readiness::learn`].
    #[must_use]
    pub fn learnt(&self, claim: &Claim) -> Option<(String, Option<Tier>, f64)> {
        let (predicted, ready_s) = (claim.prediction?, claim.ready_s?);
        let snapshot = self.snapshot_of(claim)?;
        let rooms = claim.parts.iter().map(|part| self.nodes.get(&part.node).and_then(|n| n.staging.as_ref()));
        let thought_s = rooms.map(|room| snapshot.ready_s(predicted.tier, room)).fold(0.0, f64::max);
        (thought_s > 0.0).then(|| (snapshot.name.clone(), predicted.tier, ready_s / thought_s))
    }
}

impl Node {
    /// Whether exactly these copies are wanted on it already.
    #[must_use]
    pub fn is_told(&self, wanted: &BTreeMap<String, Tier>) -> bool {
        let before = self.copies.iter().filter_map(|(object, copy)| Some((object, copy.wanted?)));
        before.eq(wanted.iter().map(|(object, tier)| (object, *tier)))
    }
}

fn reason_of(state: Option<CopyState>) -> &'static str {
    match state {
        Some(CopyState::Wanted) => "the staging plan wants it",
        Some(CopyState::Fetching) => "the host fetches it",
        Some(CopyState::Verified) => "it is on the disk, verified",
        Some(CopyState::Hot) => "it is in memory",
        Some(CopyState::Evicting) => "the staging plan wants others",
        None => "it is gone",
    }
}
