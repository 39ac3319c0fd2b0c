//! Plans: gathers, decides, writes the plan down, and then the intents that carry it out.

use fleet::NodeState;
use fleet::book::Book;
use planner::gather::nodes_to_release;
use planner::input::PlanInput;
use planner::plan::Plan;
use planner::rolling::{self, Memory};
use serde::{Deserialize, Serialize};

use super::gather::gather;
use super::{Context, LoopError};
use crate::clock;
use crate::config::BudgetSpec;
use crate::store::{Document, write_document, write_plan};

/// A plan with what it was made from.
#[derive(Debug, Serialize, Deserialize)]
pub struct PlanRecord {
    /// The plan.
    pub plan: Plan,
    /// Its input, so that it can be made again and asked what if.
    pub input: PlanInput,
    /// What was done with it.
    pub acted: Acted,
}

/// What was done with a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acted {
    /// It is carried out.
    Yes,
    /// It is only shown.
    DryRun,
    /// It was made while acting was paused.
    Paused,
}

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let app = &context.app;
    if !app.loops.was_asked_in(term) {
        return Ok("waits until the providers have said what they sell".into());
    }
    let inputs = gather(app, &context.planning, clock::now_ms()).await?;
    if inputs.classes.is_empty() || inputs.offers.is_empty() {
        return Ok(format!("{} classes, {} offers: nothing to plan", inputs.classes.len(), inputs.offers.len()));
    }
    let mut memory: Memory = match app.store.document("learnt", "planner").await? {
        // What an older version remembered is forgotten.
        Some(document) => document.record().unwrap_or_default(),
        None => Memory::default(),
    };
    let last = app.store.plans(i64::MAX, 1).await?.first().map_or(0, |p| p.epoch);
    let rules = context.planning.rules(&inputs.budget)?;
    let epoch = last + 1;
    let began_ms = clock::now_ms();
    let (inputs, input, memory, made) = tokio::task::spawn_blocking(move || {
        let moment = inputs.moment(epoch.unsigned_abs());
        let input = rolling::input(&rules, &mut memory, &moment);
        let made = rolling::decide(&mut memory, &input, inputs.now_s);
        (inputs, input, memory, made)
    })
    .await?;
    let seconds = (clock::now_ms() - began_ms) as f64 / 1000.0;
    let plan = match made {
        Ok(plan) => plan,
        Err(error) => {
            app.metrics.planned("failed", seconds, last.unsigned_abs());
            return Err(error.into());
        }
    };
    app.metrics.planned("made", seconds, plan.epoch);
    app.metrics.plan(&plan, &input, clock::now_ms());
    let paused = context.paused().await?;
    let acted = if context.planning.dry_run {
        Acted::DryRun
    } else if paused {
        Acted::Paused
    } else {
        Acted::Yes
    };
    let (launches, releases) = (plan.launches.clone(), nodes_to_release(&plan, &inputs.offers, &inputs.nodes));
    let record = PlanRecord { plan, input, acted };
    write_plan(&app.ledger, epoch, serde_json::to_string(&record)?, term).await?;
    let body = serde_json::to_string(&memory)?;
    write_document(
        &app.ledger,
        Document { kind: "learnt".into(), name: "planner".into(), version: 0, body },
        Some(term),
    )
    .await?;
    let wanted: u32 = launches.iter().map(|l| l.nodes).sum();
    if acted != Acted::Yes {
        return Ok(format!("plan {epoch}: launch {wanted}, release {} (not acted on)", releases.len()));
    }
    let ids: Vec<u64> = releases.into_iter().map(|i| inputs.ids[i]).collect();
    let (budget, life_ms) = (inputs.budget, (context.planning.launch_expires_s * 1000.0) as i64);
    let done = app
        .ledger
        .write_as_leader(term, move |book, now_ms| {
            intend(book, epoch.unsigned_abs(), &launches, &ids, &budget, life_ms, now_ms)
        })
        .await?;
    app.loops.actor.notify_one();
    Ok(format!("plan {epoch}: launch {} of {wanted}, release {}{}", done.launched, done.released, done.held_back))
}

#[derive(Debug, Default)]
struct Intended {
    launched: u32,
    released: u32,
    held_back: String,
}

/// The same nodes, but idle ones in place of those in diagnostics, whose test would be for nothing.
fn rather_idle(book: &Book, releases: &[u64]) -> Vec<u64> {
    let state = |id: &u64| book.nodes().get(id).map(|n| (n.state, &n.offer));
    let mut chosen: Vec<u64> = releases.to_vec();
    for at in 0..chosen.len() {
        let Some((NodeState::Diagnosing, offer)) = state(&chosen[at]) else { continue };
        let free = |n: &&fleet::book::Node| n.state == NodeState::Idle && n.offer == *offer && !chosen.contains(&n.id);
        if let Some(idle) = book.nodes().values().find(free).map(|n| n.id) {
            chosen[at] = idle;
        }
    }
    chosen
}

/// Writes the intents of a plan, within the operator's guards (CAP-6).
fn intend(
    book: &mut Book,
    epoch: u64,
    launches: &[planner::plan::Launch],
    releases: &[u64],
    budget: &BudgetSpec,
    life_ms: i64,
    now_ms: i64,
) -> Intended {
    let mut done = Intended::default();
    for node in rather_idle(book, releases) {
        // One that was claimed meanwhile stays.
        done.released += u32::from(book.intend_release(epoch, node, now_ms).is_ok());
    }
    let price = |book: &Book, key: &fleet::OfferKey| {
        book.offer(key).map_or(0.0, |p| book.offers()[p].price_usd_micros_per_h.usd())
    };
    let billed = |n: &&fleet::book::Node| n.state.is_billed() || n.state == NodeState::Requested;
    let mut spend_usd_per_h: f64 = book.nodes().values().filter(billed).map(|n| price(book, &n.offer)).sum();
    let recent = |n: &&fleet::book::Node| now_ms - n.asked_at_ms < 60_000;
    let asked = u32::try_from(book.nodes().values().filter(recent).count()).unwrap_or(u32::MAX);
    let mut room = budget.launch_guard_nodes_per_min.saturating_sub(asked);
    for launch in launches {
        let each = price(book, &launch.offer);
        let affordable = match budget.spend_guard_usd_per_h {
            Some(guard) if each > 0.0 => ((guard - spend_usd_per_h) / each).floor().clamp(0.0, 1e6) as u32,
            _ => u32::MAX,
        };
        let nodes = launch.nodes.min(room).min(affordable);
        if nodes < launch.nodes {
            let by = if affordable < launch.nodes.min(room) { "spend guard" } else { "launch guard" };
            done.held_back += &format!("; the {by} holds back {} of {}", launch.nodes - nodes, launch.offer);
        }
        if nodes > 0 && book.intend_launch(epoch, &launch.offer, nodes, life_ms, now_ms).is_ok() {
            done.launched += nodes;
            room -= nodes;
            spend_usd_per_h += each * f64::from(nodes);
        }
    }
    done
}
