//! The decomposition against the extensive form under another solver, and whole-number plans against enumeration.

use planner::decompose::Effort;
use planner::extensive;
use planner::model::Model;
use planner::planning::{self, Options};
use planner::round::Refine;
use planner::validate;
use solver::Lp;

use crate::tiny;

const EXACT: Effort = Effort { gap: 1e-10, time_limit_s: 60.0, rounds: 500, price: true };

/// Solves a program with microlp, which shares no code with HiGHS.
fn microlp_optimum(lp: &Lp, fixed: &[(usize, f64)]) -> Option<f64> {
    let mut problem = microlp::Problem::new(microlp::OptimizationDirection::Minimize);
    let mut vars = Vec::new();
    let mut rows: Vec<Vec<(microlp::Variable, f64)>> = vec![Vec::new(); lp.rows.len()];
    for (i, col) in lp.cols.iter().enumerate() {
        let bounds = fixed.iter().find(|(c, _)| *c == i).map_or((col.lower, col.upper), |(_, v)| (*v, *v));
        let var = problem.add_var(col.cost, bounds);
        lp.col_entries(i).iter().for_each(|&(r, v)| rows[r as usize].push((var, v)));
        vars.push(var);
    }
    for (row, entries) in lp.rows.iter().zip(rows) {
        if row.lower == row.upper {
            problem.add_constraint(entries.as_slice(), microlp::ComparisonOp::Eq, row.lower);
        } else if row.lower.is_finite() {
            problem.add_constraint(entries.as_slice(), microlp::ComparisonOp::Ge, row.lower);
        } else if row.upper.is_finite() {
            problem.add_constraint(entries.as_slice(), microlp::ComparisonOp::Le, row.upper);
        }
    }
    problem.solve().ok().and_then(|outcome| outcome.into_solution().ok()).map(|s| s.objective())
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1.0)
}

#[test]
fn linear_optimum_equals_the_extensive_form_under_another_solver() {
    let mut solved = 0;
    for seed in 0..400 {
        let input = tiny::problem(seed);
        assert_eq!(validate::problems(&input), [], "seed {seed}");
        let model = Model::build(&input);
        let ours = planning::relaxed(&input, &model, EXACT).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let form = extensive::build(&input, &model);
        let theirs = microlp_optimum(&form.lp, &[]).unwrap_or_else(|| panic!("seed {seed}: microlp has no optimum"));
        assert!(close(ours.objective_usd, theirs), "seed {seed}: ours {} theirs {theirs}", ours.objective_usd);
        assert!(close(ours.bound_usd, theirs), "seed {seed}: bound {} optimum {theirs}", ours.bound_usd);
        solved += 1;
    }
    assert_eq!(solved, 400);
}

#[test]
fn whole_number_plans_equal_enumeration() {
    let refine = Refine { gap: 0.0, solves: 4000, rows: usize::MAX };
    let options = Options { effort: EXACT, refine, sensitivities: 0 };
    let mut compared = 0;
    for seed in 0..300 {
        let input = tiny::problem(seed);
        let model = Model::build(&input);
        let form = extensive::build(&input, &model);
        let Some(best) = enumerate(&form, &model) else {
            continue;
        };
        let plan = planning::plan(&input, options).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let ours = plan.report.objective_usd_micros.usd();
        assert!((ours - best).abs() <= 1e-5 * best.abs().max(1.0), "seed {seed}: ours {ours} enumeration {best}");
        compared += 1;
    }
    assert!(compared >= 200, "only {compared} problems were small enough to enumerate");
}

/// Cheapest cost over all whole launches and kept nodes of the first period; `None` when there are too many.
fn enumerate(form: &extensive::Extensive, model: &Model) -> Option<f64> {
    use planner::keys::{ColKey, Period, SourceId};
    let mut whole: Vec<(usize, usize)> = Vec::new();
    for (c, key) in form.cols.iter().enumerate() {
        match *key {
            ColKey::Launch(SourceId(i), Period(0)) => whole.push((c, model.sources[i].launch_limit[0] as usize)),
            ColKey::Nodes(SourceId(i), Period(0)) if model.sources[i].appear[0] > 0.0 => {
                whole.push((c, model.sources[i].appear[0] as usize));
            }
            _ => {}
        }
    }
    let combinations: usize = whole.iter().map(|(_, most)| most + 1).product();
    if combinations > 150 {
        return None;
    }
    let mut best = f64::INFINITY;
    for n in 0..combinations {
        let mut rest = n;
        let fixed: Vec<(usize, f64)> = whole
            .iter()
            .map(|&(c, most)| {
                let value = rest % (most + 1);
                rest /= most + 1;
                (c, value as f64)
            })
            .collect();
        // Rule of the checker: no launch and release of one offer at once.
        let value = |key: ColKey| fixed.iter().find(|(c, _)| form.cols[*c] == key).map(|f| f.1);
        let swap = |i: usize| {
            value(ColKey::Launch(SourceId(i), Period(0))).is_some_and(|x| x > 0.0)
                && value(ColKey::Nodes(SourceId(i), Period(0))).is_some_and(|n| n < model.sources[i].appear[0].floor())
        };
        if (0..model.sources.len()).any(swap) {
            continue;
        }
        if let Some(cost) = microlp_optimum(&form.lp, &fixed) {
            best = best.min(cost);
        }
    }
    Some(best)
}
