//! The store in memory: for runs on virtual time, where a database's own threads would stand in the way, and for tests.
//! It keeps what a database would keep, for as long as the process lives; the same suite runs against both.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use control::gpus::{EVIDENCE_KEPT_MS, GPUS_KEPT_MS, GpuRecord};
use fleet::book::{Book, Change, Changes, Claim, Intent, Node, Tally};
use fleet::{ClaimState, NodeState};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::document::{Crossed, Document, DocumentKey, DocumentKind};
use super::news::{BookDocuments, News};
use super::rows::{AuditRow, EventRow, EvidenceRow, Leadership, Page, PlanRow, TokenRow};
use super::session::Head;
use super::write::{CATCH_UP_MS, DEMAND_KEPT_MS, EVIDENCE_OF_NODE_MAX, LEASE_MS, PLANS_KEPT_MS};
use super::{StoreError, Write, Wrote};

/// Events that are kept: a run on virtual time reads them soon or never.
const EVENTS_KEPT: usize = 200_000;

/// What a database would keep.
#[derive(Debug, Clone, Default)]
struct Tables {
    seq: i64,
    next_id: u64,
    nodes: BTreeMap<u64, (i64, Node)>,
    claims: BTreeMap<u64, (i64, Claim)>,
    intents: BTreeMap<u64, (i64, Intent)>,
    keys: BTreeMap<String, u64>,
    tallies: BTreeMap<String, (i64, Tally)>,
    events: BTreeMap<i64, Change>,
    commits: Vec<Commit>,
    documents: BTreeMap<DocumentKey, (i64, i64, String)>,
    plans: BTreeMap<i64, (i64, String)>,
    demand: BTreeMap<(i64, String), f64>,
    tokens: BTreeMap<String, (TokenRow, bool)>,
    audit: Vec<AuditRow>,
    gpus: BTreeMap<String, Arc<GpuRecord>>,
    evidence: BTreeMap<i64, EvidenceRow>,
    lease: (String, i64, i64),
}

/// What one commit changed.
#[derive(Debug, Clone)]
struct Commit {
    seq: i64,
    prev: i64,
    at_ms: i64,
    nodes: BTreeSet<u64>,
    claims: BTreeSet<u64>,
    intents: BTreeSet<u64>,
}

/// A store in memory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables(Arc<Mutex<Tables>>);

impl MemoryTables {
    pub(super) async fn session(&self) -> Session {
        Session { tables: Arc::clone(&self.0), open: None }
    }

    pub(super) async fn audits(&self, page: Page) -> Vec<AuditRow> {
        let tables = self.0.lock().await;
        tables.audit.iter().filter(|r| r.id > page.after).take(most(page)).cloned().collect()
    }

    pub(super) async fn events(&self, page: Page) -> Vec<EventRow> {
        let tables = self.0.lock().await;
        let after = tables.events.range(page.after.saturating_add(1)..);
        after.take(most(page)).map(|(seq, change)| EventRow { seq: *seq, change: change.clone() }).collect()
    }

    pub(super) async fn last_seq(&self) -> i64 {
        self.0.lock().await.seq
    }

    pub(super) async fn nodes(&self, state: Option<&str>, page: Page) -> Vec<Node> {
        let tables = self.0.lock().await;
        let all = from(&tables.nodes, page.after);
        all.filter(|n| state.is_none_or(|s| n.state.name() == s)).take(most(page)).cloned().collect()
    }

    pub(super) async fn claims(&self, state: Option<&str>, page: Page) -> Vec<Claim> {
        let tables = self.0.lock().await;
        let all = from(&tables.claims, page.after);
        all.filter(|c| state.is_none_or(|s| c.state.name() == s)).take(most(page)).cloned().collect()
    }

    pub(super) async fn claim(&self, id: u64) -> Option<Claim> {
        self.0.lock().await.claims.get(&id).map(|(_, c)| c.clone())
    }

    pub(super) async fn node(&self, id: u64) -> Option<Node> {
        self.0.lock().await.nodes.get(&id).map(|(_, n)| n.clone())
    }

    pub(super) async fn plans(&self, up_to_epoch: i64, limit: i64) -> Vec<PlanRow> {
        let tables = self.0.lock().await;
        let newest = tables.plans.range(..=up_to_epoch).rev();
        let row = |(epoch, (made_at_ms, body)): (&i64, &(i64, String))| PlanRow {
            epoch: *epoch,
            made_at_ms: *made_at_ms,
            body: body.clone(),
        };
        newest.take(usize::try_from(limit).unwrap_or(0)).map(row).collect()
    }

