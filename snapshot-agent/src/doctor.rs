//! `pilotlight-agent doctor`: what on this host would stop health checks, mounts or restores from working, and the mend.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use comfy_table::Table;
use serde::Serialize;

use crate::check::Format;
use crate::host::HostFolders;
use crate::kmsg::KernelLog;
use crate::probe::{Answer, Ask};
use crate::restore;
use crate::worker::{Program, Worker};

/// Options of the doctor.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The kernel's log.
    #[arg(long, value_name = "FILE", default_value = "/dev/kmsg")]
    pub kernel_log: PathBuf,
    /// How the host joins.
    #[arg(long, value_name = "FILE", default_value = "/etc/pilotlight/join.toml")]
    pub config: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub output: Format,
}

/// What a thing is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum For {
    Checks,
    Repairs,
    Diagnostics,
    Joining,
    Mounts,
    Restores,
}

impl For {
    fn name(self) -> &'static str {
        match self {
            Self::Checks => "checks",
            Self::Repairs => "repairs",
            Self::Diagnostics => "diagnostics",
            Self::Joining => "joining",
            Self::Mounts => "mounts",
            Self::Restores => "restores",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    needed_for: For,
    what: &'static str,
    /// None: it is as it should be.
    mend: Option<String>,
    said: String,
}

/// Oldest drivers: for the kernels of the gate, and for CUDA's own checkpoints.
const DRIVER_FOR_GATE: u32 = 525;
const DRIVER_FOR_RESTORE: u32 = snapshots::compatibility::DRIVER_MIN;
/// Pinned memory that the gate takes for each GPU, MiB.
const PINNED_MIB: u64 = 1024;

/// Looks, and prints what it saw. Exit code: 0 where nothing stands in the way, 5 otherwise.
///
/// # Errors
/// The output cannot be written.
pub fn run(options: &Options, program: Program, host: &HostFolders) -> anyhow::Result<ExitCode> {
    let mut findings = Vec::new();
    let gpus = driver(&mut findings, program, host);
    log(&mut findings, &options.kernel_log);
    memory(&mut findings, gpus);
    tools(&mut findings);
    fabric(&mut findings, host);
    joining(&mut findings, &options.config);
    mounts(&mut findings, host);
    restores(&mut findings);
    let text = match options.output {
        Format::Json => serde_json::to_string_pretty(&findings)? + "\n",
        Format::Table => table(&findings),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::from(if findings.iter().any(|f| f.mend.is_some()) { 5 } else { 0 }))
}

fn table(findings: &[Finding]) -> String {
    let mut rows = Table::new();
    rows.load_style(comfy_table::presets::NOTHING);
    rows.set_header(["", "for", "what", "seen"]);
    for f in findings {
        let mark = if f.mend.is_some() { "✗" } else { "✓" };
        rows.add_row([mark, f.needed_for.name(), f.what, &f.said]);
    }
    for column in rows.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String = rows.lines().map(|l| l.trim_end().to_owned() + "\n").collect();
    let mends: Vec<_> = findings.iter().filter_map(|f| Some((f, f.mend.as_ref()?))).collect();
    text += if mends.is_empty() { "\nnothing stands in the way\n" } else { "\nto mend\n" };
    for (f, mend) in mends {
        text += &format!("  {}: {mend}\n", f.what);
    }
    text
}

fn good(needed_for: For, what: &'static str, said: impl Into<String>) -> Finding {
    Finding { needed_for, what, mend: None, said: said.into() }
}

fn bad(needed_for: For, what: &'static str, said: impl Into<String>, mend: &str) -> Finding {
    Finding { needed_for, what, mend: Some(mend.to_owned()), said: said.into() }
}

/// The driver, from a child, since it may hang. Returns the GPUs that it sees.
fn driver(findings: &mut Vec<Finding>, program: Program, host: &HostFolders) -> u64 {
    let mut worker = Worker::new(program);
    let on_bus = host.on_bus();
    match worker.ask(&Ask::Survey, Duration::from_secs(15)) {
        Ok(Answer::Survey(driver, gpus)) => {
            let version = driver.major().unwrap_or(0);
            findings.push(if version < DRIVER_FOR_GATE {
                bad(For::Checks, "driver", driver.version.clone(), "install driver 525 or later")
            } else {
                good(For::Checks, "driver", format!("{}, CUDA {}", driver.version, driver.cuda))
            });
            findings.push(if version < DRIVER_FOR_RESTORE {
                let mend = format!("install driver {DRIVER_FOR_RESTORE} or later");
                bad(For::Restores, "driver's checkpoints", driver.version, &mend)
            } else {
                good(For::Restores, "driver's checkpoints", driver.version)
            });
            let said = format!("{} in the driver, {} on the bus", gpus.len(), on_bus.as_ref().map_or(0, Vec::len));
            findings.push(match &on_bus {
                Ok(on_bus) if on_bus.len() == gpus.len() && !gpus.is_empty() => good(For::Checks, "GPUs", said),
                _ => {
                    bad(For::Checks, "GPUs", said, "look at the kernel log for NVRM; a GPU that is missing is replaced")
                }
            });
            if let Some((_, address)) = gpus.first() {
                findings.push(match worker.ask(&Ask::Context(*address), Duration::from_secs(30)) {
                    Ok(_) => good(For::Checks, "CUDA", "a kernel runs"),
                    Err(why) => bad(For::Checks, "CUDA", why.to_string(), "load nvidia-uvm (nvidia-modprobe -u -c 0)"),
                });
            }
            let missing = host.missing_files(gpus.len()).unwrap_or_default();
            findings.push(if missing.is_empty() {
                good(For::Checks, "device files", "all there")
            } else {
                bad(For::Checks, "device files", missing.join(", ") + " missing", "nvidia-modprobe -u -c 0")
            });
            gpus.len() as u64
        }
        Ok(_) => 0,
        Err(why) => {
            findings.push(bad(For::Checks, "driver", why.to_string(), "install NVIDIA's driver, and load its module"));
            0
        }
    }
}

fn log(findings: &mut Vec<Finding>, path: &Path) {
    findings.push(match KernelLog::of(path).read_on() {
        Ok(said) if said.gap => {
            let mend = "boot with log_buf_len=8M, or keep a journal, so that the log is whole";
            bad(For::Checks, "kernel log", "its beginning is lost", mend)
        }
        Ok(said) => good(For::Checks, "kernel log", format!("{} lines about GPUs", said.records.len())),
        Err(why) => bad(For::Checks, "kernel log", why.to_string(), "run as root, or with CAP_SYSLOG"),
    });
}

fn memory(findings: &mut Vec<Finding>, gpus: u64) {
    let needed_mib = PINNED_MIB * gpus.max(1) + 1024;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"));
    let free_mib = line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024);
    findings.push(if free_mib < needed_mib {
        bad(
            For::Checks,
            "host memory",
            format!("{free_mib} MiB free"),
            &format!("the gate's copies need {needed_mib} MiB"),
        )
    } else {
        good(For::Checks, "host memory", format!("{free_mib} MiB free"))
    });
}

