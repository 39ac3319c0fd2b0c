//! Breakers: looks at the faults of the last hour, and holds repairs and ends back where many have a cause in common.

use std::collections::BTreeMap;

use fleet::NodeState;
use fleet::book::{Book, Held, cell_of};
use health::breaker::{Breakers, Canary, Cell, Episode, Rules, Seen, State, step};
use health::rates::FAULTS_PER_GPU_H;
use serde::{Deserialize, Serialize};

use super::{Context, Learnt, LoopError};
use crate::clock;
use crate::store::{Document, EventRow, Page, Store, write_document};

/// What is remembered from one run to the next.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The last event that was looked at.
    seq: i64,
    /// Faults of the last hour.
    episodes: Vec<Episode>,
    /// Nodes that were ended for faults in the last hour: when, and of which cell.
    ended: Vec<(i64, String)>,
    /// Breakers that are not closed.
    pub open: Vec<OpenBreaker>,
}

/// A breaker that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBreaker {
    /// Cloud, region and instance type.
    pub cell: String,
    /// What the faults have in common.
    pub cause: String,
    /// Where it stands.
    pub state: State,
}

/// A breaker that a person closes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Cloud, region and instance type.
    pub cell: String,
    /// What the faults have in common.
    pub cause: String,
    /// When, milliseconds since 1970: faults until then do not open it again.
    pub at_ms: i64,
}

/// Where they are written down: `breakers/held` for every replica's book, `breakers/memory` for the leader.
pub const KIND: &str = "breakers";
const HOUR_MS: i64 = 3_600_000;
/// Events that are read at once, and pages of one run.
const AT_ONCE: i64 = 2_000;
const PAGES: usize = 100;

impl Memory {
    /// As it was written down.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn read(store: &Store) -> Result<Self, LoopError> {
        Ok(match store.document(KIND, "memory").await? {
            Some(document) => document.record().unwrap_or_default(),
            None => Self::default(),
        })
    }

    /// Nodes of each cell that were ended for faults in the last hour.
    #[must_use]
    pub fn ended(&self, now_ms: i64) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, cell) in self.ended.iter().filter(|(at_ms, _)| now_ms - at_ms < HOUR_MS) {
            *counts.entry(cell.clone()).or_default() += 1;
        }
        counts
    }

    async fn note(&mut self, store: &Store, event: &EventRow) -> Result<(), LoopError> {
        let out = ["quarantined", "lost", "checking", "repairing"];
        let (fault, ended) = match (event.subject.as_str(), event.from_state.as_str(), event.to_state.as_str()) {
            // One whose gate asks for a reset was counted when it failed.
            ("node", "quarantined", "repairing") => return Ok(()),
            ("node", _, "quarantined" | "repairing" | "lost") => (true, false),
            ("node", from, "terminating") if out.contains(&from) => (false, true),
            _ => return Ok(()),
        };
        let Some(node) = store.node(event.subject_id.unsigned_abs()).await? else { return Ok(()) };
        let (cell, at_ms) = (cell_of(&node.offer), event.at_ms);
        if ended {
            self.ended.push((at_ms, cell.clone()));
        }
        let causes = node.causes();
        if fault && !causes.is_empty() {
            let repair = event.to_state == "repairing";
            self.episodes.push(Episode { at_ms, node: node.id, cell, causes, repair });
        }
        Ok(())
    }

    fn forget(&mut self, now_ms: i64) {
        self.episodes.retain(|e| now_ms - e.at_ms < HOUR_MS);
        self.ended.retain(|(at_ms, _)| now_ms - at_ms < HOUR_MS);
    }

    fn close(&mut self, closed: &[Closed]) {
        for by_hand in closed {
            self.open.retain(|b| (&b.cell, &b.cause) != (&by_hand.cell, &by_hand.cause));
            let before = |e: &&mut Episode| e.cell == by_hand.cell && e.at_ms <= by_hand.at_ms;
            self.episodes.iter_mut().filter(before).for_each(|e| e.causes.retain(|c| *c != by_hand.cause));
        }
    }
}

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (app, now_ms) = (&context.app, clock::now_ms());
    let mut memory = Memory::read(&app.store).await?;
    let before = memory.clone();
    if memory.seq == 0 {
        // What was before is over.
        memory.seq = app.store.last_seq().await?.max(1);
    }
    for _ in 0..PAGES {
        let events = app.store.events(Page { after: memory.seq, limit: AT_ONCE }).await?;
        for event in &events {
            memory.note(&app.store, event).await?;
        }
        memory.seq = events.last().map_or(memory.seq, |e| e.seq);
        if events.len() < AT_ONCE as usize {
            break;
        }
    }
    memory.forget(now_ms);
    let by_hand = app.store.document(KIND, "closed").await?;
    if let Some(document) = by_hand.filter(|d| d.body != "[]") {
        memory.close(&document.record::<Vec<Closed>>()?);
        write(&context, "closed", "[]".into(), term).await?;
    }
    let learnt = Learnt::read(&app.store).await?;
    let open = looked_at(&memory, &app.ledger.book(), &learnt.health.faults_per_gpu_h(), now_ms);
    for (cell, cause) in open.keys().filter(|k| !memory.open.iter().any(|b| (&b.cell, &b.cause) == (&k.0, &k.1))) {
        tracing::error!(cell, cause, "many nodes fail for one cause: nothing is reset or ended for it; look at it");
    }
    memory.open = open.into_iter().map(|((cell, cause), state)| OpenBreaker { cell, cause, state }).collect();
    let canary = |b: &OpenBreaker| match b.state {
        State::HalfOpen { canary, .. } => Some(canary),
        State::Open { .. } => None,
    };
    let causes = memory.open.iter().map(|b| (b.cell.clone(), b.cause.clone(), canary(b))).collect();
    let held = Held { causes };
    let changed = *app.ledger.book().held() != held;
    app.metrics.broken(memory.open.len());
    let (open, episodes) = (memory.open.len(), memory.episodes.len());
    // A commit wakes all who wait for news.
    if memory != before {
        write(&context, "memory", serde_json::to_string(&memory)?, term).await?;
    }
    if changed {
        write(&context, "held", serde_json::to_string(&held)?, term).await?;
        app.ledger.write_as_leader(term, move |book, _| book.set_held(held)).await?;
    }
    Ok(format!("{open} open, {episodes} faults in the last hour"))
}

