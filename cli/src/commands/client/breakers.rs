//! `pilotlight breaker`: causes for which nothing is reset or ended.

use serde_json::{Value, json};

use super::{Client, Remote, ago, block_on, print_json, text};
use crate::commands::Format;
use crate::render::table;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Breakers that are not closed.
    List {
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Close one: nodes are reset and ended again for this cause.
    Close {
        /// Cloud, region and instance type, as `list` shows it.
        cell: String,
        /// What the faults have in common, as `list` shows it.
        cause: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

/// Lists the causes that are held, or closes one.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { remote } => block_on(remote, async |client: &Client| {
            let list: Value = client.get("/v1/breakers").await?;
            let breakers = list["items"].as_array().cloned().unwrap_or_default();
            if remote.output == Format::Json {
                return print_json(&breakers);
            }
            if breakers.is_empty() {
                println!("all closed: no cause has many nodes out at the same time");
                return Ok(());
            }
            let mut rows = table(&["cell", "cause", "state", "since", "canary"], 0..0);
            for breaker in &breakers {
                rows.add_row([
                    text(breaker, "cell"),
                    text(breaker, "cause"),
                    text(breaker, "state"),
                    ago(breaker, "since_ms"),
                    text(breaker, "canary"),
                ]);
            }
            println!("{rows}");
            Ok(())
        }),
        Command::Close { cell, cause, remote } => block_on(remote, async |client: &Client| {
            let left = client.post("/v1/breakers/close", &json!({ "cell": cell, "cause": cause })).await?;
            if remote.output == Format::Json {
                return print_json(&left);
            }
            println!("{cell}, {cause}: closed within seconds");
            Ok(())
        }),
    }
}
