//! The agent from the outside, on scripted hosts.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod check;
mod daemon;
mod diagnose;
mod diagnosed_weekly;
mod kernels;
mod stand;
