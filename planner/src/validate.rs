//! Refuses an input that could only give a wrong plan, and names the place.

use crate::input::PlanInput;

/// A number or a reference in the input that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct InputError {
    /// Where: `offers[3].fill`.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// Limits that keep a plan's memory bounded.
pub const MAX_PERIODS: usize = 64;
/// Most classes of one plan.
pub const MAX_CLASSES: usize = 2000;
/// Most demand paths of one plan.
pub const MAX_SCENARIOS: usize = 2000;
/// Most offers of one plan.
pub const MAX_OFFERS: usize = 100_000;
/// Most of any count; larger numbers are mistakes, and would blunt the solver's tolerances.
pub const MAX_COUNT: f64 = 1e7;
/// Largest budget, dollars an hour.
pub const MAX_BUDGET_USD_PER_H: f64 = 1e9;

struct Checker(Vec<InputError>);

impl Checker {
    fn fail(&mut self, place: &str, what: impl Into<String>) {
        // A broken export can be wrong in every row: the first few places tell enough.
        if self.0.len() < 20 {
            self.0.push(InputError { place: place.to_owned(), what: what.into() });
        }
    }

    fn range(&mut self, place: &str, value: f64, low: f64, high: f64) {
        if !(value >= low && value <= high) {
            self.fail(place, format!("{value} is not in {low}..{high}"));
        }
    }

    fn index(&mut self, place: &str, index: usize, len: usize) {
        if index >= len {
            self.fail(place, format!("index {index} of {len}"));
        }
    }

    fn counts(&mut self, place: &str, values: &[f64], len: usize) {
        if values.len() > len {
            self.fail(place, format!("{} values for {len} periods", values.len()));
        }
        for (i, v) in values.iter().enumerate() {
            self.range(&format!("{place}[{i}]"), *v, 0.0, MAX_COUNT);
        }
    }
}

/// All problems found, at most 20; empty when the input can be planned.
#[must_use]
pub fn problems(input: &PlanInput) -> Vec<InputError> {
    let mut c = Checker(Vec::new());
    let periods = input.period_s.len();
    if periods == 0 || periods > MAX_PERIODS {
        c.fail("period_s", format!("{periods} periods; 1 to {MAX_PERIODS} are possible"));
    }
    for (i, s) in input.period_s.iter().enumerate() {
        c.range(&format!("period_s[{i}]"), f64::from(*s), 1.0, 604_800.0);
    }
    if input.classes.is_empty() || input.classes.len() > MAX_CLASSES {
        c.fail("classes", format!("{} classes; 1 to {MAX_CLASSES} are possible", input.classes.len()));
    }
    if input.offers.is_empty() || input.offers.len() > MAX_OFFERS {
        c.fail("offers", format!("{} offers; 1 to {MAX_OFFERS} are possible", input.offers.len()));
    }
    classes(&mut c, input);
    miss_prices(&mut c, input);
    offers(&mut c, input);
    scenarios(&mut c, input);
    limits(&mut c, input);
    c.0
}

fn classes(c: &mut Checker, input: &PlanInput) {
    let mut names = std::collections::BTreeSet::new();
    for (k, class) in input.classes.iter().enumerate() {
        let at = |field: &str| format!("classes[{k}] ({}).{field}", class.name);
        if !names.insert(&class.name) {
            c.fail(&at("name"), "is used twice");
        }
        if class.gpus.is_empty() {
            c.fail(&at("gpus"), "is empty: no offer can serve it");
        }
        if class.gpus_per_claim == 0 || class.gpus_per_claim > 4096 {
            c.fail(&at("gpus_per_claim"), format!("{} is not in 1..4096", class.gpus_per_claim));
        }
        c.range(&at("hit_rate_target"), class.hit_rate_target, 0.0, 1.0);
        c.range(&at("miss_cost_usd_micros"), class.miss_cost_usd_micros.usd(), 0.0, 1e9);
        for (i, gpu) in class.gpus.iter().enumerate() {
            if let Some(fleet::PriceCap::Premium(p)) = gpu.cap {
                c.range(&at(&format!("gpus[{i}].cap")), p, 0.0, 100.0);
            }
        }
    }
}

fn miss_prices(c: &mut Checker, input: &PlanInput) {
    if !input.miss_prices.is_empty() && input.miss_prices.len() != input.classes.len() {
        c.fail("miss_prices", format!("{} of {} classes", input.miss_prices.len(), input.classes.len()));
    }
    for (k, price) in input.miss_prices.iter().enumerate() {
        c.range(&format!("miss_prices[{k}].usd_micros"), price.usd_micros.usd(), 0.0, 1e9);
    }
}

