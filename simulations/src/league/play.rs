//! Playing the runs, their results on disk, and putting them together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use planner::miss_price::MissPrices;
use serde::{Deserialize, Serialize};

use super::tune::{self, Tuned};
use super::{Entry, League, Player};
use crate::clairvoyant::{self, Bound};
use crate::engine::{Outcome, run};
use crate::policies::{Family, Live, Rule, TrueFuture};
use crate::scenario::{Part, Prepared};

/// What is to be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Job {
    /// The shipped planner.
    Live,
    /// The shipped planner on the mean path.
    LpMean,
    /// The shipped planner with the true demand.
    Foresight,
    /// The clairvoyant bound.
    Bound,
    /// A family of simple rules: every knob, then a knob for each class.
    Simple(Family),
}

/// One run, or the runs of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Seed.
    pub seed: u64,
    /// What.
    pub job: Job,
}

impl Task {
    /// A name for its file.
    #[must_use]
    pub fn id(&self) -> String {
        let job = match self.job {
            Job::Live => "planner",
            Job::LpMean => "lp-mean",
            Job::Foresight => "foresight",
            Job::Bound => "clairvoyant",
            Job::Simple(family) => family.name(),
        };
        format!("{}-{job}", self.seed)
    }
}

/// What a task gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Given {
    /// Of the planner.
    Outcome(Box<Outcome>),
    /// Of a family of simple rules.
    Tuned(Box<Tuned>),
    /// Of the clairvoyant.
    Bound(Bound),
}

/// A result on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Fingerprint of the scenario's text and of this program's version.
    pub scenario: String,
    /// The task.
    pub task: Task,
    /// Its result.
    pub given: Given,
}

/// All tasks of a scenario, in a fixed order, the longest first.
#[must_use]
pub fn tasks(seeds: &[u64]) -> Vec<Task> {
    let first = [Job::Live, Job::Foresight, Job::LpMean, Job::Bound];
    let jobs = first.into_iter().chain(Family::ALL.into_iter().map(Job::Simple));
    jobs.flat_map(|job| seeds.iter().map(move |seed| Task { seed: *seed, job })).collect()
}

/// Changes with what a result holds and with how the bound is computed.
const FORMAT: &str = "4";

