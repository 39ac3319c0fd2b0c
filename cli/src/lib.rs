//! The `pilotlight` command: the control plane, what speaks to it, plan files, simulation.

#[allow(clippy::print_stdout, reason = "a command line prints")]
pub mod commands;
mod output;
mod plan_file;
mod render;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
/// Size GPU buffers from prices, supply and demand.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the control plane: keep the buffer filled, hand out GPUs.
    Serve(commands::serve::Args),
    /// Look at a running server: GPUs, classes, loops.
    Status(commands::client::Remote),
    /// Nodes of a running server.
    Nodes(commands::client::fleet::Nodes),
    /// Take a node out: no new claims, ended when its last claim has.
    Drain(commands::client::fleet::Drain),
    /// Physical GPUs: what passed on them, and their faults.
    #[command(subcommand)]
    Gpu(commands::client::gpus::Command),
    /// Causes for which nothing is reset or ended, since many nodes failed for them together.
    #[command(subcommand)]
    Breaker(commands::client::breakers::Command),
    /// How nodes fare at each place: faults, boots, repairs.
    Rates(commands::client::Remote),
    /// Claims that wait or have GPUs.
    Claims(commands::client::claims::Claims),
    /// Claim GPUs, and wait for them.
    Claim(commands::client::claims::Claim),
    /// Give claims back.
    Release(commands::client::claims::Release),
    /// What happened, and why.
    Events(commands::client::events::Args),
    /// Read and edit classes.
    #[command(subcommand)]
    Class(commands::client::classes::Command),
    /// Budget, guards and quotas.
    #[command(subcommand)]
    Budget(commands::client::budget::Command),
    /// Demand that you know of before it comes.
    #[command(subcommand)]
    Forecast(commands::client::forecasts::Command),
    /// Snapshots that claims start from: what they are, how many copies lie on hosts, how soon claims are ready.
    Snapshots(commands::client::snapshots::Snapshots),
    /// Copies of snapshots on hosts.
    #[command(subcommand)]
    Stage(commands::client::snapshots::Stage),
    /// What starts took that hosts made by themselves, phase by phase.
    Starts(commands::client::Remote),
    /// Stop acting on plans; claims go on.
    Pause(commands::client::Remote),
    /// Act on plans again.
    Resume(commands::client::Remote),
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
    /// Write a demo: offers, demand and a plan file, all generated.
    Demo(commands::demo::Args),
    /// Tokens of the API.
    #[command(subcommand)]
    Token(commands::token::Command),
    /// What evidence of GPU faults means: policies, kernel logs, diagnostics.
    #[command(subcommand)]
    Health(commands::health::Command),
    /// Look at a server's configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Read a configuration and say what is wrong with it.
    Check {
        /// The configuration file to check.
        file: std::path::PathBuf,
    },
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    quiet_on_a_closed_pipe();
    let run = match Cli::parse().command {
        Command::Serve(args) => commands::serve::run(&args),
        Command::Status(remote) => commands::client::status::run(&remote),
        Command::Nodes(args) => commands::client::fleet::nodes(&args),
        Command::Drain(args) => commands::client::fleet::drain(&args),
        Command::Breaker(command) => commands::client::breakers::run(&command),
        Command::Rates(remote) => commands::client::rates::run(&remote),
        Command::Gpu(command) => commands::client::gpus::run(&command),
        Command::Claims(args) => commands::client::claims::list(&args),
        Command::Claim(args) => match commands::client::claims::take(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Release(args) => commands::client::claims::release(&args),
        Command::Events(args) => commands::client::events::run(&args),
        Command::Class(command) => commands::client::classes::run(&command),
        Command::Budget(command) => commands::client::budget::run(&command),
        Command::Forecast(command) => commands::client::forecasts::run(&command),
        Command::Snapshots(args) => commands::client::snapshots::run(&args),
        Command::Stage(command) => commands::client::snapshots::stage(&command),
        Command::Starts(remote) => commands::client::snapshots::starts(&remote),
        Command::Pause(remote) => commands::client::status::switch(&remote, "/v1/pause"),
        Command::Resume(remote) => commands::client::status::switch(&remote, "/v1/resume"),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Explain(args) => commands::explain::run(&args),
        Command::Offers(command) => commands::offers::run(&command),
        Command::Demand(command) => commands::demand::run(&command),
        Command::Simulate(args) => commands::simulate::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Token(command) => commands::token::run(&command),
        Command::Health(command) => match commands::health::run(&command) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Config(ConfigCommand::Check { file }) => server::config::Config::read(&file).map(|config| {
            let (classes, providers) = (config.class.len(), config.provider.len());
            eprintln!("{}: {classes} classes, {providers} providers, all well", file.display());
        }),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pilotlight", &mut std::io::stdout());
            Ok(())
        }
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", output::chain(&error));
            ExitCode::from(2)
        }
    }
}

/// `pilotlight nodes | head` ends when `head` has seen enough, as other commands do.
fn quiet_on_a_closed_pipe() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}
