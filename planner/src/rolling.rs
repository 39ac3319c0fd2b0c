//! The planner over time: what it remembers from plan to plan, and how an observed moment becomes a plan. The control
//! plane and the simulator call this one function.

use fleet::{Class, Offer};
use serde::{Deserialize, Serialize};

use crate::assumptions::{self, Assumption};
use crate::decompose::Effort;
use crate::forecast::{self, Mix, Past};
use crate::gather::{self, Borrower, Estimate, Observed, ObservedNode};
use crate::input::{Commitment, MissPrice, PlanInput, Policy, Quota, Scenario};
use crate::miss_price::{Expected, Known, MissPrices};
use crate::plan::Plan;
use crate::planning::{Options, PlanError, plan};
use crate::scenarios::{self, Declared, History, PathRules};
use fleet::book::Tally;

/// How it plans.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Lengths of the periods, seconds.
    pub period_s: Vec<u32>,
    /// Season of the demand, seconds.
    pub season_s: u32,
    /// Demand paths.
    pub paths: usize,
    /// How risk and stability are weighed.
    pub weights: Policy,
    /// Plans on the mean of the paths instead of all of them.
    pub mean_only: bool,
}

/// Seconds after which forecast methods are weighed and prices looked for again.
const CHOOSE_EVERY_S: f64 = 900.0;

/// What is remembered between plans.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RollingMemory {
    /// Names of the classes that the rest is of, `[K]`.
    names: Vec<String>,
    mixes: Vec<Mix>,
    /// From a decision to its nodes at each class's cheapest offer, seconds, `[K]`.
    lead_s: Vec<f64>,
    chosen_at_s: Option<f64>,
    parent: Option<(Plan, f64)>,
    prices: MissPrices,
    /// What the next plan has to assume.
    assumed: Vec<Assumption>,
    /// What the last plan expects of each class, `[K]`.
    expected: Vec<Expected>,
    observed_s: f64,
}

impl RollingMemory {
    /// With the prices of misses that earlier days came to.
    #[must_use]
    pub fn with_prices(prices: MissPrices) -> Self {
        Self { prices, ..Self::default() }
    }

    /// With a plan of `at_s`.
    #[must_use]
    pub fn with_parent(plan: Plan, at_s: f64) -> Self {
        Self { parent: Some((plan, at_s)), ..Self::default() }
    }

    /// How each class is forecast, `[K]`; nothing before the first input.
    #[must_use]
    pub fn mixes(&self) -> &[Mix] {
        &self.mixes
    }

    /// What the plan of the last input has to assume.
    #[must_use]
    pub fn assumed(&self) -> &[Assumption] {
        &self.assumed
    }

    /// The prices of misses, for the days that come.
    #[must_use]
    pub fn prices(&self) -> MissPrices {
        self.prices.carried_over()
    }

    /// The last plan, and when it was made, seconds.
    #[must_use]
    pub fn parent(&self) -> Option<&(Plan, f64)> {
        self.parent.as_ref()
    }
}

/// All that is seen at one moment. Shapes: `P` offers, `K` classes.
#[derive(Debug)]
pub struct Moment<'a> {
    /// Now, seconds from any fixed start.
    pub now_s: f64,
    /// Number of the plan to make.
    pub epoch: u64,
    /// Offers at present prices, `[P]`.
    pub offers: &'a [Offer],
    /// Estimates of their supply, `[P]`.
    pub estimates: &'a [Estimate],
    /// Classes with their targets, `[K]`.
    pub classes: &'a [Class],
    /// Mean life of a claim, seconds, `[K]`.
    pub claim_mean_s: &'a [f64],
    /// Nodes that exist or are on their way, and take or will take claims.
    pub nodes: &'a [ObservedNode],
    /// Quotas over the offers.
    pub quotas: &'a [Quota],
    /// Commitments over the offers.
    pub commitments: &'a [Commitment],
    /// Claims that hit or missed so far, `[K]`.
    pub judged: &'a [Tally],
    /// Demand that was declared.
    pub declared: &'a [Declared],
    /// Concurrent claims so far, `[K][N]`, the last is now.
    pub history: &'a History,
    /// Who would borrow what is idle; not among the classes.
    pub borrowers: &'a [Borrower],
    /// Demand where it is known instead of forecast, with what losses bring back: for yardsticks.
    pub known: Option<&'a Scenario>,
}

