//! A workload brought up by the best rung that works: each failure ends all of what it started and tries the next one, in the
//! same place.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use snapshots::compatibility::refusals;
use snapshots::ladder::{Rung, Situation, Step, ladder};

use super::answer;
use super::capture::{Phase, timed};
use super::described::Described;
use super::device::Part;
use super::device::driver::{Driver, Gpus, VISIBLE};
use super::device::thaw::{Filled, Filling, Prepared};
use super::facts::Here;
use super::held::{Held, Where};
use super::library;
use super::records::{self, DEVICE, IMAGES, Memory};
use super::standby::Standbys;
use crate::snapshots::get::{self, Which};
use crate::snapshots::host::cache::Cache;
use crate::snapshots::store::Store;
use crate::snapshots::store::lease::Lease;

/// Phase in which bytes are fetched.
const FETCH: &str = "fetch";
/// How often, and how many times, it is looked whether a GPU is free again after a failure: ten seconds.
const CLEAN_LOOK: Duration = Duration::from_millis(100);
const CLEAN_LOOKS: u32 = 100;
/// Less than this is nobody's context, MiB.
const CLEAN_MIB: i64 = 128;

/// A snapshot, and what is known of it here.
#[derive(Debug)]
pub struct Known {
    /// What it is.
    pub what: Described,
    memory: Memory,
    /// Where its files are, or will be.
    files: PathBuf,
    ground: Ground,
    /// Numbers of the GPUs that it gets; none: it may get all.
    gpus: Option<Vec<u32>>,
    here: Option<Here>,
    /// Free memory of its GPUs before anything was started, MiB.
    free_before: Option<Vec<i64>>,
    ready: Option<Ready>,
    /// Nobody wants it any more.
    unwanted: Arc<AtomicBool>,
}

/// What was made ready for a restore.
#[derive(Debug)]
struct Ready {
    /// A holder that waits for the tree.
    holder: Held,
    /// CUDA and memory, where the tree uses GPUs.
    device: Option<Prepared>,
}

/// Of this host.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Where files are kept and starts remembered.
    pub state: PathBuf,
    /// Most bytes of files of all snapshots that are kept.
    pub keep_bytes: u64,
    /// Most memory for device memory on its way, bytes.
    pub memory_bytes: u64,
    /// Where engines are.
    pub engines: Where,
    /// Leaves that are on this host.
    pub cache: Option<Arc<Cache>>,
    /// What has CUDA started and memory pinned.
    pub standbys: Arc<Standbys>,
    /// Held by whoever brings files.
    pub fetches: Arc<Mutex<()>>,
}

/// What was tried, and what came of it.
#[derive(Debug)]
pub struct Tried {
    /// The rung.
    pub rung: Rung,
    /// Its phases.
    pub phases: Vec<Phase>,
    /// Device memory that was filled meanwhile.
    pub filled: Option<Filled>,
    /// What went wrong.
    pub failure: Option<anyhow::Error>,
}

impl Known {
    /// A snapshot that is to come up on these GPUs; without any, it may get all. `here`: what was found when this host was looked
    /// at; it is looked at now without it.
    ///
    /// # Errors
    /// What is remembered of it cannot be written to.
    pub fn new(what: Described, ground: Ground, gpus: Option<Vec<u32>>, here: Option<Here>) -> anyhow::Result<Self> {
        let memory = Memory::of(&ground.state, what.id)?;
        let files = ground.state.join("images").join(what.id.to_string());
        let (free_before, ready, unwanted) = (None, None, Arc::default());
        Ok(Self { what, memory, files, ground, gpus, here, free_before, ready, unwanted })
    }

    /// Has nothing more tried once this is set.
    pub fn unwanted(&mut self, unwanted: Arc<AtomicBool>) {
        self.unwanted = unwanted;
    }

    fn uses_gpus(&self) -> bool {
        self.what.captured.requirements.devices.is_some()
    }

