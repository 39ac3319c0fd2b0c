//! `pilotlight class list | show | edit | delete`.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use server::api::Code;

use super::{Client, Refused, Remote, block_on, in_editor, number, print_json, text};
use crate::commands::Format;
use crate::render::table;
use protocol::ClassSpec;

/// What to do with classes.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// All classes.
    List {
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// One class, as TOML.
    Show {
        /// Its name.
        name: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Edit a class, or make one: in $EDITOR, or from a file.
    Edit {
        /// Its name.
        name: String,
        /// TOML to write in place of an editor.
        #[arg(long)]
        file: Option<PathBuf>,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete a class. Its claims keep their GPUs until they end.
    Delete {
        /// Its name.
        name: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

/// Reads or edits the classes of a server.
///
/// # Errors
/// The server cannot be reached, or refuses; the text makes no sense.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { remote } => list(remote),
        Command::Show { name, remote } => block_on(remote, async |client: &Client| {
            let (class, _) = client.get_versioned(&format!("/v1/classes/{name}")).await?;
            if remote.output == Format::Json {
                return print_json(&class);
            }
            print!("{}", as_toml(&class)?);
            Ok(())
        }),
        Command::Edit { name, file, remote } => edit(name, file.as_ref(), remote),
        Command::Delete { name, remote } => block_on(remote, async |client: &Client| {
            let path = format!("/v1/classes/{name}");
            let (_, version) = client.get_versioned(&path).await?;
            client.edit(&path, None, &version).await?;
            eprintln!("deleted {name}");
            Ok(())
        }),
    }
}

fn as_toml(class: &Value) -> anyhow::Result<String> {
    let spec: ClassSpec = serde_json::from_value(class["spec"].clone())?;
    Ok(toml::to_string(&spec)?)
}

fn list(remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let classes: Value = client.get("/v1/classes").await?;
        if remote.output == Format::Json {
            return print_json(&classes["items"]);
        }
        let mut rows = table(&["class", "GPUs", "models", "target", "miss costs", "wait", "when empty"], 1..2);
        for class in classes["items"].as_array().into_iter().flatten() {
            let spec = &class["spec"];
            let models: Vec<String> = spec["gpus"].as_array().into_iter().flatten().map(|g| text(g, "model")).collect();
            rows.add_row([
                text(spec, "name"),
                text(spec, "gpus_per_claim"),
                models.join(", "),
                format!("{:.2} %", 100.0 * number(spec, "hit_rate")),
                format!("${:.2}", number(spec, "miss_cost_usd")),
                format!("{} s", text(spec, "wait_s")),
                text(spec, "on_empty"),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}

const NEW: &str =
    "gpus = [{ model = \"H100-SXM\" }]\ngpus_per_claim = 1\nhit_rate = 0.99\nmiss_cost_usd = 1.0\nwait_s = 30\n";

fn edit(name: &str, file: Option<&PathBuf>, remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let path = format!("/v1/classes/{name}");
        let (before, version) = match client.get_versioned(&path).await {
            Ok((class, version)) => (as_toml(&class)?, version),
            Err(error) if Refused::is(&error, Code::UnknownClass) => {
                (format!("name = \"{name}\"\n{NEW}"), String::new())
            }
            Err(error) => return Err(error),
        };
        let after = match file {
            Some(file) => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
            None => in_editor(&before)?,
        };
        if after == before && !version.is_empty() {
            eprintln!("nothing was changed");
            return Ok(());
        }
        let place = file.map_or("the edited text".to_owned(), |f| f.display().to_string());
        let spec: ClassSpec = toml::from_str(&after).with_context(|| place.clone())?;
        spec.rule().with_context(|| place)?;
        client.edit(&path, Some(&serde_json::to_value(&spec)?), &version).await?;
        eprintln!("wrote {name}; the planner looks at it now");
        Ok(())
    })
}