/// Whether a program is there, and what it says of itself.
fn version(program: &str, args: &[&str]) -> Option<String> {
    let made = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    Some(text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default().chars().take(60).collect())
}

fn tools(findings: &mut Vec<Finding>) {
    let mut tool = |needed_for, what: &'static str, program: &str, args: &[&str], mend: &str| {
        findings.push(match version(program, args) {
            Some(said) => good(needed_for, what, said),
            None => bad(needed_for, what, "not there", mend),
        });
    };
    let reset = "it comes with NVIDIA's driver (nvidia-utils); GPUs cannot be reset without it";
    tool(For::Repairs, "nvidia-smi", "nvidia-smi", &["--version"], reset);
    let dcgm = "install datacenter-gpu-manager; without it there are no weekly diagnostics";
    tool(For::Diagnostics, "dcgmi", "dcgmi", &["--version"], dcgm);
    tool(For::Mounts, "fusermount3", "fusermount3", &["--version"], "install fuse3");
    let root = rustix::process::geteuid().is_root();
    findings.push(if root {
        good(For::Repairs, "root", "yes")
    } else {
        bad(For::Repairs, "root", "no", "run it as root: the driver lets only root reset a GPU")
    });
}

/// Hosts with NVSwitches need the fabric manager before CUDA starts.
fn fabric(findings: &mut Vec<Finding>, host: &HostFolders) {
    let names = std::fs::read_dir(&host.dev).into_iter().flatten().flatten().map(|e| e.file_name());
    let switches = names.filter(|n| {
        let name = n.to_string_lossy();
        name.strip_prefix("nvidia-nvswitch").is_some_and(|n| n.parse::<u32>().is_ok())
    });
    let count = switches.count();
    if count == 0 {
        return;
    }
    let runs = Command::new("pgrep").arg("nv-fabricmanager").output().is_ok_and(|o| o.status.success());
    findings.push(if runs {
        good(For::Checks, "fabric manager", format!("runs, {count} switches"))
    } else {
        bad(
            For::Checks,
            "fabric manager",
            format!("does not run, {count} switches"),
            "systemctl enable --now nvidia-fabricmanager",
        )
    });
}

fn joining(findings: &mut Vec<Finding>, config: &Path) {
    findings.push(match crate::daemon::describe(config) {
        Ok(said) => good(For::Joining, "join.toml", said),
        Err(error) => {
            let mend = "the instance's user data writes it; for a machine of your own: pilotlight token host NAME";
            bad(For::Joining, "join.toml", format!("{error:#}"), mend)
        }
    });
}

fn restores(findings: &mut Vec<Finding>) {
    findings.push(match restore::usable_criu(std::env::var_os("PILOTLIGHT_CRIU").map(PathBuf::from)) {
        Ok(version) => good(For::Restores, "CRIU", version),
        Err(why) => bad(For::Restores, "CRIU", why, "'make criu' brings one beside what the machine has"),
    });
    findings.push(match restore::built_library() {
        Some(path) => good(For::Restores, "library for workloads", path.display().to_string()),
        None => {
            let mend = "put libpilotlight_interposer.so beside the agent: without it the driver moves device memory, at a tenth \
                        of the bus's speed";
            bad(For::Restores, "library for workloads", "not there", mend)
        }
    });
}

fn mounts(findings: &mut Vec<Finding>, host: &HostFolders) {
    let fuse = host.dev.join("fuse");
    findings.push(if fuse.exists() {
        good(For::Mounts, "FUSE", fuse.display().to_string())
    } else {
        bad(For::Mounts, "FUSE", "not there", "modprobe fuse")
    });
}
