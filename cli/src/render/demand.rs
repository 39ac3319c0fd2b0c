//! Demand series and forecast scores.

use planner::forecast::{Method, Score, ScoreRules};
use simulations::demand::Series;

use super::{percent, section, table};

/// A series by class: level, peak and how fast it moves.
pub fn series(series: &Series) -> String {
    let hours = series.steps() as f64 * f64::from(series.step_s) / 3600.0;
    let mut classes = table(&["class", "mean", "p99", "peak", "largest rise in 10 min", "steps at 0"], 1..6);
    let mut order: Vec<usize> = (0..series.classes.len()).collect();
    let values: Vec<Vec<f64>> = (0..series.values.len()).map(|k| series.claims(&[k], 1)).collect();
    let mean = |k: &usize| values[*k].iter().sum::<f64>() / values[*k].len().max(1) as f64;
    order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let step = (600 / series.step_s).max(1) as usize;
    for k in order.iter().take(30) {
        let values = &values[*k];
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let at =
            |q: f64| sorted.get(((sorted.len() as f64 * q) as usize).min(sorted.len() - 1)).copied().unwrap_or(0.0);
        let rise = values.windows(step + 1).map(|w| w[step] - w[0]).fold(0.0, f64::max);
        let zeros = values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
        classes.add_row([
            series.classes[*k].clone(),
            format!("{:.1}", mean(k)),
            format!("{:.0}", at(0.99)),
            format!("{:.0}", at(1.0)),
            format!("{rise:.0}"),
            percent(zeros),
        ]);
    }
    let more = order.len().saturating_sub(30);
    let tail = if more > 0 { format!("  and {more} more\n") } else { String::new() };
    let notes: String = series.notes.iter().map(|n| format!("note: {n}\n")).collect();
    format!(
        "{} classes, {} steps of {} s ({hours:.1} h)\n{}{tail}{notes}",
        series.classes.len(),
        series.steps(),
        series.step_s,
        section("Demand", &classes)
    )
}

/// The mean of each method over several series; methods that could not forecast all of them are left out.
pub fn mean_scores(scores: &[Vec<Score>]) -> Vec<Score> {
    let mut all = Vec::new();
    for method in Method::ALL.iter().map(|m| m.name()).chain([Score::WEIGHED]) {
        let of: Vec<&Score> = scores.iter().flatten().filter(|s| s.method == method).collect();
        if of.is_empty() || of.len() < scores.len() {
            continue;
        }
        let count = of.len() as f64;
        let width = of[0].coverage.len();
        all.push(Score {
            method: method.to_owned(),
            pinball: of.iter().map(|s| s.pinball).sum::<f64>() / count,
            coverage: (0..width).map(|i| of.iter().map(|s| s.coverage[i]).sum::<f64>() / count).collect(),
            forecasts: of.iter().map(|s| s.forecasts).sum(),
        });
    }
    all
}

/// Scores beside seasonal-naive.
pub fn scores(series: &Series, rules: &ScoreRules, scores: &[Score]) -> String {
    let base = scores.iter().find(|s| s.method == Method::SEASONAL_NAIVE.name()).map(|s| s.pinball);
    let mut header = vec!["method".to_owned(), "pinball loss".into(), "vs seasonal-naive".into()];
    header.extend(rules.quantiles.iter().map(|q| format!("covered at {:.0} %", 100.0 * q)));
    header.push("forecasts".into());
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut rows = table(&names, 1..names.len());
    for score in scores {
        let mut row = vec![score.method.clone(), format!("{:.4}", score.pinball)];
        row.push(base.map_or("-".into(), |b| format!("{:.3}", score.pinball / b.max(1e-12))));
        row.extend(score.coverage.iter().map(|c| percent(*c)));
        row.push(score.forecasts.to_string());
        rows.add_row(row);
    }
    let ahead: Vec<String> = rules.horizons.iter().map(|h| format!("{} s", h * series.step_s as usize)).collect();
    let notes: String = series.notes.iter().map(|n| format!("note: {n}\n")).collect();
    format!(
        "{} steps of {} s, forecasts from step {} on, {} ahead\n{}{notes}",
        series.steps(),
        series.step_s,
        rules.from,
        ahead.join(", "),
        section("Forecasts, trained on the past only", &rows)
    )
}
