//! `pilotlight snapshots [put | delete]`, `pilotlight stage status`, `pilotlight starts`.

use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::{Client, Remote, ago, block_on, number, print_json, text};
use crate::commands::Format;
use crate::render::table;

/// Arguments of `snapshots`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Snapshots {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    remote: Remote,
}

/// What to do with snapshots; without it they are listed.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Declare one: hosts have it before claims ask for it. One of that name is written over.
    Put(Put),
    /// Take one back: its copies leave the hosts. What is in the store stays there.
    Delete {
        /// Its name.
        name: String,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

/// Arguments of `snapshots put`.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// Its name.
    name: String,
    /// Class whose claims start from it.
    #[arg(long)]
    class: String,
    /// The store that it lies in, as hosts reach it: s3://BUCKET/PREFIX, or a folder that all of them have.
    #[arg(long, value_name = "ADDRESS")]
    store: String,
    /// Its id there, as 'pilotlight-agent store put' prints it.
    #[arg(long, value_name = "ID")]
    object: String,
    /// Bytes of a copy, as 'pilotlight-agent store ls' shows them: 16GiB, 512MiB, 1000000.
    #[arg(long, value_parser = bytes)]
    size: u64,
    /// Seconds from grant to readiness without it.
    #[arg(long, value_name = "SECONDS")]
    cold_s: f64,
    /// Seconds of a restore beside those in which its bytes move.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    restore_s: f64,
    /// GPU model that it runs on; without it each that the class takes.
    #[arg(long, value_name = "MODEL")]
    gpu: Option<String>,
    /// Share of its class's claims that start from it.
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// Dollars that a second of waiting for readiness costs, beside the GPUs that wait.
    #[arg(long, value_name = "DOLLARS", default_value_t = 0.0)]
    wait_cost_usd_per_s: f64,
    /// Who brings it up when a claim gets its GPUs: the host's agent, which also ends it with the claim, or the client.
    #[arg(long, value_name = "WHO", value_parser = ["client", "agent"], default_value = "client")]
    started_by: String,
    #[command(flatten)]
    remote: Remote,
}

/// `16GiB` in bytes.
fn bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let wrong = || format!("'{text}' is no size: write 16GiB, 512MiB or a number of bytes");
    let unit = match unit {
        "" | "B" => 1_u64,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let bytes = number * unit as f64;
    if (1.0..=1e15).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// Runs `snapshots`.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(args: &Snapshots) -> anyhow::Result<()> {
    match &args.command {
        None => list(&args.remote),
        Some(Command::Put(put)) => declare(put),
        Some(Command::Delete { name, remote }) => block_on(remote, async |client: &Client| {
            let path = format!("/v1/snapshots/{name}");
            let (_, version) = client.get_versioned(&path).await?;
            client.edit(&path, None, &version).await?;
            eprintln!("deleted {name}; its copies leave the hosts");
            Ok(())
        }),
    }
}

fn declare(put: &Put) -> anyhow::Result<()> {
    let mut spec = json!({
        "class": put.class, "store": put.store, "object": put.object, "bytes": put.size, "cold_s": put.cold_s,
        "restore_s": put.restore_s, "share": put.share, "wait_cost_usd_per_s": put.wait_cost_usd_per_s,
        "started_by": put.started_by,
    });
    if let Some(gpu) = &put.gpu {
        spec["gpu"] = json!(gpu);
    }
    block_on(&put.remote, async |client: &Client| {
        let all: Value = client.get("/v1/snapshots").await?;
        let known = all["items"].as_array().into_iter().flatten().find(|s| s["name"] == put.name[..]);
        let version = known.map(|s| format!("\"{}\"", text(s, "version"))).unwrap_or_default();
        client.edit(&format!("/v1/snapshots/{}", put.name), Some(&spec), &version).await?;
        eprintln!("declared {}; 'pilotlight stage status' shows its copies as they come", put.name);
        Ok(())
    })
}

