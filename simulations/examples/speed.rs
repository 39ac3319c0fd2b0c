//! Benchmark: how fast the engine is without a planner, and a simulated day with a plan each minute.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::path::Path;
use std::time::Instant;

use planner::miss_price::MissPrices;
use simulations::engine::run;
use simulations::policies::{Family, Live, Rule, Simple};
use simulations::scenario::{self, Part};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a scenario file")?;
    let (spec, _) = scenario::read(Path::new(&path))?;
    let data = std::env::var_os("PILOTLIGHT_DATA").map(std::path::PathBuf::from);
    let folder = Path::new(&path).parent().unwrap_or(Path::new("."));
    let prepared = match scenario::prepare(&spec, folder, data.as_deref()) {
        Err(error @ scenario::ScenarioError::NoData(_)) => {
            println!("{error}");
            return Ok(());
        }
        prepared => prepared?,
    };
    let setup = prepared.setup(Part::Test, spec.seeds[0])?;
    println!("{} offers, {} classes, {} claims", setup.offers.len(), setup.classes.len(), setup.claims.len());
    let start = Instant::now();
    let outcome = run(&setup, &mut Simple::new(Rule::new(Family::Percentage, 0.5)))?;
    let seconds = start.elapsed().as_secs_f64();
    println!("percentage: {} events in {seconds:.3} s", outcome.counts.events);
    let start = Instant::now();
    let outcome = run(&setup, &mut Live::new(prepared.live_rules(false), MissPrices::default()))?;
    let seconds = start.elapsed().as_secs_f64();
    let days = outcome.measured_s / 86_400.0;
    let decisions = outcome.counts.decisions as f64;
    println!(
        "planner: {days:.2} days, {decisions} plans in {seconds:.1} s: {:.1} ms a plan; hit rate {:.4}, cost {:.0}",
        1000.0 * seconds / decisions,
        outcome.hit_rate(),
        outcome.money.total_usd()
    );
    println!("{:?}", outcome.money);
    println!("{:?}", outcome.counts);
    Ok(())
}
