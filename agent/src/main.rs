//! The agent's command line.

use std::process::ExitCode;

use agent::cli;
use agent::probe::Hardware;

fn main() -> ExitCode {
    cli::main(&mut Hardware::default(), &cli::Switches::default())
}
