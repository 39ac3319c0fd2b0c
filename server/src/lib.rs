//! The control plane and the command line.

pub mod api;
mod clock;
#[allow(clippy::print_stdout, reason = "a command line prints")]
pub mod commands;
pub mod config;
pub mod demo;
pub mod loops;
mod output;
mod plan_file;
mod render;
pub mod store;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
/// Size GPU buffers from prices, supply and demand.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Plan: what to launch and release now, what it costs and why.
    Plan(commands::plan::Args),
    /// Say why a class gets these offers and not others.
    Explain(commands::explain::Args),
    /// Import and judge offers.
    #[command(subcommand)]
    Offers(commands::offers::Command),
    /// Look at demand traces and score forecasts on them.
    #[command(subcommand)]
    Demand(commands::demand::Command),
    /// Replay demand offline and compare policies.
    Simulate(commands::simulate::Args),
    /// Run the control plane: keep the buffer filled, hand out GPUs.
    Serve(commands::serve::Args),
    /// Write a demo: offers, demand and a plan file, all generated.
    Demo(commands::demo::Args),
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let run = match Cli::parse().command {
        Command::Plan(args) => commands::plan::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Offers(command) => commands::offers::run(&command),
        Command::Demand(command) => commands::demand::run(&command),
        Command::Simulate(args) => commands::simulate::run(&args),
        Command::Serve(args) => commands::serve::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", output::chain(&error));
            ExitCode::from(2)
        }
    }
}
