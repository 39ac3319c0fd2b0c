//! What a change to the planner's decisions is worth: chosen policies over scenarios and seeds, each class's hit rate and
//! each part of the cost, each line as it is known. Arguments: `--jobs live,foresight,base-stock --seed 1 --seeds 2 --threads 4
//! SCENARIO…`, where `--seed` is the first of them.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use simulations::engine::Outcome;
use simulations::league::{Given, Job, Task, play};
use simulations::policies::Family;
use simulations::scenario::{self, Prepared, ScenarioError};

fn job(name: &str) -> Option<Job> {
    match name {
        "live" => Some(Job::Live),
        "lp-mean" => Some(Job::LpMean),
        "foresight" => Some(Job::Foresight),
        _ => Family::ALL.into_iter().find(|f| f.name() == name).map(Job::Simple),
    }
}

fn line(name: &str, seed: u64, who: &str, outcome: &Outcome, seconds: f64) -> String {
    let hits: Vec<String> = outcome
        .classes
        .iter()
        .map(|k| {
            let mark = if k.hit_rate() < k.hit_rate_target { "!" } else { "" };
            format!("{:.2}{mark}", 100.0 * k.hit_rate())
        })
        .collect();
    let (money, counts) = (&outcome.money, &outcome.counts);
    format!(
        "{name:<20} {seed:>2} {who:<26} {:>8.0} idle {:>7.0} boot {:>6.0} misses {:>6.0} lent {:>6.0} launches {:>5} releases {:>5} reversals {:>5} fallbacks {:>3} {:>6.1} s  {}",
        money.total_usd(),
        money.idle_usd,
        money.boot_usd + money.churn_usd,
        money.misses_usd,
        money.lent_usd,
        counts.launches,
        counts.releases,
        counts.reversals,
        counts.fallbacks,
        seconds,
        hits.join(" ")
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (mut jobs, mut first, mut seeds, mut threads) = (vec![Job::Live, Job::Foresight], 1, 1, 2);
    let mut prepared: Vec<(String, Prepared)> = Vec::new();
    let data = std::env::var_os("PILOTLIGHT_DATA").map(PathBuf::from);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or("a value is missing");
        match arg.as_str() {
            "--jobs" => jobs = value()?.split(',').map(job).collect::<Option<_>>().ok_or("no such job")?,
            "--seeds" => seeds = value()?.parse()?,
            "--seed" => first = value()?.parse()?,
            "--threads" => threads = value()?.parse()?,
            path => {
                let (spec, _) = scenario::read(Path::new(path))?;
                let folder = Path::new(path).parent().unwrap_or(Path::new("."));
                match scenario::prepare(&spec, folder, data.as_deref()) {
                    Ok(ready) => prepared.push((spec.name, ready)),
                    Err(error @ ScenarioError::NoData(_)) => println!("{error}"),
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    let mut tasks = Vec::new();
    for job in jobs {
        for seed in first..first + seeds {
            tasks.extend((0..prepared.len()).map(|i| (i, Task { seed, job })));
        }
    }
    let (next, out) = (AtomicUsize::new(0), Mutex::new(()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((i, task)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (name, ready) = &prepared[*i];
                    let start = Instant::now();
                    let given = play(ready, *task);
                    let seconds = start.elapsed().as_secs_f64();
                    let id = task.id();
                    let lines = match given {
                        Ok(Given::Outcome(outcome)) => vec![line(name, task.seed, &id, &outcome, seconds)],
                        Ok(Given::Tuned(tuned)) => {
                            let mut lines = Vec::new();
                            for (choice, word) in tuned.before.iter().zip(["before", "half", "tenth"]) {
                                let who = format!("{id} {word}");
                                lines.push(line(name, task.seed, &who, &choice.outcome, seconds));
                            }
                            let who = format!("{id} hindsight");
                            lines.push(line(name, task.seed, &who, &tuned.hindsight.outcome, seconds));
                            lines
                        }
                        Ok(Given::Bound(bound)) => {
                            vec![format!("{name} {} clairvoyant {:.0}", task.seed, bound.total_usd)]
                        }
                        Err(error) => vec![format!("{name} {id}: {error}")],
                    };
                    let _order = out.lock().unwrap_or_else(PoisonError::into_inner);
                    lines.iter().for_each(|line| println!("{line}"));
                }
            });
        }
    });
    Ok(())
}
