//! The restore subsystem of the daemon: brings up what claims on this host start from, ends it with them, and says how far each
//! has come. What it needs is made ready ahead, as copies come to the host ([`ready`]). On threads of its own, one for each claim.

mod busy;
mod ready;
mod said;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use fleet::{Attempt, Phase, StartState};
use protocol::staging::CopyOrder;
use protocol::starts::{StartOrder, StartReport};

use super::client::Client;
use super::clock::now;
use super::config;
use super::link::Token;
use super::staging::Shared;
use crate::restore::{Held, Tried};
use crate::snapshots::in_one_line;
use crate::snapshots::store::seal::StoreKeys;
use busy::Busy;
use ready::Ready;
use said::Reports;

/// How often it is looked whether a workload has ended.
const LOOK: Duration = Duration::from_millis(100);
/// Why nothing comes up on a host that was not set up for it.
const NOT_SET_UP: &str = "this host brings nothing up: write [restore] into its join.toml";

/// The subsystem.
#[derive(Debug)]
pub struct Starts {
    tell: Sender<Heard>,
}

/// What it hears.
#[derive(Debug)]
enum Heard {
    /// What is to have come up, all of it.
    Orders(Vec<StartOrder>),
    /// Which copies the host is to have.
    Copies(Vec<CopyOrder>),
    /// Whether the host serves: GPUs are left alone where it does not.
    Serves(bool),
}

/// What workloads of this host have in common.
#[derive(Debug)]
struct Bed {
    ready: Ready,
    busy: Busy,
    reports: Arc<Reports>,
}

impl Starts {
    /// Starts it. `shared`: what the staging subsystem has, once it has it.
    pub fn start(
        part: Option<config::Restore>,
        keys: StoreKeys,
        shared: Option<Receiver<Shared>>,
        (client, token): (Client, Token),
        (boot, patience): (String, f64),
    ) -> Self {
        let (tell, heard) = channel();
        let reports = Arc::new(Reports::default());
        let said = reports.clone();
        std::thread::spawn(move || said.send(&client, &token, &boot, patience));
        std::thread::spawn(move || {
            let Some(part) = part else { return refuse(&heard, &reports, NOT_SET_UP) };
            match Ready::new(&part, keys, shared) {
                Ok(ready) => {
                    let bed = Arc::new(Bed { ready, busy: Busy::default(), reports });
                    let ahead = bed.clone();
                    // Nothing that is ordered waits for what may be ordered later.
                    std::thread::spawn(move || ahead.ready.keep_ready());
                    run(&bed, &heard);
                }
                Err(error) => {
                    let why = in_one_line(error.as_ref());
                    tracing::error!("nothing is brought up here: {why}");
                    refuse(&heard, &reports, &why);
                }
            }
        });
        Self { tell }
    }

    /// What is to have come up, all of it.
    pub fn order(&self, orders: Vec<StartOrder>) {
        // Its thread lives as long as the process.
        let _ = self.tell.send(Heard::Orders(orders));
    }

    /// Which copies the host is to have.
    pub fn copies(&self, copies: Vec<CopyOrder>) {
        let _ = self.tell.send(Heard::Copies(copies));
    }

    /// Whether the host serves.
    pub fn serves(&self, serves: bool) {
        let _ = self.tell.send(Heard::Serves(serves));
    }
}

/// Says of all orders that nothing comes of them.
fn refuse(heard: &Receiver<Heard>, reports: &Reports, why: &str) {
    for heard in heard {
        let Heard::Orders(orders) = heard else { continue };
        reports.keep(|claim| orders.iter().any(|order| order.claim == claim));
        for order in orders {
            reports.say(StartReport {
                claim: order.claim,
                state: StartState::Failed,
                attempts: Vec::new(),
                problem: why.to_owned(),
            });
        }
    }
}

