//! The records of a book.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::care::{Pending, Repair};
use super::diagnoses::Diagnosis;
use crate::cause::Cause;
use crate::claim::{ClaimState, OnEmpty};
use crate::class::Class;
use crate::gpu_set::GpuSet;
use crate::intent::IntentState;
use crate::node::NodeState;
use crate::offer::OfferKey;
use crate::remedy::Remedy;
use crate::staged::{Prediction, StagedCopy, StagingRoom};
use crate::start::Start;

/// A class with the rules of its claims.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassRule {
    /// What is claimed.
    pub class: Class,
    /// A claim granted within this time is a hit, milliseconds.
    pub wait_ms: i64,
    /// What a claim does when nothing is free, unless it says otherwise.
    pub on_empty: OnEmpty,
    /// A claim whose heartbeat stops is given back after this time, unless it says otherwise, milliseconds.
    pub lease_ms: i64,
    /// Mean life of a claim, seconds: a prior, until enough are seen.
    pub claim_mean_s: f64,
}

/// Limits that hold for all claims and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// A granted claim that its client does not confirm is given back after this time, milliseconds.
    pub confirm_ms: i64,
    /// Longest lease that a claim can ask for, milliseconds.
    pub lease_max_ms: i64,
    /// Longest time that a claim can wait, milliseconds.
    pub queue_max_ms: i64,
    /// A proof of health that is older grants nothing, milliseconds.
    pub proof_max_age_ms: i64,
    /// A node without a heartbeat for this time is lost, milliseconds.
    pub silent_ms: i64,
    /// A node that has not registered, or whose gate gave no answer, for this time is given up, milliseconds.
    pub boot_max_ms: i64,
    /// Claims that may wait at the same time.
    pub queued_claims_max: usize,
    /// Units of one claim.
    pub count_max: u32,
    /// A borrowed claim that is called back keeps its GPUs for so long at most, milliseconds. GPUs are lent only where all
    /// whom they serve wait as long.
    pub call_back_ms: i64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            confirm_ms: 30_000,
            lease_max_ms: 24 * 3_600_000,
            queue_max_ms: 3_600_000,
            proof_max_age_ms: 120_000,
            silent_ms: 60_000,
            boot_max_ms: 30 * 60_000,
            queued_claims_max: 10_000,
            count_max: 64,
            call_back_ms: 10_000,
        }
    }
}

/// One instance, from its launch to its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Identity.
    pub id: u64,
    /// Where and as what it was bought.
    pub offer: OfferKey,
    /// GPUs that it has, at most [`GpuSet::MAX`].
    pub gpus: u32,
    /// Where it is in its life.
    pub state: NodeState,
    /// GPUs without a claim.
    pub free: GpuSet,
    /// The cloud's name for it; none until the cloud has answered.
    pub instance: Option<String>,
    /// The intent that launched it; none for adopted nodes.
    pub intent: Option<u64>,
    /// The boot that its agent runs in. Reports of another boot change nothing (HLT-4).
    pub boot: Option<String>,
    /// When it was asked for, milliseconds since 1970.
    pub asked_at_ms: i64,
    /// When its state last changed, milliseconds since 1970.
    pub since_ms: i64,
    /// When every required check last passed, milliseconds since 1970.
    pub proof_at_ms: Option<i64>,
    /// When its agent was last heard, milliseconds since 1970.
    pub heard_at_ms: Option<i64>,
    /// It is to leave, and does not come back into the buffer, whatever its agent says.
    #[serde(default)]
    pub out: bool,
    /// Number of the last report of its boot.
    #[serde(default)]
    pub report_seq: Option<u64>,
    /// A person sends it back: it is ended once it has no claims, whatever holds its cause.
    #[serde(default)]
    pub sent_back: bool,
    /// What its health asks for. It takes no claims until then.
    #[serde(default)]
    pub care: Option<Pending>,
    /// Resets and reboots, the newest last.
    #[serde(default)]
    pub repairs: Vec<Repair>,
    /// What it is lent to, until the short gate after it has passed.
    #[serde(default)]
    pub diagnosis: Option<Diagnosis>,
    /// Time from being called back out of diagnostics to being idle, the last time, milliseconds.
    #[serde(default)]
    pub yield_ms: Option<i64>,
    /// Claims take others with as many free GPUs first: its test is due.
    #[serde(default)]
    pub claimed_last: bool,
    /// When its last claim ended, milliseconds since 1970.
    #[serde(default)]
    pub released_at_ms: Option<i64>,
    /// Serial numbers of its GPUs, in their order; empty where they tell none.
    #[serde(default)]
    pub serials: Vec<String>,
    /// It passed a gate with them.
    #[serde(default)]
    pub serials_proved: bool,
    /// Version of its driver.
    #[serde(default)]
    pub driver: Option<String>,
    /// Image that it was started from.
    #[serde(default)]
    pub image: Option<String>,
    /// What it hangs together with others by: a rack, an NVLink domain, a placement group.
    #[serde(default)]
    pub domain: Option<String>,
    /// How far what its agent is to do has come.
    #[serde(default)]
    pub desired: DesiredVersion,
    /// Copies of snapshots on it, by object.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<String, StagedCopy>,
    /// What it can keep of them; none where its agent keeps none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<StagingRoom>,
    /// Its last fault.
    #[serde(default)]
    pub cause: Option<Cause>,
    /// Why it is in its state.
    pub reason: String,
}

