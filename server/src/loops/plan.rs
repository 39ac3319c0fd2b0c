//! Plans: gathers, decides, writes the plan down, and then the intents that carry it out.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::inputs::{Inputs, Knowledge, history};
use control::learning::Learnt;
use control::plan::{Acted, PlanRecord, Wanted, intend};
use control::staging::Outlook;
use fleet::book::{Book, Ceilings};
use fleet::invariants::{Breach, Invariant};
use planner::gather::nodes_to_release;
use planner::rolling::{self, RollingMemory};
use protocol::BudgetSpec;

use super::{Context, LoopError, read_plan};
use crate::app::App;
use crate::config::Planning;
use crate::store::{StoreError, Write, text_of};

/// Days of demand that are read.
const HISTORY_DAYS: i64 = 8;

/// Everything that a plan is made from, with the budget that it obeys.
///
/// # Errors
/// The database cannot be used.
pub async fn gather(
    app: &App,
    planning: &Planning,
    outlook: Option<&Outlook>,
    now_ms: i64,
) -> Result<(Inputs, BudgetSpec), LoopError> {
    let learnt: Arc<Learnt> = app.store.shared().await?;
    let budget = app.budget().await?.record;
    let forecasts = app.forecasts().await?;
    let past = app.store.demand(now_ms - HISTORY_DAYS * 86_400_000).await?;
    let (uncounted, prior) = (app.board.uncounted(), planning.prior.prior());
    let book = app.book()?;
    let market = app.board.market();
    let known = Knowledge {
        book: &book,
        learnt: &learnt,
        market: &market,
        uncounted: &uncounted,
        prior: &prior,
        prior_of: &BTreeMap::new(),
        quotas: &budget.quota,
        forecasts: &forecasts,
        outlook,
        periods: planning.periods_s.len(),
        now_ms,
    };
    let inputs = Inputs::of(&known, history(&book, &past, now_ms));
    Ok((inputs, budget))
}

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let app = &context.app;
    if !app.board.was_asked_in(term) {
        return Ok("waits until the providers have said what they sell".into());
    }
    let newest = app.store.plans(i64::MAX, 1).await?;
    let last = newest.first().map_or(0, |plan| plan.epoch);
    // Only copies are weighed by it.
    let has_snapshots = !app.book()?.snapshots().is_empty();
    let before = newest.first().filter(|_| has_snapshots).and_then(|plan| read_plan(&plan.body));
    let outlook = before.map(|plan| Outlook::of(&plan.input));
    let (inputs, budget) = gather(app, &context.planning, outlook.as_ref(), app.now_ms()).await?;
    let ceilings = app.board.market().ceilings(app.book()?.offers(), &budget.quota);
    if app.store.single_or_default::<Ceilings>().await? != ceilings {
        app.ledger.put(&ceilings, Some(term)).await?;
    }
    if inputs.classes.is_empty() || inputs.offers.is_empty() {
        return Ok(format!("{} classes, {} offers: nothing to plan", inputs.classes.len(), inputs.offers.len()));
    }
    let mut memory: RollingMemory = match app.store.single_or_default().await {
        // What an older version remembered is forgotten; what cannot be read now is not.
        Err(StoreError::Record { .. }) => RollingMemory::default(),
        read => read?,
    };
    let rules = context.planning.rules(&budget)?;
    let epoch = last + 1;
    let began_ms = app.now_ms();
    let (inputs, input, memory, made) = tokio::task::spawn_blocking(move || {
        let moment = inputs.moment(epoch.unsigned_abs());
        let input = rolling::input(&rules, &mut memory, &moment);
        let made = rolling::decide(&mut memory, &input, inputs.now_s);
        (inputs, input, memory, made)
    })
    .await?;
    let seconds = (app.now_ms() - began_ms) as f64 / 1000.0;
    let plan = match made {
        Ok(plan) => plan,
        Err(error) => {
            app.metrics.planned("failed", seconds, last.unsigned_abs());
            return Err(error.into());
        }
    };
    let method = &plan.report.method;
    app.metrics.planned(if method.fell_back() { "fallback" } else { "made" }, seconds, plan.epoch);
    if let Some(rules) = method.broken_rules() {
        app.metrics.breached(&Breach::new(Invariant::Cap7, rules.to_owned()));
    }
    app.metrics.plan(&plan, &input, app.now_ms());
    let acted = match (context.planning.dry_run, context.paused().await?) {
        (true, _) => Acted::DryRun,
        (false, true) => Acted::Paused,
        (false, false) => Acted::Yes,
    };
    let releases = nodes_to_release(&plan, &inputs.offers, &inputs.nodes);
    let record = PlanRecord { plan, input, acted };
    app.ledger.record(Write::Plan { epoch, body: text_of(&record, "plans")? }, Some(term)).await?;
    app.ledger.put(&memory, Some(term)).await?;
    let wanted: u32 = record.plan.launches.iter().map(|l| l.nodes).sum();
    if acted != Acted::Yes {
        return Ok(format!("plan {epoch}: launch {wanted}, release {} (not acted on)", releases.len()));
    }
    let ids: Vec<u64> = releases.into_iter().map(|i| inputs.ids[i]).collect();
    let (launches, launch_expires_ms) =
        (Arc::new(record.plan.launches.clone()), (context.planning.launch_expires_s * 1000.0) as i64);
    let write = move |book: &mut Book, now_ms: i64| {
        let wanted = Wanted {
            epoch: epoch.unsigned_abs(),
            launches: &launches,
            releases: &ids,
            budget: &budget,
            launch_expires_ms,
        };
        intend(book, &wanted, now_ms)
    };
    let done = app.ledger.write_as_leader(term, write).await?;
    done.breaches.iter().for_each(|breach| app.metrics.breached(breach));
    app.board.actor.notify_one();
    let how = if record.plan.report.method.fell_back() { " (without an optimum)" } else { "" };
    let mut text = format!("plan {epoch}{how}: launch {} of {wanted}, release {}", done.launched, done.released);
    for held in &done.held_back {
        text += &format!("; the {} holds back {} of {}", held.by.name(), held.nodes, held.offer);
    }
    Ok(text)
}
