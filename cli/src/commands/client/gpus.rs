//! `pilotlight gpu`: physical GPUs, across the instances that they were rented as.

use serde_json::{Value, json};

use super::{Client, Remote, ago, block_on, print_json, text};
use crate::commands::Format;
use crate::render::table;

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// GPUs, what passed on them, and their faults.
    List {
        /// Only those that took nodes out.
        #[arg(long)]
        faulty: bool,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Say that a GPU is well: nodes with it are taken again.
    Clear {
        /// Its serial number.
        serial: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

/// Lists physical GPUs, or clears one.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { faulty, remote } => block_on(remote, async |client: &Client| {
            let mut gpus = all(client).await?;
            gpus.retain(|g| !faulty || g["faults"].as_array().is_some_and(|f| !f.is_empty()));
            if remote.output == Format::Json {
                return print_json(&gpus);
            }
            let mut rows = table(&["GPU", "node", "instance", "level 2", "level 3", "faults", "last fault"], 5..6);
            for gpu in &gpus {
                let history = &gpu["history"];
                let faults = gpu["faults"].as_array().map_or(&[][..], Vec::as_slice);
                let last = faults.last().map_or_else(String::new, |f| text(f, "reason"));
                let full = if history["full_at_ms"].is_null() { "never".into() } else { ago(history, "full_at_ms") };
                rows.add_row([
                    text(gpu, "serial"),
                    text(gpu, "node"),
                    text(gpu, "instance"),
                    if history["quick"] == json!(true) { "passed".into() } else { "due".to_owned() },
                    full,
                    faults.len().to_string(),
                    if gpu["blocked"] == json!(true) { format!("blocked: {last}") } else { last },
                ]);
            }
            println!("{rows}");
            Ok(())
        }),
        Command::Clear { serial, remote } => block_on(remote, async |client: &Client| {
            let gpu = client.post(&format!("/v1/gpus/{serial}/clear"), &json!({})).await?;
            if remote.output == Format::Json {
                return print_json(&gpu);
            }
            println!("{serial}: nodes with it are taken again");
            Ok(())
        }),
    }
}

async fn all(client: &Client) -> anyhow::Result<Vec<Value>> {
    let (mut gpus, mut after) = (Vec::new(), String::new());
    loop {
        let page: Value = client.get(&format!("/v1/gpus?limit=1000&after={after}")).await?;
        gpus.extend(page["items"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => return Ok(gpus),
        }
    }
}
