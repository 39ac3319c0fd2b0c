//! Which drivers and images a cell has, and since when: what is new in it is being rolled out.

use std::collections::BTreeMap;

use fleet::book::{Book, Node};
use fleet::{Cause, Cell};
use serde::{Deserialize, Serialize};

/// By cell, each driver and image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Rollouts(BTreeMap<Cell, BTreeMap<Release, Version>>);

/// A driver or an image in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    /// When it was first seen, milliseconds since 1970; 0 where nothing was there before it.
    first_ms: i64,
    /// When it was last seen, to the hour, milliseconds since 1970.
    last_ms: i64,
}

/// What no node has had for so long is forgotten, milliseconds.
const KEPT_MS: i64 = 30 * 86_400_000;
const HOUR_MS: i64 = 3_600_000;
/// Versions that are kept of a cell: those that were seen last.
const VERSIONS_MAX: usize = 64;
/// A cell in which more than this became new within a day names them by host or by build: that is no rollout.
const NEW_A_DAY_MAX: usize = 6;

/// A driver or an image: what is rolled out. Written as its cause is, `driver:580.82.09`.
type Release = Cause;

fn releases(node: &Node) -> impl Iterator<Item = Release> {
    let driver = node.driver.as_ref().map(|d| Cause::Driver(d.clone()));
    driver.into_iter().chain(node.image.as_ref().map(|i| Cause::Image(i.clone())))
}

impl Rollouts {
    /// Notes what the nodes have now.
    pub(super) fn look(&mut self, book: &Book, now_ms: i64) {
        let before = self.clone();
        for node in book.nodes().values().filter(|n| n.driver.is_some() || n.image.is_some()) {
            let cell = Cell::of(&node.offer);
            for release in releases(node) {
                // The first driver of a cell, as the first image, takes no other's place.
                let kind = |v: &Release| std::mem::discriminant(v) == std::mem::discriminant(&release);
                let replaces = before.0.get(&cell).is_some_and(|known| known.keys().any(kind));
                let first_ms = if replaces { now_ms } else { 0 };
                let seen = self
                    .0
                    .entry(cell.clone())
                    .or_default()
                    .entry(release)
                    .or_insert(Version { first_ms, last_ms: now_ms });
                if now_ms - seen.last_ms >= HOUR_MS {
                    seen.last_ms = now_ms;
                }
            }
        }
        for known in self.0.values_mut() {
            known.retain(|_, v| now_ms - v.last_ms < KEPT_MS);
            while known.len() > VERSIONS_MAX {
                let oldest = known.iter().min_by_key(|(_, v)| v.last_ms).map(|(name, _)| name.clone());
                oldest.and_then(|name| known.remove(&name));
            }
        }
        self.0.retain(|_, known| !known.is_empty());
    }

    /// What is being rolled out in a cell.
    fn new_in(&self, cell: &Cell, rollout_s: f64, now_ms: i64) -> impl Iterator<Item = &Release> {
        let within = move |v: &Version, s: f64| ((now_ms - v.first_ms) as f64) < s * 1e3;
        let known = self.0.get(cell);
        let a_day = known.map_or(0, |k| k.values().filter(|v| within(v, 86_400.0)).count());
        let new = known.into_iter().flatten().filter(move |(_, v)| a_day <= NEW_A_DAY_MAX && within(v, rollout_s));
        new.map(|(name, _)| name)
    }

    /// Whether something is being rolled out in a cell.
    pub(super) fn runs(&self, cell: &Cell, rollout_s: f64, now_ms: i64) -> bool {
        self.new_in(cell, rollout_s, now_ms).next().is_some()
    }

    /// Whether a node has what is being rolled out.
    pub(super) fn has(&self, node: &Node, rollout_s: f64, now_ms: i64) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let cell = Cell::of(&node.offer);
        self.new_in(&cell, rollout_s, now_ms).any(|new| releases(node).any(|v| v == *new))
    }
}