/// Counts what a host's agent is to do: it acts once on each value. The agent polls for another `all`, and each of its
/// subsystems acts when its own part has another value. Values are never below the time at which they were made, so that no
/// two nodes that one machine is, one after the other, share any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DesiredVersion {
    /// Rises with each change, of whichever part.
    pub all: i64,
    /// What `all` was when health's part last changed.
    pub health: i64,
    /// What `all` was when the copies that it is to have last changed.
    #[serde(default)]
    pub staging: i64,
}

impl DesiredVersion {
    /// The first, of a time, milliseconds since 1970.
    pub(super) fn at(now_ms: i64) -> Self {
        Self { all: now_ms, health: now_ms, staging: now_ms }
    }

    /// Of a record that has none: agents of that time were told when the state last changed.
    pub(super) fn or_at(self, since_ms: i64) -> Self {
        if self == Self::default() { Self::at(since_ms) } else { self }
    }

    /// Health's part has changed, at a time or later, milliseconds since 1970.
    pub(super) fn health_changed(&mut self, now_ms: i64) {
        self.all = now_ms.max(self.all + 1);
        self.health = self.all;
    }

    /// The copies that it is to have have changed.
    pub(super) fn staging_changed(&mut self, now_ms: i64) {
        self.all = now_ms.max(self.all + 1);
        self.staging = self.all;
    }
}

/// What health's part of the desired state is made of: another value is another order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HealthPart {
    state: NodeState,
    remedy: Option<Remedy>,
    tests: Option<String>,
    gate_is_short: bool,
}

impl Node {
    pub(super) fn health_part(&self) -> HealthPart {
        let of = |state| self.state == state;
        HealthPart {
            state: self.state,
            remedy: self.care.as_ref().filter(|_| of(NodeState::Repairing)).map(|c| c.remedy),
            tests: self.diagnosis.as_ref().filter(|_| of(NodeState::Diagnosing)).map(|d| d.tests.clone()),
            gate_is_short: self.gate_is_short(),
        }
    }

    /// Whether new claims may be placed on it, were GPUs of it free.
    #[must_use]
    pub fn takes_claims(&self) -> bool {
        self.state.takes_claims() && self.care.is_none()
    }

    /// Whether the gate that it runs is the short one, after diagnostics: it passed the whole one in this boot.
    #[must_use]
    pub fn gate_is_short(&self) -> bool {
        self.state == NodeState::Checking && self.diagnosis.is_some()
    }
}

