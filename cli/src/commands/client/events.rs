//! `pilotlight events`.

use serde_json::Value;

use super::{Client, Remote, ago, block_on, text};
use crate::commands::Format;

/// Arguments of `events`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Goes on with what happens from now on.
    #[arg(long)]
    follow: bool,
    /// Begins after this number; 0 is the beginning. Without it the last 50, or with --follow from now on.
    #[arg(long)]
    after: Option<u64>,
    /// Only about this, `n-17` or `c-42`.
    #[arg(long)]
    about: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Prints what happened, and goes on where asked to.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn run(args: &Args) -> anyhow::Result<()> {
    block_on(
        &args.remote,
        async |client: &Client| if args.follow { follow(args, client).await } else { list(args, client).await },
    )
}

fn show(args: &Args, event: &Value) {
    if args.about.as_ref().is_some_and(|a| event["subject"] != **a) {
        return;
    }
    match args.remote.output {
        Format::Json => println!("{event}"),
        Format::Table => {
            let from = text(event, "from");
            let change = if from.is_empty() { text(event, "to") } else { format!("{from} → {}", text(event, "to")) };
            println!(
                "{:>8}  {:>8} ago  {:<20} {:<26} {}",
                text(event, "seq"),
                ago(event, "at_ms"),
                text(event, "subject"),
                change,
                text(event, "reason")
            );
        }
    }
}

async fn list(args: &Args, client: &Client) -> anyhow::Result<()> {
    let most = if args.after.is_some() { usize::MAX } else { 50 };
    let mut after = match args.after {
        Some(after) => after,
        None => {
            let last: Value = client.get("/v1/events/last").await?;
            last["seq"].as_u64().unwrap_or(0).saturating_sub(50)
        }
    };
    let mut shown = 0;
    loop {
        let page: Value = client.get(&format!("/v1/events?after={after}&limit=1000")).await?;
        for event in page["items"].as_array().into_iter().flatten() {
            show(args, event);
            shown += 1;
        }
        match page["next"].as_u64() {
            Some(next) if shown < most => after = next,
            _ => return Ok(()),
        }
    }
}

async fn follow(args: &Args, client: &Client) -> anyhow::Result<()> {
    let mut after = args.after;
    loop {
        let path = match after {
            Some(after) => format!("/v1/events/stream?after={after}"),
            None => "/v1/events/stream".to_owned(),
        };
        let mut response = client.stream(&path).await?;
        let mut rest = String::new();
        // A stream that breaks is taken up where it was.
        while let Ok(Some(chunk)) = response.chunk().await {
            rest.push_str(&String::from_utf8_lossy(&chunk));
            while let Some((event, tail)) = rest.split_once("\n\n").map(|(e, t)| (e.to_owned(), t.to_owned())) {
                rest = tail;
                let data = event.lines().find_map(|l| l.strip_prefix("data: ")).unwrap_or("");
                if let Ok(event) = serde_json::from_str::<Value>(data) {
                    show(args, &event);
                    after = event["seq"].as_u64().or(after);
                }
            }
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