    /// The rungs, each with what is expected of it here.
    ///
    /// # Errors
    /// This host has no such GPUs.
    pub fn ladder(&mut self) -> anyhow::Result<Vec<Step>> {
        let mut asked = if self.uses_gpus() { Driver::new().ok() } else { None };
        let here = match self.here.take() {
            Some(here) => here,
            None => Here::look(&self.ground.engines, asked.as_mut()),
        };
        // One that has answered before answers sooner.
        let known = self.ready.as_mut().and_then(|ready| ready.device.as_mut()).map(Prepared::driver);
        self.free_before = known.or(asked.as_mut()).and_then(|driver| driver.free_mib(self.gpus.as_deref()));
        let host = here.with(self.gpus.as_deref().filter(|_| self.uses_gpus()))?;
        self.here = Some(here);
        let bytes = self.what.manifest.bytes();
        let device_bytes = self.what.captured.parts.iter().map(Part::bytes).sum();
        Ok(ladder(&Situation {
            refusals: refusals(&self.what.captured.requirements, &host),
            history: self.memory.read(),
            cold_s: self.what.captured.cold_s,
            engine_bytes: bytes.saturating_sub(device_bytes),
            device_bytes,
            missing_bytes: self.missing_bytes(),
            prepared: self.is_prepared(),
            fetch_bytes_per_s: self.memory.fetch_bytes_per_s(),
        }))
    }

