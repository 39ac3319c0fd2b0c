//! One test binary for the crate.

mod actions;
mod brute_force;
mod checker;
mod closed_forms;
mod monotone;
mod spare;
mod tiny;