/// Claims of a class that found out whether they hit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Granted within the class's wait.
    pub hits: u64,
    /// Not granted within it.
    pub misses: u64,
}

/// GPUs of one node that a claim has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The node.
    pub node: u64,
    /// Its GPUs.
    pub gpus: GpuSet,
}

/// GPUs handed to a scheduler, or asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// Identity.
    pub id: u64,
    /// Name of the class.
    pub class: String,
    /// Where it is in its life.
    pub state: ClaimState,
    /// Units of the class's claim size, all or none, in one zone.
    pub count: u32,
    /// Who made it, as the server knows him; empty where it does not.
    #[serde(default)]
    pub caller: String,
    /// GPUs that younger claims of its class were given while it waited first in line.
    #[serde(default)]
    pub passed_gpus: u32,
    /// The client's idempotency key.
    pub key: Option<String>,
    /// What was asked, to tell a retry from another request with the same key.
    pub digest: String,
    /// Who holds it, in the client's words.
    pub holder: String,
    /// What it does when nothing is free.
    pub on_empty: OnEmpty,
    /// Its GPUs.
    pub parts: Vec<Part>,
    /// Whether its GPUs are not of the class's first model.
    pub substituted: bool,
    /// When it was asked for, milliseconds since 1970.
    pub asked_at_ms: i64,
    /// Until when it waits, milliseconds since 1970.
    pub deadline_at_ms: i64,
    /// When it got its GPUs, milliseconds since 1970.
    pub granted_at_ms: Option<i64>,
    /// Time between heartbeats that it may take, milliseconds.
    pub lease_ms: i64,
    /// Until when it keeps its GPUs without a heartbeat, milliseconds since 1970.
    pub lease_until_ms: i64,
    /// Whether it was granted within the class's wait; `None` until that is known, or where the client gave up before.
    pub hit: Option<bool>,
    /// Its GPUs are borrowed: others that need them call it back.
    #[serde(default)]
    pub borrowed: bool,
    /// When it was called back, milliseconds since 1970.
    #[serde(default)]
    pub called_back_at_ms: Option<i64>,
    /// The snapshot that it starts from, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// How soon after the grant it will be ready, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// How soon it was, seconds, once its client says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_s: Option<f64>,
    /// What its host brings up for it, where that is the host's affair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// When it ended, milliseconds since 1970.
    pub ended_at_ms: Option<i64>,
    /// Why it is in its state.
    pub reason: String,
}

impl Claim {
    /// Whether it waits or holds GPUs.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == ClaimState::Queued || self.state.is_live()
    }

    /// When something happens to it by itself.
    #[must_use]
    pub fn due_at_ms(&self) -> i64 {
        if self.state == ClaimState::Queued { self.deadline_at_ms } else { self.lease_until_ms }
    }
}

/// One provider action that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum IntentAction {
    /// Launch the nodes, which are `requested`.
    Launch {
        /// Where and as what.
        offer: OfferKey,
        /// The nodes.
        nodes: Vec<u64>,
    },
    /// End one node.
    Terminate {
        /// The node.
        node: u64,
    },
}

/// One provider action that a plan asks for, durable before it is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Identity.
    pub id: u64,
    /// The plan that asks for it; 0 for the operator and for strays.
    pub epoch: u64,
    /// What.
    pub action: IntentAction,
    /// Idempotency token: one launch at most carries it (CAP-4).
    pub token: String,
    /// Where it is in its life.
    pub state: IntentState,
    /// Calls made.
    pub tries: u32,
    /// When the last call was made, milliseconds since 1970.
    pub sent_at_ms: Option<i64>,
    /// Not before, milliseconds since 1970.
    pub not_before_ms: i64,
    /// When it was made, milliseconds since 1970.
    pub made_at_ms: i64,
    /// When a launch is given up, milliseconds since 1970.
    pub expires_at_ms: i64,
    /// Answer of the last call.
    pub reason: String,
}
