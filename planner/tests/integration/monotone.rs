//! More of a good thing never costs more, and dearer offers are never bought more.

use planner::decompose::Effort;
use planner::input::PlanInput;
use planner::model::Model;
use planner::planning;
use proptest::prelude::*;

use crate::tiny;

const EXACT: Effort = Effort { gap: 1e-10, time_limit_s: 60.0, rounds: 500, price: true };

fn cost(input: &PlanInput) -> f64 {
    let model = Model::build(input);
    planning::relaxed(input, &model, EXACT).expect("an optimum").objective_usd
}

/// Node-hours of the first offer in the optimum.
fn node_hours(input: &PlanInput) -> f64 {
    let model = Model::build(input);
    let (master, optimum) = planner::decompose::solve(input, &model, EXACT).expect("an optimum");
    let of_first = (0..model.sources.len()).filter(|i| model.sources[*i].offer == 0);
    let hours = |i: usize| -> f64 {
        model.hours.iter().zip(master.nodes(&optimum.solution, i)).map(|(hours, nodes)| hours * nodes).sum()
    };
    of_first.map(hours).sum()
}

fn at_most(low: f64, high: f64) -> bool {
    low <= high + 1e-6 * high.abs().max(1.0)
}

/// Penalties and relative caps follow prices and supply: with them, other prices are another problem.
fn without_penalties(seed: u64) -> PlanInput {
    let mut input = tiny::problem(seed);
    for class in &mut input.classes {
        class.gpus.iter_mut().for_each(|gpu| gpu.cap = None);
        class.borrows_usd_micros_per_gpu_h = None;
    }
    input.policy.survive = None;
    input.policy.spread.clear();
    input
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dearer_offer_never_makes_the_plan_cheaper(seed in 0_u64..1_000_000) {
        let input = without_penalties(seed);
        let mut dearer = input.clone();
        let price = &mut dearer.offers[0].offer.price_usd_micros_per_h;
        price.0 += price.0 / 4;
        prop_assert!(at_most(cost(&input), cost(&dearer)));
    }

    /// For any two optima at prices `c` and `c'`, `(c' − c)(x' − x) ≤ 0`: a dearer offer is never used more.
    #[test]
    fn a_dearer_offer_is_never_used_more(seed in 0_u64..1_000_000) {
        let mut input = without_penalties(seed);
        input.policy.budget_usd_micros_per_h = None;
        input.commitments.clear();
        let mut dearer = input.clone();
        let price = &mut dearer.offers[0].offer.price_usd_micros_per_h;
        price.0 += price.0 / 4;
        let (before, after) = (node_hours(&input), node_hours(&dearer));
        prop_assert!(after <= before + 1e-5 * (1.0 + before), "{before} node-hours, then {after}");
    }

    #[test]
    fn more_supply_quota_and_budget_never_cost_more(seed in 0_u64..1_000_000) {
        let input = without_penalties(seed);
        let mut more = input.clone();
        for offer in &mut more.offers {
            offer.launch_limit_nodes += 1.0;
        }
        for quota in &mut more.quotas {
            quota.limit += 1.0;
        }
        if let Some(budget) = &mut more.policy.budget_usd_micros_per_h {
            budget.0 += 1_000_000;
        }
        prop_assert!(at_most(cost(&more), cost(&input)));
    }

    #[test]
    fn a_dearer_miss_never_costs_less(seed in 0_u64..1_000_000) {
        let mut input = tiny::problem(seed);
        let low = cost(&input);
        for class in &mut input.classes {
            class.miss_cost_usd_micros.0 *= 2;
        }
        prop_assert!(at_most(low, cost(&input)));
    }

    #[test]
    fn the_bound_is_never_above_the_optimum(seed in 0_u64..1_000_000) {
        let input = tiny::problem(seed);
        let model = Model::build(&input);
        let optimum = planning::relaxed(&input, &model, EXACT).expect("an optimum");
        prop_assert!(at_most(optimum.bound_usd, optimum.objective_usd));
        prop_assert!(optimum.gap() < 1e-6, "gap {}", optimum.gap());
    }
}
