//! `pilotlight-agent store`: put, get, ls, verify.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use snapshots::ObjectId;
use snapshots::collection::Sweep;
use snapshots::leaf::Compression;
use snapshots::manifest::Kind;

use super::collect::Terms;
use super::store::Store;
use super::store::lease::Lease;
use super::store::seal::SealKey;
use super::{collect, get, image, in_one_line, put, verify};

/// What to do with a store.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Stores a file, or all files of a folder, as one object, and prints its id. What the store has already is not stored again.
    Put {
        /// The file or folder.
        path: PathBuf,
        /// Which store.
        #[command(flatten)]
        at: At,
        /// What the object holds.
        #[arg(long, default_value = "weights", value_parser = kinds())]
        kind: Kind,
        /// Compresses leaves that shrink by a third.
        #[arg(long)]
        compress: bool,
        /// An object that this one needs beside, such as a snapshot its weights and caches; may be given several times. It stays
        /// as long as this one, and comes to hosts with it.
        #[arg(long = "needs", value_name = "ID")]
        needs: Vec<ObjectId>,
        /// A label, NAME=TEXT; may be given several times.
        #[arg(long = "label", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Writes an object's files below a folder that is not there yet, every byte verified.
    Get {
        /// Id of the object.
        id: ObjectId,
        /// The folder.
        folder: PathBuf,
        /// Which store.
        #[command(flatten)]
        at: At,
    },
    /// Lists the objects.
    Ls {
        /// Which store.
        #[command(flatten)]
        at: At,
    },
    /// Removes objects. Their content stays until it is collected.
    Rm {
        /// Ids of objects.
        #[arg(required = true)]
        ids: Vec<ObjectId>,
        /// Which store.
        #[command(flatten)]
        at: At,
    },
    /// Deletes the content that no object needs and nobody reads.
    Gc {
        /// Which store.
        #[command(flatten)]
        at: At,
        /// Says what would be deleted, and deletes nothing.
        #[arg(long)]
        dry_run: bool,
        /// What is younger stays, hours.
        #[arg(long, default_value_t = 24.0, value_parser = at_least_zero, value_name = "HOURS")]
        grace_h: f64,
        /// How long to wait for objects that are being written, seconds.
        #[arg(long, default_value_t = 60.0, value_parser = at_least_zero, value_name = "SECONDS")]
        wait_s: f64,
    },
    /// Makes a key that seals a tenant's store, in a file that only its owner reads. Without it nobody reads the store again.
    Keygen {
        /// The file, which is not there yet.
        file: PathBuf,
    },
    /// Reads and hashes all that objects need. Exit code 1 where something is wrong and stays so.
    Verify {
        /// A store with copies, from which what is wrong is written anew; may be given several times.
        #[arg(long = "repair-from", value_name = "ADDRESS")]
        mirrors: Vec<String>,
        /// Which store.
        #[command(flatten)]
        at: At,
    },
}

/// Which store.
#[derive(Debug, Clone, clap::Args)]
pub struct At {
    /// The store: a folder that exists, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX with the cloud's own
    /// variables (AWS_*, GOOGLE_*, AZURE_*).
    #[arg(long = "store", env = "PILOTLIGHT_STORE", value_name = "ADDRESS")]
    address: String,
    /// The tenant's key, if the store is sealed: it sees neither content nor names then. 'store keygen' makes one.
    #[arg(long, env = "PILOTLIGHT_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl At {
    /// Opens it.
    ///
    /// # Errors
    /// There is no such store, or no such key.
    pub fn open(&self) -> anyhow::Result<Store> {
        self.at(&self.address)
    }

    /// Another store, sealed with the same key.
    fn at(&self, address: &str) -> anyhow::Result<Store> {
        let key = self.key_file.as_deref().map(SealKey::read).transpose()?;
        Ok(Store::open(address, key.map(Arc::new))?)
    }
}