/// The planner's input for a moment. `memory` learns what was judged and which forecasts are good.
#[must_use]
pub fn input(rules: &Rules, memory: &mut RollingMemory, seen: &Moment) -> PlanInput {
    know_classes(memory, seen);
    choose(rules, memory, seen);
    memory.assumed = assumptions::of(rules, seen, &memory.lead_s);
    let miss_prices = prices(memory, seen);
    let mut paths = seen.known.map_or_else(|| paths(rules, memory, seen), |known| vec![known.clone()]);
    let observed = Observed {
        epoch: seen.epoch,
        period_s: &rules.period_s,
        offers: seen.offers,
        estimates: seen.estimates,
        classes: seen.classes,
        miss_prices: &miss_prices,
        claim_mean_s: seen.claim_mean_s,
        nodes: seen.nodes,
        quotas: seen.quotas,
        commitments: seen.commitments,
        policy: &rules.weights,
        borrowers: seen.borrowers,
        parent: memory.parent.as_ref().map(|(plan, at_s)| (plan, seen.now_s - at_s)),
    };
    if seen.known.is_none() {
        gather::add_losses(&observed, &mut paths);
    }
    gather::plan_input(&observed, paths)
}

/// Plans for an input that [`input`] made, and remembers the plan.
///
/// # Errors
/// See [`PlanError`].
pub fn decide(memory: &mut RollingMemory, input: &PlanInput, now_s: f64) -> Result<Plan, PlanError> {
    let mut made = plan(input, options())?;
    made.report.assumed.clone_from(&memory.assumed);
    memory.expected = expected(input, &made);
    // What borrowers can expect is nobody's concern.
    memory.expected.truncate(memory.names.len());
    memory.parent = Some((made.clone(), now_s));
    Ok(made)
}

/// What a plan expects of each class, over the periods that a launch can help.
fn expected(input: &PlanInput, plan: &Plan) -> Vec<Expected> {
    let of = |(k, report): (usize, &crate::report::ClassReport)| {
        let from = report.first_counted();
        let seconds: f64 = input.period_s[from..].iter().map(|s| f64::from(*s)).sum();
        let new = |s: &Scenario| s.weight * s.new_claims[from..].iter().map(|row| row[k]).sum::<f64>();
        let claims: f64 = input.scenarios.iter().map(new).sum();
        Expected { claims_per_s: claims / seconds.max(1.0), miss_share: 1.0 - report.expected_hit_rate }
    };
    plan.report.classes.iter().enumerate().map(of).collect()
}

/// How hard the rolling planner tries: a gap of 0.1 % is far below what the forecast is worth.
#[must_use]
pub fn options() -> Options {
    Options { effort: Effort { gap: 1e-3, ..Effort::default() }, ..Options::default() }
}

/// What is remembered follows its class where others come, go or change places.
fn know_classes(memory: &mut RollingMemory, seen: &Moment) {
    let same = memory.names.len() == seen.classes.len();
    if same && memory.names.iter().zip(seen.classes).all(|(name, class)| *name == class.name) {
        return;
    }
    // Nothing is known of whose prices came from elsewhere: they are of the same classes.
    if !memory.names.is_empty() {
        let place = |class: &Class| memory.names.iter().position(|name| *name == class.name);
        let before: Vec<Option<usize>> = seen.classes.iter().map(place).collect();
        memory.prices.rearrange(&before);
        memory.mixes.clear();
        memory.expected.clear();
    }
    memory.names = seen.classes.iter().map(|class| class.name.clone()).collect();
}

fn floors(seen: &Moment) -> Vec<fleet::UsdMicros> {
    seen.classes.iter().map(|k| k.miss_cost_usd_micros).collect()
}

/// Once in a while, the weights of each class's forecast methods and where the price of its misses starts.
fn choose(rules: &Rules, memory: &mut RollingMemory, seen: &Moment) {
    let again = memory.chosen_at_s.is_none_or(|at| seen.now_s - at >= CHOOSE_EVERY_S);
    let classes = seen.classes.len();
    if !again && memory.mixes.len() == classes && memory.prices.has(classes) {
        return;
    }
    let chances = memory.prices.short_chances(&floors(seen));
    let step_s = seen.history.step_s.max(1);
    let season = (rules.season_s / step_s).max(1) as usize;
    let cheapest: Vec<Cheapest> = seen.classes.iter().map(|class| cheapest(seen, class)).collect();
    let mix = |(k, class): (usize, &Class)| {
        let steps = (cheapest[k].lead_s / f64::from(step_s)).ceil().max(1.0) as usize;
        let chance = chances.get(k).copied().flatten().unwrap_or(1.0 - class.hit_rate_target);
        let asked = 1.0 - chance.clamp(CHANCE_MIN, CHANCE_MAX);
        forecast::weigh(&Past::of(&seen.history.claims[k], season), steps, &[BODY, asked])
    };
    memory.mixes = seen.classes.iter().enumerate().map(mix).collect();
    memory.chosen_at_s = Some(seen.now_s);
    let known = |(k, class): (usize, &Class)| Known {
        claims: &seen.history.claims[k],
        step_s,
        season,
        mix: &memory.mixes[k],
        lead_s: cheapest[k].lead_s,
        late_s: cheapest[k].late_s,
        claim_mean_s: seen.claim_mean_s[k],
        claim_usd_per_h: cheapest[k].claim_usd_per_h,
        hit_rate_target: class.hit_rate_target,
        miss_cost_usd_micros: class.miss_cost_usd_micros,
    };
    let known: Vec<Known> = seen.classes.iter().enumerate().map(known).collect();
    let names: Vec<&str> = seen.classes.iter().map(|k| k.name.as_str()).collect();
    memory.prices.look(&known, &names);
    memory.lead_s = known.iter().map(|k| k.lead_s).collect();
}

