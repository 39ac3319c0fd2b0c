//! Learns supply from the event log: how launches ended, how long they took, how long nodes lived. Where it is in the log
//! is written with what it learnt, so that a restart learns nothing twice.

use std::collections::BTreeMap;

use fleet::OfferKey;
use fleet::book::{Intent, Node};
use health::gate::slowest_of_json;
use planner::supply::{Outcome, Rules, Supply};
use serde::{Deserialize, Serialize};

use super::fared::Health;
use super::observe::TAKEN_BACK;
use super::{Context, LoopError};
use crate::clock;
use crate::store::{Document, EventRow, EvidenceRow, Page, Store, StoreError, write_document};

/// All that was learnt.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Learnt {
    /// The last event that was learnt from.
    seq: i64,
    /// By offer.
    #[serde(with = "as_list")]
    pub supply: BTreeMap<OfferKey, Supply>,
    /// Launches that are not all answered, by intent.
    open: BTreeMap<u64, Batch>,
    /// How nodes fared, by place.
    #[serde(default)]
    pub health: Health,
}

/// Nodes of one launch and how they ended so far.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    offer: OfferKey,
    asked: u32,
    waiting: u32,
    outcomes: Vec<Outcome>,
}

/// JSON has only text as keys.
pub(super) mod as_list {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

/// Document of what hosts of each kind have been measured at.
pub const LIMITS: &str = "limits";
/// Events that are read at once.
const AT_ONCE: i64 = 2_000;
/// Pages of one run; the rest is for the next.
const PAGES: usize = 100;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let (mut events, mut answers) = (0, 0);
    for _ in 0..PAGES {
        let (read, learnt) = page(&context, term).await?;
        events += read;
        answers += learnt;
        if read < AT_ONCE as usize {
            break;
        }
    }
    Ok(if events == 0 { "nothing new".into() } else { format!("{events} events, {answers} answers") })
}

/// Learns from the next events. Returns how many there were, and how many said something.
async fn page(context: &Context, term: i64) -> Result<(usize, usize), LoopError> {
    let store = &context.app.store;
    let mut learnt = Learnt::read(store).await?;
    let events = store.events(Page { after: learnt.seq, limit: AT_ONCE }).await?;
    let now_s = clock::now_ms() as f64 / 1000.0;
    let Some(last) = events.last() else {
        // Where nothing happens, what was seen fades all the same.
        if learnt.health.is_due(now_s) {
            learnt.health.tell(now_s);
            write(context, &learnt, term).await?;
        }
        return Ok((0, 0));
    };
    let mut count = 0;
    learnt.seq = last.seq;
    learnt.health.know(&context.app.ledger.book());
    for event in &events {
        let at_s = event.at_ms as f64 / 1000.0;
        let id = event.subject_id.unsigned_abs();
        let (from, to) = (event.from_state.as_str(), event.to_state.as_str());
        if event.subject == "node" && Health::cares(from, to) {
            count += usize::from(to != "idle");
            fared(store, &mut learnt, event).await?;
        }
        match (event.subject.as_str(), from, to) {
            ("intent", "", "pending") => {
                if let Some(intent) = store.intent(id).await? {
                    learnt.asked(&intent, at_s);
                }
            }
            ("intent", _, "refused" | "partial") => {
                count += 1;
                learnt.refused(id, &event.reason, at_s);
            }
            ("node", "requested", "terminated") => {
                if let Some(batch) = store.node(id).await?.and_then(|n| learnt.open.get_mut(&n.intent?)) {
                    batch.waiting = batch.waiting.saturating_sub(1);
                }
            }
            ("node", "checking", "idle") => {
                if let Some(node) = store.node(id).await?.filter(|n| learnt.waits(n)) {
                    count += 1;
                    let lead_s = (event.at_ms - node.asked_at_ms) as f64 / 1000.0;
                    context.app.metrics.node_ready(lead_s);
                    learnt.answered(&node, Outcome::Healthy { lead_s }, at_s);
                }
            }
            ("node", "booting" | "checking", "quarantined" | "terminated" | "lost" | "terminating") => {
                if let Some(node) = store.node(id).await?.filter(|n| learnt.waits(n)) {
                    count += 1;
                    learnt.answered(&node, Outcome::Unhealthy, at_s);
                }
            }
            ("node", _, "draining") if event.reason == TAKEN_BACK => {
                // Its hours are counted when it has ended.
                if let Some(node) = store.node(id).await? {
                    learnt.of(&node.offer, at_s).observe_life(at_s, 0.0, 1);
                }
            }
            ("node", "terminating", "terminated") => learnt.lived(store.node(id).await?, event.at_ms, 0),
            ("node", "idle" | "claimed" | "draining" | "diagnosing", "terminated") => {
                learnt.lived(store.node(id).await?, event.at_ms, 1);
            }
            _ => {}
        }
    }
    learnt.health.tell(now_s);
    write(context, &learnt, term).await?;
    Ok((events.len(), count))
}

