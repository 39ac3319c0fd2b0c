//! What the ledger and its writer share: the book, or that nobody has it; how a ledger is started; what it tells of itself.

use std::fmt;
use std::sync::Arc;

use fleet::book::{Book, Limits};
use fleet::invariants::Breach;
use parking_lot::MappedRwLockReadGuard;
use providers::Clock;

use super::StoreError;

/// A write that did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The database cannot be used; nothing was changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too many operations wait already.
    #[error("more than {WAITING_MAX} operations wait for the database")]
    Busy,
    /// Another replica leads by now; nothing was changed.
    #[error("this replica leads no longer")]
    NotLeader,
    /// The ledger has been shut down.
    #[error("the server shuts down")]
    Closed,
}

/// Operations that may wait for a commit.
pub(super) const WAITING_MAX: usize = 4096;

/// The book as this process knows it. One that could not be read is no empty one: it answers nobody.
#[derive(Debug)]
pub(super) enum BookState {
    /// It could not be read, or what is in the database is not known after a commit that failed.
    Unread,
    /// As of the last commit, or the one that is being made.
    Read(Box<Book>),
}

/// The book is not known at this moment: the database cannot be read. Nothing can be said of nodes and claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state of the fleet could not be read from the database; it is tried again")]
pub struct Unread;

/// The book, for reading.
pub type BookRef<'a> = MappedRwLockReadGuard<'a, Book>;

/// What the ledger tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pulse {
    /// When the database last took a batch, or answered that there was nothing to write, milliseconds since 1970.
    pub alive_at_ms: i64,
    /// The last number written.
    pub seq: i64,
}

/// Called with each breach of an invariant that the ledger finds on its own book.
pub type OnBreach = Arc<dyn Fn(&Breach) + Send + Sync>;

/// How a ledger is started.
#[derive(Clone)]
pub struct Options {
    /// Limits on claims and nodes.
    pub limits: Limits,
    /// Time.
    pub clock: Clock,
    /// Whether leases and deadlines run out here: not for commands that write and end.
    pub ticks: bool,
    /// Told of each breach of an invariant.
    pub on_breach: OnBreach,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("limits", &self.limits).field("ticks", &self.ticks).finish_non_exhaustive()
    }
}

impl Options {
    /// For commands that write and end: nothing runs out while they do.
    #[must_use]
    pub fn of_a_command(clock: Clock) -> Self {
        Self { limits: Limits::default(), clock, ticks: false, on_breach: Arc::new(|_| ()) }
    }
}
