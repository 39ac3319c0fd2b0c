//! Breakers: many faults of one cause at the same time are the cause's, not the nodes'. What would end or reset nodes for it
//! stops until a person, or one canary, has shown that it helps.
//!
//! A cell is a cloud, a region and an instance type. Causes are common ones: an Xid, a check of the gate, a version of the
//! driver, an image. A fault counts for each of its own.

use std::collections::{BTreeMap, BTreeSet};

use fleet::{Cause, Cell};
use serde::{Deserialize, Serialize};

/// A fault that takes a node out of service, or resets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Episode {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// The node.
    pub node: u64,
    /// Cloud, region and instance type.
    pub cell: Cell,
    /// What it has in common with others.
    pub causes: Vec<Cause>,
    /// It is a repair that began, in place of a fault that takes it out.
    #[serde(default)]
    pub repair: bool,
}

/// How large a cell is, and what is usual there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Size {
    /// Nodes in it.
    pub nodes: u32,
    /// Faults of a node that are expected, per hour.
    pub faults_per_node_h: f64,
}

/// When a breaker opens, and when it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Faults within this time are looked at together, seconds.
    pub window_s: f64,
    /// It opens with this many nodes…
    pub nodes_min: u32,
    /// …if they are more than this share of the cell.
    pub share: f64,
    /// It opens too where so many, or more, would come by chance with less than this probability.
    pub chance: f64,
    /// One canary is tried after this time, seconds.
    pub half_open_s: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { window_s: 900.0, nodes_min: 3, share: 0.05, chance: 1e-4, half_open_s: 1800.0 }
    }
}

/// A breaker that is not closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// Nothing is reset or ended for this cause.
    Open {
        /// Since when, milliseconds since 1970.
        since_ms: i64,
        /// The last node on which something was tried, in vain: another is next.
        #[serde(default)]
        tried: Option<u64>,
    },
    /// One node is, to see whether it helps.
    HalfOpen {
        /// Since when, milliseconds since 1970.
        since_ms: i64,
        /// Which.
        canary: u64,
        /// When it had ended, milliseconds since 1970: another is to take its place.
        #[serde(default)]
        ended_ms: Option<i64>,
    },
}

/// Where a canary stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Canary {
    /// Still out.
    Out,
    /// In service again.
    Well,
    /// Ended: another takes its place.
    Replaced,
}

/// Open breakers: by cell and cause.
pub type Breakers = BTreeMap<(Cell, Cause), State>;

/// All that a step looks at.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// Faults of the last hour at least.
    pub episodes: &'a [Episode],
    /// The cells.
    pub cells: &'a BTreeMap<Cell, Size>,
    /// Nodes that are out, the longest first: `(node, cell, causes)`.
    pub out: &'a [(u64, Cell, Vec<Cause>)],
    /// Canaries by their node; one that is not here has ended.
    pub canaries: &'a BTreeMap<u64, Canary>,
}

/// The breakers after a look.
#[must_use]
pub fn step(before: &Breakers, seen: &Seen<'_>, rules: &Rules, now_ms: i64) -> Breakers {
    let mut after = Breakers::new();
    for ((cell, cause), state) in before {
        if let Some(state) = next(*state, cell, cause, seen, rules, now_ms) {
            after.insert((cell.clone(), cause.clone()), state);
        }
    }
    for (cell, of_cell) in seen.cells {
        let mut nodes: BTreeMap<&Cause, BTreeSet<u64>> = BTreeMap::new();
        for episode in seen.episodes.iter().filter(|e| e.cell == *cell && within(e, rules.window_s, now_ms)) {
            for cause in &episode.causes {
                nodes.entry(cause).or_default().insert(episode.node);
            }
        }
        for (cause, nodes) in nodes {
            if before.contains_key(&(cell.clone(), cause.to_owned())) {
                continue;
            }
            let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
            if is_common(count, of_cell, rules) {
                after.insert((cell.clone(), cause.to_owned()), State::Open { since_ms: now_ms, tried: None });
            }
        }
    }
    after
}

