//! Questions of the form "what if": the same input with one change, planned again, side by side.

use std::str::FromStr;

use fleet::UsdMicros;
use serde::{Deserialize, Serialize};

use crate::input::PlanInput;
use crate::plan::Plan;
use crate::planning::{Options, PlanError, plan};

/// One change to an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhatIf {
    /// A quota changes by so many units.
    Quota {
        /// Name of the quota.
        name: String,
        /// Units more (or less).
        by: f64,
    },
    /// Prices of the offers whose key contains the text are multiplied.
    Price {
        /// Part of `provider/zone/type/market`.
        matching: String,
        /// Factor above 0.
        factor: f64,
    },
    /// A class may be anywhere.
    LiftRegions {
        /// Name of the class.
        class: String,
    },
    /// A class wants another hit rate.
    HitRate {
        /// Name of the class.
        class: String,
        /// In [0, 1).
        target: f64,
    },
    /// Another budget.
    Budget {
        /// Dollars an hour; `None` lifts it.
        usd_micros_per_h: Option<UsdMicros>,
    },
}

/// The question names something that the input does not have, or a value that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum WhatIfError {
    /// Nothing of that name.
    #[error("there is no {kind} '{name}'; there are: {known}")]
    Unknown {
        /// Quota, class or offer.
        kind: &'static str,
        /// As asked.
        name: String,
        /// What there is.
        known: String,
    },
    /// The changed input cannot be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// A plan before and after a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The change.
    pub what_if: WhatIf,
    /// Cost over the horizon as it is, dollars an hour.
    pub cost_before_usd_micros_per_h: UsdMicros,
    /// Cost over the horizon after the change, dollars an hour.
    pub cost_after_usd_micros_per_h: UsdMicros,
    /// Expected hit rates before and after, by class.
    pub hit_rates: Vec<(String, f64, f64)>,
    /// Nodes launched now before and after.
    pub launches: (u32, u32),
    /// The plan after the change.
    pub plan: Plan,
}

/// The input with the change made.
///
/// # Errors
/// The change names something that is not there.
pub fn apply(input: &PlanInput, what_if: &WhatIf) -> Result<PlanInput, WhatIfError> {
    let mut changed = input.clone();
    let unknown = |kind, name: &str, known: Vec<String>| {
        let mut known = known;
        let more = known.len().saturating_sub(12);
        known.truncate(12);
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        WhatIfError::Unknown { kind, name: name.to_owned(), known: known.join(", ") + &tail }
    };
    let class_names = || input.classes.iter().map(|k| k.name.clone()).collect::<Vec<_>>();
    match what_if {
        WhatIf::Quota { name, by } => {
            let names = || input.quotas.iter().map(|q| q.name.clone()).collect();
            let quota =
                changed.quotas.iter_mut().find(|q| q.name == *name).ok_or_else(|| unknown("quota", name, names()))?;
            quota.limit = (quota.limit + by).max(0.0);
        }
        WhatIf::Price { matching, factor } => {
            let mut hits = 0;
            for state in changed.offers.iter_mut().filter(|o| o.offer.key.to_string().contains(matching.as_str())) {
                // Beyond what money can be, the largest: the input check names it. A boot is billed at the same price.
                for price in [&mut state.offer.price_usd_micros_per_h, &mut state.launch_cost_usd_micros] {
                    *price = crate::plan::micros(price.usd() * factor);
                }
                hits += 1;
            }
            if hits == 0 {
                return Err(unknown("offer", matching, input.offers.iter().map(|o| o.offer.key.to_string()).collect()));
            }
        }
        WhatIf::LiftRegions { class } => {
            let found = changed.classes.iter_mut().find(|k| k.name == *class);
            found.ok_or_else(|| unknown("class", class, class_names()))?.regions.clear();
        }
        WhatIf::HitRate { class, target } => {
            let k = changed.classes.iter().position(|k| k.name == *class);
            let k = k.ok_or_else(|| unknown("class", class, class_names()))?;
            changed.classes[k].hit_rate_target = *target;
            if let Some(price) = changed.miss_prices.get_mut(k) {
                *price = price.for_target(*target, changed.classes[k].miss_cost_usd_micros);
            }
        }
        WhatIf::Budget { usd_micros_per_h } => changed.policy.budget_usd_micros_per_h = *usd_micros_per_h,
    }
    Ok(changed)
}

