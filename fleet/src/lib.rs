//! The words of Pilotlight and its pure state: offers, claim classes, GPU models, money.
//!
//! Nothing here does I/O, reads a clock or draws a random number; every crate may depend on it.

pub mod admission;
pub mod book;
pub mod cause;
pub mod claim;
pub mod class;
pub mod cloud;
pub mod gpu;
pub mod gpu_set;
pub mod intent;
pub mod invariants;
pub mod money;
pub mod node;
pub mod offer;
pub mod placement;
pub mod remedy;
pub mod rng;
pub mod staged;
pub mod start;

pub use admission::{Caps, Refusal, offer_share};
pub use cause::{Cause, Cell};
pub use claim::{ClaimEvent, ClaimState, OnEmpty};
pub use class::{AcceptedGpu, Class, PriceCap};
pub use gpu::{FormFactor, GpuModel, Interconnect, UnknownGpu};
pub use gpu_set::GpuSet;
pub use intent::{IntentEvent, IntentState, LaunchAnswer};
pub use money::{MoneyError, UsdMicros};
pub use node::{NodeEvent, NodeState};
pub use offer::{Market, Offer, OfferKey};
pub use remedy::Remedy;
pub use staged::{CopyState, Prediction, Presence, Readiness, Snapshot, StagedCopy, StagingRoom, StartedBy, Tier};
pub use start::{Attempt, Phase, Quantiles, Rung, Start, StartState, StartTook};
