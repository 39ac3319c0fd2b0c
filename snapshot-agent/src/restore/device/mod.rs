//! The part of a tree that is on GPUs. Bulk memory of processes that have the library is moved by this host's own child at the
//! speed of the bus ([`mover`]); what is left, and processes without the library, go by the driver's checkpoints ([`driver`]).

pub mod driver;
pub mod freeze;
pub mod mover;
pub mod thaw;

use serde::{Deserialize, Serialize};

use crate::gpu::bulk::Uuid;

/// Bulk memory of one process on one GPU: a stream of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Number of the process in its own namespace.
    pub process: i32,
    /// The GPU.
    pub gpu: Uuid,
    /// Name of the stream.
    pub stream: String,
    /// Addresses and bytes of its segments, which follow each other in the stream.
    pub segments: Vec<(u64, u64)>,
}

impl Part {
    /// Bytes of all segments.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The number that a process has in its own namespace.
fn own_number(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}