/// Plans the changed input and sets it beside `before`, a plan of the unchanged one.
///
/// # Errors
/// See [`WhatIfError`].
pub fn ask(input: &PlanInput, before: &Plan, what_if: &WhatIf, options: Options) -> Result<Answer, WhatIfError> {
    let after = plan(&apply(input, what_if)?, options)?;
    let hours = f64::from(before.report.horizon_s) / 3600.0;
    let hourly = |p: &Plan| crate::plan::micros(p.report.objective_usd_micros.usd() / hours);
    let count = |p: &Plan| p.launches.iter().map(|l| l.nodes).sum();
    let pairs = before.report.classes.iter().zip(&after.report.classes);
    Ok(Answer {
        what_if: what_if.clone(),
        cost_before_usd_micros_per_h: hourly(before),
        cost_after_usd_micros_per_h: hourly(&after),
        hit_rates: pairs.map(|(b, a)| (b.class.clone(), b.expected_hit_rate, a.expected_hit_rate)).collect(),
        launches: (count(before), count(&after)),
        plan: after,
    })
}

/// A question that does not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what-if '{text}': expected {form}")]
pub struct UnknownQuestion {
    /// What was asked.
    pub text: String,
    /// Of which form questions are.
    pub form: &'static str,
}

impl FromStr for WhatIf {
    type Err = UnknownQuestion;

    /// `quota:NAME=+8`, `price:TEXT*1.2`, `lift-regions:CLASS`, `hit-rate:CLASS=0.999`, `budget:200`, `budget:none`.
    fn from_str(text: &str) -> Result<Self, UnknownQuestion> {
        let bad = |form: &'static str| UnknownQuestion { text: text.to_owned(), form };
        let number = |t: &str| t.parse::<f64>().ok().filter(|v| v.is_finite());
        let kinds = "KIND:… where KIND is quota, price, lift-regions, hit-rate or budget";
        let (kind, rest) = text.split_once(':').ok_or_else(|| bad(kinds))?;
        let (quota, price, hit_rate) = ("quota:NAME=+8", "price:TEXT*1.2", "hit-rate:CLASS=0.999");
        let budget = "budget:200 (dollars an hour) or budget:none";
        Ok(match kind {
            "quota" => {
                let (name, by) = rest.rsplit_once('=').ok_or_else(|| bad(quota))?;
                Self::Quota { name: name.into(), by: number(by).ok_or_else(|| bad(quota))? }
            }
            "price" => {
                let (matching, factor) = rest.rsplit_once('*').ok_or_else(|| bad(price))?;
                let factor = number(factor).filter(|f| *f > 0.0).ok_or_else(|| bad(price))?;
                Self::Price { matching: matching.into(), factor }
            }
            "lift-regions" => Self::LiftRegions { class: rest.into() },
            "hit-rate" => {
                let (class, target) = rest.rsplit_once('=').ok_or_else(|| bad(hit_rate))?;
                Self::HitRate { class: class.into(), target: number(target).ok_or_else(|| bad(hit_rate))? }
            }
            "budget" if rest == "none" => Self::Budget { usd_micros_per_h: None },
            "budget" => {
                let usd = number(rest).and_then(|v| UsdMicros::from_usd(v).ok()).ok_or_else(|| bad(budget))?;
                Self::Budget { usd_micros_per_h: Some(usd) }
            }
            _ => return Err(bad(kinds)),
        })
    }
}