fn offers(c: &mut Checker, input: &PlanInput) {
    let mut keys = std::collections::BTreeSet::new();
    for (p, state) in input.offers.iter().enumerate() {
        let at = |field: &str| format!("offers[{p}] ({}).{field}", state.offer.key);
        if !keys.insert(&state.offer.key) {
            c.fail(&at("key"), "stands twice in the table");
        }
        let price = state.offer.price_usd_micros_per_h.usd();
        let free = price == 0.0 && state.offer.key.market == fleet::Market::Reserved;
        if !(free || price > 0.0 && price <= 1e5) {
            c.fail(&at("price_usd_micros_per_h"), format!("{price} dollars an hour is not in 0..100000, 0 excluded"));
        }
        if state.offer.gpus_per_node == 0 || state.offer.gpus_per_node > 1024 {
            c.fail(&at("gpus_per_node"), format!("{} is not in 1..1024", state.offer.gpus_per_node));
        }
        c.range(&at("launch_limit_nodes"), state.launch_limit_nodes, 0.0, MAX_COUNT);
        c.range(&at("fill"), state.fill, 0.0, 1.0);
        c.range(&at("fault_cost_usd_micros_per_h"), state.fault_cost_usd_micros_per_h.usd(), 0.0, 1e5);
        c.range(&at("usable_share"), state.usable_share, 0.01, 1.0);
        c.range(&at("hazard_per_h"), state.hazard_per_h, 0.0, 3600.0);
        c.range(&at("restage_usd_micros"), state.restage_usd_micros.usd(), 0.0, 1e9);
        c.range(&at("launch_cost_usd_micros"), state.launch_cost_usd_micros.usd(), 0.0, 1e6);
        lead_time(c, &at("lead_time"), &state.lead_time.cdf);
        c.counts(&at("arriving_nodes"), &state.arriving_nodes, input.period_s.len());
        c.counts(&at("planned_nodes"), &state.planned_nodes, input.period_s.len());
        c.counts(&at("expected_nodes"), &state.expected_nodes, input.period_s.len());
        if !state.spare_s.iter().all(|s| *s >= 0.0 && s.is_finite()) || state.spare_s.windows(2).any(|w| w[1] > w[0]) {
            c.fail(&at("spare_s"), "must be seconds that never rise");
        }
        for (g, group) in state.nodes.iter().enumerate() {
            let at = |field: &str| at(&format!("nodes[{g}].{field}"));
            c.counts(&at("kept_nodes"), &group.kept_nodes, input.period_s.len());
            if group.kept_nodes.windows(2).any(|w| w[1] > w[0])
                || group.kept_nodes.first().is_some_and(|k| *k > f64::from(group.nodes))
            {
                c.fail(&at("kept_nodes"), "must not rise, nor pass the number of nodes");
            }
            let mut used = 0_u32;
            for (k, claims) in &group.claims {
                c.index(&at("claims"), *k, input.classes.len());
                let size = input.classes.get(*k).map_or(0, |class| class.gpus_per_claim.min(state.offer.gpus_per_node));
                used = used.saturating_add(size.saturating_mul(*claims));
            }
            if used > state.offer.gpus_per_node {
                c.fail(&at("claims"), format!("{used} GPUs claimed on nodes of {}", state.offer.gpus_per_node));
            }
        }
    }
}

fn lead_time(c: &mut Checker, place: &str, cdf: &[(f64, f64)]) {
    let rising = cdf.windows(2).all(|w| w[1].0 > w[0].0 && w[1].1 >= w[0].1);
    let ends = cdf.last().is_some_and(|l| (l.1 - 1.0).abs() < 1e-9);
    if !rising || !ends || !cdf.iter().all(|p| p.0 >= 0.0 && p.0 <= 1e7 && p.1 >= 0.0) {
        c.fail(place, "its points must rise in time and share, and end at share 1");
    }
}

fn scenarios(c: &mut Checker, input: &PlanInput) {
    if input.scenarios.is_empty() || input.scenarios.len() > MAX_SCENARIOS {
        c.fail("scenarios", format!("{} paths; 1 to {MAX_SCENARIOS} are possible", input.scenarios.len()));
    }
    let total: f64 = input.scenarios.iter().map(|s| s.weight).sum();
    if (total - 1.0).abs() > 1e-6 || !total.is_finite() {
        c.fail("scenarios", format!("weights add up to {total}, not 1"));
    }
    for (s, scenario) in input.scenarios.iter().enumerate() {
        c.range(&format!("scenarios[{s}].weight"), scenario.weight, 1e-9, 1.0);
        for (field, table) in [("claims", &scenario.claims), ("new_claims", &scenario.new_claims)] {
            if table.len() != input.period_s.len() {
                c.fail(&format!("scenarios[{s}].{field}"), format!("{} periods", table.len()));
            }
            for (t, row) in table.iter().enumerate() {
                let place = format!("scenarios[{s}].{field}[{t}]");
                if row.len() != input.classes.len() {
                    c.fail(&place, format!("{} classes", row.len()));
                }
                c.counts(&place, row, usize::MAX);
            }
        }
    }
}

fn limits(c: &mut Checker, input: &PlanInput) {
    for quota in &input.quotas {
        let place = format!("quotas ({})", quota.name);
        c.range(&place, quota.limit, 0.0, MAX_COUNT);
        for (p, units) in &quota.members {
            c.index(&place, *p, input.offers.len());
            c.range(&place, *units, 0.0, 1e6);
        }
    }
    for commitment in &input.commitments {
        let place = format!("commitments ({})", commitment.name);
        c.counts(&place, &commitment.nodes, input.period_s.len());
        for p in &commitment.offers {
            c.index(&place, *p, input.offers.len());
        }
    }
    let policy = &input.policy;
    c.range("policy.churn", policy.churn, 0.0, 100.0);
    c.range("policy.hold", policy.hold, 0.0, 100.0);
    if let Some(budget) = policy.budget_usd_micros_per_h {
        if budget.0 == 0 {
            c.fail("policy.budget_usd_micros_per_h", "0 dollars an hour buys nothing: leave it out for no budget");
        }
        c.range("policy.budget_usd_micros_per_h", budget.usd(), 0.0, MAX_BUDGET_USD_PER_H);
    }
    if let Some(rate) = policy.launch_rate_nodes_per_min {
        c.range("policy.launch_rate_nodes_per_min", rate, 0.0, MAX_COUNT);
    }
    if let Some(survive) = policy.survive {
        c.range("policy.survive.share", survive.share, 0.0, 10.0);
    }
    for (i, spread) in policy.spread.iter().enumerate() {
        c.index(&format!("policy.spread[{i}].class"), spread.class, input.classes.len());
        c.range(&format!("policy.spread[{i}].max_share"), spread.max_share, 1e-6, 1.0);
    }
}
