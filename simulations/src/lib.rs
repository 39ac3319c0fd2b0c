//! Replays demand: trace readers, the virtual-time engine, and the policies that are compared.

pub mod claims;
pub mod clairvoyant;
pub mod demand;
pub mod engine;
pub mod league;
pub mod parts;
pub mod policies;
pub mod scenario;
pub mod weekly;
