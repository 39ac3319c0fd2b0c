//! What a plan says about itself: what binds, what that is worth, what is unmet, how sure the optimum is.

use fleet::{OfferKey, UsdMicros};

use crate::input::PriceBasis;
use serde::{Deserialize, Serialize};

use crate::assumptions::Assumption;

/// Everything a plan says about itself. Money of a period is for the whole period, rates say so.
#[must_use = "an unread report is not actionable"]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// How the plan was found.
    pub method: Method,
    /// Cost over the horizon: nodes, launches, misses and penalties.
    pub objective_usd_micros: UsdMicros,
    /// No plan can cost less than this (linear bound on the extensive form).
    pub bound_usd_micros: UsdMicros,
    /// What the cost is made of.
    pub cost: Cost,
    /// Linear optimum against its bound: how far the certificate is from proof, as a share.
    pub certificate_gap: f64,
    /// Whole-number plan against the bound, as a share.
    pub rounding_gap: f64,
    /// Length of the horizon in seconds.
    pub horizon_s: u32,
    /// Price of all nodes meant for each period, dollars an hour, `[T]`.
    pub spend_usd_micros_per_h: Vec<UsdMicros>,
    /// By class, in the input's order.
    pub classes: Vec<ClassReport>,
    /// Limits that hold the plan back, dearest first.
    pub binding: Vec<Binding>,
    /// What could not be met, and why.
    pub unmet: Vec<Unmet>,
    /// Units over each quota in the first period, `[Q]`: more exists already than the quota allows.
    pub quota_excess_units: Vec<f64>,
    /// What had to be assumed, where too little was known.
    #[serde(default)]
    pub assumed: Vec<Assumption>,
    /// Launches in which this plan differs from what its parent meant for now.
    pub changes: Vec<Change>,
    /// Size of the work.
    pub work: Work,
}

/// Parts of a plan's cost over the horizon.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Nodes while they are healthy, less what commitments pay.
    pub nodes_usd_micros: UsdMicros,
    /// Boot and checks of launches.
    pub launches_usd_micros: UsdMicros,
    /// Expected missed claims at their operator's price.
    pub misses_usd_micros: UsdMicros,
    /// What is weighed beside: misses above their operator's price, things not met, churn. Not money that is spent.
    pub penalties_usd_micros: UsdMicros,
    /// What borrowers pay for idle GPUs.
    #[serde(default)]
    pub lent_usd_micros: UsdMicros,
    /// What they would pay were there more of them: the objective has it, too.
    #[serde(default)]
    pub not_lent_usd_micros: UsdMicros,
}

/// How a plan was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Linear program, then whole numbers.
    Optimum {
        /// How launches became whole.
        rounding: String,
    },
    /// There is no optimum to use; order-up-to levels instead, and nothing is released.
    BaseStock {
        /// Who said no.
        #[serde(default)]
        cause: FallbackCause,
        /// What it said.
        #[serde(alias = "solver_error")]
        error: String,
    },
    /// Order-up-to levels broke a rule as well: nothing is launched or released.
    Hold {
        /// Which rules.
        error: String,
    },
}

/// Why a plan is not an optimum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackCause {
    /// The solver found none.
    #[default]
    Solver,
    /// The optimum broke a rule of the checker: a bug (CAP-7).
    Checker,
}

impl Method {
    /// Whether a rule planned in place of the optimum: somebody should look.
    #[must_use]
    pub fn fell_back(&self) -> bool {
        !matches!(self, Self::Optimum { .. })
    }

    /// What the checker found, where it found something: a bug.
    #[must_use]
    pub fn broken_rules(&self) -> Option<&str> {
        match self {
            Self::BaseStock { cause: FallbackCause::Checker, error } | Self::Hold { error } => Some(error),
            Self::Optimum { .. } | Self::BaseStock { cause: FallbackCause::Solver, .. } => None,
        }
    }
}

