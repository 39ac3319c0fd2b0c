//! A workload brought up by the best rung that works: each failure ends all of what it started and tries the next one, in the
//! same place.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use snapshots::compatibility::refusals;
use snapshots::ladder::{Rung, Situation, Step, ladder};
use snapshots::manifest::Kind;
use snapshots::{Manifest, ObjectId};

use super::answer;
use super::capture::{Phase, timed};
use super::criu::Criu;
use super::device::Part;
use super::device::driver::Driver;
use super::device::thaw::{Filled, Filling, Prepared, Stored};
use super::engine::Engine;
use super::facts;
use super::held::{Held, Where};
use super::library;
use super::recipe::Recipe;
use super::records::{self, CAPTURED, Captured, IMAGES, Memory, RECIPE};
use crate::snapshots::get;
use crate::snapshots::store::lease::Lease;
use crate::snapshots::store::{self, Store};

/// Longest document beside the images, bytes.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;
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
    /// Its object.
    pub id: ObjectId,
    manifest: Manifest,
    captured: Captured,
    /// What the workload is.
    pub recipe: Recipe,
    memory: Memory,
    /// Where its files are, or will be.
    files: PathBuf,
    ground: Ground,
    /// Free memory of each GPU before anything was started, MiB, and who is asked for it.
    free_before: Option<(Driver, Vec<i64>)>,
    ready: Option<Ready>,
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
    /// What a store has under an id, as far as it is needed to decide.
    ///
    /// # Errors
    /// There is no snapshot, or the store fails.
    pub fn of(runtime: &tokio::runtime::Runtime, store: &Store, id: ObjectId, ground: Ground) -> anyhow::Result<Self> {
        let manifest = runtime.block_on(store.manifest(id))?;
        ensure!(
            manifest.kind == Kind::Snapshot,
            "object {id} is of kind '{}', not a captured process",
            manifest.kind.name()
        );
        let document = |name: &str| -> anyhow::Result<Vec<u8>> {
            let read = runtime.block_on(get::stream(store, &manifest, name, DOCUMENT_BYTES_MAX));
            read.with_context(|| format!("object {id} is no captured process"))
        };
        let captured = Captured::parse(&document(CAPTURED)?)?;
        let recipe = String::from_utf8(document(RECIPE)?).context("the recipe is no text")?;
        let recipe = Recipe::parse(&recipe).context("the snapshot's recipe")?;
        let memory = Memory::of(&ground.state, id)?;
        let files = ground.state.join("images").join(id.to_string());
        Ok(Self { id, captured, recipe, memory, files, manifest, ground, free_before: None, ready: None })
    }

    /// The rungs, each with what is expected of it here.
    #[must_use]
    pub fn ladder(&mut self) -> Vec<Step> {
        let engine = Criu::new(self.ground.engines.criu.clone());
        let uses_gpus = self.captured.requirements.devices.is_some();
        let mut asked = if uses_gpus { Driver::new().ok() } else { None };
        let devices = asked.as_mut().and_then(Driver::devices);
        self.free_before = asked.and_then(|mut driver| {
            let free = driver.free_mib()?;
            Some((driver, free))
        });
        let host = facts::host(&[&engine as &dyn Engine], devices);
        let bytes = self.manifest.bytes();
        let device_bytes = self.captured.parts.iter().map(Part::bytes).sum();
        ladder(&Situation {
            refusals: refusals(&self.captured.requirements, &host),
            history: self.memory.read(),
            cold_s: self.captured.cold_s,
            engine_bytes: bytes.saturating_sub(device_bytes),
            device_bytes,
            missing_bytes: if self.files.exists() { 0 } else { bytes },
            prepared: self.ready.is_some(),
            fetch_bytes_per_s: self.memory.fetch_bytes_per_s(),
        })
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
    /// Not even a cold start works.
    pub fn bring_up(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        steps: &[Step],
        mut told: impl FnMut(&Tried),
    ) -> anyhow::Result<Held> {
        for step in steps.iter().filter(|step| step.against.is_empty()) {
            let (mut phases, prepared) = (Vec::new(), self.ready.is_some());
            let came_up = match step.rung {
                Rung::Restore => {
                    let came_up = self.restored(runtime, store, &mut phases);
                    came_up.map_err(|error| self.cleaned(error, &mut phases))
                }
                Rung::ColdStart => self.started(&mut phases).map(|held| (held, None)),
            };
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
        let Some((mut driver, before)) = self.free_before.take() else { return failure };
        let clean = timed(phases, "clean GPUs", || {
            for _ in 0..CLEAN_LOOKS {
                // What cannot be seen is not free.
                let free = driver.free_mib().filter(|free| free.len() == before.len()).unwrap_or_default();
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
        self.fetch(runtime, store, &mut Vec::new())?;
        self.make_ready(runtime, store, load)
    }

    fn make_ready(&mut self, runtime: &tokio::runtime::Runtime, store: &Store, load: bool) -> anyhow::Result<()> {
        if let Some(path) = &self.captured.library {
            let read = get::stream(store, &self.manifest, library::STREAM, library::BYTES_MAX);
            let bytes = runtime.block_on(read).context("the snapshot lacks its library")?;
            library::ensure_at(path, &self.ground.engines.interposers, &bytes)?;
        }
        let device = if self.captured.requirements.devices.is_some() {
            let stored = runtime.block_on(self.stored(store))?;
            Some(Prepared::new(&self.captured, stored, self.ground.memory_bytes, load)?)
        } else {
            None
        };
        if load {
            self.read_images()?;
        }
        self.ready = Some(Ready { holder: Held::new(self.ground.engines.criu.as_deref())?, device });
        Ok(())
    }

    /// Has the engine's images in the kernel's cache of files.
    fn read_images(&self) -> anyhow::Result<()> {
        let images = self.files.join(IMAGES);
        let shown = || format!("cannot read {}", images.display());
        for entry in std::fs::read_dir(&images).with_context(shown)? {
            let mut file = std::fs::File::open(entry.with_context(shown)?.path()).with_context(shown)?;
            std::io::copy(&mut file, &mut std::io::sink()).with_context(shown)?;
        }
        Ok(())
    }

    /// Bulk memory with its leaves.
    async fn stored(&self, store: &Store) -> anyhow::Result<Vec<Stored>> {
        let bytes = store.index(self.manifest.index).await?;
        let index = store::index(&bytes, self.manifest.index)?;
        let ranges = self.manifest.ranges(&index)?;
        let of = |part: &Part| -> anyhow::Result<Stored> {
            let number = self.manifest.streams.iter().position(|stream| stream.name == part.stream);
            let number = number.with_context(|| format!("the snapshot lacks {}", part.stream))?;
            ensure!(self.manifest.streams[number].bytes == part.bytes(), "its {} has another length", part.stream);
            let leaves = ranges[number].clone().filter_map(|leaf| index.leaf(leaf)).collect();
            Ok(Stored { part: part.clone(), file: self.files.join(&part.stream), leaves })
        };
        self.captured.parts.iter().map(of).collect()
    }

    fn restored(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        phases: &mut Vec<Phase>,
    ) -> anyhow::Result<(Held, Option<Filled>)> {
        if self.ready.is_none() {
            self.fetch(runtime, store, phases)?;
            timed(phases, "prepare", || self.make_ready(runtime, store, false))?;
        }
        let Ready { holder, device } = self.ready.take().context("nothing was made ready")?;
        let mut held = holder;
        // Memory is filled while the processes come back.
        let mut filling = device.map(Prepared::fill).transpose()?;
        let filled = self.brought_back(&mut held, filling.as_mut(), phases).inspect_err(|_| {
            // Its end comes before its threads go on, and they go on before its end is waited for.
            held.kill();
        });
        drop(filling);
        let filled = filled?;
        timed(phases, "after restore", || answer::run(&self.recipe.after_restore, "after_restore"))?;
        timed(phases, "ready", || answer::wait_until_ready(&mut held, &self.recipe.ready))?;
        timed(phases, "canary", || {
            let Some((canary, was)) = self.recipe.canary.as_ref().zip(self.captured.answer.as_ref()) else {
                return Ok(());
            };
            let is = answer::asked(canary)?;
            ensure!(is == *was, "it answers its canary differently than when it was captured");
            Ok(())
        })?;
        Ok((held, filled))
    }

    /// Processes, contexts and memory.
    fn brought_back(
        &self,
        held: &mut Held,
        mut filling: Option<&mut Filling>,
        phases: &mut Vec<Phase>,
    ) -> anyhow::Result<Option<Filled>> {
        timed(phases, "processes", || held.restore(&self.files.join(IMAGES), &self.captured.outlets))?;
        if let Some(filling) = &mut filling {
            timed(phases, "driver", || filling.contexts(held))?;
        }
        filling.map(|filling| timed(phases, "device memory", || filling.give(held))).transpose()
    }

    fn started(&self, phases: &mut Vec<Phase>) -> anyhow::Result<Held> {
        let mut held = Held::new(self.ground.engines.criu.as_deref())?;
        timed(phases, "start", || held.start(&self.recipe))?;
        timed(phases, "ready", || answer::wait_until_ready(&mut held, &self.recipe.ready))?;
        Ok(held)
    }

    /// Every byte is verified on its way to the files, which appear whole or not at all.
    fn fetch(&self, runtime: &tokio::runtime::Runtime, store: &Store, phases: &mut Vec<Phase>) -> anyhow::Result<()> {
        if self.files.exists() {
            return Ok(());
        }
        timed(phases, FETCH, || {
            let folder = self.files.parent().context("no folder")?;
            std::fs::create_dir_all(folder).with_context(|| format!("cannot write into {}", folder.display()))?;
            records::make_room(folder, self.ground.keep_bytes.saturating_sub(self.manifest.bytes()));
            let (manifest, lease) = runtime.block_on(Lease::take_to_read(store, self.id))?;
            let got = runtime.block_on(get::get(store, &manifest, &self.files, |_| {}));
            if let Some(lease) = lease {
                // It would end by itself.
                drop(runtime.block_on(lease.release()));
            }
            got.map(drop)
        })?;
        if let Some((_, seconds)) = phases.last() {
            self.memory.fetched(self.manifest.bytes(), Duration::from_secs_f64(*seconds));
        }
        Ok(())
    }
}
