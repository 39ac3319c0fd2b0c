//! Benchmark: one period, many offers. Writes the extensive form as MPS for another solver, and times our own solve of
//! the same problem. Arguments: seed, MPS file. Prints `objective seconds columns rows`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::io::{BufWriter, Write};
use std::time::Instant;

use planner::decompose::Effort;
use planner::model::Model;
use planner::synthetic::{Size, catalogue};
use planner::{extensive, planning};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let seed: u64 = args[1].parse().expect("a seed");
    let number = |i: usize, default: usize| args.get(i).map_or(default, |v| v.parse().expect("a number"));
    let size =
        Size { offers: number(3, 1500), classes: number(4, 40), scenarios: number(5, 20), periods: number(6, 1) };
    let input = one_period(catalogue(size, seed));
    let exact = Effort { gap: 1e-9, time_limit_s: 600.0, ..Effort::default() };
    let start = Instant::now();
    let model = Model::build(&input);
    let optimum = planning::relaxed(&input, &model, exact).expect("an optimum");
    let seconds = start.elapsed().as_secs_f64();
    let form = extensive::build(&input, &model);
    let file = std::fs::File::create(&args[2]).expect("a file");
    let mut out = BufWriter::new(file);
    solver::write_mps(&form.lp, "one_period", &mut out).and_then(|()| out.flush()).expect("written");
    println!("{:.9} {seconds:.6} {} {}", optimum.objective_usd, form.lp.cols.len(), form.lp.rows.len());
}

/// A single decision: launches now serve one demand a lead time later. Two periods of the model, the first of which is
/// empty, since nothing launched now can be there now.
fn one_period(mut input: planner::PlanInput) -> planner::PlanInput {
    if input.period_s.len() == 1 {
        input.period_s = vec![600, 600];
        for scenario in &mut input.scenarios {
            let empty = vec![0.0; scenario.claims[0].len()];
            scenario.claims.insert(0, empty.clone());
            scenario.new_claims.insert(0, empty);
        }
        for state in &mut input.offers {
            state.lead_time = planner::input::LeadTime::fixed(600.0);
        }
    }
    input
}
