//! What the leader does over and over. Each loop takes no input: it looks at the state, does what is to be done, and can
//! be run again at any time with the same result. It wakes by its timer or by a signal, and shows its last run.

mod act;
mod breakers;
mod fared;
mod gather;
mod lead;
mod learn;
mod observe;
mod offers;
mod plan;
mod sample;
mod weekly;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fleet::OfferKey;
use providers::{ErrorKind, Hint, Instance, InstanceState, Pace, Provider, ProviderError};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use utoipa::ToSchema;

use crate::api::App;
use crate::clock;
use crate::config::{Diagnostics, Planning};

pub use breakers::{Closed, KIND as BREAKERS, Memory as BreakerMemory, OpenBreaker};
pub use fared::{Health, place_of};
pub use learn::{LIMITS, Learnt};
pub use plan::PlanRecord;

/// How a loop fares.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Status {
    /// What it is for.
    pub about: &'static str,
    /// Seconds between runs, unless it is woken.
    pub period_s: f64,
    /// Runs since the start.
    pub runs: u64,
    /// Runs that failed since the last that did not.
    pub failures: u64,
    /// When it last ran, milliseconds since 1970.
    pub ran_at_ms: Option<i64>,
    /// How long that took, milliseconds.
    pub took_ms: i64,
    /// What came of it.
    pub result: String,
    /// What went wrong last.
    pub error: Option<String>,
}

/// The state of all loops, for the API.
#[derive(Debug, Default)]
pub struct Board {
    loops: Mutex<BTreeMap<&'static str, Status>>,
    /// Nothing is launched or released while it is set.
    paused: AtomicBool,
    /// What providers sell now; `None` until they were asked.
    sold: Mutex<Option<BTreeSet<OfferKey>>>,
    /// What providers tell of their offers, and when they did, milliseconds since 1970.
    hints: Mutex<BTreeMap<OfferKey, (Hint, i64)>>,
    /// The term in which the providers were last asked what they sell.
    asked_in: AtomicI64,
    /// Nodes that plans do not count, though they are there: their test may take them away for long.
    uncounted: Mutex<BTreeSet<u64>>,
    /// Term of this replica's lead; 0 while another leads.
    term: AtomicI64,
    /// Plans that were made wake the actor.
    pub(crate) actor: Notify,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Status>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All loops by name.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, Status)> {
        self.lock().iter().map(|(name, status)| (*name, status.clone())).collect()
    }

    /// Whether plans are acted on.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Stops or resumes acting on plans.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// Whether an offer can be bought now, as far as is known.
    #[must_use]
    pub fn is_sold(&self, offer: &OfferKey) -> bool {
        let sold = self.sold.lock().unwrap_or_else(PoisonError::into_inner);
        sold.as_ref().is_none_or(|s| s.contains(offer))
    }

    pub(crate) fn set_sold(&self, sold: BTreeSet<OfferKey>) {
        *self.sold.lock().unwrap_or_else(PoisonError::into_inner) = Some(sold);
    }

    /// What the provider tells of an offer beside its price, and when it did, milliseconds since 1970.
    #[must_use]
    pub fn hint(&self, offer: &OfferKey) -> Option<(Hint, i64)> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).get(offer).cloned()
    }

    /// Whether plans count a node.
    #[must_use]
    pub fn counts(&self, node: u64) -> bool {
        !self.uncounted.lock().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    pub(crate) fn set_uncounted(&self, nodes: BTreeSet<u64>) {
        *self.uncounted.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }

    /// Whether the providers were asked in this term what they sell: before that a plan would go by what was long ago.
    #[must_use]
    pub fn was_asked_in(&self, term: i64) -> bool {
        self.asked_in.load(Ordering::Acquire) == term
    }

    pub(crate) fn set_asked_in(&self, term: i64) {
        self.asked_in.store(term, Ordering::Release);
    }

    /// Replaces what one provider told.
    pub(crate) fn set_hints(&self, provider: &str, hints: Vec<Hint>) {
        let mut all = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = clock::now_ms();
        all.retain(|offer, _| offer.provider != provider);
        all.extend(hints.into_iter().map(|h| (h.offer.clone(), (h, now_ms))));
    }

    /// The term in which this replica leads, if it does.
    #[must_use]
    pub fn term(&self) -> Option<i64> {
        Some(self.term.load(Ordering::Acquire)).filter(|t| *t > 0)
    }
}

/// A cloud account, and how fast it is asked.
#[derive(Debug, Clone)]
pub struct Cloud {
    /// The account.
    pub provider: Arc<dyn Provider>,
    pace: Arc<Mutex<Pace>>,
}

impl Cloud {
    /// An account that nobody has asked anything yet.
    #[must_use]
    pub fn new(provider: Arc<dyn Provider>) -> Self {
        let pace = Pace::new(provider.call_rate(), clock::now_ms());
        Self { provider, pace: Arc::new(Mutex::new(pace)) }
    }

