//! A workload brought up by the best rung that works: each failure ends all of what it started and tries the next one, in the
//! same place.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use snapshots::compatibility::refusals;
use snapshots::ladder::{Rung, Situation, Step, ladder};
use snapshots::manifest::Kind;
use snapshots::{Manifest, ObjectId};

use super::answer;
use super::capture::{Phase, timed};
use super::criu::Criu;
use super::device::Driver;
use super::engine::Engine;
use super::facts;
use super::held::Held;
use super::recipe::Recipe;
use super::records::{self, CAPTURED, Captured, IMAGES, Memory, RECIPE};
use crate::snapshots::get;
use crate::snapshots::store::Store;
use crate::snapshots::store::lease::Lease;

/// What a host fetches before it was measured, bytes a second.
const FETCH_BYTES_PER_S: f64 = 5e8;
/// Longest document beside the images, bytes.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

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
    /// Most bytes of files of all snapshots that are kept.
    keep_bytes: u64,
}

/// What was tried, and what came of it.
#[derive(Debug)]
pub struct Tried {
    /// The rung.
    pub rung: Rung,
    /// Its phases.
    pub phases: Vec<Phase>,
    /// What went wrong.
    pub failure: Option<anyhow::Error>,
}

impl Known {
    /// What a store has under an id, as far as it is needed to decide.
    ///
    /// # Errors
    /// There is no snapshot, or the store fails.
    pub fn of(
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        id: ObjectId,
        (state, keep_bytes): (&Path, u64),
    ) -> anyhow::Result<Self> {
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
        let memory = Memory::of(state, id)?;
        let files = state.join("images").join(id.to_string());
        Ok(Self { id, captured, recipe, memory, files, keep_bytes, manifest })
    }

    /// The rungs, each with what is expected of it here.
    #[must_use]
    pub fn ladder(&self, criu: Option<&Path>) -> Vec<Step> {
        let engine = Criu::new(criu.map(Into::into));
        let uses_gpus = self.captured.requirements.devices.is_some();
        let devices = if uses_gpus { Driver::new().ok().and_then(|mut driver| driver.devices()) } else { None };
        let host = facts::host(&[&engine as &dyn Engine], devices);
        let bytes = self.manifest.bytes();
        ladder(&Situation {
            refusals: refusals(&self.captured.requirements, &host),
            history: self.memory.read(),
            cold_s: self.captured.cold_s,
            bytes,
            missing_bytes: if self.files.exists() { 0 } else { bytes },
            fetch_bytes_per_s: FETCH_BYTES_PER_S,
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
        &self,
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        criu: Option<&Path>,
        steps: &[Step],
        mut told: impl FnMut(&Tried),
    ) -> anyhow::Result<Held> {
        for step in steps.iter().filter(|step| step.against.is_empty()) {
            let mut phases = Vec::new();
            let came_up = match step.rung {
                Rung::Restore => self.restored(runtime, store, criu, &mut phases),
                Rung::ColdStart => self.started(criu, &mut phases),
            };
            let seconds = phases.iter().map(|(_, seconds)| seconds).sum();
            let remembered = self.memory.change(|history| match &came_up {
                Ok(_) => history.ready(step.rung, seconds),
                Err(_) if step.rung == Rung::Restore => history.failed(),
                Err(_) => {}
            });
            if let Err(error) = remembered {
                tracing::warn!("{error:#}");
            }
            let (held, failure) = match came_up {
                Ok(held) => (Some(held), None),
                Err(failure) => (None, Some(failure)),
            };
            told(&Tried { rung: step.rung, phases, failure });
            if let Some(held) = held {
                return Ok(held);
            }
        }
        anyhow::bail!("nothing works: see above")
    }

    fn restored(
        &self,
        runtime: &tokio::runtime::Runtime,
        store: &Store,
        criu: Option<&Path>,
        phases: &mut Vec<Phase>,
    ) -> anyhow::Result<Held> {
        if !self.files.exists() {
            timed(phases, "fetch", || self.fetch(runtime, store))?;
        }
        let mut held = Held::new(criu)?;
        timed(phases, "processes", || held.restore(&self.files.join(IMAGES), &self.captured.outlets))?;
        if self.captured.requirements.devices.is_some() {
            timed(phases, "device memory", || {
                let mut driver = Driver::new()?;
                let using = driver.using(&held.pids());
                ensure!(!using.is_empty(), "no process that came back uses a GPU, where one did");
                driver.thaw(&using).context("the driver cannot bring it back onto the GPUs")
            })?;
        }
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
        Ok(held)
    }

    fn started(&self, criu: Option<&Path>, phases: &mut Vec<Phase>) -> anyhow::Result<Held> {
        let mut held = Held::new(criu)?;
        timed(phases, "start", || held.start(&self.recipe))?;
        timed(phases, "ready", || answer::wait_until_ready(&mut held, &self.recipe.ready))?;
        Ok(held)
    }

    /// Every byte is verified on its way to the files, which appear whole or not at all.
    fn fetch(&self, runtime: &tokio::runtime::Runtime, store: &Store) -> anyhow::Result<()> {
        let folder = self.files.parent().context("no folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot write into {}", folder.display()))?;
        records::make_room(folder, self.keep_bytes.saturating_sub(self.manifest.bytes()));
        let (manifest, lease) = runtime.block_on(Lease::take_to_read(store, self.id))?;
        let got = runtime.block_on(get::get(store, &manifest, &self.files, |_| {}));
        if let Some(lease) = lease {
            // It would end by itself.
            drop(runtime.block_on(lease.release()));
        }
        got.map(drop)
    }
}
