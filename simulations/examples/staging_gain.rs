//! What copies on hosts are worth: seconds to readiness under each way of choosing them, on the same demand and the same
//! launches of the shipped planner; and dollars of buffer for the same promise, by how long a start takes.
//! `staging_gain SCENARIO [SEED [WORD]]`, only with ways that have WORD in their name; a scenario without `[staging]` gets snapshots whose popularity falls as that of models does.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::{Path, PathBuf};

use fleet::{Snapshot, StagingRoom, UsdMicros};
use planner::miss_price::MissPrices;
use simulations::engine::{Outcome, Setup, Stager, Staging, run};
use simulations::policies::Live;
use simulations::scenario::{self, Part, Prepared, ScenarioError};

/// Snapshots of each class, and room for a part of them on each host.
const SNAPSHOTS: usize = 24;
/// Worths of a second of waiting that are tried, cents.
const SECOND_CENTS: [i64; 2] = [1, 10];
const GIB: f64 = (1_u64 << 30) as f64;
/// A claim is to be ready within this time of being asked for, seconds.
const PROMISE_S: f64 = 900.0;

fn made_up(setup: &Setup) -> Staging {
    let mut snapshots = Vec::new();
    for rule in setup.classes.iter().filter(|rule| !rule.class.borrows()) {
        let weights: Vec<f64> = (1..=SNAPSHOTS).map(|rank| 1.0 / (rank as f64).powf(0.9)).collect();
        let total: f64 = weights.iter().sum();
        for (n, weight) in weights.iter().enumerate() {
            // 16 to 140 GiB, large and small among the popular ones.
            let gib = [16.0, 140.0, 65.0, 30.0, 16.0, 80.0][n % 6];
            snapshots.push(Snapshot {
                name: format!("{}-{n}", rule.class.name),
                class: rule.class.name.clone(),
                store: "simulated".into(),
                object: format!("{:064x}", snapshots.len()),
                bytes: (gib * GIB) as u64,
                gpu: None,
                // Fetched at half a gigabyte a second, and an engine's start.
                cold_s: 40.0 + gib * GIB / 5e8,
                restore_s: 2.0,
                share: weight / total,
                wait_cost_usd_micros_per_s: UsdMicros::ZERO,
                started_by: fleet::StartedBy::Client,
            });
        }
    }
    let room = StagingRoom {
        disk_bytes: (500.0 * GIB) as u64,
        memory_bytes: (150.0 * GIB) as u64,
        fetch_bytes_per_s: Some(1e9),
        disk_bytes_per_s: Some(5e9),
        peer: None,
    };
    Staging { snapshots, room, stager: Stager::Plan }
}

fn played(ready: &Prepared, setup: &Setup) -> Result<Outcome, Box<dyn std::error::Error>> {
    Ok(run(setup, &mut Live::new(ready.live_rules(false), MissPrices::default()))?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("staging_gain SCENARIO [SEED]")?;
    let seed: u64 = args.next().map_or(Ok(1), |seed| seed.parse())?;
    let word = args.next();
    let data = std::env::var_os("PILOTLIGHT_DATA").map(PathBuf::from);
    let (spec, _) = scenario::read(Path::new(&path))?;
    let ready = match scenario::prepare(&spec, Path::new(&path).parent().unwrap_or(Path::new(".")), data.as_deref()) {
        Err(error @ ScenarioError::NoData(_)) => {
            println!("skipped: {error}");
            return Ok(());
        }
        ready => ready?,
    };
    let setup = ready.setup(Part::Test, seed)?;
    let staging = setup.staging.clone().unwrap_or_else(|| made_up(&setup));
    let tib: f64 = staging.snapshots.iter().map(|s| s.bytes as f64 / GIB / 1024.0).sum();
    println!(
        "{}, seed {seed}: {} snapshots of {tib:.1} TiB; hosts with {:.0} GiB of disk and {:.0} GiB of memory\n",
        spec.name,
        staging.snapshots.len(),
        staging.room.disk_bytes as f64 / GIB,
        staging.room.memory_bytes as f64 / GIB,
    );
    println!("copies by                  cold   disk memory |   p50 s   p90 s   p99 s  mean s | fetched TB | dollars");
    // What a second of waiting is worth beside the GPUs that wait, cents: only the plan and placement go by it.
    let ways = Stager::ALL.into_iter().map(|stager| (stager, 0)).chain(SECOND_CENTS.map(|cents| (Stager::Plan, cents)));
    let named = ways.map(|(stager, cents)| match cents {
        0 => (stager, cents, stager.name().to_owned()),
        cents => (stager, cents, format!("{}, {cents} ¢/s", stager.name())),
    });
    let is_meant = |name: &str| word.as_ref().is_none_or(|word| name.contains(word.as_str()));
    for (stager, cents, name) in named.filter(|(.., name)| is_meant(name)) {
        let mut staging = Staging { stager, ..staging.clone() };
        if cents > 0 {
            let cost = UsdMicros(cents * 10_000);
            staging.snapshots.iter_mut().for_each(|snapshot| snapshot.wait_cost_usd_micros_per_s = cost);
        }
        let setup = Setup { staging: Some(staging), ..setup.clone() };
        let outcome = played(&ready, &setup)?;
        let starts = outcome.started_from.iter().sum::<u64>().max(1) as f64;
        let share = |n: usize| 100.0 * outcome.started_from[n] as f64 / starts;
        println!(
            "{:<24} {:>4.1} % {:>4.1} % {:>4.1} % | {:>7.1} {:>7.1} {:>7.1} {:>7.1} | {:>10.1} | {:>7.0}",
            name,
            share(0),
            share(1),
            share(2),
            outcome.starts.quantile_s(0.5),
            outcome.starts.quantile_s(0.9),
            outcome.starts.quantile_s(0.99),
            outcome.starts.mean_s(),
            outcome.fetched_bytes / 1e12,
            outcome.money.total_usd(),
        );
    }
    if word.is_some() {
        return Ok(());
    }
    println!(
        "\nThe same promise, ready within {PROMISE_S:.0} s of being asked for: what a start takes leaves so long to wait for GPUs."
    );
    println!("start s  wait s | dollars  of them idle | hit rate");
    for start_s in [PROMISE_S, 600.0, 300.0, 60.0, 10.0] {
        let mut setup = Setup { staging: None, ..setup.clone() };
        let wait_s = PROMISE_S - start_s;
        setup.classes.iter_mut().for_each(|rule| rule.wait_ms = (wait_s * 1000.0) as i64);
        let outcome = played(&ready, &setup)?;
        println!(
            "{start_s:>7.0} {wait_s:>7.0} | {:>7.0} {:>13.0} | {:>6.2} %",
            outcome.money.total_usd(),
            outcome.money.idle_usd,
            100.0 * outcome.hit_rate(),
        );
    }
    Ok(())
}
