//! Writes a plan's report: what an optimum costs, which limits hold it back and what they are worth, what it leaves unmet.

use std::cmp::Reverse;

use fleet::UsdMicros;

use crate::columns;
use crate::decompose::{self, Duals, Effort, Master, Optimum};
use crate::input::{MissPrice, PlanInput, PriceBasis, Quota};
use crate::keys::{ColKey, CommitmentId, Period, QuotaId, RateGroupId, RowKey, SourceId, SpreadId};
use crate::model::Model;
use crate::plan::{Target, micros};
use crate::recourse::Recourse;
use crate::report::{Binding, Change, ClassReport, Cost, LimitKind, Measured, Method, PlanReport, Unmet, Work};
use crate::round::{Rounded, Rule};
use crate::source::Source;

const SHOWN_SUPPLY: usize = 8;

/// Measures the dearest quotas, budget and launch rates, `most` of them, by solving with one more and one less.
///
/// # Errors
/// The solver gives no optimum when the limits are put back.
pub fn sensitivities(
    input: &PlanInput,
    model: &Model,
    master: &mut Master,
    relaxed: &Optimum,
    effort: Effort,
    most: usize,
) -> Result<Vec<Binding>, solver::SolverError> {
    let mut binding = limits(input, model, &relaxed.duals);
    binding.sort_by_key(|(_, b)| Reverse(b.value_usd_micros_per_h));
    // Supply limits with many pools would fill the report: the first few say where supply hurts.
    let mut supply = supply_limits(input, model, master, relaxed);
    supply.sort_by_key(|b| Reverse(b.value_usd_micros_per_h));
    let effort = Effort { price: false, ..effort };
    let horizon_h = model.horizon_h();
    let measurable = binding.iter_mut().filter(|(rows, _)| !rows.is_empty());
    for (rows, shown) in measurable.take(most) {
        let mut cost = |step: f64| -> Result<f64, solver::SolverError> {
            for &(key, limit) in rows.iter() {
                master.set_row(key, f64::NEG_INFINITY, (limit + step).max(limit.min(0.0)))?;
            }
            Ok(decompose::resolve(input, model, master, effort)?.objective_usd)
        };
        let (more, less) = (cost(1.0), cost(-1.0));
        let base = cost(0.0)?;
        // Not measured is said; it costs nobody the plan.
        let (Ok(more), Ok(less)) = (more, less) else { continue };
        let (gain, loss) = ((base - more).max(0.0) / horizon_h, (less - base).max(0.0) / horizon_h);
        shown.measured = Some(Measured {
            one_more_usd_micros_per_h: micros(gain),
            one_less_usd_micros_per_h: micros(loss),
            unique: (gain - loss).abs() <= 0.05 * gain.max(loss),
        });
    }
    let mut all: Vec<Binding> = binding.into_iter().map(|(_, b)| b).collect();
    all.extend(supply.into_iter().take(SHOWN_SUPPLY));
    all.sort_by_key(|b| Reverse(b.value_usd_micros_per_h));
    Ok(all)
}

/// Rows with their limits, and the binding they are shown as.
type Limited = (Vec<(RowKey, f64)>, Binding);

/// Limits with a price, with the rows that hold them.
fn limits(input: &PlanInput, model: &Model, duals: &Duals) -> Vec<Limited> {
    let horizon_h = model.horizon_h();
    let mut all = Vec::new();
    let mut push = |kind, name: String, prices: &[f64], rows: Vec<(RowKey, f64)>| {
        let value = prices.iter().sum::<f64>() / horizon_h;
        if value > 1e-6 {
            let value_usd_micros_per_h = micros(value);
            all.push((rows, Binding { kind, name, value_usd_micros_per_h, measured: None }));
        }
    };
    let periods = 0..model.periods();
    for (q, quota) in input.quotas.iter().enumerate() {
        let rows = periods.clone().map(|t| (RowKey::Quota(QuotaId(q), Period(t)), model.quota_left[q][t])).collect();
        push(LimitKind::Quota, quota.name.clone(), &duals.quota[q], rows);
    }
    if !duals.budget.is_empty() {
        let rows = periods.clone().map(|t| (RowKey::Budget(Period(t)), model.budget_left_usd_per_h[t])).collect();
        push(LimitKind::Budget, "spend".into(), &duals.budget, rows);
    }
    let rate = input.policy.launch_rate_nodes_per_min.unwrap_or(0.0);
    for (g, name) in columns::rate_groups(input).into_iter().enumerate() {
        let per_min: Vec<f64> = duals.rate[g].iter().zip(&model.hours).map(|(v, h)| v * h * 60.0).collect();
        let rows =
            periods.clone().map(|t| (RowKey::Rate(RateGroupId(g), Period(t)), rate * model.hours[t] * 60.0)).collect();
        push(LimitKind::LaunchRate, name, &per_min, rows);
    }
    for (c, commitment) in input.commitments.iter().enumerate() {
        let nodes = |t: usize| commitment.nodes.get(t).copied().unwrap_or(0.0);
        let rows = periods.clone().map(|t| (RowKey::Commitment(CommitmentId(c), Period(t)), nodes(t))).collect();
        push(LimitKind::Commitment, commitment.name.clone(), &duals.commitment[c], rows);
    }
    for (r, spread) in model.spreads.iter().enumerate() {
        // A spread row's unit is not one that can be bought: without rows, it is not measured.
        push(LimitKind::Spread, spread.name.clone(), &duals.spread[r], Vec::new());
    }
    all
}

