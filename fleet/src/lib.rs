//! The words of Pilotlight and its pure state: offers, claim classes, GPU models, money.
//!
//! Nothing here does I/O, reads a clock or draws a random number; every crate may depend on it.

pub mod admission;
pub mod book;
pub mod claim;
pub mod class;
pub mod gpu;
pub mod gpu_set;
pub mod invariants;
pub mod money;
pub mod node;
pub mod offer;
pub mod placement;
pub mod rng;

pub use admission::{Caps, Refusal, yields};
pub use claim::{ClaimEvent, ClaimState, OnEmpty};
pub use class::{AcceptedGpu, Class, PriceCap};
pub use gpu::{FormFactor, GpuModel, Interconnect, UnknownGpu};
pub use gpu_set::GpuSet;
pub use money::{MoneyError, UsdMicros};
pub use node::{NodeEvent, NodeState};
pub use offer::{Market, Offer, OfferKey};
