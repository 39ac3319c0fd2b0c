//! A league as one self-contained page: tables and plots, nothing fetched from anywhere.

mod plots;

use std::fmt::Write;

use simulations::engine::Outcome;
use simulations::league::{Entry, League, Player, Rivals};

use super::league::{STARTS_HEADER, has_copies, percent_of, rate, rival, starts, usd_of, verdict, worst};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#1c2430}\
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}p.sub{color:#5a6675;margin-top:0}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.25em .6em;text-align:right;\
border-bottom:1px solid #e3e7ec}th:first-child,td:first-child{text-align:left}tr.us td{font-weight:600;background:#f0f6ff}td.under{color:#b03a48}\
svg{width:100%;height:auto;display:block}figcaption{color:#5a6675;font-size:.9em}figure{margin:1em 0}";

/// The page.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn report(league: &League) -> anyhow::Result<String> {
    let mut page = String::new();
    write!(
        page,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{}</title><style>{STYLE}</style>",
        escape(&league.name)
    )?;
    write!(page, "<h1>{}</h1><p class=\"sub\">{}</p>", escape(&league.name), escape(&league.title))?;
    let seeds: Vec<String> = league.seeds.iter().map(u64::to_string).collect();
    let days = league.entries.first().and_then(|e| e.outcomes.first()).map_or(0.0, |o| o.measured_s / 86_400.0);
    write!(
        page,
        "<p>{days:.1} days, seeds {}; every figure is the mean over the seeds, ± half its 95 % confidence interval. \
         Foresight is the shipped planner that knows the demand: what is above it is the price of not knowing. Overhead is \
         cost above the clairvoyant bound of the same run. Simple policies stand with a knob for each class, tuned on the \
         days before. Each class is judged by its own target.</p>",
        seeds.join(", "),
    )?;
    for line in verdict(league) {
        write!(page, "<p><b>{}</b></p>", escape(&line))?;
    }
    policies(&mut page, league)?;
    services(&mut page, league)?;
    figure(
        &mut page,
        "Cost against service",
        &plots::front(league)?,
        "Every policy with every knob, by how far its worst class is under its target; the line joins those that nothing \
         beats in both. Foresight stands apart: nobody can have it.",
    )?;
    figure(
        &mut page,
        "Where each dollar goes",
        &plots::dollars(league)?,
        "Means over the seeds, as shares of the clairvoyant's cost.",
    )?;
    for entry in league.entry(Player::Live).into_iter().chain(rival(league, Rivals::TunedBefore)) {
        if let Some(outcome) = entry.outcomes.first() {
            let caption = format!(
                "Seed {}. Grey: what claims want; blue: in use; green: idle on top; red: misses so far (right).",
                league.seeds[0]
            );
            figure(
                &mut page,
                &format!("Demand, buffer and misses over time: {}", entry.player.name()),
                &plots::over_time(outcome)?,
                &caption,
            )?;
        }
    }
    if has_copies(league) {
        copies(&mut page, league)?;
    }
    figure(
        &mut page,
        "Cold starts",
        &plots::cold_starts(league)?,
        "From a claim to a model that answers: the wait for a GPU and the phases after it, of granted claims.",
    )?;
    stability(&mut page, league)?;
    let caption =
        format!("The planner on all paths and on their mean, and the best simple policy; seed {}.", league.seeds[0]);
    figure(&mut page, "Plan stability", &plots::moves(league)?, &caption)?;
    page += "</html>\n";
    Ok(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn figure(page: &mut String, title: &str, svg: &str, caption: &str) -> std::fmt::Result {
    write!(page, "<h2>{}</h2><figure>{svg}<figcaption>{}</figcaption></figure>", escape(title), escape(caption))
}

fn row(page: &mut String, entry: &Entry, cells: &[String]) -> std::fmt::Result {
    let class = if entry.player == Player::Live { " class=\"us\"" } else { "" };
    write!(page, "<tr{class}><td>{}</td>", escape(&entry.player.name()))?;
    cells.iter().try_for_each(|c| write!(page, "<td>{}</td>", escape(c)))?;
    write!(page, "</tr>")
}

fn policies(page: &mut String, league: &League) -> std::fmt::Result {
    write!(
        page,
        "<h2>Policies</h2><table><tr><th>policy<th>least served<th>above foresight<th>overhead<th>cost<th>p99 wait<th>p99 cold start<th>utilisation</tr>"
    )?;
    for entry in league.shown() {
        let cells = [
            worst(entry),
            usd_of(league.excess_usd(entry)),
            percent_of(league.overhead(entry)),
            usd_of(entry.cost_usd()),
            format!("{:.0} s", entry.over(|o| o.waits.quantile_s(0.99)).mean),
            format!("{:.0} s", entry.over(|o| o.cold_starts.quantile_s(0.99)).mean),
            percent_of(entry.over(Outcome::utilisation)),
        ];
        row(page, entry, &cells)?;
    }
    write!(page, "</table>")
}

fn services(page: &mut String, league: &League) -> std::fmt::Result {
    let shown = super::league::compared(league);
    write!(page, "<h2>Hit rates</h2><table><tr><th>class<th>target")?;
    shown.iter().try_for_each(|e| write!(page, "<th>{}", escape(&e.player.name())))?;
    write!(page, "</tr>")?;
    let of: Vec<_> = shown.iter().map(|e| e.services()).collect();
    for k in 0..of.first().map_or(0, Vec::len) {
        let class = &of[0][k];
        write!(page, "<tr><td>{}</td><td>{}</td>", escape(&class.class), rate(class.hit_rate_target))?;
        for services in &of {
            let under = if services[k].shortfall() > 0.0 { " class=\"under\"" } else { "" };
            write!(page, "<td{under}>{}</td>", rate(services[k].hit_rate))?;
        }
        write!(page, "</tr>")?;
    }
    write!(page, "</table>")
}

fn copies(page: &mut String, league: &League) -> std::fmt::Result {
    write!(page, "<h2>Starts, by the copies that hosts had</h2><table><tr><th>policy")?;
    STARTS_HEADER.iter().try_for_each(|name| write!(page, "<th>{name}"))?;
    write!(page, "</tr>")?;
    league.shown().into_iter().try_for_each(|entry| row(page, entry, &starts(entry)))?;
    write!(
        page,
        "</table><p class=\"sub\">Seconds from asking for GPUs to readiness. The staging plan chooses the copies; under a \
         policy that does not say what it expects, it expects little of each.</p>"
    )
}

fn stability(page: &mut String, league: &League) -> std::fmt::Result {
    write!(
        page,
        "<h2>Stability and supply</h2><table><tr><th>policy<th>decisions that change anything<th>launches<th>releases<th>of new nodes<th>refused<th>failed boots<th>reclaims<th>faults<th>interrupted claims</tr>"
    )?;
    for entry in league.shown() {
        let mean = |of: fn(&Outcome) -> u64| format!("{:.0}", entry.over(|o| of(o) as f64).mean);
        let changes = entry.over(|o| o.counts.changes as f64 / o.counts.decisions.max(1) as f64);
        let cells = [
            percent_of(changes),
            mean(|o| o.counts.launches),
            mean(|o| o.counts.releases),
            mean(|o| o.counts.reversals),
            mean(|o| o.counts.refused_capacity + o.counts.refused_quota + o.counts.refused_throttled),
            mean(|o| o.counts.boot_failures),
            mean(|o| o.counts.reclaims),
            mean(|o| o.counts.faults),
            mean(|o| o.counts.interrupted),
        ];
        row(page, entry, &cells)?;
    }
    write!(page, "</table>")
}
