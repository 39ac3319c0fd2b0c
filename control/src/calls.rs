//! What is done with an intent: which call is made next, and what its answer means.

use fleet::book::{Book, Intent, IntentAction};
use fleet::cloud::{ErrorKind, Instance, InstanceState};
use fleet::{Cause, IntentState, LaunchAnswer, NodeState};

/// First wait before a call is made again, milliseconds; doubles up to [`AGAIN_MAX_MS`].
const AGAIN_MS: i64 = 2_000;
const AGAIN_MAX_MS: i64 = 300_000;
/// After a launch whose answer was lost, the provider's list is asked for so long before another call is made,
/// milliseconds: what it launched may show late.
const AMBIGUOUS_MS: i64 = 60_000;
/// Time between looks for it, milliseconds.
const LOOK_MS: i64 = 5_000;

/// Intents whose time has come.
#[must_use]
pub fn due(book: &Book, now_ms: i64) -> Vec<Intent> {
    book.intents().values().filter(|i| i.not_before_ms <= now_ms).cloned().collect()
}

/// The provider that an intent is for; none where its node is gone.
#[must_use]
pub fn provider_of(book: &Book, intent: &Intent) -> Option<String> {
    match &intent.action {
        IntentAction::Launch { offer, .. } => Some(offer.provider.clone()),
        IntentAction::Terminate { node } => book.nodes().get(node).map(|n| n.offer.provider.clone()),
    }
}

/// What is to be done for a launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaunchStep {
    /// The answer of an earlier call was lost: the provider's list says what it launched.
    Look,
    /// Its time is over.
    GiveUp,
    /// The call is made.
    Call,
}

/// The next step of a launch.
#[must_use]
pub fn launch_step(intent: &Intent, now_ms: i64) -> LaunchStep {
    if intent.state == IntentState::Sent {
        LaunchStep::Look
    } else if now_ms >= intent.expires_at_ms {
        LaunchStep::GiveUp
    } else {
        LaunchStep::Call
    }
}

/// What the provider's list says of a launch whose answer was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Looked {
    /// These are what it launched.
    Found(Vec<Instance>),
    /// Nothing, or not all, shows yet: it is looked for again then, milliseconds since 1970.
    Again(i64),
    /// It launched nothing: its time is over, or the call is made again.
    Nothing(LaunchStep),
}

/// Looks for what a launch whose answer was lost has launched.
#[must_use]
pub fn looked(intent: &Intent, listed: Vec<Instance>, now_ms: i64) -> Looked {
    let count = match &intent.action {
        IntentAction::Launch { nodes, .. } => nodes.len(),
        IntentAction::Terminate { .. } => 0,
    };
    let alive = |i: &Instance| i.token == intent.token && i.state != InstanceState::Ended;
    let mine: Vec<Instance> = listed.into_iter().filter(alive).collect();
    let late = intent.sent_at_ms.is_none_or(|at| now_ms - at >= AMBIGUOUS_MS);
    // Some may show before others.
    if mine.len() >= count.max(1) || (late && !mine.is_empty()) {
        return Looked::Found(mine);
    }
    if !late {
        return Looked::Again(now_ms + LOOK_MS);
    }
    Looked::Nothing(if now_ms >= intent.expires_at_ms { LaunchStep::GiveUp } else { LaunchStep::Call })
}

/// What a provider's answer to a launch is to those who learn from it.
#[must_use]
pub fn answer_of(intent: &Intent, instances: usize) -> (LaunchAnswer, &'static str) {
    let asked = match &intent.action {
        IntentAction::Launch { nodes, .. } => nodes.len(),
        IntentAction::Terminate { .. } => 0,
    };
    let all = instances >= asked;
    let reason = if all { "launched" } else { "the provider has no more of them now" };
    (if all { LaunchAnswer::Launched } else { LaunchAnswer::NoCapacity }, reason)
}

/// A call that is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// After so many milliseconds.
    pub wait_ms: i64,
    /// It is certain that the last call did nothing.
    pub no_effect: bool,
}

/// When a call that failed is made again: longer each time, and not at once for what a person must mend.
#[must_use]
pub fn again(intent: &Intent, kind: ErrorKind) -> Again {
    let doubled = AGAIN_MS.saturating_mul(1_i64 << intent.tries.min(10));
    let wait_ms = if kind.may_pass() { doubled.min(AGAIN_MAX_MS) } else { AGAIN_MAX_MS };
    // Once an answer was lost, no later error says what that call did.
    Again { wait_ms, no_effect: intent.state == IntentState::Pending && !kind.is_ambiguous() }
}

/// What is to be done for an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndStep {
    /// A breaker has opened since it was asked for: nothing is ended for this cause.
    Held(Cause),
    /// Never launched, as far as is known: its launch is still being answered.
    NotLaunched,
    /// The call is made; the cloud is told of the fault first where there is one, once.
    Call {
        /// The cloud's name for it.
        instance: String,
        /// Why it is out, in words for the cloud.
        fault: Option<String>,
    },
}

/// The next step of an end.
#[must_use]
pub fn end_step(book: &Book, intent: &Intent, node: u64) -> EndStep {
    let Some(found) = book.nodes().get(&node) else { return EndStep::NotLaunched };
    let out = found.state == NodeState::Quarantined;
    if let Some(cause) = book.held_for(found).filter(|_| out) {
        return EndStep::Held(cause.clone());
    }
    match &found.instance {
        Some(instance) => {
            let fault = (out && intent.tries == 0).then(|| found.reason.clone());
            EndStep::Call { instance: instance.clone(), fault }
        }
        None => EndStep::NotLaunched,
    }
}