    pub(super) async fn demand(&self, since_ms: i64) -> Vec<(String, i64, f64)> {
        let tables = self.0.lock().await;
        let since = tables.demand.range((since_ms, String::new())..);
        since.map(|((at_ms, class), claims)| (class.clone(), *at_ms, *claims)).collect()
    }

    pub(super) async fn any_token_was_made(&self) -> bool {
        !self.0.lock().await.tokens.is_empty()
    }

    pub(super) async fn tokens(&self) -> Vec<TokenRow> {
        let tables = self.0.lock().await;
        tables.tokens.values().filter(|(_, revoked)| !revoked).map(|(token, _)| token.clone()).collect()
    }

    pub(super) async fn documents(&self, kind: DocumentKind) -> Vec<Document> {
        let tables = self.0.lock().await;
        let mine = tables.documents.iter().filter(|(key, _)| key.words().0 == kind.name());
        mine.filter_map(|(key, row)| document(key, row)).collect()
    }

    pub(super) async fn document(&self, key: &DocumentKey) -> Option<Document> {
        self.0.lock().await.documents.get(key).and_then(|row| document(key, row))
    }

    pub(super) async fn gpus(&self, after: &str, limit: i64) -> Vec<Arc<GpuRecord>> {
        let tables = self.0.lock().await;
        let all = tables.gpus.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        all.take(usize::try_from(limit).unwrap_or(usize::MAX)).map(|(_, gpu)| Arc::clone(gpu)).collect()
    }

    pub(super) async fn gpus_named(&self, names: &[String]) -> Vec<GpuRecord> {
        let tables = self.0.lock().await;
        names.iter().filter_map(|n| tables.gpus.get(n)).map(|gpu| GpuRecord::clone(gpu)).collect()
    }

    pub(super) async fn evidence(&self, node: u64, page: Page) -> Vec<EvidenceRow> {
        let tables = self.0.lock().await;
        let after = tables.evidence.range(page.after.saturating_add(1)..).map(|(_, row)| row);
        after.filter(|row| row.node == node).take(most(page)).cloned().collect()
    }

    pub(super) async fn leadership(&self) -> Leadership {
        let (holder, epoch, until_ms) = self.0.lock().await.lease.clone();
        Leadership { holder, epoch, until_ms }
    }
}

fn most(page: Page) -> usize {
    usize::try_from(page.limit).unwrap_or(0)
}

fn from<T>(rows: &BTreeMap<u64, (i64, T)>, after: i64) -> impl Iterator<Item = &T> {
    rows.range(u64::try_from(after.saturating_add(1)).unwrap_or(0)..).map(|(_, (_, row))| row)
}

fn document(key: &DocumentKey, (_, version, body): &(i64, i64, String)) -> Option<Document> {
    (!body.is_empty()).then(|| Document { name: key.words().1.to_owned(), version: *version, body: body.clone() })
}

/// Rows that are about to be committed.
#[derive(Debug)]
pub struct Batch {
    /// The last number used.
    pub last: i64,
    prev: i64,
    nodes: Vec<Node>,
    claims: Vec<Claim>,
    intents: Vec<Intent>,
    tallies: Vec<(String, Tally)>,
    events: Vec<Change>,
}

impl Batch {
    /// The rows of what changed, under numbers after `seen`.
    pub fn of(book: &Book, changes: &Changes, seen: i64) -> Self {
        let count = i64::try_from(changes.events.len()).unwrap_or(i64::MAX - seen);
        let tally = |class: &String| Some((class.clone(), *book.tallies().get(class)?));
        Self {
            last: seen + count.max(1),
            prev: seen,
            nodes: changes.nodes.iter().filter_map(|id| book.nodes().get(id)).cloned().collect(),
            claims: changes.claims.iter().filter_map(|id| book.claims().get(id)).cloned().collect(),
            intents: changes.intents.iter().filter_map(|id| book.intents().get(id)).cloned().collect(),
            tallies: changes.tallies.iter().filter_map(tally).collect(),
            events: changes.events.clone(),
        }
    }
}

