//! The book: which nodes there are, which GPUs of them are claimed, who waits, and what was asked of the clouds.
//!
//! Pure: time is an argument, and every operation either changes the book and says what changed, or fails and changes
//! nothing. Whoever keeps it durable writes [`Changes`] in the same transaction; see [`Book::take_changes`].

mod borrowed;
mod care;
mod ceilings;
mod check;
mod claims;
mod diagnoses;
mod events;
mod gangs;
mod holds;
mod intents;
mod lines;
mod nodes;
mod records;
mod shelves;
mod staging;
mod starts;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::admission;
use crate::offer::{Offer, OfferKey};
use crate::placement::Shelf;
use crate::staged::{Presence, Readiness, Snapshot, Tier};

pub use care::{Gate, Pending, Repair};
pub use ceilings::{Ceiling, Ceilings};
pub use claims::{ClaimError, ClaimRequest, Taken};
pub use diagnoses::Diagnosis;
pub use events::{Asked, Change, ClaimChange, CopyChange, IntentChange, NodeChange, NodeFacts, StartChange, What};
pub use holds::{Held, HeldCause, Identity};
pub use intents::IntentError;
pub use lines::Queue;
pub use nodes::NodeError;
pub use records::{Claim, ClassRule, DesiredVersion, Intent, IntentAction, Limits, Node, Part, Tally};
pub use staging::CopyFact;
pub use starts::StartFact;

/// What an operation changed, to be written before anybody is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Nodes whose record changed.
    pub nodes: BTreeSet<u64>,
    /// Claims whose record changed.
    pub claims: BTreeSet<u64>,
    /// Intents whose record changed.
    pub intents: BTreeSet<u64>,
    /// Classes whose tally changed.
    pub tallies: BTreeSet<String>,
    /// State changes with their reasons, in their order.
    pub events: Vec<Change>,
}

impl Changes {
    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.claims.is_empty()
            && self.intents.is_empty()
            && self.tallies.is_empty()
            && self.events.is_empty()
    }
}

/// The state of a fleet.
#[derive(Debug, Default)]
pub struct Book {
    limits: Limits,
    /// First part of launch tokens.
    token_prefix: String,
    offers: Vec<Offer>,
    offer_index: BTreeMap<OfferKey, usize>,
    classes: BTreeMap<String, ClassRule>,
    /// Offers that serve a class within its price caps, in the order in which they are tried.
    within: BTreeMap<String, Vec<usize>>,
    /// Those above the caps.
    above: BTreeMap<String, Vec<usize>>,
    nodes: BTreeMap<u64, Node>,
    /// Index of each node's offer: a look at a number, where an offer's key is five texts.
    node_offers: BTreeMap<u64, usize>,
    /// Nodes by the cloud's name for them.
    by_instance: BTreeMap<String, BTreeSet<u64>>,
    claims: BTreeMap<u64, Claim>,
    keys: BTreeMap<String, u64>,
    /// Claims that have ended and whose key is asked for again: `(claim, digest)`.
    ended_keys: BTreeMap<String, (u64, String)>,
    tallies: BTreeMap<String, Tally>,
    intents: BTreeMap<u64, Intent>,
    shelves: Vec<Shelf>,
    snapshots: BTreeMap<String, Snapshot>,
    /// Names of snapshots by their objects.
    named: BTreeMap<String, String>,
    /// The one snapshot of each class that has one alone.
    only: BTreeMap<String, String>,
    readiness: Readiness,
    /// By object, nodes that have a copy or are to, the furthest first.
    copies: BTreeMap<String, BTreeSet<(Reverse<Presence>, u64)>>,
    /// By object, nodes that can be claimed and have all of it: a shelf for each tier and offer.
    claimable_copies: BTreeMap<String, BTreeMap<(Tier, usize), Shelf>>,
    /// Causes for which nothing is reset or ended.
    held: Held,
    /// Nodes that are in diagnostics, or in the short gate after them.
    lent: BTreeSet<u64>,
    waiting: BTreeMap<String, lines::Line>,
    /// Claims that wait, by their caller and whether they borrow.
    waiting_of: BTreeMap<(String, bool), usize>,
    ceilings: Ceilings,
    /// Claims whose GPUs are borrowed.
    borrowed: BTreeSet<u64>,
    /// `(when, claim)`: leases and deadlines that run out.
    due: BTreeSet<(i64, u64)>,
    next_id: u64,
    changes: Changes,
}

