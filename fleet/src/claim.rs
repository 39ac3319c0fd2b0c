//! The life of a claim. `after` is the only way from one state to another.

use serde::{Deserialize, Serialize};

/// Where a claim is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimState {
    /// Waits for GPUs.
    Queued,
    /// Has GPUs; the client has not yet confirmed.
    Granted,
    /// In use, its lease kept by heartbeats.
    Active,
    /// Given back.
    Released,
    /// Its deadline or its lease ran out.
    Expired,
    /// Could not be granted, or its node was lost.
    Failed,
}

/// What happens to a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClaimEvent {
    /// GPUs were found.
    Placed,
    /// The client's first heartbeat.
    Confirmed,
    /// The client gave it back, or no longer wants it.
    Released,
    /// The deadline or the lease passed.
    TimedOut,
    /// No GPUs and no way to wait, or the node is gone.
    NodeLost,
}

/// What a claim does when no GPU is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnEmpty {
    /// Fails at once.
    Fail,
    /// Waits until its deadline.
    #[default]
    Queue,
    /// Waits, and asks for a launch of its own.
    LaunchCold,
    /// Takes the next model that the class accepts, whatever its price cap.
    Substitute,
}

/// An event that cannot happen in a state. Nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a claim that is {state:?}")]
pub struct IllegalClaimEvent {
    /// State before.
    pub state: ClaimState,
    /// The event.
    pub event: ClaimEvent,
}

impl ClaimState {
    /// Every state.
    pub const ALL: [Self; 6] = [Self::Queued, Self::Granted, Self::Active, Self::Released, Self::Expired, Self::Failed];

    /// The word used in output and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Granted => "granted",
            Self::Active => "active",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// The event cannot happen in this state.
    pub fn after(self, event: ClaimEvent) -> Result<Self, IllegalClaimEvent> {
        use ClaimEvent as E;
        Ok(match (self, event) {
            (Self::Queued, E::Placed) => Self::Granted,
            (Self::Granted | Self::Active, E::Confirmed) => Self::Active,
            (Self::Queued | Self::Granted | Self::Active, E::Released) => Self::Released,
            (Self::Queued | Self::Granted | Self::Active, E::TimedOut) => Self::Expired,
            (Self::Queued | Self::Granted | Self::Active, E::NodeLost) => Self::Failed,
            _ => return Err(IllegalClaimEvent { state: self, event }),
        })
    }

    /// Whether it holds GPUs.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Granted | Self::Active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_ended() {
        use ClaimEvent as E;
        for state in [ClaimState::Released, ClaimState::Expired, ClaimState::Failed] {
            for event in [E::Placed, E::Confirmed, E::Released, E::TimedOut, E::NodeLost] {
                assert_eq!(state.after(event), Err(IllegalClaimEvent { state, event }));
            }
        }
        assert_eq!(ClaimState::Queued.after(E::Placed), Ok(ClaimState::Granted));
        assert!(ClaimState::Granted.after(E::Placed).is_err(), "GPUs are given once");
        assert!(ClaimState::Granted.is_live() && !ClaimState::Queued.is_live());
    }
}
