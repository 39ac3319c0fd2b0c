//! What is made ready before a claim comes: what is known of the host and of snapshots, files of those that have come to it, CUDA
//! started and memory pinned.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fleet::Presence;
use protocol::staging::CopyOrder;
use protocol::starts::StartOrder;
use snapshots::ObjectId;

use super::super::clock::now;
use super::super::config;
use super::super::staging::Shared;
use crate::restore::{Described, Driver, Ground, Here, Known, NotCaptured, Standbys, Where};
use crate::snapshots::in_one_line;
use crate::snapshots::store::Store;
use crate::snapshots::store::seal::StoreKeys;

/// What is known of the host is looked at anew after this time.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// How often it is looked whether there is something to make ready.
const LOOK: Duration = Duration::from_millis(500);
/// What could not be made ready is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);

/// What is ready.
#[derive(Debug)]
pub struct Ready {
    runtime: tokio::runtime::Runtime,
    keys: StoreKeys,
    /// Stores that workloads are taken from; empty: any.
    stores: Vec<String>,
    ground: Ground,
    shared: Option<Shared>,
    here: Mutex<Option<(Here, Instant)>>,
    /// Where objects that the host is to have lie.
    copies: Mutex<BTreeMap<ObjectId, String>>,
    described: Mutex<BTreeMap<ObjectId, Found>>,
    serves: AtomicBool,
    /// Nobody makes anything ready before then.
    not_before: Mutex<Option<Instant>>,
}

/// What an object was found to be.
#[derive(Debug, Clone)]
enum Found {
    /// A captured process: its files are on this host, from memory if they are in memory.
    Captured(Arc<Described>, Presence),
    /// Something else, which is its client's affair.
    Other,
}

impl Ready {
    /// Waits for what the staging subsystem has.
    ///
    /// # Errors
    /// There are no threads.
    pub fn new(part: &config::Restore, keys: StoreKeys, shared: Option<Receiver<Shared>>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("cannot start threads")?;
        // Memory for copies takes a while to be had. Where staging fails, everything comes from the store.
        let shared = shared.and_then(|shared| shared.recv().ok());
        let bytes = |gib: f64| (gib * f64::from(1 << 30)) as u64;
        let ground = Ground {
            state: part.folder.clone(),
            keep_bytes: bytes(part.keep_gib),
            memory_bytes: bytes(part.memory_gib),
            engines: Where { criu: part.criu.clone(), interposers: part.interposers.clone() },
            cache: shared.as_ref().map(|shared| shared.cache.clone()),
            standbys: Arc::new(Standbys::new(shared.as_ref().and_then(|shared| shared.arena.clone()))),
            fetches: Arc::default(),
        };
        let ready = Self {
            runtime,
            keys,
            stores: part.stores.clone(),
            ground,
            shared,
            here: Mutex::default(),
            copies: Mutex::default(),
            described: Mutex::default(),
            serves: AtomicBool::new(false),
            not_before: Mutex::default(),
        };
        Ok(ready)
    }

