//! What a fault has in common with others, as a word that programs act on.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::offer::OfferKey;

/// Why a node is out of service, or asks for care. Written as text: `xid:79`, `gate:memory`, `dcgm:14`, `silent`,
/// `driver:580.82.09`, `image:…`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Cause {
    /// A condition of the host, in the words of the failure policy: `xid:63`, `thermal`. What a newer agent says and we
    /// do not know stays as it was said.
    Condition(String),
    /// A check of the boot gate; none where it named none.
    Gate(Option<String>),
    /// NVIDIA's diagnostics, by their error; none where they named none.
    Diagnosis(Option<i64>),
    /// Its agent is silent.
    Silent,
    /// A passive check failed, and no condition says which.
    Passive,
    /// Its proof of health is too old.
    StaleProof,
    /// A version of the driver; `driver:2`, its own verdict, is a condition.
    Driver(String),
    /// An image.
    Image(String),
}

impl Cause {
    /// The cause of a condition, in the words of the failure policy.
    #[must_use]
    pub fn condition(word: &str) -> Self {
        Self::from(word)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Condition(word) => f.write_str(word),
            Self::Gate(None) => f.write_str("gate"),
            Self::Gate(Some(check)) => write!(f, "gate:{check}"),
            Self::Diagnosis(None) => f.write_str("dcgm"),
            Self::Diagnosis(Some(error)) => write!(f, "dcgm:{error}"),
            Self::Silent => f.write_str("silent"),
            Self::Passive => f.write_str("passive"),
            Self::StaleProof => f.write_str("stale-proof"),
            Self::Driver(version) => write!(f, "driver:{version}"),
            Self::Image(name) => write!(f, "image:{name}"),
        }
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Self {
        match text.split_once(':') {
            Some(("gate", check)) => Self::Gate(Some(check.to_owned())),
            Some(("dcgm", error)) => {
                error.parse().map_or_else(|_| Self::Condition(text.into()), |e| Self::Diagnosis(Some(e)))
            }
            Some(("driver", version)) if !is_verdict(version) => Self::Driver(version.to_owned()),
            Some(("image", name)) => Self::Image(name.to_owned()),
            Some(_) => Self::Condition(text.to_owned()),
            None => match text {
                "gate" => Self::Gate(None),
                "dcgm" => Self::Diagnosis(None),
                "silent" => Self::Silent,
                "passive" => Self::Passive,
                "stale-proof" => Self::StaleProof,
                other => Self::Condition(other.to_owned()),
            },
        }
    }
}

/// The driver's own verdict is a number of one or two digits (nvmlDeviceGetRecoveryAction); versions are longer.
fn is_verdict(word: &str) -> bool {
    word.len() <= 2 && word.bytes().all(|b| b.is_ascii_digit())
}

impl From<String> for Cause {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.to_string()
    }
}

impl FromStr for Cause {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self::from(text))
    }
}

/// Cloud, region and instance type: what fails together. Written `aws/us-east-1/p5.48xlarge`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Cell {
    /// Cloud.
    pub provider: String,
    /// The cloud's region.
    pub region: String,
    /// The cloud's instance type.
    pub instance_type: String,
}

impl Cell {
    /// The cell of an offer's nodes.
    #[must_use]
    pub fn of(offer: &OfferKey) -> Self {
        Self {
            provider: offer.provider.clone(),
            region: offer.region.clone(),
            instance_type: offer.instance_type.clone(),
        }
    }

    /// Whether an offer's nodes are in it.
    #[must_use]
    pub fn has(&self, offer: &OfferKey) -> bool {
        self.provider == offer.provider && self.region == offer.region && self.instance_type == offer.instance_type
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}/{}", self.provider, self.region, self.instance_type))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        // Neither clouds nor regions have a slash in their names; what is left is the type.
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { provider: next(), region: next(), instance_type: next() }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<Cell> for String {
    fn from(cell: Cell) -> Self {
        cell.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_their_words() {
        let words =
            ["xid:79", "driver:2", "gate", "gate:memory", "dcgm", "dcgm:14", "silent", "passive", "stale-proof"];
        for word in words.into_iter().chain(["driver:580.82.09", "image:img:7", "thermal", "dcgm:new", "", ":"]) {
            assert_eq!(Cause::from(word).to_string(), word);
        }
        assert_eq!(Cause::from("driver:2"), Cause::Condition("driver:2".into()), "the driver's own verdict");
        assert_eq!(Cause::from("driver:580.1"), Cause::Driver("580.1".into()));
        for version in ["580", "580.82.09", "r580-custom"] {
            let cause = Cause::Driver(version.into());
            assert_eq!(Cause::from(cause.to_string()), cause, "a version reads back as one");
        }
        assert_eq!(Cause::from("dcgm:14"), Cause::Diagnosis(Some(14)));
    }

    #[test]
    fn cells_are_their_words() {
        for text in ["aws/us-east-1/p5.48xlarge", "lab/r/odd/type", "a//"] {
            assert_eq!(Cell::from(text).to_string(), text);
        }
        assert_eq!(Cell::from("lab/r/odd/type").instance_type, "odd/type");
    }
}
