//! What the leader does over and over: shells around the decisions in `control`. Each loop takes no input: it looks at the
//! state, does what is to be done, and can be run again at any time with the same result. It wakes by its timer or by a
//! signal, and shows its last run. Each has one step that can be called by itself.

mod act;
mod breakers;
mod lead;
mod learn;
mod log_reader;
mod observe;
mod offers;
mod plan;
mod reserve;
mod sample;
mod stage;
mod weekly;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use control::observation::known_instances;
use control::plan::PlanRecord;
use control::weekly::Diagnostics;
use fleet::cloud::ErrorKind;
use parking_lot::{Mutex, MutexGuard};
use providers::{Clock, Pace, Provider, ProviderError};
use tokio::sync::{Notify, watch};

use crate::app::App;
use crate::board::Status;
use crate::config::Planning;
use crate::store::{Paused, StoreError, Unread};

pub use plan::gather;

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
    pub fn new(provider: Arc<dyn Provider>, clock: &Clock) -> Self {
        let pace = Pace::new(provider.call_rate(), clock.now_ms());
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
        self.pace.lock()
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
    async fn paused(&self) -> Result<bool, StoreError> {
        let Paused(paused) = self.app.store.single_or_default().await?;
        self.app.board.set_paused(paused);
        Ok(paused)
    }

    /// The newest plan; none where there is none, or one of another version, which says nothing of what is wanted now.
    async fn newest_plan(&self) -> Result<Option<PlanRecord>, StoreError> {
        Ok(self.app.store.plans(i64::MAX, 1).await?.first().and_then(|plan| read_plan(&plan.body)))
    }

    /// Tells a provider that wants to know which of its instances run. Where that is not known, it is told nothing.
    fn recall(&self, provider: &dyn Provider) -> Result<(), Unread> {
        if provider.recalls() {
            let known = known_instances(&*self.app.book()?, provider.name());
            provider.recall(&known);
        }
        Ok(())
    }
}

/// A plan as it was written down, if it is of this version.
fn read_plan(body: &str) -> Option<PlanRecord> {
    serde_json::from_str(body).ok()
}

/// A loop failed; the next run tries again.
pub type LoopError = Box<dyn std::error::Error + Send + Sync>;

/// A loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loop {
    /// Reads what the providers sell, at what price.
    Offers,
    /// Compares what the providers run with what is known.
    Observe,
    /// Decides what to launch and what to give back.
    Plan,
    /// Carries out what was decided.
    Act,
    /// Learns supply from how launches ended, and how nodes fare.
    Learn,
    /// Holds repairs of faults that come together.
    Breakers,
    /// Tests idle nodes.
    Weekly,
    /// Calls tests back as claims take idle nodes.
    Reserve,
    /// Writes demand down for the forecast.
    Sample,
    /// Decides which snapshots lie on which hosts.
    Stage,
}

