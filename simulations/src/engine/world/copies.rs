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
    /// By object, when it is whole on the disk, and in memory, ms.
    done_ms: BTreeMap<String, (u64, u64)>,
    /// When it has fetched all that it was told to.
    free_ms: u64,
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
    pub(super) fn stage(&mut self, outlook: Option<Outlook>) -> Result<(), SimError> {
        match self.staging().map(|staging| staging.stager) {
            Some(Stager::Plan) => {
                let orders = decide(&self.book, &outlook.unwrap_or_default());
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

    /// A machine hears what it is to have, if that is news; one that has passed its gate says what it can keep.
    pub(super) fn copies_ordered(&mut self, machine: u32) -> Result<(), SimError> {
        let Some(staging) = self.staging() else { return Ok(()) };
        let fetch_bytes_per_s = staging.room.fetch_bytes_per_s.unwrap_or(1e9);
        let load_bytes_per_s = staging.room.disk_bytes_per_s.unwrap_or(1e9);
        let known = &self.machines[machine as usize];
        let Some(node) = self.book.nodes().get(&known.node) else { return Ok(()) };
        if known.proven_ms.is_none() || !node.state.in_service() {
            return Ok(());
        }
        if node.staging.is_some() && node.desired.staging == known.copies.version {
            return Ok(());
        }
        let bytes: BTreeMap<&str, u64> = self.book.snapshots().values().map(|s| (s.object.as_str(), s.bytes)).collect();
        let wanted: Vec<(String, Tier, u64)> = node
            .copies
            .iter()
            .filter_map(|(object, copy)| Some((object.clone(), copy.wanted?, *bytes.get(object.as_str())?)))
            .collect();
        let version = node.desired.staging;
        let (now_ms, measured) = (self.now_ms, self.measured());
        let copies = &mut self.machines[machine as usize].copies;
        copies.version = version;
        copies.done_ms.retain(|object, _| wanted.iter().any(|(wanted, ..)| wanted == object));
        copies.free_ms = copies.free_ms.max(now_ms);
        let mut due = Vec::new();
        for (object, tier, bytes) in wanted {
            let bytes = bytes as f64;
            let (disk_ms, memory_ms) = copies.done_ms.entry(object).or_insert((0, u64::MAX));
            if *disk_ms == 0 {
                copies.free_ms += ms(bytes / fetch_bytes_per_s);
                *disk_ms = copies.free_ms.max(1);
                self.out.fetched_bytes += if measured { bytes } else { 0.0 };
                due.push(*disk_ms);
            }
            match tier {
                Tier::Disk => *memory_ms = u64::MAX,
                Tier::Memory if *memory_ms == u64::MAX => {
                    copies.free_ms = copies.free_ms.max(*disk_ms) + ms(bytes / load_bytes_per_s);
                    *memory_ms = copies.free_ms;
                    due.push(*memory_ms);
                }
                Tier::Memory => {}
            }
        }
        due.into_iter().for_each(|at| self.queue.push(at, Event::Copies(machine)));
        self.copies_come(machine)
    }

    /// A machine says what is there.
    pub(super) fn copies_come(&mut self, machine: u32) -> Result<(), SimError> {
        let Some(room) = self.staging().map(|staging| staging.room.clone()) else { return Ok(()) };
        let known = &self.machines[machine as usize];
        let node = known.node;
        if self.book.nodes().get(&node).is_none_or(|node| node.boot.is_none()) {
            return Ok(());
        }
        let fact = |(object, (disk_ms, memory_ms)): (&String, &(u64, u64))| {
            let presence = match self.now_ms {
                now if now >= *memory_ms => Presence::Memory,
                now if now >= *disk_ms => Presence::Disk,
                _ => Presence::Fetching,
            };
            (object.clone(), CopyFact { presence, ..CopyFact::default() })
        };
        let facts: BTreeMap<String, CopyFact> = known.copies.done_ms.iter().map(fact).collect();
        let said = self.book.staged(node, BOOT, (&room, &facts), self.book_ms());
        said.map(drop).map_err(|source| SimError::Node { at_s: self.now_s(), source })
    }
}