fn run(bed: &Arc<Bed>, heard: &Receiver<Heard>) {
    // By claim, what tells its thread that nobody wants it any more.
    let mut brought: BTreeMap<String, Arc<AtomicBool>> = BTreeMap::new();
    for heard in heard {
        match heard {
            Heard::Orders(orders) => {
                let is_wanted = |claim: &str| orders.iter().any(|order| order.claim == claim);
                brought.retain(|claim, unwanted| {
                    unwanted.store(!is_wanted(claim), Ordering::Relaxed);
                    is_wanted(claim)
                });
                bed.reports.keep(is_wanted);
                for order in orders {
                    if brought.contains_key(&order.claim) {
                        continue;
                    }
                    let unwanted = Arc::new(AtomicBool::new(false));
                    brought.insert(order.claim.clone(), unwanted.clone());
                    let (bed, heard_at) = (bed.clone(), now());
                    std::thread::spawn(move || bed.bring(&order, &unwanted, heard_at));
                }
            }
            Heard::Copies(copies) => bed.ready.copies(copies),
            Heard::Serves(serves) => bed.ready.serves(serves),
        }
    }
}

impl Bed {
    /// Brings one up, and stays until it ends or nobody wants it any more. Its GPUs are its own until all of it is gone.
    fn bring(&self, order: &StartOrder, unwanted: &Arc<AtomicBool>, heard_at: std::time::Instant) {
        tracing::info!(claim = order.claim, object = order.object, gpus = ?order.gpus, "is brought up");
        let mut report = StartReport {
            claim: order.claim.clone(),
            state: StartState::Coming,
            attempts: Vec::new(),
            problem: String::new(),
        };
        // After a restart of the agent it comes up anew.
        self.reports.say(report.clone());
        let Some(gpus) = self.busy.take(&order.gpus, unwanted) else { return };
        match self.come_up(order, unwanted, heard_at, &mut report) {
            Ok(mut held) => {
                report.state = StartState::Ready;
                tracing::info!(claim = order.claim, "is ready");
                self.reports.say(report.clone());
                let ended = loop {
                    if let Some(ended) = held.ends_within(LOOK) {
                        break Some(ended);
                    }
                    if unwanted.load(Ordering::Relaxed) {
                        break None;
                    }
                };
                match ended {
                    Some(ended) => {
                        tracing::warn!(claim = order.claim, "the workload {ended}");
                        (report.state, report.problem) = (StartState::Ended, format!("it {ended}"));
                        self.reports.say(report);
                    }
                    None => {
                        held.end(gpus.hurry());
                        tracing::info!(claim = order.claim, "is ended with its claim");
                    }
                }
            }
            Err(_) if unwanted.load(Ordering::Relaxed) => {}
            Err(error) => {
                report.problem = in_one_line(error.as_ref());
                tracing::error!(claim = order.claim, "cannot be brought up: {}", report.problem);
                report.state = StartState::Failed;
                self.reports.say(report);
            }
        }
    }

    fn come_up(
        &self,
        order: &StartOrder,
        unwanted: &Arc<AtomicBool>,
        heard_at: std::time::Instant,
        report: &mut StartReport,
    ) -> anyhow::Result<Held> {
        let (mut known, store) = self.ready.known(order)?;
        known.unwanted(unwanted.clone());
        if let Err(error) = known.make_ready_if_here() {
            tracing::warn!(claim = order.claim, "not made ready: {}", in_one_line(error.as_ref()));
        }
        let steps = known.ladder()?;
        for step in steps.iter().filter(|step| !step.against.is_empty()) {
            let against: Vec<String> = step.against.iter().map(ToString::to_string).collect();
            report.problem = format!("{} is not tried: {}", step.rung.name(), against.join("; "));
            tracing::info!(claim = order.claim, "{}", report.problem);
        }
        let mut before = Some((Phase::Order, heard_at.elapsed().as_secs_f64()));
        let held = known.bring_up(self.ready.runtime(), &store, &steps, |tried| {
            report.attempts.push(attempt(tried, before.take()));
            if tried.failure.is_some() {
                self.reports.say(report.clone());
            }
        });
        self.ready.wake();
        held
    }
}

/// What was tried, as it is told; with what came before it.
fn attempt(tried: &Tried, before: Option<(Phase, f64)>) -> Attempt {
    let named = |name: &str| Phase::ALL.into_iter().find(|phase| phase.name() == name);
    let phases = tried.phases.iter().filter_map(|(name, seconds)| Some((named(name)?, *seconds)));
    let problem = tried.failure.as_ref().map(|failure| in_one_line(failure.as_ref())).unwrap_or_default();
    Attempt { rung: tried.rung, phases: before.into_iter().chain(phases).collect(), problem }
}
