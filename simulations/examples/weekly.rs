//! A year of weekly diagnostics over 2,000 nodes: `weekly [FAULT TRACE]`. Without a trace faults are made up.
#![allow(clippy::print_stdout, reason = "it is a report")]

use std::error::Error;

use simulations::weekly::{Measured, Scenario, read_trace, run, synthetic, total};

fn row(name: &str, m: &Measured) {
    let share = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    println!(
        "{name:>10} {:>7} {:>9} {:>9.3} {:>9} {:>9} {:>8} {:>8.2} {:>10} {:>9.0} {:>8} {:>9.2}",
        m.nodes,
        m.claims,
        share(m.at_once as f64, m.claims as f64),
        m.waited_for_yield,
        m.waited_for_node,
        m.begun,
        share(m.ended as f64, m.begun as f64),
        m.begun_under_reserve,
        m.under_reserve_s,
        m.yield_p99_s().map_or_else(|| "-".into(), |s| format!("{s:.1}")),
        share(m.tested_s, m.service_s),
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    let servers = match std::env::args().nth(1) {
        Some(path) => read_trace(&std::fs::read_to_string(path)?, 400)?,
        None => synthetic(400, 365.0, 7),
    };
    for seed in [1, 2, 3] {
        let scenario = Scenario { seed, ..Scenario::default() };
        println!("\nseed {seed}");
        let head = [
            "pool",
            "nodes",
            "claims",
            "at once %",
            "yielded",
            "no node",
            "tests",
            "ended %",
            "bad begins",
            "under s",
            "back s",
            "p99 s",
            "tested %",
        ];
        let wide = [10, 7, 9, 9, 9, 9, 8, 8, 10, 8, 8, 8, 9];
        println!("{}", head.iter().zip(wide).map(|(h, w)| format!("{h:>w$}")).collect::<Vec<_>>().join(" "));
        let pools = run(&scenario, &servers);
        for (n, pool) in pools.iter().enumerate() {
            row(&n.to_string(), pool);
        }
        let all = total(&pools);
        row("all", &all);
        row("untested", &total(&run(&Scenario { tests: false, ..scenario }, &servers)));
        println!("GPU-hours in diagnostics: {:.3} %", 100.0 * all.diagnostic_s / all.service_s.max(1.0));
    }
    Ok(())
}
