//! The agent on each GPU host: checks the host's health, and reports it.

pub mod check;
pub mod cli;
pub mod daemon;
pub mod diagnose;
pub mod doctor;
pub mod gate;
pub mod gpu;
pub mod host;
pub mod kmsg;
mod limits;
pub mod nvml;
pub mod probe;
pub mod restore;
pub mod rules;
pub mod snapshots;
pub mod switches;
pub mod worker;
