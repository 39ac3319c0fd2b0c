//! Copies of snapshots on machines: they come as fast as a host fetches, one after the other. Which are wanted is decided by
//! `control`, or by a simple rule beside it; which serve a claim, by the book.

use std::collections::BTreeMap;

use control::staging::{Outlook, decide};
use fleet::book::{CopyFact, Node};
use fleet::{Presence, Snapshot, Tier};

use super::super::events::Event;
use super::super::{SimError, Stager, Staging};
use super::machines::BOOT;
use super::{World, ms};

/// Copies of a machine.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// The order that it heard last.
    version: i64,
    /// What is wanted, in the order in which it is brought: what is left of each to be fetched and to be read into memory.
    wanted: Vec<Coming>,
    /// Up to when that is counted, ms.
    at_ms: u64,
    /// When it says next what is there, ms.
    due_ms: Option<u64>,
}

/// A copy that comes.
#[derive(Debug, Clone, PartialEq)]
struct Coming {
    object: String,
    tier: Tier,
    fetch_bytes: f64,
    load_bytes: f64,
}

impl Copies {
    /// Brings copies for a while, one after the other; bytes that were fetched.
    fn advance(&mut self, now_ms: u64, fetch_bytes_per_s: f64, load_bytes_per_s: f64) -> f64 {
        let mut left_s = now_ms.saturating_sub(self.at_ms) as f64 / 1000.0;
        let mut fetched = 0.0;
        for copy in &mut self.wanted {
            let fetch = copy.fetch_bytes.min(left_s * fetch_bytes_per_s);
            copy.fetch_bytes -= fetch;
            fetched += fetch;
            left_s -= fetch / fetch_bytes_per_s;
            if copy.tier == Tier::Memory && copy.fetch_bytes <= 0.0 {
                let load = copy.load_bytes.min(left_s * load_bytes_per_s);
                copy.load_bytes -= load;
                left_s -= load / load_bytes_per_s;
            }
        }
        self.at_ms = self.at_ms.max(now_ms);
        fetched
    }

    /// When the next copy is whole where it is wanted or on the disk, ms.
    fn next_ms(&self, fetch_bytes_per_s: f64, load_bytes_per_s: f64) -> Option<u64> {
        let next = self.wanted.iter().find(|copy| copy.left() > 0.0)?;
        let rest_s = match next.fetch_bytes {
            fetch if fetch > 0.0 => fetch / fetch_bytes_per_s,
            _ => next.load_bytes / load_bytes_per_s,
        };
        Some(self.at_ms + ms(rest_s).max(1))
    }
}

impl Coming {
    fn left(&self) -> f64 {
        self.fetch_bytes + if self.tier == Tier::Memory { self.load_bytes } else { 0.0 }
    }

    fn presence(&self) -> Presence {
        match self.tier {
            // Bytes are whole; what is less is rounding.
            _ if self.fetch_bytes >= 1.0 => Presence::Fetching,
            Tier::Memory if self.load_bytes < 1.0 => Presence::Memory,
            Tier::Memory | Tier::Disk => Presence::Disk,
        }
    }
}

/// What the rules beside the plan remember.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// When each object was last asked for, ms.
    asked_ms: BTreeMap<String, u64>,
    /// When each last ran on a node, ms.
    ran_ms: BTreeMap<u64, BTreeMap<String, u64>>,
}