fn within(episode: &Episode, window_s: f64, now_ms: i64) -> bool {
    (now_ms - episode.at_ms) as f64 <= window_s * 1e3
}

/// Whether so many nodes at the same time are a common cause's.
fn is_common(nodes: u32, cell: &Size, rules: &Rules) -> bool {
    let many = nodes >= rules.nodes_min && f64::from(nodes) > rules.share * f64::from(cell.nodes);
    let expected = cell.faults_per_node_h * f64::from(cell.nodes) * rules.window_s / 3600.0;
    many || (nodes >= 2 && chance_of(nodes, expected) < rules.chance)
}

/// Probability of `count` or more events where `mean` are expected (Poisson).
#[must_use]
pub fn chance_of(count: u32, mean: f64) -> f64 {
    if mean <= 0.0 {
        return if count == 0 { 1.0 } else { 0.0 };
    }
    // The terms from `count` up, so that small tails keep their digits.
    let mut term = (1..=count).fold((-mean).exp(), |t, k| t * mean / f64::from(k));
    let (mut tail, mut k) = (0.0, count);
    while term > 0.0 && (term > 1e-16 * tail || f64::from(k) < mean) && k < count.saturating_add(100_000) {
        tail += term;
        k += 1;
        term *= mean / f64::from(k);
    }
    tail.min(1.0)
}

/// The state of an open breaker after a look; none where it closes.
fn next(state: State, cell: &Cell, cause: &Cause, seen: &Seen<'_>, rules: &Rules, now_ms: i64) -> Option<State> {
    let mine = |e: &&Episode| e.cell == *cell && e.causes.contains(cause);
    let wait_ms = (rules.half_open_s * 1e3) as i64;
    match state {
        State::Open { since_ms, .. } if now_ms - since_ms < wait_ms => Some(state),
        State::Open { tried, .. } => {
            let waits = |(_, c, causes): &&(u64, Cell, Vec<Cause>)| c == cell && causes.contains(cause);
            let another = seen.out.iter().filter(waits).find(|(node, _, _)| Some(*node) != tried);
            // Nobody is out for it any more: there is nothing to hold back.
            let next = another.or_else(|| seen.out.iter().find(waits));
            next.map(|(canary, _, _)| State::HalfOpen { since_ms: now_ms, canary: *canary, ended_ms: None })
        }
        State::HalfOpen { since_ms, canary, ended_ms } => {
            let open = Some(State::Open { since_ms: now_ms, tried: Some(canary) });
            // That the canary is repaired is no fault; that it fails again is.
            let again =
                seen.episodes.iter().filter(mine).any(|e| e.at_ms > since_ms && !(e.node == canary && e.repair));
            let quiet = |at_ms: i64| now_ms - at_ms >= (rules.window_s * 1e3) as i64;
            match (seen.canaries.get(&canary).copied().unwrap_or(Canary::Replaced), ended_ms) {
                _ if again => open,
                (Canary::Well, _) => None,
                (Canary::Replaced, Some(at_ms)) if quiet(at_ms) => None,
                (Canary::Replaced, None) => Some(State::HalfOpen { since_ms, canary, ended_ms: Some(now_ms) }),
                (Canary::Out, _) if now_ms - since_ms >= wait_ms => open,
                (Canary::Replaced | Canary::Out, _) => Some(state),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_are_those_of_poisson() {
        // The probability mass function, summed term by term.
        for (count, mean, is) in
            [(1, 1.0, 0.632_120_558_8), (3, 0.05, 2.006_749e-5), (2, 2.5e-3, 3.119_794e-6), (60, 50.0, 0.092_265_05)]
        {
            let got = chance_of(count, mean);
            assert!((got / is - 1.0).abs() < 1e-4, "{count} at {mean}: {got}, not {is}");
        }
        assert_eq!(chance_of(0, 3.0).round(), 1.0);
        assert_eq!(chance_of(1, 0.0), 0.0);
    }
}
