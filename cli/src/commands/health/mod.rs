//! `pilotlight health policy | replay | diag`: what would be made of evidence, offline.

mod replay;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use health::dcgm::{Document, Exit, Expected, Judgement, Plan, Version, judge};
use health::policy::{Cause, Policy};
use serde::Serialize;

use super::Format;
use crate::render::table;

/// What to look at.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// The rules that differ from NVIDIA's catalogue, and why.
    Policy {
        /// Rules (TOML) over the shipped ones.
        #[arg(long)]
        policy: Option<PathBuf>,
        /// All rules.
        #[arg(long)]
        all: bool,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Format,
    },
    /// What a policy would have done about a kernel log: the output of dmesg or 'journalctl -k' in any form, /dev/kmsg, or
    /// a file of syslog. Exit code: 0 the host may be claimed, 4 unmeasured or to be looked at, 5 not claimable.
    Replay {
        /// The log; '-' is standard input.
        log: PathBuf,
        /// Only lines of this host, where a log names hosts.
        #[arg(long)]
        host: Option<String>,
        /// Rules (TOML) over the shipped ones.
        #[arg(long)]
        policy: Option<PathBuf>,
        /// Major version of the driver, where the log does not name it; NVLink sub-codes changed with 575. Without it, the
        /// worse of their meanings counts.
        #[arg(long)]
        driver: Option<u32>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Format,
    },
    /// What a 'dcgmi diag -j' document proves. Exit code: 0 pass, 3 degraded, 4 unmeasured, 5 fail.
    Diag {
        /// The document.
        document: PathBuf,
        /// Exit code that dcgmi had.
        #[arg(long)]
        exit_code: u8,
        /// Level that was run.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=4))]
        level: u8,
        /// GPUs that the host has.
        #[arg(long)]
        gpus: u32,
        /// Tests that this GPU model does not have.
        #[arg(long, value_delimiter = ',')]
        not_applicable: Vec<String>,
        /// How to print.
        #[arg(long, value_enum, default_value = "table")]
        output: Format,
    },
}

/// Judges the evidence that is given, and prints what it means.
///
/// # Errors
/// A file does not read, or a policy makes no sense.
pub fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Policy { policy, all, output } => show(&read_policy(policy.as_deref())?, *all, *output),
        Command::Replay { log, host, policy, driver, output } => {
            let policy = read_policy(policy.as_deref())?;
            return replay::run(log, host.clone(), &policy, *driver, *output);
        }
        Command::Diag { document, exit_code, level, gpus, not_applicable, output } => {
            let text =
                std::fs::read_to_string(document).with_context(|| format!("cannot read {}", document.display()))?;
            let expected = (0..*gpus).map(|entity| Expected { entity, serial: None }).collect();
            let version = Document::read(&text).ok().and_then(|d| d.version).unwrap_or(Version(4, 0, 0));
            let mut plan = Plan::of_level(*level, version, expected);
            plan.not_applicable.extend(not_applicable.iter().cloned());
            let made = judge(&text, Exit::Code(*exit_code), &plan);
            print_judgement(&made, *output)?;
            return Ok(ExitCode::from(made.verdict.exit_code()));
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn read_policy(path: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(path) = path else { return Ok(Policy::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Policy::default().overridden(&text).with_context(|| path.display().to_string())
}

fn show(policy: &Policy, all: bool, output: Format) -> anyhow::Result<()> {
    let catalogue = Policy::catalogue();
    let pairs: Vec<_> = if all {
        policy.rules().map(|r| (catalogue.rule(r.on), r.clone())).collect()
    } else {
        policy.differences(&catalogue)
    };
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&pairs.iter().map(|(_, ours)| ours).collect::<Vec<_>>())?);
        return Ok(());
    }
    let mut rows = table(&["cause", "NVIDIA", "here", "ends", "again", "why"], 0..0);
    for (theirs, ours) in &pairs {
        let listed = matches!(ours.on, Cause::Xid(_)) && theirs.why.starts_with("NVIDIA");
        let again =
            ours.escalate.map_or_else(String::new, |e| format!("{} in {} h: {}", e.episodes, e.within_h, e.to.name()));
        let effect = format!("{}{}", ours.effect.name(), if ours.shadow { " (shadow)" } else { "" });
        let theirs = if listed { theirs.effect.name() } else { "-" };
        rows.add_row([ours.on.to_string(), theirs.into(), effect, word(&ours.clear)?, again, ours.why.clone()]);
    }
    println!("{rows}");
    Ok(())
}

/// The word that a value has in files.
fn word(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_value(value)?.as_str().unwrap_or_default().to_owned())
}

fn print_judgement(made: &Judgement, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(made)?);
        return Ok(());
    }
    println!("{made}");
    Ok(())
}