/// Offers whose launch limit binds now.
fn supply_limits(input: &PlanInput, model: &Model, master: &Master, relaxed: &Optimum) -> Vec<Binding> {
    let mut all = Vec::new();
    for &i in &master.active {
        let source = &model.sources[i];
        let launched = master.value(&relaxed.solution, ColKey::Launch(SourceId(i), Period(0)));
        if source.launch_end == 0 || launched < source.launch_limit[0] - 1e-6 {
            continue;
        }
        let profit = relaxed.duals.profit(input, model, &master.links[i], source, &relaxed.duals.pools[source.pool]);
        if profit.best_launch_usd() > 1e-6 {
            all.push(Binding {
                kind: LimitKind::Supply,
                name: input.offers[source.offer].offer.key.to_string(),
                value_usd_micros_per_h: micros(profit.best_launch_usd() / model.horizon_h()),
                measured: None,
            });
        }
    }
    all
}

/// The report of an optimum.
pub fn of_optimum(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    relaxed: &Optimum,
    rounded: &Rounded,
    binding: Vec<Binding>,
) -> PlanReport {
    let solution = &rounded.optimum.solution;
    let gpus = master.pool_gpus(solution);
    let missed = master.missed_claims(solution);
    let classes: Vec<ClassReport> = (0..input.classes.len())
        .map(|k| {
            let misses = missed.iter().map(|row| row[k]).collect();
            class_report(input, model, k, misses, &gpus)
        })
        .collect();
    let mut spend = vec![0.0; model.periods()];
    for &i in &master.active {
        let nodes = master.nodes(solution, i);
        spend.iter_mut().zip(nodes).for_each(|(total, n)| *total += model.sources[i].price_usd_per_h * n);
    }
    let (rows, columns) = master.size();
    let unmet = unmet(input, model, master, rounded, &classes, &binding);
    let rounding = match rounded.rule {
        Rule::Ceil => "up",
        Rule::Nearest => "to the nearest",
        Rule::Pooled => "up within each pool",
        Rule::Branched => "by branch and bound",
    };
    PlanReport {
        method: Method::Optimum { rounding: rounding.to_owned() },
        objective_usd_micros: micros(rounded.optimum.objective_usd),
        bound_usd_micros: micros(relaxed.bound_usd),
        cost: cost(input, model, master, rounded, &missed),
        certificate_gap: relaxed.gap(),
        rounding_gap: decompose::gap(rounded.optimum.objective_usd, relaxed.bound_usd),
        horizon_s: input.period_s.iter().sum(),
        spend_usd_micros_per_h: spend.into_iter().map(micros).collect(),
        classes,
        binding,
        unmet,
        quota_excess_units: quota_excess(input),
        assumed: Vec::new(),
        changes: changes(input, model, &rounded.launches),
        work: Work {
            active_sources: master.active.len(),
            rows,
            columns,
            cuts: master.cut_count(),
            solves: master.solves,
            cold_restarts: master.cold_restarts,
            ..work(input, model)
        },
    }
}

