//! Weekly diagnostics over simulated time.

use simulations::weekly::{Outage, Scenario, read_trace, run, synthetic, total};

fn small(seed: u64) -> Scenario {
    Scenario { pools: vec![120, 40], days: 45.0, seed, ..Scenario::default() }
}

/// Nothing is lent that claims may want, everything is tested, and the same seed gives the same year.
#[test]
fn the_reserve_stays_and_everything_is_tested() {
    let servers = synthetic(100, 45.0, 7);
    for seed in [1, 2] {
        let all = total(&run(&small(seed), &servers));
        assert!(all.begun > 500 && all.claims > 10_000, "seed {seed}: {} tests, {} claims", all.begun, all.claims);
        assert_eq!(all.begun_under_reserve, 0, "seed {seed}");
        assert!(all.under_reserve_s < 1e-6, "seed {seed}: {} s", all.under_reserve_s);
        assert!(all.tested_s / all.service_s > 0.98, "seed {seed}: {}", all.tested_s / all.service_s);
        assert!(seed != 1 || all == total(&run(&small(seed), &servers)), "the same seed gives the same");
        assert!(all.yield_p99_s().is_none_or(|s| s < 45.0), "seed {seed}");
    }
}

#[test]
fn fault_traces_read_and_overlaps_are_one_outage() {
    let event = |id: &str, at: f64, kind: &str| {
        format!("{{\"node_id\":\"{id}\",\"event_time\":{at},\"event_type\":\"fault_{kind}\"}}")
    };
    let text = [
        event("a", 1.0, "start"),
        event("a", 1.5, "start"),
        event("a", 2.0, "end"),
        event("a", 3.0, "end"),
        event("b", 4.0, "start"),
    ];
    let servers = read_trace(&format!("[{}]", text.join(",")), 5).expect("it reads");
    assert_eq!(servers.len(), 5, "those without a fault count too");
    assert_eq!(servers[0], [Outage { from_s: 86_400.0, until_s: 259_200.0 }]);
    assert_eq!(servers[1], [Outage { from_s: 345_600.0, until_s: 345_600.0 }]);
    assert!(read_trace("[]", 400).is_err() && read_trace("{}", 400).is_err());
}
