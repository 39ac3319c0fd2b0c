//! `pilotlight budget show | edit`.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use super::{Client, Remote, block_on, in_editor, print_json};
use crate::commands::Format;
use protocol::BudgetSpec;

/// What to do with the budget.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Budget, guards and quotas, as TOML.
    Show {
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Edit them: in $EDITOR, or from a file.
    Edit {
        /// TOML to write in place of an editor.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

const PATH: &str = "/v1/budget";

fn as_toml(budget: &Value) -> anyhow::Result<String> {
    let spec: BudgetSpec = serde_json::from_value(budget.clone())?;
    Ok(toml::to_string(&spec)?)
}

/// Reads or edits the budget of a server.
///
/// # Errors
/// The server cannot be reached, or refuses; the text makes no sense.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Show { remote } => block_on(remote, async |client: &Client| {
            let budget: Value = client.get(PATH).await?;
            if remote.output == Format::Json {
                return print_json(&budget);
            }
            print!("{}", as_toml(&budget)?);
            Ok(())
        }),
        Command::Edit { file, remote } => block_on(remote, async |client: &Client| {
            let (before, version) = client.get_versioned(PATH).await?;
            let before = as_toml(&before)?;
            let after = match file {
                Some(file) => {
                    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
                }
                None => in_editor(&before)?,
            };
            if after == before {
                eprintln!("nothing was changed");
                return Ok(());
            }
            let place = file.as_ref().map_or("the edited text".to_owned(), |f| f.display().to_string());
            let spec: BudgetSpec = toml::from_str(&after).with_context(|| place.clone())?;
            spec.check().map_err(|what| anyhow::anyhow!("{what}")).with_context(|| place)?;
            client.edit(PATH, Some(&serde_json::to_value(&spec)?), &version).await?;
            eprintln!("wrote the budget; the next plan obeys it");
            Ok(())
        }),
    }
}
