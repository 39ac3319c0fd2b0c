//! What a snapshot says of itself beside the images, and what this host remembers of its starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use snapshots::ObjectId;
use snapshots::compatibility::Requirements;
use snapshots::ladder::History;

use super::device::Part;
use super::engine::Outlets;
use crate::gpu::bulk::Uuid;
use crate::snapshots::host::rates::{rate, smooth};

/// Stream of [`Captured`].
pub const CAPTURED: &str = "capture.json";
/// Stream of the recipe.
pub const RECIPE: &str = "recipe.toml";
/// Folder of the engine's images.
pub const IMAGES: &str = "host";
/// Folder of device memory.
pub const DEVICE: &str = "device";
/// The newest format that this build reads and writes.
const FORMAT: u32 = 2;

/// What is known of a captured process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    format: u32,
    /// What it needs.
    pub requirements: Requirements,
    /// Ends of its output.
    pub outlets: Outlets,
    /// Seconds of its cold start to readiness.
    pub cold_s: f64,
    /// What it answered to its canary.
    pub answer: Option<String>,
    /// Identities of the GPUs of its host, as CUDA counts them.
    #[serde(default)]
    pub gpus: Vec<Uuid>,
    /// Bulk memory that is in streams of its own.
    #[serde(default)]
    pub parts: Vec<Part>,
    /// Numbers of processes that have the library, in their own namespace: each waits until it is let go on.
    #[serde(default)]
    pub served: Vec<i32>,
    /// The library that its processes have mapped.
    #[serde(default)]
    pub library: Option<PathBuf>,
}

impl Captured {
    /// Of this format.
    #[must_use]
    pub fn new(requirements: Requirements, outlets: Outlets, cold_s: f64, answer: Option<String>) -> Self {
        let (gpus, parts, served) = (Vec::new(), Vec::new(), Vec::new());
        Self { format: FORMAT, requirements, outlets, cold_s, answer, gpus, parts, served, library: None }
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is of a newer build, or makes no sense.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let head: Head = serde_json::from_slice(bytes).context("the snapshot does not say what it needs")?;
        ensure!(
            (1..=FORMAT).contains(&head.format),
            "the snapshot has format {}, this build reads up to {FORMAT}; update it",
            head.format
        );
        let captured: Self = serde_json::from_slice(bytes).context("the snapshot does not say what it needs")?;
        let waits = |part: &Part| captured.served.contains(&part.process);
        ensure!(captured.parts.iter().all(waits), "the snapshot has memory of a process that would not wait for it");
        Ok(captured)
    }
}

/// Where this host remembers what starts of an object took.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
    /// Of the host, for all objects.
    fetch: PathBuf,
}

/// What a host fetches before it was measured, bytes a second.
const FETCH_BYTES_PER_S: f64 = 5e8;

impl Memory {
    /// In a folder, made if it is not there.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn of(folder: &Path, id: ObjectId) -> anyhow::Result<Self> {
        let starts = folder.join("starts");
        std::fs::create_dir_all(&starts).with_context(|| format!("cannot write into {}", folder.display()))?;
        Ok(Self { path: starts.join(format!("{id}.json")), fetch: folder.join("fetch_bytes_per_s") })
    }

    /// What is remembered; nothing where that cannot be read.
    #[must_use]
    pub fn read(&self) -> History {
        std::fs::read(&self.path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// What this host fetches, bytes a second.
    #[must_use]
    pub fn fetch_bytes_per_s(&self) -> f64 {
        self.fetch_measured().unwrap_or(FETCH_BYTES_PER_S)
    }

    fn fetch_measured(&self) -> Option<f64> {
        let rate: f64 = std::fs::read_to_string(&self.fetch).ok()?.trim().parse().ok()?;
        (rate.is_finite() && rate > 0.0).then_some(rate)
    }

    /// So much was fetched in this time.
    pub fn fetched(&self, bytes: u64, took: Duration) {
        let Some(newest) = rate(bytes, took) else { return };
        // Whoever reads half of it takes what is assumed.
        if let Err(error) = std::fs::write(&self.fetch, smooth(self.fetch_measured(), newest).to_string()) {
            tracing::warn!("cannot remember how fast this host fetches: {error}");
        }
    }

    /// Changes it, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn change(&self, change: impl FnOnce(&mut History)) -> anyhow::Result<()> {
        let mut history = self.read();
        change(&mut history);
        let parent = self.path.parent().context("no folder")?;
        let mut file = tempfile::NamedTempFile::new_in(parent).context("cannot remember how a start went")?;
        serde_json::to_writer(&mut file, &history).context("cannot remember how a start went")?;
        file.persist(&self.path).context("cannot remember how a start went")?;
        Ok(())
    }

    /// Forgets it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forget(&self) -> anyhow::Result<()> {
        self.change(|history| *history = History::default())
    }
}

/// Takes files of snapshots away, those first that were started longest ago, until at most so many bytes are left. Whoever reads
/// them at that moment starts cold.
pub fn make_room(images: &Path, most_bytes: u64) {
    let bytes_of = |snapshot: &Path| -> u64 {
        let below = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let files = below(snapshot).chain(below(&snapshot.join(IMAGES))).chain(below(&snapshot.join(DEVICE)));
        files.filter_map(|file| file.metadata().ok()).filter(|meta| meta.is_file()).map(|meta| meta.len()).sum()
    };
    let last_start = |snapshot: &Path| {
        let name = snapshot.file_name()?.to_str()?;
        let record = images.parent()?.join("starts").join(format!("{name}.json"));
        std::fs::metadata(record).ok()?.modified().ok()
    };
    let known = std::fs::read_dir(images).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut by_age: Vec<_> = known.map(|path| (last_start(&path), bytes_of(&path), path)).collect();
    by_age.sort();
    let mut all: u64 = by_age.iter().map(|(_, bytes, _)| bytes).sum();
    for (_, bytes, path) in by_age {
        if all <= most_bytes {
            break;
        }
        match std::fs::remove_dir_all(&path) {
            Ok(()) => all -= bytes,
            Err(error) => tracing::warn!("{} cannot be taken away: {error}", path.display()),
        }
    }
}
