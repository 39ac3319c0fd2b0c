//! The life of a node, from the launch request to its end. `after` is the only way from one state to another.

use serde::{Deserialize, Serialize};

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeState {
    /// Asked for; the cloud has not answered.
    Requested,
    /// Accepted by the cloud and billed; the host starts.
    Booting,
    /// The agent has registered; the boot gate runs.
    Checking,
    /// Proven healthy, without a claim: the buffer.
    Idle,
    /// Holds at least one claim.
    Claimed,
    /// Running diagnostics, which yield to a claim: the node is called back, checked shortly, and idle again.
    Diagnosing,
    /// No new claims; ends when the last one has.
    Draining,
    /// Failed a check; kept for evidence.
    Quarantined,
    /// A reset or reboot is under way; the gate follows.
    Repairing,
    /// The agent is silent.
    Lost,
    /// The cloud was asked to end it.
    Terminating,
    /// Gone and no longer billed.
    Terminated,
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodeEvent {
    /// The cloud accepted the launch.
    Accepted,
    /// The cloud refused it, or the request ran out.
    Refused,
    /// The agent registered.
    Registered,
    /// Every required check of this boot passed.
    GatePassed,
    /// A check failed or could not be made.
    GateFailed,
    /// A claim was placed on it.
    ClaimPlaced,
    /// Its last claim ended.
    LastClaimEnded,
    /// Diagnostics began.
    DiagnosisStarted,
    /// Diagnostics ended, or gave way to a claim; a short gate follows.
    DiagnosisEnded,
    /// It is to take no more claims: a plan gives it back, a client complains, an operator says so.
    DrainStarted,
    /// The cloud says that it will take it back.
    ReclaimNoticed,
    /// A fault was found.
    FaultFound,
    /// The gate is to run again.
    RecheckStarted,
    /// A reset or reboot began.
    RepairStarted,
    /// Its heartbeat stopped.
    WentSilent,
    /// Its heartbeat is back; the gate runs again.
    CameBack,
    /// The cloud was asked to end it.
    TerminationSent,
    /// The cloud says that it is gone, whoever ended it.
    Gone,
}

/// An event that cannot happen in a state: a bug or a stale report. Nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a node that is {state:?}")]
pub struct IllegalNodeEvent {
    /// State before.
    pub state: NodeState,
    /// The event.
    pub event: NodeEvent,
}

impl NodeState {
    /// Every state.
    pub const ALL: [Self; 12] = [
        Self::Requested,
        Self::Booting,
        Self::Checking,
        Self::Idle,
        Self::Claimed,
        Self::Diagnosing,
        Self::Draining,
        Self::Quarantined,
        Self::Repairing,
        Self::Lost,
        Self::Terminating,
        Self::Terminated,
    ];

    /// The word used in output and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Booting => "booting",
            Self::Checking => "checking",
            Self::Idle => "idle",
            Self::Claimed => "claimed",
            Self::Diagnosing => "diagnosing",
            Self::Draining => "draining",
            Self::Quarantined => "quarantined",
            Self::Repairing => "repairing",
            Self::Lost => "lost",
            Self::Terminating => "terminating",
            Self::Terminated => "terminated",
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
    pub fn after(self, event: NodeEvent) -> Result<Self, IllegalNodeEvent> {
        use NodeEvent as E;
        Ok(match (self, event) {
            (Self::Terminated, _) => return Err(IllegalNodeEvent { state: self, event }),
            (_, E::Gone) | (Self::Requested, E::Refused) => Self::Terminated,
            (Self::Requested, E::Accepted) => Self::Booting,
            (Self::Terminating, _) => return Err(IllegalNodeEvent { state: self, event }),
            (_, E::TerminationSent) => Self::Terminating,
            (Self::Booting, E::Registered) | (Self::Repairing, E::Registered) | (Self::Lost, E::CameBack) => {
                Self::Checking
            }
            (Self::Checking, E::GatePassed) => Self::Idle,
            (Self::Checking, E::GateFailed) => Self::Quarantined,
            (Self::Idle | Self::Claimed, E::ClaimPlaced) => Self::Claimed,
            (Self::Claimed, E::LastClaimEnded) => Self::Idle,
            (Self::Idle, E::DiagnosisStarted) => Self::Diagnosing,
            (Self::Diagnosing, E::DiagnosisEnded) | (Self::Idle | Self::Diagnosing, E::RecheckStarted) => {
                Self::Checking
            }
            (Self::Idle | Self::Claimed | Self::Diagnosing | Self::Draining, E::DrainStarted | E::ReclaimNoticed)
            | (Self::Draining, E::LastClaimEnded) => Self::Draining,
            (
                Self::Checking
                | Self::Idle
                | Self::Claimed
                | Self::Diagnosing
                | Self::Draining
                | Self::Lost
                | Self::Quarantined,
                E::FaultFound,
            ) => Self::Quarantined,
            (Self::Idle | Self::Diagnosing | Self::Quarantined, E::RepairStarted) => Self::Repairing,
            (
                Self::Booting
                | Self::Checking
                | Self::Idle
                | Self::Claimed
                | Self::Diagnosing
                | Self::Draining
                | Self::Repairing
                | Self::Lost,
                E::WentSilent,
            ) => Self::Lost,
            _ => return Err(IllegalNodeEvent { state: self, event }),
        })
    }

    /// Whether a claim may be placed on it.
    #[must_use]
    pub fn takes_claims(self) -> bool {
        matches!(self, Self::Idle | Self::Claimed)
    }

    /// Whether it belongs to the buffer or serves: it takes claims, or does once it is called back.
    #[must_use]
    pub fn in_service(self) -> bool {
        self.takes_claims() || self == Self::Diagnosing
    }

    /// Whether the cloud bills it.
    #[must_use]
    pub fn is_billed(self) -> bool {
        !matches!(self, Self::Requested | Self::Terminated)
    }

    /// Whether it is on its way to being idle for the first time.
    #[must_use]
    pub fn is_arriving(self) -> bool {
        matches!(self, Self::Requested | Self::Booting | Self::Checking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_life() {
        use NodeEvent as E;
        let life = [
            (E::Accepted, NodeState::Booting),
            (E::Registered, NodeState::Checking),
            (E::GatePassed, NodeState::Idle),
            (E::ClaimPlaced, NodeState::Claimed),
            (E::ClaimPlaced, NodeState::Claimed),
            (E::LastClaimEnded, NodeState::Idle),
            (E::DiagnosisStarted, NodeState::Diagnosing),
            (E::DiagnosisEnded, NodeState::Checking),
            (E::GatePassed, NodeState::Idle),
            (E::ClaimPlaced, NodeState::Claimed),
            (E::FaultFound, NodeState::Quarantined),
            (E::RepairStarted, NodeState::Repairing),
            (E::Registered, NodeState::Checking),
            (E::GateFailed, NodeState::Quarantined),
            (E::TerminationSent, NodeState::Terminating),
            (E::Gone, NodeState::Terminated),
        ];
        let mut state = NodeState::Requested;
        for (event, then) in life {
            state = state.after(event).expect("legal");
            assert_eq!(state, then, "after {event:?}");
        }
    }

    /// Health is proven by a pass of the gate, and by nothing else.
    #[test]
    fn only_a_pass_makes_a_new_node_idle() {
        use NodeEvent as E;
        let events = [
            E::Accepted,
            E::Registered,
            E::GateFailed,
            E::ClaimPlaced,
            E::LastClaimEnded,
            E::CameBack,
            E::DiagnosisEnded,
        ];
        let unproven = [
            NodeState::Requested,
            NodeState::Booting,
            NodeState::Checking,
            NodeState::Diagnosing,
            NodeState::Quarantined,
            NodeState::Lost,
        ];
        for state in unproven {
            for event in events {
                assert!(!state.after(event).is_ok_and(NodeState::takes_claims), "{state:?} {event:?}");
            }
        }
        assert!(NodeState::Terminated.after(E::Gone).is_err());
        assert!(NodeState::Terminating.after(E::ClaimPlaced).is_err());
    }

    #[test]
    fn every_living_node_can_end() {
        for state in NodeState::ALL.into_iter().filter(|s| *s != NodeState::Terminated) {
            assert_eq!(state.after(NodeEvent::Gone), Ok(NodeState::Terminated));
            assert!(state == NodeState::Terminating || state.after(NodeEvent::TerminationSent).is_ok());
        }
    }
}
