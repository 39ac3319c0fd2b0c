//! One test binary for the crate.

mod actions;
mod brute_force;
mod checker;
mod closed_forms;
mod little_known;
mod monotone;
mod spare;
mod tiny;
