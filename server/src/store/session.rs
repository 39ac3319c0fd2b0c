//! One writer's way to the log: a transaction that is alone with it, on whichever store.

use fleet::book::{Book, Changes, Claim};

use super::memory;
use super::news::{BookDocuments, News};
use super::sql;
use super::{StoreError, Write, Wrote};

/// A session.
#[derive(Debug)]
pub(super) enum Session {
    /// With a database.
    Sql(Box<sql::Session>),
    /// With a store in memory.
    Memory(Box<memory::Session>),
}

/// Where the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// The last number written.
    pub seq: i64,
    /// The next identity.
    pub next_id: u64,
    /// The database's own time, milliseconds since 1970, where it has one.
    pub now_ms: Option<i64>,
}

/// Rows that are about to be committed.
#[derive(Debug)]
pub(super) enum Rows {
    /// As JSON.
    Sql(sql::Batch),
    /// As they are.
    Memory(memory::Batch),
}

impl Rows {
    /// The last number used.
    pub fn last(&self) -> i64 {
        match self {
            Self::Sql(batch) => batch.last,
            Self::Memory(batch) => batch.last,
        }
    }
}

macro_rules! on_either {
    ($self:ident, $session:ident => $call:expr) => {
        match $self {
            Self::Sql($session) => $call.await,
            Self::Memory($session) => $call.await,
        }
    };
}

impl Session {
    /// Begins a transaction that is alone with the log.
    pub async fn begin(&mut self) -> Result<Head, StoreError> {
        on_either!(self, s => s.begin())
    }

    /// What was committed after `seen`, or all that is open where that is not known any more.
    pub async fn news(&mut self, seen: i64) -> Result<News, StoreError> {
        on_either!(self, s => s.news(seen))
    }

    /// Documents of the book that changed after `seen`, in this transaction too.
    pub async fn book_documents(&mut self, seen: i64) -> Result<BookDocuments, StoreError> {
        on_either!(self, s => s.book_documents(seen))
    }

    /// Claims that were made with one of these keys.
    pub async fn claims_of_keys(&mut self, keys: &[String]) -> Result<Vec<Claim>, StoreError> {
        on_either!(self, s => s.claims_of_keys(keys))
    }

    /// The term of whoever leads.
    pub async fn leader_term(&mut self) -> Result<i64, StoreError> {
        on_either!(self, s => s.leader_term())
    }

    /// Makes a write, under the number that the batch will have.
    pub async fn apply(&mut self, write: &Write, seq: i64, now_ms: i64) -> Result<Wrote, StoreError> {
        on_either!(self, s => s.apply(write, seq, now_ms))
    }

    /// The rows of what changed, under numbers after `seen`.
    pub fn rows(&self, book: &Book, changes: &Changes, seen: i64) -> Rows {
        match self {
            Self::Sql(session) => Rows::Sql(session.batch(book, changes, seen)),
            Self::Memory(_) => Rows::Memory(memory::Batch::of(book, changes, seen)),
        }
    }

    /// Writes the rows and commits.
    pub async fn commit(&mut self, rows: Rows, next_id: u64, now_ms: i64) -> Result<(), StoreError> {
        match (self, rows) {
            (Self::Sql(session), Rows::Sql(batch)) => session.commit(batch, next_id, now_ms).await,
            (Self::Memory(session), Rows::Memory(batch)) => session.commit(batch, next_id, now_ms).await,
            // Rows are made by the session that takes them.
            _ => Err(StoreError::Unread),
        }
    }

    /// Ends a transaction that wrote nothing.
    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        on_either!(self, s => s.rollback())
    }

    /// Ends a session whose transaction cannot be finished: the database ends that too.
    pub async fn give_up(self, error: StoreError) -> StoreError {
        match self {
            Self::Sql(session) => session.give_up(error).await,
            Self::Memory(_) => error,
        }
    }
}
