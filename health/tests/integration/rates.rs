//! Rates: little evidence of one's own leans on that of one's like, much does not.

use std::collections::BTreeMap;

use health::rates::{Counts, Place, Places, Rates, tell};
use proptest::prelude::*;

fn place(provider: &str, region: &str, instance_type: &str) -> Place {
    let gpu = if instance_type.starts_with('h') { "H100" } else { "A100" };
    Place { provider: provider.into(), region: region.into(), instance_type: instance_type.into(), gpu: gpu.into() }
}

fn counts(gpu_days: f64, faults: f64) -> Counts {
    Counts { gpu_hours: 24.0 * gpu_days, faults, ..Counts::default() }
}

fn rates(counts: &BTreeMap<Place, Counts>) -> BTreeMap<Place, Rates> {
    Places::of(counts).rates()
}

fn per_day(per_h: f64) -> f64 {
    24.0 * per_h
}

/// 100 nodes of eight GPUs for a week, alone in the world.
#[test]
fn alone_it_is_the_posterior_of_gamma_and_poisson() {
    let here = place("a", "r", "h8");
    // The Gamma posterior says 1.63e-4 and 5.71e-4; that the place may be bad moves it by little.
    for (faults, is) in [(0.0, 1.63e-4), (5.0, 5.71e-4)] {
        let all = BTreeMap::from([(here.clone(), counts(5600.0, faults))]);
        let rate = rates(&all)[&here].faults_per_gpu_h;
        assert!((per_day(rate.mean) / is - 1.0).abs() < 0.02, "{faults} faults: {:e}", per_day(rate.mean));
        assert!(rate.q05 < rate.q10 && rate.q10 < rate.mean && rate.mean < rate.q90 && rate.q90 < rate.q95);
    }
    let nobody = Places::of(&BTreeMap::new()).rates_at(&here);
    let (prior, boots) = (0.98 * 3e-4 + 0.02 * 3e-3, 0.98 * 0.995 + 0.02 * 0.5);
    assert!((per_day(nobody.faults_per_gpu_h.mean) / prior - 1.0).abs() < 1e-9, "the prior");
    assert!((nobody.boot_pass.mean - boots).abs() < 1e-9);
    assert_eq!((nobody.speed_p50, nobody.repair_p50_s), (1.0, 600.0));
}

#[test]
fn a_place_leans_on_its_like_the_nearer_the_more() {
    let here = place("a", "r", "h8");
    let seen_at = |other: Place, seen: Counts| {
        let all = BTreeMap::from([(other, seen)]);
        per_day(Places::of(&all).rates_at(&here).faults_per_gpu_h.mean)
    };
    // Three times as many as published: so are its like.
    let worse = || counts(50_000.0, 45.0);
    let same_type = seen_at(place("a", "elsewhere", "h8"), worse());
    let same_gpu = seen_at(place("b", "r", "h4"), worse());
    let other = seen_at(place("b", "r", "a8"), worse());
    assert!(same_type > 8e-4, "{same_type}");
    assert!(
        (same_gpu / same_type - 1.0).abs() < 0.03 && (other / same_gpu - 1.0).abs() < 1e-9,
        "with nothing in between it is all there is: {same_type} {same_gpu} {other}"
    );
    let mut all =
        BTreeMap::from([(place("b", "r", "a8"), worse()), (place("a", "elsewhere", "h8"), counts(50_000.0, 5.0))]);
    let near = per_day(Places::of(&all).rates_at(&here).faults_per_gpu_h.mean);
    assert!(near < 2e-4, "its own type in another region says more than another cloud's GPUs: {near}");
    all.insert(here.clone(), counts(20_000.0, 200.0));
    let own = per_day(rates(&all)[&here].faults_per_gpu_h.mean);
    assert!(own > 5e-3, "what it has seen itself says most: {own}");
}

#[test]
fn a_bad_place_is_known_within_hours_and_does_not_spoil_its_like() {
    let (bad, good) = (place("a", "bad", "h8"), place("a", "good", "h8"));
    // Ten nodes of eight GPUs for four hours; a node breaks each ten hours.
    let all = BTreeMap::from([(bad.clone(), counts(320.0 / 24.0, 4.0)), (good.clone(), counts(320.0 / 24.0, 0.0))]);
    let told = rates(&all);
    let (there, here) = (told[&bad].faults_per_gpu_h, told[&good].faults_per_gpu_h);
    assert!(there.mean > 100.0 * 3e-4 / 24.0, "a hundred times what is published: {there:?}");
    assert!(here.mean < 4.0 * 3e-4 / 24.0 && here.q90 < 1e-3 / 24.0 * 4.0, "{here:?}");
    // Where all are bad, a new one is suspected.
    let new = place("a", "new", "h8");
    let before = Places::of(&all).rates_at(&new).faults_per_gpu_h.mean;
    let mut all = all;
    for region in ["good", "third", "fourth", "fifth"] {
        all.insert(place("a", region, "h8"), counts(320.0 / 24.0, 4.0));
    }
    let after = Places::of(&all).rates_at(&new).faults_per_gpu_h.mean;
    assert!(after > 1.5 * before, "{before:e} {after:e}");
}

