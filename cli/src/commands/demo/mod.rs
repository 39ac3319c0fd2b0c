//! `pilotlight demo`: generated offers, demand and a plan file.

use std::path::PathBuf;

use fleet::{Market, Offer};
use planner::synthetic::{self, Size};
use providers::catalogue::own;
use simulations::demand::demo;

use crate::output;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder to write into; made if it is not there.
    folder: PathBuf,
    /// Number of offers.
    #[arg(long, default_value_t = 400)]
    offers: usize,
    /// Seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const PLAN: &str = include_str!("plan.toml");
const SCENARIO: &str = include_str!("scenario.toml");

/// `(name, title, demand, days of the test, more)` of the scenarios that are written.
const SCENARIOS: [(&str, &str, &str, &str, &str); 4] = [
    ("demo", "Three services over a day", "demand.csv", "1", ""),
    ("quiet", "What the planner spends when nothing happens", "steady.csv", "0.25", ""),
    (
        "doubling",
        "Demand doubles within five minutes",
        "steady.csv",
        "0.25",
        "\n[[surge]]\nat_h = 2\nfactor = 2\nramp_minutes = 5\nhours = 2\n",
    ),
    (
        "zone-loss",
        "A cloud goes away for an hour",
        "steady.csv",
        "0.25",
        "\n[[outage]]\nfor = { provider = \"PROVIDER\" }\nat_h = 2\nhours = 1\n",
    ),
];

/// Writes the files of a demo.
///
/// # Errors
/// The folder cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.folder)?;
    let size = Size { offers: args.offers.clamp(40, 100_000), classes: 1, scenarios: 1, periods: 1 };
    let offers: Vec<_> = synthetic::catalogue(size, args.seed).offers.into_iter().map(|o| o.offer).collect();
    output::write_whole(&args.folder.join("offers.csv"), |out| Ok(own::write(&offers, out)?))?;
    let series = demo::series(args.seed);
    let level = |row: &Vec<f64>| (row.iter().sum::<f64>() / row.len() as f64).round();
    let steady: Vec<Vec<f64>> = series.values.iter().map(|row| vec![level(row); row.len()]).collect();
    for (name, values) in [("demand.csv", &series.values), ("steady.csv", &steady)] {
        output::write_whole(&args.folder.join(name), |out| {
            writeln!(out, "t_s,{}", series.classes.join(","))?;
            for i in 0..series.steps() {
                let row: Vec<String> = values.iter().map(|v| v[i].to_string()).collect();
                writeln!(out, "{},{}", i as u32 * series.step_s, row.join(","))?;
            }
            Ok(())
        })?;
    }
    let plan = format!("{PLAN}{}", running_nodes(&offers));
    output::write_whole(&args.folder.join("plan.toml"), |out| Ok(out.write_all(plan.as_bytes())?))?;
    // The cloud that is cheapest for the largest class is the one that hurts.
    let cheapest = offers.iter().filter(|o| o.gpu.name() == "H100-SXM" && o.gpus_per_node >= 4);
    let cheapest = cheapest.min_by_key(|o| o.gpu_price_usd_micros_per_h()).map_or("", |o| o.key.provider.as_str());
    for (name, title, demand, days, more) in SCENARIOS {
        let text = SCENARIO.replace("NAME", name).replace("TITLE", title).replace("DEMAND", demand);
        let text = format!("{}{}", text.replace("DAYS", days), more.replace("PROVIDER", cheapest));
        let file = args.folder.join(format!("{name}.toml"));
        output::write_whole(&file, |out| Ok(out.write_all(text.as_bytes())?))?;
    }
    let shown = args.folder.display();
    eprintln!("wrote offers.csv, demand.csv, plan.toml and four scenarios to {shown}");
    eprintln!("next: pilotlight plan {shown}/plan.toml, pilotlight simulate {shown}/demo.toml");
    Ok(())
}

/// A fleet that runs already, on the cheapest fitting on-demand offers: `(GPU models, GPUs of a node, GPUs in all)`.
fn running_nodes(offers: &[Offer]) -> String {
    let wanted: [(&[&str], u32, u32); 3] =
        [(&["H100-SXM", "H200"], 8, 40), (&["L40S", "A10G"], 2, 14), (&["L4", "T4"], 1, 4)];
    let mut text = String::from("\n# Nodes that run already.\n");
    for (models, size, gpus) in wanted {
        let fits =
            |o: &&Offer| models.contains(&o.gpu.name()) && o.gpus_per_node == size && o.key.market == Market::OnDemand;
        let mut able: Vec<&Offer> = offers.iter().filter(fits).collect();
        able.sort_by_key(|o| o.price_usd_micros_per_h);
        let mut missing = gpus.div_ceil(size);
        for offer in able {
            let count = missing.min(3);
            if count == 0 {
                break;
            }
            missing -= count;
            let key = &offer.key;
            text += &format!(
                "[[nodes]]\ncount = {count}\noffer = {{ provider = \"{}\", region = \"{}\", zone = \"{}\", instance_type = \"{}\", market = \"{}\" }}\n",
                key.provider, key.region, key.zone, key.instance_type, key.market
            );
        }
    }
    text
}