/// A transaction: writes are made again in order when it commits, so that one that ends otherwise changes nothing.
#[derive(Debug)]
pub struct Session {
    tables: Arc<Mutex<Tables>>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    tables: OwnedMutexGuard<Tables>,
    /// What was there before the writes of this transaction.
    undo: Vec<Undo>,
}

/// How one write is taken back.
#[derive(Debug)]
enum Undo {
    Document(DocumentKey, Option<(i64, i64, String)>),
    Gpu(String, Option<Arc<GpuRecord>>),
    Lease((String, i64, i64)),
    Plan(i64),
    Demand((i64, String), Option<f64>),
    Token(String, Option<(TokenRow, bool)>),
    Audit,
    Evidence(i64, Option<EvidenceRow>),
}

impl Session {
    fn open(&mut self) -> Result<&mut Open, StoreError> {
        self.open.as_mut().ok_or(StoreError::Unread)
    }

    pub async fn begin(&mut self) -> Result<Head, StoreError> {
        let tables = Arc::clone(&self.tables).lock_owned().await;
        let head = Head { seq: tables.seq, next_id: tables.next_id.max(1), now_ms: None };
        self.open = Some(Open { tables, undo: Vec::new() });
        Ok(head)
    }

    pub async fn news(&mut self, seen: i64) -> Result<News, StoreError> {
        let first = self.open()?.tables.commits.iter().find(|c| c.seq > seen);
        let all = seen == 0 || first.is_none_or(|c| c.prev > seen);
        let seen = if all { 0 } else { seen };
        let documents = self.book_documents(seen).await?;
        let tables = &self.open()?.tables;
        let later: Vec<&Commit> = tables.commits.iter().filter(|c| c.seq > seen).collect();
        let changed = |of: fn(&Commit) -> &BTreeSet<u64>| -> BTreeSet<u64> {
            later.iter().flat_map(|c| of(c).iter().copied()).collect()
        };
        let (nodes, claims, intents) = (changed(|c| &c.nodes), changed(|c| &c.claims), changed(|c| &c.intents));
        let is_of = |ids: &BTreeSet<u64>, id: u64, is_open: bool| if all { is_open } else { ids.contains(&id) };
        Ok(News {
            all,
            last_at_ms: tables.commits.last().map_or(0, |c| c.at_ms),
            nodes: tables
                .nodes
                .values()
                .map(|(_, n)| n)
                .filter(|n| is_of(&nodes, n.id, n.state != NodeState::Terminated))
                .cloned()
                .collect(),
            claims: tables
                .claims
                .values()
                .map(|(_, c)| c)
                .filter(|c| is_of(&claims, c.id, c.is_open()))
                .cloned()
                .collect(),
            intents: tables
                .intents
                .values()
                .map(|(_, i)| i)
                .filter(|i| is_of(&intents, i.id, i.state.is_open()))
                .cloned()
                .collect(),
            tallies: tables
                .tallies
                .iter()
                .filter(|(_, (seq, _))| *seq > seen)
                .map(|(k, (_, t))| (k.clone(), *t))
                .collect(),
            documents,
        })
    }

    pub async fn book_documents(&mut self, seen: i64) -> Result<BookDocuments, StoreError> {
        let tables = &self.open()?.tables;
        let read = |(key, row): (&DocumentKey, &(i64, i64, String))| document(key, row);
        let changed: Vec<(&DocumentKey, &(i64, i64, String))> =
            tables.documents.iter().filter(|(key, row)| key.is_of_book() && row.0 > seen).collect();
        let mut news = BookDocuments::default();
        for (key, row) in &changed {
            match (key, read((key, row))) {
                (DocumentKey::Offers, Some(found)) => news.offers = Some(found.record()?),
                (DocumentKey::Held, Some(found)) => news.held = Some(found.record()?),
                (DocumentKey::Readiness, Some(found)) => news.readiness = Some(found.record()?),
                (DocumentKey::Ceilings, Some(found)) => news.ceilings = Some(found.record()?),
                _ => {}
            }
        }
        if changed.iter().any(|(key, _)| matches!(key, DocumentKey::Class(_))) {
            let classes = tables.documents.iter().filter(|(key, _)| matches!(key, DocumentKey::Class(_)));
            news.classes = Some(classes.filter_map(read).map(|d| d.record()).collect::<Result<_, _>>()?);
        }
        if changed.iter().any(|(key, _)| matches!(key, DocumentKey::Snapshot(_))) {
            let all = tables.documents.iter().filter(|(key, _)| matches!(key, DocumentKey::Snapshot(_)));
            news.snapshots = Some(all.filter_map(read).map(|d| d.record()).collect::<Result<_, _>>()?);
        }
        Ok(news)
    }