    /// Minds what an answer says of the pace.
    fn heard<T>(&self, answer: Result<T, ProviderError>) -> Result<T, ProviderError> {
        match &answer {
            Err(error) if error.kind == ErrorKind::Throttled => self.pace().throttled(),
            _ => self.pace().answered(),
        }
        answer
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the loops work with.
#[derive(Clone)]
pub struct Context {
    /// State and signals.
    pub app: Arc<App>,
    /// Cloud accounts.
    pub clouds: Arc<Vec<Cloud>>,
    /// How plans are made.
    pub planning: Arc<Planning>,
    /// How idle nodes are tested.
    pub diagnostics: Arc<Diagnostics>,
    /// Name of this replica.
    pub holder: Arc<str>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("holder", &self.holder).finish_non_exhaustive()
    }
}

impl Context {
    /// Whether acting is paused, as any replica was told.
    async fn paused(&self) -> Result<bool, crate::store::StoreError> {
        let paused = self.app.store.document("switch", "paused").await?.is_some_and(|d| d.body == "true");
        self.app.loops.set_paused(paused);
        Ok(paused)
    }

    /// Tells a provider which of its instances run, as far as is known.
    fn recall(&self, provider: &dyn Provider) {
        let book = self.app.ledger.book();
        let mine = book
            .nodes()
            .values()
            .filter(|n| n.offer.provider == provider.name() && n.state != fleet::NodeState::Terminating);
        let known: Vec<Instance> = mine
            .filter_map(|n| {
                Some(Instance {
                    id: n.instance.clone()?,
                    offer: n.offer.clone(),
                    token: n.intent.map_or_else(String::new, |i| book.launch_token(i)),
                    state: InstanceState::Running,
                    launched_at_ms: n.asked_at_ms,
                })
            })
            .collect();
        provider.recall(&known);
    }
}

/// A loop failed; the next run tries again.
pub type LoopError = Box<dyn std::error::Error + Send + Sync>;

/// Starts all loops. They end when `stop` says so.
pub fn start(context: &Context, stop: &watch::Receiver<bool>) {
    let every = |seconds: f64| Duration::from_secs_f64(seconds);
    let planning = Arc::clone(&context.planning);
    let c = context;
    tokio::spawn(lead::keep(c.clone(), stop.clone()));
    spawn(c, stop, "offers", "read what the providers sell, at what price", every(60.0), |_| None, offers::run);
    spawn(
        c,
        stop,
        "observe",
        "compare what the providers run with what is known",
        every(planning.observe_every_s),
        |_| None,
        observe::run,
    );
    spawn(
        c,
        stop,
        "plan",
        "decide what to launch and what to give back",
        every(planning.every_s),
        |app| Some(&app.planner),
        plan::run,
    );
    spawn(c, stop, "act", "carry out what was decided", every(1.0), |app| Some(&app.loops.actor), act::run);
    spawn(c, stop, "learn", "learn supply from how launches ended", every(5.0), |_| None, learn::run);
    spawn(c, stop, "breakers", "hold repairs of faults that come together", every(5.0), |_| None, breakers::run);
    let tests = every(context.diagnostics.every_s);
    spawn(c, stop, "weekly", "test idle nodes, and give them back when claims come", tests, |_| None, weekly::run);
    spawn(c, stop, "sample", "write demand down for the forecast", every(5.0), |_| None, sample::run);
}

/// A signal that comes often wakes a loop at most this often.
const DEBOUNCE: Duration = Duration::from_secs(1);

fn spawn<F, R>(
    context: &Context,
    stop: &watch::Receiver<bool>,
    name: &'static str,
    about: &'static str,
    period: Duration,
    signal: fn(&App) -> Option<&Notify>,
    run: F,
) where
    F: Fn(Context, i64) -> R + Send + Sync + 'static,
    R: Future<Output = Result<String, LoopError>> + Send + 'static,
{
    let (context, mut stop) = (context.clone(), stop.clone());
    let period_s = period.as_secs_f64();
    context.app.loops.lock().insert(name, Status { about, period_s, ..Status::default() });
    tokio::spawn(async move {
        loop {
            let woken = async {
                match signal(&context.app) {
                    Some(signal) => signal.notified().await,
                    None => std::future::pending().await,
                }
            };
            if let Some(term) = context.app.loops.term() {
                // On a task of its own: one that panics has failed, and runs again like any other.
                let task = tokio::spawn(run(context.clone(), term));
                once(&context, name, async { task.await.unwrap_or_else(|error| Err(error.into())) }).await;
                // The period counts from the end of a run; signals are gathered for a moment.
                tokio::select! {
                    () = async { tokio::time::sleep(DEBOUNCE.min(period)).await; woken.await } => {}
                    () = tokio::time::sleep(period) => {}
                    _ = stop.wait_for(|s| *s) => return,
                }
            } else {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    _ = stop.wait_for(|s| *s) => return,
                }
            }
        }
    });
}

/// Gathers a plan's inputs as the planner does, for benchmarks. Returns the number of nodes.
///
/// # Errors
/// The database cannot be used.
pub async fn measure_gather(app: &App, now_ms: i64) -> Result<usize, LoopError> {
    Ok(gather::gather(app, &Planning::default(), now_ms).await?.nodes.len())
}

async fn once(context: &Context, name: &'static str, run: impl Future<Output = Result<String, LoopError>>) {
    let began_ms = clock::now_ms();
    let result = run.await;
    let mut board = context.app.loops.lock();
    let status = board.entry(name).or_default();
    status.runs += 1;
    status.ran_at_ms = Some(began_ms);
    status.took_ms = clock::now_ms() - began_ms;
    match result {
        Ok(text) => {
            status.result = text;
            status.failures = 0;
            status.error = None;
        }
        Err(error) => {
            let text = crate::output::chain_of(&*error);
            tracing::warn!(name, error = %text, "a loop failed; it runs again");
            status.failures += 1;
            status.error = Some(text);
        }
    }
}
