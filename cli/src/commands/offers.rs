//! `pilotlight offers`: import offer tables and see what the gate thinks of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use providers::catalogue::{self, Catalogue, GateRules, RawOffer};

use super::Format;
use crate::{output, render};

/// Subcommands of `offers`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Read offers from one or more sources, judge them and write one table.
    Import(Import),
    /// Show a table: what is usable and what is set aside, and why.
    Show(Show),
}

/// Arguments of `offers import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// Where from: 'own:FILE', 'skypilot:CLOUD=FILE', 'aws-spot:FILE' (describe-spot-price-history) or 'public:FOLDER'
    /// (public price series, see docs/data.md). Can be given several times; the first of two equal offers counts.
    #[arg(long = "from", required = true, value_name = "SOURCE")]
    sources: Vec<String>,
    /// The table to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    judge: Judge,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
}

/// Arguments of `offers show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// An offer table.
    file: PathBuf,
    #[command(flatten)]
    judge: Judge,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, clap::Args)]
struct Judge {
    /// Day that prices are judged by, such as 2026-09-16; without it their age is not checked.
    #[arg(long, value_name = "DATE")]
    as_of: Option<String>,
    /// Oldest price that is used, days.
    #[arg(long, default_value_t = 30)]
    age_days_max: i32,
}

impl Judge {
    fn rules(&self) -> anyhow::Result<GateRules> {
        let today = match &self.as_of {
            Some(text) => Some(catalogue::day_of(text).with_context(|| format!("--as-of '{text}' is no date"))?),
            None => None,
        };
        Ok(GateRules { today, age_days_max: self.age_days_max, ..GateRules::default() })
    }
}

/// Imports or judges the offers that are named.
///
/// # Errors
/// A source that cannot be read.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Import(args) => {
            let rules = args.judge.rules()?;
            let mut raw = Vec::new();
            for source in &args.sources {
                raw.extend(read(source)?);
            }
            let catalogue = catalogue::gate(raw, rules);
            if catalogue.offers.is_empty() {
                show(&catalogue, args.output)?;
                bail!("no offer is usable, nothing was written");
            }
            output::write_whole(&args.out, |out| Ok(catalogue::own::write(&catalogue.offers, out)?))?;
            show(&catalogue, args.output)?;
            eprintln!("wrote {}", args.out.display());
            Ok(())
        }
        Command::Show(args) => {
            let catalogue = catalogue::gate(catalogue::own::read(&args.file)?, args.judge.rules()?);
            show(&catalogue, args.output)
        }
    }
}

fn read(source: &str) -> anyhow::Result<Vec<RawOffer>> {
    let (kind, rest) = source.split_once(':').with_context(|| format!("--from '{source}': expected KIND:PLACE"))?;
    Ok(match kind {
        "own" => catalogue::own::read(Path::new(rest))?,
        "aws-spot" => catalogue::aws_spot::read(Path::new(rest))?,
        "skypilot" => {
            let (cloud, file) =
                rest.split_once('=').with_context(|| format!("--from '{source}': expected skypilot:CLOUD=FILE"))?;
            catalogue::skypilot::read(Path::new(file), cloud, None)?
        }
        "public" => {
            let (offers, counts) = catalogue::public::read(Path::new(rest))?;
            for count in counts {
                match count.offers {
                    Some(n) => eprintln!("read {n:>5} offers from {}", count.file),
                    None => eprintln!("skipped: no {}", count.file),
                }
            }
            offers
        }
        _ => bail!("--from '{source}': the kinds are own, skypilot, aws-spot and public"),
    })
}

fn show(catalogue: &Catalogue, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let value = serde_json::json!({ "offers": catalogue.offers, "set_aside": catalogue.set_aside });
            println!("{}", serde_json::to_string_pretty(&value)?);
        }
        Format::Table => print!("{}", render::catalogue(catalogue)),
    }
    Ok(())
}
