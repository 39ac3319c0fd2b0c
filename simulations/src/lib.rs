//! Replays demand: trace readers, the virtual-time engine, and the policies that are compared.

pub mod claims;
pub mod demand;
pub mod engine;
pub mod policies;
