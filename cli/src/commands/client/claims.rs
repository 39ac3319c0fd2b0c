//! `pilotlight claims`, `pilotlight claim`, `pilotlight release`.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::hold::{self, Ends};
use super::{Client, Remote, ago, block_on, number, print_json, text};
use crate::commands::Format;
use crate::render::table;

/// Arguments of `claims`.
#[derive(Debug, clap::Args)]
pub struct Claims {
    /// Only of this state; without it those that wait or have GPUs.
    #[arg(long)]
    state: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 1000)]
    most: usize,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `claims`.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub fn list(args: &Claims) -> anyhow::Result<()> {
    block_on(&args.remote, async |client: &Client| {
        let mut claims = Vec::new();
        let states = match &args.state {
            Some(state) => vec![state.as_str()],
            None => vec!["queued", "granted", "active"],
        };
        for state in states {
            claims.extend(client.all(&format!("/v1/claims?state={state}"), args.most).await?);
        }
        if args.remote.output == Format::Json {
            return print_json(&claims);
        }
        let mut rows = table(&["claim", "class", "state", "asked", "GPUs", "holder", "why"], 0..0);
        for claim in &claims {
            rows.add_row([
                text(claim, "id"),
                text(claim, "class"),
                text(claim, "state"),
                ago(claim, "asked_at_ms"),
                gpus(claim),
                text(claim, "holder"),
                text(claim, "reason"),
            ]);
        }
        println!("{rows}");
        Ok(())
    })
}

/// `n-3:0,1 n-4:0,1`.
fn gpus(claim: &Value) -> String {
    let part = |p: &Value| {
        let indices: Vec<String> = p["indices"].as_array().into_iter().flatten().map(Value::to_string).collect();
        format!("{}:{}", text(p, "node"), indices.join(","))
    };
    let parts: Vec<String> = claim["gpus"].as_array().into_iter().flatten().map(part).collect();
    if parts.is_empty() { "-".into() } else { parts.join(" ") }
}

/// Arguments of `claim`.
#[derive(Debug, clap::Args)]
pub struct Claim {
    /// The class.
    class: String,
    /// Units, all or none, in one zone.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// What to do when nothing is free: fail, queue, launch-cold, substitute.
    #[arg(long)]
    on_empty: Option<String>,
    /// How long to wait, seconds.
    #[arg(long)]
    wait_s: Option<f64>,
    /// Time between heartbeats, seconds.
    #[arg(long)]
    lease_s: Option<f64>,
    /// The snapshot that it starts from; the one of its class without it.
    #[arg(long)]
    snapshot: Option<String>,
    /// Who holds it, for people.
    #[arg(long, default_value = "pilotlight claim")]
    holder: String,
    /// A retry with the same key gets the same claim.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Keep it by heartbeats until Ctrl-C, and give it back then.
    #[arg(long, conflicts_with = "command")]
    hold: bool,
    /// Keep it while this command runs, and give it back then. The command finds the claim in PILOTLIGHT_CLAIM, PILOTLIGHT_GPUS
    /// (JSON), PILOTLIGHT_NODES, PILOTLIGHT_INSTANCES and PILOTLIGHT_GPU_INDICES.
    #[arg(last = true)]
    command: Vec<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `claim`: prints the GPUs when it has them; keeps them where it is told to.
///
/// # Errors
/// As [`list`]; and a claim that was not granted, or was lost.
pub fn take(args: &Claim) -> anyhow::Result<ExitCode> {
    block_on(&args.remote, async |client: &Client| {
        let mut ends = Ends::new()?;
        let ask = json!({
            "class": args.class, "count": args.count, "holder": args.holder, "on_empty": args.on_empty,
            "wait_s": args.wait_s, "lease_s": args.lease_s, "idempotency_key": args.idempotency_key,
            "snapshot": args.snapshot,
        });
        let mut claim = client.post("/v1/claims", &ask).await?;
        while claim["state"] == "queued" {
            let path = format!("/v1/claims/{}?wait_s=60", text(&claim, "id"));
            tokio::select! {
                read = client.get(&path) => claim = read?,
                // Nobody waits for it any more.
                () = ends.wished() => {
                    hold::release(client, &claim).await?;
                    return Ok(ExitCode::from(130));
                }
            }
        }
        if args.remote.output == Format::Json {
            print_json(&claim)?;
        }
        if claim["granted_at_ms"].is_null() {
            anyhow::bail!("claim {} is {}: {}", text(&claim, "id"), text(&claim, "state"), text(&claim, "reason"));
        }
        if args.remote.output == Format::Table {
            println!("{} {}", text(&claim, "id"), gpus(&claim));
        }
        if let Some(ready) = claim.get("ready").filter(|ready| ready.is_object()) {
            let (p50_s, p90_s) = (number(ready, "p50_s"), number(ready, "p90_s"));
            let from = match text(ready, "from") {
                cold if cold == "cold" => "a cold start: no copy lies there".to_owned(),
                tier => format!("from {tier}"),
            };
            eprintln!("ready in about {p50_s:.1} s ({p90_s:.1} s in nine of ten), {from}");
        }
        if args.hold {
            return hold::until_ended(client, &claim, &mut ends).await;
        }
        if !args.command.is_empty() {
            return hold::run(client, &claim, &args.command, &mut ends).await;
        }
        let left_ms = claim["lease_until_ms"].as_i64().unwrap_or(0) - crate::output::now_ms();
        eprintln!(
            "given back in {} s unless a heartbeat keeps it: --hold keeps it, and so does 'pilotlight claim {} -- COMMAND' while that runs",
            left_ms.max(0) / 1000,
            args.class,
        );
        Ok(ExitCode::SUCCESS)
    })
}

/// Arguments of `release`.
#[derive(Debug, clap::Args)]
pub struct Release {
    /// The claims, `c-42`.
    #[arg(required = true)]
    claims: Vec<String>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `release`.
///
/// # Errors
/// As [`list`].
pub fn release(args: &Release) -> anyhow::Result<()> {
    block_on(&args.remote, async |client: &Client| {
        for id in &args.claims {
            let claim = client.post(&format!("/v1/claims/{id}/release"), &json!({})).await?;
            match args.remote.output {
                Format::Json => print_json(&claim)?,
                Format::Table => println!("{id} is {}", text(&claim, "state")),
            }
        }
        Ok(())
    })
}
