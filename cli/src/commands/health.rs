//! `pilotlight health policy | replay | diag`: what would be made of evidence, offline.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use health::condition::{Change, Event, HostConditions, What};
use health::dcgm::{Document, Exit, Expected, Judgement, Plan, Version, judge};
use health::kernel_log;
use health::policy::{Cause, Effect, Policy};
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
    /// What a policy would have done about a kernel log: the output of dmesg, or lines of /dev/kmsg.
    Replay {
        /// The log.
        log: PathBuf,
        /// Rules (TOML) over the shipped ones.
        #[arg(long)]
        policy: Option<PathBuf>,
        /// Major version of the driver that wrote it; NVLink sub-codes changed with 575.
        #[arg(long, default_value_t = 580)]
        driver: u32,
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
        Command::Replay { log, policy, driver, output } => {
            replay(log, &read_policy(policy.as_deref())?, *driver, *output)
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

/// One line of a replay.
#[derive(Debug, Serialize)]
struct Step {
    /// Seconds since the boot.
    at_s: f64,
    change: Change,
}

#[derive(Debug, Default)]
struct Sum {
    lines: usize,
    episodes: u32,
    worst: Option<Effect>,
    nvidia: Option<Effect>,
}

fn replay(log: &Path, policy: &Policy, driver: u32, output: Format) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let catalogue = Policy::catalogue();
    let (mut host, mut steps) = (HostConditions::default(), Vec::new());
    let mut sums: BTreeMap<(Cause, String), Sum> = BTreeMap::new();
    let (mut number, mut last_seq, mut at_ms) = (0, None, 0);
    let mut send = |host: &mut HostConditions, at_ms: i64, what: What| {
        number += 1;
        let event = Event { at_ms, boot: "log".into(), seq: number, what };
        let changes = host.observe(policy, &event);
        steps.extend(changes.into_iter().map(|change| Step { at_s: at_ms as f64 / 1000.0, change }));
    };
    let records = || text.lines().filter_map(kernel_log::read);
    let is_gpu = |r: &kernel_log::Record| r.text.contains("NVRM:") || r.text.contains("nvidia 0");
    let gpus: Vec<_> = records().filter(is_gpu).filter_map(|r| r.device).collect();
    if gpus.is_empty() && records().next().is_none() {
        bail!("{}: no line says anything of a GPU; is it the output of dmesg?", log.display());
    }
    for line in text.lines() {
        let seq = kernel_log::sequence(line);
        if let (Some(last), Some(seq)) = (last_seq, seq)
            && seq > last + 1
        {
            let text = format!("{} lines are missing", seq - last - 1);
            send(&mut host, at_ms, What::Fault { cause: Cause::LogGap, gpu: None, decoded: None, text });
        }
        last_seq = seq.or(last_seq);
        let Some(record) = kernel_log::read(line) else { continue };
        // Lines without a time follow each other by a second.
        at_ms = record.at_us.map_or(at_ms + 1000, |us| i64::try_from(us / 1000).unwrap_or(i64::MAX));
        let Some(what) = What::of_record(&record, driver, &gpus) else { continue };
        if let What::Fault { cause, gpu, .. } = &what {
            let place = gpu.map_or_else(|| "host".to_owned(), |g| g.to_string());
            let sum = sums.entry((*cause, place)).or_default();
            sum.lines += 1;
            sum.nvidia = matches!(cause, Cause::Xid(_)).then(|| catalogue.rule(*cause).effect);
        }
        send(&mut host, at_ms, what);
    }
    for step in &steps {
        let (Change::Raised(c) | Change::Worsened(c)) = &step.change else { continue };
        let place = c.gpu.map_or_else(|| "host".to_owned(), |g| g.to_string());
        let sum = sums.entry((c.cause, place)).or_default();
        sum.episodes += u32::from(matches!(step.change, Change::Raised(_)));
        sum.worst = sum.worst.max(Some(c.effect));
    }
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&steps)?);
        return Ok(());
    }
    print_replay(&steps, &sums, &host);
    Ok(())
}

fn print_replay(steps: &[Step], sums: &BTreeMap<(Cause, String), Sum>, host: &HostConditions) {
    let mut rows = table(&["after", "GPU", "", "cause", "the node", "evidence"], 0..1);
    for step in steps {
        let (what, c) = match &step.change {
            Change::Raised(c) => ("raised", c),
            Change::Worsened(c) => ("worse", c),
            Change::Cleared(c) => ("over", c),
        };
        let place = c.gpu.map_or_else(|| "host".to_owned(), |g| g.to_string());
        // Where and what it is stands in the other columns.
        let said = c.text.split_once("): ").map_or(c.text.as_str(), |(_, rest)| rest);
        let text: String = said.chars().take(80).collect();
        let evidence = if what == "over" { String::new() } else { text };
        rows.add_row([
            format!("{:.1} s", step.at_s),
            place,
            what.into(),
            c.cause.to_string(),
            c.effect.name().into(),
            evidence,
        ]);
    }
    println!("{rows}\n");
    let mut rows = table(&["cause", "GPU", "lines", "episodes", "NVIDIA", "here"], 2..4);
    let name = |effect: Option<Effect>| effect.map_or("-", Effect::name).to_owned();
    for ((cause, place), sum) in sums {
        rows.add_row([
            cause.to_string(),
            place.clone(),
            sum.lines.to_string(),
            sum.episodes.to_string(),
            name(sum.nvidia),
            name(sum.worst),
        ]);
    }
    println!("{rows}\n");
    let standing = host.standing();
    let open = host.conditions().filter(|c| !c.shadow && !c.effect.is_claimable()).count();
    match standing.effect {
        _ if standing.claimable => println!("At the end of the log the host may be claimed, once its gate has passed."),
        Some(effect) => {
            println!("At the end of the log the host is not claimable: {} ({open} conditions).", effect.name())
        }
        None => {}
    }
}

fn print_judgement(made: &Judgement, output: Format) -> anyhow::Result<()> {
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(made)?);
        return Ok(());
    }
    println!("{made}");
    Ok(())
}