    pub async fn claims_of_keys(&mut self, keys: &[String]) -> Result<Vec<Claim>, StoreError> {
        let tables = &self.open()?.tables;
        let of_key = |key: &String| Some(tables.claims.get(tables.keys.get(key)?)?.1.clone());
        Ok(keys.iter().filter_map(of_key).collect())
    }

    pub async fn leader_term(&mut self) -> Result<i64, StoreError> {
        Ok(self.open()?.tables.lease.1)
    }

    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        self.open = None;
        Ok(())
    }

    pub async fn apply(&mut self, write: &Write, seq: i64, now_ms: i64) -> Result<Wrote, StoreError> {
        let Open { tables, undo } = self.open()?;
        let audit = |tables: &mut Tables, who: &str, action: &str, detail: &str| {
            let id = i64::try_from(tables.audit.len()).unwrap_or(i64::MAX - 1) + 1;
            let (token, action, detail) = (who.to_owned(), action.to_owned(), detail.to_owned());
            tables.audit.push(AuditRow { id, at_ms: now_ms, token, action, detail });
            Undo::Audit
        };
        match write {
            Write::Document { key, body, expected, by } => {
                let before = tables.documents.get(key).cloned();
                let last = before.as_ref().map_or(0, |(_, version, _)| *version);
                let now = before.as_ref().filter(|(_, _, body)| !body.is_empty()).map_or(0, |(_, version, _)| *version);
                let (kind, name) = key.words();
                if let Some(expected) = expected.filter(|e| *e != now) {
                    return Ok(Wrote::Crossed(Crossed { kind, name: name.to_owned(), expected, now }));
                }
                tables.documents.insert(key.clone(), (seq, last + 1, body.clone()));
                undo.push(Undo::Document(key.clone(), before));
                if let Some((who, action)) = by {
                    undo.push(audit(tables, who, action, name));
                }
                return Ok(Wrote::Version(last + 1));
            }
            Write::Plan { epoch, .. } if tables.plans.contains_key(epoch) => {
                return Err(StoreError::Refused("there is a plan of this number already"));
            }
            Write::Plan { epoch, body } => {
                tables.plans.insert(*epoch, (now_ms, body.clone()));
                undo.push(Undo::Plan(*epoch));
            }
            Write::Demand(rows) => {
                for (class, at_ms, claims) in rows {
                    let key = (*at_ms, class.clone());
                    let before = tables.demand.insert(key.clone(), *claims);
                    undo.push(Undo::Demand(key, before));
                }
            }
            // What is old is of no use to anybody: taking this back would be of none either.
            Write::ForgetOld => tables.forget_old(now_ms),
            Write::Audit { who, action, detail } => undo.push(audit(tables, who, action, detail)),
            Write::PutToken(token) => {
                let before = tables.tokens.insert(token.name.clone(), (token.clone(), false));
                undo.push(Undo::Token(token.name.clone(), before));
            }
            Write::RevokeToken(name) => {
                undo.push(Undo::Token(name.clone(), tables.tokens.get(name).cloned()));
                if let Some((_, revoked)) = tables.tokens.get_mut(name) {
                    *revoked = true;
                }
            }
            Write::Gpus { names, change } => {
                for name in names {
                    let before = tables.gpus.get(name).cloned();
                    undo.push(Undo::Gpu(name.clone(), before.clone()));
                    let new = || Arc::new(GpuRecord { serial: name.clone(), ..GpuRecord::default() });
                    let mut gpu = before.unwrap_or_else(new);
                    change.apply(Arc::make_mut(&mut gpu), now_ms);
                    tables.gpus.insert(name.clone(), gpu);
                }
            }
            Write::Evidence(evidence) => {
                let id = tables.evidence.last_key_value().map_or(0, |(id, _)| *id) + 1;
                tables.evidence.insert(id, EvidenceRow { id, ..evidence.clone() });
                undo.push(Undo::Evidence(id, None));
                let of_node = |(id, row): (&i64, &EvidenceRow)| (row.node == evidence.node).then_some(*id);
                let mine: Vec<i64> = tables.evidence.iter().filter_map(of_node).collect();
                let most = usize::try_from(EVIDENCE_OF_NODE_MAX).unwrap_or(usize::MAX);
                for old in mine.iter().rev().skip(most) {
                    undo.push(Undo::Evidence(*old, tables.evidence.remove(old)));
                }
            }
            Write::Probe => {}
            Write::Lead { holder } => {
                undo.push(Undo::Lease(tables.lease.clone()));
                let (now, term, until_ms) = &mut tables.lease;
                let (mine, over) = (now == holder, *until_ms < now_ms || *until_ms > now_ms + 2 * LEASE_MS);
                if mine || over {
                    *term += i64::from(!mine || over);
                    now.clone_from(holder);
                    *until_ms = now_ms + LEASE_MS;
                }
                return Ok(Wrote::Leads((tables.lease.0 == *holder).then_some(tables.lease.1)));
            }
            Write::StepDown { holder } => {
                undo.push(Undo::Lease(tables.lease.clone()));
                if tables.lease.0 == *holder {
                    tables.lease.2 = 0;
                }
            }
        }
        Ok(Wrote::Done)
    }

    pub async fn commit(&mut self, batch: Batch, next_id: u64, now_ms: i64) -> Result<(), StoreError> {
        let mut open = self.open.take().ok_or(StoreError::Unread)?;
        open.undo.clear();
        let tables = &mut *open.tables;
        let last = batch.last;
        tables.commits.push(Commit {
            seq: last,
            prev: batch.prev,
            at_ms: now_ms,
            nodes: batch.nodes.iter().map(|n| n.id).collect(),
            claims: batch.claims.iter().map(|c| c.id).collect(),
            intents: batch.intents.iter().map(|i| i.id).collect(),
        });
        tables.nodes.extend(batch.nodes.into_iter().map(|n| (n.id, (last, n))));
        for claim in batch.claims {
            if let Some(key) = &claim.key {
                tables.keys.insert(key.clone(), claim.id);
            }
            tables.claims.insert(claim.id, (last, claim));
        }
        tables.intents.extend(batch.intents.into_iter().map(|i| (i.id, (last, i))));
        tables.tallies.extend(batch.tallies.into_iter().map(|(class, tally)| (class, (last, tally))));
        tables.events.extend((batch.prev + 1..).zip(batch.events));
        while tables.events.len() > EVENTS_KEPT {
            tables.events.pop_first();
        }
        (tables.seq, tables.next_id) = (last, next_id);
        Ok(())
    }
}