    /// Whether everything is made ready, with nothing left to read off the disk.
    fn is_prepared(&self) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.device.as_ref().is_none_or(Prepared::is_in_memory))
    }

    /// Device memory that is in the cache needs no files.
    fn is_cached(&self) -> bool {
        self.ground.cache.is_some() && self.what.missing_bytes(self.ground.cache.as_ref(), is_of_device) == 0
    }

    fn is_here(&self) -> bool {
        let files = || self.what.captured.parts.iter().all(|part| self.files.join(&part.stream).exists());
        self.files.exists() && (files() || self.is_cached())
    }

    fn missing_bytes(&self) -> u64 {
        if self.is_here() { 0 } else { self.what.missing_bytes(self.ground.cache.as_ref(), |_| true) }
    }

    /// Forgets how starts went.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget(&self) -> anyhow::Result<()> {
        self.memory.forget()
    }

    /// Brings the workload up by the first of these rungs that works; `told` hears of each that was tried.
    ///
    /// # Errors
    /// Not even a cold start works, something else has its address, or nobody wants it any more.
    pub fn bring_up(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        steps: &[Step],
        mut told: impl FnMut(&Tried),
    ) -> anyhow::Result<Held> {
        answer::nobody_serves(&self.what.recipe.ready)?;
        for step in steps.iter().filter(|step| step.against.is_empty()) {
            let (mut phases, prepared) = (Vec::new(), self.is_prepared());
            let came_up = match step.rung {
                Rung::Restore => {
                    let came_up = self.restored(runtime, store, &mut phases);
                    came_up.map_err(|error| self.cleaned(error, &mut phases))
                }
                Rung::ColdStart => {
                    // Nothing of a restore is on the GPUs then.
                    self.ready = None;
                    self.started(&mut phases).map(|held| (held, None))
                }
            };
            anyhow::ensure!(!self.unwanted.load(Ordering::Relaxed), "nobody wants it any more");
            // How long fetching takes is known by itself.
            let seconds = phases.iter().filter(|(name, _)| *name != FETCH).map(|(_, seconds)| seconds).sum();
            let remembered = self.memory.change(|history| match &came_up {
                Ok(_) => history.ready(step.rung, seconds, prepared),
                Err(_) if step.rung == Rung::Restore => history.failed(),
                Err(_) => {}
            });
            if let Err(error) = remembered {
                tracing::warn!("{error:#}");
            }
            let (held, filled, failure) = match came_up {
                Ok((held, filled)) => (Some(held), filled, None),
                Err(failure) => (None, None, Some(failure)),
            };
            told(&Tried { rung: step.rung, phases, filled, failure });
            if let Some(held) = held {
                return Ok(held);
            }
        }
        anyhow::bail!("nothing works: see above")
    }

    /// Waits until the GPUs have nothing more of a restore that failed: what comes next in its place is to find them as it did.
    fn cleaned(&mut self, failure: anyhow::Error, phases: &mut Vec<Phase>) -> anyhow::Error {
        let Some(before) = self.free_before.clone() else { return failure };
        let clean = timed(phases, "clean GPUs", || {
            let mut driver = Driver::new()?;
            for _ in 0..CLEAN_LOOKS {
                // What cannot be seen is not free.
                let free =
                    driver.free_mib(self.gpus.as_deref()).filter(|free| free.len() == before.len()).unwrap_or_default();
                let each = before.iter().zip(&free).filter(|(before, free)| *free + CLEAN_MIB >= **before);
                if each.count() == before.len() {
                    return Ok(());
                }
                std::thread::sleep(CLEAN_LOOK);
            }
            anyhow::bail!("GPUs still have memory of it")
        });
        match clean {
            Ok(()) => failure,
            Err(unclean) => failure.context(unclean),
        }
    }

    /// Makes ready what can be: files on this host, CUDA started, and with `load` all device memory in pinned memory.
    ///
    /// # Errors
    /// The store, the disk or the driver fails, or there is no room.
    pub fn prepare(&mut self, runtime: &tokio::runtime::Runtime, store: &Store, load: bool) -> anyhow::Result<()> {
        self.bring_files(runtime, store)?;
        self.make_ready(load)
    }

    /// Has its files on this host.
    ///
    /// # Errors
    /// The store or the disk fails.
    pub fn bring_files(&self, runtime: &tokio::runtime::Runtime, store: &Store) -> anyhow::Result<()> {
        self.fetch(runtime, store, &mut Vec::new())
    }

    /// Makes ready what can be without the store, if all of it is on this host.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn make_ready_if_here(&mut self) -> anyhow::Result<()> {
        if self.is_here() { self.make_ready(false) } else { Ok(()) }
    }

    /// The same of what needs nothing of the store.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    fn make_ready(&mut self, load: bool) -> anyhow::Result<()> {
        if let Some((path, bytes)) = self.what.captured.library.as_ref().zip(self.what.library.as_ref()) {
            library::ensure_at(path, &self.ground.engines.interposers, bytes)?;
        }
        let device = if self.uses_gpus() {
            let stored = self.what.stored(&self.files, self.ground.cache.as_ref())?;
            let gpus = self.chosen()?.map(|gpus| gpus.uuids()).transpose()?;
            let standby = self.ground.standbys.take()?;
            let memory_bytes = self.ground.memory_bytes;
            Some(Prepared::new(&self.what.captured, stored, (standby, gpus.as_deref()), memory_bytes, load)?)
        } else {
            None
        };
        if load {
            self.read_images()?;
        }
        self.ready = Some(Ready { holder: Held::new(self.ground.engines.criu.as_deref())?, device });
        Ok(())
    }

    /// The GPUs that it gets, where these were chosen.
    fn chosen(&self) -> anyhow::Result<Option<Gpus>> {
        let Some(chosen) = &self.gpus else { return Ok(None) };
        let all = match self.here.as_ref().and_then(|here| here.gpus.clone()) {
            Some(all) => all,
            None => Driver::new()?.gpus().context("no driver answers on this host")?,
        };
        all.only(Some(chosen)).map(Some)
    }

    /// Has the engine's images in the kernel's cache of files.
    ///
    /// # Errors
    /// The disk fails.
    pub fn read_images(&self) -> anyhow::Result<()> {
        let images = self.files.join(IMAGES);
        let shown = || format!("cannot read {}", images.display());
        for entry in std::fs::read_dir(&images).with_context(shown)? {
            let mut file = std::fs::File::open(entry.with_context(shown)?.path()).with_context(shown)?;
            std::io::copy(&mut file, &mut std::io::sink()).with_context(shown)?;
        }
        Ok(())
    }

    fn restored(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        phases: &mut Vec<Phase>,
    ) -> anyhow::Result<(Held, Option<Filled>)> {
        if self.ready.is_none() {
            self.fetch(runtime, store, phases)?;
            timed(phases, "prepare", || self.make_ready(false))?;
        }
        let Ready { holder, device } = self.ready.take().context("nothing was made ready")?;
        let mut held = holder;
        // Memory is filled while the processes come back.
        let filling = device.map(Prepared::fill).transpose()?;
        let filled = self.brought_back(&mut held, filling, phases)?;
        timed(phases, "after restore", || answer::run(&self.what.recipe.after_restore, "after_restore"))?;
        timed(phases, "ready", || answer::wait_until_ready(&mut held, &self.what.recipe.ready, &self.unwanted))?;
        timed(phases, "canary", || {
            let Some((canary, was)) = self.what.recipe.canary.as_ref().zip(self.what.captured.answer.as_ref()) else {
                return Ok(());
            };
            let is = answer::asked(canary)?;
            anyhow::ensure!(is == *was, "it answers its canary differently than when it was captured");
            Ok(())
        })?;
        Ok((held, filled))
    }

    /// Processes, contexts and memory.
    fn brought_back(
        &self,
        held: &mut Held,
        mut filling: Option<Filling>,
        phases: &mut Vec<Phase>,
    ) -> anyhow::Result<Option<Filled>> {
        let came = timed(phases, "processes", || held.restore(&self.files.join(IMAGES), &self.what.captured.outlets));
        let came = came.and_then(|()| match &mut filling {
            Some(filling) => timed(phases, "driver", || filling.contexts(held)),
            None => Ok(()),
        });
        let given = match (came, filling) {
            (Ok(()), Some(filling)) => timed(phases, "device memory", || filling.give(held)).map(Some),
            (came, filling) => {
                if came.is_err() {
                    // Its end comes before its threads go on, and they go on before its end is waited for.
                    held.kill();
                }
                drop(filling);
                came.map(|()| None)
            }
        };
        let Some((filled, standby)) = given? else { return Ok(None) };
        self.ground.standbys.put(standby);
        Ok(Some(filled))
    }

    fn started(&self, phases: &mut Vec<Phase>) -> anyhow::Result<Held> {
        let mut recipe = self.what.recipe.clone();
        let chosen = match self.chosen() {
            // What uses none does without.
            Err(_) if !self.uses_gpus() => None,
            chosen => chosen?,
        };
        if let Some(gpus) = chosen {
            // Whatever the recipe says: others have the rest.
            recipe.environment.insert(VISIBLE.into(), gpus.visible());
        }
        let mut held = Held::new(self.ground.engines.criu.as_deref())?;
        timed(phases, "start", || held.start(&recipe))?;
        timed(phases, "ready", || answer::wait_until_ready(&mut held, &recipe.ready, &self.unwanted))?;
        Ok(held)
    }

    /// Every byte is verified on its way to the files, which appear whole or not at all.
    fn fetch(&self, runtime: &tokio::runtime::Runtime, store: &Store, phases: &mut Vec<Phase>) -> anyhow::Result<()> {
        if self.is_here() {
            return Ok(());
        }
        timed(phases, FETCH, || {
            // One at a time: what another has brought is there then.
            let _alone = self.ground.fetches.lock().unwrap_or_else(PoisonError::into_inner);
            if self.is_here() {
                return Ok(());
            }
            let folder = self.files.parent().context("no folder")?;
            std::fs::create_dir_all(folder).with_context(|| format!("cannot write into {}", folder.display()))?;
            if self.files.exists() {
                // Without what the cache had of it.
                std::fs::remove_dir_all(&self.files).context("what is left of its files cannot be taken away")?;
            }
            let (manifest, cached) = (&self.what.manifest, self.is_cached());
            records::make_room(folder, self.ground.keep_bytes.saturating_sub(manifest.bytes()));
            let here = self.what.missing_bytes(self.ground.cache.as_ref(), |_| true) == 0;
            let lease = match runtime.block_on(Lease::take_to_read(store, self.what.id)) {
                // Without the store, what is on this host does.
                Err(_) if here => None,
                leased => leased?.1,
            };
            let which =
                Which { streams: &|name: &str| !(cached && is_of_device(name)), local: self.ground.cache.as_deref() };
            let got = runtime.block_on(get::get_some(store, manifest, &self.files, &which, |_| {}));
            if let Some(lease) = lease {
                // It would end by itself.
                drop(runtime.block_on(lease.release()));
            }
            got.map(drop)
        })?;
        if let Some((_, seconds)) = phases.last().filter(|_| self.ground.cache.is_none()) {
            self.memory.fetched(self.what.manifest.bytes(), Duration::from_secs_f64(*seconds));
        }
        Ok(())
    }
}

/// Whether a stream is device memory.
fn is_of_device(name: &str) -> bool {
    name.split('/').next() == Some(DEVICE)
}