fn cost(input: &PlanInput, model: &Model, master: &Master, rounded: &Rounded, missed: &[Vec<f64>]) -> Cost {
    let solution = &rounded.optimum.solution;
    let value = |key| master.value(solution, key);
    let (mut nodes, mut launches) = (0.0, 0.0);
    for &i in &master.active {
        let source = &model.sources[i];
        let committed = !master.links[i].commitments.is_empty();
        for (t, held) in master.nodes(solution, i).into_iter().enumerate() {
            let billed = if committed { value(ColKey::Billed(SourceId(i), Period(t))) } else { held };
            nodes += source.price_usd_per_h * model.hours[t] * billed;
            launches += source.boot_usd * value(ColKey::Launch(SourceId(i), Period(t)));
        }
    }
    let usd = |k: usize| input.classes[k].miss_cost_usd_micros.usd();
    let cost = |(row, share): (&Vec<f64>, &Vec<f64>)| {
        row.iter().zip(share).enumerate().map(|(k, (missed, share))| missed * share * usd(k)).sum::<f64>()
    };
    let misses: f64 = missed.iter().zip(&model.miss_share).map(cost).sum();
    let (lent, forgone) = lent(input, model, missed);
    let penalties = (rounded.optimum.objective_usd - nodes - launches - misses - forgone).max(0.0);
    Cost {
        nodes_usd_micros: micros(nodes),
        launches_usd_micros: micros(launches),
        misses_usd_micros: micros(misses),
        penalties_usd_micros: micros(penalties),
        lent_usd_micros: micros(lent),
        not_lent_usd_micros: micros(forgone),
    }
}

fn work(input: &PlanInput, model: &Model) -> Work {
    Work {
        offers: input.offers.len(),
        classes: input.classes.len(),
        scenarios: input.scenarios.len(),
        periods: input.period_s.len(),
        pools: model.pools.len(),
        ..Work::default()
    }
}

fn class_report(
    input: &PlanInput,
    model: &Model,
    k: usize,
    expected_misses: Vec<f64>,
    gpus: &[Vec<f64>],
) -> ClassReport {
    let class = &input.classes[k];
    let mean = |new: bool, t: usize| -> f64 {
        if new { mean_new(input, k, t) } else { input.scenarios.iter().map(|s| s.weight * s.claims[t][k]).sum() }
    };
    let periods = first_counted(model, k)..model.periods();
    let new: f64 = periods.clone().map(|t| mean(true, t)).sum();
    let missed: f64 = periods.clone().map(|t| expected_misses[t] * model.miss_share[t][k]).sum();
    let count = periods.len().max(1) as f64;
    let able = |t: usize| -> f64 {
        let serve = |p: &usize| model.pools[*p].serves.iter().any(|(c, _)| *c == k);
        (0..model.pools.len()).filter(serve).map(|p| gpus[t][p]).sum()
    };
    // Beside what claims have where they are.
    let wanted = |t: usize| model.weights.iter().zip(&model.demand_gpus).map(|(w, path)| w * path[t][k]).sum::<f64>();
    let surge: f64 = periods.clone().map(|t| (able(t) - wanted(t)).max(0.0)).sum();
    let price = input.miss_prices.get(k);
    let own = class.miss_cost_usd_micros;
    let lent_gpus = class.borrows().then(|| {
        let mean = |of: &dyn Fn(usize) -> f64| periods.clone().map(of).sum::<f64>() / count;
        (mean(&|t| wanted(t)) - mean(&|t| expected_misses[t] * model.claim_gpus[k])).max(0.0)
    });
    ClassReport {
        class: class.name.clone(),
        mean_claims: (0..model.periods()).map(|t| mean(false, t)).collect(),
        expected_misses,
        hit_rate_target: class.hit_rate_target,
        expected_hit_rate: if new > 0.0 { (1.0 - missed / new).clamp(0.0, 1.0) } else { 1.0 },
        surge_gpus: surge / count,
        miss_price_usd_micros: price.map_or(own, |p| p.usd_micros),
        miss_price_basis: price.map_or(PriceBasis::Operator, |p| p.basis.clone()),
        miss_price_cap_usd_micros: price.map_or(own, |p| p.cap_usd_micros),
        next_point_usd_micros_per_h: price.and_then(MissPrice::next_point_usd_per_h).map(micros),
        first_period: model.first_period[k] as u32,
        lent_gpus,
    }
}

/// What borrowers pay over the horizon at the prices that the plan counts, dollars, and what they would pay were there more
/// idle GPUs for them.
fn lent(input: &PlanInput, model: &Model, missed: &[Vec<f64>]) -> (f64, f64) {
    let (mut lent, mut forgone) = (0.0, 0.0);
    for k in (0..input.classes.len()).filter(|k| input.classes[*k].borrows()) {
        for (t, missed) in missed.iter().enumerate() {
            let wanted: f64 = input.scenarios.iter().map(|s| s.weight * s.claims[t][k]).sum();
            lent += (wanted - missed[k]).max(0.0) * model.miss_usd[t][k];
            forgone += missed[k] * model.miss_usd[t][k];
        }
    }
    (lent, forgone)
}