/// Takes the names of kinds, and says what each holds.
fn kinds() -> impl TypedValueParser<Value = Kind> {
    let shown = |kind: Kind| {
        PossibleValue::new(kind.name()).help(match kind {
            Kind::Snapshot => "A process at rest",
            Kind::Image => "A root filesystem",
            Kind::Weights => "Weights of a model",
            Kind::Cache => "Compiled graphs and kernels: a tree with its times, to be mounted as an image is",
        })
    };
    let of = |name: String| Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or("no such kind");
    PossibleValuesParser::new(Kind::ALL.map(shown)).try_map(of)
}

/// A label, `NAME=TEXT`.
///
/// # Errors
/// It is none.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=TEXT")?;
    if name.is_empty() {
        return Err("a label has a name: NAME=TEXT".into());
    }
    if text.chars().any(char::is_control) {
        return Err("a label is one line of text".into());
    }
    Ok((name.into(), value.into()))
}

/// Runs the command.
///
/// # Errors
/// The store or a file fails.
#[allow(clippy::print_stdout, reason = "a command prints its answer")]
pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    match command {
        Command::Put { path, at, kind, compress, needs, labels } => {
            let compression = if *compress { Compression::IfWorthwhile } else { Compression::Never };
            let labels: BTreeMap<String, String> = labels.iter().cloned().collect();
            let store = at.open()?;
            let references = runtime.block_on(put::references(&store, needs))?;
            let done = stored(&runtime, &store, path, put::About { kind: *kind, compression, references, labels })?;
            println!("{}", done.id);
        }
        Command::Get { id, folder, at } => {
            let store = at.open()?;
            let (manifest, lease) = runtime.block_on(Lease::take_to_read(&store, *id))?;
            let bar = bar(manifest.bytes());
            let got = wait(&runtime, get::get(&store, &manifest, folder, |bytes| bar.inc(bytes)));
            if let Some(lease) = lease {
                runtime.block_on(lease.release())?;
            }
            let bytes = got?;
            bar.finish_and_clear();
            eprintln!("{} in {}, every byte verified", size(bytes), folder.display());
        }
        Command::Ls { at } => print!("{}", runtime.block_on(listed(&at.open()?))?),
        Command::Rm { ids, at } => {
            let store = at.open()?;
            for id in ids {
                runtime.block_on(store.remove(*id))?;
                eprintln!("removed {id}; 'pilotlight-agent store gc' deletes what nothing else needs");
            }
        }
        Command::Gc { at, dry_run, grace_h, wait_s } => {
            let grace = Duration::from_secs_f64(grace_h * 3600.0);
            let terms = Terms { grace, patience: Duration::from_secs_f64(*wait_s), dry_run: *dry_run };
            println!("{}", collected(&wait(&runtime, collect::collect(&at.open()?, terms))?, terms));
        }
        Command::Keygen { file } => {
            let key = SealKey::generate(file)?;
            eprintln!("key {} is in {}: keep a copy of it elsewhere", key.id(), file.display());
        }
        Command::Verify { at, mirrors } => {
            let mirrors: Vec<Store> = mirrors.iter().map(|address| at.at(address)).collect::<Result<_, _>>()?;
            return verified(&runtime, &at.open()?, &mirrors);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Stores what is at a path, and says how much of it was new.
fn stored(
    runtime: &tokio::runtime::Runtime,
    store: &Store,
    path: &Path,
    about: put::About,
) -> anyhow::Result<put::Done> {
    // A cache is found again by names and times: it is a tree, as an image is.
    let tree = about.kind == Kind::Image || about.kind == Kind::Cache && path.is_dir();
    let (what, done) = if tree {
        let what = if about.kind == Kind::Image { "an image" } else { "a cache" };
        let source = image::Source::open(path)?;
        let bar = bar(source.bytes());
        let done = wait(runtime, image::put(store, &source, about, |bytes| bar.inc(bytes)))?;
        bar.finish_and_clear();
        (what.to_owned(), done)
    } else {
        let sources = put::sources(path)?;
        let bar = bar(sources.iter().map(|source| source.bytes).sum());
        let done = wait(runtime, put::put(store, &sources, about, |bytes| bar.inc(bytes)))?;
        bar.finish_and_clear();
        (count(sources.len(), "file"), done)
    };
    eprintln!("{what}, {}; stored {} in {}", size(done.bytes), size(done.new_bytes), count(done.new_packs, "pack"));
    Ok(done)
}

/// Waits for work, or breaks it off when the user does, so that it can give back what others would wait for.
fn wait<T, E: Into<anyhow::Error>>(
    runtime: &tokio::runtime::Runtime,
    work: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    runtime.block_on(async {
        tokio::select! {
            done = work => done.map_err(Into::into),
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("broken off")),
            _ = terminated() => Err(anyhow::anyhow!("broken off")),
        }
    })
}

async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}

