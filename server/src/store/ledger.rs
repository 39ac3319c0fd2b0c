//! The one writer of a process: it takes all operations that wait, applies them to the book, commits them together, and
//! only then answers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use fleet::book::{Book, Limits};
use sqlx::AnyConnection;
use sqlx::pool::PoolConnection;
use sqlx::{Any, Connection, Row};
use tokio::sync::{mpsc, oneshot, watch};

use super::rows::{self, Statements};
use super::{Store, StoreError};
use crate::clock;

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

/// Operations of one commit.
const BATCH_MAX: usize = 256;
/// Operations that may wait for a commit.
const WAITING_MAX: usize = 4096;
/// Leases and deadlines are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// A longer time between two batches means that the server or its database was away, milliseconds.
const AWAY_MS: i64 = 5_000;
/// Silent agents are looked for this often, milliseconds.
const NODES_EVERY_MS: i64 = 1000;

/// Told whether the commit succeeded.
type Reply = Box<dyn FnOnce(Result<(), WriteError>) + Send>;
/// Runs on the book at a time, or is told `None`: refused.
type OnBook = Box<dyn FnOnce(Option<(&mut Book, i64)>) -> Reply + Send>;
/// A statement of its own in the transaction of a batch, under the number that the batch will have.
pub type OnConnection = Box<
    dyn for<'c> FnOnce(&'c mut AnyConnection, i64) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'c>>
        + Send,
>;

enum Work {
    Book(OnBook),
    Connection(OnConnection, oneshot::Sender<Result<(), WriteError>>),
}

struct Job {
    /// Idempotency key that the operation asks for.
    key: Option<String>,
    /// Epoch of the leader that must still lead.
    fence: Option<i64>,
    work: Work,
}

/// A handle to the writer. Clones share it.
#[derive(Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Job>,
    book: Arc<RwLock<Book>>,
    seq: watch::Receiver<i64>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("seq", &*self.seq.borrow()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Reads the book from the database and starts the writer.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn start(store: &Store, limits: Limits) -> Result<Self, StoreError> {
        Self::open(store, limits, true).await
    }

    /// For commands that write and end: nothing runs out while they do.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn for_a_command(store: &Store) -> Result<Self, StoreError> {
        Self::open(store, Limits::default(), false).await
    }

    async fn open(store: &Store, limits: Limits, ticks: bool) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let (seq_out, seq) = watch::channel(0);
        let book = Arc::new(RwLock::new(Book::with_token_prefix(limits, &store.token_prefix)));
        let mut writer = Writer {
            store: store.clone(),
            statements: Statements::new(store.dialect()),
            book: Arc::clone(&book),
            limits,
            seen: 0,
            nodes_at_ms: 0,
            seq: seq_out,
            connection: None,
            ticks,
            alive_at_ms: 0,
        };
        writer.refresh().await?;
        tokio::spawn(writer.run(queue));
        Ok(Self { jobs, book, seq })
    }

    /// The book as it is now. What is being committed at this moment shows already.
    pub fn book(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes on each commit, with the last number written.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<i64> {
        self.seq.clone()
    }

    /// Runs `operation` on the book and answers when what it changed is durable. An operation that fails must have
    /// changed nothing.
    ///
    /// # Errors
    /// It was not written, and nothing was changed.
    pub async fn write<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        self.submit(None, None, operation).await
    }

    /// As [`Self::write`], for an operation that asks for an idempotency key.
    ///
    /// # Errors
    /// As there.
    pub async fn write_keyed<T: Send + 'static>(
        &self,
        key: Option<String>,
        operation: impl FnOnce(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        self.submit(key, None, operation).await
    }

    /// As [`Self::write`], if the leader of `epoch` still leads.
    ///
    /// # Errors
    /// As there, and where it does not lead any more.
    pub async fn write_as_leader<T: Send + 'static>(
        &self,
        epoch: i64,
        operation: impl FnOnce(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        self.submit(None, Some(epoch), operation).await
    }

    async fn submit<T: Send + 'static>(
        &self,
        key: Option<String>,
        fence: Option<i64>,
        operation: impl FnOnce(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        let (send, answer) = oneshot::channel();
        let work = Work::Book(Box::new(move |at| {
            // Nobody waits any more: nothing is done for them.
            let result = at.filter(|_| !send.is_closed()).map(|(book, now_ms)| operation(book, now_ms));
            Box::new(move |committed: Result<(), WriteError>| {
                // A client that goes away from here on is not told; what it left is given back by its lease.
                let _ = send.send(committed.and_then(|()| result.ok_or(WriteError::NotLeader)));
            })
        }));
        self.enqueue(Job { key, fence, work })?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    /// Runs statements in the transaction of a batch.
    ///
    /// # Errors
    /// It was not written.
    pub async fn statements(&self, fence: Option<i64>, run: OnConnection) -> Result<(), WriteError> {
        let (send, answer) = oneshot::channel();
        self.enqueue(Job { key: None, fence, work: Work::Connection(run, send) })?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    fn enqueue(&self, job: Job) -> Result<(), WriteError> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy,
            mpsc::error::TrySendError::Closed(_) => WriteError::Closed,
        })
    }
}

