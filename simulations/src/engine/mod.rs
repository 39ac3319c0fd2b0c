//! The virtual-time engine: events, money and counts. It has no rules of its own: nodes and claims are those of a
//! `fleet::book::Book`, what happens to them is decided by `control`, launches are granted by the simulated cloud, and what to
//! launch comes from a policy.

mod account;
mod events;
mod histogram;
mod outcome;
mod staging;
mod world;

use fleet::Offer;
use fleet::book::ClassRule;
use planner::input::{LeadTime, Quota};
use planner::scenarios::History;
use providers::sim::{Dist, SimOffer};

pub use account::Money;
pub use histogram::Histogram;
pub use outcome::{Counts, OfClass, Outcome, Sample};
pub use staging::{Stager, Staging};
pub use world::run;

/// One claim of the demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimSpec {
    /// When it comes, ms from the start.
    pub at_ms: u64,
    /// When it ends, granted or not.
    pub end_ms: u64,
    /// Class.
    pub class: u32,
}

/// Something that happens to the world.
#[derive(Debug, Clone, PartialEq)]
pub enum Disturbance {
    /// These offers go away with all their nodes.
    Down(Vec<usize>),
    /// They can be launched again.
    Up(Vec<usize>),
    /// Prices of these offers are so many times what they were at the start.
    Price(Vec<usize>, f64),
    /// No decisions until then, seconds.
    PlannerSilent(f64),
    /// A fault on the server with this number; it strikes when so many nodes exist.
    Fault(u32),
    /// The capacity of these offers changes here: nodes above it are taken back.
    Reclaim(usize),
}

/// All of a run but its policy.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Offers, `[P]`.
    pub offers: Vec<Offer>,
    /// What the cloud has of each, `[P]`.
    pub supply: Vec<SimOffer>,
    /// Lead times believed before any launch, `[P]`.
    pub priors: Vec<LeadTime>,
    /// Shortest time that is billed, seconds.
    pub min_hold_s: u32,
    /// Plans hear how boots and nodes have fared; otherwise they go by what is published.
    pub learns_health: bool,
    /// Warning before a spot node is taken back, seconds.
    pub notice_s: f64,
    /// Launches a minute that each provider allows; infinite for no limit.
    pub rate_per_min: f64,
    /// Quotas over the offers.
    pub quotas: Vec<Quota>,
    /// Classes, `[K]`.
    pub classes: Vec<ClassRule>,
    /// Demand, by arrival.
    pub claims: Vec<ClaimSpec>,
    /// Disturbances by time, seconds.
    pub disturbances: Vec<(f64, Disturbance)>,
    /// Demand before the start.
    pub history: History,
    /// The claims of the first moment find a fleet of the cheapest nodes; otherwise everything starts empty.
    pub start_fleet: bool,
    /// Cost and counts are kept from here on, seconds; before it the fleet fills.
    pub measure_from_s: f64,
    /// End, seconds.
    pub end_s: f64,
    /// A decision each so many seconds.
    pub plan_every_s: u32,
    /// Seconds from a decision's inputs to its actions.
    pub plan_delay_s: f64,
    /// Phases of a cold start after the GPU is there, in order: image, host start, device start or restore.
    pub cold_start: Vec<(String, Dist)>,
    /// Copies of snapshots on hosts; none where starts are all alike.
    pub staging: Option<Staging>,
    /// Seed of the clouds and the cold starts.
    pub seed: u64,
}

/// A run that cannot go on: a bug, never an input.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// The book was asked for what cannot happen to a node.
    #[error("at {at_s} s: {source}")]
    Node {
        /// Virtual time.
        at_s: f64,
        /// What.
        source: fleet::book::NodeError,
    },
    /// The same of a claim.
    #[error("at {at_s} s: {source}")]
    Claim {
        /// Virtual time.
        at_s: f64,
        /// What.
        source: fleet::book::ClaimError,
    },
    /// The same of a launch or an end.
    #[error("at {at_s} s: {source}")]
    Intent {
        /// Virtual time.
        at_s: f64,
        /// What.
        source: fleet::book::IntentError,
    },
    /// A numbered invariant does not hold.
    #[error("at {at_s} s: {source}")]
    Invariant {
        /// Virtual time.
        at_s: f64,
        /// Which.
        source: fleet::invariants::Breach,
    },
    /// The policy gave no decision.
    #[error("at {at_s} s: {what}")]
    Policy {
        /// Virtual time.
        at_s: f64,
        /// Why.
        what: String,
    },
}
