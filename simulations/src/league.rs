//! The league: every policy over every seed, its results on disk, and what they come to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use planner::error_budget::ErrorBudget;

use crate::clairvoyant::{self, Bound};
use crate::engine::{Outcome, run};
use crate::policies::{Live, Policy, Rule, Simple};
use crate::scenario::{Part, Prepared};

/// Who plays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Player {
    /// A simple rule with its knob.
    Simple(Rule),
    /// The shipped planner on the mean path.
    LpMean,
    /// The shipped planner.
    Live,
    /// The clairvoyant bound.
    Bound,
}

impl Player {
    /// Name with the knob.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Simple(Rule::None) => "none".into(),
            Self::Simple(rule) => format!("{} {}", rule.name(), rule.knob()),
            Self::LpMean => "lp-mean".into(),
            Self::Live => "planner".into(),
            Self::Bound => "clairvoyant".into(),
        }
    }

    /// Name without the knob.
    #[must_use]
    pub fn family(self) -> &'static str {
        match self {
            Self::Simple(rule) => rule.name(),
            Self::LpMean => "lp-mean",
            Self::Live => "planner",
            Self::Bound => "clairvoyant",
        }
    }
}

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Part of the trace.
    pub part: Part,
    /// Seed.
    pub seed: u64,
    /// Who.
    pub player: Player,
}

impl Task {
    /// A name for its file.
    #[must_use]
    pub fn id(&self) -> String {
        let part = if self.part == Part::Tune { "tune" } else { "test" };
        format!("{part}-{}-{}", self.seed, self.player.name().replace(' ', "-"))
    }
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Given {
    /// Of a policy.
    Outcome(Box<Outcome>),
    /// Of the clairvoyant.
    Bound(Bound),
}

/// A result on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Fingerprint of the scenario's text and of this program's version.
    pub scenario: String,
    /// The run.
    pub task: Task,
    /// Its result.
    pub given: Given,
}

/// All runs of a scenario, in a fixed order.
#[must_use]
pub fn tasks(seeds: &[u64]) -> Vec<Task> {
    let mut all = Vec::new();
    for &seed in seeds {
        let mut push = |part, player| all.push(Task { part, seed, player });
        for player in [Player::Live, Player::LpMean, Player::Bound] {
            push(Part::Test, player);
        }
        for rule in Rule::swept() {
            push(Part::Tune, Player::Simple(rule));
            push(Part::Test, Player::Simple(rule));
        }
    }
    all
}

/// Changes with what a result holds and with how the bound is computed.
const FORMAT: &str = "3";

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

/// Plays one run.
///
/// # Errors
/// See [`LeagueError`].
pub fn play(prepared: &Prepared, task: Task) -> Result<Given, LeagueError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| LeagueError::Run { task: task.id(), source };
    let setup = prepared.setup(task.part, task.seed).map_err(|e| failed(e.into()))?;
    let mut policy: Box<dyn Policy> = match task.player {
        Player::Bound => return Ok(Given::Bound(clairvoyant::bound(&setup).map_err(|e| failed(e.into()))?)),
        Player::Simple(rule) => Box::new(Simple::new(rule)),
        Player::LpMean | Player::Live => {
            let rules = prepared.live_rules(task.player == Player::LpMean);
            // What simple rules take from the days before is their knob; the planner's is its error budget.
            let mut before = Live::new(rules.clone(), ErrorBudget::default());
            let mut tune = prepared.setup(Part::Tune, task.seed).map_err(|e| failed(e.into()))?;
            // Up to where this run begins, not a moment twice.
            tune.end_s -= setup.measure_from_s;
            run(&tune, &mut before).map_err(|e| failed(e.into()))?;
            Box::new(Live::new(rules, before.error_budget()))
        }
    };
    let outcome = run(&setup, policy.as_mut()).map_err(|e| failed(e.into()))?;
    Ok(Given::Outcome(Box::new(outcome)))
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

/// A policy over all seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Who.
    pub player: Player,
    /// One for each seed, in the seeds' order.
    pub outcomes: Vec<Outcome>,
}

/// Mean of several seeds with half the 95 % confidence interval (Student's t); no interval of one seed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Mean.
    pub mean: f64,
    /// Half the interval.
    pub half: Option<f64>,
}