/// One class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Name.
    pub class: String,
    /// Mean concurrent claims of each period, `[T]`.
    pub mean_claims: Vec<f64>,
    /// Expected missed claims of each period, `[T]`.
    pub expected_misses: Vec<f64>,
    /// Target.
    pub hit_rate_target: f64,
    /// Expected share of new claims that are granted, over the periods that a launch can still help; 1 without claims.
    pub expected_hit_rate: f64,
    /// GPUs above mean demand that are there for surges, mean over those periods.
    pub surge_gpus: f64,
    /// What a missed claim counts for, at all moments.
    #[serde(default)]
    pub miss_price_usd_micros: UsdMicros,
    /// Why so much.
    #[serde(default)]
    pub miss_price_basis: PriceBasis,
    /// The most that it may become.
    #[serde(default)]
    pub miss_price_cap_usd_micros: UsdMicros,
    /// Dollars an hour that 0.1 percentage points more of hit rate would have cost on the class's past; unknown without one.
    #[serde(default)]
    pub next_point_usd_micros_per_h: Option<UsdMicros>,
    /// First period that a launch can help.
    pub first_period: u32,
    /// Of a class that borrows: idle GPUs that it gets, mean over these periods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lent_gpus: Option<f64>,
}

impl ClassReport {
    /// First period that its hit rate is counted from: where no launch arrives within the horizon, every period counts.
    #[must_use]
    pub fn first_counted(&self) -> usize {
        let first = self.first_period as usize;
        if first < self.expected_misses.len() { first } else { 0 }
    }

    /// Claims that are expected to be missed where the hit rate counts.
    #[must_use]
    pub fn missed_claims(&self) -> f64 {
        self.expected_misses[self.first_counted()..].iter().sum()
    }
}

/// A limit that binds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// Which kind of limit.
    pub kind: LimitKind,
    /// Its name.
    pub name: String,
    /// Dollars an hour that one more unit, over the whole horizon, is worth by the dual prices.
    pub value_usd_micros_per_h: UsdMicros,
    /// Measured by solving again with one more and one less.
    pub measured: Option<Measured>,
}

/// What one unit more and one unit less really change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Dollars an hour that one more unit saves.
    pub one_more_usd_micros_per_h: UsdMicros,
    /// Dollars an hour that one unit less costs.
    pub one_less_usd_micros_per_h: UsdMicros,
    /// The two agree within 5 %: the dual price holds in both directions. Otherwise the optimum has several.
    pub unique: bool,
}

/// Kinds of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// A unit of quota.
    Quota,
    /// A dollar an hour of budget.
    Budget,
    /// A launch a minute.
    LaunchRate,
    /// A node of a commitment.
    Commitment,
    /// A GPU more of the largest domain.
    Spread,
    /// A node more that an offer could launch in one period.
    Supply,
}

impl LimitKind {
    /// Name and unit for people.
    #[must_use]
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Quota => ("quota", "unit"),
            Self::Budget => ("budget", "$/h"),
            Self::LaunchRate => ("launch rate", "launch/min"),
            Self::Commitment => ("commitment", "node"),
            Self::Spread => ("spread", "GPU"),
            Self::Supply => ("supply", "node"),
        }
    }
}

/// Something that the plan could not meet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Unmet {
    /// What: a class's hit rate, a quota, the budget, N-1 or a spread limit.
    pub what: String,
    /// First and last period concerned.
    pub periods: (u32, u32),
    /// How much is missing, with its unit.
    pub by: String,
    /// Why.
    pub why: String,
}

/// A launch count that differs from the parent plan's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Where.
    pub offer: OfferKey,
    /// The parent meant.
    pub before: f64,
    /// This plan does.
    pub now: f64,
}

/// Size of the problem and of the work.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Work {
    pub offers: usize,
    pub classes: usize,
    pub scenarios: usize,
    pub periods: usize,
    pub pools: usize,
    pub active_sources: usize,
    pub rows: usize,
    pub columns: usize,
    pub cuts: usize,
    pub solves: usize,
    pub cold_restarts: usize,
}
