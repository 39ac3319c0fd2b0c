//! What holds for claims and nodes in the server holds in a simulation: both are the book's.

use fleet::{AcceptedGpu, Market, OfferKey, OnEmpty, PriceCap, UsdMicros};
use planner::input::LeadTime;
use planner::miss_price::MissPrices;
use planner::rolling::Rules;
use providers::sim::{Dist, SimOffer};
use simulations::engine::{ClaimSpec, Disturbance, Outcome, Setup, run};
use simulations::policies::{Decision, Family, FixedNodes, LaunchOrder, Live, Policy, Rule, Seen, Simple, TrueFuture};

use crate::analytic::plain;

const HOUR_MS: u64 = 3_600_000;

/// Launches so many nodes of each offer at the start, and nothing after.
struct Once(Vec<u32>);

impl Policy for Once {
    fn decide(&mut self, _: &Seen) -> Result<Decision, String> {
        let wanted = std::mem::take(&mut self.0).into_iter().enumerate();
        let launches = wanted.map(|(offer, nodes)| LaunchOrder { offer, nodes, label: None }).collect();
        Ok(Decision { launches, ..Decision::default() })
    }
}

fn claims(count: usize, at_ms: u64, end_ms: u64) -> Vec<ClaimSpec> {
    vec![ClaimSpec { at_ms, end_ms, class: 0 }; count]
}

/// A second offer at three times the price, above the class's cap of twice the first.
fn with_a_dear_offer(on_empty: OnEmpty) -> Setup {
    let mut setup = plain(claims(3, 60_000, HOUR_MS), 7200.0, on_empty);
    let mut dear = setup.offers[0].clone();
    dear.key.zone = "dear".into();
    dear.price_usd_micros_per_h = UsdMicros(3 * dear.price_usd_micros_per_h.0);
    setup.offers.push(dear);
    setup.supply.push(SimOffer::ideal());
    setup.priors.push(LeadTime::fixed(60.0));
    setup.classes[0].class.gpus[0].cap = Some(PriceCap::Premium(1.0));
    setup.measure_from_s = 0.0;
    setup
}

fn played(setup: &Setup, policy: &mut dyn Policy) -> Outcome {
    run(setup, policy).expect("a run")
}

#[test]
fn claims_wait_below_their_price_cap_and_substitutes_go_above() {
    for (on_empty, hits) in [(OnEmpty::Queue, 1), (OnEmpty::Fail, 1), (OnEmpty::Substitute, 3)] {
        let outcome = played(&with_a_dear_offer(on_empty), &mut Once(vec![1, 4]));
        let counts = &outcome.counts;
        assert_eq!((counts.hits, counts.hits + counts.misses), (hits, 3), "{on_empty:?}");
    }
    // Who buys what no claim may use buys nothing.
    let mut setup = with_a_dear_offer(OnEmpty::Queue);
    setup.supply[0].capacity = providers::sim::Steps::constant(1.0);
    (setup.plan_every_s, setup.classes[0].wait_ms) = (60, 600_000);
    let outcome = played(&setup, &mut Simple::new(Rule::new(Family::Percentage, 1.0)));
    assert_eq!((outcome.counts.launches, outcome.counts.hits), (1, 1));
}

#[test]
fn a_claim_over_two_nodes_has_both_or_none() {
    let mut setup = plain(claims(2, 600_000, HOUR_MS), 7200.0, OnEmpty::Queue);
    setup.offers[0].gpus_per_node = 8;
    (setup.classes[0].class.gpus_per_claim, setup.classes[0].class.multi_node) = (16, true);
    setup.measure_from_s = 0.0;
    let outcome = played(&setup, &mut FixedNodes { nodes: 3 });
    assert_eq!((outcome.counts.hits, outcome.counts.misses), (1, 1), "three nodes hold one claim of two");
    assert!((outcome.claimed_gpu_s - 16.0 * 3000.0).abs() < 1.0, "{}", outcome.claimed_gpu_s);
    setup.start_fleet = true;
    setup.claims = claims(2, 0, HOUR_MS);
    let outcome = played(&setup, &mut FixedNodes { nodes: 0 });
    assert_eq!((outcome.counts.launches, outcome.counts.hits), (4, 2));
    setup.start_fleet = false;
    (setup.plan_every_s, setup.classes[0].wait_ms) = (60, 600_000);
    let outcome = played(&setup, &mut Simple::new(Rule::new(Family::None, 0.0)));
    assert_eq!((outcome.counts.launches, outcome.counts.hits), (4, 2), "simple rules buy whole claims");
}

