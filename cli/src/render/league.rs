//! A league as a table, and as figures for programs.

use serde_json::json;
use simulations::engine::Outcome;
use simulations::league::{Entry, Estimate, League, Player};

use super::{percent, section, table};

/// `12.3 ± 0.4 %`.
pub fn percent_of(estimate: Estimate) -> String {
    match estimate.half {
        Some(half) => format!("{:.1} ± {:.1} %", 100.0 * estimate.mean, 100.0 * half),
        None => percent(estimate.mean),
    }
}

fn usd_of(estimate: Estimate) -> String {
    match estimate.half {
        Some(half) => format!("${:.0} ± {half:.0}", estimate.mean),
        None => format!("${:.0}", estimate.mean),
    }
}

/// Mean of something over an entry's seeds.
pub fn over(entry: &Entry, of: impl Fn(&Outcome) -> f64) -> Estimate {
    Estimate::of(&entry.outcomes.iter().map(of).collect::<Vec<_>>())
}

/// What the comparison comes to, in one sentence for each half of it.
pub fn verdict(league: &League) -> Vec<String> {
    let mut lines = Vec::new();
    let (Some(live), Some(best)) = (league.entry(Player::Live), league.entry(league.best_simple)) else {
        return lines;
    };
    let (planner, simple) = (league.overhead(live).mean, league.overhead(best).mean);
    lines.push(format!(
        "The planner costs {} above the clairvoyant at a hit rate of {}; the best simple policy tuned on the days before \
         ({}) costs {} above it at {}: {:.2} times the overhead.",
        percent(planner),
        percent_of(league.hit_rate(live)),
        best.player.name(),
        percent(simple),
        percent_of(league.hit_rate(best)),
        planner / simple.max(1e-9)
    ));
    match league.best_in_hindsight() {
        Some(entry) => lines.push(format!(
            "In hindsight, at the planner's hit rate, the best simple policy is {} with {} above the clairvoyant: {:.2} \
             times the overhead.",
            entry.player.name(),
            percent(league.overhead(entry).mean),
            planner / league.overhead(entry).mean.max(1e-9)
        )),
        None => lines.push("In hindsight no simple policy with any knob reaches the planner's hit rate.".into()),
    }
    lines
}

/// The table.
pub fn league(league: &League) -> String {
    let header =
        ["policy", "hit rate", "overhead", "cost", "claimed", "idle", "boot", "out", "churn", "misses", "utilisation"];
    let mut rows = table(&header, 1..11);
    for entry in league.shown() {
        let part = |of: fn(&Outcome) -> f64| format!("${:.0}", over(entry, of).mean);
        let mark = if entry.player == league.best_simple { " *" } else { "" };
        rows.add_row([
            format!("{}{mark}", entry.player.name()),
            percent_of(league.hit_rate(entry)),
            percent_of(league.overhead(entry)),
            usd_of(over(entry, |o| o.money.total_usd())),
            part(|o| o.money.claimed_usd),
            part(|o| o.money.idle_usd),
            part(|o| o.money.boot_usd),
            part(|o| o.money.out_usd),
            part(|o| o.money.churn_usd),
            part(|o| o.money.misses_usd),
            percent(over(entry, Outcome::utilisation).mean),
        ]);
    }
    let bound = Estimate::of(&league.bounds.iter().map(|b| b.total_usd).collect::<Vec<_>>());
    rows.add_row(["clairvoyant".into(), String::new(), "0".into(), usd_of(bound)]);
    let seeds = format!("{} seeds, ± is half the 95 % interval", league.seeds.len());
    let mut text = format!("{}: {}\n", league.name, league.title);
    text += &section(&format!("Policies ({seeds}; * the best simple one on the days before)"), &rows);
    text += "\n";
    for line in verdict(league) {
        text += &line;
        text += "\n";
    }
    text
}

/// The main figures.
pub fn league_figures(league: &League) -> serde_json::Value {
    let entries: Vec<_> = league
        .entries
        .iter()
        .map(|entry| {
            json!({
                "policy": entry.player.name(),
                "family": entry.player.family(),
                "hit_rate": league.hit_rate(entry),
                "overhead": league.overhead(entry),
                "cost_usd": over(entry, |o| o.money.total_usd()),
                "money": entry.outcomes.iter().map(|o| o.money).collect::<Vec<_>>(),
                "utilisation": over(entry, Outcome::utilisation),
            })
        })
        .collect();
    json!({
        "scenario": league.name,
        "title": league.title,
        "seeds": league.seeds,
        "best_simple": league.best_simple.name(),
        "best_in_hindsight": league.best_in_hindsight().map(|e| e.player.name()),
        "clairvoyant": league.bounds,
        "policies": entries,
    })
}
