//! What every provider must do.

mod aws;
mod conformance;
#[cfg(feature = "aws")]
#[path = "../moto/mod.rs"]
mod moto;
