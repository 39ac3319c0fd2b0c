//! Leaves for whoever reads them on this host: from the disk, or else from the first tier that has them whole. However many
//! ask for a leaf, it is fetched once; what a reader waits for goes before what is fetched ahead.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use snapshots::leaf::Codec;
use snapshots::{IndexRecord, LeafId, PackId};
use tokio::sync::{Semaphore, oneshot, watch};

use super::cache::{Cache, Content};
use super::peers::Peers;
use crate::snapshots::in_one_line;
use crate::snapshots::store::{self, Store, StoreError};

/// Most bytes of one request ahead: what object stores answer at their best rate.
pub const RUN_BYTES_MAX: u32 = 8 << 20;
/// Requests ahead at a time: with as many readers, half a gigabyte of memory.
const AHEAD_MAX: usize = 16;
const NOW_MAX: usize = 64;
/// A reader gets an error rather than wait longer for one tier.
const TIER_PATIENCE: Duration = Duration::from_secs(30);

/// A leaf, and where tiers have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// What it is.
    pub record: IndexRecord,
    /// Where it lies; nowhere, for zeros.
    pub pack: Option<PackId>,
}

/// Why a leaf is not there: what each tier said, in their order.
#[derive(Debug, Clone, thiserror::Error)]
#[error("leaf {leaf} is in no tier: {}", .tiers.iter().map(|error| in_one_line(&**error)).collect::<Vec<_>>().join("; "))]
pub struct FetchError {
    /// The leaf.
    pub leaf: LeafId,
    /// By tier.
    pub tiers: Vec<Arc<TierError>>,
}

/// What a tier said.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// It failed, or has something else under the leaf's name.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It did not answer.
    #[error("no answer in {} s", TIER_PATIENCE.as_secs())]
    Slow,
    /// The fetch ended without a word.
    #[error("the fetch was given up")]
    Lost,
}

/// What was done since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Leaves that were on the disk.
    pub disk_hits: AtomicU64,
    /// Leaves that were fetched.
    pub fetched: AtomicU64,
    /// Bytes that were fetched.
    pub fetched_bytes: AtomicU64,
    /// Leaves that a tier had damaged, and a later one whole.
    pub repaired: AtomicU64,
    /// Leaves that no tier had.
    pub failed: AtomicU64,
}

/// A reader who waits, until it is dropped.
struct Waits<'a>(&'a watch::Sender<usize>);

impl<'a> Waits<'a> {
    fn new(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|n| *n += 1);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

type Outcome = Result<Content, FetchError>;
type Running = Shared<BoxFuture<'static, Outcome>>;

/// The leaves of a host.
#[derive(Debug)]
pub struct Leaves {
    cache: Arc<Cache>,
    tiers: Vec<Store>,
    running: Mutex<HashMap<LeafId, Running>>,
    now: Semaphore,
    ahead: Semaphore,
    /// How many readers wait.
    waiting: watch::Sender<usize>,
    /// What was done.
    pub counts: Counts,
}

impl Leaves {
    /// Leaves that are kept in `cache` and fetched from `tiers`, the nearest first.
    #[must_use]
    pub fn new(cache: Arc<Cache>, tiers: Vec<Store>) -> Arc<Self> {
        Arc::new(Self {
            cache,
            tiers,
            running: Mutex::default(),
            now: Semaphore::new(NOW_MAX),
            ahead: Semaphore::new(AHEAD_MAX),
            waiting: watch::Sender::new(0),
            counts: Counts::default(),
        })
    }

    /// The disk.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Bytes that were fetched since the start.
    #[must_use]
    pub fn fetched_bytes(&self) -> u64 {
        self.counts.fetched_bytes.load(Ordering::Relaxed)
    }

    /// A leaf that can be read without waiting for anything but the disk.
    #[must_use]
    pub fn ready(&self, wanted: &Wanted) -> Option<Content> {
        if wanted.record.codec == Codec::Zero { Some(Content::Zeros) } else { self.cache.ready(wanted.record.id) }
    }

