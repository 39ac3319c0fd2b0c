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

use super::cache::{Cache, CacheError};
use super::kept::Kept;
use super::leaves::{FetchError, Leaves, Wanted};
use super::peers::Peers;
use super::runs::runs;
use crate::snapshots::in_one_line;
use crate::snapshots::store::lease::{Lease, Work};
use crate::snapshots::store::{self, Store};

/// Share of the cache that staged copies may take: the rest is for what is fetched before it is known to stay.
const ROOM_SHARE: f64 = 0.8;
/// Runs that are asked for at the same time; how many are fetched is bounded where they are.
const RUNS_AT_ONCE: usize = 32;
/// Pauses after a failure: the first, doubled each time, and the longest.
const PAUSE: Duration = Duration::from_secs(2);
const PAUSE_MAX: Duration = Duration::from_secs(120);
/// Less than this says nothing of how fast the host fetches, bytes.
const MEASURED_MIN: u64 = 32 << 20;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// What others fetch for all is asked for again after this time, doubled each time, until it is this.
const PEERS_PAUSE: Duration = Duration::from_millis(250);
const PEERS_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Objects that a copy may need beside its own: weights, caches, an image.
const OBJECTS_MAX: usize = 64;

/// What is known of the copies of this host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// By object.
    pub copies: BTreeMap<ObjectId, CopyReport>,
    /// What was fetched, bytes a second.
    pub fetch_bytes_per_s: Option<f64>,
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
    /// Leaves that are kept for it, and the objects that they are of.
    pinned: BTreeSet<LeafId>,
    objects: Vec<ObjectId>,
}

/// The copies of a host.
#[derive(Debug)]
pub struct Stage {
    cache: Arc<Cache>,
    kept: Kept,
    /// By address of the store.
    leaves: BTreeMap<String, (Store, Arc<Leaves>)>,
    copies: BTreeMap<ObjectId, Copy>,
    facts: watch::Sender<Facts>,
    peers: Arc<Peers>,
    room_bytes: u64,
    /// Fetched from stores that are used no more.
    fetched_before: u64,
}