fn at_least_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e6).contains(&number) => Ok(number),
        _ => Err("give a number from 0 to 1000000".into()),
    }
}

fn collected(sweep: &Sweep, terms: Terms) -> String {
    let verb = if terms.dry_run { "would delete" } else { "deleted" };
    let (packs, indexes) = (count(sweep.packs.len(), "pack"), count_of(sweep.indexes.len(), "index", "indexes"));
    let young = match sweep.young {
        0 => String::new(),
        young => format!(
            "; {} that nothing needs stay until older than {} h",
            count_of(young, "file", "files"),
            terms.grace.as_secs_f64() / 3600.0
        ),
    };
    format!("{verb} {packs} and {indexes}, {}; {} of packs stay{young}", size(sweep.bytes), size(sweep.kept_bytes))
}

async fn listed(store: &Store) -> anyhow::Result<String> {
    let mut rows = Table::new();
    rows.load_style(comfy_table::presets::NOTHING);
    rows.set_header(["object", "kind", "streams", "size", "labels"]);
    for column in [2, 3] {
        if let Some(column) = rows.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let ids = store.objects().await?;
    for id in &ids {
        let manifest = match store.manifest(*id).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_damage() => {
                rows.add_row([id.to_string(), "damaged".into()]);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let labels: Vec<String> = manifest.labels.iter().map(|(name, text)| shown(&format!("{name}={text}"))).collect();
        rows.add_row([
            id.to_string(),
            manifest.kind.name().into(),
            manifest.streams.len().to_string(),
            size(manifest.bytes()),
            labels.join(", "),
        ]);
    }
    if ids.is_empty() {
        return Ok("no objects: 'pilotlight-agent store put' stores one\n".into());
    }
    let lines: Vec<String> = rows.lines().map(|line| line.trim().to_owned()).collect();
    Ok(lines.join("\n") + "\n")
}

#[allow(clippy::print_stdout, reason = "a command prints its answer")]
fn verified(runtime: &tokio::runtime::Runtime, store: &Store, mirrors: &[Store]) -> anyhow::Result<ExitCode> {
    let bar = hidden_without_terminal(ProgressBar::new(0));
    let told = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let found = wait(runtime, verify::verify(store, mirrors, told))?;
    bar.finish_and_clear();
    for fault in &found.faults {
        println!("FAULT: {}", in_one_line(fault));
    }
    found.damaged.iter().for_each(|id| println!("damaged: object {id}"));
    println!(
        "{}, {}, {} read and hashed: {}{}",
        count(found.objects, "object"),
        count(found.packs, "pack"),
        size(found.bytes),
        if found.repaired > 0 { format!("{} written anew, ", found.repaired) } else { String::new() },
        match found.faults.len() {
            0 => "all as it was stored".to_owned(),
            faults => format!("{}, {} damaged", count(faults, "fault"), count(found.damaged.len(), "object")),
        }
    );
    Ok(if found.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Text that others wrote, without what a terminal would obey.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn count(n: usize, what: &str) -> String {
    count_of(n, what, &format!("{what}s"))
}

fn count_of(n: usize, one: &str, several: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { several })
}

/// Bytes for people.
#[must_use]
pub fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

fn bar(bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}");
    hidden_without_terminal(ProgressBar::new(bytes)).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn hidden_without_terminal(bar: ProgressBar) -> ProgressBar {
    if std::io::stderr().is_terminal() { bar } else { ProgressBar::hidden() }
}
