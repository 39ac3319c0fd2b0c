//! `pilotlight-agent mount`: an image's tree under a folder, its content on first touch.

mod lazy;
mod overlay;
mod serve;
mod served;
mod table;
mod tree;
mod watchdog;
mod ways;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use snapshots::ObjectId;

/// What to mount, and where.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Id of the image.
    id: ObjectId,
    /// The folder that gets its tree.
    folder: PathBuf,
    /// The store: a folder that exists, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX.
    #[arg(long = "store", env = "PILOTLIGHT_STORE", value_name = "ADDRESS")]
    store: String,
    /// The tenant's key, if the store is sealed.
    #[arg(long, env = "PILOTLIGHT_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A store with copies, asked when the first one fails or has something damaged; may be given several times.
    #[arg(long = "mirror", value_name = "ADDRESS")]
    mirrors: Vec<String>,
    /// A folder on a fast local disk that keeps what was fetched.
    #[arg(long, env = "PILOTLIGHT_CACHE", default_value = "/var/cache/pilotlight", value_name = "FOLDER")]
    cache: PathBuf,
    /// Room in that folder, GiB.
    #[arg(long, default_value_t = 100.0, value_parser = gib, value_name = "GIB")]
    cache_gib: f64,
    /// How to mount: by the kernel's EROFS, or by FUSE alone. The best that this host has, if not said.
    #[arg(long, value_parser = way_names())]
    way: Option<&'static str>,
    /// Takes writes: a folder that keeps them, in an overlay above the image.
    #[arg(long, value_name = "FOLDER")]
    writable: Option<PathBuf>,
    /// Lets set-user-id files of the image be what they say.
    #[arg(long)]
    suid: bool,
    /// Fetches nothing before it is touched.
    #[arg(long)]
    no_prefetch: bool,
    /// What serves hangs if it takes longer for an answer, seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600), hide = true)]
    patience_s: u64,
    /// Serves in this process, which nobody watches.
    #[arg(long, hide = true)]
    unwatched: bool,
    /// The folder that this process alone has.
    #[arg(long, hide = true)]
    scratch: Option<PathBuf>,
}

/// A size in GiB.
///
/// # Errors
/// It is no number above 0.
pub fn gib(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(gib) if gib.is_finite() && gib > 0.0 => Ok(gib),
        _ => Err("give a number above 0".into()),
    }
}

fn way_names() -> impl TypedValueParser<Value = &'static str> {
    let of = |name: String| ways::WAYS.iter().map(|way| way.name()).find(|known| *known == name).ok_or("no such way");
    PossibleValuesParser::new(ways::WAYS.iter().map(|way| way.name()).collect::<Vec<_>>()).try_map(of)
}

/// Mounts, and stays until it is unmounted or told to end.
///
/// # Errors
/// There is nothing to mount, or no way to mount it here.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    if options.unwatched { serve::run(options) } else { watchdog::run(options) }
}