/// Quantile at which forecasts are judged beside the one that the price asks for.
const BODY: f64 = 0.9;
/// Chances of a shortage at which forecasts can be judged on a few days.
const CHANCE_MIN: f64 = 0.002;
const CHANCE_MAX: f64 = 0.5;

/// Shares of launches that have arrived when a decision has reached its nodes, and when it is late.
const ARRIVED: f64 = 0.5;
const ARRIVED_LATE: f64 = 0.9;

/// The cheapest offer that serves a class.
struct Cheapest {
    /// Dollars an hour for a claim's GPUs.
    claim_usd_per_h: f64,
    /// Seconds until half of the launches have arrived, and nearly all.
    lead_s: f64,
    late_s: f64,
}

fn cheapest(seen: &Moment, class: &Class) -> Cheapest {
    let caps = fleet::Caps::resolve(class, seen.offers.iter());
    let cost = |(offer, estimate): (&Offer, &Estimate)| {
        let share = fleet::offer_share(offer, class, caps.of(class, offer)).ok()?;
        let claim_usd_per_h = offer.gpu_price_usd_micros_per_h().usd() / share * f64::from(class.gpus_per_claim);
        let lead_time = &estimate.lead_time;
        Some(Cheapest { claim_usd_per_h, lead_s: lead_time.by_s(ARRIVED), late_s: lead_time.by_s(ARRIVED_LATE) })
    };
    let all = seen.offers.iter().zip(seen.estimates).filter_map(cost);
    all.min_by(|a, b| a.claim_usd_per_h.total_cmp(&b.claim_usd_per_h).then(a.lead_s.total_cmp(&b.lead_s)))
        .unwrap_or(Cheapest { claim_usd_per_h: 0.0, lead_s: 600.0, late_s: 600.0 })
}

/// The price of a miss of each class, after what came true since the last plan.
fn prices(memory: &mut RollingMemory, seen: &Moment) -> Vec<MissPrice> {
    let targets: Vec<f64> = seen.classes.iter().map(|k| k.hit_rate_target).collect();
    let floors = floors(seen);
    let elapsed_s = seen.now_s - memory.observed_s;
    memory.prices.expect(&targets, &floors, &memory.expected, elapsed_s);
    memory.prices.observe(&targets, seen.judged, elapsed_s);
    memory.observed_s = seen.now_s;
    memory.prices.prices(&floors)
}

fn paths(rules: &Rules, memory: &RollingMemory, seen: &Moment) -> Vec<Scenario> {
    let how = PathRules {
        season_s: rules.season_s,
        paths: rules.paths,
        lead_s: memory.lead_s.clone(),
        claim_mean_s: seen.claim_mean_s.to_vec(),
        declared: seen.declared.to_vec(),
    };
    let all = scenarios::build(seen.history, &memory.mixes, &rules.period_s, &how);
    if rules.mean_only { vec![mean(&all)] } else { all }
}

fn mean(paths: &[Scenario]) -> Scenario {
    let table = |of: &dyn Fn(&Scenario) -> &Vec<Vec<f64>>| {
        let mut sum = vec![vec![0.0; of(&paths[0])[0].len()]; of(&paths[0]).len()];
        for path in paths {
            for (row, add) in sum.iter_mut().zip(of(path)) {
                row.iter_mut().zip(add).for_each(|(s, v)| *s += path.weight * v);
            }
        }
        sum
    };
    Scenario { weight: 1.0, claims: table(&|s| &s.claims), new_claims: table(&|s| &s.new_claims) }
}
