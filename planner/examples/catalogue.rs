//! Benchmark: whole plans of generated catalogues, cold, on one thread. Prints each instance and the p99.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::time::Instant;

use planner::planning::{Options, plan};
use planner::synthetic::{Size, catalogue, fleet, next_minute};

fn flag(name: &str, default: usize) -> usize {
    let args: Vec<String> = std::env::args().collect();
    let place = args.iter().position(|a| a == name);
    place.and_then(|i| args.get(i + 1)).map_or(default, |v| v.parse().expect("a number"))
}

/// Peak memory of this process in MiB, from /proc.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).map_or(0.0, |kb| kb / 1024.0)
}

fn main() {
    let size = Size {
        offers: flag("--offers", 5000),
        classes: flag("--classes", 40),
        scenarios: flag("--scenarios", 20),
        periods: flag("--periods", 16),
    };
    let first = flag("--first", 0) as u64;
    let fleet_like = std::env::args().any(|a| a == "--fleet");
    let instances = flag("--instances", 30) as u64;
    // As hard as the planner tries from minute to minute.
    let rolling = std::env::args().any(|a| a == "--rolling");
    let options = if rolling { planner::rolling::options() } else { Options::default() };
    // The plan of the minute after.
    let next = std::env::args().any(|a| a == "--next");
    let begins = if next { "a minute after another" } else { "cold" };
    println!("{size:?}, one thread, {begins}, whole plan with rounding and checker");
    println!("seed  seconds  certificate gap  rounding gap  active sources   rows  cuts  solves  cold restarts");
    let mut times = Vec::new();
    let (mut worst_certificate, mut worst_rounding) = (0.0_f64, 0.0_f64);
    for seed in first..first + instances {
        let input = if fleet_like { fleet(size, seed) } else { catalogue(size, seed) };
        let input = if next {
            let before = plan(&input, options).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            next_minute(&input, &before, seed)
        } else {
            input
        };
        let start = Instant::now();
        let made = plan(&input, options).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let seconds = start.elapsed().as_secs_f64();
        let (report, work) = (&made.report, &made.report.work);
        println!(
            "{seed:>4}  {seconds:>7.3}  {:>13.5} %  {:>10.5} %  {:>14}  {:>5}  {:>4}  {:>6}  {:>13}",
            100.0 * report.certificate_gap,
            100.0 * report.rounding_gap,
            work.active_sources,
            work.rows,
            work.cuts,
            work.solves,
            work.cold_restarts
        );
        times.push(seconds);
        worst_certificate = worst_certificate.max(report.certificate_gap);
        worst_rounding = worst_rounding.max(report.rounding_gap);
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() as f64 * q).ceil() as usize).clamp(1, times.len()) - 1];
    println!(
        "p50 {:.3} s, p90 {:.3} s, p99 {:.3} s; worst certificate gap {:.4} %, worst rounding gap {:.4} %; peak {:.0} MiB",
        at(0.5),
        at(0.9),
        at(0.99),
        100.0 * worst_certificate,
        100.0 * worst_rounding,
        peak_mib()
    );
}
