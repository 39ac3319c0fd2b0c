//! Breakers: looks at the faults of the last hour, and holds repairs and ends back where many have a cause in common.

use std::collections::BTreeMap;

use fleet::book::{Book, Change, Held, HeldCause, What};
use fleet::{Cause, Cell, NodeState};
use health::breaker::{Breakers, Canary, Episode, Rules, Seen, Size, State, step};
use health::rates::FAULTS_PER_GPU_H;
use serde::{Deserialize, Serialize};

/// What is remembered from one look to the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FaultLog {
    /// The last event that was looked at.
    pub seq: i64,
    /// Faults of the last hour.
    episodes: Vec<Episode>,
    /// Nodes that were ended for faults in the last hour: when, and of which cell.
    ended: Vec<(i64, Cell)>,
    /// Breakers that are not closed.
    pub open: Vec<OpenBreaker>,
}

/// A breaker that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBreaker {
    /// Where.
    pub cell: Cell,
    /// What the faults have in common.
    pub cause: Cause,
    /// Where it stands.
    pub state: State,
}

/// A breaker that a person closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Where.
    pub cell: Cell,
    /// What the faults have in common.
    pub cause: Cause,
    /// When, milliseconds since 1970: faults until then do not open it again.
    pub at_ms: i64,
}

const HOUR_MS: i64 = 3_600_000;

impl FaultLog {
    /// Nodes of each cell that were ended for faults in the last hour.
    #[must_use]
    pub fn ended(&self, now_ms: i64) -> BTreeMap<Cell, usize> {
        let mut counts = BTreeMap::new();
        for (_, cell) in self.ended.iter().filter(|(at_ms, _)| now_ms - at_ms < HOUR_MS) {
            *counts.entry(cell.clone()).or_default() += 1;
        }
        counts
    }

    /// Whether it says the same as `other`, however far either has read.
    #[must_use]
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        (&self.episodes, &self.ended, &self.open) == (&other.episodes, &other.ended, &other.open)
    }

    /// Faults of the last hour that are known.
    #[must_use]
    pub fn faults(&self) -> usize {
        self.episodes.len()
    }

    /// Whether there is nothing to look at: no fault in the last hour, no breaker that is not closed.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.episodes.is_empty() && self.open.is_empty()
    }

    /// Notes what an event says.
    pub fn hear(&mut self, change: &Change) {
        use NodeState as S;
        let What::Node(node) = &change.what else { return };
        let cell = Cell::of(&node.node.offer);
        match (node.from, node.to) {
            // One whose gate asks for a reset was counted when it failed.
            (Some(S::Quarantined), S::Repairing) => {}
            (_, to @ (S::Quarantined | S::Repairing | S::Lost)) if !node.node.causes.is_empty() => {
                let (causes, repair) = (node.node.causes.clone(), to == S::Repairing);
                self.episodes.push(Episode { at_ms: change.at_ms, node: node.id, cell, causes, repair });
            }
            (Some(S::Quarantined | S::Lost | S::Checking | S::Repairing), S::Terminating) => {
                self.ended.push((change.at_ms, cell));
            }
            _ => {}
        }
    }

    /// Forgets what is over, and the faults behind what a person has closed.
    pub fn forget(&mut self, closed: &[Closed], now_ms: i64) {
        self.episodes.retain(|e| now_ms - e.at_ms < HOUR_MS);
        self.ended.retain(|(at_ms, _)| now_ms - at_ms < HOUR_MS);
        for by_hand in closed {
            self.open.retain(|b| (&b.cell, &b.cause) != (&by_hand.cell, &by_hand.cause));
            let before = |e: &&mut Episode| e.cell == by_hand.cell && e.at_ms <= by_hand.at_ms;
            self.episodes.iter_mut().filter(before).for_each(|e| e.causes.retain(|c| *c != by_hand.cause));
        }
    }

    /// Opens, tries and closes breakers. Returns those that are new.
    pub fn look(&mut self, book: &Book, faults_per_gpu_h: &BTreeMap<Cell, f64>, now_ms: i64) -> Vec<(Cell, Cause)> {
        if self.is_quiet() {
            return Vec::new();
        }
        let before: Breakers = self.open.iter().map(|b| ((b.cell.clone(), b.cause.clone()), b.state)).collect();
        let cells = sizes(book, faults_per_gpu_h);
        let out: Vec<_> = book.out_for_faults().into_iter().map(|n| (n.id, Cell::of(&n.offer), n.causes())).collect();
        let canaries = before.values().filter_map(|state| canary(book, state)).collect();
        let seen = Seen { episodes: &self.episodes, cells: &cells, out: &out, canaries: &canaries };
        let after = step(&before, &seen, &Rules::default(), now_ms);
        let new = after.keys().filter(|key| !before.contains_key(key)).cloned().collect();
        self.open = after.into_iter().map(|((cell, cause), state)| OpenBreaker { cell, cause, state }).collect();
        new
    }

    /// What the book is to hold back.
    #[must_use]
    pub fn held(&self) -> Held {
        let held = |b: &OpenBreaker| HeldCause {
            cell: b.cell.clone(),
            cause: b.cause.clone(),
            canary: match b.state {
                State::HalfOpen { canary, .. } => Some(canary),
                State::Open { .. } => None,
            },
        };
        Held { causes: self.open.iter().map(held).collect() }
    }
}

/// Nodes of each cell, and the faults that are usual there.
fn sizes(book: &Book, faults_per_gpu_h: &BTreeMap<Cell, f64>) -> BTreeMap<Cell, Size> {
    let mut counts: BTreeMap<Cell, (u32, u32)> = BTreeMap::new();
    for node in book.nodes().values() {
        let (nodes, gpus) = counts.entry(Cell::of(&node.offer)).or_default();
        (*nodes, *gpus) = (*nodes + 1, *gpus + node.gpus);
    }
    let size = |(cell, (nodes, gpus)): (Cell, (u32, u32))| {
        let expected = faults_per_gpu_h.get(&cell).copied().unwrap_or(FAULTS_PER_GPU_H);
        (cell, Size { nodes, faults_per_node_h: expected * f64::from(gpus) / f64::from(nodes) })
    };
    counts.into_iter().map(size).collect()
}

/// Where the canary of a breaker stands.
fn canary(book: &Book, state: &State) -> Option<(u64, Canary)> {
    let State::HalfOpen { canary, .. } = state else { return None };
    let node = book.nodes().get(canary)?;
    let stands = match node.state {
        _ if node.state.in_service() && node.care.is_none() => Canary::Well,
        NodeState::Terminating | NodeState::Terminated => Canary::Replaced,
        _ => Canary::Out,
    };
    Some((*canary, stands))
}
