//! What a plan does now, in small situations where anyone can say what is right.

use fleet::Class;
use planner::input::{LeadTime, NodeGroup, PlanInput, Policy, Quota, Scenario};
use planner::plan::Plan;
use planner::planning::{Options, plan};

use crate::tiny::{class, offer, usd};

/// One class of one-GPU claims at a constant level, on one offer of $2 with ten minutes of lead time; the usual ladder
/// of periods.
fn situation(level: f64) -> PlanInput {
    let mut state = offer(0, 0, "H100", 1, 2.0, false);
    state.launch_limit_nodes = 100.0;
    state.fill = 1.0;
    state.hazard_per_h = 0.0;
    state.lead_time = LeadTime { cdf: vec![(599.0, 0.0), (600.0, 1.0)] };
    let mut class = class(0, &["H100"], 1);
    class.hit_rate_target = 0.99;
    class.miss_cost_usd_micros = usd(5.0);
    let period_s = [vec![60; 6], vec![300; 6], vec![900; 4]].concat();
    let claims = vec![vec![level]; period_s.len()];
    PlanInput {
        epoch: 1,
        offers: vec![state],
        miss_prices: vec![],
        classes: vec![class],
        scenarios: vec![Scenario { weight: 1.0, new_claims: claims.clone(), claims }],
        period_s,
        quotas: vec![],
        commitments: vec![],
        policy: Policy::default(),
    }
}

fn made(input: &PlanInput) -> (Plan, u32, u32) {
    let plan = plan(input, Options::default()).expect("a plan");
    let (launched, released) =
        (plan.launches.iter().map(|l| l.nodes).sum(), plan.releases.iter().map(|r| r.nodes).sum());
    (plan, launched, released)
}

/// A launch a minute later would be there in the same period: it must not be put off, plan after plan.
#[test]
fn what_is_needed_is_launched_now() {
    let (_, launched, _) = made(&situation(8.0));
    assert_eq!(launched, 8);
}

/// A miss has its price before launches can change anything, too.
#[test]
fn nodes_in_use_are_not_released_for_cheaper_ones_to_come() {
    let mut input = situation(8.0);
    let mut dear = offer(1, 1, "H100", 1, 8.0, false);
    dear.launch_limit_nodes = 0.0;
    dear.nodes = vec![NodeGroup { nodes: 8, claims: vec![], kept_nodes: vec![] }];
    input.offers.push(dear);
    let (plan, launched, released) = made(&input);
    assert_eq!((launched, released), (8, 0), "{:?}", plan.report.unmet);
    input.offers[0].launch_limit_nodes = 0.0;
    assert_eq!(made(&input).2, 0);
}

/// A cloud counts what it was asked for, not what is expected to come of it.
#[test]
fn open_launches_count_whole_against_quota_and_budget() {
    let mut input = situation(30.0);
    input.offers[0].fill = 0.5;
    input.quotas = vec![Quota { name: "q".into(), members: vec![(0, 1.0)], limit: 8.0 }];
    assert_eq!(made(&input).1, 8);
    input.quotas.clear();
    input.policy.budget_usd_micros_per_h = Some(usd(16.0));
    assert_eq!(made(&input).1, 8);
    // Five are on their way since a minute.
    input.offers[0].arriving_nodes = vec![0.0, 0.0, 0.0, 5.0];
    assert_eq!(made(&input).1, 3);
}

#[test]
fn lead_times_may_start_at_zero() {
    let lead = LeadTime { cdf: vec![(0.0, 0.0), (600.0, 1.0)] };
    assert!((lead.share_by(300.0) - 0.5).abs() < 1e-9 && (lead.mean_s() - 300.0).abs() < 1e-9);
}

/// A premium over a price that nobody knows is no permission.
#[test]
fn a_substitute_without_a_yardstick_is_refused() {
    let mut input = situation(4.0);
    input.classes[0] = class(0, &["A100-80GB", "H100"], 1);
    input.classes[0].gpus[1].cap = Some(fleet::PriceCap::Premium(0.2));
    let (plan, launched, _) = made(&input);
    assert_eq!(launched, 0);
    assert!(!plan.report.unmet.is_empty());
}

/// A quota that shrank ends no nodes; it only lets nothing be launched beside them.
#[test]
fn nodes_above_a_quota_stay() {
    let mut input = situation(8.0);
    input.offers[0].nodes = vec![NodeGroup { nodes: 6, claims: vec![], kept_nodes: vec![] }];
    input.quotas = vec![Quota { name: "q".into(), members: vec![(0, 1.0)], limit: 4.0 }];
    let (plan, launched, released) = made(&input);
    assert_eq!((launched, released), (0, 0));
    assert!(
        plan.report.unmet.iter().any(|u| u.what == "quota q" && u.by.starts_with("2.00")),
        "{:?}",
        plan.report.unmet
    );
}

/// Half of the launches come early, the rest late: twice as many launches would serve all early, and stand idle.
#[test]
fn nothing_is_launched_only_because_others_are_late() {
    let mut input = situation(8.0);
    input.offers[0].lead_time = LeadTime { cdf: vec![(240.0, 0.0), (300.0, 0.6), (1500.0, 1.0)] };
    // What a boot of such a lead time costs, and a miss that is not worth one.
    input.offers[0].launch_cost_usd_micros = usd(0.33);
    input.classes[0].miss_cost_usd_micros = usd(0.3);
    let (_, launched, _) = made(&input);
    assert!((8..=9).contains(&launched), "{launched}");
}

