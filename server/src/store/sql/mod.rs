//! The store on SQLite or PostgreSQL, with one SQL text.
//!
//! Writers of all processes lock the one row of `log_head` first, so that they come one after the other; whoever finds that
//! `seq` has moved reads what changed before deciding anything.

mod documents;
mod file;
mod legacy;
mod reads;
mod statements;
mod writes;

use std::str::FromStr;
use std::sync::{Arc, Once};
use std::time::Duration;

use fleet::book::{Book, Changes, Claim};
use sqlx::any::{AnyConnectOptions, AnyPoolOptions};
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::{Any, AnyPool, ConnectOptions, Connection, Row, SqlStr};

use super::news::{BookDocuments, News};
use super::session::Head;
use super::{StoreError, Write, Wrote};
use file::{DatabaseFile, Seen};
pub(super) use statements::Batch;
use statements::Statements;

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

    /// What each connection says first.
    fn session_settings(self) -> &'static str {
        match self {
            // FULL: a commit is on the disk before anybody is told.
            Self::Sqlite => {
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 10000; \
                 PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -32000"
            }
            // No lock outlives its holder by more than a second or two: a process that is frozen, or a machine without power,
            // is idle in its transaction, and the server ends that, or takes no answer, and `end_dead_holders` does. Whoever
            // waits for the lock waits longer than that, and not for ever.
            Self::Postgres => {
                "SET idle_in_transaction_session_timeout = '1s'; SET lock_timeout = '8s'; SET statement_timeout = '30s'; \
                 SET client_connection_check_interval = '1s'; SET tcp_user_timeout = '3s'; SET tcp_keepalives_idle = 1; \
                 SET tcp_keepalives_interval = 1; SET tcp_keepalives_count = 3; SET application_name = 'pilotlight'"
            }
        }
    }
}

/// A database that is ready: connected, and migrated to this version.
#[derive(Debug, Clone)]
pub struct Sql {
    pool: AnyPool,
    dialect: Dialect,
    url: Arc<str>,
    /// The file that it is in, where it is one.
    file: Option<DatabaseFile>,
    /// First part of the launch tokens of this database, and of no other.
    pub(super) token_prefix: Arc<str>,
}

/// Connections of one process. Claims need one; the rest are for reads.
const CONNECTIONS_MAX: u32 = 8;
/// A connection is waited for so long: clients have deadlines of their own.
const CONNECT: Duration = Duration::from_secs(3);

impl Sql {
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
        file::prepare(&url);
        let options = AnyConnectOptions::from_str(&url)
            .map_err(|_| StoreError::Url { url: without_password(&url) })?
            .disable_statement_logging();
        let connected = AnyPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    sqlx::raw_sql(dialect.session_settings()).execute(connection).await?;
                    Ok(())
                })
            })
            .connect_with(options)
            .await;
        let pool = connected.map_err(StoreError::database("open the database"))?;
        let mut store = Self { pool, dialect, url: url.as_str().into(), file: None, token_prefix: Arc::from("") };
        store.migrate().await?;
        store.file = DatabaseFile::of(&url);
        store.token_prefix = store.named_once().await?.into();
        Ok(store)
    }

    /// Gives the database a name at random the first time it is opened, by whichever replica is first.
    async fn named_once(&self) -> Result<String, StoreError> {
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
            (1, "initial", include_str!("../../../../migrations/0001_initial.sql")),
            (2, "health", include_str!("../../../../migrations/0002_health.sql")),
            (3, "typed events", include_str!("../../../../migrations/0003_typed_events.sql")),
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

    /// Whether what was committed up to `seen` will still be there after a restart. For a server's database it is.
    ///
    /// # Errors
    /// The file was removed, replaced or cut short.
    pub(super) async fn is_whole(&self, seen: i64) -> Result<(), StoreError> {
        let Some(file) = &self.file else { return Ok(()) };
        let gone = |what: &'static str| StoreError::File { path: file.path().display().to_string(), what };
        match file.look() {
            Seen::Same => Ok(()),
            Seen::Gone => Err(gone("was removed, replaced or cut short")),
            Seen::LogReplaced => Err(gone("has lost commits: its log was removed or replaced")),
            Seen::LogCut => {
                // Whoever opens it anew sees what a restart would see: a checkpoint has lost nothing.
                let read = async {
                    let mut fresh = sqlx::AnyConnection::connect(&self.url).await?;
                    let query = sqlx::query_scalar("SELECT seq FROM log_head WHERE id = 1");
                    let seq: i64 = query.fetch_one(&mut fresh).await?;
                    fresh.close().await?;
                    Ok::<_, sqlx::Error>(seq)
                };
                if !matches!(read.await, Ok(seq) if seq >= seen) {
                    return Err(gone("has lost commits: its log was cut short"));
                }
                file.trust_log();
                Ok(())
            }
        }
    }

    /// The path of its file, where it is one.
    pub(super) fn path(&self) -> String {
        self.file.as_ref().map(|f| f.path().display().to_string()).unwrap_or_default()
    }

    /// Moves the log of a file into the file, so that one file has everything. For the end of a server.
    ///
    /// # Errors
    /// The database cannot be used.
    pub(super) async fn checkpoint(&self) -> Result<(), StoreError> {
        if self.dialect == Dialect::Sqlite {
            let done = sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await;
            done.map_err(StoreError::database("empty the log"))?;
        }
        Ok(())
    }

    /// A connection of one's own to write with.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub(super) async fn session(&self) -> Result<Session, StoreError> {
        let connection = self.pool.acquire().await.map_err(StoreError::database("reach the database"))?;
        if let Some(file) = &self.file {
            // The last connection that is closed takes the log with it, and the next makes another. What it lacks is seen by its
            // head.
            file.opened();
        }
        Ok(Session { connection, dialect: self.dialect, statements: Statements::new(self.dialect) })
    }
}