    /// A leaf, fetched if it is not on the disk.
    ///
    /// # Errors
    /// No tier has it whole.
    pub async fn get(self: &Arc<Self>, wanted: Wanted) -> Outcome {
        if let Some(content) = self.ready(&wanted) {
            return Ok(content);
        }
        let _waits = Waits::new(&self.waiting);
        let brought = async {
            // The semaphore is never closed.
            let _permit = self.now.acquire().await;
            self.run(vec![wanted]).remove(0).await
        };
        // Every tier has its own; one more for the disk and for those who stand before.
        let patience = TIER_PATIENCE * (self.tiers.len() as u32 + 1);
        let late = |_| Err(FetchError { leaf: wanted.record.id, tiers: vec![Arc::new(TierError::Slow)] });
        tokio::time::timeout(patience, brought).await.unwrap_or_else(late)
    }

    /// Has leaves of one pack, that lie in one stretch of at most [`RUN_BYTES_MAX`], on the disk before anybody asks.
    ///
    /// # Errors
    /// The first of them that no tier has whole.
    pub async fn ahead(self: &Arc<Self>, run: Vec<Wanted>) -> Result<(), FetchError> {
        // Before it counts as running: a reader who asks for one of these leaves meanwhile does not stand in this queue.
        let _permit = self.ahead.acquire().await;
        let mut waiting = self.waiting.subscribe();
        // What is waited for ends with us, so it does not fail.
        drop(waiting.wait_for(|n| *n == 0).await);
        let mut all = Ok(());
        for outcome in self.run(run) {
            all = all.and(outcome.await.map(drop));
        }
        all
    }

    /// Has those leaves of one pack on the disk that other hosts of the zone have; the others are returned.
    pub async fn near(self: &Arc<Self>, run: Vec<Wanted>, peers: &Peers, members: &[String]) -> Vec<Wanted> {
        let missing: Vec<Wanted> = run.into_iter().filter(|wanted| !self.cache.holds(wanted.record.id)).collect();
        let Some(pack) = missing.first().and_then(|wanted| wanted.pack) else { return missing };
        let ids: Vec<LeafId> = missing.iter().map(|wanted| wanted.record.id).collect();
        let got = peers.get(pack, &ids, members).await;
        let (leaves, wanted) = (self.clone(), missing.clone());
        let entered = tokio::task::spawn_blocking(move || {
            let enter = |(wanted, content): (Wanted, Option<Vec<u8>>)| {
                // It is what its id says; an index that says another length is wrong, and found so from the store.
                let content = content.filter(|content| content.len() == wanted.record.content_bytes as usize);
                let Some(content) = content else { return Some(wanted) };
                drop(leaves.cache.insert(wanted.record.id, &content));
                None
            };
            wanted.into_iter().zip(got).filter_map(enter).collect()
        });
        entered.await.unwrap_or(missing)
    }

    fn running(&self) -> MutexGuard<'_, HashMap<LeafId, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what is not running yet; an outcome for each leaf.
    fn run(self: &Arc<Self>, run: Vec<Wanted>) -> Vec<Running> {
        let mut new = Vec::new();
        let mut running = self.running();
        let outcomes = run
            .into_iter()
            .map(|wanted| {
                let leaf = wanted.record.id;
                let start = || {
                    let (tell, told) = oneshot::channel();
                    new.push((wanted, tell));
                    let lost = move |_| FetchError { leaf, tiers: vec![Arc::new(TierError::Lost)] };
                    told.map(move |outcome| outcome.map_err(lost).and_then(|outcome| outcome)).boxed().shared()
                };
                running.entry(leaf).or_insert_with(start).clone()
            })
            .collect();
        drop(running);
        if !new.is_empty() {
            let leaves = self.clone();
            tokio::spawn(async move { leaves.bring(new).await });
        }
        outcomes
    }

