//! Copies on simulated hosts come exactly when a host that fetches one after the other has them.

use fleet::{OnEmpty, Snapshot, StagingRoom, UsdMicros};
use simulations::engine::{ClaimSpec, Outcome, Setup, Stager, Staging, run};
use simulations::policies::FixedNodes;

use crate::analytic::plain;

/// One node, a copy of 100 GB at 1 GB/s, and a claim of a minute at each of these seconds.
fn played(stager: Stager, memory_bytes: u64, at_s: &[u64]) -> Outcome {
    let claim = |at: &u64| ClaimSpec { at_ms: at * 1000, end_ms: (at + 60) * 1000, class: 0 };
    let snapshot = Snapshot {
        name: "s".into(),
        class: "k".into(),
        store: "x".into(),
        object: "0".repeat(64),
        bytes: 100_000_000_000,
        gpu: None,
        cold_s: 300.0,
        restore_s: 2.0,
        share: 1.0,
        wait_cost_usd_micros_per_s: UsdMicros::ZERO,
        started_by: fleet::StartedBy::Client,
    };
    let room = StagingRoom {
        disk_bytes: 200_000_000_000,
        memory_bytes,
        fetch_bytes_per_s: Some(1e9),
        disk_bytes_per_s: Some(5e9),
        peer: None,
    };
    let setup = Setup {
        staging: Some(Staging { snapshots: vec![snapshot], room, stager }),
        measure_from_s: 0.0,
        plan_every_s: 60,
        ..plain(at_s.iter().map(claim).collect(), 4000.0, OnEmpty::Fail)
    };
    run(&setup, &mut FixedNodes { nodes: 1 }).expect("a run")
}

#[test]
fn copies_come_when_they_can() {
    // Ordered at 60 s, when the node is idle: whole on the disk 100 s later, in memory 20 s after that.
    let at = [70, 131, 250, 400];
    assert_eq!(played(Stager::Nothing, 0, &at).started_from, [4, 0, 0]);
    let of_plan = played(Stager::Plan, 0, &at);
    assert_eq!(of_plan.started_from, [2, 2, 0]);
    assert!((of_plan.fetched_bytes - 1e11).abs() < 1.0, "once: {}", of_plan.fetched_bytes);
    assert_eq!(played(Stager::Plan, 150_000_000_000, &at).started_from, [2, 0, 2]);
    assert_eq!(played(Stager::Plan, 50_000_000_000, &at).started_from, [2, 2, 0], "it has no room in memory");
    // What ran there comes with the first start; what was asked for, when the node is next looked at idle, at 240 s.
    assert_eq!(played(Stager::Cache, 0, &at).started_from, [2, 2, 0]);
    assert_eq!(played(Stager::Recent, 0, &at).started_from, [3, 1, 0]);
}
