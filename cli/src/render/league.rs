//! A league as a table, and as figures for programs.

use serde_json::json;
use simulations::engine::Outcome;
use simulations::league::{Entry, Estimate, League, Player, Rivals, Service, Verdict};

use super::{percent, section, table};

/// `12.3 ± 0.4 %`.
pub fn percent_of(estimate: Estimate) -> String {
    match estimate.half {
        Some(half) => format!("{:.1} ± {:.1} %", 100.0 * estimate.mean, 100.0 * half),
        None => percent(estimate.mean),
    }
}

/// `$12 ± 3`; an interval that is wider than the figure says that the seeds do not tell.
pub fn usd_of(estimate: Estimate) -> String {
    match estimate.half {
        Some(half) if half > estimate.mean.abs() => format!("${:.0} (cannot tell)", estimate.mean),
        Some(half) => format!("${:.0} ± {half:.0}", estimate.mean),
        None => format!("${:.0}", estimate.mean),
    }
}

/// `99.12 %`: a hit rate beside a target of 99 %.
pub fn rate(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Knobs of an entry by class, those of the first seed.
fn knobs(entry: &Entry) -> String {
    let words: Vec<String> = entry.knobs.first().into_iter().flatten().map(f64::to_string).collect();
    words.join("/")
}

/// The class that is served worst, in words.
pub fn worst(entry: &Entry) -> String {
    entry.worst().map_or_else(String::new, |s| format!("{} {}", s.class, rate(s.hit_rate)))
}

fn short_of(entry: &Entry) -> String {
    let short: Vec<String> = entry
        .services()
        .iter()
        .filter(|s| s.shortfall() > 0.0)
        .map(|s| format!("{} is at {} of {}", s.class, rate(s.hit_rate), rate(s.hit_rate_target)))
        .collect();
    short.join(", ")
}

/// What the comparison comes to, in a sentence for each part of it.
pub fn verdict(league: &League) -> Vec<String> {
    let Some(live) = league.entry(Player::Live) else { return Vec::new() };
    let mut lines = vec![format!(
        "The planner costs {} a run, {} above perfect foresight; {}.",
        usd_of(live.cost_usd()),
        usd_of(league.excess_usd(live)),
        if live.shortfall() > 0.0 { short_of(live) } else { "every class is at its target".into() }
    )];
    let fallbacks: u64 = live.outcomes.iter().map(|o| o.counts.fallbacks).sum();
    if fallbacks > 0 {
        lines.push(format!(
            "Without an optimum in {fallbacks} of its decisions, it kept order-up-to levels: a bug, please report it."
        ));
    }
    if let Some(floor) = league.entry(Player::Foresight).filter(|f| f.shortfall() > 0.0) {
        lines.push(format!("Even with perfect foresight {}.", short_of(floor)));
    }
    for (rivals, words) in [
        (Rivals::TunedBefore, "tuned on the days before, a knob for each class"),
        (Rivals::InHindsight, "in hindsight, a knob for each class"),
    ] {
        lines.push(match league.against(rivals) {
            None => format!("Of the simple policies {words}, none serves each class as well."),
            Some(against) => {
                let excess = usd_of(league.excess_usd(against.rival));
                let ratio = against.ratio.map_or_else(String::new, |r| format!(": {r:.2} times the excess"));
                let who = match against.verdict {
                    Verdict::Cheaper => "the planner is cheaper",
                    Verdict::Dearer => "the planner is dearer",
                    Verdict::CannotTell => "the seeds cannot tell them apart",
                };
                format!(
                    "Of the simple policies {words}, the cheapest that serves each class as well is {} at {excess} above \
                     foresight{ratio}; {who} ({}).",
                    against.rival.player.family(),
                    usd_of(against.difference_usd)
                )
            }
        });
        if live.shortfall() > 0.0
            && let Some(able) = league.cheapest(rivals, 0.0)
        {
            let excess = usd_of(league.excess_usd(able));
            lines.push(format!("Every target is met by {} at {excess} above foresight.", able.player.name()));
        }
    }
    lines
}

/// The table.
pub fn league(league: &League) -> String {
    let header = [
        "policy",
        "knobs",
        "cost",
        "above foresight",
        "least served",
        "claimed",
        "idle",
        "boot",
        "out",
        "churn",
        "misses",
        "used",
        "lent",
    ];
    // Where nothing is lent there is nothing to show.
    let lends = league.shown().iter().any(|entry| entry.over(|o| o.money.lent_usd).mean > 0.0);
    let header = &header[..header.len() - usize::from(!lends)];
    let mut rows = table(header, 2..header.len());
    for entry in league.shown() {
        let part = |of: fn(&Outcome) -> f64| format!("${:.0}", entry.over(of).mean);
        let floor = entry.player == Player::Foresight;
        let mut row = vec![
            entry.player.name(),
            knobs(entry),
            usd_of(entry.cost_usd()),
            if floor { "0".into() } else { usd_of(league.excess_usd(entry)) },
            worst(entry),
            part(|o| o.money.claimed_usd),
            part(|o| o.money.idle_usd),
            part(|o| o.money.boot_usd),
            part(|o| o.money.out_usd),
            part(|o| o.money.churn_usd),
            part(|o| o.money.misses_usd),
            percent(entry.over(Outcome::utilisation).mean),
        ];
        row.extend(lends.then(|| format!("-${:.0}", entry.over(|o| o.money.lent_usd).mean)));
        rows.add_row(row);
    }
    let bound = Estimate::of(&league.bounds.iter().map(|b| b.total_usd).collect::<Vec<_>>());
    rows.add_row(["clairvoyant".into(), String::new(), usd_of(bound)]);
    let seeds = match league.seeds.len() {
        1 => "one seed".to_owned(),
        n => format!("{n} seeds, ± is half the 95 % interval"),
    };
    let mut text = format!("{}: {}\n", league.name, league.title);
    text += &section(&format!("Policies ({seeds})"), &rows);
    text += &section("Hit rates", &services(league));
    if has_copies(league) {
        let header = std::iter::once("policy").chain(STARTS_HEADER).collect::<Vec<_>>();
        let mut rows = table(&header, 1..header.len());
        for entry in league.shown() {
            rows.add_row(std::iter::once(entry.player.name()).chain(starts(entry)));
        }
        text += &section("Starts, by the copies that hosts had", &rows);
    }
    text += "\n";
    for line in verdict(league) {
        text += &line;
        text += "\n";
    }
    text
}

/// Hit rate of each class beside its target, of the planner, foresight and the rivals it is compared with.
fn services(league: &League) -> comfy_table::Table {
    let shown = compared(league);
    let names: Vec<String> = shown.iter().map(|e| e.player.name()).collect();
    let header: Vec<&str> = ["class", "target"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let mut rows = table(&header, 1..header.len());
    let of: Vec<Vec<Service>> = shown.iter().map(|e| e.services()).collect();
    for k in 0..of.first().map_or(0, Vec::len) {
        let class = &of[0][k];
        let cells = of.iter().map(|services| {
            let mark = if services[k].shortfall() > 0.0 { " !" } else { "" };
            format!("{}{mark}", rate(services[k].hit_rate))
        });
        rows.add_row([class.class.clone(), rate(class.hit_rate_target)].into_iter().chain(cells));
    }
    rows
}

/// Whether hosts had copies of snapshots.
pub fn has_copies(league: &League) -> bool {
    league.entries.iter().flat_map(|e| &e.outcomes).any(|o| o.started_from.iter().sum::<u64>() > 0)
}

/// What [`starts`] gives.
pub const STARTS_HEADER: [&str; 7] = ["from memory", "from disk", "cold", "ready p50", "p90", "p99", "fetched"];

/// Where an entry's claims started from, seconds from asking to readiness, and bytes that hosts fetched for it.
pub fn starts(entry: &Entry) -> [String; 7] {
    let all = entry.outcomes.iter().flat_map(|o| o.started_from).sum::<u64>().max(1) as f64;
    let share = |n: usize| percent(entry.outcomes.iter().map(|o| o.started_from[n]).sum::<u64>() as f64 / all);
    let mut seconds = simulations::engine::Histogram::default();
    entry.outcomes.iter().for_each(|o| seconds.merge(&o.starts));
    let quantile = |q: f64| format!("{:.1} s", seconds.quantile_s(q));
    let fetched = format!("{:.1} TB", entry.over(|o| o.fetched_bytes).mean / 1e12);
    [share(2), share(1), share(0), quantile(0.5), quantile(0.9), quantile(0.99), fetched]
}

/// The planner, foresight, and the rivals that it is compared with.
pub fn compared(league: &League) -> Vec<&Entry> {
    let first = [Player::Live, Player::Foresight].into_iter().filter_map(|p| league.entry(p));
    let rivals = [Rivals::TunedBefore, Rivals::InHindsight].into_iter().filter_map(|r| rival(league, r));
    first.chain(rivals).collect()
}

/// The rival that stands for its kind: at the planner's service, or at every target.
pub fn rival(league: &League, rivals: Rivals) -> Option<&Entry> {
    league.against(rivals).map(|a| a.rival).or_else(|| league.cheapest(rivals, 0.0))
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
                "knobs": entry.knobs,
                "cost_usd": entry.cost_usd(),
                "excess_usd": league.excess_usd(entry),
                "overhead": league.overhead(entry),
                "classes": entry.services(),
                "shortfall": entry.shortfall(),
                "money": entry.outcomes.iter().map(|o| o.money).collect::<Vec<_>>(),
                "utilisation": entry.over(Outcome::utilisation),
                "started_from": entry.outcomes.iter().map(|o| o.started_from).collect::<Vec<_>>(),
                "fetched_bytes": entry.outcomes.iter().map(|o| o.fetched_bytes).collect::<Vec<_>>(),
            })
        })
        .collect();
    let against = |rivals| {
        league.against(rivals).map(|a| {
            json!({
                "rival": a.rival.player.name(),
                "knobs": a.rival.knobs,
                "excess_ratio": a.ratio,
                "difference_usd": a.difference_usd,
                "verdict": a.verdict,
            })
        })
    };
    json!({
        "scenario": league.name,
        "title": league.title,
        "seeds": league.seeds,
        "tuned_before": against(Rivals::TunedBefore),
        "in_hindsight": against(Rivals::InHindsight),
        "clairvoyant": league.bounds,
        "policies": entries,
    })
}
