//! What hosts bring up by themselves for claims: as they are told, and as they report.

use fleet::book::StartFact;
use fleet::{Attempt, StartState};
use serde::{Deserialize, Serialize};

/// Something that a host is to have brought up, as long as this stands in its orders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StartOrder {
    /// The claim, `c-42`.
    pub claim: String,
    /// Address of the store.
    pub store: String,
    /// Id of the object.
    pub object: String,
    /// GPUs that it is for, as the management library counts them.
    pub gpus: Vec<u32>,
}

/// How far a host has come with all that it was told to bring up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StartsReport {
    /// The boot that it is about.
    pub boot: String,
    /// Each of them.
    pub starts: Vec<StartReport>,
}

/// How far a host has come with one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StartReport {
    /// The claim, `c-42`.
    pub claim: String,
    /// `coming`, `ready`, `failed` or `ended`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub state: StartState,
    /// What was tried, the newest last.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<Object>))]
    pub attempts: Vec<Attempt>,
    /// Why it is so, for people.
    #[serde(default)]
    pub problem: String,
}

/// Attempts of one report, phases of one attempt, and characters of a problem.
const ATTEMPTS_MAX: usize = 8;
const PHASES_MAX: usize = 32;
const PROBLEM_MAX: usize = 300;
/// Longest phase, seconds: a day.
const SECONDS_MAX: f64 = 86_400.0;

impl StartReport {
    /// The claim's number and what is said of it, bounded; none where it names no claim or its seconds are none.
    #[must_use]
    pub fn fact(&self) -> Option<(u64, StartFact)> {
        let short = |text: &str| text.chars().take(PROBLEM_MAX).collect::<String>();
        let sound = |seconds: &f64| (0.0..=SECONDS_MAX).contains(seconds);
        let phases = self.attempts.iter().flat_map(|attempt| &attempt.phases);
        let attempt = |attempt: &Attempt| Attempt {
            rung: attempt.rung,
            phases: attempt.phases.iter().take(PHASES_MAX).copied().collect(),
            problem: short(&attempt.problem),
        };
        let id = self.claim.strip_prefix("c-")?.parse().ok()?;
        phases.map(|(_, seconds)| seconds).all(sound).then(|| {
            let excess = self.attempts.len().saturating_sub(ATTEMPTS_MAX);
            let attempts = self.attempts[excess..].iter().map(attempt).collect();
            (id, StartFact { state: self.state, attempts, problem: short(&self.problem) })
        })
    }
}
