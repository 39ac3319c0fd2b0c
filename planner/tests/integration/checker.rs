//! Every plan passes the checker, the checker finds planted bugs, and bad input is named.

use planner::check::check;
use planner::model::Model;
use planner::plan::{Launch, Plan, Release};
use planner::planning::{Options, PlanError, plan};
use planner::report::{FallbackCause, Method};
use planner::{PlanInput, synthetic, validate};

use crate::tiny;

fn rules(input: &PlanInput, plan: &Plan) -> Vec<&'static str> {
    let model = Model::build(input);
    let mut rules: Vec<_> = check(input, &model, plan).into_iter().map(|v| v.rule).collect();
    rules.dedup();
    rules
}

fn small() -> (PlanInput, Plan) {
    let size = synthetic::Size { offers: 120, classes: 5, scenarios: 5, periods: 8 };
    let input = synthetic::catalogue(size, 7);
    let plan = plan(&input, Options::default()).expect("a plan");
    (input, plan)
}

#[test]
fn hundreds_of_plans_pass() {
    for seed in 0..300 {
        let input = tiny::problem(seed);
        let plan = plan(&input, Options::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(plan.report.certificate_gap < 1e-3, "seed {seed}: {}", plan.report.certificate_gap);
    }
}

#[test]
fn planted_bugs_are_found() {
    let (input, good) = small();
    assert!(rules(&input, &good).is_empty());
    let plant = |change: &dyn Fn(&mut Plan)| {
        let mut bad = good.clone();
        change(&mut bad);
        rules(&input, &bad)
    };
    assert!(plant(&|p| p.epoch += 1).contains(&"epoch"));
    assert!(plant(&|p| p.launches[0].nodes += 100).contains(&"launch-limit"));
    assert!(plant(&|p| p.launches[0].offer.zone = "nowhere".into()).contains(&"known-offer"));
    assert!(
        plant(&|p| p.releases.push(Release { offer: p.targets[0].offer.clone(), nodes: 999 })).contains(&"idle-only")
    );
    assert!(plant(&|p| p.targets[0].nodes[3] += 5.0).contains(&"flow"));
    assert!(plant(&|p| p.targets[0].launches[0] += 1.0).contains(&"whole"));
    assert!(plant(&|p| p.report.classes.iter_mut().for_each(|c| c.expected_misses.fill(0.0))).contains(&"promise"));
    let useless = Model::build(&input).refusals.keys().next().copied().expect("an offer that serves nothing");
    let useless = input.offers[useless].offer.key.clone();
    let nodes = 1;
    assert!(plant(&|p| p.launches.push(Launch { offer: useless.clone(), nodes })).contains(&"useful"));
}

#[test]
fn the_same_input_gives_the_same_plan() {
    let (input, first) = small();
    assert_eq!(plan(&input, Options::default()).expect("a plan"), first);
}

#[test]
fn a_plan_always_exists() {
    let mut input = tiny::problem(3);
    input.policy.budget_usd_micros_per_h = Some(fleet::UsdMicros(1));
    for class in &mut input.classes {
        class.hit_rate_target = 0.99;
        class.gpus[0].model = "MI300X".parse().expect("known");
        class.gpus.truncate(1);
    }
    for offer in &mut input.offers {
        offer.nodes.clear();
    }
    let plan = plan(&input, Options::default()).expect("a plan");
    assert!(plan.launches.is_empty());
    let unmet = |class: &str| plan.report.unmet.iter().any(|u| u.what.starts_with(class) && u.why.contains("no offer"));
    assert!(input.classes.iter().all(|k| unmet(&k.name)), "{:?}", plan.report.unmet);
}

/// When the solver gives nothing in time, the base-stock rule plans, says so, and passes the same checker.
#[test]
fn without_a_solver_the_base_stock_rule_plans() {
    let (mut launched, mut optimal) = (0, 0);
    for seed in 0..60 {
        let input = tiny::problem(seed);
        let model = Model::build(&input);
        let made = planner::base_stock::fallback(&input, &model, FallbackCause::Solver, "out of time".into());
        assert_eq!(planner::check::check(&input, &model, &made), [], "seed {seed}");
        assert!(matches!(made.report.method, Method::BaseStock { .. }), "{:?}", made.report.method);
        assert!(made.releases.is_empty(), "it never releases");
        launched += made.launches.len();
        optimal += plan(&input, Options::default()).expect("a plan").launches.len();
    }
    assert!(2 * launched > optimal, "{launched} launches, the optimum has {optimal}");
}

#[test]
fn bad_input_is_named() {
    let broken = |change: &dyn Fn(&mut PlanInput)| {
        let mut input = tiny::problem(5);
        change(&mut input);
        assert!(matches!(plan(&input, Options::default()), Err(PlanError::Input(_))));
        validate::problems(&input)[0].place.clone()
    };
    assert_eq!(broken(&|i| i.period_s.clear()), "period_s");
    assert_eq!(broken(&|i| i.classes.clear()), "classes");
    assert_eq!(broken(&|i| i.offers.clear()), "offers");
    assert!(broken(&|i| i.offers[0].fill = f64::NAN).ends_with(".fill"));
    assert!(broken(&|i| i.offers[0].launch_limit_nodes = -1.0).ends_with(".launch_limit_nodes"));
    assert!(broken(&|i| i.offers[0].offer.price_usd_micros_per_h.0 = 0).ends_with(".price_usd_micros_per_h"));
    assert!(broken(&|i| i.offers[0].launch_limit_nodes = f64::INFINITY).ends_with(".launch_limit_nodes"));
    assert_eq!(broken(&|i| i.scenarios[0].claims[0][0] = f64::NAN), "scenarios[0].claims[0][0]");
    assert_eq!(broken(&|i| i.scenarios[0].weight = 7.0), "scenarios");
    assert!(broken(&|i| i.policy.budget_usd_micros_per_h = Some(fleet::UsdMicros::ZERO)).contains("budget"));
    assert!(broken(&|i| i.classes[0].hit_rate_target = 1.01).ends_with(".hit_rate_target"));
}
