//! The durable state, on SQLite or PostgreSQL with one SQL text.
//!
//! All writes of a process go through its [`Ledger`], which commits many operations at once. Writers of all processes
//! lock the one row of `log_head` first, so that they come one after the other; whoever finds that `seq` has moved reads
//! what changed before deciding anything. So a book in memory is never out of date when it decides, and a GPU is never
//! given twice, nor a free one overlooked, with any number of replicas.

mod documents;
mod gpus;
mod lease;
mod ledger;
mod reads;
mod rows;
mod writes;

use std::str::FromStr;
use std::sync::{Arc, Once};
use std::time::Duration;

use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AnyPool, ConnectOptions, SqlStr};

pub use documents::{Document, EditError};
pub use gpus::{EvidenceRow, GpuFault, GpuRecord, change_gpus, gpu_names, write_evidence};
pub use lease::Leadership;
pub use ledger::{Ledger, OnConnection, WriteError};
pub use reads::{AuditRow, EventRow, Page, PlanRow, TokenRow};
pub use writes::{
    EditedBy, audit, edit_document, forget_old, write_demand, write_document, write_new_document, write_plan,
};

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
}

impl StoreError {
    fn database(doing: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Database { doing, source: Arc::new(source) }
    }
}

/// Which database it is, where the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// A file, one machine.
    Sqlite,
    /// A server, many replicas.
    Postgres,
}

impl Dialect {
    /// The elements of the JSON array in a parameter, as rows with a column `value`.
    fn elements(self, parameter: u32) -> String {
        match self {
            Self::Sqlite => format!("json_each(${parameter})"),
            Self::Postgres => format!("json_array_elements(CAST(${parameter} AS JSON))"),
        }
    }
}

/// A database that is ready: connected, and migrated to this version.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
    /// First part of the launch tokens of this database, and of no other.
    token_prefix: Arc<str>,
}

/// Connections of one process. Claims need one; the rest are for reads.
const CONNECTIONS_MAX: u32 = 8;

impl Store {
    /// Opens `sqlite:FILE` (made if it is not there) or `postgres://…`, and migrates it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let dialect = match url.split(':').next() {
            Some("sqlite") => Dialect::Sqlite,
            Some("postgres" | "postgresql") => Dialect::Postgres,
            _ => return Err(StoreError::Url { url: without_password(url) }),
        };
        let mut url = url.to_owned();
        if dialect == Dialect::Sqlite && !url.contains("mode=") {
            url += if url.contains('?') { "&mode=rwc" } else { "?mode=rwc" };
        }
        let options = AnyConnectOptions::from_str(&url)
            .map_err(|_| StoreError::Url { url: without_password(&url) })?
            .disable_statement_logging();
        let connected = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if dialect == Dialect::Sqlite {
                        // FULL: a commit is on the disk before anybody is told.
                        let set = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000; \
                                   PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -32000";
                        sqlx::raw_sql(set).execute(connection).await?;
                    }
                    Ok(())
                })
            })
            .connect_with(options)
            .await;
        let pool = connected.map_err(StoreError::database("open the database"))?;
        let mut store = Self { pool, dialect, token_prefix: Arc::from("") };
        store.migrate().await?;
        store.token_prefix = store.named().await?.into();
        Ok(store)
    }

    /// Gives the database a name at random the first time it is opened, by whichever replica is first.
    async fn named(&self) -> Result<String, StoreError> {
        let doing = StoreError::database("name the database");
        let mut bits = [0_u8; 4];
        getrandom::fill(&mut bits).map_err(|e| doing(sqlx::Error::Protocol(format!("no randomness: {e}"))))?;
        let name = format!("pl-{:08x}", u32::from_le_bytes(bits));
        let write = "INSERT INTO documents (kind, name, seq, version, body) VALUES ('fleet', 'token-prefix', 0, 1, $1) \
                     ON CONFLICT (kind, name) DO NOTHING";
        sqlx::query(write).bind(name).execute(&self.pool).await.map_err(&doing)?;
        let read = "SELECT body FROM documents WHERE kind = 'fleet' AND name = 'token-prefix'";
        sqlx::query_scalar(read).fetch_one(&self.pool).await.map_err(&doing)
    }

    /// Which database it is.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let texts = [
            (1, "initial", include_str!("../../../migrations/0001_initial.sql")),
            (2, "health", include_str!("../../../migrations/0002_health.sql")),
        ];
        let one = |(version, name, text): (i64, &'static str, &'static str)| {
            Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(text), false)
        };
        let migrator = Migrator::with_migrations(texts.map(one).to_vec());
        migrator.run(&self.pool).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(migration) => StoreError::Newer { migration },
            other => StoreError::Database {
                doing: "migrate the database",
                source: Arc::new(sqlx::Error::Migrate(Box::new(other))),
            },
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map_err(StoreError::database("reach the database"))?;
        Ok(())
    }
}

fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}://…{}", &url[..scheme], &url[at..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("postgres://me:secret@db/x"), "postgres://…@db/x");
        assert_eq!(without_password("mysql:x"), "mysql:x");
    }
}