    /// A store that workloads may be taken from.
    fn store(&self, address: &str) -> anyhow::Result<Store> {
        let below = |above: &String| {
            let rest = address.strip_prefix(above.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        ensure!(
            self.stores.is_empty() || (self.stores.iter().any(below) && !address.contains("..")),
            "this host takes no workloads from {address}: see restore.stores in its join.toml"
        );
        Ok(Store::open(address, self.keys.of(address))?)
    }

    /// From what is staged, if all of that is here, else from the store.
    fn describe_one(&self, store: &Store, id: ObjectId) -> anyhow::Result<Described> {
        let cache = self.ground.cache.as_deref();
        match cache.map(|cache| Described::staged(cache, id)).transpose()?.flatten() {
            Some(described) => Ok(described),
            None => Described::read(&self.runtime, store, id),
        }
    }

    /// What calls of stores run on.
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Which copies the host is to have.
    pub fn copies(&self, copies: Vec<CopyOrder>) {
        let known = copies.into_iter().filter_map(|copy| Some((copy.object.parse().ok()?, copy.store)));
        let known: BTreeMap<ObjectId, String> = known.collect();
        locked(&self.described).retain(|id, _| known.contains_key(id));
        *locked(&self.copies) = known;
        self.wake();
    }

    /// Whether the host serves. Where it does not, nothing of this agent is on its GPUs: whoever tests them has them alone.
    pub fn serves(&self, serves: bool) {
        self.serves.store(serves, Ordering::Relaxed);
        if !serves {
            self.ground.standbys.clear();
        }
        self.wake();
    }

    /// There may be something to make ready.
    pub fn wake(&self) {
        *locked(&self.not_before) = None;
    }

    /// A snapshot that is to come up, and the store that it lies in.
    ///
    /// # Errors
    /// It is none, or its store fails.
    pub fn known(&self, order: &StartOrder) -> anyhow::Result<(Known, Store)> {
        let id: ObjectId = order.object.parse().map_err(|_| anyhow::anyhow!("'{}' is no object's id", order.object))?;
        let store = self.store(&order.store)?;
        let found = locked(&self.described).get(&id).cloned();
        let described = match found {
            Some(Found::Captured(described, _)) => (*described).clone(),
            Some(Found::Other) | None => self.describe_one(&store, id)?,
        };
        let here = locked(&self.here).as_ref().map(|(here, _)| here.clone());
        Ok((Known::new(described, self.ground.clone(), Some(order.gpus.clone()), here)?, store))
    }

    /// Makes ready what can be, as long as the process lives.
    pub fn keep_ready(&self) {
        let mut seen = BTreeMap::new();
        loop {
            let there = self.there();
            if there != seen {
                seen = there;
                self.wake();
            }
            self.look();
            std::thread::sleep(LOOK);
        }
    }

    fn look(&self) {
        if !self.serves.load(Ordering::Relaxed) || locked(&self.not_before).is_some_and(|at| now() < at) {
            return;
        }
        *locked(&self.not_before) = Some(now() + AGAIN);
        let is_new = |(_, at): &(Here, Instant)| at.elapsed() < LOOK_EVERY;
        if !locked(&self.here).as_ref().is_some_and(is_new) {
            let here = Here::look(&self.ground.engines, Driver::new().ok().as_mut());
            *locked(&self.here) = Some((here, now()));
        }
        let has_gpus = locked(&self.here).as_ref().is_some_and(|(here, _)| here.gpus.is_some());
        if has_gpus && let Err(error) = self.ground.standbys.have_one() {
            tracing::warn!("CUDA is not started ahead: {}", in_one_line(error.as_ref()));
        }
        // It may have been told otherwise before that began.
        if !self.serves.load(Ordering::Relaxed) {
            self.ground.standbys.clear();
        }
        self.describe();
    }

    /// What of which copy is on the host.
    fn there(&self) -> BTreeMap<ObjectId, Presence> {
        let Some(shared) = &self.shared else { return BTreeMap::new() };
        shared.facts.borrow().copies.iter().map(|(id, copy)| (*id, copy.presence)).collect()
    }

    /// Describes what has come to the host, and has its files there.
    fn describe(&self) {
        let there = self.there();
        let copies = locked(&self.copies).clone();
        for (id, address) in copies {
            let presence = there.get(&id).copied().unwrap_or_default();
            let known = locked(&self.described).get(&id).cloned();
            let is_ready = match &known {
                Some(Found::Captured(_, ready)) => *ready >= presence,
                Some(Found::Other) => true,
                None => false,
            };
            if presence.tier().is_none() || is_ready {
                continue;
            }
            match self.made_ready(id, &address, presence) {
                Ok(found) => drop(locked(&self.described).insert(id, found)),
                Err(error) => tracing::warn!(object = %id, "not made ready: {}", in_one_line(error.as_ref())),
            }
        }
    }

    fn made_ready(&self, id: ObjectId, address: &str, presence: Presence) -> anyhow::Result<Found> {
        let store = self.store(address)?;
        let described = match self.describe_one(&store, id) {
            Err(error) if error.is::<NotCaptured>() => return Ok(Found::Other),
            described => described?,
        };
        let known = Known::new(described.clone(), self.ground.clone(), None, None)?;
        known.bring_files(&self.runtime, &store)?;
        if presence == Presence::Memory {
            known.read_images()?;
        }
        tracing::info!(object = %id, from = presence.tier().map_or("nowhere", fleet::Tier::name), "can be restored at once");
        Ok(Found::Captured(Arc::new(described), presence))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