/// First period that a class's hit rate is counted from: where no launch arrives within the horizon, every period counts.
fn first_counted(model: &Model, k: usize) -> usize {
    if model.first_period[k] < model.periods() { model.first_period[k] } else { 0 }
}

/// New claims of a class in a period, mean over the paths.
fn mean_new(input: &PlanInput, k: usize, t: usize) -> f64 {
    input.scenarios.iter().map(|s| s.weight * s.new_claims[t][k]).sum()
}

/// A hit rate that is expected to be less under its target is met.
const SAME_RATE: f64 = 5e-4;

/// Everything whose softening column is in use, and hit rates that a limit holds under their target.
fn unmet(
    input: &PlanInput,
    model: &Model,
    master: &Master,
    rounded: &Rounded,
    classes: &[ClassReport],
    binding: &[Binding],
) -> Vec<Unmet> {
    let value = |key| master.value(&rounded.optimum.solution, key);
    let mut all = Vec::new();
    for (k, class) in classes.iter().enumerate() {
        // What is missed by choice, where a miss is cheaper than room for it, is no failure.
        let held = why_missed(input, model, k, binding);
        let short = class.expected_hit_rate < class.hit_rate_target - SAME_RATE;
        if let Some(why) = held.filter(|_| short) {
            all.push(Unmet {
                what: format!("{}: hit rate {}", class.class, percent(class.hit_rate_target)),
                periods: (first_counted(model, k) as u32, model.periods() as u32 - 1),
                by: format!("{} are expected", percent(class.expected_hit_rate)),
                why,
            });
        }
    }
    let mut push = |what: String, slack: &dyn Fn(usize) -> f64, unit: &str, why: String| {
        let over: Vec<(usize, f64)> = (0..model.periods()).map(|t| (t, slack(t))).filter(|(_, v)| *v > 1e-4).collect();
        if let (Some(first), Some(last)) = (over.first(), over.last()) {
            let worst = over.iter().map(|o| o.1).fold(0.0, f64::max);
            let by = format!("{worst:.2} {unit}");
            all.push(Unmet { what, periods: (first.0 as u32, last.0 as u32), by, why });
        }
    };
    let excess = quota_excess(input);
    for (q, quota) in input.quotas.iter().enumerate() {
        let why = "more nodes exist or are on their way than the quota allows".to_owned();
        let excess = excess[q];
        push(
            format!("quota {}", quota.name),
            &|t| if model.quota_full[q][t] { excess } else { 0.0 },
            "units over",
            why,
        );
    }
    let why = "nodes that cannot be released yet cost more than the budget".to_owned();
    push("budget".into(), &|t| value(ColKey::BudgetSlack(Period(t))), "$/h over", why);
    for (r, spread) in model.spreads.iter().enumerate() {
        let why = "the other domains have too little supply".to_owned();
        push(
            format!("spread of {}", spread.name),
            &|t| value(ColKey::SpreadSlack(SpreadId(r), Period(t))),
            "GPUs over",
            why,
        );
    }
    let uncovered = master.uncovered_claims(&rounded.optimum.solution);
    for (lost, by_period) in uncovered.iter().enumerate() {
        for (k, class) in classes.iter().enumerate() {
            let what = format!("{}: loss of {}", class.class, model.domains[lost]);
            let why = "the other domains cannot carry it".to_owned();
            let after = |t: usize| if t < model.first_period[k] { 0.0 } else { by_period[t][k] };
            push(what, &after, "claims short", why);
        }
    }
    all
}

/// `99.0 %`; `99.95 %` where it has more digits.
fn percent(share: f64) -> String {
    let tenths = share * 1e3;
    if (tenths - tenths.round()).abs() < 0.05 {
        format!("{:.1} %", 100.0 * share)
    } else {
        format!("{:.2} %", 100.0 * share)
    }
}