async fn write(context: &Context, learnt: &Learnt, term: i64) -> Result<(), LoopError> {
    let (store, ledger) = (&context.app.store, &context.app.ledger);
    let document =
        Document { kind: "learnt".into(), name: "supply".into(), version: 0, body: serde_json::to_string(learnt)? };
    write_document(ledger, document, Some(term)).await?;
    let body = serde_json::to_string(&learnt.health.limits())?;
    let written = store.document("learnt", LIMITS).await?.is_some_and(|d| d.body == body);
    if !written {
        let limits = Document { kind: "learnt".into(), name: LIMITS.into(), version: 0, body };
        write_document(ledger, limits, Some(term)).await?;
    }
    Ok(())
}

/// What a change of a node's state says of its place; and what its last whole gate measured.
async fn fared(store: &Store, learnt: &mut Learnt, event: &EventRow) -> Result<(), LoopError> {
    let Some(node) = store.node(event.subject_id.unsigned_abs()).await? else { return Ok(()) };
    let at_s = event.at_ms as f64 / 1000.0;
    learnt.health.hear(&node, &event.from_state, &event.to_state, at_s);
    if event.to_state != "idle" {
        return Ok(());
    }
    let rows = store.evidence(node.id, Page { after: 0, limit: 1000 }).await?;
    let rates = |row: &EvidenceRow| Some(slowest_of_json(&row.body)).filter(|r| row.checks == "gate" && !r.is_empty());
    if let Some(rates) = rows.iter().rev().find_map(rates) {
        learnt.health.measured(&node, rates, at_s);
    }
    Ok(())
}

impl Learnt {
    /// As it was written down.
    ///
    /// # Errors
    /// The database cannot be used, or what was written does not read.
    pub async fn read(store: &Store) -> Result<Self, StoreError> {
        match store.document("learnt", "supply").await? {
            Some(document) => document.record(),
            None => Ok(Self::default()),
        }
    }

    fn of(&mut self, offer: &OfferKey, at_s: f64) -> &mut Supply {
        self.supply.entry(offer.clone()).or_insert_with(|| Supply::new(Rules::default(), at_s, 0.9, 0.0))
    }

    fn asked(&mut self, intent: &Intent, at_s: f64) {
        let fleet::book::IntentAction::Launch { offer, nodes } = &intent.action else { return };
        let asked = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        self.of(offer, at_s).asked(at_s, asked);
        let batch = Batch { offer: offer.clone(), asked, waiting: asked, outcomes: Vec::new() };
        self.open.insert(intent.id, batch);
    }

    /// A launch that gave fewer nodes than asked. The first word of the reason is the kind of the error.
    fn refused(&mut self, intent: u64, reason: &str, at_s: f64) {
        let Some(batch) = self.open.get_mut(&intent) else { return };
        let outcome = match reason.split(':').next() {
            Some("capacity") => Outcome::NoCapacity,
            Some("quota" | "price" | "configuration" | "authorisation") => Outcome::Blocked,
            Some("expired") => Outcome::Limited,
            // Fewer than asked.
            _ => Outcome::NoCapacity,
        };
        let (offer, asked) = (batch.offer.clone(), batch.asked);
        self.of(&offer, at_s).observe(at_s, asked, &[outcome]);
        if let Some(batch) = self.open.get_mut(&intent) {
            // Those that were launched still answer for themselves; the budget has had its answer.
            batch.asked = 0;
            if batch.waiting == 0 {
                self.open.remove(&intent);
            }
        }
    }

    fn waits(&self, node: &Node) -> bool {
        node.intent.is_some_and(|i| self.open.contains_key(&i))
    }

    fn answered(&mut self, node: &Node, outcome: Outcome, at_s: f64) {
        let Some(intent) = node.intent else { return };
        let Some(batch) = self.open.get_mut(&intent) else { return };
        batch.outcomes.push(outcome);
        batch.waiting = batch.waiting.saturating_sub(1);
        if batch.waiting > 0 {
            return;
        }
        if let Some(batch) = self.open.remove(&intent) {
            self.of(&batch.offer, at_s).observe(at_s, batch.asked, &batch.outcomes);
        }
    }

    fn lived(&mut self, node: Option<Node>, at_ms: i64, lost: u32) {
        let Some(node) = node else { return };
        let hours = (at_ms - node.asked_at_ms) as f64 / 3.6e6;
        self.of(&node.offer, at_ms as f64 / 1000.0).observe_life(at_ms as f64 / 1000.0, hours.max(0.0), lost);
    }
}
