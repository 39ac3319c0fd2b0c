//! `pilotlight-agent capture` and `pilotlight-agent restore`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context;
use comfy_table::{CellAlignment, Table};
use snapshots::ObjectId;
use snapshots::ladder::Step;
use snapshots::leaf::Compression;

use super::capture::{self, Capture, Phase};
use super::described::Described;
use super::held::{Ended, Held, Where};
use super::recipe::Recipe;
use super::start::{Ground, Known, Tried};
use crate::snapshots::commands::{At, label, size};
use crate::snapshots::mount::gib;
use crate::snapshots::put;
use crate::snapshots::store::Store;

/// How often it is looked whether a workload has ended.
const LOOK: Duration = Duration::from_millis(200);

/// What to capture.
#[derive(Debug, Clone, clap::Args)]
pub struct CaptureOptions {
    /// What the workload is and what it must answer (TOML).
    recipe: PathBuf,
    /// Which store.
    #[command(flatten)]
    at: At,
    /// Engines.
    #[command(flatten)]
    engines: Where,
    /// A folder with room for the process's memory.
    #[arg(long, default_value = "/var/tmp", value_name = "FOLDER")]
    work: PathBuf,
    /// Numbers of the GPUs that it gets, 0,1 (as nvidia-smi counts them); without it all. A snapshot comes back on as many.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    gpus: Option<Vec<u32>>,
    /// An object that it needs beside, such as its weights; may be given several times.
    #[arg(long = "needs", value_name = "ID")]
    needs: Vec<ObjectId>,
    /// Compresses leaves that shrink by a third.
    #[arg(long)]
    compress: bool,
    /// A label, NAME=TEXT; may be given several times.
    #[arg(long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
}

/// What to bring up.
#[derive(Debug, Clone, clap::Args)]
pub struct RestoreOptions {
    /// Id of the snapshot, as 'capture' prints it.
    id: ObjectId,
    /// Which store.
    #[command(flatten)]
    at: At,
    /// Engines.
    #[command(flatten)]
    engines: Where,
    /// Where this host keeps images that it fetched, and remembers how starts went.
    #[arg(long, env = "PILOTLIGHT_STATE", default_value = "/var/lib/pilotlight-agent/restore", value_name = "FOLDER")]
    state: PathBuf,
    /// How much of images it keeps there, GiB; those go first that were started longest ago.
    #[arg(long, default_value_t = 500.0, value_parser = gib, value_name = "GIB")]
    keep_gib: f64,
    /// How much memory device memory may take on its way to the GPUs, GiB.
    #[arg(long, default_value_t = 4.0, value_parser = gib, value_name = "GIB")]
    memory_gib: f64,
    /// Numbers of the GPUs that it gets, 0,1 (as nvidia-smi counts them); without it all.
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    gpus: Option<Vec<u32>>,
    /// Makes ready what can be, with all device memory in memory that the GPUs read themselves, and starts the workload when a
    /// line comes on standard input.
    #[arg(long, conflicts_with = "explain")]
    standby: bool,
    /// Says what would be tried and why, and starts nothing.
    #[arg(long)]
    explain: bool,
    /// Forgets how earlier starts of it went on this host.
    #[arg(long)]
    forget: bool,
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}

/// Runs `capture`.
///
/// # Errors
/// See [`capture::capture`].
#[allow(clippy::print_stdout, reason = "a command prints its answer")]
pub fn capture(options: &CaptureOptions) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let recipe = Recipe::read(&options.recipe)?;
    let store = options.at.open()?;
    let references = runtime.block_on(put::references(&store, &options.needs))?;
    let labels: BTreeMap<String, String> = options.labels.iter().cloned().collect();
    let compression = if options.compress { Compression::IfWorthwhile } else { Compression::Never };
    let engines = &options.engines;
    let gpus = options.gpus.as_deref();
    let what = Capture { recipe: &recipe, engines, gpus, work: &options.work, references, labels, compression };
    let mut phases = Vec::new();
    let done = capture::capture(&runtime, &store, what, &mut phases)?;
    eprint!("{}", table(&phases));
    eprintln!("captured, {}; stored {}", size(done.bytes), size(done.new_bytes));
    println!("{}", done.id);
    Ok(ExitCode::SUCCESS)
}