fn list(remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let all: Value = client.get("/v1/snapshots").await?;
        if remote.output == Format::Json {
            return print_json(&all["items"]);
        }
        let mut rows = table(
            &["snapshot", "class", "size", "hot", "on disk", "coming", "memory s", "disk s", "cold s", "learnt from"],
            2..10,
        );
        for snapshot in all["items"].as_array().into_iter().flatten() {
            let copies = |states: &[&str]| {
                let of = |state: &&str| snapshot["copies"].get(*state).and_then(Value::as_u64).unwrap_or(0);
                states.iter().map(of).sum::<u64>().to_string()
            };
            let ready = &snapshot["ready"];
            let seconds = |from: &str| format!("{:.1}", number(&ready[from], "p50_s"));
            let starts: f64 = ["memory", "disk", "cold"].iter().map(|from| number(&ready[*from], "learnt_from")).sum();
            rows.add_row([
                text(snapshot, "name"),
                text(&snapshot["spec"], "class"),
                BinaryBytes(snapshot["spec"]["bytes"].as_u64().unwrap_or(0)).to_string(),
                copies(&["hot"]),
                copies(&["verified"]),
                copies(&["wanted", "fetching"]),
                seconds("memory"),
                seconds("disk"),
                seconds("cold"),
                format!("{starts:.0} starts"),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}

/// What to do with staged copies.
#[derive(Debug, clap::Subcommand)]
pub enum Stage {
    /// Each copy on each host: where it is to lie, how far it has come, what stands in its way.
    Status {
        /// Only of this snapshot.
        #[arg(long)]
        snapshot: Option<String>,
        /// Where the server is.
        #[command(flatten)]
        remote: Remote,
    },
}

/// Runs `stage`.
///
/// # Errors
/// As [`run`].
pub fn stage(command: &Stage) -> anyhow::Result<()> {
    let Stage::Status { snapshot, remote } = command;
    block_on(remote, async |client: &Client| {
        let all: Value = client.get("/v1/staging").await?;
        let mut copies: Vec<Value> = all["items"].as_array().cloned().unwrap_or_default();
        copies.retain(|copy| snapshot.as_ref().is_none_or(|name| copy["snapshot"] == name[..]));
        if remote.output == Format::Json {
            return print_json(&copies);
        }
        let mut rows = table(&["node", "snapshot", "wanted on", "state", "since", "there", "problem"], 5..6);
        for copy in &copies {
            let (has, of) = (number(copy, "bytes"), number(copy, "of_bytes"));
            let there = if of > 0.0 { format!("{:.0} %", (100.0 * has / of).min(100.0)) } else { "-".into() };
            let named = text(copy, "snapshot");
            let name = if named == "-" { text(copy, "object").chars().take(12).collect() } else { named };
            rows.add_row([
                text(copy, "node"),
                name,
                text(copy, "wanted"),
                text(copy, "state"),
                ago(copy, "since_ms"),
                there,
                text(copy, "problem"),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}

/// Runs `starts`: what starts took that hosts made by themselves.
///
/// # Errors
/// As [`run`].
pub fn starts(remote: &Remote) -> anyhow::Result<()> {
    block_on(remote, async |client: &Client| {
        let all: Value = client.get("/v1/starts").await?;
        if remote.output == Format::Json {
            return print_json(&all["items"]);
        }
        let items = all["items"].as_array().cloned().unwrap_or_default();
        if items.is_empty() {
            eprintln!(
                "no host has brought anything up yet: 'pilotlight snapshots put --started-by agent' has them do it"
            );
            return Ok(());
        }
        let mut rows = table(&["class", "came up by", "phase", "p50 s", "p90 s", "p99 s", "starts"], 3..7);
        for start in &items {
            let phase = text(start, "phase");
            rows.add_row([
                text(start, "class"),
                text(start, "rung"),
                if phase == "-" { "grant to answer".into() } else { phase },
                format!("{:.2}", number(start, "p50_s")),
                format!("{:.2}", number(start, "p90_s")),
                format!("{:.2}", number(start, "p99_s")),
                text(start, "starts"),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("16 GB"), Ok(16_000_000_000));
        assert_eq!(bytes("1000"), Ok(1000));
        for wrong in ["", "GiB", "5gib", "-1GiB", "0", "1e99", "nan"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