#[test]
fn leases_outlast_a_day_and_no_claim_waits_for_ever() {
    let mut setup = plain(claims(1, 0, 70 * HOUR_MS), 72.0 * 3600.0, OnEmpty::Queue);
    setup.measure_from_s = 0.0;
    let outcome = played(&setup, &mut Once(vec![1]));
    assert!((outcome.claimed_gpu_s - 70.0 * 3600.0).abs() < 1.0, "{}", outcome.claimed_gpu_s);
    // A cold launch is waited for as long as the longest wait: an hour.
    let mut setup = plain(claims(1, 0, 10 * HOUR_MS), 12.0 * 3600.0, OnEmpty::LaunchCold);
    (setup.supply[0].lead, setup.measure_from_s) = (Dist::Fixed(1500.0), 0.0);
    let mut late = Late(7200.0);
    assert_eq!(played(&setup, &mut late).waits.count(), 0);
    late = Late(1800.0);
    setup.plan_every_s = 60;
    assert_eq!(played(&setup, &mut late).waits.count(), 1);
}

/// One node, so long after the start.
struct Late(f64);

impl Policy for Late {
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String> {
        let now = seen.inputs.now_s >= self.0 && seen.nodes.is_empty();
        let launches = if now { vec![LaunchOrder { offer: 0, nodes: 1, label: None }] } else { Vec::new() };
        Ok(Decision { launches, ..Decision::default() })
    }
}

/// Faults that come together are not mended by ending the fleet: a tenth of it goes in an hour, the rest waits and is paid.
#[test]
fn faults_that_come_together_are_held() {
    let mut setup = plain(vec![], 4.0 * 3600.0, OnEmpty::Queue);
    (setup.measure_from_s, setup.plan_every_s) = (0.0, 3600);
    let faults = |count: u32| (0..count).map(|i| (600.0 + f64::from(i), Disturbance::Fault(i))).collect::<Vec<_>>();
    setup.disturbances = faults(1);
    let alone = played(&setup, &mut Once(vec![40]));
    assert!((alone.counts.faults, alone.money.out_usd < 0.05) == (1, true), "ended at once: {:?}", alone.money);
    setup.disturbances = faults(20);
    let together = played(&setup, &mut Once(vec![40]));
    assert_eq!(together.counts.faults, 20);
    // $3.60 an hour each.
    assert!(together.money.out_usd > 20.0 * 3.6, "{:?}", together.money);
}

/// A boot that takes longer than nodes may take to boot is given up.
#[test]
fn a_boot_without_end_is_given_up() {
    let mut setup = plain(vec![], 4.0 * 3600.0, OnEmpty::Queue);
    (setup.supply[0].lead, setup.measure_from_s) = (Dist::Fixed(2.0 * 3600.0), 0.0);
    let outcome = played(&setup, &mut Once(vec![1]));
    assert!((outcome.paid_gpu_s - 1800.0).abs() < 60.0, "{}", outcome.paid_gpu_s);
    assert!(outcome.samples.iter().all(|s| s.idle_gpus == 0));
}

/// Spot nodes that are to be taken back serve on until then, and idle ones go at once.
#[test]
fn a_notice_drains() {
    let mut setup = plain(claims(1, 60_000, 10 * HOUR_MS), 4.0 * 3600.0, OnEmpty::Queue);
    setup.offers[0].key = OfferKey { market: Market::Spot, ..setup.offers[0].key.clone() };
    setup.classes[0].class.gpus = vec![AcceptedGpu { model: setup.offers[0].gpu, cap: None }];
    (setup.measure_from_s, setup.notice_s) = (0.0, 120.0);
    setup.supply[0].capacity = providers::sim::Steps(vec![(0.0, 2.0), (3600.0, 0.0)]);
    setup.disturbances = vec![(3600.0, Disturbance::Reclaim(0))];
    let outcome = played(&setup, &mut Once(vec![2]));
    assert!((outcome.claimed_gpu_s - (3600.0 + 120.0 - 60.0)).abs() < 1.0, "{}", outcome.claimed_gpu_s);
    assert!((outcome.paid_gpu_s - (3720.0 + 3600.0)).abs() < 16.0, "{}", outcome.paid_gpu_s);
    // The one that was claimed, and its client that asked again and found nothing.
    assert_eq!((outcome.counts.reclaims, outcome.counts.interrupted, outcome.counts.misses), (1, 1, 1));
}