#[test]
fn boots_that_fail_count_more_at_home() {
    let here = place("a", "r", "h8");
    let failing = Counts { boots: 20.0, passed: 10.0, ..Counts::default() };
    let fine = Counts { boots: 500.0, passed: 499.0, ..Counts::default() };
    let all = BTreeMap::from([(here.clone(), failing), (place("a", "s", "h8"), fine)]);
    let told = rates(&all);
    let own = told[&here].boot_pass;
    assert!((0.45..0.55).contains(&own.mean) && own.q95 < 0.7, "half of its boots fail: {own:?}");
    assert!(told[&place("a", "s", "h8")].boot_pass.mean > 0.98, "one bad region does not spoil the others");
}

#[test]
fn what_is_old_counts_less() {
    let mut counted = counts(5600.0, 8.0);
    counted.age(1e9);
    assert_eq!(counted.faults, 8.0, "the first look sets the clock");
    counted.age(1e9 + 14.0 * 86_400.0);
    assert_eq!((counted.faults, counted.gpu_hours), (4.0, 2800.0 * 24.0));
    counted.age(1e9);
    assert_eq!(counted.faults, 4.0, "a clock that is set back changes nothing");
}

#[test]
fn the_planner_hears_of_what_has_changed_and_not_of_noise() {
    let here = place("a", "r", "h8");
    let now = |faults: f64| rates(&BTreeMap::from([(here.clone(), counts(5600.0, faults))]))[&here].clone();
    let first = tell(None, &now(2.0), 0.0);
    assert_eq!(tell(Some(&first), &now(3.0), 1e6), first, "one fault more is within what was told");
    assert_eq!(tell(Some(&first), &now(20.0), 60.0), first, "not more often than each quarter of an hour");
    assert_eq!(tell(Some(&first), &now(20.0), 901.0).rates, now(20.0));
}

#[test]
fn a_bad_beginning_is_forgotten_and_one_bad_like_does_not_spoil_the_others() {
    let here = place("a", "r", "h8");
    let boots = |passed: f64, failed: f64| Counts { boots: passed + failed, passed, ..Counts::default() };
    let now = |seen: Counts| rates(&BTreeMap::from([(here.clone(), seen)]))[&here].clone();
    let first = tell(None, &now(boots(0.0, 1.0)), 0.0);
    assert!(first.rates.brief().boot_pass < 0.5, "its first boot failed: {:?}", first.rates.brief());
    let later = tell(Some(&first), &now(boots(20.0, 1.0)), 901.0);
    assert!(later.rates.brief().boot_pass > 0.9, "twenty passed: {:?}", later.rates.brief());
    let fault = tell(None, &now(counts(100.0 / 24.0, 1.0)), 0.0);
    let quiet = tell(Some(&fault), &now(counts(4000.0, 1.0)), 901.0);
    assert!(quiet.rates.faults_per_gpu_h.mean < 0.5 * fault.rates.faults_per_gpu_h.mean);
    let bad = BTreeMap::from([(place("a", "bad", "h8"), boots(70.0, 30.0))]);
    let new = Places::of(&bad).brief_at(&here);
    assert!((0.85..0.95).contains(&new.boot_pass), "{new:?}");
}

proptest! {
    /// Whatever was counted, rates are rates, more faults mean a higher one, and more exposure a narrower one.
    #[test]
    fn rates_are_sane(
        gpu_hours in 0.0..1e7_f64, faults in 0.0..1e3_f64, boots in 0.0..1e3_f64, share in 0.0..=1.0_f64, out in 0.0..=1.0_f64
    ) {
        let here = place("a", "r", "h8");
        let own = Counts {
            gpu_hours, faults, boots, passed: boots * share, node_hours: gpu_hours / 8.0,
            out_node_hours: gpu_hours / 8.0 * out, ..Counts::default()
        };
        let with = |mine: Counts| {
            let all = BTreeMap::from([(here.clone(), mine), (place("a", "s", "h8"), own.clone())]);
            Places::of(&all).rates_at(&here)
        };
        let rate = with(own.clone());
        for (interval, most) in [(rate.faults_per_gpu_h, f64::MAX), (rate.boot_pass, 1.0), (rate.in_service, 1.0)] {
            prop_assert!(interval.mean.is_finite() && interval.mean > 0.0 && interval.mean <= most, "{interval:?}");
            prop_assert!(interval.q05 <= interval.q10 && interval.q10 <= interval.q90 && interval.q90 <= interval.q95, "{interval:?}");
        }
        let more = with(Counts { faults: faults + 1.0, ..own.clone() });
        prop_assert!(more.faults_per_gpu_h.mean > rate.faults_per_gpu_h.mean);
        let longer = with(Counts { gpu_hours: gpu_hours + 1e5, ..own.clone() });
        prop_assert!(longer.faults_per_gpu_h.mean < rate.faults_per_gpu_h.mean);
    }
}