impl Stage {
    /// Copies in a cache folder that may take `budget_bytes`, fetched from `peers` where they have them.
    ///
    /// # Errors
    /// The folder is no cache.
    pub fn open(folder: &Path, budget_bytes: u64, peers: Arc<Peers>) -> Result<Self, CacheError> {
        let cache = Arc::new(Cache::open(folder, budget_bytes)?);
        let room_bytes = (budget_bytes as f64 * ROOM_SHARE) as u64;
        let (facts, _) = watch::channel(Facts::default());
        Ok(Self {
            cache,
            kept: Kept::staged(folder),
            leaves: BTreeMap::new(),
            copies: BTreeMap::new(),
            facts,
            peers,
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
        for id in gone {
            if let Some(copy) = self.copies.remove(&id) {
                self.cache.unpin(&copy.pinned.iter().copied().collect::<Vec<_>>());
            }
        }
        for (id, order) in &wanted {
            let new = || Copy {
                order: (*order).clone(),
                presence: Presence::Absent,
                bytes: 0,
                problem: String::new(),
                failures: 0,
                retry_at: None,
                pinned: BTreeSet::new(),
                objects: Vec::new(),
            };
            self.copies.entry(*id).or_insert_with(new).order = (*order).clone();
        }
        // What a copy needs stays known as long as the copy.
        let needed = self.kept.with_references(self.copies.keys().copied());
        for id in self.kept.ids().into_iter().filter(|id| !needed.contains(id)) {
            self.kept.forget(id);
            self.cache.let_staged_go(id);
        }
        let stores: BTreeSet<&String> = self.copies.values().map(|copy| &copy.order.store).collect();
        self.leaves.retain(|address, (_, leaves)| {
            let stays = stores.contains(address);
            self.fetched_before += if stays { 0 } else { leaves.fetched_bytes() };
            stays
        });
        let peers: Vec<String> = self.copies.values().flat_map(|copy| copy.order.peers.clone()).collect();
        self.peers.keep(&peers);
        self.tell();
    }

    /// Brings one copy, if it is not there; notes what stands in its way.
    async fn bring(&mut self, id: ObjectId) {
        let due = |copy: &&Copy| copy.presence < Presence::Disk && copy.retry_at.is_none_or(|at| at <= now());
        let Some(order) = self.copies.get(&id).filter(due).map(|copy| copy.order.clone()) else { return };
        let brought = self.fetch(id, &order).await;
        let Some(copy) = self.copies.get_mut(&id) else { return };
        match brought {
            Ok(()) => {
                (copy.presence, copy.failures, copy.retry_at) = (Presence::Disk, 0, None);
                copy.problem.clear();
                // They stay for the copy from here on.
                copy.objects.iter().for_each(|object| self.cache.let_staged_go(*object));
                if copy.order.tier == Tier::Memory {
                    copy.problem = "this host keeps no copies in memory".into();
                }
            }
            Err(error) => {
                copy.presence = Presence::Absent;
                copy.problem = in_one_line(error.as_ref());
                copy.failures += 1;
                let pause = PAUSE.saturating_mul(1 << copy.failures.min(6)).min(PAUSE_MAX);
                copy.retry_at = Some(now() + pause);
                tracing::warn!(object = %id, "a copy cannot be staged: {}; again in {pause:?}", copy.problem);
            }
        }
        self.tell();
    }

    async fn fetch(&mut self, id: ObjectId, order: &CopyOrder) -> anyhow::Result<()> {
        let (store, leaves) = self.leaves_of(&order.store)?;
        if let Some(copy) = self.copies.get_mut(&id) {
            (copy.presence, copy.bytes) = (Presence::Fetching, 0);
        }
        self.tell();
        let (objects, leases) = self.objects(&store, id).await?;
        let mut wanted = Vec::new();
        for (object, manifest, index_bytes) in &objects {
            let index = store::index(index_bytes, manifest.index)?;
            manifest.ranges(&index).with_context(|| format!("object {object}"))?;
            store::check_zeros(&index)?;
            let records = (0..index.leaves()).filter_map(|i| index.leaf(i));
            wanted.extend(records.map(|record| Wanted { pack: index.pack_of(&record), record }));
        }
        let stored = wanted.iter().filter(|wanted| wanted.pack.is_some());
        let each: BTreeMap<LeafId, u64> = stored.map(|w| (w.record.id, w.record.content_bytes.into())).collect();
        let bytes: u64 = each.values().sum();
        anyhow::ensure!(
            bytes <= self.room_bytes,
            "it has {bytes} bytes, and this host keeps {} in all: raise staging.disk_gib",
            self.room_bytes
        );
        if let Some(copy) = self.copies.get_mut(&id) {
            copy.objects = objects.iter().map(|(object, ..)| *object).collect();
        }
        let (began, before) = (now(), leaves.fetched_bytes());
        let (members, peers): (Arc<[String]>, _) = (order.peers.clone().into(), self.peers.clone());
        let is_home = |run: &Vec<Wanted>| run[0].pack.is_none_or(|pack| peers.is_home(pack, &members));
        // What this host fetches for others comes first.
        let (own, theirs): (Vec<_>, Vec<_>) = runs(wanted).into_iter().partition(is_home);
        let all = own.into_iter().map(|run| (run, false)).chain(theirs.into_iter().map(|run| (run, true)));
        let fetches = all.map(|(run, waits)| {
            let (leaves, peers, members) = (leaves.clone(), peers.clone(), members.clone());
            async move {
                let ids: Vec<LeafId> = run.iter().map(|wanted| wanted.record.id).collect();
                brought(&leaves, run, (&peers, &members), waits).await.map(|()| ids)
            }
        });
        let mut fetches = futures::stream::iter(fetches).buffer_unordered(RUNS_AT_ONCE);
        while let Some(ids) = fetches.try_next().await? {
            self.pin(id, &ids, &each)?;
        }
        drop(fetches);
        self.measured(leaves.fetched_bytes() - before, began.elapsed());
        for lease in leases {
            // It would end by itself.
            drop(lease.release().await);
        }
        Ok(())
    }

    /// Keeps leaves that have come.
    fn pin(&mut self, id: ObjectId, ids: &[LeafId], each: &BTreeMap<LeafId, u64>) -> anyhow::Result<()> {
        let Some(copy) = self.copies.get_mut(&id) else { return Ok(()) };
        let new: Vec<LeafId> = ids.iter().filter(|leaf| copy.pinned.insert(**leaf)).copied().collect();
        if self.cache.pin(&new) < new.len() {
            copy.pinned.retain(|leaf| self.cache.holds(*leaf));
            let folder = self.cache.folder().display();
            anyhow::bail!("there is no room: free some space in {folder}, or raise staging.disk_gib");
        }
        copy.bytes += new.iter().filter_map(|leaf| each.get(leaf)).sum::<u64>();
        self.tell();
        Ok(())
    }

    fn leaves_of(&mut self, address: &str) -> anyhow::Result<(Store, Arc<Leaves>)> {
        if let Some(known) = self.leaves.get(address) {
            return Ok(known.clone());
        }
        let store = Store::open(address)?;
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

    fn measured(&self, bytes: u64, took: Duration) {
        if bytes < MEASURED_MIN {
            return;
        }
        let rate = bytes as f64 / took.as_secs_f64().max(1e-3);
        self.facts.send_modify(|facts| {
            let known = facts.fetch_bytes_per_s.unwrap_or(rate);
            facts.fetch_bytes_per_s = Some(known + NEWEST * (rate - known));
        });
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

/// Has a run on the disk: from hosts of the zone, and what they have not from the store. What others fetch for all is waited for
/// as long as it comes.
async fn brought(
    leaves: &Arc<Leaves>,
    run: Vec<Wanted>,
    (peers, members): (&Peers, &[String]),
    waits: bool,
) -> Result<(), FetchError> {
    let all = run.clone();
    let mut missing = run;
    if !members.is_empty() {
        let mut pause = PEERS_PAUSE;
        loop {
            let before = missing.len();
            let still = leaves.near(missing.clone(), peers, members).await;
            let came = still.len() < before;
            if still.is_empty() || !waits || !peers.any(members) || (!came && pause > PEERS_PAUSE_MAX) {
                break;
            }
            pause = if came { PEERS_PAUSE } else { pause * 2 };
            tokio::time::sleep(pause).await;
            missing = still;
        }
    }
    leaves.ahead(all).await
}

#[allow(clippy::disallowed_methods, reason = "fetching takes real time")]
fn now() -> Instant {
    Instant::now()
}
