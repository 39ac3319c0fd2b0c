//! The rows and columns of the program that do not depend on the demand path, written once and used by the extensive
//! form and by the decomposition alike.

use crate::input::PlanInput;
use crate::keys::{Block, ClassId, ColKey, CommitmentId, Period, QuotaId, RateGroupId, RowKey, SourceId, SpreadId};
use crate::model::{BUDGET_PENALTY_USD, Model, QUOTA_PENALTY_USD};
use crate::source::Source;

/// A row with its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct RowSpec {
    /// Which.
    pub key: RowKey,
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
}

/// A column with its entries.
#[derive(Debug, Clone, PartialEq)]
pub struct ColSpec {
    /// Which.
    pub key: ColKey,
    /// Dollars for one unit.
    pub cost: f64,
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
    /// Coefficients.
    pub entries: Vec<(RowKey, f64)>,
}

const INF: f64 = f64::INFINITY;

fn at_most(key: RowKey, upper: f64) -> RowSpec {
    RowSpec { key, lower: -INF, upper }
}

fn at_least(key: RowKey, lower: f64) -> RowSpec {
    RowSpec { key, lower, upper: INF }
}

fn col(key: ColKey, cost: f64, upper: f64, entries: Vec<(RowKey, f64)>) -> ColSpec {
    ColSpec { key, cost, lower: 0.0, upper, entries }
}

/// What ties a source to the rows that it shares with others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Links {
    /// `(quota, units of one node)`.
    pub quotas: Vec<(QuotaId, f64)>,
    /// Commitments that can pay for it.
    pub commitments: Vec<CommitmentId>,
    /// Group of its launches for the launch rate.
    pub rate: Option<RateGroupId>,
    /// `(spread row, GPUs above its share)`.
    pub spreads: Vec<(SpreadId, f64)>,
}

/// Names of the groups whose launches share a rate limit: one for each provider.
#[must_use]
pub fn rate_groups(input: &PlanInput) -> Vec<String> {
    if input.policy.launch_rate_nodes_per_min.is_none() {
        return Vec::new();
    }
    let names: std::collections::BTreeSet<_> = input.offers.iter().map(|o| o.offer.key.provider.clone()).collect();
    names.into_iter().collect()
}

/// The links of every source, in one pass.
#[must_use]
pub fn links(input: &PlanInput, model: &Model) -> Vec<Links> {
    let mut of_offer = vec![Links::default(); input.offers.len()];
    for (q, quota) in input.quotas.iter().enumerate() {
        quota.members.iter().for_each(|&(p, units)| of_offer[p].quotas.push((QuotaId(q), units)));
    }
    for (c, commitment) in input.commitments.iter().enumerate() {
        commitment.offers.iter().for_each(|&p| of_offer[p].commitments.push(CommitmentId(c)));
    }
    let groups = rate_groups(input);
    for (p, offer) in input.offers.iter().enumerate() {
        of_offer[p].rate = groups.iter().position(|g| *g == offer.offer.key.provider).map(RateGroupId);
    }
    let mut all: Vec<Links> = model.sources.iter().map(|s| of_offer[s.offer].clone()).collect();
    for (r, spread) in model.spreads.iter().enumerate() {
        for &i in &spread.all {
            all[i].spreads.push((SpreadId(r), -spread.max_share * model.sources[i].gpus));
        }
        for &i in &spread.members {
            if let Some(last) = all[i].spreads.last_mut() {
                last.1 += model.sources[i].gpus;
            }
        }
    }
    all
}

