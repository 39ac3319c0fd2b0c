//! Everything that one plan is made from. The planner reads nothing else: no clock, no randomness, no cloud.

use fleet::{Class, Offer, UsdMicros};
use serde::{Deserialize, Serialize};

/// The input of one plan.
///
/// Time is cut into periods `t = 0 … T-1`, the first of which begins now; counts of a period hold at its start.
/// Shapes: `T = period_s.len()`, `K = classes.len()`, `P = offers.len()`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanInput {
    /// Number of this plan; larger than its parent's.
    pub epoch: u64,
    /// Length of each period in seconds, each at least 1.
    pub period_s: Vec<u32>,
    /// What can be bought, and what is already there.
    pub offers: Vec<OfferState>,
    /// What is claimed.
    pub classes: Vec<Class>,
    /// What a missed claim of each class counts for, `[K]`; without any, its class's own price of a miss.
    #[serde(default)]
    pub miss_prices: Vec<MissPrice>,
    /// Paths of demand with weights that add up to 1.
    pub scenarios: Vec<Scenario>,
    /// Limits on groups of offers that the cloud sets.
    pub quotas: Vec<Quota>,
    /// Capacity that is paid for whether used or not.
    pub commitments: Vec<Commitment>,
    /// How risk, stability, spread and money are weighed.
    pub policy: Policy,
}

impl PlanInput {
    /// Dollars that a missed claim of class `k` counts for.
    #[must_use]
    pub fn miss_price_usd(&self, k: usize) -> f64 {
        let own = self.classes[k].miss_cost_usd_micros;
        self.miss_prices.get(k).map_or(own, |price| price.usd_micros).usd()
    }
}

/// What a missed claim of a class counts for: the same at all moments, so that service is bought where it is cheap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MissPrice {
    /// Dollars.
    pub usd_micros: UsdMicros,
    /// Why so many.
    pub basis: PriceBasis,
    /// The most that it may become.
    pub cap_usd_micros: UsdMicros,
    /// What other prices would have given on the class's past, prices rising; empty without a past.
    pub curve: Vec<ServicePoint>,
}

/// What a tenth of a percentage point is, as a share.
const NEXT_POINT: f64 = 1e-3;

impl MissPrice {
    /// Of claims that borrow: nobody misses them.
    #[must_use]
    pub fn of_borrowers() -> Self {
        let (usd_micros, cap_usd_micros) = (UsdMicros::ZERO, UsdMicros::ZERO);
        Self { usd_micros, basis: PriceBasis::Operator, cap_usd_micros, curve: Vec::new() }
    }

    /// The price that another target asks for on the same past; the same where the past does not tell.
    #[must_use]
    pub fn for_target(&self, target: f64, floor: UsdMicros) -> Self {
        let Some(most) = self.curve.last() else { return self.clone() };
        let reached = self.curve.iter().find(|point| point.hit_rate >= target);
        // Beyond what the past shows, as far as it goes.
        let asked = reached.unwrap_or(most).price_usd_micros;
        let basis = match (asked <= floor, reached) {
            (true, _) => PriceBasis::Operator,
            (false, Some(_)) => PriceBasis::Past,
            (false, None) => PriceBasis::Cap,
        };
        let cap_usd_micros = self.cap_usd_micros.max(asked);
        Self { usd_micros: asked.max(floor), basis, cap_usd_micros, ..self.clone() }
    }

    /// Dollars an hour that 0.1 percentage points more of hit rate would have cost on the class's past: on the curve from
    /// its point at this price. `None` where the past does not tell.
    #[must_use]
    pub fn next_point_usd_per_h(&self) -> Option<f64> {
        let at = self.curve.iter().position(|point| point.price_usd_micros >= self.usd_micros)?;
        let (here, idle) = (self.curve[at].hit_rate, |i: usize| self.curve[i].idle_usd_micros_per_h.usd());
        let next = (at + 1..self.curve.len()).find(|i| self.curve[*i].hit_rate >= here + NEXT_POINT)?;
        let gained = self.curve[next].hit_rate - here;
        Some(((idle(next) - idle(at)) * NEXT_POINT / gained).max(0.0))
    }
}