    /// Brings leaves and tells each one's outcome.
    async fn bring(self: Arc<Self>, mut left: Vec<(Wanted, oneshot::Sender<Outcome>)>) {
        let (leaves, wanted) = (self.clone(), left.iter().map(|(wanted, _)| *wanted).collect::<Vec<_>>());
        let on_disk = move || wanted.iter().map(|w| leaves.on_disk(w)).collect::<Vec<_>>();
        let found = tokio::task::spawn_blocking(on_disk).await.unwrap_or_default();
        let mut found = found.into_iter();
        let mut missing = Vec::new();
        for (wanted, tell) in left.drain(..) {
            match found.next().flatten() {
                Some(content) => self.end(wanted, tell, Ok(content)),
                None => missing.push((wanted, tell, Vec::new())),
            }
        }
        for (number, tier) in self.tiers.iter().enumerate() {
            if missing.is_empty() {
                return;
            }
            let run: Vec<Wanted> = missing.iter().map(|(wanted, ..)| *wanted).collect();
            let mut outcomes = self.from(tier, run).await.into_iter();
            let mut still = Vec::new();
            for (wanted, tell, mut errors) in missing {
                match outcomes.next().unwrap_or(Err(Arc::new(TierError::Lost))) {
                    Ok(content) => {
                        if number > 0 && !errors.is_empty() {
                            self.counts.repaired.fetch_add(1, Ordering::Relaxed);
                        }
                        self.end(wanted, tell, Ok(content));
                    }
                    Err(error) => {
                        errors.push(error);
                        still.push((wanted, tell, errors));
                    }
                }
            }
            missing = still;
        }
        for (wanted, tell, tiers) in missing {
            self.counts.failed.fetch_add(1, Ordering::Relaxed);
            self.end(wanted, tell, Err(FetchError { leaf: wanted.record.id, tiers }));
        }
    }

    fn on_disk(&self, wanted: &Wanted) -> Option<Content> {
        if wanted.record.codec == Codec::Zero {
            return Some(Content::Zeros);
        }
        let content = self.cache.get(wanted.record.id)?;
        self.counts.disk_hits.fetch_add(1, Ordering::Relaxed);
        Some(content)
    }

    fn end(&self, wanted: Wanted, tell: oneshot::Sender<Outcome>, outcome: Outcome) {
        self.running().remove(&wanted.record.id);
        // Whoever asked may be gone.
        drop(tell.send(outcome));
    }

    /// Leaves from one tier, in one request, each verified and written to the disk.
    async fn from(self: &Arc<Self>, tier: &Store, run: Vec<Wanted>) -> Vec<Result<Content, Arc<TierError>>> {
        let all = |error: TierError| {
            let error = Arc::new(error);
            run.iter().map(|_| Err(error.clone())).collect::<Vec<_>>()
        };
        let Some(pack) = run[0].pack else { return all(TierError::Lost) };
        let from = run.iter().map(|wanted| wanted.record.place.offset).min().unwrap_or(0);
        let until = run.iter().map(|w| u64::from(w.record.place.offset) + u64::from(w.record.place.stored_bytes)).max();
        let range = u64::from(from)..until.unwrap_or(0);
        let bytes = match tokio::time::timeout(TIER_PATIENCE, tier.pack_range(pack, range)).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return all(error.into()),
            Err(_) => return all(TierError::Slow),
        };
        self.counts.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let (leaves, wanted) = (self.clone(), run.clone());
        let decoded = tokio::task::spawn_blocking(move || {
            let of = |wanted: &Wanted| leaves.enter(wanted, pack, from, &bytes);
            wanted.iter().map(of).collect::<Vec<_>>()
        });
        decoded.await.unwrap_or_else(|_| all(TierError::Lost))
    }

    /// Verifies a leaf that a tier gave, and writes it to the disk.
    fn enter(&self, wanted: &Wanted, pack: PackId, from: u32, bytes: &[u8]) -> Result<Content, Arc<TierError>> {
        let mut record = wanted.record;
        record.place.offset -= from;
        let mut scratch = Vec::new();
        let content = store::leaf(&record, pack, bytes, &mut scratch).map_err(|error| Arc::new(error.into()))?;
        self.counts.fetched.fetch_add(1, Ordering::Relaxed);
        Ok(self.cache.insert(record.id, content))
    }
}
