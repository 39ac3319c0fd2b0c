//! What health rates are worth to plans: one region is cheaper and its hosts are bad. `rates` plays the shipped planner over
//! two days, once hearing how boots and nodes have fared, once going by what is published.
#![allow(clippy::print_stdout, reason = "it is a report")]

use std::error::Error;

use fleet::book::ClassRule;
use fleet::rng::Rng;
use fleet::{AcceptedGpu, Class, Interconnect, Market, Offer, OfferKey, OnEmpty, UsdMicros};
use planner::input::{LeadTime, Policy};
use planner::miss_price::MissPrices;
use planner::rolling::Rules;
use planner::scenarios::History;
use providers::sim::{Dist, SimOffer, Steps};
use simulations::claims;
use simulations::engine::{Outcome, Setup, run};
use simulations::policies::Live;

const DAY_S: f64 = 86_400.0;

/// Four regions of three zones; the first is 7 % cheaper, and as bad as asked for.
fn setup(
    boot_failure: f64,
    hazard_per_h: f64,
    target: f64,
    learns_health: bool,
    seed: u64,
) -> Result<Setup, Box<dyn Error>> {
    let gpu = "H100-SXM".parse()?;
    let (mut offers, mut supply) = (Vec::new(), Vec::new());
    for region in 0..4 {
        for zone in 0..3 {
            let bad = region == 0;
            offers.push(Offer {
                key: OfferKey {
                    provider: "cloud".into(),
                    region: format!("region-{region}"),
                    zone: format!("zone-{zone}"),
                    instance_type: "h100x8".into(),
                    market: Market::OnDemand,
                },
                gpu,
                gpus_per_node: 8,
                interconnect: Interconnect::Nvlink,
                price_usd_micros_per_h: UsdMicros::from_usd(if bad { 18.6 } else { 20.0 })?,
                price_day: None,
                interruption_per_h: 0.0,
            });
            supply.push(SimOffer {
                provider: 0,
                capacity: Steps::constant(20.0),
                lead: Dist::LogNormal { median_s: 300.0, p99_s: 800.0 },
                boot_failure: if bad { boot_failure } else { 0.005 },
                refusal: 0.01,
                hazard_per_h: if bad { hazard_per_h } else { 8.0 * 3e-4 / 24.0 },
            });
        }
    }
    let class = Class {
        name: "chat".into(),
        gpus: vec![AcceptedGpu { model: gpu, cap: None }],
        gpus_per_claim: 4,
        multi_node: false,
        max_node_gpus: None,
        min_memory_gib: 0,
        min_interconnect: Interconnect::Pcie,
        regions: vec![],
        markets: vec![],
        hit_rate_target: target,
        miss_cost_usd_micros: UsdMicros(10_000_000),
        borrows_usd_micros_per_gpu_h: None,
    };
    let life = Dist::LogNormal { median_s: 1200.0, p99_s: 7200.0 };
    Ok(Setup {
        priors: vec![LeadTime { cdf: vec![(120.0, 0.0), (300.0, 0.5), (800.0, 1.0)] }; offers.len()],
        min_hold_s: 60,
        learns_health,
        notice_s: 0.0,
        rate_per_min: f64::INFINITY,
        quotas: vec![],
        classes: vec![ClassRule {
            class,
            wait_ms: 5000,
            on_empty: OnEmpty::Queue,
            lease_ms: 60_000,
            claim_mean_s: life.mean_s(),
        }],
        claims: claims::poisson(0.01, &life, 2.0 * DAY_S, 0, &mut Rng::new(seed)),
        disturbances: vec![],
        history: History { step_s: 60, claims: vec![vec![]], filled_steps: vec![] },
        start_fleet: true,
        measure_from_s: DAY_S / 2.0,
        end_s: 2.0 * DAY_S,
        plan_every_s: 120,
        plan_delay_s: 0.0,
        cold_start: vec![],
        staging: None,
        seed,
        offers,
        supply,
    })
}

fn play(setup: &Setup) -> Result<Outcome, Box<dyn Error>> {
    let rules = Rules {
        period_s: [vec![60; 6], vec![300; 6], vec![900; 4]].concat(),
        season_s: 86_400,
        paths: 100,
        weights: Policy::default(),
        mean_only: false,
    };
    Ok(run(setup, &mut Live::new(rules, MissPrices::default()))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("one region of four is 7 % cheaper; its hosts fail so many boots, and break so often\n");
    let head = [
        "boots failing",
        "faults/node-h",
        "plans hear",
        "target",
        "hit %",
        "cut claims",
        "bad boots",
        "nodes $",
        "all $",
    ];
    let wide = [13, 13, 10, 6, 8, 10, 9, 9, 9];
    println!("{}", head.iter().zip(wide).map(|(h, w)| format!("{h:>w$}")).collect::<Vec<_>>().join("  "));
    for (boot_failure, hazard_per_h) in [(0.005, 8.0 * 3e-4 / 24.0), (0.3, 8.0 * 3e-4 / 24.0), (0.005, 0.1), (0.3, 0.1)]
    {
        // The same target buys fewer hits where plans know less: the second row of those is to be compared in dollars.
        for (learns, target) in [(false, 0.99), (false, 0.998), (true, 0.99)] {
            let mut all = [0.0; 5];
            let seeds = [1, 2, 3, 4, 5, 6];
            for seed in seeds {
                let outcome = play(&setup(boot_failure, hazard_per_h, target, learns, seed)?)?;
                let money = &outcome.money;
                let nodes = money.total_usd() - money.misses_usd;
                // A claim that is cut is as bad as one that was missed.
                let cut = outcome.counts.interrupted as f64;
                let sums = [
                    outcome.hit_rate(),
                    cut,
                    outcome.counts.boot_failures as f64,
                    nodes,
                    money.total_usd() + 10.0 * cut,
                ];
                all.iter_mut().zip(sums).for_each(|(a, s)| *a += s / seeds.len() as f64);
            }
            let [hit, cut, boots, nodes, total] = all;
            let hears = if learns { "rates" } else { "nothing" };
            println!(
                "{:>13}  {:>13}  {hears:>10}  {target:>6}  {:>8.2}  {cut:>10.1}  {boots:>9.1}  {nodes:>9.0}  {total:>9.0}",
                format!("{:.1} %", 100.0 * boot_failure),
                format!("{hazard_per_h:.4}"),
                100.0 * hit,
            );
        }
    }
    Ok(())
}
