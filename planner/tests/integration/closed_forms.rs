//! The program must find the textbook answers where there are any.

use planner::base_stock::{newsvendor_penalty_usd, poisson_level};
use planner::input::{LeadTime, PlanInput, Policy, Scenario};
use planner::planning::{Options, plan};

use crate::tiny::{class, offer, usd};

fn one_pool(levels: &[f64], hit: f64, miss_usd: f64, periods: usize) -> PlanInput {
    let mut state = offer(0, 0, "H100", 1, 3.0, false);
    state.launch_limit_nodes = 10_000.0;
    state.launch_cost_usd_micros = usd(0.0);
    state.lead_time = LeadTime::fixed(60.0);
    let mut class = class(0, &["H100"], 1);
    class.hit_rate_target = hit;
    class.miss_cost_usd_micros = usd(miss_usd);
    // Nobody needs anything in the first period, since nothing can be there.
    let path = |level: &f64| {
        let row = |t: usize| vec![if t == 0 { 0.0 } else { *level }];
        let claims: Vec<Vec<f64>> = (0..periods).map(row).collect();
        Scenario { weight: 1.0 / levels.len() as f64, new_claims: claims.clone(), claims }
    };
    PlanInput {
        epoch: 1,
        period_s: vec![60; periods],
        offers: vec![state],
        classes: vec![class],
        miss_prices: vec![],
        scenarios: levels.iter().map(path).collect(),
        quotas: vec![],
        commitments: vec![],
        policy: Policy { churn: 0.0, ..Policy::default() },
    }
}

fn launched(input: &PlanInput) -> f64 {
    let plan = plan(input, Options::default()).expect("a plan");
    plan.launches.iter().map(|l| f64::from(l.nodes)).sum()
}

#[test]
fn newsvendor_quantile_is_recovered() {
    let levels: Vec<f64> = (1..=100).map(f64::from).collect();
    for share in [0.5, 0.8, 0.9, 0.95] {
        // Two periods: nodes launched now are held for the second one only.
        let hold_usd = 3.0 / 60.0;
        let penalty = newsvendor_penalty_usd(hold_usd, share) + hold_usd;
        // At m = c·α/(1−α) + c the critical ratio (m−c)/m is exactly α; a hair more decides the tie.
        let bought = launched(&one_pool(&levels, 0.0, penalty * 1.000_1, 2));
        assert!((bought - 100.0 * share).abs() <= 1.0, "share {share}: {bought}");
    }
}

/// Under Poisson demand the newsvendor's answer is the base-stock level.
#[test]
fn the_poisson_base_stock_level_is_recovered() {
    for (mean, share) in [(4.0_f64, 0.9), (10.0, 0.95), (25.0, 0.8)] {
        let hold_usd = 3.0 / 60.0;
        let penalty = newsvendor_penalty_usd(hold_usd, share) + hold_usd;
        let levels: Vec<f64> = (0..80).map(f64::from).collect();
        let mut input = one_pool(&levels, 0.0, penalty, 2);
        let mut weight = (-mean).exp();
        for (n, scenario) in input.scenarios.iter_mut().enumerate() {
            scenario.weight = weight.max(2e-9);
            weight *= mean / (n as f64 + 1.0);
        }
        let total: f64 = input.scenarios.iter().map(|s| s.weight).sum();
        input.scenarios.iter_mut().for_each(|s| s.weight /= total);
        let level = poisson_level(mean, share).expect("a level") as f64;
        assert_eq!(launched(&input), level, "mean {mean}, share {share}");
    }
}

#[test]
fn base_stock_covers_growth_over_the_lead_time() {
    // Lead time of 3 periods: only demand from then on can be served, and it is, at its quantile.
    let mut input = one_pool(&[4.0, 5.0, 6.0, 20.0], 0.95, 5.0, 6);
    input.offers[0].lead_time = LeadTime::fixed(180.0);
    let plan = plan(&input, Options::default()).expect("a plan");
    assert!(plan.launches.iter().map(|l| l.nodes).sum::<u32>() >= 19, "{:?}", plan.launches);
    assert_eq!(plan.report.classes[0].first_period, 3);
    assert!(plan.report.classes[0].expected_hit_rate >= 0.95 - 1e-9);
    assert!(plan.report.unmet.is_empty(), "{:?}", plan.report.unmet);
}

#[test]
fn whole_nodes_serve_many_small_claims_or_one_large() {
    let mut input = one_pool(&[8.0], 0.9, 5.0, 2);
    input.offers[0].offer.gpus_per_node = 8;
    assert_eq!(launched(&input), 1.0);
    input.classes[0].gpus_per_claim = 8;
    assert_eq!(launched(&input), 8.0);
    // Claims of 3 on nodes of 8: two a node.
    input.classes[0].gpus_per_claim = 3;
    assert_eq!(launched(&input), 4.0);
}