impl Book {
    /// An empty book.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, next_id: 1, token_prefix: "pl".into(), ..Self::default() }
    }

    /// The same, with launch tokens that begin so. Clouds remember tokens longer than a database may live: those of two
    /// databases must differ, or a launch is answered with the instances of another.
    #[must_use]
    pub fn with_token_prefix(limits: Limits, prefix: &str) -> Self {
        Self { token_prefix: prefix.to_owned(), ..Self::new(limits) }
    }

    /// The token of a launch: the idempotency token of the call, and a tag of what it launches.
    #[must_use]
    pub fn launch_token(&self, intent: u64) -> String {
        format!("{}-{intent}", self.token_prefix)
    }

    /// The operator's limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Offers by their index.
    #[must_use]
    pub fn offers(&self) -> &[Offer] {
        &self.offers
    }

    /// Index of an offer.
    #[must_use]
    pub fn offer(&self, key: &OfferKey) -> Option<usize> {
        self.offer_index.get(key).copied()
    }

    /// Nodes that are in diagnostics, or in the short gate after them.
    #[must_use]
    pub fn lent(&self) -> &BTreeSet<u64> {
        &self.lent
    }

    /// Index of a node's offer; none where nobody has said yet what is sold there.
    #[must_use]
    pub fn offer_of(&self, node: &Node) -> Option<usize> {
        self.node_offers.get(&node.id).copied()
    }

    /// Classes by name.
    #[must_use]
    pub fn classes(&self) -> &BTreeMap<String, ClassRule> {
        &self.classes
    }

    /// Nodes that are not gone.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<u64, Node> {
        &self.nodes
    }

    /// Claims that wait or hold GPUs.
    #[must_use]
    pub fn claims(&self) -> &BTreeMap<u64, Claim> {
        &self.claims
    }

    /// Intents that are not done.
    #[must_use]
    pub fn intents(&self) -> &BTreeMap<u64, Intent> {
        &self.intents
    }

    /// The open claim with an idempotency key.
    #[must_use]
    pub fn claim_of_key(&self, key: &str) -> Option<&Claim> {
        self.keys.get(key).and_then(|id| self.claims.get(id))
    }

    /// GPUs that can be claimed at once, by offer index.
    #[must_use]
    pub fn free_gpus(&self, offer: usize) -> u64 {
        self.shelves.get(offer).map_or(0, Shelf::free_gpus)
    }

    /// Offers whose nodes serve a class within its price caps, the cheapest GPU first.
    #[must_use]
    pub fn offers_of(&self, class: &str) -> &[usize] {
        self.within.get(class).map_or(&[], Vec::as_slice)
    }

    /// Claims of a class that wait, the oldest first.
    #[must_use]
    pub fn queue(&self, class: &str) -> usize {
        self.waiting.get(class).map_or(0, lines::Line::len)
    }

    /// Tells the book of a key whose claim has ended, until [`Self::forget_keys`].
    pub fn know_ended(&mut self, claim: &Claim) {
        if let Some(key) = &claim.key {
            self.ended_keys.insert(key.clone(), (claim.id, claim.digest.clone()));
        }
    }

    /// Forgets what [`Self::know_ended`] told.
    pub fn forget_keys(&mut self) {
        self.ended_keys.clear();
    }

    /// Hits and misses of each class since the beginning.
    #[must_use]
    pub fn tallies(&self) -> &BTreeMap<String, Tally> {
        &self.tallies
    }

    /// Puts a stored tally back.
    pub fn load_tally(&mut self, class: String, tally: Tally) {
        self.tallies.insert(class, tally);
    }

    fn count(&mut self, class: &str, hit: bool) {
        // Who borrows is promised nothing.
        if self.classes.get(class).is_some_and(|rule| rule.class.borrows()) {
            return;
        }
        let tally = self.tallies.entry(class.to_owned()).or_default();
        *(if hit { &mut tally.hits } else { &mut tally.misses }) += 1;
        if !self.changes.tallies.contains(class) {
            self.changes.tallies.insert(class.to_owned());
        }
    }

    /// The next identity that will be given.
    #[must_use]
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Identities below `id` are taken.
    pub fn skip_ids(&mut self, id: u64) {
        self.next_id = self.next_id.max(id);
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Forgets nodes, claims and intents that have ended. Called when their last record is durable.
    pub fn forget_ended(&mut self, changes: &Changes) {
        for id in &changes.nodes {
            if self.nodes.get(id).is_some_and(|n| n.state == crate::NodeState::Terminated) {
                self.remove_node(*id);
            }
        }
        for id in &changes.claims {
            if self.claims.get(id).is_some_and(|c| !c.is_open())
                && let Some(key) = self.claims.remove(id).and_then(|c| c.key)
            {
                self.keys.remove(&key);
            }
        }
        for id in &changes.intents {
            if self.intents.get(id).is_some_and(|i| !i.state.is_open()) {
                self.intents.remove(id);
            }
        }
    }

    /// Offers at present prices. Offers that are not listed any more stay for the nodes that run on them.
    pub fn set_offers(&mut self, listed: Vec<Offer>) {
        let known = self.offers.len();
        for offer in listed {
            if let Some(&i) = self.offer_index.get(&offer.key) {
                self.offers[i] = offer;
            } else {
                self.offer_index.insert(offer.key.clone(), self.offers.len());
                self.offers.push(offer);
                self.shelves.push(Shelf::default());
            }
        }
        if self.offers.len() > known {
            self.put_on_new_shelves();
        }
        self.sort_offers();
    }

    /// The classes, whole.
    pub fn set_classes(&mut self, rules: impl IntoIterator<Item = ClassRule>) {
        self.classes = rules.into_iter().map(|r| (r.class.name.clone(), r)).collect();
        self.follow_classes();
        self.sort_offers();
    }

    /// The order in which each class tries the offers: the cheapest GPU first, so that dear nodes fall idle and can go.
    fn sort_offers(&mut self) {
        self.within.clear();
        self.above.clear();
        for (name, rule) in &self.classes {
            let caps = admission::Caps::resolve(&rule.class, self.offers.iter());
            let (mut within, mut above) = (Vec::new(), Vec::new());
            for (p, offer) in self.offers.iter().enumerate() {
                if admission::admits_node(offer, &rule.class).is_err() {
                    continue;
                }
                let dear = caps.of(&rule.class, offer).is_some_and(|cap| offer.gpu_price_usd_micros_per_h() > cap);
                if dear { above.push(p) } else { within.push(p) }
            }
            for list in [&mut within, &mut above] {
                list.sort_by_key(|&p| (self.offers[p].gpu_price_usd_micros_per_h(), p));
            }
            if rule.class.borrows() {
                // What others take last is lent first.
                within.reverse();
                above.clear();
            }
            self.within.insert(name.clone(), within);
            self.above.insert(name.clone(), above);
        }
        self.keep_what_cannot_wait();
    }
}
