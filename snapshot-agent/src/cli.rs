//! The command line, with the probe that answers in the children: the real one in the agent, a scripted one in tests.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::check;
use crate::daemon;
use crate::diagnose;
use crate::doctor;
use crate::probe::Probe;
use crate::restore::{self, commands as processes};
use crate::snapshots::{commands as store, mount};
use crate::switches::Switches;
use crate::worker::{Program, serve};

/// Checks the health of a GPU host, reports it, and stores snapshots.
#[derive(Debug, Parser)]
#[command(name = "pilotlight-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Runs the boot gate once and prints numbers, limits and verdicts. Exit code: 0 pass, 3 degraded, 4 unmeasured, 5 fail.
    Check(check::Options),
    /// Runs the daemon: registers, watches, checks, reports.
    Run(daemon::Options),
    /// Runs NVIDIA's diagnostics and says what they prove. Exit code: 0 pass, 3 degraded, 4 unmeasured, 5 fail.
    Diag(diagnose::Options),
    /// Says what on this host stands in the way of checks, mounts and restores, and the mend.
    Doctor(doctor::Options),
    /// Stores files as objects of verified leaves, and reads them back.
    #[command(subcommand)]
    Store(store::Command),
    /// Mounts an image: its tree at once, its content when it is touched. Ends when it is unmounted.
    Mount(mount::Options),
    /// Starts a workload, captures it when it serves, stores it, and prints the snapshot's id. The workload is gone afterwards.
    Capture(processes::CaptureOptions),
    /// Brings a captured workload up: restored, or by a cold start where that cannot be, fails, or would be slower. Stays until
    /// it ends.
    Restore(processes::RestoreOptions),
    /// Holds a workload; 'capture' and 'restore' start it.
    #[command(hide = true)]
    Hold(restore::Where),
    /// Answers questions about GPUs; the agent starts it.
    #[command(hide = true)]
    Probe,
}

/// Runs the command that the process was started with.
pub fn main(probe: &mut dyn Probe, switches: &Switches) -> ExitCode {
    let cli = Cli::parse();
    let program =
        || -> anyhow::Result<Program> { Ok(Program { path: std::env::current_exe()?, args: vec!["probe".into()] }) };
    let done = match &cli.command {
        Command::Probe => {
            serve(probe);
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(options) => program().and_then(|program| {
            let colours = std::io::stderr().is_terminal();
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_target(false).init();
            let ground = daemon::Ground {
                program,
                host: switches.host.clone(),
                patience: switches.patience,
                tools: switches.tools.clone(),
                boot: switches.boot.clone(),
            };
            daemon::run(options, ground).map(|()| ExitCode::SUCCESS)
        }),
        Command::Diag(options) => program().and_then(|p| diagnose::run(options, p, switches.patience)),
        Command::Doctor(options) => program().and_then(|p| doctor::run(options, p, &switches.host)),
        Command::Store(command) => store::run(command),
        Command::Mount(options) => mount::run(options),
        Command::Capture(options) => processes::capture(options),
        Command::Restore(options) => processes::restore(options),
        Command::Hold(at) => restore::hold(at.criu.clone()),
        Command::Check(options) => program().and_then(|p| check::run(options, p, switches)),
    };
    done.unwrap_or_else(|error| {
        // The cause last, each on its line. Some errors say their cause's words themselves.
        eprintln!("error: {error}");
        let mut said = error.to_string();
        for cause in error.chain().skip(1).map(ToString::to_string) {
            if !said.contains(&cause) {
                eprintln!("  because: {cause}");
                said = cause;
            }
        }
        ExitCode::FAILURE
    })
}
