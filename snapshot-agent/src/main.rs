//! The agent's command line.

use std::process::ExitCode;

use snapshot_agent::cli;
use snapshot_agent::probe::Hardware;
use snapshot_agent::switches::Switches;

fn main() -> ExitCode {
    cli::main(&mut Hardware::default(), &Switches::default())
}
