//! Why these GPUs and not those: every offer of a class, with what it would cost and what speaks against it.

use std::collections::BTreeMap;

use fleet::{Class, OfferKey, UsdMicros, admission};
use serde::{Deserialize, Serialize};

use crate::columns;
use crate::decompose::{self, Effort};
use crate::input::{OfferState, PlanInput};
use crate::model::Model;
use crate::plan::{Plan, micros};
use crate::source::Source;
use fleet::Caps;

/// The offers of one class, chosen ones first, then by what is missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Class.
    pub class: String,
    /// Offers that serve it.
    pub offers: Vec<ExplainedOffer>,
    /// Offers that do not, counted by reason.
    pub refused: BTreeMap<String, usize>,
}

/// One offer that serves the class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExplainedOffer {
    /// Which.
    pub offer: OfferKey,
    /// Price of a GPU-hour.
    pub gpu_price_usd_micros_per_h: UsdMicros,
    /// Share of a node's work that is had of it: it is weighed as if it were dearer by so much.
    #[serde(default = "whole")]
    pub usable_share: f64,
    /// Nodes there now.
    pub nodes: u32,
    /// Nodes launched now.
    pub launched: u32,
    /// Why it is, or is not, launched.
    pub verdict: Verdict,
}

fn whole() -> f64 {
    1.0
}

/// Why an offer is launched or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Launched, and more would be if supply or quota allowed.
    ChosenToTheLimit,
    /// Launched as far as it pays.
    Chosen,
    /// Would have to be so many dollars an hour cheaper for a node.
    TooDear(UsdMicros),
    /// As good as what was chosen; ties go to the first.
    AsGood,
    /// The supply estimator allows no launch at present.
    NoSupply,
    /// A launch arrives after the horizon.
    TooSlow,
}

/// Number of offers that serve a class, and of those that do not by reason.
#[must_use]
pub fn refusals(class: &Class, offers: &[OfferState]) -> (usize, BTreeMap<String, usize>) {
    let caps = Caps::resolve(class, offers.iter().map(|o| &o.offer));
    let mut refused: BTreeMap<String, usize> = BTreeMap::new();
    for state in offers {
        if let Err(why) = admission::offer_share(&state.offer, class, caps.of(class, &state.offer)) {
            *refused.entry(reason(&why)).or_default() += 1;
        }
    }
    (offers.len() - refused.values().sum::<usize>(), refused)
}

/// Explains one class of `input`, whose plan is `plan`.
///
/// # Errors
/// The solver gives no optimum.
pub fn explain(
    input: &PlanInput,
    plan: &Plan,
    class: usize,
    effort: Effort,
) -> Result<Explanation, solver::SolverError> {
    let model = Model::build(input);
    let (master, optimum) = decompose::solve(input, &model, effort)?;
    let links = columns::links(input, &model);
    let caps = Caps::resolve(&input.classes[class], input.offers.iter().map(|o| &o.offer));
    let mut offers = Vec::new();
    let (_, refused) = refusals(&input.classes[class], &input.offers);
    let mut source_of = BTreeMap::new();
    for (i, source) in model.sources.iter().enumerate() {
        source_of.insert(source.offer, i);
    }
    for (p, state) in input.offers.iter().enumerate() {
        let cap = caps.of(&input.classes[class], &state.offer);
        if admission::offer_share(&state.offer, &input.classes[class], cap).is_err() {
            continue;
        }
        let Some(&i) = source_of.get(&p) else {
            continue;
        };
        let source = &model.sources[i];
        let launched = plan.launches.iter().filter(|l| l.offer == state.offer.key).map(|l| l.nodes).sum::<u32>();
        let profit =
            optimum.duals.profit(input, &model, &links[i], source, &optimum.duals.pools[source.pool]).launch_now_usd();
        let dear = micros(-profit / billed_h(&model, source));
        let verdict = if state.launch_limit_nodes < 1.0 || state.fill == 0.0 {
            Verdict::NoSupply
        } else if source.launch_end == 0 {
            Verdict::TooSlow
        } else if launched > 0 && f64::from(launched) >= source.launch_limit[0].floor() {
            Verdict::ChosenToTheLimit
        } else if launched > 0 {
            Verdict::Chosen
        } else if dear.0 > 100 {
            Verdict::TooDear(dear)
        } else {
            Verdict::AsGood
        };
        offers.push(ExplainedOffer {
            offer: state.offer.key.clone(),
            gpu_price_usd_micros_per_h: state.offer.gpu_price_usd_micros_per_h(),
            usable_share: state.usable_share,
            nodes: state.nodes.iter().map(|g| g.nodes).sum(),
            launched,
            verdict,
        });
    }
    drop(master);
    offers.sort_by_key(|o| {
        (std::cmp::Reverse(o.launched), std::cmp::Reverse(o.nodes), rank(&o.verdict), o.gpu_price_usd_micros_per_h)
    });
    Ok(Explanation { class: input.classes[class].name.clone(), offers, refused })
}

/// Node-hours that a launch now is billed for, boot included, when it is kept to the end of the horizon.
fn billed_h(model: &Model, source: &Source) -> f64 {
    let mut alive = 0.0;
    let mut billed = source.boot_usd / source.price_usd_per_h.max(1e-9);
    for t in 0..model.periods() {
        alive = alive * source.profile.survive[t] + source.profile.arrivals[0][t];
        billed += alive * model.hours[t];
    }
    billed.max(1e-9)
}

fn rank(verdict: &Verdict) -> i64 {
    match verdict {
        Verdict::ChosenToTheLimit | Verdict::Chosen => 0,
        Verdict::AsGood => 1,
        Verdict::TooDear(dear) => 2 + dear.0,
        Verdict::NoSupply => i64::MAX - 1,
        Verdict::TooSlow => i64::MAX,
    }
}

/// A refusal without the numbers of the single offer, for counting.
fn reason(refusal: &fleet::Refusal) -> String {
    match refusal {
        fleet::Refusal::Model(_) => "GPU model not accepted".into(),
        fleet::Refusal::Region(_) => "outside the class's regions".into(),
        fleet::Refusal::Market(m) => format!("market {m} not accepted"),
        fleet::Refusal::NodeTooSmall { .. } => "node too small for a claim".into(),
        fleet::Refusal::NodeTooLarge { .. } => "node larger than the class allows".into(),
        fleet::Refusal::Memory { .. } => "too little GPU memory".into(),
        fleet::Refusal::Interconnect(_) => "link between GPUs too slow".into(),
        fleet::Refusal::Price { .. } => "above the class's price cap".into(),
    }
}
