//! `pilotlight nodes`, `pilotlight drain`.

use serde_json::json;

use super::{Client, Remote, ago, block_on, print_json, text};
use crate::commands::Format;
use crate::render::table;

/// Arguments of `nodes`.
#[derive(Debug, clap::Args)]
pub struct Nodes {
    /// Only of this state.
    #[arg(long)]
    state: Option<String>,
    /// Also those that are gone.
    #[arg(long)]
    all: bool,
    /// At most so many.
    #[arg(long, default_value_t = 1000)]
    most: usize,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `nodes`.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn nodes(args: &Nodes) -> anyhow::Result<()> {
    block_on(&args.remote, async |client: &Client| {
        let path = args.state.as_ref().map_or("/v1/nodes".to_owned(), |s| format!("/v1/nodes?state={s}"));
        let mut nodes = client.all(&path, args.most).await?;
        nodes.retain(|n| args.all || args.state.is_some() || n["state"] != "terminated");
        if args.remote.output == Format::Json {
            return print_json(&nodes);
        }
        let mut rows = table(&["node", "state", "since", "GPU", "free", "$/h", "offer", "why"], 4..6);
        for node in &nodes {
            rows.add_row([
                text(node, "id"),
                text(node, "state"),
                ago(node, "since_ms"),
                text(node, "gpu"),
                format!("{}/{}", text(node, "free_gpus"), text(node, "gpus")),
                format!("{:.2}", super::number(node, "price_usd_per_h")),
                text(node, "offer"),
                text(node, "reason"),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub struct Drain {
    /// The node, `n-17`.
    node: String,
    /// For people.
    #[arg(long, default_value = "by hand")]
    reason: String,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `drain`.
///
/// # Errors
/// As [`nodes`].
pub fn drain(args: &Drain) -> anyhow::Result<()> {
    block_on(&args.remote, async |client: &Client| {
        let path = format!("/v1/nodes/{}/drain", args.node);
        let node = client.post(&path, &json!({ "reason": args.reason })).await?;
        if args.remote.output == Format::Json {
            return print_json(&node);
        }
        println!("{} is {}: {}", text(&node, "id"), text(&node, "state"), text(&node, "reason"));
        Ok(())
    })
}
