//! What claims of a run start from, what hosts keep of it, and who says what they are to have.

use fleet::{Snapshot, StagingRoom};

/// Copies of snapshots on hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct Staging {
    /// Snapshots of all classes.
    pub snapshots: Vec<Snapshot>,
    /// What each host keeps, and how fast it is.
    pub room: StagingRoom,
    /// Who decides.
    pub stager: Stager,
}

/// Who says which copies hosts are to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stager {
    /// Nobody: each start is cold.
    Nothing,
    /// What ran on a host stays there, the last longest.
    Cache,
    /// Each idle host has what was last asked for, as much of it as fits.
    Recent,
    /// The shipped plan.
    Plan,
}

impl Stager {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Cache, Self::Recent, Self::Plan];

    /// Name for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Cache => "what ran there",
            Self::Recent => "what was last asked for",
            Self::Plan => "the staging plan",
        }
    }
}
