//! What clouds say, in plain words: why a call failed, which instances run, what they tell of their offers.

use serde::{Deserialize, Serialize};

use crate::intent::LaunchAnswer;
use crate::offer::OfferKey;

/// Why a call failed. What is learnt and what is done next depend on this alone, so that a quota is never taken for a
/// lack of machines, nor the reverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The cloud has no machine of this kind there now. Supply is learnt from it; other offers are tried.
    Capacity,
    /// The account may not have more. Says nothing about supply; a person must act, or nodes must go.
    Quota,
    /// Too many calls. The same call is made again later.
    Throttled,
    /// The price is above what was offered.
    Price,
    /// The request makes no sense to the cloud: an image, subnet or type that is not there. A person must act.
    Configuration,
    /// The credentials are wrong or may not do this. A person must act.
    Authorisation,
    /// Anything that may pass: a timeout, a broken connection, an internal error. The call may have taken effect.
    Transient,
    /// What the call is about does not exist any more.
    Gone,
}

impl ErrorKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Capacity,
        Self::Quota,
        Self::Throttled,
        Self::Price,
        Self::Configuration,
        Self::Authorisation,
        Self::Transient,
        Self::Gone,
    ];

    /// The word used in output and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Quota => "quota",
            Self::Throttled => "throttled",
            Self::Price => "price",
            Self::Configuration => "configuration",
            Self::Authorisation => "authorisation",
            Self::Transient => "transient",
            Self::Gone => "gone",
        }
    }

    /// What a launch that is refused so is to those who learn from it.
    #[must_use]
    pub fn answer(self) -> LaunchAnswer {
        match self {
            Self::Quota => LaunchAnswer::Quota,
            Self::Price => LaunchAnswer::Price,
            Self::Configuration => LaunchAnswer::Configuration,
            Self::Authorisation => LaunchAnswer::Authorisation,
            Self::Capacity | Self::Throttled | Self::Transient | Self::Gone => LaunchAnswer::NoCapacity,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Throttled | Self::Transient)
    }

    /// Whether the call may have taken effect although it failed.
    #[must_use]
    pub fn is_ambiguous(self) -> bool {
        self == Self::Transient
    }
}

/// An instance that carries our tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The cloud's name for it.
    pub id: String,
    /// Where and as what.
    pub offer: OfferKey,
    /// The token of its launch, from its tag.
    pub token: String,
    /// Where it is in its life.
    pub state: InstanceState,
    /// When it was launched, milliseconds since 1970.
    pub launched_at_ms: i64,
}

/// Where an instance is in its life, as the cloud says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// On its way.
    Pending,
    /// Billed.
    Running,
    /// Stopped, and can be started again.
    Stopped,
    /// On its way out.
    Ending,
    /// Gone.
    Ended,
}

/// The cloud takes an instance back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The instance.
    pub instance: String,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
}

/// What a cloud tells of an offer beside its price.
#[derive(Debug, Clone, PartialEq)]
pub struct Hint {
    /// Which.
    pub offer: OfferKey,
    /// Share of launches that it expects to fill, 0 to 1: a start for what is learnt.
    pub fill: Option<f64>,
    /// Nodes that can be had now, where it knows.
    pub launch_limit_nodes: Option<u32>,
    /// Nodes that there can be of it at all, where that is known: machines that somebody owns.
    pub nodes_max: Option<u32>,
    /// Nodes that are paid for whether used or not.
    pub committed_nodes: u32,
}
