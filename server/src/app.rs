//! What the API and the loops of one replica share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use protocol::{BudgetSpec, ForecastSpec};
use providers::Clock;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::{Admission, Feed};
use crate::board::Board;
use crate::metrics::Metrics;
use crate::pacing::Rates;
use crate::store::{BookRef, Ledger, Store, StoreError, Unread, Versioned, Write, WriteError};
use crate::tokens::Tokens;

/// What every handler and every loop has.
#[derive(Debug)]
pub struct App {
    /// Time.
    pub clock: Clock,
    /// The database, for reads.
    pub store: Store,
    /// The writer.
    pub ledger: Ledger,
    /// Counts and times.
    pub metrics: Arc<Metrics>,
    /// Who may do what.
    pub tokens: Tokens,
    /// How fast they may call.
    pub rates: Rates,
    /// How many requests they have open.
    pub admission: Arc<Admission>,
    /// Events for all who follow them.
    pub feed: Arc<Feed>,
    /// Names of the providers that are configured.
    pub providers: Vec<String>,
    /// The name under which the configuration says that this server is reached.
    pub advertised_host: Option<String>,
    /// Secret that the join secrets of launches are made of.
    pub join_key: Arc<str>,
    /// State of the leader's loops.
    pub board: Board,
    /// Makes the planner run soon.
    pub planner: Notify,
    /// What may be spent and launched, until it is written over the API.
    pub configured_budget: BudgetSpec,
    /// What came of the last try to write.
    pub probed: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
    /// When claims that failed last woke the planner.
    pub woken_for_misses: parking_lot::Mutex<Option<Instant>>,
    /// Whether it listens on loopback only.
    pub on_loopback: bool,
    /// Whether the leader has read everything it needs.
    pub ready: AtomicBool,
}

/// A database that has taken no batch for so long is away: nothing can be claimed, milliseconds.
const PULSE_MAX_MS: i64 = 3_000;

/// Claims that fail wake the planner this often.
const WOKEN_FOR_MISSES_EVERY: Duration = Duration::from_secs(5);
/// Whether anything can be written is tried this often, for whoever asks.
const PROBED_EVERY: Duration = Duration::from_secs(1);
/// A try that takes longer has failed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// A machine whose clock is off by more does not lead, milliseconds: as long as a lead lasts.
const CLOCK_OFF_MAX_MS: i64 = crate::store::LEASE_MS;

impl App {
    /// Now, milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// By how many seconds this machine's clock is off, where that is too much.
    #[must_use]
    pub fn clock_is_off_s(&self) -> Option<i64> {
        let off_ms = self.clock.off_ms();
        (off_ms.saturating_abs() > CLOCK_OFF_MAX_MS).then_some(off_ms / 1000)
    }

    /// The book as it is now.
    ///
    /// # Errors
    /// It is not known.
    pub fn book(&self) -> Result<BookRef<'_>, Unread> {
        self.ledger.book()
    }

    /// The planner looks at the fleet soon, not only when its time comes.
    pub fn wake_planner(&self) {
        self.planner.notify_one();
    }

    /// The same for claims that failed, which a class that cannot be had has many of: not more often than makes sense.
    pub fn wake_planner_for_misses(&self) {
        let mut last = self.woken_for_misses.lock();
        if last.is_none_or(|at| at.elapsed() >= WOKEN_FOR_MISSES_EVERY) {
            *last = Some(Instant::now());
            self.wake_planner();
        }
    }

    /// Notes what an operator did.
    ///
    /// # Errors
    /// It was not written.
    pub async fn audit(&self, who: &str, action: &'static str, detail: &str) -> Result<(), WriteError> {
        let (who, detail) = (who.to_owned(), detail.to_owned());
        self.ledger.record(Write::Audit { who, action, detail }, None).await.map(drop)
    }

    /// Why requests cannot be answered now; none where they can: the state is read, and the database takes writes.
    #[must_use]
    pub fn not_ready(&self) -> Option<&'static str> {
        if !self.ready.load(Ordering::Acquire) {
            return Some("starting");
        }
        if self.book().is_err() {
            return Some("the state of the fleet is not known: the database could not be read");
        }
        let silent_ms = self.now_ms() - self.ledger.pulse().alive_at_ms;
        (silent_ms > PULSE_MAX_MS).then_some("the database takes no writes")
    }

    /// Tries to write what a claim writes; who asks again within a second gets the same answer.
    ///
    /// # Errors
    /// Why it cannot be written, for people.
    pub async fn can_write(&self) -> Result<(), String> {
        let mut last = self.probed.lock().await;
        if let Some((at, said)) = &*last
            && at.elapsed() < PROBED_EVERY
        {
            return said.clone();
        }
        let tried = tokio::time::timeout(PROBE_TIMEOUT, self.ledger.record(Write::Probe, None)).await;
        let said = match tried {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("nothing can be written: {error}")),
            Err(_) => Err(format!("nothing was written within {} s", PROBE_TIMEOUT.as_secs())),
        };
        *last = Some((Instant::now(), said.clone()));
        said
    }

    /// The budget that is in force and its version: what was written over the API, or else the configuration's, version 0.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn budget(&self) -> Result<Versioned<BudgetSpec>, StoreError> {
        let written = self.store.single::<BudgetSpec>().await?;
        Ok(written.unwrap_or_else(|| Versioned { version: 0, record: self.configured_budget.clone() }))
    }

    /// All that is declared.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn forecasts(&self) -> Result<Vec<ForecastSpec>, StoreError> {
        Ok(self.store.all::<ForecastSpec>().await?.into_iter().map(|(_, f)| f.record).collect())
    }
}
