//! The league: every policy over every seed, its results on disk, and what they come to.
//!
//! Policies are compared at equal service only, each class against its own target, in dollars above perfect foresight: the
//! shipped planner that knows the demand. Simple rules stand with a knob for each class, tuned on the days before, and once
//! more in hindsight.

mod play;
mod standing;
mod tune;

use serde::{Deserialize, Serialize};

use crate::clairvoyant::Bound;
use crate::engine::Outcome;
use crate::policies::{Family, Rule};

pub use play::{Given, Job, LeagueError, Saved, Task, fingerprint, merge, play, play_all, tasks};
pub use standing::{Against, Estimate, Rivals, Service, Verdict};
pub use tune::{Choice, MARGINS, Tuned};

/// Who stands in the table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Player {
    /// The shipped planner.
    Live,
    /// The shipped planner on the mean path.
    LpMean,
    /// The shipped planner with the true demand in place of its forecast: what is left when forecasting is perfect.
    Foresight,
    /// A simple rule with the same knob for all classes.
    Swept(Rule),
    /// A family of simple rules with a knob for each class, tuned on the days before for all but a share of the misses that
    /// the targets allow: the share's place in [`MARGINS`].
    Before(Family, usize),
    /// The same, tuned in the test itself.
    Hindsight(Family),
}

impl Player {
    /// Name for tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Live => "planner".into(),
            Self::LpMean => "lp-mean".into(),
            Self::Foresight => "foresight".into(),
            Self::Swept(Rule { family: Family::None, .. }) => "none".into(),
            Self::Swept(rule) => format!("{} {}", rule.family.name(), rule.knob),
            Self::Before(family, _) => format!("{}, tuned before", family.name()),
            Self::Hindsight(family) => format!("{}, in hindsight", family.name()),
        }
    }

    /// Name without knobs.
    #[must_use]
    pub fn family(self) -> &'static str {
        match self {
            Self::Live => "planner",
            Self::LpMean => "lp-mean",
            Self::Foresight => "foresight",
            Self::Swept(Rule { family, .. }) | Self::Before(family, _) | Self::Hindsight(family) => family.name(),
        }
    }
}

/// A policy over all seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Who.
    pub player: Player,
    /// One for each seed, in the seeds' order.
    pub outcomes: Vec<Outcome>,
    /// Knob of each class for each seed, `[seeds][K]`; empty where there are none.
    pub knobs: Vec<Vec<f64>>,
}

/// The league of a scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct League {
    /// Scenario's name.
    pub name: String,
    /// Scenario's title.
    pub title: String,
    /// Fingerprint of the scenario.
    pub scenario: String,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// Test results.
    pub entries: Vec<Entry>,
    /// Clairvoyant bound for each seed.
    pub bounds: Vec<Bound>,
}
