//! The life of an intent, one provider action that is wanted. `after` is the only way from one state to another.

use serde::{Deserialize, Serialize};

/// Where an intent is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntentState {
    /// Durable; no call is known to be under way.
    Pending,
    /// A call was made and may have taken effect; its answer is not known.
    Sent,
    /// All of it is done.
    Fulfilled,
    /// Part of it is done.
    Partial,
    /// The provider refused it.
    Refused,
    /// Its time ran out.
    Expired,
}

/// What happens to an intent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntentEvent {
    /// A call is about to be made.
    Sent,
    /// It is certain that the last call did nothing.
    HadNoEffect,
    /// All of it is done.
    Done,
    /// Part of it is done, and no more will be.
    DoneInPart,
    /// The provider refused all of it.
    Refused,
    /// Its time ran out, and nothing of it is done.
    TimedOut,
}

/// An event that cannot happen in a state. Nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to an intent that is {state:?}")]
pub struct IllegalIntentEvent {
    /// State before.
    pub state: IntentState,
    /// The event.
    pub event: IntentEvent,
}

impl IntentState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Sent, Self::Fulfilled, Self::Partial, Self::Refused, Self::Expired];

    /// The word used in output and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sent => "sent",
            Self::Fulfilled => "fulfilled",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// Whether it is still to be acted on.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Sent)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// The event cannot happen in this state.
    pub fn after(self, event: IntentEvent) -> Result<Self, IllegalIntentEvent> {
        use IntentEvent as E;
        Ok(match (self, event) {
            // Sent again keeps it sent: an earlier answer was lost.
            (Self::Pending | Self::Sent, E::Sent) => Self::Sent,
            // Back to where nothing is known to be under way.
            (Self::Pending | Self::Sent, E::HadNoEffect) => Self::Pending,
            // From pending too: an instance is found by its token, or what is to end is gone already.
            (Self::Pending | Self::Sent, E::Done) => Self::Fulfilled,
            (Self::Pending | Self::Sent, E::DoneInPart) => Self::Partial,
            (Self::Pending | Self::Sent, E::Refused) => Self::Refused,
            (Self::Pending | Self::Sent, E::TimedOut) => Self::Expired,
            (Self::Fulfilled | Self::Partial | Self::Refused | Self::Expired, _) => {
                return Err(IllegalIntentEvent { state: self, event });
            }
        })
    }
}

/// How a provider answered a launch, for those who learn from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LaunchAnswer {
    /// It launched; fewer than asked for where it has no more.
    Launched,
    /// It has no machine of this kind there now.
    NoCapacity,
    /// The account may not have more.
    Quota,
    /// The price is above what was offered.
    Price,
    /// The request makes no sense to it.
    Configuration,
    /// The credentials may not do this.
    Authorisation,
    /// It was not launched in time.
    TimedOut,
    /// Its provider is not configured any more.
    NoProvider,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_stays_closed() {
        use IntentEvent as E;
        let events = [E::Sent, E::HadNoEffect, E::Done, E::DoneInPart, E::Refused, E::TimedOut];
        for state in IntentState::ALL {
            for event in events {
                assert_eq!(state.after(event).is_ok(), state.is_open(), "{state:?} {event:?}");
            }
        }
        assert_eq!(IntentState::Sent.after(E::HadNoEffect), Ok(IntentState::Pending));
        assert_eq!(IntentState::Sent.after(E::TimedOut), Ok(IntentState::Expired));
    }
}
