//! Plans, answers and explanations.

use fleet::UsdMicros;
use planner::explain::{Explanation, Verdict};
use planner::input::PriceBasis;
use planner::plan::{Plan, micros};
use planner::report::{ClassReport, Measured, Method, PlanReport};
use planner::what_if::{Answer, WhatIf};

use super::{percent, section, table};
use crate::plan_file::Loaded;

/// The whole plan.
pub fn plan(loaded: &Loaded, plan: &Plan) -> String {
    let report = &plan.report;
    let mut text = headline(loaded, plan);
    text += &actions(loaded, plan);
    text += &classes(report);
    text += &binding(report);
    text += &unmet(report);
    text += &changes(report);
    text += &set_aside(loaded);
    text += &notes(loaded);
    text
}

fn headline(loaded: &Loaded, plan: &Plan) -> String {
    let report = &plan.report;
    let hours = f64::from(report.horizon_s) / 3600.0;
    let launched: u32 = plan.launches.iter().map(|l| l.nodes).sum();
    let released: u32 = plan.releases.iter().map(|r| r.nodes).sum();
    let spend = |t: usize| report.spend_usd_micros_per_h.get(t).copied().unwrap_or(UsdMicros::ZERO);
    let last = report.spend_usd_micros_per_h.len().saturating_sub(1);
    let mut text = format!(
        "Plan {}: launch {launched} nodes, release {released}, over the next {:.0} min\n",
        plan.epoch,
        hours * 60.0
    );
    match &report.method {
        Method::Optimum { rounding } => {
            let hourly = |part: UsdMicros| micros(part.usd() / hours);
            let cost = &report.cost;
            // The program counts what borrowers might pay and do not; people count what they pay.
            let lendable = UsdMicros(cost.lent_usd_micros.0 + cost.not_lent_usd_micros.0);
            let net = |whole: UsdMicros| UsdMicros(whole.0 - lendable.0);
            let lent = if lendable > UsdMicros::ZERO {
                format!(", lent -{}", hourly(cost.lent_usd_micros))
            } else {
                String::new()
            };
            text += &format!(
                "  cost      {}/h: nodes {}, launches {}, expected misses {}, penalties {}{lent}\n",
                hourly(net(report.objective_usd_micros)),
                hourly(cost.nodes_usd_micros),
                hourly(cost.launches_usd_micros),
                hourly(cost.misses_usd_micros),
                hourly(cost.penalties_usd_micros)
            );
            text += &format!(
                "  rounding  whole nodes cost {:.2} % over the bound (rounded {rounding})\n",
                100.0 * report.rounding_gap
            );
            text += &format!(
                "  proof     no plan of the whole problem costs less than {}/h; the linear optimum is within {:.4} % of that\n",
                hourly(net(report.bound_usd_micros)),
                100.0 * report.certificate_gap
            );
        }
        Method::BaseStock { error, .. } => {
            text += &format!("  FALLBACK  {error}: order-up-to levels, nothing is released\n");
        }
        Method::Hold { error } => text += &format!("  FALLBACK  {error}: nothing is launched or released\n"),
    }
    text += &format!("  spend     {}/h for nodes now, {}/h at the end of the horizon\n", spend(0), spend(last));
    let work = &report.work;
    text += &format!(
        "  problem   {} offers in {} pools, {} classes, {} demand paths, {} periods\n",
        work.offers, work.pools, work.classes, work.scenarios, work.periods
    );
    debug_assert_eq!(loaded.input.epoch, plan.epoch);
    text
}

fn actions(loaded: &Loaded, plan: &Plan) -> String {
    let mut rows = table(&["", "nodes", "offer", "GPUs", "$/h for each node"], 4..5);
    let offer = |key: &fleet::OfferKey| loaded.input.offers.iter().find(|o| o.offer.key == *key).map(|o| &o.offer);
    for (word, key, nodes) in plan
        .launches
        .iter()
        .map(|l| ("launch", &l.offer, l.nodes))
        .chain(plan.releases.iter().map(|r| ("release", &r.offer, r.nodes)))
    {
        let Some(offer) = offer(key) else { continue };
        let gpus = format!("{}x {}", offer.gpus_per_node, offer.gpu);
        let price = format!("{:.2}", offer.price_usd_micros_per_h.usd());
        rows.add_row([word.to_owned(), nodes.to_string(), key.to_string(), gpus, price]);
    }
    section("Now", &rows)
}

