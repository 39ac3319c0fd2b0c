//! What the providers run, against what is known: nodes that are gone, launches whose answer was lost, strays, and notices.

use std::collections::{BTreeMap, BTreeSet};

use fleet::NodeState;
use fleet::book::{Book, IntentAction};
use providers::{Instance, InstanceState};

use super::breakers::Memory;
use super::{Context, LoopError};
use crate::clock;

/// Why a node that the provider takes back drains.
pub const TAKEN_BACK: &str = "the provider takes it back";
/// A launch may be missing from lists for so long, milliseconds.
const VISIBLE_AFTER_MS: i64 = 60_000;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let mut found = Counts::default();
    let mut failed = Vec::new();
    for provider in context.clouds.iter().map(|c| &c.provider) {
        let name = provider.name().to_owned();
        context.recall(&**provider);
        let asked_ms = clock::now_ms();
        let dry_run = context.planning.dry_run;
        let listed = match provider.list().await {
            Ok(listed) => listed,
            Err(error) => {
                // Silence is no proof that anything is gone.
                failed.push(format!("{name}: {error}"));
                continue;
            }
        };
        let notices = provider.notices().await.unwrap_or_else(|error| {
            failed.push(format!("{name}: notices: {error}"));
            Vec::new()
        });
        let (seen, strangers) = context
            .app
            .ledger
            .write_as_leader(term, move |book, now_ms| {
                let (mut counts, strangers) = reconcile(book, &name, &listed, asked_ms, dry_run, now_ms);
                for notice in &notices {
                    let node = node_of(book, &notice.instance);
                    counts.noticed += u32::from(node.is_some_and(|id| book.drain_once(id, TAKEN_BACK, now_ms)));
                }
                (counts, strangers)
            })
            .await?;
        context.app.metrics.interrupted(provider.name(), seen.gone + seen.noticed);
        found.add(seen);
        // Before the providers have said what they sell, everything looks strange.
        if !dry_run && context.app.loops.was_asked_in(term) && !context.paused().await? {
            for instance in &strangers {
                // It has no node to write an intent for, and ending it twice does no harm.
                match provider.terminate(instance).await {
                    Ok(()) => tracing::warn!(instance, "ended: it has our tag, and nobody sells its kind any more"),
                    Err(error) => failed.push(format!("{}: end {instance}: {error}", provider.name())),
                }
            }
        }
    }
    let cleaned = if context.planning.dry_run || context.paused().await? {
        0
    } else {
        let ended = Memory::read(&context.app.store).await?.ended(clock::now_ms());
        let clean = move |book: &mut Book, now_ms: i64| book.clean_up(most_ended(book), &ended, now_ms);
        context.app.ledger.write_as_leader(term, clean).await?
    };
    if found.any() || cleaned > 0 {
        context.app.wake_planner();
        context.app.loops.actor.notify_one();
    }
    let text = format!(
        "{} instances, {} gone, {} bound, {} adopted, {} to be taken back, {cleaned} to be ended",
        found.instances, found.gone, found.bound, found.adopted, found.noticed
    );
    if found.unknown > 0 {
        failed.push(format!("{} instances carry our tag and are of a kind that nobody sells", found.unknown));
    }
    if failed.is_empty() { Ok(text) } else { Err(format!("{text}; failed: {}", failed.join("; ")).into()) }
}

/// A tenth of the fleet at a time, and at least a few.
fn most_ended(book: &Book) -> usize {
    (book.nodes().len() / 10).max(5)
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    instances: usize,
    gone: u32,
    bound: u32,
    adopted: u32,
    noticed: u32,
    /// Instances with our tag of an offer that nobody sells: a person must look.
    unknown: u32,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.instances += other.instances;
        self.gone += other.gone;
        self.bound += other.bound;
        self.adopted += other.adopted;
        self.noticed += other.noticed;
        self.unknown += other.unknown;
    }

    fn any(self) -> bool {
        self.gone + self.bound + self.adopted + self.noticed > 0
    }
}

fn node_of(book: &Book, instance: &str) -> Option<u64> {
    book.nodes_of(instance).next().map(|n| n.id)
}

/// Instances of kinds that nobody sells which are ended at once.
const STRANGERS_MAX: usize = 5;

/// CAP-3: every instance that is billed is known, or adopted and ended. Those of kinds that nobody sells cannot become
/// nodes: their names are returned.
fn reconcile(
    book: &mut Book,
    provider: &str,
    listed: &[Instance],
    asked_ms: i64,
    dry_run: bool,
    now_ms: i64,
) -> (Counts, Vec<String>) {
    let mut strangers = Vec::new();
    let mut counts = Counts { instances: listed.len(), ..Counts::default() };
    let running: BTreeMap<&str, &Instance> =
        listed.iter().filter(|i| i.state != InstanceState::Ended).map(|i| (i.id.as_str(), i)).collect();
    let ended_ids: BTreeSet<&str> =
        listed.iter().filter(|i| i.state == InstanceState::Ended).map(|i| i.id.as_str()).collect();
    let mut known = BTreeSet::new();
    let nodes: Vec<(u64, Option<String>, Option<String>, i64)> = book
        .nodes()
        .values()
        .filter(|n| n.offer.provider == provider && n.state != NodeState::Requested)
        .map(|n| (n.id, n.instance.clone(), n.intent.map(|i| book.launch_token(i)), n.since_ms))
        .collect();
    for (id, instance, token, since_ms) in nodes {
        let Some(instance) = instance else { continue };
        // A machine of one's own may run on under another launch.
        let runs = |i: &&&Instance| token.is_none() || token.as_deref() == Some(&i.token);
        let ended = ended_ids.contains(instance.as_str());
        let listed_now = running.get(instance.as_str()).filter(runs).is_some();
        let missing = !listed_now && asked_ms - since_ms > VISIBLE_AFTER_MS;
        if ended || missing {
            let reason = if ended { "the provider says that it has ended" } else { "the provider no longer lists it" };
            counts.gone += u32::from(book.gone(id, reason, now_ms).is_ok());
        }
        known.insert(instance);
    }
    let open: BTreeMap<String, u64> = book
        .intents()
        .values()
        .filter(|i| matches!(i.action, IntentAction::Launch { .. }))
        .map(|i| (i.token.clone(), i.id))
        .collect();
    for instance in running.values().filter(|i| !known.contains(&i.id) && i.state != InstanceState::Ending) {
        if open.contains_key(&instance.token) {
            // Its launch is still being answered: the actor binds it.
            continue;
        }
        if now_ms - instance.launched_at_ms < VISIBLE_AFTER_MS {
            continue;
        }
        if dry_run {
            continue;
        }
        if book.offer(&instance.offer).is_none() && strangers.len() < STRANGERS_MAX {
            counts.unknown += 1;
            strangers.push(instance.id.clone());
        }
        if let Ok(node) = book.adopt(&instance.offer, &instance.id, now_ms) {
            counts.adopted += 1;
            let ended = book.intend_end(node, "nobody asked for it", now_ms);
            debug_assert!(ended.is_ok(), "{ended:?}");
        }
    }
    (counts, strangers)
}
