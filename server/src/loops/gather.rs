//! Everything that a plan is made from, read from the book and the database.

use std::collections::BTreeMap;

use fleet::book::{Book, Tally};
use fleet::{Class, OfferKey};
use planner::gather::{Estimate, ObservedNode};
use planner::input::{Commitment, LeadTime, Quota};
use planner::rolling::Moment;
use planner::scenarios::{Declared, History};
use planner::supply::{Rules, Supply};

use providers::Hint;

use super::LoopError;
use super::fared::place_of;
use super::learn::Learnt;
use super::sample::{STEP_S, demand};
use crate::api::{App, ForecastSpec};
use crate::config::{BudgetSpec, Planning, Prior};

/// What was gathered; `planner::rolling::Moment` borrows from it.
#[derive(Debug)]
pub struct Inputs {
    /// Now, seconds since 1970.
    pub now_s: f64,
    /// Offers that are sold or have nodes.
    pub offers: Vec<fleet::Offer>,
    /// Their supply.
    pub estimates: Vec<Estimate>,
    /// Classes.
    pub classes: Vec<Class>,
    /// Mean life of a claim, seconds.
    pub claim_mean_s: Vec<f64>,
    /// Nodes that take or will take claims.
    pub nodes: Vec<ObservedNode>,
    /// Their numbers.
    pub ids: Vec<u64>,
    /// Hits and misses.
    pub judged: Vec<Tally>,
    /// Demand.
    pub history: History,
    /// Quotas.
    pub quotas: Vec<Quota>,
    /// What is paid for whether used or not.
    pub commitments: Vec<Commitment>,
    /// What may be spent and launched.
    pub budget: BudgetSpec,
    /// Demand that was declared.
    pub declared: Vec<Declared>,
}

impl Inputs {
    /// As the planner takes it, for the plan with this number.
    pub fn moment(&self, epoch: u64) -> Moment<'_> {
        Moment {
            now_s: self.now_s,
            epoch,
            offers: &self.offers,
            estimates: &self.estimates,
            classes: &self.classes,
            claim_mean_s: &self.claim_mean_s,
            nodes: &self.nodes,
            quotas: &self.quotas,
            commitments: &self.commitments,
            declared: &self.declared,
            judged: &self.judged,
            history: &self.history,
        }
    }
}

/// Days of demand that are read.
const HISTORY_DAYS: i64 = 8;

/// Gathers it.
///
/// # Errors
/// The database cannot be used, or a quota means nothing.
pub async fn gather(app: &App, planning: &Planning, now_ms: i64) -> Result<Inputs, LoopError> {
    let store = &app.store;
    let learnt = Learnt::read(store).await?;
    let budget = app.budget().await?.0;
    let forecasts = app.forecasts().await?;
    let past = store.demand(now_ms - HISTORY_DAYS * 86_400_000).await?;
    let book = app.ledger.book();
    let hinted = |offer: &OfferKey| app.loops.hint(offer)?.0.fill;
    let counts = |id| app.loops.counts(id);
    let mut inputs = of_book(&book, &learnt.supply, &learnt.health, hinted, counts, &planning.prior, now_ms);
    for (p, (offer, estimate)) in inputs.offers.iter().zip(&mut inputs.estimates).enumerate() {
        if let Some((hint, at_ms)) = app.loops.hint(&offer.key) {
            inputs.commitments.extend(commitment(p, &hint, planning.periods_s.len()));
            if let Some(room) = hint.launch_limit_nodes {
                // What was asked for since takes of the room that was told.
                let since = book.nodes().values().filter(|n| n.offer == offer.key && n.asked_at_ms >= at_ms).count();
                let left = (f64::from(room) - since as f64).max(0.0);
                estimate.launch_limit_nodes = estimate.launch_limit_nodes.min(left);
            }
        }
        // Its nodes are still of use; more of them cannot be had.
        if !app.loops.is_sold(&offer.key) {
            estimate.launch_limit_nodes = 0.0;
        }
    }
    let names: Vec<&String> = book.classes().keys().collect();
    inputs.history = history(&names, past, &demand(&book), now_ms);
    inputs.quotas = budget.quotas(&inputs.offers);
    inputs.budget = budget;
    inputs.declared = declared(&forecasts, &names, now_ms);
    Ok(inputs)
}