/// A jump that nothing announces: who foresees has nodes for it, who forecasts has not.
#[test]
fn foresight_has_room_for_what_no_forecast_can_see() {
    let mut stream = claims(2, 0, 6 * HOUR_MS);
    stream.extend(claims(8, 3 * HOUR_MS, 6 * HOUR_MS));
    let mut setup = plain(stream, 6.0 * 3600.0, OnEmpty::Queue);
    setup.history.claims = vec![vec![2.0; 3 * 1440]];
    (setup.plan_every_s, setup.measure_from_s) = (60, 3600.0);
    let rules = Rules {
        period_s: [vec![60; 6], vec![300; 6]].concat(),
        season_s: 86_400,
        paths: 50,
        weights: planner::input::Policy::default(),
        mean_only: false,
    };
    let forecast = played(&setup, &mut Live::new(rules.clone(), MissPrices::default()));
    let mut knowing = Live::new(rules, MissPrices::default()).foreseeing(TrueFuture::of(&setup));
    let foresight = played(&setup, &mut knowing);
    // Some of those who wait are served by launches of the moment that they came.
    let (hits, misses) = (forecast.counts.hits, forecast.counts.misses);
    assert!(hits + misses == 8 && misses >= 3, "nobody can see it: {misses} of 8 missed");
    assert_eq!((foresight.counts.hits, foresight.counts.misses), (8, 0));
    assert_eq!((forecast.counts.fallbacks, foresight.counts.fallbacks), (0, 0));
    // Eight nodes more for three hours, and a few minutes before.
    assert!(foresight.money.idle_usd < 8.0 * 3.6 * 0.25, "{:?}", foresight.money);
}

/// Borrowers pay for what would be idle, and cost nobody a hit: they are called back in time.
#[test]
fn lending_pays_and_costs_no_hits() {
    let hour = 3_600_000;
    let every = |n: u64| ClaimSpec { at_ms: n * 600_000, end_ms: n * 600_000 + 300_000, class: 0 };
    let mut setup = plain((0..12).flat_map(|n| [every(n), every(n), every(n)]).collect(), 7200.0, OnEmpty::Queue);
    setup.classes[0].wait_ms = 30_000;
    let alone = played(&setup, &mut FixedNodes { nodes: 4 });
    let mut batch = setup.classes[0].clone();
    batch.class.name = "a-batch".into();
    batch.class.borrows_usd_micros_per_gpu_h = Some(fleet::UsdMicros(1_800_000));
    batch.class.hit_rate_target = 0.0;
    setup.classes.push(batch);
    setup.history.claims.push(vec![]);
    let work = ClaimSpec { at_ms: 0, end_ms: 3 * hour, class: 1 };
    setup.claims.splice(0..0, [work; 4]);
    let lending = played(&setup, &mut FixedNodes { nodes: 4 });
    assert_eq!((lending.classes[0].hits, lending.classes[0].misses), (alone.classes[0].hits, 0));
    assert!(lending.counts.called_back >= 20, "{:?}", lending.counts);
    // Four GPUs from 720 s to 7,200 s, less 180 s and ten times 300 s of three of them; each of the eleven times they come
    // back up to ten seconds late.
    let idle_gpu_s = 4.0 * 6480.0 - 3.0 * (180.0 + 10.0 * 300.0);
    let usd = |gpu_s: f64| 1.8 * gpu_s / 3600.0;
    assert!(lending.money.lent_usd > usd(idle_gpu_s), "{:?}", lending.money);
    assert!(lending.money.lent_usd <= usd(idle_gpu_s + 3.0 * 11.0 * 10.0), "{:?}", lending.money);
    assert!((lending.money.total_usd() - alone.money.total_usd() + lending.money.lent_usd).abs() < 0.3);
}
