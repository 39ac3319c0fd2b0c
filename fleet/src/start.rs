//! Workloads that hosts bring up by themselves where GPUs are claimed: how each is brought up, how far it has come, and what its
//! steps took.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A way to bring a workload up, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// The process as it was captured.
    Restore,
    /// From nothing.
    ColdStart,
}

impl Rung {
    /// Every rung.
    pub const ALL: [Self; 2] = [Self::Restore, Self::ColdStart];

    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::ColdStart => "cold start",
        }
    }
}

/// A step of bringing a workload up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The host hears of it, and ends what ran on the GPUs before.
    Order,
    /// Bytes come from the store.
    Fetch,
    /// CUDA starts, and memory is pinned.
    Prepare,
    /// The program is started.
    Start,
    /// Processes come back.
    Processes,
    /// The driver brings contexts back.
    Driver,
    /// What is left of device memory is waited for and given to the processes.
    DeviceMemory,
    /// The operator's own commands.
    AfterRestore,
    /// It is asked until it answers.
    Ready,
    /// It answers as it did when it was captured.
    Canary,
    /// After a failure: the GPUs are waited for.
    CleanGpus,
}

impl Phase {
    /// Every phase, in their order.
    pub const ALL: [Self; 11] = [
        Self::Order,
        Self::Fetch,
        Self::Prepare,
        Self::Start,
        Self::Processes,
        Self::Driver,
        Self::DeviceMemory,
        Self::AfterRestore,
        Self::Ready,
        Self::Canary,
        Self::CleanGpus,
    ];

    /// The words used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Fetch => "fetch",
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Processes => "processes",
            Self::Driver => "driver",
            Self::DeviceMemory => "device memory",
            Self::AfterRestore => "after restore",
            Self::Ready => "ready",
            Self::Canary => "canary",
            Self::CleanGpus => "clean GPUs",
        }
    }
}

/// How far a workload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartState {
    /// The host brings it up.
    Coming,
    /// It answers.
    Ready,
    /// Nothing worked.
    Failed,
    /// It has ended by itself.
    Ended,
}

impl StartState {
    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Coming => "coming",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// A rung that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub rung: Rung,
    /// Seconds of each phase, in their order.
    pub phases: Vec<(Phase, f64)>,
    /// Why it failed, for people; empty where it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

/// A workload that a host brings up for a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Address of the store that it lies in.
    pub store: String,
    /// Its id there.
    pub object: String,
    /// How far it has come.
    pub state: StartState,
    /// What was tried, the newest last.
    pub attempts: Vec<Attempt>,
    /// Why it is so, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

impl Start {
    /// What happened, in a line.
    #[must_use]
    pub fn in_words(&self) -> String {
        let of = |attempt: &Attempt| {
            let seconds: f64 = attempt.phases.iter().map(|(_, seconds)| seconds).sum();
            let phases: Vec<String> =
                attempt.phases.iter().map(|(phase, seconds)| format!("{} {seconds:.2}", phase.name())).collect();
            let failed =
                if attempt.problem.is_empty() { String::new() } else { format!(" failed: {}", attempt.problem) };
            format!("{} in {seconds:.2} s ({}){failed}", attempt.rung.name(), phases.join(", "))
        };
        let mut all: Vec<String> = self.attempts.iter().map(of).collect();
        if !self.problem.is_empty() {
            all.push(self.problem.clone());
        }
        if all.is_empty() { "its host brings it up".into() } else { all.join("; ") }
    }
}

/// What a start took that became ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartTook {
    /// The rung that worked.
    pub rung: Rung,
    /// Seconds from the grant to the answer.
    pub ready_s: f64,
    /// Seconds of each phase of the rung that worked.
    pub phases: Vec<(Phase, f64)>,
}

/// Quantiles of so many starts, seconds, by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    /// In half of all starts at most so many.
    pub p50_s: f64,
    /// In nine of ten.
    pub p90_s: f64,
    /// In 99 of a hundred.
    pub p99_s: f64,
    /// Starts.
    pub count: usize,
}

impl Quantiles {
    /// Of these; none of nothing.
    #[must_use]
    pub fn of(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let count = seconds.len();
        let rank = |q: f64| seconds.get(((q * count as f64).ceil() as usize).clamp(1, count.max(1)) - 1).copied();
        Some(Self { p50_s: rank(0.5)?, p90_s: rank(0.9)?, p99_s: rank(0.99)?, count })
    }
}

/// What starts of one kind took: by rung, in all and phase by phase. A phase that a start did not have counts in none of its
/// quantiles.
#[must_use]
pub fn by_phase(starts: &[StartTook]) -> BTreeMap<(Rung, Option<Phase>), Quantiles> {
    let mut seconds: BTreeMap<(Rung, Option<Phase>), Vec<f64>> = BTreeMap::new();
    for start in starts {
        seconds.entry((start.rung, None)).or_default().push(start.ready_s);
        for (phase, phase_s) in &start.phases {
            seconds.entry((start.rung, Some(*phase))).or_default().push(*phase_s);
        }
    }
    seconds.into_iter().filter_map(|(key, seconds)| Some((key, Quantiles::of(seconds)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let of = Quantiles::of(hundred).expect("some");
        assert_eq!((of.p50_s, of.p90_s, of.p99_s, of.count), (50.0, 90.0, 99.0, 100));
        assert_eq!(Quantiles::of(vec![7.0]).map(|of| (of.p50_s, of.p99_s)), Some((7.0, 7.0)));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn a_start_in_words() {
        let (store, object, problem) = (String::new(), String::new(), String::new());
        let mut start = Start { store, object, state: StartState::Coming, attempts: Vec::new(), problem };
        assert_eq!(start.in_words(), "its host brings it up");
        let failed = vec![(Phase::Processes, 0.4), (Phase::CleanGpus, 0.1)];
        start.attempts.push(Attempt { rung: Rung::Restore, phases: failed, problem: "criu: no".into() });
        start.attempts.push(Attempt { rung: Rung::ColdStart, phases: vec![(Phase::Ready, 30.0)], problem: "".into() });
        let words =
            "restore in 0.50 s (processes 0.40, clean GPUs 0.10) failed: criu: no; cold start in 30.00 s (ready 30.00)";
        assert_eq!(start.in_words(), words);
    }
}