fn classes(report: &PlanReport) -> String {
    let header = [
        "class",
        "claims now",
        "at the end",
        "target",
        "expected",
        "missed",
        "idle GPUs for surges",
        "price of a miss",
        "why",
        "0.1 pp more costs",
    ];
    let mut rows = table(&header, 1..8);
    for class in &report.classes {
        let claims = |t: Option<&f64>| format!("{:.1}", t.copied().unwrap_or(0.0));
        if let Some(gpus) = class.lent_gpus {
            let borrows = [class.class.clone(), claims(class.mean_claims.first()), claims(class.mean_claims.last())];
            rows.add_row(borrows.into_iter().chain([String::new(), format!("{gpus:.1} GPUs lent")]));
            continue;
        }
        rows.add_row([
            class.class.clone(),
            claims(class.mean_claims.first()),
            claims(class.mean_claims.last()),
            percent(class.hit_rate_target),
            percent(class.expected_hit_rate),
            format!("{:.2}", class.missed_claims()),
            format!("{:.1}", class.surge_gpus),
            class.miss_price_usd_micros.to_string(),
            why(&class.miss_price_basis, class.miss_price_cap_usd_micros),
            class.next_point_usd_micros_per_h.map_or_else(|| "unknown".into(), |usd| format!("{usd}/h")),
        ]);
    }
    section("Classes", &rows)
}

/// Why a miss has its price.
fn why(basis: &PriceBasis, cap: UsdMicros) -> String {
    match basis {
        PriceBasis::Operator => "the class's own".into(),
        PriceBasis::Past => format!("its past, at most {cap}"),
        PriceBasis::Like(class) => format!("too little past: as {class}"),
        PriceBasis::ClosedForm => "too little past: the newsvendor's".into(),
        PriceBasis::Cap => "at its cap".into(),
    }
}

fn binding(report: &PlanReport) -> String {
    let mut rows = table(&["limit", "of", "dual price", "one more saves", "one less costs", ""], 2..5);
    for limit in &report.binding {
        let (kind, unit) = limit.kind.words();
        let hourly = |v: UsdMicros| format!("{v}/h");
        let (more, less, note) = match &limit.measured {
            Some(Measured { one_more_usd_micros_per_h, one_less_usd_micros_per_h, unique }) => (
                hourly(*one_more_usd_micros_per_h),
                hourly(*one_less_usd_micros_per_h),
                if *unique { "" } else { "dual not unique" },
            ),
            None => ("-".into(), "-".into(), "not measured"),
        };
        let value = format!("{}/h per {unit}", limit.value_usd_micros_per_h);
        rows.add_row([kind.to_owned(), limit.name.clone(), value, more, less, note.to_owned()]);
    }
    section("What holds the plan back", &rows)
}

fn unmet(report: &PlanReport) -> String {
    let mut rows = table(&["what", "periods", "by", "why"], 1..1);
    for unmet in &report.unmet {
        let periods = format!("{}-{}", unmet.periods.0, unmet.periods.1);
        rows.add_row([unmet.what.clone(), periods, unmet.by.clone(), unmet.why.clone()]);
    }
    if rows.is_empty() { met(report) } else { section("Not met", &rows) }
}

/// Claims that nobody would call missed.
const FEW_CLAIMS: f64 = 0.05;

/// Nothing is held back by a limit. What is missed all the same is missed because room for it costs more.
fn met(report: &PlanReport) -> String {
    let missed =
        |class: &&ClassReport| class.expected_hit_rate < class.hit_rate_target && class.missed_claims() > FEW_CLAIMS;
    let below = report.classes.iter().filter(missed);
    let each = |c: &ClassReport| {
        format!("{} {:.1} of {:.1} %", c.class, 100.0 * c.expected_hit_rate, 100.0 * c.hit_rate_target)
    };
    let below: Vec<String> = below.map(each).collect();
    if below.is_empty() {
        return "\nEverything that was asked for is met.\n".into();
    }
    format!(
        "\nNo limit holds a target back. In this horizon room for more would cost more than the misses: {}.\n",
        below.join(", ")
    )
}

fn changes(report: &PlanReport) -> String {
    let mut rows = table(&["offer", "parent meant", "now"], 1..3);
    for change in &report.changes {
        rows.add_row([change.offer.to_string(), format!("{:.1}", change.before), format!("{:.0}", change.now)]);
    }
    // Without a parent, every launch is a change and says nothing.
    if report.changes.iter().all(|c| c.before == 0.0) {
        String::new()
    } else {
        section("Changed since the parent plan", &rows)
    }
}