/// What the writer task has.
struct Writer {
    store: Store,
    statements: Statements,
    book: Arc<RwLock<Book>>,
    limits: Limits,
    /// Everything up to this number is in the book.
    seen: i64,
    nodes_at_ms: i64,
    seq: watch::Sender<i64>,
    /// Whether leases and deadlines run out here.
    ticks: bool,
    /// When the database last took a batch, milliseconds since 1970; at the start, when anybody last wrote.
    alive_at_ms: i64,
    /// The writer's own connection, whose cache stays warm; opened anew after an error.
    connection: Option<PoolConnection<Any>>,
}

/// Closes a connection whose transaction cannot be finished: the database ends it.
async fn give_up(connection: PoolConnection<Any>, error: StoreError) -> StoreError {
    let _ = connection.detach().close_hard().await;
    error
}

/// What a batch leaves to be told.
struct Done {
    replies: Vec<Reply>,
    answers: Vec<oneshot::Sender<Result<(), WriteError>>>,
    refused: Vec<Job>,
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                taken = queue.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { return },
                _ = tick.tick() => {}
            }
            self.commit(batch).await;
        }
    }

    /// Reads what other replicas wrote.
    async fn refresh(&mut self) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        let read = async {
            self.begin(&mut connection).await?;
            self.statements.rollback(&mut connection).await
        };
        match read.await {
            Ok(()) => self.connection = Some(connection),
            Err(error) => return Err(give_up(connection, error).await),
        }
        Ok(())
    }

    async fn connect(&mut self) -> Result<PoolConnection<Any>, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.store.pool.acquire().await.map_err(StoreError::database("reach the database")),
        }
    }

    /// Begins a transaction with a book that is up to date.
    async fn begin(&mut self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        let (seq, next_id) = self.statements.begin(connection).await?;
        if seq != self.seen {
            let news = rows::news(connection, self.store.dialect(), self.seen).await?;
            let mut book = self.lock();
            if news.all {
                *book = Book::with_token_prefix(self.limits, &self.store.token_prefix);
            }
            let last_at_ms = news.last_at_ms;
            news.tell(&mut book);
            drop(book);
            self.alive_at_ms = self.alive_at_ms.max(last_at_ms);
            self.seen = seq;
        }
        self.lock().skip_ids(next_id);
        Ok(())
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().unwrap_or_else(PoisonError::into_inner)
    }

    async fn commit(&mut self, batch: Vec<Job>) {
        let mut done = Done { replies: Vec::new(), answers: Vec::new(), refused: Vec::new() };
        let result = self.try_commit(batch, &mut done).await.map_err(WriteError::from);
        if let Err(error) = &result {
            tracing::error!(error = %crate::output::chain_of(error), "a commit failed; reading the book anew");
            *self.lock() = Book::with_token_prefix(self.limits, &self.store.token_prefix);
            self.seen = 0;
            if let Err(error) = self.refresh().await {
                tracing::error!(error = %crate::output::chain_of(&error), "the database cannot be read");
                tokio::time::sleep(TICK).await;
            }
        }
        self.seq.send_if_modified(|seq| std::mem::replace(seq, self.seen) != self.seen);
        for reply in done.replies {
            reply(result.clone());
        }
        for answer in done.answers {
            let _ = answer.send(result.clone());
        }
        for job in done.refused {
            match job.work {
                Work::Book(run) => run(None)(Ok(())),
                Work::Connection(_, answer) => drop(answer.send(Err(WriteError::NotLeader))),
            }
        }
    }

    async fn try_commit(&mut self, batch: Vec<Job>, done: &mut Done) -> Result<(), StoreError> {
        let mut connection = self.connect().await?;
        match self.transact(&mut connection, batch, done).await {
            Ok(()) => self.connection = Some(connection),
            Err(error) => return Err(give_up(connection, error).await),
        }
        Ok(())
    }

    async fn transact(
        &mut self,
        connection: &mut AnyConnection,
        batch: Vec<Job>,
        done: &mut Done,
    ) -> Result<(), StoreError> {
        self.begin(connection).await?;
        let keys: Vec<String> = batch.iter().filter_map(|j| j.key.clone()).collect();
        self.know_keys(connection, &keys).await?;
        let fenced = batch.iter().any(|j| j.fence.is_some());
        let leader = if fenced { Some(self.leader(connection).await?) } else { None };
        let next_seq = self.seen + 1;
        let mut wrote = false;
        let now_ms = clock::now_ms();
        for job in batch {
            if job.fence.is_some_and(|epoch| Some(epoch) != leader) {
                done.refused.push(job);
                continue;
            }
            match job.work {
                Work::Book(run) => done.replies.push(run(Some((&mut self.lock(), now_ms)))),
                Work::Connection(run, answer) => {
                    done.answers.push(answer);
                    run(connection, next_seq).await?;
                    wrote = true;
                }
            }
        }
        let gap_ms = now_ms - self.alive_at_ms;
        if self.alive_at_ms > 0 && gap_ms > AWAY_MS {
            tracing::warn!(seconds = gap_ms / 1000, "nobody could be heard for a while; leases do not count it");
            self.lock().forgive(gap_ms);
        }
        let nodes_are_due = self.ticks && now_ms - self.nodes_at_ms >= NODES_EVERY_MS;
        let changes = {
            let mut book = self.lock();
            if self.ticks {
                book.tick(now_ms);
            }
            if nodes_are_due {
                book.tick_nodes(now_ms);
            }
            book.forget_keys();
            book.take_changes()
        };
        if nodes_are_due {
            self.nodes_at_ms = now_ms;
        }
        if changes.is_empty() && !wrote {
            self.statements.rollback(connection).await?;
            self.alive_at_ms = now_ms;
            return Ok(());
        }
        if wrote {
            let news = super::documents::news(connection, self.seen).await?;
            news.tell(&mut self.lock());
        }
        let (rows, next_id) = {
            let book = self.lock();
            (self.statements.batch(&book, &changes, self.seen), book.next_id())
        };
        let last = rows.last;
        self.statements.commit(connection, rows, next_id, now_ms).await?;
        self.lock().forget_ended(&changes);
        self.seen = last;
        self.alive_at_ms = now_ms;
        Ok(())
    }

    /// Claims that have ended and whose keys are asked for again.
    async fn know_keys(&mut self, connection: &mut AnyConnection, keys: &[String]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let known = self.statements.claims_of_keys(connection, keys).await?;
        let mut book = self.lock();
        known.iter().filter(|c| !c.is_open()).for_each(|c| book.know_ended(c));
        Ok(())
    }

    /// The epoch of whoever leads.
    async fn leader(&mut self, connection: &mut AnyConnection) -> Result<i64, StoreError> {
        let failed = StoreError::database("read who leads");
        let query = sqlx::query("SELECT epoch FROM leases WHERE name = 'leader'");
        let row = query.fetch_one(connection).await.map_err(&failed)?;
        row.try_get("epoch").map_err(failed)
    }
}
