//! The one writer of a process: it takes all operations that wait, applies them to the book, commits them together, and
//! only then answers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fleet::book::Book;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot, watch};

use super::known::{BookRef, BookState, Options, Pulse, Unread, WAITING_MAX, WriteError};
use super::parsed::Parsed;
use super::waiters::{Subject, Waiter, Waiters};
use super::writer::{Job, Operation, Told, Work, Writer};
use super::{Store, StoreError, Write, Wrote};

/// Times that a starting server tries to read the book, and the pause between them.
const START_TRIES: usize = 5;
const START_PAUSE: Duration = Duration::from_secs(1);

/// A handle to the writer. Clones share it.
#[derive(Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Job>,
    known: Arc<RwLock<BookState>>,
    pulse: watch::Receiver<Pulse>,
    seq: watch::Receiver<i64>,
    waiters: Waiters,
    pub(super) parsed: Parsed,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("pulse", &*self.pulse.borrow()).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Reads the book from the database and starts the writer.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn start(store: &Store, options: Options) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let (seq_out, seq) = watch::channel(0);
        let (pulse_out, pulse) = watch::channel(Pulse::default());
        let known = Arc::new(RwLock::new(BookState::Unread));
        let waiters = Waiters::default();
        let told = Told { seq: seq_out, pulse: pulse_out, waiters: waiters.clone() };
        let mut writer = Writer::new(store.clone(), options, Arc::clone(&known), told);
        let mut tries = 1;
        // The database was opened a moment ago. A reader that is too slow for the others while they are busy loses its session,
        // as anybody who holds the log and does not take its answer: it reads again.
        while let Err(error) = writer.read_anew().await {
            if tries == START_TRIES || !matches!(error, StoreError::Database { .. } | StoreError::Silent) {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(START_PAUSE).await;
        }
        tokio::spawn(writer.run(queue));
        Ok(Self { jobs, known, pulse, seq, waiters, parsed: store.parsed.clone() })
    }

    /// The book as it is now. What is being committed at this moment shows already.
    ///
    /// # Errors
    /// It is not known.
    pub fn book(&self) -> Result<BookRef<'_>, Unread> {
        let read = RwLockReadGuard::try_map(self.known.read(), |known| match known {
            BookState::Unread => None,
            BookState::Read(book) => Some(&**book),
        });
        read.map_err(|_| Unread)
    }

    /// Wakes on each commit, with the last number written.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<i64> {
        self.seq.clone()
    }

    /// Waits for a claim or a node to change.
    #[must_use]
    pub fn waiter(&self, subject: Subject) -> Waiter {
        self.waiters.on(subject)
    }

    /// When the database last took a batch, and the last number written.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.borrow().clone()
    }

    /// Runs `operation` on the book and answers when what it changed is durable. An operation that fails must have
    /// changed nothing. It may run more than once: where the batch that it was in could not be committed, it is made
    /// again by itself; what it did before is thrown away.
    ///
    /// # Errors
    /// It was not written, and nothing was changed.
    pub async fn write<T: Send + 'static>(
        &self,
        operation: impl FnMut(&mut Book, i64) -> T + Send + 'static,
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
        operation: impl FnMut(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        self.submit(key, None, operation).await
    }

    /// As [`Self::write`], if the leader of `term` still leads.
    ///
    /// # Errors
    /// As there, and where it does not lead any more.
    pub async fn write_as_leader<T: Send + 'static>(
        &self,
        term: i64,
        operation: impl FnMut(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        self.submit(None, Some(term), operation).await
    }

    async fn submit<T: Send + 'static>(
        &self,
        key: Option<String>,
        fence: Option<i64>,
        operation: impl FnMut(&mut Book, i64) -> T + Send + 'static,
    ) -> Result<T, WriteError> {
        let (send, answer) = oneshot::channel();
        let work = Work::Book(Box::new(Asked { operation, result: None, send }));
        self.enqueue(Job { key, fence, work })?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    /// Makes a write in the transaction of a batch; with `term`, if its leader still leads.
    ///
    /// # Errors
    /// It was not written.
    pub async fn record(&self, write: Write, term: Option<i64>) -> Result<Wrote, WriteError> {
        let (send, answer) = oneshot::channel();
        self.enqueue(Job { key: None, fence: term, work: Work::Write { write, wrote: None, send } })?;
        answer.await.map_err(|_| WriteError::Closed)?
    }

    fn enqueue(&self, job: Job) -> Result<(), WriteError> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy,
            mpsc::error::TrySendError::Closed(_) => WriteError::Closed,
        })
    }

    /// Keeps the lead for `holder`, or takes it if nobody has it. Returns the term in which it leads.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn lead(&self, holder: &str) -> Result<Option<i64>, WriteError> {
        match self.record(Write::Lead { holder: holder.to_owned() }, None).await? {
            Wrote::Leads(term) => Ok(term),
            Wrote::Done | Wrote::Version(_) | Wrote::Crossed(_) => Ok(None),
        }
    }

    /// Waits until something is written or `for_ms` have passed.
    pub async fn written_within(seq: &mut watch::Receiver<i64>, for_ms: u64) {
        // Over or not, who waits looks again.
        let _ = tokio::time::timeout(Duration::from_millis(for_ms), seq.changed()).await;
    }
}

/// An operation with whoever waits for its result.
struct Asked<T, F> {
    operation: F,
    result: Option<T>,
    send: oneshot::Sender<Result<T, WriteError>>,
}

impl<T: Send, F: FnMut(&mut Book, i64) -> T + Send> Operation for Asked<T, F> {
    fn is_wanted(&self) -> bool {
        !self.send.is_closed()
    }

    fn run(&mut self, book: &mut Book, now_ms: i64) {
        self.result = Some((self.operation)(book, now_ms));
    }

    fn answer(self: Box<Self>, outcome: Result<(), WriteError>) {
        // A client that goes away from here on is not told; what it left is given back by its lease.
        let Self { result, send, .. } = *self;
        let _ = send.send(outcome.and_then(|()| result.ok_or(WriteError::Closed)));
    }
}
