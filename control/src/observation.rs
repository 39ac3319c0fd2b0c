//! What a provider runs, against what is known: nodes that are gone, launches whose answer was lost, strays, and notices.

use std::collections::{BTreeMap, BTreeSet};

use fleet::NodeState;
use fleet::book::{Book, IntentAction};
use fleet::cloud::{Instance, InstanceState, Notice};

/// A launch may be missing from lists for so long, milliseconds.
const VISIBLE_AFTER_MS: i64 = 60_000;
/// Instances of kinds that nobody sells which are ended at once.
const STRANGERS_MAX: usize = 5;

/// What a provider said.
#[derive(Debug, Clone)]
pub struct Listing<'a> {
    /// The provider.
    pub provider: &'a str,
    /// All instances with our tag.
    pub instances: &'a [Instance],
    /// Instances that it takes back.
    pub notices: &'a [Notice],
    /// When it was asked, milliseconds since 1970: what was launched since may be missing.
    pub asked_at_ms: i64,
    /// Nothing is adopted or ended.
    pub dry_run: bool,
}

/// What was found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Found {
    /// Instances listed.
    pub instances: usize,
    /// Nodes that are gone.
    pub gone: u32,
    /// Instances that nobody knew, and that are nodes now, to be ended (CAP-3).
    pub adopted: u32,
    /// Nodes that are to be taken back.
    pub noticed: u32,
    /// Instances with our tag of an offer that nobody sells: they cannot become nodes, and are ended by their names.
    pub strangers: Vec<String>,
}

impl Found {
    /// Adds what another provider said.
    pub fn add(&mut self, other: Self) {
        self.instances += other.instances;
        self.gone += other.gone;
        self.adopted += other.adopted;
        self.noticed += other.noticed;
        self.strangers.extend(other.strangers);
    }

    /// Whether anything about nodes changed.
    #[must_use]
    pub fn any(&self) -> bool {
        self.gone + self.adopted + self.noticed > 0
    }
}

/// CAP-3: every instance that is billed is known, or adopted and ended.
pub fn reconcile(book: &mut Book, listing: &Listing<'_>, now_ms: i64) -> Found {
    let mut found = Found { instances: listing.instances.len(), ..Found::default() };
    let of_state = |ended: bool| listing.instances.iter().filter(move |i| (i.state == InstanceState::Ended) == ended);
    let running: BTreeMap<&str, &Instance> = of_state(false).map(|i| (i.id.as_str(), i)).collect();
    let ended: BTreeSet<&str> = of_state(true).map(|i| i.id.as_str()).collect();
    let known = end_missing(book, listing, &running, &ended, &mut found, now_ms);
    let open: BTreeSet<String> = book
        .intents()
        .values()
        .filter(|i| matches!(i.action, IntentAction::Launch { .. }))
        .map(|i| i.token.clone())
        .collect();
    for instance in running.values().filter(|i| !known.contains(&i.id) && i.state != InstanceState::Ending) {
        // A launch that is still being answered is bound by who calls; what is young may be one.
        let young = now_ms - instance.launched_at_ms < VISIBLE_AFTER_MS;
        if open.contains(&instance.token) || young || listing.dry_run {
            continue;
        }
        if book.offer(&instance.offer).is_none() && found.strangers.len() < STRANGERS_MAX {
            found.strangers.push(instance.id.clone());
        }
        if let Ok(node) = book.adopt(&instance.offer, &instance.id, now_ms) {
            found.adopted += 1;
            let asked = book.intend_end(node, "nobody asked for it", now_ms);
            debug_assert!(asked.is_ok(), "{asked:?}");
        }
    }
    for notice in listing.notices {
        let node = book.nodes_of(&notice.instance).next().map(|n| n.id);
        found.noticed += u32::from(node.is_some_and(|id| book.reclaim_noticed(id, now_ms)));
    }
    found
}

/// Ends nodes whose instance has ended or is missing. Returns the instances that are known.
fn end_missing(
    book: &mut Book,
    listing: &Listing<'_>,
    running: &BTreeMap<&str, &Instance>,
    ended: &BTreeSet<&str>,
    found: &mut Found,
    now_ms: i64,
) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let nodes: Vec<(u64, Option<String>, Option<String>, i64)> = book
        .nodes()
        .values()
        .filter(|n| n.offer.provider == listing.provider && n.state != NodeState::Requested)
        .map(|n| (n.id, n.instance.clone(), n.intent.map(|i| book.launch_token(i)), n.since_ms))
        .collect();
    for (id, instance, token, since_ms) in nodes {
        let Some(instance) = instance else { continue };
        // A machine of one's own may run on under another launch.
        let runs = |i: &&&Instance| token.is_none() || token.as_deref() == Some(&i.token);
        let listed_now = running.get(instance.as_str()).filter(runs).is_some();
        let missing = !listed_now && listing.asked_at_ms - since_ms > VISIBLE_AFTER_MS;
        let has_ended = ended.contains(instance.as_str());
        if has_ended || missing {
            let reason =
                if has_ended { "the provider says that it has ended" } else { "the provider no longer lists it" };
            found.gone += u32::from(book.gone(id, reason, now_ms).is_ok());
        }
        known.insert(instance);
    }
    known
}

/// Nodes that are ended at a time: a tenth of the fleet, and at least a few.
#[must_use]
pub fn most_ended(book: &Book) -> usize {
    (book.nodes().len() / 10).max(5)
}

/// The instances of a provider that run, as far as is known: told to one that has no memory of its own.
#[must_use]
pub fn known_instances(book: &Book, provider: &str) -> Vec<Instance> {
    let mine = book.nodes().values().filter(|n| n.offer.provider == provider && n.state != NodeState::Terminating);
    mine.filter_map(|n| {
        Some(Instance {
            id: n.instance.clone()?,
            offer: n.offer.clone(),
            token: n.intent.map_or_else(String::new, |i| book.launch_token(i)),
            state: InstanceState::Running,
            launched_at_ms: n.asked_at_ms,
        })
    })
    .collect()
}
