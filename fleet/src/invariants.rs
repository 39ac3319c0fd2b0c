//! Numbered properties that must hold at every moment. One list for the simulator, the fault tests, the server, its
//! metrics and the documents.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A numbered property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Invariant {
    /// A GPU belongs to at most one live claim.
    #[serde(rename = "CAP-1")]
    Cap1,
    /// A granted claim survives any crash once acknowledged.
    #[serde(rename = "CAP-2")]
    Cap2,
    /// Every instance that a provider bills is known, or adopted or ended within the grace time.
    #[serde(rename = "CAP-3")]
    Cap3,
    /// One intent causes at most one launch.
    #[serde(rename = "CAP-4")]
    Cap4,
    /// Only a node with a proof of health of this boot, no older than its limit, is granted.
    #[serde(rename = "CAP-5")]
    Cap5,
    /// Spend and launch rate never exceed the operator's guards.
    #[serde(rename = "CAP-6")]
    Cap6,
    /// A plan never breaks its own checker.
    #[serde(rename = "CAP-7")]
    Cap7,
    /// Idle implies a pass of every required check of this boot.
    #[serde(rename = "HLT-1")]
    Hlt1,
    /// Every raised condition is clearable or terminal.
    #[serde(rename = "HLT-2")]
    Hlt2,
    /// Diagnostics never take the buffer under its hot reserve.
    #[serde(rename = "HLT-3")]
    Hlt3,
    /// A stale report (older boot or epoch) changes nothing.
    #[serde(rename = "HLT-4")]
    Hlt4,
    /// Monitor failure alone never ends a node.
    #[serde(rename = "HLT-5")]
    Hlt5,
    /// Destructive actions never exceed the breaker.
    #[serde(rename = "HLT-6")]
    Hlt6,
}

/// Where a property is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckedBy {
    /// The server, on its own book: after each commit what changed, each minute all of it.
    Book,
    /// Whoever decides it, at the moment of the decision: a breach is counted there.
    Decision,
    /// Types and tests: no moment's state shows a breach.
    Tests,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Cap1,
        Self::Cap2,
        Self::Cap3,
        Self::Cap4,
        Self::Cap5,
        Self::Cap6,
        Self::Cap7,
        Self::Hlt1,
        Self::Hlt2,
        Self::Hlt3,
        Self::Hlt4,
        Self::Hlt5,
        Self::Hlt6,
    ];

    /// Its number, `CAP-1`.
    #[must_use]
    pub fn number(self) -> &'static str {
        self.described().0
    }

    /// What it says.
    #[must_use]
    pub fn text(self) -> &'static str {
        self.described().1
    }

    /// Why it must hold: whose harm it prevents.
    #[must_use]
    pub fn why(self) -> &'static str {
        self.described().2
    }

    /// Where it is looked at.
    #[must_use]
    pub fn checked_by(self) -> CheckedBy {
        self.described().3
    }

    fn described(self) -> (&'static str, &'static str, &'static str, CheckedBy) {
        use CheckedBy::{Book, Decision, Tests};
        match self {
            Self::Cap1 => (
                "CAP-1",
                "a GPU belongs to at most one live claim",
                "two workloads on one GPU corrupt or starve each other",
                Book,
            ),
            Self::Cap2 => (
                "CAP-2",
                "a granted claim survives any crash once acknowledged",
                "a scheduler has started a workload on it",
                Tests,
            ),
            Self::Cap3 => (
                "CAP-3",
                "every instance that a provider bills is known, or adopted or ended within the grace time",
                "what nobody knows is paid for ever",
                Decision,
            ),
            Self::Cap4 => ("CAP-4", "one intent causes at most one launch", "a lost answer must not buy twice", Book),
            Self::Cap5 => (
                "CAP-5",
                "only a node with a proof of health of this boot, no older than its limit, is granted",
                "a claim on a sick GPU is worse than a miss",
                Book,
            ),
            Self::Cap6 => (
                "CAP-6",
                "spend and launch rate never exceed the operator's guards",
                "a wrong plan must stay affordable",
                Decision,
            ),
            Self::Cap7 => (
                "CAP-7",
                "a plan never breaks its own checker",
                "what the solver says is not trusted without a look",
                Decision,
            ),
            Self::Hlt1 => (
                "HLT-1",
                "idle implies a pass of every required check of this boot",
                "'not measured' is not healthy",
                Book,
            ),
            Self::Hlt2 => (
                "HLT-2",
                "every raised condition is clearable or terminal",
                "a condition without an end takes a node out for ever",
                Tests,
            ),
            Self::Hlt3 => (
                "HLT-3",
                "diagnostics never take the buffer under its hot reserve",
                "a test must not cost a claim",
                Decision,
            ),
            Self::Hlt4 => (
                "HLT-4",
                "a stale report (older boot or epoch) changes nothing",
                "late words of a host that is gone would condemn or praise another",
                Tests,
            ),
            Self::Hlt5 => (
                "HLT-5",
                "monitor failure alone never ends a node",
                "a bug of ours must not take a healthy fleet down",
                Tests,
            ),
            Self::Hlt6 => (
                "HLT-6",
                "destructive actions never exceed the breaker",
                "one bad rollout must not destroy a fleet",
                Book,
            ),
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.number())
    }
}

/// A property that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Breach {
    /// Which.
    pub invariant: Invariant,
    /// Who breaks it, for people.
    pub what: String,
}

impl Breach {
    /// A breach.
    #[must_use]
    pub fn new(invariant: Invariant, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_their_own() {
        let mut numbers: Vec<&str> = Invariant::ALL.iter().map(|i| i.number()).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), Invariant::ALL.len());
        assert_eq!(serde_json::to_string(&Invariant::Hlt3).expect("JSON"), "\"HLT-3\"");
    }
}
