//! The durable state, on SQLite or PostgreSQL, or in memory for runs on virtual time.
//!
//! All writes of a process go through its [`Ledger`], which commits many operations at once. Writers of all processes come
//! one after the other; whoever finds that the log has moved reads what changed before deciding anything. So a book in
//! memory is never out of date when it decides, and a GPU is never given twice, nor a free one overlooked, with any number
//! of replicas.

mod document;
mod known;
mod ledger;
mod memory;
mod news;
mod parsed;
mod rows;
mod session;
mod sql;
mod waiters;
mod write;
mod writer;

use std::sync::Arc;

use control::gpus::GpuRecord;
use fleet::book::{Claim, Node};

pub use document::{
    ClosedBreakers, Crossed, Document, DocumentKey, DocumentKind, HostLimits, Named, OfferTable, Paused, Single,
    Versioned,
};
pub use known::{BookRef, OnBreach, Options, Pulse, Unread, WriteError};
pub use ledger::Ledger;
pub use memory::MemoryTables;
use parsed::Parsed;
pub use rows::{AuditRow, EventRow, EvidenceRow, Leadership, Page, PlanRow, TokenRow};
use session::Session;
pub use sql::{Dialect, Sql};
pub use waiters::{Subject, Waiter};
pub use write::{EditedBy, LEASE_MS, Write, Wrote, text_of};

/// The database cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The URL names no database.
    #[error("'{url}' is no database: use sqlite:FILE or postgres://USER@HOST/NAME")]
    Url {
        /// What was given, without its password.
        url: String,
    },
    /// It was written by a newer version.
    #[error(
        "the database was written by a newer version (migration {migration}); run that version, or restore a backup"
    )]
    Newer {
        /// Its newest migration.
        migration: i64,
    },
    /// A record does not read.
    #[error("{table} {id} in the database does not read")]
    Record {
        /// Which table.
        table: &'static str,
        /// Which row.
        id: String,
        /// Why.
        #[source]
        source: Arc<serde_json::Error>,
    },
    /// The database did not answer, or refused.
    #[error("cannot {doing}")]
    Database {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        #[source]
        source: Arc<sqlx::Error>,
    },
    /// The file is not what was opened.
    #[error("the database file {path} {what}; nothing is written until it is back, or the server is started again")]
    File {
        /// Its path.
        path: String,
        /// What became of it.
        what: &'static str,
    },
    /// What was to be written makes no sense.
    #[error("{0}")]
    Refused(&'static str),
    /// The database does not answer.
    #[error("the database did not answer within 45 s")]
    Silent,
    /// The book is not known.
    #[error("the state of the fleet is not known: the database could not be read")]
    Unread,
}

impl From<Unread> for StoreError {
    fn from(_: Unread) -> Self {
        Self::Unread
    }
}

impl From<Unread> for WriteError {
    fn from(_: Unread) -> Self {
        Self::Store(StoreError::Unread)
    }
}

impl StoreError {
    fn database(doing: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source: Arc::new(source) }
    }

    /// Whether somebody else held a lock for longer than one waits (PostgreSQL's 55P03).
    pub(crate) fn is_a_held_lock(&self) -> bool {
        let Self::Database { source, .. } = self else { return false };
        matches!(&**source, sqlx::Error::Database(error) if error.code().as_deref() == Some("55P03"))
    }

    /// Whether it is the fault of what was written, and not of the database: another operation of the same batch may well
    /// be written.
    #[must_use]
    pub fn is_of_the_operation(&self) -> bool {
        let Self::Database { source, .. } = self else {
            return matches!(self, Self::Record { .. } | Self::Refused(_));
        };
        let sqlx::Error::Database(error) = &**source else {
            return matches!(**source, sqlx::Error::Encode(_) | sqlx::Error::ColumnDecode { .. });
        };
        let code = error.code().unwrap_or_default();
        // PostgreSQL's classes 22 (data), 23 (constraints), 42 (a statement that makes no sense), 54 (limits); SQLite's
        // primary codes 18 (too big), 19 (constraint), 20 (mismatch), 25 (range).
        let of_postgres = code.len() == 5 && ["22", "23", "42", "54"].iter().any(|class| code.starts_with(class));
        let primary = code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff);
        of_postgres || primary.is_some_and(|code| [18, 19, 20, 25].contains(&code))
    }
}

impl Store {
    /// Whether replicas on other machines may use it too.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(&self.backend, Backend::Sql(sql) if sql.dialect() == Dialect::Postgres)
    }
}