/// Why a miss has its price.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceBasis {
    /// The operator's price of a miss: it gives the target already, or there is no target.
    #[default]
    Operator,
    /// What the class's past asks for at its target, and what became of it since.
    Past,
    /// Too little past: what the target of this class asks for there.
    Like(String),
    /// Too little past, and no class like it: the closed form of the newsvendor.
    ClosedForm,
    /// More is not offered: the target would ask for it.
    Cap,
}

/// Service that a price of a miss would have given on a class's past.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ServicePoint {
    /// Price of a miss.
    pub price_usd_micros: UsdMicros,
    /// Hit rate.
    pub hit_rate: f64,
    /// Dollars an hour for capacity beyond what was in use.
    pub idle_usd_micros_per_h: UsdMicros,
}

/// An offer with the estimates of the supply model and the nodes that exist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfferState {
    /// The row of the offer table.
    pub offer: Offer,
    /// Most nodes that may be launched in one period (budget of the supply estimator and quota room); may be 0.
    pub launch_limit_nodes: f64,
    /// Share of launches that become healthy nodes, in [0, 1].
    pub fill: f64,
    /// From launch to healthy.
    pub lead_time: LeadTime,
    /// Rate at which a node is lost (reclaim, hardware), per hour.
    pub hazard_per_h: f64,
    /// Share of a node's work that is had of it: hours in service times speed, 1 where it is as sold. What is paid is the
    /// price; what it is worth is less, so that an offer of half the share must be half as dear.
    #[serde(default = "whole")]
    pub usable_share: f64,
    /// What the claims that its faults cut are worth, for each node-hour. Not money that is paid.
    #[serde(default)]
    pub fault_cost_usd_micros_per_h: UsdMicros,
    /// What a launch costs beside the node-hours after it is healthy: boot and checks.
    pub launch_cost_usd_micros: UsdMicros,
    /// What claims are expected to lose on a launched node until its copies of snapshots have come. Not money that is paid.
    #[serde(default)]
    pub restage_usd_micros: UsdMicros,
    /// A node is billed at least this long after its launch, so it is not released earlier.
    pub min_hold_s: u32,
    /// Nodes that exist and are healthy.
    pub nodes: Vec<NodeGroup>,
    /// Nodes already launched that are expected to be healthy at the start of each period `[T]`, each counted once;
    /// may be shorter.
    pub arriving_nodes: Vec<f64>,
    /// Launches that the parent plan had in mind for each period `[T]`; may be shorter.
    pub planned_nodes: Vec<f64>,
    /// Healthy nodes that the parent plan expected in each period `[T]`; may be shorter. The solver begins there; nothing is
    /// decided by it.
    #[serde(default)]
    pub expected_nodes: Vec<f64>,
    /// Seconds since each node that the parent plan found spare was needed, the longest first.
    #[serde(default)]
    pub spare_s: Vec<f64>,
}

fn whole() -> f64 {
    1.0
}

impl OfferState {
    /// Seconds of a node that one more launch of it would cost.
    #[must_use]
    pub fn release_after_s(&self) -> f64 {
        let usd_per_s = self.offer.price_usd_micros_per_h.usd() / 3600.0;
        let launch_usd = self.launch_cost_usd_micros.usd() + self.restage_usd_micros.usd();
        launch_usd / self.fill.max(0.05) / usd_per_s.max(1e-12)
    }
}

/// Time from launch to healthy, as points of its cumulative distribution, joined by straight lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeadTime {
    /// `(seconds, share of launches that are healthy by then)`; both rise, the last share is 1.
    pub cdf: Vec<(f64, f64)>,
}

impl LeadTime {
    /// Always `seconds`.
    #[must_use]
    pub fn fixed(seconds: f64) -> Self {
        Self { cdf: vec![(seconds, 1.0)] }
    }

    /// Share that is healthy after `seconds`.
    #[must_use]
    pub fn share_by(&self, seconds: f64) -> f64 {
        let mut before: Option<(f64, f64)> = None;
        for &(at, share) in &self.cdf {
            if seconds < at {
                // Nothing arrives before the first point: a line from zero would promise nodes too early.
                return before.map_or(0.0, |(b, s)| s + (share - s) * (seconds - b) / (at - b));
            }
            before = Some((at, share));
        }
        before.map_or(0.0, |b| b.1)
    }