/// Fingerprint of a scenario's text with the program's version (FNV-1a, 64 bits).
#[must_use]
pub fn fingerprint(text: &str) -> String {
    let bytes = text.bytes().chain(env!("CARGO_PKG_VERSION").bytes()).chain(FORMAT.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// Why a league cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum LeagueError {
    /// A run failed: a bug.
    #[error("{task}: {source}")]
    Run {
        /// Which.
        task: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file could not be written or read.
    #[error("{file}: {source}")]
    File {
        /// Which.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A result of another scenario.
    #[error("{0} is of another scenario or version: give an empty folder")]
    Stranger(String),
    /// Not all runs are there.
    #[error("{missing} of {all} runs are missing, the first is {first}: run the other shards, or again, then merge")]
    Missing {
        /// How many.
        missing: usize,
        /// Of so many.
        all: usize,
        /// For instance.
        first: String,
    },
}

/// Plays one task.
///
/// # Errors
/// See [`LeagueError`].
pub fn play(prepared: &Prepared, task: Task) -> Result<Given, LeagueError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| LeagueError::Run { task: task.id(), source };
    let setup = |part| prepared.setup(part, task.seed).map_err(|e| failed(e.into()));
    let test = setup(Part::Test)?;
    let live = |mean_only: bool, knowing: bool| {
        let rules = prepared.live_rules(mean_only);
        let policy = |past, setup| {
            let live = Live::new(rules.clone(), past);
            if knowing { live.foreseeing(TrueFuture::of(setup)) } else { live }
        };
        // What simple rules take from the days before is their knob; the planner's is its prices of misses.
        let mut tune = setup(Part::Tune)?;
        // Up to where this run begins, not a moment twice.
        tune.end_s -= test.measure_from_s;
        let mut before = policy(MissPrices::default(), &tune);
        run(&tune, &mut before).map_err(|e| failed(e.into()))?;
        let outcome = run(&test, &mut policy(before.prices(), &test)).map_err(|e| failed(e.into()))?;
        Ok(Given::Outcome(Box::new(outcome)))
    };
    match task.job {
        Job::Live => live(false, false),
        Job::LpMean => live(true, false),
        Job::Foresight => live(false, true),
        Job::Bound => Ok(Given::Bound(clairvoyant::bound(&test).map_err(|e| failed(e.into()))?)),
        Job::Simple(family) => {
            let tuned = tune::play(&setup(Part::Tune)?, &test, family).map_err(|e| failed(e.into()))?;
            Ok(Given::Tuned(Box::new(tuned)))
        }
    }
}

fn file_of(folder: &Path, task: &Task) -> PathBuf {
    folder.join(format!("{}.json", task.id()))
}

/// Plays the tasks that have no result in `folder` yet, on `threads` threads; each result appears whole or not at all,
/// so that an interrupted league goes on where it was. `done` is called after each task.
///
/// # Errors
/// The first that occurs; see [`LeagueError`].
pub fn play_all(
    prepared: &Prepared,
    scenario: &str,
    tasks: &[Task],
    folder: &Path,
    threads: usize,
    done: &(dyn Fn(&Task) + Sync),
) -> Result<(), LeagueError> {
    let io = |file: &Path| {
        let file = file.display().to_string();
        move |source| LeagueError::File { file, source }
    };
    std::fs::create_dir_all(folder).map_err(io(folder))?;
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<LeagueError>> = Mutex::new(None);
    let one = |task: &Task| -> Result<(), LeagueError> {
        let path = file_of(folder, task);
        if path.exists() {
            match load(&path, scenario) {
                Ok(_) => return Ok(()),
                // Of an older version, or damaged: played again.
                Err(LeagueError::File { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let saved = Saved { scenario: scenario.to_owned(), task: *task, given: play(prepared, *task)? };
        let text = serde_json::to_vec(&saved).map_err(|e| LeagueError::File { file: task.id(), source: e.into() })?;
        let part = path.with_extension("part");
        std::fs::write(&part, text).map_err(io(&part))?;
        std::fs::rename(&part, &path).map_err(io(&path))
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = one(task);
                    done(task);
                    if let Err(error) = result {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        next.store(tasks.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

fn load(path: &Path, scenario: &str) -> Result<Saved, LeagueError> {
    let file = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| LeagueError::File { file: file(), source })?;
    let saved: Saved =
        serde_json::from_slice(&text).map_err(|e| LeagueError::File { file: file(), source: e.into() })?;
    if saved.scenario == scenario { Ok(saved) } else { Err(LeagueError::Stranger(file())) }
}

/// Assembles a league from the results in `folder`.
///
/// # Errors
/// Runs that are missing, or of another scenario.
pub fn merge(prepared: &Prepared, scenario: &str, folder: &Path) -> Result<League, LeagueError> {
    let spec = prepared.scenario();
    let all = tasks(&spec.seeds);
    let missing: Vec<&Task> = all.iter().filter(|t| !file_of(folder, t).exists()).collect();
    if let Some(first) = missing.first() {
        return Err(LeagueError::Missing { missing: missing.len(), all: all.len(), first: first.id() });
    }
    let mut results: BTreeMap<String, Given> = BTreeMap::new();
    for task in &all {
        results.insert(task.id(), load(&file_of(folder, task), scenario)?.given);
    }
    let given = |job: Job| -> Vec<&Given> {
        spec.seeds.iter().filter_map(|seed| results.get(&Task { seed: *seed, job }.id())).collect()
    };
    let mut entries = Vec::new();
    for (job, player) in [(Job::Live, Player::Live), (Job::LpMean, Player::LpMean), (Job::Foresight, Player::Foresight)]
    {
        let outcome = |g: &&Given| if let Given::Outcome(o) = g { Some((**o).clone()) } else { None };
        let outcomes = given(job).iter().filter_map(outcome).collect();
        entries.push(Entry { player, outcomes, knobs: Vec::new() });
    }
    for family in Family::ALL {
        let tuned: Vec<&Tuned> = given(Job::Simple(family))
            .into_iter()
            .filter_map(|g| if let Given::Tuned(tuned) = g { Some(&**tuned) } else { None })
            .collect();
        entries.extend(entries_of(family, &tuned));
    }
    let bound = |g: &Given| if let Given::Bound(bound) = g { Some(*bound) } else { None };
    Ok(League {
        name: spec.name.clone(),
        title: spec.title.clone(),
        scenario: scenario.to_owned(),
        seeds: spec.seeds.clone(),
        entries,
        bounds: given(Job::Bound).into_iter().filter_map(bound).collect(),
    })
}

/// The entries of a family, whose results are one for each seed.
fn entries_of(family: Family, tuned: &[&Tuned]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (i, knob) in family.knobs().iter().enumerate() {
        let outcomes = tuned.iter().map(|t| t.swept[i].clone()).collect();
        entries.push(Entry { player: Player::Swept(Rule::new(family, *knob)), outcomes, knobs: Vec::new() });
    }
    let mut push = |player, of: &dyn Fn(&Tuned) -> tune::Choice| {
        let (knobs, outcomes) = tuned.iter().map(|t| of(t)).map(|c| (c.knobs, c.outcome)).unzip();
        entries.push(Entry { player, outcomes, knobs });
    };
    for margin in 0..tune::MARGINS.len() {
        push(Player::Before(family, margin), &|t| t.before[margin].clone());
    }
    push(Player::Hindsight(family), &|t| t.hindsight.clone());
    entries
}
