//! Copies of whole objects on this host, as it was told: fetched leaf by leaf, the most urgent copy first, verified, and kept
//! until they are wanted no more. What was begun goes on where it was after any end of the process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use fleet::{Presence, Tier};
use futures::{StreamExt, TryStreamExt};
use protocol::staging::{CopyOrder, CopyReport, StagingOrder, Traffic};
use snapshots::{LeafId, Manifest, ObjectId};
use tokio::sync::watch;

use super::arena::{Arena, Held, LoadError, OnDisk};
use super::cache::{Cache, CacheError};
use super::kept::Kept;
use super::leaves::{Leaves, Wanted};
use super::near::Near;
use super::peers::Peers;
use super::rates::{rate, smooth};
use super::runs::runs;
use crate::snapshots::in_one_line;
use crate::snapshots::store::lease::{Lease, Work};
use crate::snapshots::store::seal::StoreKeys;
use crate::snapshots::store::{self, Store};

/// Share of the cache that staged copies may take: the rest is for what is fetched before it is known to stay.
const ROOM_SHARE: f64 = 0.8;
/// Runs that are asked for at the same time; how many are fetched is bounded where they are.
const RUNS_AT_ONCE: usize = 32;
/// Pauses after a failure: the first, doubled each time, and the longest.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(120);
/// A copy of which something is damaged on the disk is fetched and loaded again so often before it counts as failed.
const ROUNDS: usize = 3;
/// Characters of a problem.
const PROBLEM_MAX: usize = 300;
/// Objects that a copy may need beside its own: weights, caches, an image.
const OBJECTS_MAX: usize = 64;

/// What is known of the copies of this host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// By object.
    pub copies: BTreeMap<ObjectId, CopyReport>,
    /// What was fetched, bytes a second.
    pub fetch_bytes_per_s: Option<f64>,
    /// What was read off the disk into memory and verified, bytes a second.
    pub disk_bytes_per_s: Option<f64>,
    /// What was moved.
    pub traffic: Traffic,
}

/// An object with its manifest and the bytes of its index.
type Known = (ObjectId, Manifest, Vec<u8>);

/// A copy.
#[derive(Debug)]
struct Copy {
    order: CopyOrder,
    presence: Presence,
    /// Bytes that are verified.
    bytes: u64,
    problem: String,
    failures: u32,
    retry_at: Option<Instant>,
    /// Leaves that are kept for it on the disk.
    pinned: BTreeSet<LeafId>,
    /// All leaves that lie somewhere, with the bytes of each.
    leaves: BTreeMap<LeafId, u32>,
    /// It stays in memory as long as this does.
    held: Option<Held>,
}

/// The copies of a host.
#[derive(Debug)]
pub struct Stage {
    cache: Arc<Cache>,
    kept: Kept,
    keys: StoreKeys,
    /// By address of the store.
    leaves: BTreeMap<String, (Store, Arc<Leaves>)>,
    copies: BTreeMap<ObjectId, Copy>,
    facts: watch::Sender<Facts>,
    peers: Arc<Peers>,
    arena: Option<Arc<Arena>>,
    room_bytes: u64,
    /// Fetched from stores that are used no more.
    fetched_before: u64,
}

impl Stage {
    /// Copies in a cache folder that may take `budget_bytes`, fetched from `peers` where they have them; and in memory. Sealed
    /// stores are opened with `keys`.
    ///
    /// # Errors
    /// The folder is no cache.
    pub fn open(
        folder: &Path,
        budget_bytes: u64,
        peers: Arc<Peers>,
        arena: Option<Arc<Arena>>,
        keys: StoreKeys,
    ) -> Result<Self, CacheError> {
        let cache = Arc::new(Cache::open(folder, budget_bytes)?);
        let room_bytes = (budget_bytes as f64 * ROOM_SHARE) as u64;
        let (facts, _) = watch::channel(Facts::default());
        Ok(Self {
            cache,
            kept: Kept::staged(folder),
            keys,
            leaves: BTreeMap::new(),
            copies: BTreeMap::new(),
            facts,
            peers,
            arena,
            room_bytes,
            fetched_before: 0,
        })
    }

