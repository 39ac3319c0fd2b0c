//! What checks say.

use serde::{Deserialize, Serialize};

/// What a check, or all of them together, says. Only `Pass` proves health.
///
/// In the order of how much each outweighs the others: one failure makes the whole a failure; where nothing failed, one
/// thing that was not measured leaves the whole unmeasured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Measured, and within its limits.
    Pass,
    /// Works, and less well than it should.
    Degraded,
    /// Could not be measured.
    Unmeasured,
    /// Outside its limits, or broken.
    Fail,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Pass, Self::Degraded, Self::Unmeasured, Self::Fail];

    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Degraded => "degraded",
            Self::Unmeasured => "unmeasured",
            Self::Fail => "fail",
        }
    }

    /// The exit code of commands that say it; 1 and 2 are errors of the command itself.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Degraded => 3,
            Self::Unmeasured => 4,
            Self::Fail => 5,
        }
    }

    /// All verdicts together. Of nothing at all, nothing was measured.
    #[must_use]
    pub fn of_all(verdicts: impl IntoIterator<Item = Self>) -> Self {
        verdicts.into_iter().max().unwrap_or(Self::Unmeasured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_measured_is_never_healthy() {
        assert_eq!(Verdict::of_all([]), Verdict::Unmeasured);
        for other in Verdict::ALL {
            assert_ne!(Verdict::of_all([Verdict::Unmeasured, other]), Verdict::Pass);
            assert_eq!(Verdict::of_all([Verdict::Fail, other]), Verdict::Fail);
        }
        assert_eq!(Verdict::of_all([Verdict::Pass, Verdict::Pass]), Verdict::Pass);
    }
}
