//! What the event log says.

use serde::{Deserialize, Serialize};

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// A node.
    Node,
    /// A claim.
    Claim,
    /// An intent.
    Intent,
}

impl Subject {
    /// The word in the log, and the letter before its number.
    #[must_use]
    pub fn name(self) -> (&'static str, char) {
        match self {
            Self::Node => ("node", 'n'),
            Self::Claim => ("claim", 'c'),
            Self::Intent => ("intent", 'i'),
        }
    }
}

/// One state change with its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What it is about.
    pub subject: Subject,
    /// Which.
    pub id: u64,
    /// State before; empty for a new one.
    pub from: String,
    /// State after.
    pub to: String,
    /// Why.
    pub reason: String,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
}