    /// Bytes that copies may take.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.room_bytes
    }

    /// The leaves of all copies.
    #[must_use]
    pub fn cache(&self) -> Arc<Cache> {
        self.cache.clone()
    }

    /// What is known of the copies, as it changes.
    #[must_use]
    pub fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// Carries out orders until nobody gives them any more. Without an order all stays as it is.
    pub async fn run(mut self, mut orders: watch::Receiver<Option<StagingOrder>>) {
        loop {
            let order = orders.borrow_and_update().clone();
            if let Some(order) = order {
                self.peers.set_key(order.peer_key.as_deref());
                self.take(&order.copies);
                for id in order.copies.iter().filter_map(|copy| copy.object.parse().ok()) {
                    let changed = tokio::select! {
                        biased;
                        changed = orders.changed() => Some(changed),
                        () = self.bring(id) => None,
                    };
                    match changed {
                        // What was fetched of it is on the disk, and is found again.
                        Some(Ok(())) => break,
                        Some(Err(_)) => return,
                        None => {}
                    }
                }
                if orders.has_changed().unwrap_or(false) {
                    continue;
                }
            }
            let next = self.copies.values().filter_map(|copy| copy.retry_at).min();
            let sleep = next.map_or(PAUSE_MAX, |at| at.saturating_duration_since(now()));
            tokio::select! {
                changed = orders.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Lets go of what is wanted no more, and notes what is.
    fn take(&mut self, order: &[CopyOrder]) {
        let wanted: BTreeMap<ObjectId, &CopyOrder> =
            order.iter().filter_map(|copy| Some((copy.object.parse().ok()?, copy))).collect();
        let gone: Vec<ObjectId> = self.copies.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for copy in gone.into_iter().filter_map(|id| self.copies.remove(&id)) {
            self.cache.unpin(&copy.pinned.into_iter().collect::<Vec<_>>());
        }
        for (id, order) in &wanted {
            self.copies.entry(*id).or_insert_with(|| Copy::wanted(order)).ordered(order);
        }
        // What a copy needs stays known as long as the copy.
        let needed = self.kept.with_references(self.copies.keys().copied());
        self.kept.ids().into_iter().filter(|id| !needed.contains(id)).for_each(|id| self.kept.forget(id));
        let stores: BTreeSet<&String> = self.copies.values().map(|copy| &copy.order.store).collect();
        self.leaves.retain(|address, (_, leaves)| {
            let stays = stores.contains(address);
            self.fetched_before += if stays { 0 } else { leaves.fetched_bytes() };
            stays
        });
        let members: Vec<String> = self.copies.values().flat_map(|copy| copy.order.members.clone()).collect();
        self.peers.keep(&members);
        self.tell();
    }

    /// Brings one copy to where it is to lie, if it is not there; notes what stands in its way.
    async fn bring(&mut self, id: ObjectId) {
        let mut brought = Ok(());
        for _ in 0..ROUNDS {
            let due = |copy: &&Copy| !copy.is_there() && copy.retry_at.is_none_or(|at| at <= now());
            let Some(copy) = self.copies.get(&id).filter(due) else { break };
            let order = copy.order.clone();
            brought = if copy.presence >= Presence::Disk { Ok(()) } else { self.fetch(id, &order).await };
            if brought.is_ok() && order.tier == Tier::Memory {
                brought = self.load(id).await;
            }
            // What was found damaged comes anew, at once.
            if self.copies.get(&id).is_none_or(|copy| copy.presence >= Presence::Disk) {
                break;
            }
        }
        let Some(copy) = self.copies.get_mut(&id) else { return };
        match brought {
            Ok(()) => (copy.failures, copy.retry_at, copy.problem) = (0, None, String::new()),
            Err(error) => {
                copy.problem = in_one_line(error.as_ref()).chars().take(PROBLEM_MAX).collect();
                copy.failures += 1;
                let pause = PAUSE.saturating_mul(1 << copy.failures.min(6)).min(PAUSE_MAX);
                copy.retry_at = Some(now() + pause);
                tracing::warn!(object = %id, "a copy cannot be staged: {}; again in {pause:?}", copy.problem);
            }
        }
        self.tell();
    }

    /// Has a copy on the disk, all of it.
    async fn fetch(&mut self, id: ObjectId, order: &CopyOrder) -> anyhow::Result<()> {
        let (store, leaves) = self.leaves_of(&order.store)?;
        if let Some(copy) = self.copies.get_mut(&id) {
            (copy.presence, copy.bytes) = (Presence::Fetching, 0);
        }
        self.tell();
        let (objects, leases) = self.objects(&store, id).await?;
        let wanted = wanted(&objects)?;
        let stored = wanted.iter().filter(|wanted| wanted.pack.is_some());
        let each: BTreeMap<LeafId, u32> = stored.map(|w| (w.record.id, w.record.content_bytes)).collect();
        let bytes: u64 = each.values().map(|bytes| u64::from(*bytes)).sum();
        anyhow::ensure!(
            bytes <= self.room_bytes,
            "it has {bytes} bytes, and this host keeps {} in all: raise staging.disk_gib",
            self.room_bytes
        );
        if let Some(copy) = self.copies.get_mut(&id) {
            // What came before something failed.
            copy.bytes = copy.pinned.iter().filter_map(|leaf| each.get(leaf)).map(|bytes| u64::from(*bytes)).sum();
        }
        let (began, before) = (now(), leaves.fetched_bytes());
        let near = Arc::new(Near::new(self.peers.clone(), order.members.clone()));
        let fetches = near.in_order(runs(wanted)).into_iter().map(|(run, waits)| {
            let (leaves, near) = (leaves.clone(), near.clone());
            async move {
                let ids: Vec<LeafId> = run.iter().map(|wanted| wanted.record.id).collect();
                near.brought(&leaves, run, waits).await.map(|()| ids)
            }
        });
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(RUNS_AT_ONCE);
        while let Some(ids) = fetches.try_next().await? {
            self.pin(id, &ids, &each)?;
        }
        drop(fetches);
        if let Some(rate) = rate(leaves.fetched_bytes() - before, began.elapsed()) {
            self.facts.send_modify(|facts| facts.fetch_bytes_per_s = Some(smooth(facts.fetch_bytes_per_s, rate)));
        }
        let missing = each.keys().filter(|leaf| !self.cache.holds(**leaf)).count();
        anyhow::ensure!(missing == 0, "{missing} leaves went while others came: raise staging.disk_gib");
        if let Some(copy) = self.copies.get_mut(&id) {
            (copy.leaves, copy.presence) = (each, Presence::Disk);
        }
        for lease in leases {
            // It would end by itself.
            drop(lease.release().await);
        }
        Ok(())
    }

    /// Reads a copy off the disk into memory.
    async fn load(&mut self, id: ObjectId) -> anyhow::Result<()> {
        self.tell();
        let arena = self.arena.clone().context("this host keeps no copies in memory: set staging.memory_gib")?;
        let Some(copy) = self.copies.get(&id) else { return Ok(()) };
        let of = |(id, bytes): (&LeafId, &u32)| OnDisk { id: *id, bytes: *bytes, path: self.cache.path(*id), at: 0 };
        let leaves: Vec<OnDisk> = copy.leaves.iter().map(of).collect();
        // What is loaded when nobody waits for it any more is let go of with the answer.
        let loaded = tokio::task::spawn_blocking(move || arena.load(&leaves)).await.context("a thread ended")?;
        let Some(copy) = self.copies.get_mut(&id) else { return Ok(()) };
        if let Err(LoadError::Damaged(damaged)) = &loaded {
            copy.presence = Presence::Fetching;
            damaged.iter().for_each(|leaf| self.cache.discard(*leaf));
        }
        let (held, loaded) = loaded?;
        (copy.held, copy.presence) = (Some(held), Presence::Memory);
        if let Some(rate) = rate(loaded.bytes, loaded.took) {
            self.facts.send_modify(|facts| facts.disk_bytes_per_s = Some(smooth(facts.disk_bytes_per_s, rate)));
        }
        Ok(())
    }

    /// Keeps leaves that have come.
    fn pin(&mut self, id: ObjectId, ids: &[LeafId], each: &BTreeMap<LeafId, u32>) -> anyhow::Result<()> {
        let Some(copy) = self.copies.get_mut(&id) else { return Ok(()) };
        let new: Vec<LeafId> = ids.iter().filter(|leaf| copy.pinned.insert(**leaf)).copied().collect();
        if self.cache.pin(&new) < new.len() {
            copy.pinned.retain(|leaf| self.cache.holds(*leaf));
            let folder = self.cache.folder().display();
            anyhow::bail!("there is no room: free some space in {folder}, or raise staging.disk_gib");
        }
        copy.bytes += new.iter().filter_map(|leaf| each.get(leaf)).map(|bytes| u64::from(*bytes)).sum::<u64>();
        self.tell();
        Ok(())
    }

    fn leaves_of(&mut self, address: &str) -> anyhow::Result<(Store, Arc<Leaves>)> {
        if let Some(known) = self.leaves.get(address) {
            return Ok(known.clone());
        }
        let store = Store::open(address, self.keys.of(address))?;
        let leaves = Leaves::new(self.cache.clone(), vec![store.clone()]);
        self.leaves.insert(address.to_owned(), (store.clone(), leaves.clone()));
        Ok((store, leaves))
    }

    /// An object and all that it refers to: as the host knows them, or else from the store, with leases so that content stays.
    async fn objects(&self, store: &Store, id: ObjectId) -> anyhow::Result<(Vec<Known>, Vec<Lease>)> {
        let (mut left, mut objects, mut leases) = (vec![id], Vec::<Known>::new(), Vec::new());
        while let Some(id) = left.pop() {
            if objects.iter().any(|(known, ..)| *known == id) {
                continue;
            }
            anyhow::ensure!(objects.len() < OBJECTS_MAX, "it refers to more than {OBJECTS_MAX} objects");
            let (manifest, index) = match self.kept.get(id) {
                Some(known) => {
                    let lease = Lease::take(store, Work::Read { index: known.0.index }).await;
                    // Without the store, what is on the disk may do.
                    leases.extend(lease.ok());
                    known
                }
                None => {
                    let (manifest, lease) = Lease::take_to_read(store, id).await?;
                    leases.extend(lease);
                    let index = store.index(manifest.index).await?;
                    let kept = self.kept.keep(id, &store.manifest_bytes(id).await?, &index);
                    kept.with_context(|| format!("cannot write into {}", self.cache.folder().display()))?;
                    (manifest, index)
                }
            };
            left.extend(manifest.references.iter().map(|reference| reference.id));
            objects.push((id, manifest, index));
        }
        Ok((objects, leases))
    }

    fn traffic(&self) -> Traffic {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let leaves = self.leaves.values().map(|(_, leaves)| leaves.fetched_bytes()).sum::<u64>();
        Traffic {
            store_bytes: self.fetched_before + leaves,
            peer_bytes: of(&self.peers.counts.received_bytes),
            sent_bytes: of(&self.peers.counts.sent_bytes),
            disk_bytes: of(&self.cache.counts.verified_bytes),
        }
    }

    /// Says what there is to whoever looks.
    fn tell(&self) {
        let report = |(id, copy): (&ObjectId, &Copy)| {
            let report = CopyReport {
                object: id.to_string(),
                presence: copy.presence,
                bytes: copy.bytes,
                problem: copy.problem.clone(),
            };
            (*id, report)
        };
        let copies: BTreeMap<ObjectId, CopyReport> = self.copies.iter().map(report).collect();
        let traffic = self.traffic();
        self.facts.send_if_modified(|facts| {
            let news = facts.copies != copies;
            (facts.copies, facts.traffic) = (copies, traffic);
            news
        });
    }
}

impl Copy {
    fn wanted(order: &CopyOrder) -> Self {
        Self {
            order: order.clone(),
            presence: Presence::Absent,
            bytes: 0,
            problem: String::new(),
            failures: 0,
            retry_at: None,
            pinned: BTreeSet::new(),
            leaves: BTreeMap::new(),
            held: None,
        }
    }

    /// It is ordered, perhaps elsewhere than before.
    fn ordered(&mut self, order: &CopyOrder) {
        let of_another_store = self.order.store != order.store;
        self.order = order.clone();
        if order.tier == Tier::Disk && self.held.take().is_some() {
            self.presence = Presence::Disk;
        }
        if of_another_store || self.is_there() {
            (self.failures, self.retry_at, self.problem) = (0, None, String::new());
        }
    }

    fn is_there(&self) -> bool {
        self.presence.tier() >= Some(self.order.tier)
    }
}

/// Leaves of objects, as their indexes say.
fn wanted(objects: &[Known]) -> anyhow::Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (object, manifest, index_bytes) in objects {
        let index = store::index(index_bytes, manifest.index)?;
        manifest.ranges(&index).with_context(|| format!("object {object}"))?;
        store::check_zeros(&index)?;
        let records = (0..index.leaves()).filter_map(|i| index.leaf(i));
        wanted.extend(records.map(|record| Wanted { pack: index.pack_of(&record), record }));
    }
    Ok(wanted)
}

#[allow(clippy::disallowed_methods, reason = "fetching takes real time")]
fn now() -> Instant {
    Instant::now()
}
