//! `pilotlight-agent check`: the boot gate by hand.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table};
use health::Verdict;
use health::gate::{Bound, Check, Expected, Outcome, Report, Scope, judge};
use serde::Serialize;

use crate::gate::{self, Setup};
use crate::gpu::Effort;
use crate::kmsg::KernelLog;
use crate::rules;
use crate::switches::Switches;
use crate::worker::Program;

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs: the report and the evidence.
    Json,
}

/// Options of the check.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// GPUs that the host was bought with; without it a GPU that is missing everywhere is not noticed.
    #[arg(long)]
    pub gpus: Option<u32>,
    /// PCI device id of the model that was bought, 2335.
    #[arg(long, value_name = "ID")]
    pub pci_device: Option<String>,
    /// Version of the driver that the image has.
    #[arg(long, value_name = "VERSION")]
    pub driver: Option<String>,
    /// Limits (TOML) over the shipped ones.
    #[arg(long, value_name = "FILE")]
    pub limits: Option<PathBuf>,
    /// Policy (TOML) over the shipped one.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The kernel's log.
    #[arg(long, value_name = "FILE", default_value = "/dev/kmsg")]
    pub kernel_log: PathBuf,
    /// Seconds of products on the tensor cores.
    #[arg(long, value_name = "SECONDS", default_value_t = 4.0)]
    pub tensor_s: f64,
    /// Seconds of single-precision multiply-adds.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub fp32_s: f64,
    /// Only what takes seconds, as after diagnostics.
    #[arg(long)]
    pub short: bool,
    /// Products at least, for a longer look; more than the gate's 60 seconds then.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub repeats: u32,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub output: Format,
}

/// Runs the gate and prints what it says. Exit code: 0 pass, 3 degraded, 4 unmeasured, 5 fail.
///
/// # Errors
/// A file does not read, or its limits make no sense.
pub fn run(options: &Options, program: Program, switches: &Switches) -> anyhow::Result<ExitCode> {
    let limits = rules::limits(options.limits.as_deref())?;
    let policy = rules::policy(options.policy.as_deref())?;
    for (name, seconds) in [("--tensor-s", options.tensor_s), ("--fp32-s", options.fp32_s)] {
        anyhow::ensure!((0.1..=3600.0).contains(&seconds), "{name} {seconds} is not in 0.1..=3600");
    }
    let effort = Effort {
        tensor_s: options.tensor_s,
        fp32_s: options.fp32_s,
        repeats_min: options.repeats,
        spoil: switches.spoil,
    };
    let setup = Setup {
        scope: if options.short { Scope::Short } else { Scope::Whole },
        expected: Expected {
            gpus: options.gpus,
            pci_device: options.pci_device.clone(),
            driver: options.driver.clone(),
        },
        program,
        host: switches.host.clone(),
        effort,
        patience: switches.patience,
        // A longer look has more time.
        hard_stop: gate::HARD_STOP.mul_f64(if options.repeats > 64 || options.tensor_s > 10.0 { 20.0 } else { 1.0 }),
    };
    let watched = std::io::stderr().is_terminal();
    let mut progress = |step: &str| {
        if watched {
            let _ = write!(std::io::stderr(), "\r\x1b[K{step} …");
        }
    };
    let evidence = gate::run(&setup, &mut KernelLog::of(&options.kernel_log), &mut progress);
    if watched {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let report = judge(&evidence, &limits, &policy);
    let text = match options.output {
        Format::Table => table(&report),
        Format::Json => {
            #[derive(Serialize)]
            struct Both<'a> {
                report: &'a Report,
                evidence: &'a health::gate::Evidence,
            }
            serde_json::to_string_pretty(&Both { report: &report, evidence: &evidence })? + "\n"
        }
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(exit_code(report.verdict))
}

/// The code of a verdict.
#[must_use]
pub fn exit_code(verdict: Verdict) -> ExitCode {
    ExitCode::from(verdict.exit_code())
}

/// The report for people: a block for each check, a column for each GPU, and what was found.
#[must_use]
pub fn table(report: &Report) -> String {
    let gpus: BTreeSet<u32> = report.outcomes.iter().filter_map(|o| o.gpu).collect();
    let places: Vec<Option<u32>> = std::iter::once(None).chain(gpus.into_iter().map(Some)).collect();
    let mut rows = Table::new();
    rows.load_style(comfy_table::presets::NOTHING);
    let name = |place: &Option<u32>| place.map_or_else(|| "host".to_owned(), |g| format!("GPU {g}"));
    rows.set_header(["check", "number", "limits"].map(str::to_owned).into_iter().chain(places.iter().map(name)));
    for check in Check::ALL {
        let of: Vec<Option<&Outcome>> =
            places.iter().map(|p| report.outcomes.iter().find(|o| o.check == check && o.gpu == *p)).collect();
        let verdict = |o: &Option<&Outcome>| o.map_or_else(String::new, |o| o.verdict.name().to_owned());
        let head = [check.name().to_owned(), String::new(), String::new()];
        rows.add_row(head.into_iter().chain(of.iter().map(verdict)));
        let longest = of.iter().flatten().max_by_key(|o| o.numbers.len());
        for (n, number) in longest.into_iter().flat_map(|o| o.numbers.iter().enumerate()) {
            let bound = number.bound.as_ref().map_or_else(String::new, limits);
            // Numbers of one name are told apart by their place: copies in a ring.
            let nth = longest.map_or(0, |o| o.numbers[..n].iter().filter(|m| m.name == number.name).count());
            let value = |o: &Option<&Outcome>| {
                let found = o.and_then(|o| o.numbers.iter().filter(|m| m.name == number.name).nth(nth));
                found.map_or_else(String::new, |m| value(m.value))
            };
            let head = [String::new(), number.name.clone(), bound];
            rows.add_row(head.into_iter().chain(of.iter().map(value)));
        }
    }
    for (i, column) in rows.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if i > 2 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = rows.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
    let findings = report.findings();
    if !findings.is_empty() {
        text += "\nfound\n";
        for finding in findings {
            text += &format!("  {finding}\n");
        }
    }
    let mend = if report.verdict == Verdict::Pass { String::new() } else { format!(", mend: {}", report.mend.name()) };
    text + &format!("\n{}{mend} ({:.1} s)\n", report.verdict.name(), report.seconds)
}

fn value(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v < 1.0 => format!("{value:.3}"),
        v if v < 100.0 && v.fract() != 0.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn limits(bound: &Bound) -> String {
    let parts = [
        ("fail <", bound.fail_below),
        ("warn <", bound.warn_below),
        ("warn >", bound.warn_above),
        ("fail >", bound.fail_above),
    ];
    let said = parts.into_iter().filter_map(|(word, limit)| {
        let limit = limit?;
        Some(if limit.fract() == 0.0 || limit >= 1000.0 {
            format!("{word} {limit:.0}")
        } else {
            format!("{word} {limit:.1}")
        })
    });
    said.collect::<Vec<_>>().join(", ")
}
