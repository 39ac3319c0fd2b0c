//! Scratch: time a catalogue solve.
use planner::{decompose, instance, model::Model};
fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|v| v.parse().expect("number")).collect();
    let size = instance::Size { offers: a[0], classes: a[1], scenarios: a[2], periods: a[3] };
    for seed in std::env::var("SEED").map_or(0, |v| v.parse().expect("seed"))..a[4] as u64 {
        let input = instance::catalogue(size, seed);
        let t = std::time::Instant::now();
        let problems = planner::validate::problems(&input);
        assert!(problems.is_empty(), "{problems:?}");
        let model = Model::build(&input);
        let build = t.elapsed();
        let (master, opt) = decompose::solve(&input, &model, decompose::Effort::default()).expect("optimum");
        if a.len() > 5 {
            let form = planner::extensive::build(&input, &model);
            let t = std::time::Instant::now();
            let full = form.lp.solve(solver::Limits { time_limit_s: 300.0, presolve: true }).expect("extensive");
            println!("extensive {} cols {} rows: {:?} obj {:.6} ours {:.6}", form.lp.cols.len(), form.lp.rows.len(), t.elapsed(), full.objective, opt.objective_usd);
        }
        println!("seed {seed} pools {} sources {} build {build:?} total {:?} obj {:.4} bound {:.4} gap {:.2e} rounds {} solves {} iters {} active {} size {:?} cuts {:?}",
            model.pools.len(), model.sources.len(), t.elapsed(), opt.objective_usd, opt.bound_usd, opt.gap(), opt.rounds, master.solves, master.iterations, master.active.len(), master.size(), master.cut_counts()); eprintln!("{:.2}s/{:.0e}/{}/{}", t.elapsed().as_secs_f64(), opt.gap(), opt.rounds, master.cold_restarts);
    }
}
