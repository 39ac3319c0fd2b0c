//! `pilotlight plan show`, `pilotlight plan diff`, `pilotlight explain CLASS`.

use std::collections::BTreeMap;

use anyhow::Context;
use planner::input::PlanInput;
use planner::plan::Plan;
use providers::catalogue::Catalogue;
use serde_json::{Value, json};

use super::{Client, Remote, block_on, print_json, text};
use crate::commands::Format;
use crate::plan_file::Loaded;
use crate::render::{self, table};

/// Arguments of `plan show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Its number; the newest without it.
    epoch: Option<i64>,
    #[command(flatten)]
    remote: Remote,
}

async fn plan_of(client: &Client, epoch: Option<i64>) -> anyhow::Result<(Value, Plan)> {
    let path = epoch.map_or("/v1/plan".to_owned(), |e| format!("/v1/plans/{e}"));
    let view: Value = client.get(&path).await?;
    let plan = serde_json::from_value(view["plan"].clone()).context("is the server of the same version?")?;
    Ok((view, plan))
}

/// Runs `plan show`.
///
/// # Errors
/// The server cannot be reached, or there is no such plan.
pub fn show(args: &Show) -> anyhow::Result<()> {
    block_on(&args.remote, async |client: &Client| {
        let (view, plan) = plan_of(client, args.epoch).await?;
        if args.remote.output == Format::Json {
            return print_json(&view);
        }
        let input: PlanInput = client.get(&format!("/v1/plans/{}/input", plan.epoch)).await?;
        let made = format!("made {} ago, acted on: {}", super::ago(&view, "made_at_ms"), text(&view, "acted"));
        let assumed = plan.report.assumed.iter().map(ToString::to_string);
        let notes = std::iter::once(made).chain(assumed).collect();
        let loaded = Loaded { input, catalogue: Catalogue::default(), notes };
        print!("{}", render::plan(&loaded, &plan));
        Ok(())
    })
}

/// Arguments of `plan diff`.
#[derive(Debug, clap::Args)]
pub struct Diff {
    /// A plan; the one before the other without it.
    from: Option<i64>,
    /// Another; the newest without it.
    to: Option<i64>,
    #[command(flatten)]
    remote: Remote,
}

/// Runs `plan diff`: what two plans mean to have, side by side.
///
/// # Errors
/// As [`show`].
pub fn diff(args: &Diff) -> anyhow::Result<()> {
    block_on(&args.remote, async |client: &Client| {
        let (_, to) = plan_of(client, args.to).await?;
        let before = i64::try_from(to.epoch).unwrap_or(i64::MAX) - 1;
        let (_, from) = plan_of(client, Some(args.from.unwrap_or(before))).await?;
        let meant = |plan: &Plan| -> BTreeMap<String, f64> {
            let last = |t: &planner::plan::Target| (t.offer.to_string(), t.nodes.last().copied().unwrap_or(0.0));
            plan.targets.iter().map(last).collect()
        };
        let (a, b) = (meant(&from), meant(&to));
        let mut changes: Vec<(&String, f64, f64)> = a
            .keys()
            .chain(b.keys().filter(|k| !a.contains_key(*k)))
            .map(|k| (k, a.get(k).copied().unwrap_or(0.0), b.get(k).copied().unwrap_or(0.0)))
            .filter(|(_, x, y)| (x - y).abs() > 0.05)
            .collect();
        changes.sort_by(|p, q| (q.2 - q.1).abs().total_cmp(&(p.2 - p.1).abs()));
        if args.remote.output == Format::Json {
            let rows: Vec<Value> = changes.iter().map(|(o, x, y)| json!({ "offer": o, "from": x, "to": y })).collect();
            return print_json(&json!({ "from": from.epoch, "to": to.epoch, "nodes_at_the_end": rows }));
        }
        println!("Plan {} against plan {}: nodes meant for the end of the horizon", to.epoch, from.epoch);
        if changes.is_empty() {
            println!("  no difference");
            return Ok(());
        }
        let mut rows = table(&["offer", "before", "now", "change"], 1..4);
        for (offer, x, y) in changes {
            rows.add_row([offer.clone(), format!("{x:.1}"), format!("{y:.1}"), format!("{:+.1}", y - x)]);
        }
        println!("{rows}");
        Ok(())
    })
}

/// The input of the newest plan and the plan, for `explain`.
///
/// # Errors
/// As [`show`].
pub fn newest(remote: &Remote) -> anyhow::Result<(PlanInput, Plan)> {
    block_on(remote, async |client: &Client| {
        let (_, plan) = plan_of(client, None).await?;
        let input = client.get(&format!("/v1/plans/{}/input", plan.epoch)).await?;
        Ok((input, plan))
    })
}