/// An offer of which half the work is had must be half as dear; what is paid stays what is paid.
#[test]
fn hosts_that_do_less_are_weighed_as_dearer() {
    let launched = |usable_share: f64, fault_cost: f64| {
        let mut input = situation(8.0);
        let mut cheap = offer(1, 1, "H100", 1, 1.5, false);
        cheap.launch_limit_nodes = 100.0;
        (cheap.fill, cheap.hazard_per_h) = (1.0, 0.0);
        cheap.lead_time = input.offers[0].lead_time.clone();
        cheap.usable_share = usable_share;
        cheap.fault_cost_usd_micros_per_h = usd(fault_cost);
        input.offers.push(cheap);
        let plan = made(&input).0;
        let of = |zone: usize| {
            plan.launches.iter().filter(|l| l.offer == input.offers[zone].offer.key).map(|l| l.nodes).sum()
        };
        let counts: (u32, u32) = (of(0), of(1));
        (counts, plan.report.cost.nodes_usd_micros.usd())
    };
    let (whole, paid) = launched(1.0, 0.0);
    assert_eq!(whole, (0, 8), "the cheaper one");
    assert_eq!(launched(0.8, 0.0).0, (0, 8), "at four fifths it is still cheaper");
    assert_eq!(launched(0.8, 0.0).1, paid, "the report is of money");
    assert_eq!(launched(0.7, 0.0).0, (8, 0), "at 70 % it is dearer: 1.5 / 0.7 > 2");
    assert_eq!(launched(1.0, 0.6).0, (8, 0), "and so are faults that cut claims");
}

/// Idle nodes beside claimed ones, on hosts that are lost now and then: whole nodes are kept for claims, and the program
/// must not ask for a hair more than can be left of them.
#[test]
fn claimed_nodes_that_may_be_lost_do_not_make_the_program_impossible() {
    let mut input = situation(8.0);
    input.offers[0].offer.gpus_per_node = 8;
    input.offers[0].hazard_per_h = 0.05;
    let kept = |nodes: f64| (0..input.period_s.len()).map(|t| nodes * (1.0 - 1e-9 * t as f64)).collect();
    input.offers[0].nodes = vec![
        NodeGroup { nodes: 4, claims: vec![], kept_nodes: vec![] },
        NodeGroup { nodes: 3, claims: vec![(0, 1)], kept_nodes: kept(3.0) },
        NodeGroup { nodes: 2, claims: vec![(0, 2)], kept_nodes: kept(2.0) },
    ];
    let (plan, launched, released) = made(&input);
    assert!(matches!(plan.report.method, planner::report::Method::Optimum { .. }), "{:?}", plan.report.method);
    assert_eq!((launched, released), (0, 0), "spare nodes stay for a boot's worth of time");
    assert_eq!(plan.spare.iter().map(|s| s.since_s.len()).sum::<usize>(), 4, "what claimed nodes have left is enough");
}

/// What borrowers pay keeps a node that is needed again soon; nothing is bought for them, whatever they pay.
#[test]
fn lending_keeps_nodes_and_buys_none() {
    let borrower = |usd_per_gpu_h: f64| Class {
        borrows_usd_micros_per_gpu_h: Some(usd(usd_per_gpu_h)),
        hit_rate_target: 0.0,
        miss_cost_usd_micros: usd(0.0),
        ..class(1, &["H100"], 1)
    };
    let with_borrower = |mut input: PlanInput, claims: f64, usd_per_gpu_h: f64| {
        input.classes.push(borrower(usd_per_gpu_h));
        for path in &mut input.scenarios {
            path.claims.iter_mut().for_each(|row| row.push(claims));
            path.new_claims.iter_mut().for_each(|row| row.push(0.0));
        }
        input
    };
    // Two claims now, six again half an hour from now; a boot, with the price of churn, costs a little less than half an hour
    // of a node.
    let mut input = situation(2.0);
    input.policy.hold = 0.0;
    input.offers[0].nodes = vec![NodeGroup { nodes: 6, claims: vec![], kept_nodes: vec![] }];
    input.offers[0].launch_cost_usd_micros = usd(0.6);
    let later: Vec<usize> = (0..input.period_s.len()).filter(|t| *t >= 11).collect();
    for path in &mut input.scenarios {
        later.iter().for_each(|t| path.claims[*t][0] = 6.0);
    }
    assert_eq!(made(&input).2, 4, "a boot is cheaper than waiting");
    let (plan, _, released) = made(&with_borrower(input.clone(), 4.0, 1.5));
    assert_eq!(released, 0, "four would be lent for half an hour");
    assert!(plan.report.classes[1].lent_gpus.is_some_and(|gpus| gpus > 1.0), "{:?}", plan.report.classes[1]);
    assert!(plan.report.cost.lent_usd_micros > usd(1.0) && plan.report.unmet.is_empty());
    assert_eq!(made(&with_borrower(input, 2.0, 1.5)).2, 2, "two would be lent");
    assert_eq!(made(&with_borrower(situation(0.0), 5.0, 100.0)).1, 0);
}
