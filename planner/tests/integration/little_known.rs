//! Pasts and wishes that tell too little: a plan all the same, and a sentence that says what was assumed.

use fleet::{Class, Offer};
use planner::assumptions::Assumed;
use planner::gather::Estimate;
use planner::input::{LeadTime, Policy};
use planner::plan::Plan;
use planner::rolling::{self, Moment, RollingMemory, Rules};
use planner::scenarios::History;

use crate::tiny::{class, offer, usd};

struct Case {
    past: Vec<f64>,
    filled: u32,
    target: f64,
    miss_usd: f64,
    lead_s: f64,
}

impl Case {
    fn of(past: Vec<f64>) -> Self {
        Self { past, filled: 0, target: 0.99, miss_usd: 5.0, lead_s: 600.0 }
    }

    fn plan(self) -> (Plan, Vec<Assumed>) {
        let mut class: Class = class(0, &["H100"], 1);
        (class.hit_rate_target, class.miss_cost_usd_micros) = (self.target, usd(self.miss_usd));
        let offers: Vec<Offer> = vec![offer(0, 0, "H100", 1, 2.0, false).offer];
        let estimates = [Estimate {
            launch_limit_nodes: 1000.0,
            fill: 1.0,
            lead_time: LeadTime { cdf: vec![(self.lead_s - 1.0, 0.0), (self.lead_s, 1.0)] },
            hazard_per_h: 0.0,
            min_hold_s: 60,
            usable_share: 1.0,
            faults_per_h: 0.0,
            restage_usd_micros: fleet::UsdMicros::ZERO,
        }];
        let rules = Rules {
            period_s: [vec![60; 6], vec![300; 6]].concat(),
            season_s: 86_400,
            paths: 50,
            weights: Policy::default(),
            mean_only: false,
        };
        let moment = Moment {
            borrowers: &[],
            now_s: 0.0,
            epoch: 1,
            offers: &offers,
            estimates: &estimates,
            classes: &[class],
            claim_mean_s: &[1800.0],
            nodes: &[],
            quotas: &[],
            commitments: &[],
            judged: &[fleet::book::Tally::default()],
            declared: &[],
            history: &History { step_s: 60, claims: vec![self.past], filled_steps: vec![self.filled] },
            known: None,
        };
        let mut memory = RollingMemory::default();
        let input = rolling::input(&rules, &mut memory, &moment);
        let plan = rolling::decide(&mut memory, &input, 0.0).expect("a plan all the same");
        assert!(!plan.report.method.fell_back());
        let said: Vec<String> = plan.report.assumed.iter().map(ToString::to_string).collect();
        assert!(said.iter().all(|text| text.len() > 20 && !text.contains("NaN") && !text.contains("inf")), "{said:?}");
        let assumed = plan.report.assumed.iter().map(|a| a.what).collect();
        (plan, assumed)
    }
}

fn launched(plan: &Plan) -> u32 {
    plan.launches.iter().map(|l| l.nodes).sum()
}

/// A week that turns about 8, each minute.
fn week() -> Vec<f64> {
    (0..7 * 1440).map(|i| 8.0 + f64::from(i / 37 % 3)).collect()
}

#[test]
fn pasts_that_tell_too_little() {
    for nothing in [vec![], vec![0.0], vec![4.0], vec![0.0; 3000]] {
        let now = nothing.last().copied().unwrap_or(0.0);
        let (plan, assumed) = Case::of(nothing).plan();
        assert_eq!(assumed, [Assumed::NoPast]);
        assert_eq!(f64::from(launched(&plan)), now, "what is there is served");
    }
    let (plan, assumed) = Case::of(vec![6.0; 120]).plan();
    assert!(matches!(assumed[..], [Assumed::ShortPast { hours }] if (hours - 2.0).abs() < 0.01), "{assumed:?}");
    assert_eq!(launched(&plan), 6);
    // A class that came two hours ago, on a server that is older.
    let mut late = vec![0.0; 4320];
    late.extend([6.0; 120]);
    let (_, assumed) = Case::of(late).plan();
    assert!(matches!(assumed[..], [Assumed::ShortPast { hours }] if (hours - 2.0).abs() < 0.01), "{assumed:?}");
    let mut burst = vec![0.0; 4320];
    burst[2000..2100].fill(30.0);
    let (plan, assumed) = Case::of(burst).plan();
    assert_eq!(assumed, [Assumed::OneBurst]);
    assert!(launched(&plan) <= 36, "no more than was ever seen");
    let mut grown = week();
    grown.push(100.0);
    let (plan, assumed) = Case::of(grown).plan();
    assert!(matches!(assumed[..], [Assumed::NewScale { times }] if (times - 10.0).abs() < 0.01), "{assumed:?}");
    assert!(launched(&plan) >= 50, "who waits is seen: {}", launched(&plan));
}

/// Next to no demand costs next to nothing: sums smaller than what the solver keeps to are no reason to go on for ever.
#[test]
fn demand_that_has_ended() {
    for (busy, quiet) in [(1400, 50), (1400, 100), (3000, 30), (6000, 250)] {
        let mut ended = vec![1.0; busy];
        ended.extend(vec![0.0; quiet]);
        let report = Case::of(ended).plan().0.report;
        let (usd, bound_usd) = (report.objective_usd_micros.usd(), report.bound_usd_micros.usd());
        assert!(usd < 1.0 && bound_usd <= usd, "{busy} and {quiet}: {usd} over {bound_usd}");
    }
}

#[test]
fn wishes_at_the_ends() {
    let (plan, assumed) = Case { filled: 90, ..Case::of(week()) }.plan();
    assert!(matches!(assumed[..], [Assumed::Gaps { hours }] if (hours - 1.5).abs() < 0.01), "{assumed:?}");
    assert!(launched(&plan) >= 8);
    let base = launched(&Case::of(week()).plan().0);
    let of = |target: f64, miss_usd: f64| Case { target, miss_usd, ..Case::of(week()) }.plan();
    let (plan, assumed) = of(0.0, 0.0);
    assert_eq!((assumed, launched(&plan)), (vec![Assumed::WorthNothing], 0));
    let (plan, assumed) = of(0.0, 5.0);
    assert_eq!(assumed, [Assumed::NoTarget]);
    assert!(launched(&plan) >= 8 && launched(&plan) <= base);
    for target in [0.999_99, 1.0] {
        let (plan, assumed) = of(target, 0.0);
        assert_eq!(assumed.is_empty(), target < 1.0, "{assumed:?}");
        assert!((9..=12).contains(&launched(&plan)), "{} of 8 to 10", launched(&plan));
    }
    let (plan, assumed) = Case { lead_s: 7200.0, ..Case::of(week()) }.plan();
    assert!(matches!(assumed[..], [Assumed::LateLaunches { lead_s }] if (lead_s - 7200.0).abs() < 1.0), "{assumed:?}");
    assert!(plan.report.unmet.iter().any(|u| u.what.starts_with("class-0") || u.what.contains("hit rate")));
}
