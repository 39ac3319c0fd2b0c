//! What the API and the loops of one replica share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::{BudgetSpec, ForecastSpec};
use providers::Clock;
use tokio::sync::Notify;

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
    /// Secret that the join secrets of launches are made of.
    pub join_key: Arc<str>,
    /// State of the leader's loops.
    pub board: Board,
    /// Makes the planner run soon.
    pub planner: Notify,
    /// What may be spent and launched, until it is written over the API.
    pub configured_budget: BudgetSpec,
    /// Whether the leader has read everything it needs.
    pub ready: AtomicBool,
}

/// A database that has taken no batch for so long is away: nothing can be claimed, milliseconds.
const PULSE_MAX_MS: i64 = 3_000;

impl App {
    /// Now, milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
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