/// Rows that sources share, and the columns that soften them.
#[must_use]
pub fn shared(input: &PlanInput, model: &Model) -> (Vec<RowSpec>, Vec<ColSpec>) {
    let (mut rows, mut cols) = (Vec::new(), Vec::new());
    for t in 0..model.periods() {
        for q in 0..input.quotas.len() {
            rows.push(at_most(RowKey::Quota(QuotaId(q), Period(t)), model.quota_left[q][t]));
            cols.push(col(
                ColKey::QuotaSlack(QuotaId(q), Period(t)),
                QUOTA_PENALTY_USD,
                INF,
                vec![(RowKey::Quota(QuotaId(q), Period(t)), -1.0)],
            ));
        }
        for (c, commitment) in input.commitments.iter().enumerate() {
            let nodes = commitment.nodes.get(t).copied().unwrap_or(0.0);
            rows.push(at_most(RowKey::Commitment(CommitmentId(c), Period(t)), nodes));
        }
        if let Some(rate) = input.policy.launch_rate_nodes_per_min {
            for g in 0..rate_groups(input).len() {
                rows.push(at_most(RowKey::Rate(RateGroupId(g), Period(t)), rate * model.hours[t] * 60.0));
            }
        }
        if let Some(left) = model.budget_left_usd_per_h.get(t) {
            rows.push(at_most(RowKey::Budget(Period(t)), *left));
            cols.push(col(
                ColKey::BudgetSlack(Period(t)),
                BUDGET_PENALTY_USD,
                INF,
                vec![(RowKey::Budget(Period(t)), -1.0)],
            ));
        }
    }
    (rows, cols)
}

/// The rows of one spread limit in one period, and its softening column.
#[must_use]
pub fn spread_row(model: &Model, spread: SpreadId, period: Period) -> (RowSpec, ColSpec) {
    let key = RowKey::Spread(spread, period);
    let penalty_usd = model.spreads[spread.0].penalty_usd[period.0];
    let slack = col(ColKey::SpreadSlack(spread, period), penalty_usd, INF, vec![(key, -1.0)]);
    (at_most(key, 0.0), slack)
}

/// A miss column without its demand rows. After the loss of a domain, misses are counted in GPUs at the outage penalty.
#[must_use]
pub fn miss(model: &Model, class: ClassId, period: Period, block: Block) -> ColSpec {
    let key = ColKey::Miss(class, period, block);
    let (k, t) = (class.0, period.0);
    let cost = match model.weights.get(block.0) {
        None => model.outage_penalty_usd[t][k] * model.claim_gpus[k],
        Some(weight) => weight * model.miss_usd[t][k],
    };
    col(key, cost, INF, Vec::new())
}

/// The rows and columns of one source. Entries of `Nodes` into uses are added by the caller.
#[must_use]
pub fn source(input: &PlanInput, model: &Model, links: &Links, id: SourceId) -> (Vec<RowSpec>, Vec<ColSpec>) {
    let source = &model.sources[id.0];
    let (mut rows, mut cols) = payments(input, model, links, id);
    let periods = model.periods();
    for t in source.first..periods {
        rows.push(at_most(RowKey::Flow(id, Period(t)), source.appear[t]));
        let (cost, mut entries) = node(input, model, links, id, t);
        entries.push((RowKey::Flow(id, Period(t)), 1.0));
        if t + 1 < periods {
            entries.push((RowKey::Flow(id, Period(t + 1)), -source.profile.survive[t + 1]));
        }
        if needs_floor(source, t) {
            rows.push(at_least(RowKey::Floor(id, Period(t)), source.kept[t]));
            entries.push((RowKey::Floor(id, Period(t)), 1.0));
        }
        cols.push(col(ColKey::Nodes(id, Period(t)), cost, INF, entries));
    }
    for u in 0..source.launch_end {
        let (row, over, mut launch) = launch(input, model, links, id, Period(u));
        rows.extend(row);
        cols.extend(over);
        for t in u..periods {
            launch.entries.push((RowKey::Flow(id, Period(t)), -source.profile.arrivals[u][t]));
            launch.entries.push((RowKey::Floor(id, Period(t)), -source.profile.held[u][t]));
        }
        launch.entries.retain(|(_, value)| *value != 0.0);
        cols.push(launch);
    }
    (rows, cols)
}

