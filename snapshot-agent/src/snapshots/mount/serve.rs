//! The process that serves a mount.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use snapshots::Manifest;
use snapshots::trace::Trace;
use tokio::signal::unix::{SignalKind, signal};

use super::Options;
use super::lazy::LazyImage;
use super::overlay::Overlay;
use super::table::{has_floor, mounts_at};
use super::watchdog;
use super::ways::{Mounted, Place, WAYS};
use crate::limits;
use crate::snapshots::host::{Cache, Kept, Leaves};
use crate::snapshots::store::lease::{Lease, Work};
use crate::snapshots::store::seal::SealKey;
use crate::snapshots::store::{Store, StoreError};

/// How often the run so far is written down: a process that is killed loses this much.
const TRACE_PERIOD: Duration = Duration::from_secs(30);
/// How often it is looked whether somebody unmounted.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Most bytes of a trace that is read: eight runs of 84,000 leaves are 5 MB.
const TRACE_BYTES_MAX: u64 = 16 << 20;

/// Mounts, serves until somebody unmounts or ends this process, and writes down what was touched.
///
/// # Errors
/// There is nothing to mount, or no way to mount it here.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // Nobody would take away what hangs here: readers get errors instead.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot tie this process to the one that watches it")?;
    limits::open_many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(serve(options))
}

#[allow(clippy::disallowed_methods, reason = "a start takes real time")]
async fn serve(options: &Options) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let key = options.key_file.as_deref().map(SealKey::read).transpose()?.map(Arc::new);
    let store = Store::open(&options.store, key.clone())?;
    let (manifest, index_bytes, lease) = known(&store, options).await?;
    let mut tiers = vec![store.clone()];
    for mirror in &options.mirrors {
        tiers.push(Store::open(mirror, key.clone())?);
    }
    let cache = Cache::open(&options.cache, (options.cache_gib * f64::from(1 << 30)) as u64)?;
    let leaves = Leaves::new(Arc::new(cache), tiers);
    let image = Arc::new(LazyImage::open(leaves.clone(), options.id, &manifest, &index_bytes).await?);
    let ready_s = began.elapsed().as_secs_f64();
    let scratch = options.scratch.clone().context("a scratch folder is needed")?;
    let folder = canonical(&options.folder).context("the folder to mount at is gone")?;
    let place = Place { folder, scratch, suid: options.suid };
    // Only now, so that what a dead process left is seen until then, and not the folder below.
    let below = usize::from(has_floor(&place.folder));
    watchdog::take_away(&place.folder, &place.scratch, below);
    let (way, mounted) = mount(options, &image, &place)?;
    let overlay = match &options.writable {
        Some(writable) => Some(Overlay::mount(&place.folder, writable, options.id, place.suid)?),
        None => None,
    };
    watchdog::has_mounted(&place.scratch).context("the cache cannot be written to")?;
    let size = indicatif::BinaryBytes(image.bytes);
    eprintln!("{} at {}: {size} by {way}, index and metadata in {ready_s:.3} s", options.id, options.folder.display());
    let traces = Traces::open(options, &image);
    if !options.no_prefetch {
        let (image, trace) = (image.clone(), traces.earlier.clone());
        tokio::spawn(async move { image.prefetch(&trace).await });
    }
    until_unmounted(&place.folder, below + 1 + usize::from(overlay.is_some()), || traces.write(&image)).await?;
    drop(overlay);
    tokio::task::spawn_blocking(move || drop(mounted)).await.context("unmounting failed")?;
    traces.write(&image);
    if let Some(lease) = lease {
        lease.release().await?;
    }
    let (share, counts) = (image.share(), &leaves.counts);
    let of = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
    eprintln!(
        "unmounted: touched {} of {size}; fetched {} in {} leaves, {} from the disk; {} repaired, {} failed",
        indicatif::BinaryBytes(share.touched_bytes),
        indicatif::BinaryBytes(of(&counts.fetched_bytes)),
        of(&counts.fetched),
        of(&counts.disk_hits),
        of(&counts.repaired) + of(&leaves.cache().counts.damaged),
        of(&counts.failed),
    );
    Ok(ExitCode::SUCCESS)
}

