//! `pilotlight demo`: generated offers, demand and a plan file.

use std::path::PathBuf;

use fleet::{Market, Offer};
use planner::instance::{self, Size};
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

const PLAN: &str = include_str!("demo_plan.toml");

/// Runs it.
///
/// # Errors
/// The folder cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.folder)?;
    let size = Size { offers: args.offers.clamp(40, 100_000), classes: 1, scenarios: 1, periods: 1 };
    let offers: Vec<_> = instance::catalogue(size, args.seed).offers.into_iter().map(|o| o.offer).collect();
    output::write_whole(&args.folder.join("offers.csv"), |out| Ok(own::write(&offers, out)?))?;
    let series = demo::series(args.seed);
    output::write_whole(&args.folder.join("demand.csv"), |out| {
        writeln!(out, "t_s,{}", series.classes.join(","))?;
        for i in 0..series.steps() {
            let row: Vec<String> = series.values.iter().map(|v| v[i].to_string()).collect();
            writeln!(out, "{},{}", i as u32 * series.step_s, row.join(","))?;
        }
        Ok(())
    })?;
    let plan = format!("{PLAN}{}", running_nodes(&offers));
    output::write_whole(&args.folder.join("plan.toml"), |out| Ok(out.write_all(plan.as_bytes())?))?;
    eprintln!("wrote offers.csv, demand.csv and plan.toml to {}", args.folder.display());
    eprintln!("next: pilotlight plan {}", args.folder.join("plan.toml").display());
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
