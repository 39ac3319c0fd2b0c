//! `pilotlight demand`: look at traces, score forecasts on them.

use std::path::PathBuf;

use anyhow::{Context, bail};
use planner::forecast::{self, ScoreRules};
use simulations::demand::{self, Kind, Series, convert::Params};

use super::Format;
use crate::{output, render};

/// Subcommands of `demand`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read a trace and show the demand of each class.
    Show(Trace),
    /// Score every forecast method on a trace, each trained on the past only.
    Score(Score),
}

/// A trace file.
#[derive(Debug, clap::Args)]
pub struct Trace {
    /// The trace, plain, .gz or .zst.
    file: PathBuf,
    /// Its kind, where it cannot be told from the file: azure-llm, burstgpt, mooncake, servegen, rate, replicas or
    /// prometheus.
    #[arg(long)]
    kind: Option<String>,
    /// Prompt tokens that one replica reads in a second.
    #[arg(long, default_value_t = 8000.0)]
    prefill_tokens_per_s: f64,
    /// Tokens that one replica generates in a second.
    #[arg(long, default_value_t = 1500.0)]
    decode_tokens_per_s: f64,
    /// Share of a replica that is used before another one is started.
    #[arg(long, default_value_t = 0.7)]
    target_utilisation: f64,
    /// Prompt tokens of a request, where the trace has none.
    #[arg(long, default_value_t = 1000.0)]
    input_tokens: f64,
    /// Generated tokens of a request, where the trace has none.
    #[arg(long, default_value_t = 200.0)]
    output_tokens: f64,
    /// Seconds that a replica stays after it was last needed.
    #[arg(long, default_value_t = 300)]
    scale_down_s: u32,
    /// Step of the result in seconds.
    #[arg(long, default_value_t = 60)]
    step_s: u32,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
}

/// Arguments of `demand score`.
#[derive(Debug, clap::Args)]
pub struct Score {
    #[command(flatten)]
    trace: Trace,
    /// Season in seconds.
    #[arg(long, default_value_t = 86_400)]
    season_s: u32,
    /// Share of the trace that lies before the first forecast.
    #[arg(long, default_value_t = 0.5)]
    past: f64,
    /// Most series to score, the largest first; 0 scores their sum.
    #[arg(long, default_value_t = 0)]
    series: usize,
    /// Horizons in seconds.
    #[arg(long, value_delimiter = ',', default_values_t = [600, 1800, 5400])]
    horizons_s: Vec<u32>,
}

/// Prints a trace, or scores forecasts on it.
///
/// # Errors
/// A trace that cannot be read, by file, line and column.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Show(trace) => {
            let series = read(trace)?;
            match trace.output {
                Format::Json => println!(
                    "{}",
                    serde_json::json!({ "step_s": series.step_s, "classes": series.classes, "claims": each(&series), "notes": series.notes })
                ),
                Format::Table => print!("{}", render::series(&series)),
            }
            Ok(())
        }
        Command::Score(args) => score(args),
    }
}

fn read(trace: &Trace) -> anyhow::Result<Series> {
    let kind = match &trace.kind {
        Some(name) => {
            let names: Vec<&str> = Kind::NAMES.iter().map(|(n, _)| *n).collect();
            let known = Kind::NAMES.iter().find(|(n, _)| n == name).map(|(_, k)| *k);
            known.with_context(|| format!("--kind '{name}' is none of {}", names.join(", ")))?
        }
        None => Kind::guess(&trace.file)?,
    };
    let params = Params {
        prefill_tokens_per_s: trace.prefill_tokens_per_s,
        decode_tokens_per_s: trace.decode_tokens_per_s,
        target_utilisation: trace.target_utilisation,
        step_s: trace.step_s,
        scale_down_s: trace.scale_down_s,
        input_tokens: trace.input_tokens,
        output_tokens: trace.output_tokens,
        ..Params::default()
    };
    params.check().map_err(|what| anyhow::anyhow!("--{}", what.replace('_', "-")))?;
    let busy = output::spinner("reading");
    let series = demand::read(&trace.file, kind, &params)?;
    busy.finish_and_clear();
    Ok(series)
}

/// Claims of each series alone, `[K][N]`.
fn each(series: &Series) -> Vec<Vec<f64>> {
    (0..series.values.len()).map(|k| series.claims(&[k], 1)).collect()
}

fn score(args: &Score) -> anyhow::Result<()> {
    let series = read(&args.trace)?;
    if !(0.0..1.0).contains(&args.past) {
        bail!("--past {} is not in 0..1", args.past);
    }
    let chosen: Vec<Vec<f64>> = if args.series == 0 {
        vec![series.total()]
    } else {
        let mut all = each(&series);
        all.sort_by(|a, b| b.iter().sum::<f64>().total_cmp(&a.iter().sum::<f64>()));
        all.truncate(args.series);
        all
    };
    let steps = |s: &u32| (s / series.step_s).max(1) as usize;
    let mut horizons: Vec<usize> = args.horizons_s.iter().map(steps).collect();
    horizons.dedup();
    let length = series.steps();
    let from = (length as f64 * args.past) as usize;
    let rules = ScoreRules {
        season: steps(&args.season_s).min(length / 3).max(1),
        horizons,
        quantiles: vec![0.5, 0.9, 0.99],
        from,
        stride: ((length - from) / 300).max(1),
    };
    let bar = output::bar("scoring", chosen.len() as u64);
    let mut scores: Vec<Vec<forecast::Score>> = Vec::new();
    for one in &chosen {
        scores.push(forecast::score(one, &rules));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let table = render::mean_scores(&scores);
    if table.is_empty() {
        bail!("{}: {length} steps of {} s are too few to score", args.trace.file.display(), series.step_s);
    }
    match args.trace.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&table)?),
        Format::Table => print!("{}", render::scores(&series, &rules, &table)),
    }
    Ok(())
}
