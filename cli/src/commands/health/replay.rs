//! `pilotlight health replay`: a kernel log, and what a policy makes of it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use health::Verdict;
use health::condition::{Change, Event, HostConditions, Standing, What};
use health::kernel_log::LINE_MAX;
use health::kernel_log::log::{Entry, Log, Said, Whole};
use health::policy::{Cause, Effect, Policy};
use serde::Serialize;

use super::Format;
use crate::render::table;

/// What a replay found.
#[derive(Debug, Serialize)]
struct Replay {
    /// The host, where the log names it.
    host: Option<String>,
    /// Major version of the driver.
    driver_major: Option<u32>,
    boots: u32,
    kernel_lines: u64,
    process_lines: u64,
    /// What is to be known of the log itself.
    notes: Vec<String>,
    steps: Vec<Step>,
    sums: Vec<Sum>,
    /// At the end.
    standing: Standing,
    /// In one word, as the exit code says it.
    verdict: Verdict,
}

/// One change.
#[derive(Debug, Serialize)]
struct Step {
    /// Which boot, from 1.
    boot: u32,
    /// Seconds since the boot, or since the first line where times are by the clock; none where no time is told.
    at_s: Option<f64>,
    change: Change,
}

#[derive(Debug, Serialize)]
struct Sum {
    cause: Cause,
    gpu: Option<String>,
    uuid: Option<String>,
    lines: usize,
    episodes: u32,
    worst: Option<Effect>,
    nvidia: Option<Effect>,
}

/// Replays a log.
///
/// # Errors
/// It does not read, or is of several hosts.
pub fn run(
    log: &Path,
    host: Option<String>,
    policy: &Policy,
    driver: Option<u32>,
    output: Format,
) -> anyhow::Result<ExitCode> {
    let replay = replayed(&read(log, host)?, policy, driver);
    if output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&replay)?);
    } else {
        print(&replay);
    }
    Ok(ExitCode::from(replay.verdict.exit_code()))
}

fn read(path: &Path, host: Option<String>) -> anyhow::Result<Whole> {
    let shown = path.display().to_string();
    let input: Box<dyn Read> = if shown == "-" {
        if std::io::stdin().is_terminal() {
            eprintln!("reads standard input: end it with Ctrl-D");
        }
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(|| format!("cannot read {shown}"))?)
    };
    let (mut log, mut reader, mut line) = (Log::of_host(host), BufReader::new(input), Vec::new());
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line);
        if read.with_context(|| format!("cannot read {shown}"))? == 0 {
            return Ok(log.finish());
        }
        log.read(&line).with_context(|| format!("{shown} cannot be replayed"))?;
        // The rest of a line that is too long is not another line.
        while line.len() == LINE_MAX && line.last() != Some(&b'\n') {
            line.clear();
            reader
                .by_ref()
                .take(LINE_MAX as u64)
                .read_until(b'\n', &mut line)
                .with_context(|| format!("cannot read {shown}"))?;
        }
    }
}

fn replayed(whole: &Whole, policy: &Policy, driver: Option<u32>) -> Replay {
    let catalogue = Policy::catalogue();
    let mut host = HostConditions::default();
    let mut sums: BTreeMap<(Cause, Option<String>), Sum> = BTreeMap::new();
    let mut steps = Vec::new();
    let begins_ms = whole.begins_ms.unwrap_or(0);
    let mut undated = 0;
    for (seq, entry) in (1..).zip(&whole.entries) {
        let (what, uuid) = match &entry.said {
            Said::Record(record) => {
                let driver_major = entry.driver_major.or(driver);
                let Some(what) = What::of_record(record, driver_major, &whole.places) else { continue };
                (what, record.uuid.clone())
            }
            Said::Gap(lost) => {
                let text = format!("{lost} lines are missing");
                (What::Fault { cause: Cause::LogGap, gpu: None, decoded: None, text }, None)
            }
        };
        if let What::Fault { cause, gpu, .. } = &what {
            let sum = sum(&mut sums, *cause, gpu.map(|g| g.to_string()));
            sum.lines += 1;
            sum.uuid = uuid.or(sum.uuid.take());
            sum.nvidia = matches!(cause, Cause::Xid(_)).then(|| catalogue.rule(*cause).effect);
        }
        undated += u32::from(entry.at_ms.is_none());
        let event = Event { at_ms: entry.at_ms, boot: format!("boot-{}", entry.boot), seq, what };
        for change in host.observe(policy, &event) {
            if let Change::Raised(c) | Change::Worsened(c) = &change {
                let sum = sum(&mut sums, c.cause, c.gpu.map(|g| g.to_string()));
                sum.episodes = (sum.episodes + u32::from(matches!(change, Change::Raised(_)))).max(c.episodes);
                sum.worst = sum.worst.max(Some(c.effect));
            }
            let at_s = entry.at_ms.map(|at_ms| at_ms.saturating_sub(begins_ms) as f64 / 1000.0);
            steps.push(Step { boot: entry.boot + 1, at_s, change });
        }
    }
    let standing = host.standing();
    let (notes, seen) = (notes(whole, undated), names_a_device(whole));
    let verdict = match standing.effect {
        Some(effect) if effect > Effect::Recheck => Verdict::Fail,
        Some(Effect::Recheck) => Verdict::Unmeasured,
        _ if !seen || whole.is_cut => Verdict::Unmeasured,
        _ => Verdict::Pass,
    };
    Replay {
        host: whole.host.clone(),
        driver_major: whole.driver_major.or(driver),
        boots: whole.boots,
        kernel_lines: whole.kernel_lines,
        process_lines: whole.process_lines,
        notes,
        steps,
        sums: sums.into_values().collect(),
        standing,
        verdict,
    }
}

