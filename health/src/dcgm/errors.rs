//! Versions, severities and error ids.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A DCGM release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u32, pub u32, pub u32);

impl FromStr for Version {
    type Err = String;

    /// Reads `4.5.2`; what follows the numbers (`4.5.2-1`) does not matter.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no version");
        let mut parts = text.trim().split(['.', '-', '+', '~']);
        let mut next = || parts.next().and_then(|p| p.parse::<u32>().ok());
        let (major, minor) = (next().ok_or_else(wrong)?, next().ok_or_else(wrong)?);
        Ok(Self(major, minor, next().unwrap_or(0)))
    }
}

/// What an error of a diagnostic asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// To be written down.
    Monitor,
    /// The machine is set up wrongly; the GPU is not to blame.
    Config,
    /// Somebody must look: it may be the GPU.
    Triage,
    /// The GPU needs a reset.
    Reset,
    /// The GPU must not be used.
    Isolate,
}

impl Severity {
    /// The meaning of the number in a document. The enumeration changed with 3.3 (DCGM `dcgm_errors.h`): what is 1 before
    /// is 2 after, and other tools read one with the other's meaning. A number that is not known needs a look.
    #[must_use]
    pub fn of_number(number: i64, version: Version) -> Self {
        if version < Version(3, 3, 0) {
            return match number {
                0 => Self::Monitor,
                1 => Self::Isolate,
                _ => Self::Triage,
            };
        }
        match number {
            1 => Self::Monitor,
            2 => Self::Isolate,
            5 => Self::Config,
            6 => Self::Reset,
            // 0 is "none", 3 "unknown", 4 "triage"; a warning without severity is not a warning to pass over.
            _ => Self::Triage,
        }
    }

    /// The usual severity of an error id, for documents that give none. An id that is not known needs a look.
    #[must_use]
    pub fn of_error(id: i64) -> Self {
        known().get(&id).map_or(Self::Triage, |(_, severity)| *severity)
    }

    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Config => "config",
            Self::Triage => "triage",
            Self::Reset => "reset",
            Self::Isolate => "isolate",
        }
    }
}

/// DCGM's name of an error id.
#[must_use]
pub fn name_of(id: i64) -> Option<&'static str> {
    known().get(&id).map(|(name, _)| *name)
}

/// The id of a name.
#[must_use]
pub fn id_of(name: &str) -> Option<i64> {
    known().iter().find(|(_, (known, _))| *known == name.trim()).map(|(id, _)| *id)
}

/// The table of error ids.
fn known() -> &'static BTreeMap<i64, (&'static str, Severity)> {
    static TABLE: OnceLock<BTreeMap<i64, (&'static str, Severity)>> = OnceLock::new();
    TABLE.get_or_init(|| include_str!("../../data/dcgm_errors.csv").lines().filter_map(row).collect())
}

fn row(line: &'static str) -> Option<(i64, (&'static str, Severity))> {
    let mut cells = line.split(',');
    let (id, name, severity) = (cells.next()?.parse().ok()?, cells.next()?, cells.next()?);
    let severity = match severity {
        "monitor" => Severity::Monitor,
        "isolate" => Severity::Isolate,
        "config" => Severity::Config,
        "reset" => Severity::Reset,
        _ => Severity::Triage,
    };
    Some((id, (name, severity)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_enumeration_changed_with_3_3() {
        let (old, new) = (Version(3, 1, 8), Version(3, 3, 0));
        assert_eq!((Severity::of_number(1, old), Severity::of_number(1, new)), (Severity::Isolate, Severity::Monitor));
        assert_eq!((Severity::of_number(2, old), Severity::of_number(2, new)), (Severity::Triage, Severity::Isolate));
        assert_eq!(Severity::of_number(6, new), Severity::Reset);
        for number in [-1, 0, 3, 4, 7, i64::MAX] {
            assert_eq!(Severity::of_number(number, new), Severity::Triage, "{number}");
        }
    }

    #[test]
    fn every_error_of_the_table_reads() {
        let rows = include_str!("../../data/dcgm_errors.csv").lines().filter(|l| l.starts_with(char::is_numeric));
        assert_eq!(known().len(), rows.count());
        assert!(known().len() >= 130);
        assert_eq!(Severity::of_error(99_999), Severity::Triage);
        assert_eq!(name_of(29), Some("DCGM_FR_PERSISTENCE_MODE"));
    }

    #[test]
    fn versions_read() {
        assert_eq!("4.5.2".parse(), Ok(Version(4, 5, 2)));
        assert_eq!("3.3.9-1".parse(), Ok(Version(3, 3, 9)));
        assert!("four".parse::<Version>().is_err());
    }
}