/// Times that the log's lock is asked for, half a second each.
const BEGINS: usize = 16;

/// A connection to write with.
#[derive(Debug)]
pub(super) struct Session {
    connection: PoolConnection<Any>,
    dialect: Dialect,
    statements: Statements,
}

impl Session {
    pub async fn begin(&mut self) -> Result<Head, StoreError> {
        for _ in 1..BEGINS {
            match self.statements.begin(&mut self.connection).await {
                Err(error) if error.is_a_held_lock() => {
                    self.rollback().await?;
                    self.end_dead_holders().await?;
                }
                begun => return begun,
            }
        }
        self.statements.begin(&mut self.connection).await
    }

    /// Ends sessions that hold the log while they wait for their client. PostgreSQL itself ends those that wait to be asked,
    /// and not those whose answer nobody takes: no limit on statements counts there.
    async fn end_dead_holders(&mut self) -> Result<(), StoreError> {
        // Materialized: nobody may be ended before all conditions have been looked at.
        let text = "WITH dead AS MATERIALIZED (SELECT pid FROM pg_stat_activity WHERE datname = current_database() \
                    AND usename = current_user AND application_name = 'pilotlight' AND pid <> pg_backend_pid() \
                    AND wait_event_type = 'Client' AND xact_start < clock_timestamp() - interval '1 s' \
                    AND pid IN (SELECT pid FROM pg_locks WHERE relation = 'log_head'::regclass AND granted \
                    AND mode IN ('RowShareLock', 'RowExclusiveLock'))) SELECT pg_terminate_backend(pid) FROM dead";
        let ended = sqlx::query(text).fetch_all(&mut *self.connection).await;
        let ended = ended.map_err(StoreError::database("look who holds the log"))?.len();
        if ended > 0 {
            tracing::warn!(ended, "a session held the log and did not take its answer; it was ended");
        }
        Ok(())
    }

    pub async fn news(&mut self, seen: i64) -> Result<News, StoreError> {
        statements::news(&mut self.connection, self.dialect, seen).await
    }

    pub async fn book_documents(&mut self, seen: i64) -> Result<BookDocuments, StoreError> {
        documents::of_book(&mut self.connection, seen).await
    }

    pub async fn claims_of_keys(&mut self, keys: &[String]) -> Result<Vec<Claim>, StoreError> {
        self.statements.claims_of_keys(&mut self.connection, keys).await
    }

    pub async fn leader_term(&mut self) -> Result<i64, StoreError> {
        let failed = StoreError::database("read who leads");
        let query = sqlx::query("SELECT epoch FROM leases WHERE name = 'leader'");
        let row = query.fetch_one(&mut *self.connection).await.map_err(&failed)?;
        row.try_get("epoch").map_err(failed)
    }

    pub async fn apply(&mut self, write: &Write, seq: i64, now_ms: i64) -> Result<Wrote, StoreError> {
        writes::apply(&mut self.connection, write, seq, now_ms).await
    }

    pub fn batch(&self, book: &Book, changes: &Changes, seen: i64) -> Batch {
        self.statements.batch(book, changes, seen)
    }

    pub async fn commit(&mut self, batch: Batch, next_id: u64, now_ms: i64) -> Result<(), StoreError> {
        self.statements.commit(&mut self.connection, batch, next_id, now_ms).await
    }

    pub async fn rollback(&mut self) -> Result<(), StoreError> {
        self.statements.rollback(&mut self.connection).await
    }

    pub async fn give_up(self, error: StoreError) -> StoreError {
        let _ = self.connection.detach().close_hard().await;
        error
    }
}

/// A database's URL as it may be shown.
pub(super) fn without_password(url: &str) -> String {
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
