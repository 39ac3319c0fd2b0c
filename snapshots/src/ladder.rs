//! How a workload is brought up: the rungs, what each is expected to take, and which is tried. A restore is never tried that
//! is expected to be slower than a cold start, or that has failed here again and again.

use serde::{Deserialize, Serialize};

use crate::compatibility::Refusal;
pub use fleet::Rung;

/// Restores that failed one after the other on a host before no more are tried there.
pub const STRIKES_MAX: u32 = 3;
/// Starts that are remembered.
const STARTS_KEPT: usize = 16;
/// Bytes a second that an engine reads its images at before it was measured: CRIU 4.1 on one disk.
const IMAGE_BYTES_PER_S: f64 = 1.5e9;
/// Bytes a second that device memory comes back at before it was measured: half of what PCIe of generation 5 carries.
const DEVICE_BYTES_PER_S: f64 = 2.5e10;
/// Seconds of a restore beside those in which bytes move, before it was measured.
const RESTORE_S: f64 = 0.5;

/// What starts took on this host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Seconds of restores that became ready, the newest last; without those in which bytes were fetched.
    pub restores_s: Vec<f64>,
    /// Of those for which everything was made ready before.
    pub prepared_s: Vec<f64>,
    /// Seconds of cold starts that became ready.
    pub cold_starts_s: Vec<f64>,
    /// Restores that have failed since the last that did not.
    pub strikes: u32,
}

impl History {
    /// A start became ready; `prepared`: everything was made ready before.
    pub fn ready(&mut self, rung: Rung, seconds: f64, prepared: bool) {
        let known = match rung {
            Rung::Restore => {
                self.strikes = 0;
                if prepared { &mut self.prepared_s } else { &mut self.restores_s }
            }
            Rung::ColdStart => &mut self.cold_starts_s,
        };
        known.push(seconds);
        let excess = known.len().saturating_sub(STARTS_KEPT);
        known.drain(..excess);
    }

    /// A restore failed.
    pub fn failed(&mut self) {
        self.strikes = self.strikes.saturating_add(1);
    }
}

/// What is known when a workload is to come up.
#[derive(Debug, Clone, PartialEq)]
pub struct Situation {
    /// Reasons against a restore on this host.
    pub refusals: Vec<Refusal>,
    /// What starts took here.
    pub history: History,
    /// Seconds of the cold start before the capture.
    pub cold_s: f64,
    /// Bytes of the snapshot that the engine reads.
    pub engine_bytes: u64,
    /// Bytes of it that go to GPUs by themselves, meanwhile.
    pub device_bytes: u64,
    /// Bytes of it that are not on this host.
    pub missing_bytes: u64,
    /// Whether everything is made ready.
    pub prepared: bool,
    /// What the host fetches, bytes a second.
    pub fetch_bytes_per_s: f64,
}

/// A rung with what it is expected to take, and why it is not tried, if it is not.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The rung.
    pub rung: Rung,
    /// Seconds to readiness.
    pub expected_s: f64,
    /// Reasons against it.
    pub against: Vec<Against>,
}

/// Why a rung is not tried.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Against {
    /// The host cannot.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It failed too often.
    #[error(
        "it failed {0} times in a row on this host: capture it anew, or 'pilotlight-agent restore --forget' to try again"
    )]
    Strikes(u32),
    /// A cold start is expected to be faster.
    #[error("a cold start is expected to take {0:.1} s")]
    Slower(f64),
}

/// The rungs from the top, each with what is expected of it.
#[must_use]
pub fn ladder(situation: &Situation) -> Vec<Step> {
    let median = |known: &[f64]| {
        let mut sorted = known.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    };
    let cold_s = median(&situation.history.cold_starts_s).unwrap_or(situation.cold_s);
    let fetch_s = situation.missing_bytes as f64 / situation.fetch_bytes_per_s.max(1.0);
    let engine_s = situation.engine_bytes as f64 / IMAGE_BYTES_PER_S;
    let read_s = RESTORE_S + engine_s.max(situation.device_bytes as f64 / DEVICE_BYTES_PER_S);
    let history = &situation.history;
    let measured = if situation.prepared { &history.prepared_s } else { &history.restores_s };
    let restore_s = fetch_s + median(measured).unwrap_or(read_s);
    let mut against: Vec<Against> = situation.refusals.iter().cloned().map(Against::from).collect();
    if situation.history.strikes >= STRIKES_MAX {
        against.push(Against::Strikes(situation.history.strikes));
    }
    if restore_s > cold_s {
        against.push(Against::Slower(cold_s));
    }
    vec![
        Step { rung: Rung::Restore, expected_s: restore_s, against },
        Step { rung: Rung::ColdStart, expected_s: cold_s, against: Vec::new() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn situation() -> Situation {
        Situation {
            refusals: Vec::new(),
            history: History::default(),
            cold_s: 60.0,
            engine_bytes: 3_000_000_000,
            device_bytes: 0,
            missing_bytes: 0,
            prepared: false,
            fetch_bytes_per_s: 1e9,
        }
    }

    fn tried(situation: &Situation) -> Rung {
        ladder(situation)
            .into_iter()
            .find(|step| step.against.is_empty())
            .expect("a cold start can always be tried")
            .rung
    }

    #[test]
    fn the_best_rung_that_nothing_speaks_against() {
        assert_eq!(tried(&situation()), Rung::Restore);
        assert!((ladder(&situation())[0].expected_s - 2.5).abs() < 1e-9);
        // Both go on at once.
        let device = Situation { device_bytes: 100_000_000_000, ..situation() };
        assert!((ladder(&device)[0].expected_s - 4.5).abs() < 1e-9);
        let refused = Situation { refusals: vec![Refusal::NoEngine("criu".into())], ..situation() };
        assert_eq!(tried(&refused), Rung::ColdStart);
        // A minute of fetching is more than a minute of starting.
        assert_eq!(tried(&Situation { missing_bytes: 70_000_000_000, ..situation() }), Rung::ColdStart);
        assert_eq!(tried(&Situation { cold_s: 2.0, ..situation() }), Rung::ColdStart);
    }

    #[test]
    fn what_was_measured_here_counts_more_than_what_is_assumed() {
        let mut slow = situation();
        (0..40).for_each(|_| slow.history.ready(Rung::Restore, 90.0, false));
        assert_eq!((tried(&slow), slow.history.restores_s.len()), (Rung::ColdStart, STARTS_KEPT));
        // Of what is made ready before, that says nothing.
        assert_eq!(tried(&Situation { prepared: true, ..slow.clone() }), Rung::Restore);
        (0..40).for_each(|_| slow.history.ready(Rung::ColdStart, 100.0, false));
        assert_eq!(tried(&slow), Rung::Restore);
    }

    #[test]
    fn what_fails_again_and_again_is_not_tried_until_it_works() {
        let mut bad = situation();
        (0..STRIKES_MAX - 1).for_each(|_| bad.history.failed());
        assert_eq!(tried(&bad), Rung::Restore);
        bad.history.failed();
        assert_eq!(tried(&bad), Rung::ColdStart);
        bad.history.ready(Rung::Restore, 2.0, true);
        assert_eq!(tried(&bad), Rung::Restore);
    }
}