fn set_aside(loaded: &Loaded) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for aside in &loaded.catalogue.set_aside {
        *counts.entry(aside.reason.kind()).or_insert(0) += 1;
    }
    let list: Vec<String> = counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    if list.is_empty() { String::new() } else { format!("\nOffers set aside: {}\n", list.join(", ")) }
}

fn notes(loaded: &Loaded) -> String {
    loaded.notes.iter().map(|n| format!("note: {n}\n")).collect()
}

/// Answers to what-if questions.
pub fn answers(answers: &[Answer]) -> String {
    let mut rows = table(&["what if", "cost now", "then", "difference", "launches", "hit rates"], 1..4);
    for answer in answers {
        let (before, after) = (answer.cost_before_usd_micros_per_h, answer.cost_after_usd_micros_per_h);
        let moved: Vec<String> = answer
            .hit_rates
            .iter()
            .filter(|(_, b, a)| (b - a).abs() > 5e-4)
            .map(|(class, b, a)| format!("{class} {} to {}", percent(*b), percent(*a)))
            .collect();
        rows.add_row([
            question(&answer.what_if),
            format!("{before}/h"),
            format!("{after}/h"),
            format!("{}/h", UsdMicros(after.0 - before.0)),
            format!("{} to {}", answer.launches.0, answer.launches.1),
            if moved.is_empty() { "same".into() } else { moved.join(", ") },
        ]);
    }
    section("What if", &rows)
}

fn question(what_if: &WhatIf) -> String {
    match what_if {
        WhatIf::Quota { name, by } => format!("quota {name} {by:+}"),
        WhatIf::Price { matching, factor } => format!("prices of {matching} x {factor}"),
        WhatIf::LiftRegions { class } => format!("{class} may be anywhere"),
        WhatIf::HitRate { class, target } => format!("{class} wants {}", percent(*target)),
        WhatIf::Budget { usd_micros_per_h: Some(budget) } => format!("budget {budget}/h"),
        WhatIf::Budget { usd_micros_per_h: None } => "no budget".into(),
    }
}

/// Why a class gets these offers.
pub fn explanation(explanation: &Explanation, most: usize) -> String {
    let mut rows = table(&["offer", "$/GPU-h", "nodes", "launched", "why"], 1..4);
    for offer in explanation.offers.iter().take(most) {
        let why = match &offer.verdict {
            Verdict::ChosenToTheLimit => "chosen, as many as supply allows".to_owned(),
            Verdict::Chosen => "chosen, as many as pays".to_owned(),
            Verdict::TooDear(by) => {
                format!("too dear: a launched node would have to cost {by}/h less")
            }
            Verdict::AsGood => "as good as what was chosen".to_owned(),
            Verdict::NoSupply => "no launch is allowed at present: recent refusals".to_owned(),
            Verdict::TooSlow => "a launch would arrive after the horizon".to_owned(),
        };
        // Worth saying where it is seen in the choice.
        let why = match offer.usable_share {
            share if share < 0.985 => format!("{why}; {} of a node's work is had of it", percent(share)),
            _ => why,
        };
        rows.add_row([
            offer.offer.to_string(),
            format!("{:.3}", offer.gpu_price_usd_micros_per_h.usd()),
            offer.nodes.to_string(),
            offer.launched.to_string(),
            why,
        ]);
    }
    let more = explanation.offers.len().saturating_sub(most);
    let tail = if more > 0 { format!("  and {more} more that serve it, --most shows them\n") } else { String::new() };
    let mut refused = table(&["refused because", "offers"], 1..2);
    for (reason, count) in &explanation.refused {
        refused.add_row([reason.clone(), count.to_string()]);
    }
    format!(
        "{}: {} offers serve it\n{}{tail}{}",
        explanation.class,
        explanation.offers.len(),
        section("Offers", &rows),
        section("Not these", &refused)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use planner::planning::{Options, plan};
    use planner::synthetic::{Size, fleet};

    /// Nobody reads that all is met where a class is expected below its target.
    #[test]
    fn below_target_is_never_met() {
        let input = fleet(Size { offers: 20, classes: 2, scenarios: 4, periods: 4 }, 1);
        let mut report = plan(&input, Options::default()).expect("a plan").report;
        report.unmet.clear();
        for class in &mut report.classes {
            (class.expected_hit_rate, class.hit_rate_target) = (1.0, 0.9);
        }
        assert_eq!(unmet(&report), "\nEverything that was asked for is met.\n");
        report.classes[0].expected_hit_rate = 0.5;
        report.classes[0].expected_misses.fill(1.0);
        let text = unmet(&report);
        assert!(text.contains("No limit holds") && text.contains("50.0 of 90.0 %"), "{text}");
    }
}
