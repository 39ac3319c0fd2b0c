//! Real processes: the control plane, agents, databases, and what happens when one of them goes away.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![allow(clippy::print_stdout, reason = "tests say what they skip and measure")]

#[cfg(feature = "aws")]
mod aws;
mod clocks;
mod daemon;
#[path = "../../../server/tests/integration/databases.rs"]
#[allow(dead_code, reason = "the server's own tests use the rest")]
mod databases;
mod diagnosed_weekly;
mod holding;
mod hostile;
#[cfg(feature = "aws")]
#[path = "../../../providers/tests/moto/mod.rs"]
mod moto;
mod outages;
mod power;
mod process;
mod replicas;
mod restores;
mod serving;
mod shared;
mod staging;
#[path = "../../../snapshot-agent/tests/integration/stand.rs"]
#[allow(dead_code, reason = "the agent's own tests use the rest")]
mod stand;