impl Drop for Open {
    /// What was not committed is taken back.
    fn drop(&mut self) {
        let tables = &mut *self.tables;
        for step in self.undo.drain(..).rev() {
            match step {
                Undo::Document(key, before) => put_back(&mut tables.documents, key, before),
                Undo::Gpu(name, before) => put_back(&mut tables.gpus, name, before),
                Undo::Lease(before) => tables.lease = before,
                Undo::Plan(epoch) => put_back(&mut tables.plans, epoch, None),
                Undo::Demand(key, before) => put_back(&mut tables.demand, key, before),
                Undo::Token(name, before) => put_back(&mut tables.tokens, name, before),
                Undo::Audit => drop(tables.audit.pop()),
                Undo::Evidence(id, before) => put_back(&mut tables.evidence, id, before),
            }
        }
    }
}

fn put_back<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

impl Tables {
    fn forget_old(&mut self, now_ms: i64) {
        self.commits.retain(|c| c.at_ms >= now_ms - CATCH_UP_MS);
        self.plans.retain(|_, (made_at_ms, _)| *made_at_ms >= now_ms - PLANS_KEPT_MS);
        self.demand.retain(|(at_ms, _), _| *at_ms >= now_ms - DEMAND_KEPT_MS);
        self.gpus.retain(|_, gpu| gpu.seen_at_ms >= now_ms - GPUS_KEPT_MS);
        self.evidence.retain(|_, row| row.at_ms >= now_ms - EVIDENCE_KEPT_MS);
        // Those that ended long ago: a day of virtual time makes tens of thousands.
        let ended_ms = now_ms - CATCH_UP_MS;
        let over = |c: &Claim| c.ended_at_ms.is_some_and(|at| at < ended_ms);
        let ended = [ClaimState::Released, ClaimState::Expired, ClaimState::Failed];
        self.claims.retain(|_, (_, c)| !(ended.contains(&c.state) && over(c)));
        let claims = &self.claims;
        self.keys.retain(|_, id| claims.contains_key(id));
    }
}