/// Whether the log is one of a host with GPUs: it names them, or something of them.
fn names_a_device(whole: &Whole) -> bool {
    let said = |entry: &Entry| matches!(entry.said, Said::Record(_));
    whole.places.gpus().next().is_some() || whole.entries.iter().any(said)
}

fn sum(sums: &mut BTreeMap<(Cause, Option<String>), Sum>, cause: Cause, gpu: Option<String>) -> &mut Sum {
    let new = || Sum { cause, gpu: gpu.clone(), uuid: None, lines: 0, episodes: 0, worst: None, nvidia: None };
    sums.entry((cause, gpu.clone())).or_insert_with(new)
}

/// What is to be known of a log before its answer is believed.
fn notes(whole: &Whole, undated: u32) -> Vec<String> {
    let mut notes = Vec::new();
    if whole.kernel_lines == 0 {
        notes.push("no line of it is the kernel's, and a kernel's log is never empty".to_owned());
    } else if !names_a_device(whole) {
        notes.push("no line of it names a GPU of NVIDIA's: is it the whole log of the boot?".to_owned());
    }
    if whole.process_lines > 0 {
        notes.push(format!("{} lines are those of processes, which are no evidence", whole.process_lines));
    }
    if undated > 0 {
        notes.push(format!("{undated} lines have no time: whether they are one episode or many is not known"));
    }
    if whole.boots > 1 {
        notes.push(format!("{} boots; where only times since a boot are told, none passes between them", whole.boots));
    }
    if whole.is_cut {
        notes.push("more lines about GPUs than are looked at: the last ones were not".to_owned());
    }
    notes
}

fn print(replay: &Replay) {
    if !replay.steps.is_empty() {
        println!("{}\n", steps(replay));
        println!("{}\n", sums(&replay.sums));
    }
    for note in &replay.notes {
        println!("note: {note}");
    }
    let open = replay.sums.iter().filter(|s| s.worst.is_some_and(|w| !w.is_claimable())).count();
    let conditions = if open == 1 { "1 condition" } else { &format!("{open} conditions") };
    match replay.standing.effect {
        Some(effect) if !replay.standing.claimable => {
            println!("At the end of the log the host is not claimable: {} ({conditions}).", effect.name());
        }
        _ if replay.verdict == Verdict::Unmeasured => println!("Unmeasured: the log proves nothing."),
        _ => println!("At the end of the log the host may be claimed, once its gate has passed."),
    }
}

fn steps(replay: &Replay) -> comfy_table::Table {
    let mut head = vec!["after", "GPU", "", "cause", "the node", "evidence"];
    let several = replay.boots > 1;
    if several {
        head.insert(0, "boot");
    }
    let mut rows = table(&head, 0..1 + usize::from(several));
    for step in &replay.steps {
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
        let at = step.at_s.map_or_else(|| "?".to_owned(), |at_s| format!("{at_s:.1} s"));
        let mut row = vec![at, place, what.into(), c.cause.to_string(), c.effect.name().into(), evidence];
        if several {
            row.insert(0, step.boot.to_string());
        }
        rows.add_row(row);
    }
    rows
}

fn sums(sums: &[Sum]) -> comfy_table::Table {
    let mut rows = table(&["cause", "GPU", "lines", "episodes", "NVIDIA", "here"], 2..4);
    let name = |effect: Option<Effect>| effect.map_or("-", Effect::name).to_owned();
    for sum in sums {
        rows.add_row([
            sum.cause.to_string(),
            sum.gpu.clone().unwrap_or_else(|| "host".into()),
            sum.lines.to_string(),
            sum.episodes.to_string(),
            name(sum.nvidia),
            name(sum.worst),
        ]);
    }
    rows
}