    /// Seconds by which a share of launches is healthy.
    #[must_use]
    pub fn by_s(&self, share: f64) -> f64 {
        let mut before: Option<(f64, f64)> = None;
        for &(at, by) in &self.cdf {
            if by >= share {
                return before.map_or(at, |(b, s)| b + (at - b) * ((share - s) / (by - s).max(1e-12)).clamp(0.0, 1.0));
            }
            before = Some((at, by));
        }
        before.map_or(0.0, |b| b.0)
    }

    /// Mean in seconds.
    #[must_use]
    pub fn mean_s(&self) -> f64 {
        let mut before: Option<(f64, f64)> = None;
        let mut mean = 0.0;
        for &(at, share) in &self.cdf {
            mean += match before {
                None => at * share,
                Some((b, s)) => (at + b) / 2.0 * (share - s),
            };
            before = Some((at, share));
        }
        mean
    }
}

/// Alike nodes of one offer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeGroup {
    /// How many.
    pub nodes: u32,
    /// Claims on each node, `(class index, claims)`; empty for idle nodes.
    pub claims: Vec<(usize, u32)>,
    /// Nodes that cannot be released yet at the start of each period (still claimed, or younger than the minimum
    /// billing time), `[T]`, never rising; shorter means 0 from there on.
    pub kept_nodes: Vec<f64>,
}

/// One path of demand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Probability.
    pub weight: f64,
    /// Peak of concurrent claims, `[T][K]`.
    pub claims: Vec<Vec<f64>>,
    /// Claims that begin in the period, `[T][K]`: what the hit rate is counted over.
    pub new_claims: Vec<Vec<f64>>,
}

/// Start of each period in seconds from now, `[T]`.
#[must_use]
pub fn starts(period_s: &[u32]) -> Vec<f64> {
    let mut at = 0.0;
    let mut start = |s: &u32| {
        let start = at;
        at += f64::from(*s);
        start
    };
    period_s.iter().map(&mut start).collect()
}

/// A limit over a group of offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// Name shown in reports.
    pub name: String,
    /// `(offer index, units of one node)`; launches on their way count too.
    pub members: Vec<(usize, f64)>,
    /// Units.
    pub limit: f64,
}

/// Nodes that a commitment has already paid for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Commitment {
    /// Name shown in reports.
    pub name: String,
    /// Offers whose nodes it pays for.
    pub offers: Vec<usize>,
    /// Nodes paid for in each period, `[T]`; 0 after its end.
    pub nodes: Vec<f64>,
}

/// A level of failure domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DomainLevel {
    /// A whole cloud.
    Provider,
    /// One region.
    Region,
    /// One zone.
    Zone,
}

/// What a spread limit groups by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpreadBy {
    /// Providers.
    Provider,
    /// Regions.
    Region,
    /// Zones.
    Zone,
    /// Spot against everything else.
    Spot,
}

/// No group may hold more than a share of the GPUs that serve a class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Class index.
    pub class: usize,
    /// The groups.
    pub by: SpreadBy,
    /// Share in (0, 1].
    pub max_share: f64,
}

/// Demand that must still be covered when any one domain is lost (N-1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survive {
    /// Which domains are lost, one at a time.
    pub level: DomainLevel,
    /// Share of the mean demand that must be covered then.
    pub share: f64,
}

/// How risk, stability, spread and money are weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// What each launch beyond the parent plan's costs more, as a share of the launch cost: it damps plans that chase
    /// noise.
    pub churn: f64,
    /// Spare nodes are given back after so many times what starting them again would cost; 0 gives them back at once.
    #[serde(default)]
    pub hold: f64,
    /// Spend limit of each period in dollars an hour; `None` for no limit.
    pub budget_usd_micros_per_h: Option<UsdMicros>,
    /// Most launches a minute for each provider; `None` for no limit.
    pub launch_rate_nodes_per_min: Option<f64>,
    /// Spread limits.
    pub spread: Vec<Spread>,
    /// N-1.
    pub survive: Option<Survive>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            // Both chosen by simulation. Spare nodes that stay damp more than a price on launches, which also keeps plans
            // from launching what is needed.
            churn: 0.5,
            hold: 1.0,
            budget_usd_micros_per_h: None,
            launch_rate_nodes_per_min: None,
            spread: Vec::new(),
            survive: None,
        }
    }
}