/// The image's manifest and index, from the store or, where it has them no more, from this host; and a lease, so that content stays.
async fn known(store: &Store, options: &Options) -> anyhow::Result<(Manifest, Vec<u8>, Option<Lease>)> {
    let (id, kept) = (options.id, Kept::mounted(&options.cache));
    let of_store = async {
        let (manifest, lease) = Lease::take_to_read(store, id).await?;
        let index = store.index(manifest.index).await?;
        let document = store.manifest_bytes(id).await?;
        anyhow::Ok((manifest, index, lease, document))
    };
    match of_store.await {
        Ok((manifest, index, lease, document)) => {
            if let Err(error) = kept.keep(id, &document, &index) {
                tracing::warn!(
                    "what the mount must know cannot be kept: {error}; it will not start again without the store"
                );
            }
            Ok((manifest, index, lease))
        }
        // Whoever has not the key gets nothing of what somebody with it left here.
        Err(error) if error.downcast_ref::<StoreError>().is_some_and(StoreError::is_locked) => Err(error),
        Err(error) => {
            let Some((manifest, index)) = kept.get(id) else { return Err(error) };
            tracing::warn!("{error:#}; what this host knows of it from before is used");
            let lease = Lease::take(store, Work::Read { index: manifest.index }).await.ok();
            Ok((manifest, index, lease))
        }
    }
}

/// A folder's path without links; of one at which something dead is mounted, and which cannot be asked, by the folder above it.
fn canonical(folder: &Path) -> std::io::Result<PathBuf> {
    std::fs::canonicalize(folder).or_else(|error| {
        let absolute = std::path::absolute(folder)?;
        let (Some(above), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Err(error) };
        Ok(std::fs::canonicalize(above)?.join(name))
    })
}

/// The best way that this host can go, or the one that was asked for.
fn mount(options: &Options, image: &Arc<LazyImage>, place: &Place) -> anyhow::Result<(&'static str, Mounted)> {
    let asked = WAYS.iter().filter(|way| options.way.is_none_or(|name| name == way.name()));
    let mut reasons = Vec::new();
    for way in asked {
        match way.mount(image, place, &tokio::runtime::Handle::current()) {
            Ok(mounted) => {
                reasons.iter().for_each(|reason| eprintln!("{reason}"));
                return Ok((way.name(), mounted));
            }
            Err(error) => reasons.push(format!("not by {}: {error:#}", way.name())),
        }
    }
    anyhow::bail!("{} cannot be mounted here: {}", place.folder.display(), reasons.join("; "))
}

/// Waits until somebody unmounts or wants this process to end; calls `now_and_then` meanwhile.
#[allow(clippy::disallowed_methods, reason = "traces are written in real time")]
async fn until_unmounted(folder: &Path, all: usize, now_and_then: impl Fn()) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut int = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut look = tokio::time::interval(LOOK_PERIOD);
    let mut written = Instant::now();
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            _ = look.tick() => {
                // An image without its overlay would show what was overwritten.
                if mounts_at(folder).is_some_and(|mounts| mounts < all) {
                    return Ok(());
                }
                if written.elapsed() > TRACE_PERIOD {
                    now_and_then();
                    written = Instant::now();
                }
            }
        }
    }
}

/// What earlier runs of an image touched, on this host.
struct Traces {
    path: PathBuf,
    earlier: Trace,
}

impl Traces {
    fn open(options: &Options, image: &LazyImage) -> Self {
        let path = options.cache.join("traces").join(format!("{}.json", image.id));
        let earlier = read_trace(&path).filter(|trace| trace.object == image.id);
        Self { path, earlier: earlier.unwrap_or_else(|| Trace::new(image.id)) }
    }

    /// Writes down the earlier runs and this one.
    fn write(&self, image: &LazyImage) {
        let mut trace = self.earlier.clone();
        trace.add(image.touched());
        let written = || -> anyhow::Result<()> {
            let folder = self.path.parent().context("a path with a folder")?;
            std::fs::create_dir_all(folder)?;
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer(&mut file, &trace)?;
            file.persist(&self.path)?;
            Ok(())
        };
        if let Err(error) = written() {
            tracing::warn!("what was touched cannot be written down: {error:#}; the next mount fetches less ahead");
        }
    }
}

fn read_trace(path: &Path) -> Option<Trace> {
    let file = std::fs::File::open(path).ok()?;
    serde_json::from_reader(std::io::Read::take(std::io::BufReader::new(file), TRACE_BYTES_MAX)).ok()
}
