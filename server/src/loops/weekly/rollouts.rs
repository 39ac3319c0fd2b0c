//! Which drivers and images a cell has, and since when: what is new in it is being rolled out.

use std::collections::BTreeMap;

use fleet::book::{Book, Node, cell_of};
use serde::{Deserialize, Serialize};

/// By cell, each driver and image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Rollouts(BTreeMap<String, BTreeMap<String, Version>>);

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

fn versions(node: &Node) -> impl Iterator<Item = String> {
    let driver = node.driver.as_ref().map(|d| format!("driver:{d}"));
    driver.into_iter().chain(node.image.as_ref().map(|i| format!("image:{i}")))
}

impl Rollouts {
    /// Notes what the nodes have now.
    pub(super) fn look(&mut self, book: &Book, now_ms: i64) {
        let before = self.clone();
        for node in book.nodes().values().filter(|n| n.driver.is_some() || n.image.is_some()) {
            let cell = cell_of(&node.offer);
            for version in versions(node) {
                // The first driver of a cell, as the first image, takes no other's place.
                let kind = |v: &String| v.split(':').next() == version.split(':').next();
                let replaces = before.0.get(&cell).is_some_and(|known| known.keys().any(kind));
                let first_ms = if replaces { now_ms } else { 0 };
                let seen = self
                    .0
                    .entry(cell.clone())
                    .or_default()
                    .entry(version)
                    .or_insert(Version { first_ms, last_ms: now_ms });
                if now_ms - seen.last_ms >= HOUR_MS {
                    seen.last_ms = now_ms;
                }
            }
        }
        for known in self.0.values_mut() {
            known.retain(|_, v| now_ms - v.last_ms < KEPT_MS);
        }
        self.0.retain(|_, known| !known.is_empty());
    }

    fn is_new(version: &Version, rollout_s: f64, now_ms: i64) -> bool {
        ((now_ms - version.first_ms) as f64) < rollout_s * 1e3
    }

    /// Whether something is being rolled out in a cell.
    pub(super) fn runs(&self, cell: &str, rollout_s: f64, now_ms: i64) -> bool {
        self.0.get(cell).is_some_and(|known| known.values().any(|v| Self::is_new(v, rollout_s, now_ms)))
    }

    /// Whether a node has what is being rolled out.
    pub(super) fn has(&self, node: &Node, rollout_s: f64, now_ms: i64) -> bool {
        let Some(known) = self.0.get(&cell_of(&node.offer)) else { return false };
        versions(node).filter_map(|v| known.get(&v)).any(|v| Self::is_new(v, rollout_s, now_ms))
    }
}
