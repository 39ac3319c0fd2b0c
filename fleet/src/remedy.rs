//! What is done about a fault: one vocabulary for the boot gate, NVIDIA's diagnostics, the failure policy, the agent and
//! the book.

use serde::{Deserialize, Serialize};

/// What would mend a host, or is to be done with it, the mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// Nothing to mend, or nothing known that would.
    Nothing,
    /// It is written down.
    Record,
    /// Asked again later: nothing was said about the GPUs.
    #[serde(alias = "again")]
    TryAgain,
    /// The host's set-up is put right. Never a reason for another host.
    #[serde(alias = "fix-and-repeat")]
    SetUp,
    /// The gate, or the test, is run again; the second time it is not by chance.
    #[serde(alias = "repeat")]
    Recheck,
    /// A GPU is reset, and the gate run.
    #[serde(alias = "reset-and-recheck")]
    Reset,
    /// The host is rebooted, and the gate run.
    Reboot,
    /// Another host: this one is taken out, with the evidence.
    #[serde(alias = "quarantine")]
    Replace,
}

impl Remedy {
    /// Every remedy.
    pub const ALL: [Self; 8] = [
        Self::Nothing,
        Self::Record,
        Self::TryAgain,
        Self::SetUp,
        Self::Recheck,
        Self::Reset,
        Self::Reboot,
        Self::Replace,
    ];

    /// The word used in files and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Record => "record",
            Self::TryAgain => "try-again",
            Self::SetUp => "set-up",
            Self::Recheck => "recheck",
            Self::Reset => "reset",
            Self::Reboot => "reboot",
            Self::Replace => "replace",
        }
    }

    /// Whether a node waits for it, is given it when it is empty, and comes back into service by the gate.
    #[must_use]
    pub fn is_care(self) -> bool {
        matches!(self, Self::Recheck | Self::Reset | Self::Reboot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_files() {
        for remedy in Remedy::ALL {
            assert_eq!(serde_json::to_string(&remedy).expect("JSON"), format!("\"{}\"", remedy.name()));
        }
        let old = [("again", Remedy::TryAgain), ("reset-and-recheck", Remedy::Reset), ("quarantine", Remedy::Replace)];
        for (word, remedy) in old {
            assert_eq!(serde_json::from_str::<Remedy>(&format!("\"{word}\"")).expect("it was written so"), remedy);
        }
        assert!(serde_json::from_str::<Remedy>("\"another\"").is_err(), "what is unknown is no reset");
    }
}