/// What a node of a source costs in a period, dollars, and its entries in the rows that sources share.
#[must_use]
pub fn node(input: &PlanInput, model: &Model, links: &Links, id: SourceId, t: usize) -> (f64, Vec<(RowKey, f64)>) {
    let (source, period) = (&model.sources[id.0], Period(t));
    let mut entries: Vec<(RowKey, f64)> =
        links.quotas.iter().map(|&(q, units)| (RowKey::Quota(q, period), units)).collect();
    entries.extend(links.spreads.iter().map(|&(r, gpus)| (RowKey::Spread(r, period), gpus)));
    if !links.commitments.is_empty() {
        entries.push((RowKey::Own(id, period), 1.0));
        return (0.0, entries);
    }
    if input.policy.budget_usd_micros_per_h.is_some() {
        entries.push((RowKey::Budget(period), source.price_usd_per_h));
    }
    (source.cost_usd_per_h * model.hours[t], entries)
}

/// Who pays for nodes where a commitment can: it does, or they are billed.
#[must_use]
pub fn payments(input: &PlanInput, model: &Model, links: &Links, id: SourceId) -> (Vec<RowSpec>, Vec<ColSpec>) {
    let source = &model.sources[id.0];
    let (mut rows, mut cols) = (Vec::new(), Vec::new());
    if links.commitments.is_empty() {
        return (rows, cols);
    }
    for t in source.first..model.periods() {
        rows.push(at_most(RowKey::Own(id, Period(t)), 0.0));
        for &c in &links.commitments {
            let pays = vec![(RowKey::Own(id, Period(t)), -1.0), (RowKey::Commitment(c, Period(t)), 1.0)];
            cols.push(col(ColKey::Paid(c, id, Period(t)), 0.0, INF, pays));
        }
        let mut bill = vec![(RowKey::Own(id, Period(t)), -1.0)];
        let budget = input.policy.budget_usd_micros_per_h.is_some();
        bill.extend(budget.then_some((RowKey::Budget(Period(t)), source.price_usd_per_h)));
        cols.push(col(ColKey::Billed(id, Period(t)), source.cost_usd_per_h * model.hours[t], INF, bill));
    }
    (rows, cols)
}

/// A floor row is needed where nodes are kept, or where a launch can be inside its minimum billing time.
fn needs_floor(source: &Source, t: usize) -> bool {
    source.kept[t] > 0.0 || (0..t.min(source.launch_end)).any(|u| source.profile.held[u][t] > 0.0)
}

/// A launch without the nodes that come of it, and what makes launches beyond the parent plan's dearer.
#[must_use]
pub fn launch(
    input: &PlanInput,
    model: &Model,
    links: &Links,
    id: SourceId,
    period: Period,
) -> (Option<RowSpec>, Option<ColSpec>, ColSpec) {
    let (source, t) = (&model.sources[id.0], period.0);
    let churn = input.policy.churn * source.launch_cost_usd;
    let mut entries = Vec::new();
    for u in t..model.periods() {
        let in_flight = source.profile.in_flight[t][u];
        if in_flight > 0.0 {
            entries.extend(links.quotas.iter().map(|&(q, units)| (RowKey::Quota(q, Period(u)), units * in_flight)));
            if input.policy.budget_usd_micros_per_h.is_some() {
                entries.push((RowKey::Budget(Period(u)), source.price_usd_per_h * in_flight));
            }
        }
    }
    entries.extend(links.rate.map(|g| (RowKey::Rate(g, period), 1.0)));
    let mut cost = source.launch_usd(t);
    let (mut row, mut over) = (None, None);
    if source.planned[t] > 0.0 {
        let key = RowKey::Sticky(id, period);
        row = Some(at_most(key, source.planned[t]));
        entries.push((key, 1.0));
        over = Some(col(ColKey::Over(id, period), churn, INF, vec![(key, -1.0)]));
    } else {
        cost += churn;
    }
    (row, over, col(ColKey::Launch(id, period), cost, source.launch_limit[t], entries))
}