impl Estimate {
    /// Of values, one for each seed.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n.max(1.0);
        // Student's t at 97.5 % for 1, 2, … degrees of freedom; 1.96 beyond 30.
        let t = [
            12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11,
            2.10, 2.09, 2.09, 2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04,
        ];
        let half = (values.len() > 1).then(|| {
            let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            t.get(values.len() - 2).copied().unwrap_or(1.96) * (var / n).sqrt()
        });
        Self { mean, half }
    }
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
    /// Target that the comparison asks for.
    pub hit_rate_target: f64,
    /// Test results.
    pub entries: Vec<Entry>,
    /// Bound for each seed.
    pub bounds: Vec<Bound>,
    /// The knob of each family of simple rules, as chosen on the days before.
    pub tuned: Vec<Player>,
    /// The tuned rule that cost least at the target on the days before.
    pub best_simple: Player,
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
    let outcomes = |part: Part, player: Player| -> Vec<Outcome> {
        let given = spec.seeds.iter().filter_map(|seed| results.get(&Task { part, seed: *seed, player }.id()));
        let outcome = |g: &Given| if let Given::Outcome(o) = g { Some((**o).clone()) } else { None };
        given.filter_map(outcome).collect()
    };
    let target = spec.class.iter().map(|k| k.hit_rate).fold(0.0, f64::max);
    let mut entries = Vec::new();
    for player in [Player::Live, Player::LpMean].into_iter().chain(Rule::swept().into_iter().map(Player::Simple)) {
        entries.push(Entry { player, outcomes: outcomes(Part::Test, player) });
    }
    let mut tuned: Vec<(Player, f64, f64)> = Vec::new();
    for rule in Rule::swept() {
        let player = Player::Simple(rule);
        let runs = outcomes(Part::Tune, player);
        let (cost, hit) = (mean_of(&runs, |o| o.money.total_usd()), mean_of(&runs, Outcome::hit_rate));
        match tuned.iter_mut().find(|(p, ..)| p.family() == player.family()) {
            Some(best) if better((cost, hit), (best.1, best.2), target) => *best = (player, cost, hit),
            Some(_) => {}
            None => tuned.push((player, cost, hit)),
        }
    }
    let mut best = tuned[0];
    for &one in &tuned {
        if better((one.1, one.2), (best.1, best.2), target) {
            best = one;
        }
    }
    let bounds = spec.seeds.iter().filter_map(|seed| {
        match results.get(&Task { part: Part::Test, seed: *seed, player: Player::Bound }.id()) {
            Some(Given::Bound(bound)) => Some(*bound),
            _ => None,
        }
    });
    Ok(League {
        name: spec.name.clone(),
        title: spec.title.clone(),
        scenario: scenario.to_owned(),
        seeds: spec.seeds.clone(),
        hit_rate_target: target,
        entries,
        bounds: bounds.collect(),
        tuned: tuned.iter().map(|t| t.0).collect(),
        best_simple: best.0,
    })
}

/// Whether `(cost, hit rate)` is better: at the target before not, then by cost; below it by hit rate.
fn better(a: (f64, f64), b: (f64, f64), target: f64) -> bool {
    match (a.1 >= target, b.1 >= target) {
        (true, true) => a.0 < b.0,
        (true, false) => true,
        (false, true) => false,
        (false, false) => a.1 > b.1,
    }
}

fn mean_of(outcomes: &[Outcome], of: impl Fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(of).sum::<f64>() / outcomes.len().max(1) as f64
}

impl League {
    /// The entry of a player.
    #[must_use]
    pub fn entry(&self, player: Player) -> Option<&Entry> {
        self.entries.iter().find(|e| e.player == player)
    }

    /// Overhead of an entry: cost above the bound of the same run, as a share of it.
    #[must_use]
    pub fn overhead(&self, entry: &Entry) -> Estimate {
        let one = |(o, b): (&Outcome, &Bound)| o.money.total_usd() / b.total_usd.max(1e-9) - 1.0;
        Estimate::of(&entry.outcomes.iter().zip(&self.bounds).map(one).collect::<Vec<_>>())
    }

    /// Hit rate of an entry.
    #[must_use]
    pub fn hit_rate(&self, entry: &Entry) -> Estimate {
        Estimate::of(&entry.outcomes.iter().map(Outcome::hit_rate).collect::<Vec<_>>())
    }

    /// The simple rule that in hindsight cost least in the test at the planner's hit rate; `None` where none reached it.
    #[must_use]
    pub fn best_in_hindsight(&self) -> Option<&Entry> {
        let reached = self.hit_rate(self.entry(Player::Live)?).mean;
        let simple = self.entries.iter().filter(|e| matches!(e.player, Player::Simple(_)));
        let able = simple.filter(|e| self.hit_rate(e).mean >= reached - 1e-9);
        able.min_by(|a, b| self.overhead(a).mean.total_cmp(&self.overhead(b).mean))
    }

    /// Entries that are shown: the planner, the mean planner, every family at its tuned knob.
    #[must_use]
    pub fn shown(&self) -> Vec<&Entry> {
        let players = [Player::Live, Player::LpMean].into_iter().chain(self.tuned.iter().copied());
        players.filter_map(|p| self.entry(p)).collect()
    }
}