async fn write(context: &Context, name: &str, body: String, term: i64) -> Result<(), LoopError> {
    let document = Document { kind: KIND.into(), name: name.into(), version: 0, body };
    Ok(write_document(&context.app.ledger, document, Some(term)).await?)
}

fn looked_at(memory: &Memory, book: &Book, faults_per_gpu_h: &BTreeMap<String, f64>, now_ms: i64) -> Breakers {
    let before: Breakers = memory.open.iter().map(|b| ((b.cell.clone(), b.cause.clone()), b.state)).collect();
    // Nodes and GPUs of each.
    let mut sizes: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for node in book.nodes().values() {
        let (nodes, gpus) = sizes.entry(cell_of(&node.offer)).or_default();
        (*nodes, *gpus) = (*nodes + 1, *gpus + node.gpus);
    }
    let cell = |(name, (nodes, gpus)): (String, (u32, u32))| {
        let expected = faults_per_gpu_h.get(&name).copied().unwrap_or(FAULTS_PER_GPU_H);
        (name, Cell { nodes, faults_per_node_h: expected * f64::from(gpus) / f64::from(nodes) })
    };
    let cells = sizes.into_iter().map(cell).collect();
    let out: Vec<_> = book.out_for_faults().into_iter().map(|n| (n.id, cell_of(&n.offer), n.causes())).collect();
    let stands = |state: &State| {
        let State::HalfOpen { canary, .. } = state else { return None };
        let node = book.nodes().get(canary)?;
        Some((
            *canary,
            match node.state {
                _ if node.state.in_service() && node.care.is_none() => Canary::Well,
                NodeState::Terminating | NodeState::Terminated => Canary::Replaced,
                _ => Canary::Out,
            },
        ))
    };
    let canaries = before.values().filter_map(stands).collect();
    let seen = Seen { episodes: &memory.episodes, cells: &cells, out: &out, canaries: &canaries };
    step(&before, &seen, &Rules::default(), now_ms)
}
