//! `pilotlight simulate`: replay demand, compare policies, show the money.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use simulations::league::{self, League};
use simulations::scenario::{self, Prepared, ScenarioError};

use super::Format;
use crate::{output, render};

/// Arguments of `simulate`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Put the results of shards together and show them.
    Merge(Merge),
}

/// A scenario and where its results go.
#[derive(Debug, clap::Args)]
struct Run {
    /// The scenario file.
    #[arg(required = true)]
    scenario: Option<PathBuf>,
    #[command(flatten)]
    shown: Shown,
    /// Play only this share of the runs: '2/8' is the second of eight. Merge when all are done.
    #[arg(long, value_name = "I/N")]
    shard: Option<String>,
    /// Runs at the same time; 0 for one on each core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

#[derive(Debug, clap::Args)]
struct Merge {
    /// The scenario file.
    scenario: PathBuf,
    #[command(flatten)]
    shown: Shown,
}

#[derive(Debug, clap::Args)]
struct Shown {
    /// Folder of the results; without it 'simulated/NAME'. A run that was interrupted goes on where it was.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
}

/// Plays or merges a scenario, and writes its report.
///
/// # Errors
/// A scenario that makes no sense, or results that do not belong to it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match (&args.command, &args.run.scenario) {
        (Some(Command::Merge(merge)), _) => {
            let Some((prepared, text)) = prepare(&merge.scenario)? else { return Ok(()) };
            show(&prepared, &text, &merge.shown)
        }
        (None, Some(scenario)) => simulate(&args.run, scenario),
        (None, None) => bail!("give a scenario file"),
    }
}

/// Reads a scenario with its data; `None`, and a word on standard error, where the data is not there.
fn prepare(path: &Path) -> anyhow::Result<Option<(Prepared, String)>> {
    let (spec, text) = scenario::read(path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let data = std::env::var_os("PILOTLIGHT_DATA").map(PathBuf::from);
    let busy = output::spinner("reading");
    let prepared = scenario::prepare(&spec, folder, data.as_deref());
    busy.finish_and_clear();
    match prepared {
        Ok(prepared) => Ok(Some((prepared, text))),
        Err(error @ ScenarioError::NoData(_)) => {
            eprintln!("{}: {error}", spec.name);
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn simulate(args: &Run, scenario: &Path) -> anyhow::Result<()> {
    let shard = args.shard.as_deref().map(parse_shard).transpose()?;
    let Some((prepared, text)) = prepare(scenario)? else { return Ok(()) };
    let mut tasks = league::tasks(&prepared.scenario().seeds);
    if let Some((i, n)) = shard {
        let mut turn = 0..;
        tasks.retain(|_| turn.next().is_some_and(|t| t % n == i - 1));
    }
    let folder = folder(&prepared, &args.shown);
    let threads = match args.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let bar = output::bar("simulating", tasks.len() as u64);
    league::play_all(&prepared, &league::fingerprint(&text), &tasks, &folder.join("runs"), threads, &|_| bar.inc(1))?;
    bar.finish_and_clear();
    if let Some((i, n)) = shard {
        eprintln!(
            "{}: shard {i} of {n} is done, {} runs in {}",
            prepared.scenario().name,
            tasks.len(),
            folder.display()
        );
        return Ok(());
    }
    show(&prepared, &text, &args.shown)
}

fn parse_shard(text: &str) -> anyhow::Result<(usize, usize)> {
    let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((i, n)) if i >= 1 && i <= n && n <= 100_000 => Ok((i, n)),
        _ => bail!("--shard '{text}': expected I/N with 1 <= I <= N"),
    }
}

fn folder(prepared: &Prepared, shown: &Shown) -> PathBuf {
    shown.out.clone().unwrap_or_else(|| PathBuf::from("simulated").join(&prepared.scenario().name))
}

fn show(prepared: &Prepared, text: &str, shown: &Shown) -> anyhow::Result<()> {
    let folder = folder(prepared, shown);
    let league: League = league::merge(prepared, &league::fingerprint(text), &folder.join("runs"))?;
    output::write_whole(&folder.join("results.json"), |out| Ok(serde_json::to_writer(out, &league)?))?;
    output::write_whole(&folder.join("report.html"), |out| Ok(out.write_all(render::report(&league)?.as_bytes())?))?;
    match shown.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&render::league_figures(&league))?),
        Format::Table => print!("{}", render::league(&league)),
    }
    eprintln!("report: {}", folder.join("report.html").display());
    Ok(())
}