/// What holds a class back; `None` where nothing does.
fn why_missed(input: &PlanInput, model: &Model, k: usize, binding: &[Binding]) -> Option<String> {
    let serves = |s: &&Source| model.pools[s.pool].serves.iter().any(|(c, _)| *c == k);
    let launchable = model.sources.iter().filter(serves).filter(|s| s.launch_end > 0).count();
    if model.sources.iter().filter(serves).count() == 0 {
        return Some("no offer serves this class: see 'explain'".into());
    }
    if launchable == 0 {
        return Some("no offer that serves it can be launched in time".into());
    }
    if input.policy.budget_usd_micros_per_h.is_some() && binding.iter().any(|b| b.kind == LimitKind::Budget) {
        return Some("the budget is spent".into());
    }
    // Only limits that offers of this class are under.
    let of_class = |b: &&Binding| {
        let offers = || model.sources.iter().filter(serves).map(|s| s.offer);
        match b.kind {
            LimitKind::Quota => {
                let quota = input.quotas.iter().find(|q| q.name == b.name);
                quota.is_some_and(|q| offers().any(|p| q.members.iter().any(|(m, _)| *m == p)))
            }
            LimitKind::Supply => offers().any(|p| input.offers[p].offer.key.to_string() == b.name),
            LimitKind::LaunchRate => offers().any(|p| input.offers[p].offer.key.provider == b.name),
            LimitKind::Spread => b.name.starts_with(&format!("{} in ", input.classes[k].name)),
            LimitKind::Budget | LimitKind::Commitment => false,
        }
    };
    let held: Vec<&str> = binding.iter().filter(of_class).take(3).map(|b| b.name.as_str()).collect();
    let at_cap = input.miss_prices.get(k).is_some_and(|price| price.basis == PriceBasis::Cap);
    match held.is_empty() {
        false => Some(format!("held back by {}", held.join(", "))),
        true if at_cap => Some("the price of a miss is at its cap".into()),
        true => None,
    }
}

/// Launches that differ from what the parent plan meant for now.
fn changes(input: &PlanInput, model: &Model, launches: &[(usize, f64)]) -> Vec<Change> {
    let mut all = Vec::new();
    for (p, state) in input.offers.iter().enumerate() {
        let before = state.planned_nodes.first().copied().unwrap_or(0.0);
        let now: f64 = launches.iter().filter(|(i, _)| model.sources[*i].offer == p).map(|l| l.1).sum();
        if (before - now).abs() > 0.5 {
            all.push(Change { offer: state.offer.key.clone(), before, now });
        }
    }
    all
}

/// The report of a plan without an optimum: misses are what its nodes cannot serve.
pub fn of_fallback(input: &PlanInput, model: &Model, targets: &[Target], method: Method) -> PlanReport {
    let fixed = |t: usize| model.pools.iter().map(|p| p.fixed_gpus[t]).collect::<Vec<f64>>();
    let mut gpus: Vec<Vec<f64>> = (0..model.periods()).map(fixed).collect();
    let mut spend = vec![0.0; model.periods()];
    for source in &model.sources {
        let key = &input.offers[source.offer].offer.key;
        let Some(target) = targets.iter().find(|t| t.offer == *key) else {
            continue;
        };
        for t in 0..model.periods() {
            gpus[t][source.pool] += (target.nodes[t] - source.claimed[t]).max(0.0) * source.gpus;
            spend[t] += target.nodes[t] * source.price_usd_per_h;
        }
    }
    let missed = Recourse::of(model).lacking_claims(model, None, &gpus);
    let classes = (0..input.classes.len())
        .map(|k| class_report(input, model, k, missed.iter().map(|row| row[k]).collect(), &gpus))
        .collect();
    let why = match &method {
        Method::Hold { error } => format!("{error}; nothing is launched or released"),
        Method::BaseStock { error, .. } | Method::Optimum { rounding: error } => {
            format!("{error}; order-up-to levels are used and nothing is released")
        }
    };
    PlanReport {
        method,
        objective_usd_micros: UsdMicros::ZERO,
        bound_usd_micros: UsdMicros::ZERO,
        cost: Cost::default(),
        certificate_gap: 1.0,
        rounding_gap: 1.0,
        horizon_s: input.period_s.iter().sum(),
        spend_usd_micros_per_h: spend.into_iter().map(micros).collect(),
        classes,
        binding: Vec::new(),
        unmet: vec![Unmet {
            what: "optimum".into(),
            periods: (0, model.periods() as u32 - 1),
            by: "unknown".into(),
            why,
        }],
        quota_excess_units: quota_excess(input),
        assumed: Vec::new(),
        changes: Vec::new(),
        work: work(input, model),
    }
}

/// Units by which nodes that exist or are on their way exceed each quota.
fn quota_excess(input: &PlanInput) -> Vec<f64> {
    let nodes = |p: usize| {
        let state = &input.offers[p];
        state.nodes.iter().map(|g| f64::from(g.nodes)).sum::<f64>() + state.arriving_nodes.iter().sum::<f64>()
    };
    let used = |q: &Quota| q.members.iter().map(|&(p, units)| units * nodes(p)).sum::<f64>();
    input.quotas.iter().map(|q| (used(q) - q.limit).max(0.0)).collect()
}