/// What the book says. Shapes: `P` offers, `K` classes.
fn of_book(
    book: &Book,
    learnt: &BTreeMap<OfferKey, Supply>,
    fared: &super::fared::Health,
    hinted: impl Fn(&OfferKey) -> Option<f64>,
    counts: impl Fn(u64) -> bool,
    prior: &Prior,
    now_ms: i64,
) -> Inputs {
    let now_s = now_ms as f64 / 1000.0;
    let classes: BTreeMap<&str, usize> =
        book.classes().keys().enumerate().map(|(k, name)| (name.as_str(), k)).collect();
    let mut claims: BTreeMap<u64, BTreeMap<usize, u32>> = BTreeMap::new();
    for claim in book.claims().values().filter(|c| c.state.is_live()) {
        let Some(&k) = classes.get(claim.class.as_str()) else { continue };
        let each = book.classes()[&claim.class].class.gpus_per_claim.max(1);
        for part in &claim.parts {
            *claims.entry(part.node).or_default().entry(k).or_default() += (part.gpus.count() / each).max(1);
        }
    }
    let (mut nodes, mut ids) = (Vec::new(), Vec::new());
    for node in book.nodes().values() {
        // One that is lent to diagnostics comes back within the time that claims wait.
        let lent = node.diagnosis.is_some() && node.care.is_none();
        let serves = node.takes_claims() || node.state.is_arriving() || lent;
        let counted = serves && counts(node.id);
        let Some(offer) = book.offer(&node.offer).filter(|_| counted) else { continue };
        ids.push(node.id);
        nodes.push(ObservedNode {
            offer,
            age_s: (now_ms - node.asked_at_ms).max(0) as f64 / 1000.0,
            healthy: node.takes_claims() || lent,
            claims: claims.get(&node.id).map(|c| c.iter().map(|(k, n)| (*k, *n)).collect()).unwrap_or_default(),
        });
    }
    let lead = LeadTime { cdf: prior.lead_time.clone() };
    let place = |offer: &fleet::Offer| place_of(&offer.key, &offer.gpu.to_string());
    let health = fared.briefs(book.offers().iter().map(place));
    let estimate = |offer: &fleet::Offer| {
        let fresh = || Supply::new(Rules::default(), now_s, 0.9, offer.interruption_per_h);
        let mut supply = learnt.get(&offer.key).cloned().unwrap_or_else(fresh);
        supply.published_hazard(offer.interruption_per_h);
        if let Some(fill) = hinted(&offer.key) {
            supply.hint(fill);
        }
        Estimate {
            launch_limit_nodes: supply.launch_limit_nodes(now_s),
            fill: supply.fill(),
            lead_time: supply.lead_time(&lead),
            hazard_per_h: supply.hazard_per_h(),
            min_hold_s: prior.min_hold_s,
            usable_share: 1.0,
            faults_per_h: 0.0,
        }
        .with_health(offer.gpus_per_node, &health[&place(offer)])
    };
    let judged = |name: &String| book.tallies().get(name).copied().unwrap_or_default();
    Inputs {
        now_s,
        offers: book.offers().to_vec(),
        estimates: book.offers().iter().map(estimate).collect(),
        classes: book.classes().values().map(|r| r.class.clone()).collect(),
        claim_mean_s: book.classes().values().map(|r| r.claim_mean_s).collect(),
        nodes,
        ids,
        judged: book.classes().keys().map(judged).collect(),
        history: History { step_s: STEP_S, claims: Vec::new() },
        quotas: Vec::new(),
        commitments: Vec::new(),
        budget: BudgetSpec::default(),
        declared: Vec::new(),
    }
}

/// What was declared, in seconds from now; of classes that are there, and not over.
fn declared(forecasts: &[ForecastSpec], classes: &[&String], now_ms: i64) -> Vec<Declared> {
    let from_now_s = |at_ms: i64| at_ms.saturating_sub(now_ms) as f64 / 1000.0;
    let one = |f: &ForecastSpec| {
        let class = classes.iter().position(|name| **name == f.class)?;
        let (from_s, until_s) = (from_now_s(f.from_ms), from_now_s(f.until_ms));
        (until_s > 0.0).then_some(Declared { class, from_s, until_s, claims: f.claims })
    };
    forecasts.iter().filter_map(one).collect()
}

/// What a provider says is paid for in any case, for each of `periods`.
fn commitment(offer: usize, hint: &Hint, periods: usize) -> Option<Commitment> {
    let nodes = f64::from(hint.committed_nodes);
    (nodes > 0.0).then(|| Commitment { name: hint.offer.to_string(), offers: vec![offer], nodes: vec![nodes; periods] })
}

/// Demand in equal steps up to now. A step that nobody wrote down (the server was off) repeats the one before.
fn history(classes: &[&String], past: Vec<(String, i64, f64)>, now: &BTreeMap<String, usize>, now_ms: i64) -> History {
    let step_ms = i64::from(STEP_S) * 1000;
    let first_ms = past.first().map_or(now_ms, |row| row.1) / step_ms;
    let steps = usize::try_from(now_ms / step_ms - first_ms).unwrap_or(0);
    let mut claims = Vec::new();
    for name in classes {
        let mut row = vec![f64::NAN; steps];
        for (class, at_ms, value) in &past {
            let at = usize::try_from(at_ms / step_ms - first_ms).unwrap_or(0);
            if class == *name && at < steps {
                row[at] = *value;
            }
        }
        let mut last = 0.0;
        for value in &mut row {
            if value.is_nan() {
                *value = last;
            }
            last = *value;
        }
        row.push(now.get(*name).copied().unwrap_or(0) as f64);
        claims.push(row);
    }
    History { step_s: STEP_S, claims }
}
