//! `pilotlight forecast list | declare | delete`.

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{Client, Remote, block_on, duration, number, print_json, text};
use crate::commands::Format;
use crate::output;
use crate::render::table;

/// What to do with declared demand.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// All that is declared.
    List {
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Declare demand that you know of: every plan counts on at least so much.
    Declare {
        /// Its name; one of that name is written over.
        name: String,
        /// Class.
        #[arg(long)]
        class: String,
        /// Claims at the same time.
        #[arg(long)]
        claims: f64,
        /// From when: 90s, 30m, 6h or 2d from now.
        #[arg(long = "in", default_value = "0s", value_parser = span_ms)]
        start: i64,
        /// For how long: 90s, 30m, 6h or 2d.
        #[arg(long = "for", value_parser = span_ms)]
        length: i64,
        /// Why, for people.
        #[arg(long, default_value = "")]
        note: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
    /// Take one back.
    Delete {
        /// Its name.
        name: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

/// `30m` in milliseconds.
fn span_ms(text: &str) -> Result<i64, String> {
    let wrong = || format!("'{text}' is no length of time: write 90s, 30m, 6h or 2d");
    let unit = match text.chars().last() {
        Some('s') => 1_000.0,
        Some('m') => 60_000.0,
        Some('h') => 3_600_000.0,
        Some('d') => 86_400_000.0,
        _ => return Err(wrong()),
    };
    let number: f64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    if (0.0..=3650.0 * 86_400_000.0 / unit).contains(&number) { Ok((number * unit) as i64) } else { Err(wrong()) }
}

/// Reads or edits the declared forecasts of a server.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List { remote } => list(remote),
        Command::Declare { name, class, claims, start, length, note, remote } => {
            let from_ms = output::now_ms() + start;
            let until_ms = from_ms + length;
            let spec =
                json!({ "class": class, "from_ms": from_ms, "until_ms": until_ms, "claims": claims, "note": note });
            block_on(remote, async |client: &Client| {
                let version = version_of(client, name).await?.unwrap_or_default();
                client.edit(&format!("/v1/forecasts/{name}"), Some(&spec), &version).await?;
                eprintln!("declared {name}: {claims} claims of {class} for {}; plans count on it", duration(*length));
                Ok(())
            })
        }
        Command::Delete { name, remote } => block_on(remote, async |client: &Client| {
            let Some(version) = version_of(client, name).await? else {
                bail!("'pilotlight forecast list' shows what is declared: there is no '{name}'");
            };
            client.edit(&format!("/v1/forecasts/{name}"), None, &version).await?;
            eprintln!("deleted {name}");
            Ok(())
        }),
    }
}

/// The version of one as `If-Match` takes it.
async fn version_of(client: &Client, name: &str) -> anyhow::Result<Option<String>> {
    let all: Value = client.get("/v1/forecasts").await?;
    let all = all["items"].as_array().context("a list")?;
    let found = all.iter().find(|f| f["name"] == name);
    Ok(found.map(|f| format!("\"{}\"", text(f, "version"))))
}

fn list(remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let all: Value = client.get("/v1/forecasts").await?;
        if remote.output == Format::Json {
            return print_json(&all["items"]);
        }
        let mut rows = table(&["forecast", "class", "claims", "when", "note"], 2..3);
        let now_ms = output::now_ms();
        for forecast in all["items"].as_array().into_iter().flatten() {
            let spec = &forecast["spec"];
            let (from_ms, until_ms) = (number(spec, "from_ms") as i64, number(spec, "until_ms") as i64);
            let when = if now_ms < from_ms {
                format!("in {}, for {}", duration(from_ms - now_ms), duration(until_ms - from_ms))
            } else if now_ms < until_ms {
                format!("now, for {} more", duration(until_ms - now_ms))
            } else {
                format!("over since {}", duration(now_ms - until_ms))
            };
            rows.add_row([text(forecast, "name"), text(spec, "class"), text(spec, "claims"), when, text(spec, "note")]);
        }
        println!("{rows}");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        assert_eq!(span_ms("90s"), Ok(90_000));
        assert_eq!(span_ms("1.5h"), Ok(5_400_000));
        for wrong in ["", "5", "h", "-1h", "1e99d", "nans"] {
            assert!(span_ms(wrong).is_err(), "{wrong}");
        }
    }
}
