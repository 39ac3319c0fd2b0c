//! A workload at rest: started, warmed up, asked, written to files, and stored as one object.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context;
use snapshots::leaf::Compression;
use snapshots::manifest::{Kind, Reference};

use super::answer;
use super::criu::Criu;
use super::device::driver::{Driver, Gpus, VISIBLE};
use super::device::freeze::{Frozen, freeze};
use super::engine::Engine;
use super::facts;
use super::held::{Held, Where};
use super::library;
use super::recipe::{DeviceMemory, Recipe};
use super::records::{CAPTURED, Captured, IMAGES, RECIPE};
use crate::snapshots::put::{self, About, Done, Source};
use crate::snapshots::store::Store;

/// A phase with its seconds.
pub type Phase = (&'static str, f64);

/// What is to be captured, and where it goes.
#[derive(Debug)]
pub struct Capture<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Where engines are.
    pub engines: &'a Where,
    /// Numbers of the GPUs that it gets; none: it may get all.
    pub gpus: Option<&'a [u32]>,
    /// A folder with room for the process's memory.
    pub work: &'a Path,
    /// Objects that it needs beside.
    pub references: Vec<Reference>,
    /// For people and tools.
    pub labels: BTreeMap<String, String>,
    /// Whether leaves are compressed.
    pub compression: Compression,
}

/// Seconds of a step, noted under its name.
#[allow(clippy::disallowed_methods, reason = "phases take real time")]
pub(super) fn timed<T>(
    phases: &mut Vec<Phase>,
    name: &'static str,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let began = Instant::now();
    let done = work();
    phases.push((name, began.elapsed().as_secs_f64()));
    done
}

/// Captures a workload. It is gone afterwards, captured or not.
///
/// # Errors
/// It does not start, serve or answer, cannot be captured, or cannot be stored; nothing of it is stored then.
pub fn capture(
    runtime: &tokio::runtime::Runtime,
    store: &Store,
    capture: Capture<'_>,
    phases: &mut Vec<Phase>,
) -> anyhow::Result<Done> {
    let engine = Criu::new(capture.engines.criu.clone());
    // Before minutes are spent on a start.
    let version = timed(phases, "engine", || Ok(engine.probe()?))?;
    let recipe = capture.recipe;
    let folder = tempfile::tempdir_in(capture.work)
        .with_context(|| format!("cannot write into {}: choose another --work", capture.work.display()))?;
    let images = folder.path().join(IMAGES);
    std::fs::create_dir(&images).context("cannot make a folder")?;
    let library = match recipe.device_memory {
        DeviceMemory::Split => library::install(&capture.engines.interposers)?,
        DeviceMemory::Driver => None,
    };
    let all = Driver::new()?.gpus();
    let chosen = match capture.gpus {
        Some(gpus) => Some(all.context("no driver answers on this host")?.only(Some(gpus))?),
        None => None,
    };
    let mut held = Held::new(capture.engines.criu.as_deref())?;
    let mut cold = Vec::new();
    timed(&mut cold, "cold start", || {
        held.start(&with(recipe, library.as_deref(), chosen.as_ref()))?;
        answer::wait_until_ready(&mut held, &recipe.ready, &AtomicBool::new(false))
    })?;
    let cold_s = cold[0].1;
    phases.extend(cold);
    timed(phases, "warm-up", || answer::run(&recipe.warm_up, "warm_up"))?;
    let answered = timed(phases, "canary", || recipe.canary.as_ref().map(answer::asked).transpose())?;
    timed(phases, "before capture", || answer::run(&recipe.before_capture, "before_capture"))?;
    let outlets = held.outlets.clone();
    let frozen = freeze(&held, recipe.device_memory == DeviceMemory::Split, chosen.as_ref(), phases)?;
    timed(phases, "dump", || held.dump(&images))?;
    drop(held);
    let (devices, gpus, served, parts) = match frozen {
        Some(Frozen { devices, gpus, served, parts }) => (Some(devices), gpus, served, parts),
        None => (None, Vec::new(), Vec::new(), Vec::new()),
    };
    let mut captured = Captured::new(facts::requirements(&engine, version, devices), outlets, cold_s, answered);
    (captured.gpus, captured.served) = (gpus, served);
    captured.parts = parts.iter().map(|(part, _)| part.clone()).collect();
    captured.library.clone_from(&library);
    let write = |name: &str, bytes: Vec<u8>| {
        std::fs::write(folder.path().join(name), bytes).with_context(|| format!("cannot write {name}"))
    };
    write(CAPTURED, serde_json::to_vec_pretty(&captured).context("cannot write what it needs")?)?;
    write(RECIPE, toml::to_string(recipe).context("cannot write the recipe")?.into_bytes())?;
    if let Some(library) = library {
        write(library::STREAM, std::fs::read(&library).context("cannot read the library")?)?;
    }
    let Capture { references, labels, compression, .. } = capture;
    let about = About { kind: Kind::Snapshot, compression, references, labels };
    timed(phases, "store", || {
        let mut sources = put::sources(folder.path())?;
        // Device memory is stored from where it was copied to.
        sources.extend(parts.iter().map(|(part, memory)| Source {
            name: part.stream.clone(),
            path: memory.path(),
            bytes: part.bytes(),
        }));
        runtime.block_on(put::put(store, &sources, about, |_| {}))
    })
}

/// The same workload with a library before all others that it names itself, and with these GPUs alone.
fn with(recipe: &Recipe, library: Option<&Path>, gpus: Option<&Gpus>) -> Recipe {
    const PRELOAD: &str = "LD_PRELOAD";
    let mut recipe = recipe.clone();
    if let Some(gpus) = gpus {
        recipe.environment.entry(VISIBLE.into()).or_insert_with(|| gpus.visible());
    }
    if let Some(library) = library {
        let own = recipe.environment.get(PRELOAD).map(|own| format!(":{own}")).unwrap_or_default();
        recipe.environment.insert(PRELOAD.into(), format!("{}{own}", library.display()));
    }
    recipe
}