/// Runs `restore`: stays until the workload ends, and ends as it does.
///
/// # Errors
/// There is no such snapshot, or not even a cold start works.
#[allow(clippy::print_stdout, reason = "a command prints its answer")]
pub fn restore(options: &RestoreOptions) -> anyhow::Result<ExitCode> {
    let runtime = runtime()?;
    let store = options.at.open()?;
    let bytes = |gib: f64| (gib * f64::from(1 << 30)) as u64;
    let (keep_bytes, memory_bytes) = (bytes(options.keep_gib), bytes(options.memory_gib));
    let (state, engines) = (options.state.clone(), options.engines.clone());
    let ground = Ground {
        state,
        keep_bytes,
        memory_bytes,
        engines,
        cache: None,
        standbys: Arc::default(),
        fetches: Arc::default(),
    };
    let described = Described::read(&runtime, &store, options.id)?;
    let mut known = Known::new(described, ground, options.gpus.clone(), None)?;
    if options.forget {
        known.forget()?;
    }
    if options.standby {
        prepare(&mut known, &runtime, &store);
    }
    let steps = known.ladder()?;
    if options.explain {
        print!("{}", explained(&steps));
        return Ok(ExitCode::SUCCESS);
    }
    if options.standby {
        stand_by()?;
    }
    let mut stop = Stop::listen(&runtime)?;
    let held = known.bring_up(&runtime, &store, &steps, |tried| eprint!("{}", said(tried)))?;
    Ok(wait(held, &mut stop))
}

/// Makes ready what can be. What cannot be is tried again when the word comes, and said then.
fn prepare(known: &mut Known, runtime: &tokio::runtime::Runtime, store: &Store) {
    if let Err(error) = known.prepare(runtime, store, true) {
        eprintln!("not ready: {}", crate::snapshots::in_one_line(error.as_ref()));
    }
}

/// Waits for the word.
fn stand_by() -> anyhow::Result<()> {
    eprintln!("stands by: a line on standard input starts it");
    let read = std::io::stdin().read_line(&mut String::new()).context("standard input cannot be read")?;
    anyhow::ensure!(read > 0, "standard input ended before the word came");
    Ok(())
}

/// Whether somebody wants this to end.
struct Stop(tokio::sync::watch::Receiver<bool>);

impl Stop {
    fn listen(runtime: &tokio::runtime::Runtime) -> anyhow::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (tell, told) = tokio::sync::watch::channel(false);
        let _guard = runtime.enter();
        let mut term = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut int = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        runtime.spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            let _ = tell.send(true);
        });
        Ok(Self(told))
    }
}

fn wait(mut held: Held, stop: &mut Stop) -> ExitCode {
    let ended = loop {
        if let Some(ended) = held.ends_within(LOOK) {
            break Some(ended);
        }
        if *stop.0.borrow() {
            break held.end(&AtomicBool::new(false));
        }
    };
    match ended {
        Some(Ended { code: Some(code), .. }) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        // As shells say it.
        Some(Ended { signal: Some(signal), .. }) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
        _ => ExitCode::FAILURE,
    }
}

fn said(tried: &Tried) -> String {
    let mut text = table(&tried.phases);
    let seconds: f64 = tried.phases.iter().map(|(_, seconds)| seconds).sum();
    let name = tried.rung.name();
    if let Some(filled) = tried.filled.filter(|filled| filled.bytes > 0) {
        let rate = size((filled.bytes as f64 / filled.seconds.max(1e-9)) as u64);
        text += &format!("meanwhile {} came onto the GPUs in {:.2} s, {rate}/s\n", size(filled.bytes), filled.seconds);
    }
    text += &match &tried.failure {
        None => format!("ready by {name} in {seconds:.2} s\n"),
        Some(failure) => {
            format!("the {name} failed after {seconds:.2} s: {}\n", crate::snapshots::in_one_line(failure.as_ref()))
        }
    };
    text
}

fn table(phases: &[Phase]) -> String {
    let mut rows = Table::new();
    rows.load_style(comfy_table::presets::NOTHING);
    for (name, seconds) in phases {
        rows.add_row([(*name).to_owned(), format!("{seconds:.3} s")]);
    }
    if let Some(column) = rows.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    rows.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn explained(steps: &[Step]) -> String {
    let mut rows = Table::new();
    rows.load_style(comfy_table::presets::NOTHING);
    rows.set_header(["rung", "expected", "tried", "why not"]);
    let first = steps.iter().position(|step| step.against.is_empty());
    for (n, step) in steps.iter().enumerate() {
        let tried = match (step.against.is_empty(), first == Some(n)) {
            (true, true) => "first",
            (true, false) => "if that fails",
            (false, _) => "no",
        };
        let against: Vec<String> = step.against.iter().map(ToString::to_string).collect();
        rows.add_row([
            step.rung.name().to_owned(),
            format!("{:.1} s", step.expected_s),
            tried.into(),
            against.join("; "),
        ]);
    }
    rows.lines().map(|line| line.trim().to_owned() + "\n").collect()
}