#[derive(Debug, Clone)]
enum Backend {
    Sql(Sql),
    Memory(MemoryTables),
}

/// The durable state, for reads.
#[derive(Debug, Clone)]
pub struct Store {
    backend: Backend,
    parsed: Parsed,
}

macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// The database cannot be used, or a record does not read.
            pub async fn $name(&self, $($arg: $type),*) -> Result<$out, StoreError> {
                match &self.backend {
                    Backend::Sql(sql) => sql.$name($($arg),*).await,
                    Backend::Memory(memory) => Ok(memory.$name($($arg),*).await),
                }
            }
        )*
    };
}

impl Store {
    /// Opens `sqlite:FILE` (made if it is not there) or `postgres://…`, and migrates it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { backend: Backend::Sql(Sql::open(url).await?), parsed: Parsed::default() })
    }

    /// A store in memory.
    #[must_use]
    pub fn in_memory(memory: MemoryTables) -> Self {
        Self { backend: Backend::Memory(memory), parsed: Parsed::default() }
    }

    fn token_prefix(&self) -> &str {
        match &self.backend {
            Backend::Sql(sql) => &sql.token_prefix,
            Backend::Memory(_) => "pl-memory",
        }
    }

    async fn session(&self) -> Result<Session, StoreError> {
        Ok(match &self.backend {
            Backend::Sql(sql) => Session::Sql(Box::new(sql.session().await?)),
            Backend::Memory(memory) => Session::Memory(Box::new(memory.session().await)),
        })
    }

    /// Whether what was committed up to `seen` will still be there after a restart.
    async fn is_whole(&self, seen: i64) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sql(sql) => sql.is_whole(seen).await,
            Backend::Memory(_) => Ok(()),
        }
    }

    /// What was committed is not there.
    fn lost_commits(&self) -> StoreError {
        let path = match &self.backend {
            Backend::Sql(sql) => sql.path(),
            Backend::Memory(_) => String::new(),
        };
        StoreError::File { path, what: "has lost commits" }
    }

    /// Leaves everything in one file, where it is in files.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        match &self.backend {
            Backend::Sql(sql) => sql.checkpoint().await,
            Backend::Memory(_) => Ok(()),
        }
    }

    /// The text of a document that is no JSON.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn text(&self, key: &DocumentKey) -> Result<Option<String>, StoreError> {
        Ok(self.document(key).await?.map(|d| d.body))
    }

    /// What was written is one document of a kind, or none.
    async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        match &self.backend {
            Backend::Sql(sql) => sql.document(key).await,
            Backend::Memory(memory) => Ok(memory.document(key).await),
        }
    }

    async fn documents(&self, kind: DocumentKind) -> Result<Vec<Document>, StoreError> {
        match &self.backend {
            Backend::Sql(sql) => sql.documents(kind).await,
            Backend::Memory(memory) => Ok(memory.documents(kind).await),
        }
    }

    reads! {
        /// What people did, after a number.
        audits(page: Page) -> Vec<AuditRow>;
        /// Events after a number.
        events(page: Page) -> Vec<EventRow>;
        /// The number of the last event that may be read.
        last_seq() -> i64;
        /// Nodes by number, also those that have ended; of one state where given.
        nodes(state: Option<&str>, page: Page) -> Vec<Node>;
        /// Claims by number, also those that have ended; of one state where given.
        claims(state: Option<&str>, page: Page) -> Vec<Claim>;
        /// One claim, also one that has ended.
        claim(id: u64) -> Option<Claim>;
        /// One node, also one that has ended.
        node(id: u64) -> Option<Node>;
        /// The newest plans up to `epoch`, the newest first.
        plans(up_to_epoch: i64, limit: i64) -> Vec<PlanRow>;
        /// Demand since a moment: `(class, milliseconds since 1970, claims)`, by time.
        demand(since_ms: i64) -> Vec<(String, i64, f64)>;
        /// Whether there ever was a token, revoked or not.
        any_token_was_made() -> bool;
        /// Tokens that are not revoked.
        tokens() -> Vec<TokenRow>;
        /// GPUs after a name, in the order of their names.
        gpus(after: &str, limit: i64) -> Vec<Arc<GpuRecord>>;
        /// GPUs by their names; those that nobody has seen are left out.
        gpus_named(names: &[String]) -> Vec<GpuRecord>;
        /// Evidence of a node after a number.
        evidence(node: u64, page: Page) -> Vec<EvidenceRow>;
        /// Who leads now; an old term may have run out.
        leadership() -> Leadership;
    }
}