impl World<'_> {
    fn staging(&self) -> Option<&Staging> {
        self.setup.staging.as_ref()
    }

    /// What a client starts from: of its class's snapshots by their shares, the same each time that it asks.
    pub(super) fn snapshot_of(&mut self, class: usize, end_ms: u64) -> Option<String> {
        let name = &self.rules[class].class.name;
        let of_class: Vec<&Snapshot> = self.staging()?.snapshots.iter().filter(|s| s.class == *name).collect();
        let total: f64 = of_class.iter().map(|s| s.share).sum();
        // Spread as evenly as random numbers, and none is drawn: with and without copies the run is the same.
        let mixed = (end_ms ^ ((class as u64) << 48)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut left = (mixed >> 11) as f64 / (1_u64 << 53) as f64 * total;
        let chosen = of_class.iter().find(|s| {
            left -= s.share;
            left < 0.0
        });
        let chosen = chosen.or(of_class.last()).map(|s| (s.name.clone(), s.object.clone()))?;
        self.remembered.asked_ms.insert(chosen.1, self.now_ms);
        Some(chosen.0)
    }

    /// A claim was granted: how soon it is ready, and what stays where it runs.
    pub(super) fn starts_from_copy(&mut self, claim: u64, asked_ms: u64) -> Result<(), SimError> {
        let Some(found) = self.book.claims().get(&claim) else { return Ok(()) };
        let (Some(ready), Some(name)) = (found.prediction, found.snapshot.clone()) else { return Ok(()) };
        let nodes: Vec<u64> = found.parts.iter().map(|part| part.node).collect();
        if asked_ms >= self.measure_ms {
            let wait_s = (self.now_ms - asked_ms) as f64 / 1000.0;
            self.out.starts.add(wait_s + ready.p50_s);
            self.out.started_from[ready.tier.map_or(0, |tier| 1 + tier as usize)] += 1;
        }
        if self.staging().is_some_and(|staging| staging.stager == Stager::Cache) {
            let object = self.book.snapshots().get(&name).map(|snapshot| snapshot.object.clone());
            for (node, object) in nodes.into_iter().zip(object.into_iter().cycle()) {
                self.remembered.ran_ms.entry(node).or_default().insert(object, self.now_ms);
                let order = self.remembered.ran_ms[&node].iter().map(|(object, at)| (*at, object.clone()));
                let fits = self.newest_that_fit(order.collect());
                self.order(node, &fits)?;
            }
        }
        Ok(())
    }

    /// Of objects by their moments, the newest that a disk has room for.
    fn newest_that_fit(&self, mut by_time: Vec<(u64, String)>) -> BTreeMap<String, Tier> {
        by_time.sort_by(|a, b| b.cmp(a));
        let bytes: BTreeMap<&str, u64> = self.book.snapshots().values().map(|s| (s.object.as_str(), s.bytes)).collect();
        let mut left = self.staging().map_or(0, |staging| staging.room.disk_bytes);
        let mut fits = BTreeMap::new();
        for (_, object) in by_time {
            if let Some(rest) = left.checked_sub(bytes.get(object.as_str()).copied().unwrap_or(u64::MAX)) {
                left = rest;
                fits.insert(object, Tier::Disk);
            }
        }
        fits
    }

    fn order(&mut self, node: u64, wanted: &BTreeMap<String, Tier>) -> Result<(), SimError> {
        let ordered = self.book.stage(node, wanted, self.book_ms());
        ordered.map(drop).map_err(|source| SimError::Node { at_s: self.now_s(), source })
    }

    /// Says what hosts are to have.
    pub(super) fn stage(&mut self) -> Result<(), SimError> {
        match self.staging().map(|staging| staging.stager) {
            Some(Stager::Plan) => {
                let orders = match &self.outlook {
                    Some(outlook) => decide(&self.book, outlook),
                    None => decide(&self.book, &Outlook::default()),
                };
                let now_ms = self.book_ms();
                orders.carry_out(&mut self.book, now_ms);
            }
            Some(Stager::Recent) => {
                let idle = |node: &&Node| node.takes_claims() && node.free.count() > 0;
                let nodes: Vec<u64> = self.book.nodes().values().filter(idle).map(|node| node.id).collect();
                for id in nodes {
                    let offer = self.book.nodes().get(&id).and_then(|node| self.book.offer_of(node));
                    let runs = |s: &&Snapshot| offer.is_some_and(|p| self.book.offers_of(&s.class).contains(&p));
                    let asked = |s: &Snapshot| Some((*self.remembered.asked_ms.get(&s.object)?, s.object.clone()));
                    let order = self.book.snapshots().values().filter(runs).filter_map(asked).collect();
                    let fits = self.newest_that_fit(order);
                    self.order(id, &fits)?;
                }
            }
            Some(Stager::Nothing | Stager::Cache) | None => {}
        }
        Ok(())
    }

    /// What a host fetches, and reads off its disk, bytes a second.
    fn copy_rates(&self) -> (f64, f64) {
        let of = |rate: Option<f64>| rate.filter(|rate| *rate > 0.0).unwrap_or(1e9);
        self.staging().map_or((1e9, 1e9), |s| (of(s.room.fetch_bytes_per_s), of(s.room.disk_bytes_per_s)))
    }

    /// A machine hears what it is to have, if that is news; one that has passed its gate says what it can keep.
    pub(super) fn copies_ordered(&mut self, machine: u32) -> Result<(), SimError> {
        if self.staging().is_none() {
            return Ok(());
        }
        let known = &self.machines[machine as usize];
        let Some(node) = self.book.nodes().get(&known.node) else { return Ok(()) };
        if known.proven_ms.is_none() || !node.state.in_service() {
            return Ok(());
        }
        if node.staging.is_some() && node.desired.staging == known.copies.version {
            return Ok(());
        }
        let (version, order) = (node.desired.staging, control::staging::order(&self.book, node));
        self.bring_copies(machine);
        let copies = &mut self.machines[machine as usize].copies;
        copies.version = version;
        let coming = |copy: &protocol::staging::CopyOrder| {
            let before = copies.wanted.iter().find(|known| known.object == copy.object);
            let bytes = copy.bytes as f64;
            let fetch_bytes = before.map_or(bytes, |known| known.fetch_bytes);
            // What is wanted on the disk alone leaves memory.
            let load_bytes = before.filter(|known| known.tier == Tier::Memory).map_or(bytes, |known| known.load_bytes);
            Coming { object: copy.object.clone(), tier: copy.tier, fetch_bytes, load_bytes }
        };
        copies.wanted = order.copies.iter().map(coming).collect();
        self.copies_come(machine)
    }

    /// Counts what a machine has brought since it was last looked at.
    fn bring_copies(&mut self, machine: u32) {
        let (fetch, load) = self.copy_rates();
        let fetched = self.machines[machine as usize].copies.advance(self.now_ms, fetch, load);
        self.out.fetched_bytes += if self.measured() { fetched } else { 0.0 };
    }

    /// A machine says what is there, and goes on.
    pub(super) fn copies_come(&mut self, machine: u32) -> Result<(), SimError> {
        let Some(room) = self.staging().map(|staging| staging.room.clone()) else { return Ok(()) };
        self.bring_copies(machine);
        let (fetch, load) = self.copy_rates();
        let known = &self.machines[machine as usize];
        let node = known.node;
        if self.book.nodes().get(&node).is_none_or(|node| node.boot.is_none()) {
            return Ok(());
        }
        let fact = |copy: &Coming| {
            let there = self.book.snapshot_of_object(&copy.object).map_or(0, |s| s.bytes);
            let bytes = there.saturating_sub(copy.fetch_bytes as u64);
            (copy.object.clone(), CopyFact { presence: copy.presence(), bytes, problem: String::new() })
        };
        let facts: BTreeMap<String, CopyFact> = known.copies.wanted.iter().map(fact).collect();
        let copies = &mut self.machines[machine as usize].copies;
        copies.due_ms = copies.due_ms.filter(|due| *due > self.now_ms);
        if let Some(at) = copies.next_ms(fetch, load).filter(|at| copies.due_ms.is_none_or(|due| *at < due)) {
            copies.due_ms = Some(at);
            self.queue.push(at, Event::Copies(machine));
        }
        let said = self.book.staged(node, BOOT, (&room, &facts), self.book_ms());
        said.map(drop).map_err(|source| SimError::Node { at_s: self.now_s(), source })
    }
}
