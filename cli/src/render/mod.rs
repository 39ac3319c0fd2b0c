//! Results as tables a person can read.

mod demand;
mod league;
mod plan;
mod report;

use comfy_table::presets;
use comfy_table::{CellAlignment, Table};
use providers::catalogue::Catalogue;
use std::collections::BTreeMap;

pub use demand::{mean_scores, scores, series};
pub use league::{league, league_figures};
pub use plan::{answers, explanation, plan};
pub use report::report;

/// A borderless table; the columns in `numbers` are aligned to the right.
pub fn table(header: &[&str], numbers: std::ops::Range<usize>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A titled table; nothing when it has no rows.
pub fn section(title: &str, table: &Table) -> String {
    if table.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = table.lines().map(|l| format!("  {}", l.trim_end())).collect();
    format!("\n{title}\n{}\n", lines.join("\n"))
}

/// `99.2 %`.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// A summary of an offer table: what there is by provider, and what was set aside.
pub fn catalogue(catalogue: &Catalogue) -> String {
    let mut by_provider: BTreeMap<&str, (usize, std::collections::BTreeSet<&str>, std::collections::BTreeSet<&str>)> =
        BTreeMap::new();
    let mut by_gpu: BTreeMap<&str, Vec<(f64, bool)>> = BTreeMap::new();
    for offer in &catalogue.offers {
        let entry = by_provider.entry(&offer.key.provider).or_default();
        entry.0 += 1;
        entry.1.insert(&offer.key.region);
        entry.2.insert(offer.gpu.name());
        let spot = offer.key.market == fleet::Market::Spot;
        by_gpu.entry(offer.gpu.name()).or_default().push((offer.gpu_price_usd_micros_per_h().usd(), spot));
    }
    let mut providers = table(&["provider", "offers", "regions", "GPU models"], 1..4);
    for (name, (count, regions, gpus)) in &by_provider {
        providers.add_row([(*name).to_owned(), count.to_string(), regions.len().to_string(), gpus.len().to_string()]);
    }
    let mut gpus = table(&["GPU", "offers", "$/GPU-h on-demand", "median", "$/GPU-h spot", "median"], 1..6);
    for (name, prices) in &by_gpu {
        let side = |spot: bool| {
            let mut list: Vec<f64> = prices.iter().filter(|p| p.1 == spot).map(|p| p.0).collect();
            list.sort_by(f64::total_cmp);
            match (list.first(), list.last()) {
                (Some(low), Some(high)) => (format!("{low:.2} - {high:.2}"), format!("{:.2}", list[list.len() / 2])),
                _ => ("-".into(), "-".into()),
            }
        };
        let ((range, median), (spot_range, spot_median)) = (side(false), side(true));
        gpus.add_row([(*name).to_owned(), prices.len().to_string(), range, median, spot_range, spot_median]);
    }
    let mut reasons: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    for aside in &catalogue.set_aside {
        let entry = reasons.entry(aside.reason.kind()).or_insert((0, format!("{}: {}", aside.key, aside.reason)));
        entry.0 += 1;
    }
    let mut aside = table(&["reason", "offers", "for instance"], 1..2);
    for (reason, (count, example)) in &reasons {
        aside.add_row([(*reason).to_owned(), count.to_string(), example.clone()]);
    }
    format!(
        "{} usable offers, {} set aside\n{}{}{}",
        catalogue.offers.len(),
        catalogue.set_aside.len(),
        section("Providers", &providers),
        section("GPU models", &gpus),
        section("Set aside", &aside),
    )
}