impl Loop {
    /// All of them, in the order of the data.
    pub const ALL: [Self; 10] = [
        Self::Offers,
        Self::Observe,
        Self::Plan,
        Self::Act,
        Self::Learn,
        Self::Breakers,
        Self::Weekly,
        Self::Reserve,
        Self::Sample,
        Self::Stage,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Offers => "offers",
            Self::Observe => "observe",
            Self::Plan => "plan",
            Self::Act => "act",
            Self::Learn => "learn",
            Self::Breakers => "breakers",
            Self::Weekly => "weekly",
            Self::Reserve => "reserve",
            Self::Sample => "sample",
            Self::Stage => "stage",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Offers => "read what the providers sell, at what price",
            Self::Observe => "compare what the providers run with what is known",
            Self::Plan => "decide what to launch and what to give back",
            Self::Act => "carry out what was decided",
            Self::Learn => "learn supply from how launches ended",
            Self::Breakers => "hold repairs of faults that come together",
            Self::Weekly => "test idle nodes",
            Self::Reserve => "call tests back as claims take idle nodes",
            Self::Sample => "write demand down for the forecast",
            Self::Stage => "decide which snapshots lie on which hosts",
        }
    }

    fn period(self, context: &Context) -> Duration {
        Duration::from_secs_f64(match self {
            Self::Offers => 60.0,
            Self::Observe => context.planning.observe_every_s,
            Self::Plan | Self::Stage => context.planning.every_s,
            Self::Act | Self::Reserve => 1.0,
            Self::Learn | Self::Breakers | Self::Sample => 5.0,
            Self::Weekly => context.diagnostics.every_s,
        })
    }

    /// What wakes it before its time.
    fn signal(self, app: &App) -> Option<&Notify> {
        match self {
            Self::Plan => Some(&app.planner),
            Self::Act => Some(&app.board.actor),
            _ => None,
        }
    }

    /// One run of it, in a term of this replica's lead.
    ///
    /// # Errors
    /// Something could not be read, written or asked; the next run tries again.
    pub async fn step(self, context: Context, term: i64) -> Result<String, LoopError> {
        match self {
            Self::Offers => offers::run(context, term).await,
            Self::Observe => observe::run(context, term).await,
            Self::Plan => plan::run(context, term).await,
            Self::Act => act::run(context, term).await,
            Self::Learn => learn::run(context, term).await,
            Self::Breakers => breakers::run(context, term).await,
            Self::Weekly => weekly::run(context, term).await,
            Self::Reserve => reserve::run(context, term).await,
            Self::Sample => sample::run(context, term).await,
            Self::Stage => stage::run(context, term).await,
        }
    }
}

/// Starts all loops. They end when `stop` says so; what is returned ends when the lead is given up.
pub fn start(context: &Context, stop: &watch::Receiver<bool>) -> tokio::task::JoinHandle<()> {
    let leading = tokio::spawn(lead::keep(context.clone(), stop.clone()));
    for (turn, which) in Loop::ALL.into_iter().enumerate() {
        let (about, period_s) = (which.about(), which.period(context).as_secs_f64());
        let status = Status { about, period_s, ..Status::default() };
        context.app.board.statuses().insert(which.name(), status);
        // One after the other, so that they do not all look at the same moment, on every leader in the same order.
        let (after, context, stop) = (STAGGER * (turn as u32 + 1), context.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            keep(context, which, stop).await;
        });
    }
    leading
}

/// Time between the starts of two loops.
const STAGGER: Duration = Duration::from_millis(7);
/// A signal that comes often wakes a loop at most this often.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// Whether this replica leads is looked at this often while it does not.
const LEADS_EVERY: Duration = Duration::from_millis(100);

/// Runs a loop for ever.
async fn keep(context: Context, which: Loop, mut stop: watch::Receiver<bool>) {
    let period = which.period(&context);
    loop {
        let woken = async {
            match which.signal(&context.app) {
                Some(signal) => signal.notified().await,
                None => std::future::pending().await,
            }
        };
        if let Some(term) = context.app.board.term() {
            // On a task of its own: one that panics has failed, and runs again like any other.
            let task = tokio::spawn(which.step(context.clone(), term));
            once(&context, which, async { task.await.unwrap_or_else(|error| Err(error.into())) }).await;
            // The period counts from the end of a run; signals are gathered for a moment.
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => return,
                () = async { tokio::time::sleep(DEBOUNCE.min(period)).await; woken.await } => {}
                () = tokio::time::sleep(period) => {}
            }
        } else {
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s) => return,
                () = tokio::time::sleep(LEADS_EVERY) => {}
            }
        }
    }
}

async fn once(context: &Context, which: Loop, run: impl Future<Output = Result<String, LoopError>>) {
    let began_ms = context.app.now_ms();
    let result = run.await;
    let mut board = context.app.board.statuses();
    let status = board.entry(which.name()).or_default();
    status.runs += 1;
    status.ran_at_ms = Some(began_ms);
    status.took_ms = context.app.now_ms() - began_ms;
    match result {
        Ok(text) => {
            status.result = text;
            status.failures = 0;
            status.error = None;
        }
        Err(error) => {
            let text = crate::errors::chain_of(&*error);
            // The same failure again is counted, and shown by the status.
            if status.error.as_deref() != Some(&text) {
                tracing::warn!(name = which.name(), error = %text, "a loop failed; it runs again");
            }
            status.failures += 1;
            status.error = Some(text);
        }
    }
}
