//! Benchmark: events a second of the engine without a planner, on a stream of short claims.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::time::Instant;

use fleet::book::ClassRule;
use fleet::rng::Rng;
use planner::scenarios::History;
use planner::synthetic::{Size, catalogue};
use providers::sim::{Dist, SimOffer};
use simulations::claims;
use simulations::engine::{Setup, run};
use simulations::policies::FixedNodes;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let input = catalogue(Size { offers: 200, classes: 4, scenarios: 1, periods: 1 }, 1);
    let mut offers: Vec<fleet::Offer> = input.offers.into_iter().map(|o| o.offer).collect();
    let mut class = input.classes[0].clone();
    (class.gpus_per_claim, class.multi_node, class.max_node_gpus) = (1, false, None);
    offers.sort_by_key(|o| fleet::admission::admits_node(o, &class).is_err());
    let supply = SimOffer::ideal();
    let life = Dist::LogNormal { median_s: 60.0, p99_s: 600.0 };
    let setup = Setup {
        supply: vec![supply; offers.len()],
        priors: vec![planner::input::LeadTime::fixed(60.0); offers.len()],
        min_hold_s: 60,
        learns_health: true,
        notice_s: 0.0,
        rate_per_min: f64::INFINITY,
        quotas: vec![],
        classes: vec![ClassRule {
            class,
            wait_ms: 30000,
            on_empty: fleet::OnEmpty::LaunchCold,
            lease_ms: 60_000,
            claim_mean_s: 90.0,
        }],
        claims: claims::poisson(20.0, &life, 86_400.0, 0, &mut Rng::new(1)),
        disturbances: vec![],
        history: History { step_s: 60, claims: vec![vec![]], filled_steps: vec![] },
        start_fleet: false,
        measure_from_s: 600.0,
        end_s: 86_400.0,
        plan_every_s: 60,
        plan_delay_s: 0.0,
        cold_start: vec![],
        staging: None,
        seed: 1,
        offers,
    };
    let mut rates = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let outcome = run(&setup, &mut FixedNodes { nodes: 2500 })?;
        rates.push(outcome.counts.events as f64 / start.elapsed().as_secs_f64());
        println!("{} events, {:.0} a second", outcome.counts.events, rates[rates.len() - 1]);
    }
    rates.sort_by(f64::total_cmp);
    println!("median {:.2} million events a second", rates[2] / 1e6);
    Ok(())
}
