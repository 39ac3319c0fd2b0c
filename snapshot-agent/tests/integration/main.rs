//! The agent from the outside, on scripted hosts.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod buckets;
mod check;
mod collect;
mod device;
mod diagnose;
mod faults;
mod kernels;
mod mount;
mod oci;
mod peers;
mod restore;
mod stage;
mod stand;
mod store;
