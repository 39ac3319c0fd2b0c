//! The task behind a [`Ledger`](super::Ledger): batches, commits, and what becomes of a batch that cannot be committed.

use std::sync::Arc;
use std::time::Duration;

use fleet::book::{Book, Changes};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};

use super::known::{BookState, Options, Pulse, WriteError};
use super::session::{Head, Session};
use super::waiters::Waiters;
use super::{Store, StoreError, Write, Wrote};
use crate::errors::{Seldom, chain_of};

const DAY_MS: i64 = 86_400_000;
/// Something that was written so far ahead of this machine's clock was written by one that was wrong, milliseconds.
const FAR_AHEAD_MS: i64 = DAY_MS;
/// Operations of one commit.
const BATCH_MAX: usize = 256;
/// Leases and deadlines are looked at this often.
const TICK: Duration = Duration::from_millis(250);
/// A longer time between two batches means that the server or its database was away, milliseconds.
const AWAY_MS: i64 = 5_000;
/// Silent agents are looked for this often, milliseconds.
const NODES_EVERY_MS: i64 = 1000;
/// The whole book is held against the invariants this often, milliseconds.
const CHECKED_EVERY_MS: i64 = 60_000;
/// A book that could not be read is tried again after this time, milliseconds; until then nobody waits for it.
const READ_AGAIN_MS: i64 = 250;
/// A database whose machine has gone answers nothing, and no error either. Longer than its own limits on locks and
/// statements.
const ANSWERED_WITHIN: Duration = Duration::from_secs(45);

/// An operation on the book that can be made again.
pub(super) trait Operation: Send {
    /// Whether somebody waits for it.
    fn is_wanted(&self) -> bool;
    /// Runs it; what an earlier run said is forgotten.
    fn run(&mut self, book: &mut Book, now_ms: i64);
    /// Tells what came of it.
    fn answer(self: Box<Self>, outcome: Result<(), WriteError>);
}

/// What is to be done.
pub(super) enum Work {
    /// On the book.
    Book(Box<dyn Operation>),
    /// Beside it.
    Write { write: Write, wrote: Option<Wrote>, send: oneshot::Sender<Result<Wrote, WriteError>> },
}

/// One operation of a batch.
pub(super) struct Job {
    /// Idempotency key that the operation asks for.
    pub key: Option<String>,
    /// Term of the leader that must still lead.
    pub fence: Option<i64>,
    /// What.
    pub work: Work,
}

impl Job {
    fn answer(self, outcome: Result<(), WriteError>) {
        match self.work {
            Work::Book(operation) => operation.answer(outcome),
            Work::Write { wrote, send, .. } => {
                let _ = send.send(outcome.and_then(|()| wrote.ok_or(WriteError::Closed)));
            }
        }
    }
}

/// A batch that was not committed.
struct Failed {
    error: StoreError,
    at: Stage,
}

/// How far a batch came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing of it had been looked at: it is the log, or the database, and no job's fault.
    Log,
    /// The keys of its jobs were looked up.
    Keys,
    /// Operations had run: the book in memory is not what is in the database.
    Applied,
}

impl Failed {
    fn of_the_log(error: StoreError) -> Self {
        Self { error, at: Stage::Log }
    }

    /// Whether the other jobs of the batch may well be written.
    fn is_of_a_job(&self) -> bool {
        self.at != Stage::Log && self.error.is_of_the_operation()
    }
}

/// Who is told of commits.
pub(super) struct Told {
    /// The last number written.
    pub seq: watch::Sender<i64>,
    /// How the database fares.
    pub pulse: watch::Sender<Pulse>,
    /// Who waits for a claim or a node.
    pub waiters: Waiters,
}

/// What the writer task has.
pub(super) struct Writer {
    store: Store,
    options: Options,
    known: Arc<RwLock<BookState>>,
    /// Everything up to this number is in the book.
    seen: i64,
    nodes_at_ms: i64,
    checked_at_ms: i64,
    told: Told,
    /// What has changed since anybody was told; none: anything may have.
    untold: Option<Changes>,
    /// When the database last took a batch, milliseconds since 1970; at the start, when anybody last wrote.
    alive_at_ms: i64,
    /// The last try to write failed, and not by a job's fault.
    cannot_write: bool,
    /// When the book was last tried to be read, milliseconds since 1970, and why it was not.
    tried_at_ms: i64,
    unread_since: Option<StoreError>,
    cannot_begin: Seldom,
    commit_fails: Seldom,
    cannot_read: Seldom,
    /// The writer's own connection, whose cache stays warm; opened anew after an error.
    session: Option<Session>,
}

impl Writer {
    pub fn new(store: Store, options: Options, known: Arc<RwLock<BookState>>, told: Told) -> Self {
        Self {
            store,
            options,
            known,
            seen: 0,
            nodes_at_ms: 0,
            checked_at_ms: 0,
            told,
            untold: None,
            alive_at_ms: 0,
            cannot_write: false,
            tried_at_ms: 0,
            unread_since: None,
            cannot_begin: Seldom::new(),
            commit_fails: Seldom::new(),
            cannot_read: Seldom::new(),
            session: None,
        }
    }

    pub async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                // In this order, so that runs on virtual time repeat.
                biased;
                taken = queue.recv_many(&mut batch, BATCH_MAX) => if taken == 0 { return },
                _ = tick.tick() => {}
            }
            self.take(batch).await;
        }
    }

    fn now_ms(&self) -> i64 {
        self.options.clock.now_ms()
    }

    /// Commits a batch, and answers all of it.
    async fn take(&mut self, batch: Vec<Job>) {
        if let Err(error) = self.readable().await {
            batch.into_iter().for_each(|job| job.answer(Err(error.clone().into())));
            return;
        }
        // Halves that wait; a batch that fails by its own fault is split until the guilty operation is alone.
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            let Err(failed) = self.commit(&mut part).await else {
                self.tell();
                part.into_iter().for_each(|job| job.answer(Ok(())));
                continue;
            };
            self.cannot_write |= !failed.is_of_a_job();
            if let Err(error) = self.recover(&failed).await {
                let rest = part.into_iter().chain(parts.into_iter().flatten());
                rest.for_each(|job| job.answer(Err(error.clone().into())));
                return;
            }
            if part.len() > 1 && failed.is_of_a_job() {
                let second = part.split_off(part.len() / 2);
                parts.extend([second, part]);
            } else {
                part.into_iter().for_each(|job| job.answer(Err(failed.error.clone().into())));
            }
        }
    }

    fn tell(&mut self) {
        let pulse = Pulse { alive_at_ms: self.alive_at_ms, seq: self.seen };
        self.told.pulse.send_replace(pulse);
        self.told.seq.send_if_modified(|seq| std::mem::replace(seq, self.seen) != self.seen);
        match self.untold.replace(Changes::default()) {
            Some(changes) => self.told.waiters.changed(&changes),
            None => self.told.waiters.all_changed(),
        }
    }

    /// After a batch that failed: the book is what is in the database, or nobody has it.
    async fn recover(&mut self, failed: &Failed) -> Result<(), StoreError> {
        let error = chain_of(&failed.error);
        if failed.at != Stage::Applied {
            if let Some(held_back) = self.cannot_begin.now(&error) {
                tracing::warn!(error, held_back, "a commit could not begin");
            }
            return if failed.is_of_a_job() { Ok(()) } else { Err(failed.error.clone()) };
        }
        if let Some(held_back) = self.commit_fails.now(&error) {
            tracing::error!(error, held_back, "a commit failed; the book is read anew");
        }
        *self.known.write() = BookState::Unread;
        self.read_anew().await.map_err(|_| failed.error.clone())
    }

    /// Reads a book that is not known, but not more often than makes sense.
    async fn readable(&mut self) -> Result<(), StoreError> {
        if matches!(*self.known.read(), BookState::Read(_)) {
            return Ok(());
        }
        let just_tried = (0..READ_AGAIN_MS).contains(&(self.now_ms() - self.tried_at_ms));
        match &self.unread_since {
            Some(error) if just_tried => Err(error.clone()),
            _ => self.read_anew().await,
        }
    }

    /// Reads all that is open.
    pub async fn read_anew(&mut self) -> Result<(), StoreError> {
        self.tried_at_ms = self.now_ms();
        let read = self.try_read().await;
        self.unread_since = read.as_ref().err().cloned();
        match &read {
            Ok(()) => self.tell(),
            Err(error) => {
                let error = chain_of(error);
                if let Some(held_back) = self.cannot_read.now(&error) {
                    tracing::error!(error, held_back, "the state of the fleet cannot be read");
                }
            }
        }
        read
    }

    async fn try_read(&mut self) -> Result<(), StoreError> {
        let read = tokio::time::timeout(ANSWERED_WITHIN, self.read_book()).await;
        read.unwrap_or(Err(StoreError::Silent))
    }

    async fn read_book(&mut self) -> Result<(), StoreError> {
        let mut session = self.session().await?;
        let mut book = Book::with_token_prefix(self.options.limits, self.store.token_prefix());
        let begun = async {
            let head = self.ask(&mut session).await?;
            let news = session.news(0).await?;
            session.rollback().await?;
            Ok::<_, StoreError>((head, news))
        };
        let (Head { seq, next_id, .. }, news) = match begun.await {
            Ok(begun) => begun,
            Err(error) => return Err(session.give_up(error).await),
        };
        self.session = Some(session);
        let ahead_ms = news.last_at_ms.saturating_sub(self.now_ms());
        let was_ahead = self.seen == 0 && ahead_ms > FAR_AHEAD_MS && !self.store.is_shared();
        if !was_ahead {
            self.heard_of_others(news.last_at_ms);
        }
        news.tell(&mut book);
        book.skip_ids(next_id);
        book.take_changes();
        if was_ahead {
            // Waiting for that time to come would take as long: what was promised by it is promised by this clock instead.
            tracing::warn!(
                days = ahead_ms / DAY_MS,
                "what was written last is far ahead of this machine's clock, which counts"
            );
            book.forgive(-ahead_ms);
            self.alive_at_ms = self.now_ms();
        }
        self.untold = None;
        self.seen = seq;
        *self.known.write() = BookState::Read(Box::new(book));
        Ok(())
    }

    /// Begins a transaction, and follows the database's clock where it has one: replicas whose machines' clocks differ have one
    /// time all the same.
    async fn ask(&mut self, session: &mut Session) -> Result<Head, StoreError> {
        self.store.is_whole(self.seen).await?;
        let asked = self.options.clock.asks();
        let head = session.begin().await?;
        if head.seq < self.seen && !self.store.is_shared() {
            return Err(self.store.lost_commits());
        }
        if let Some(now_ms) = head.now_ms {
            self.options.clock.follow(now_ms, asked);
        }
        Ok(head)
    }

    /// Somebody wrote at that moment: it is later now.
    fn heard_of_others(&mut self, last_at_ms: i64) {
        self.options.clock.not_before(last_at_ms);
        self.alive_at_ms = self.alive_at_ms.max(last_at_ms.min(self.now_ms()));
    }

    async fn session(&mut self) -> Result<Session, StoreError> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => self.store.session().await,
        }
    }

    /// Runs `change` on the book, which is read.
    fn on_book<T>(&self, change: impl FnOnce(&mut Book) -> T) -> Result<T, StoreError> {
        match &mut *self.known.write() {
            BookState::Read(book) => Ok(change(book)),
            BookState::Unread => Err(StoreError::Unread),
        }
    }

    async fn commit(&mut self, batch: &mut Vec<Job>) -> Result<(), Failed> {
        let mut session = self.session().await.map_err(Failed::of_the_log)?;
        match tokio::time::timeout(ANSWERED_WITHIN, self.transact(&mut session, batch)).await {
            Ok(Ok(())) => self.session = Some(session),
            Ok(Err(failed)) => return Err(Failed { error: session.give_up(failed.error).await, ..failed }),
            Err(_) => {
                // Nobody may be there to hear that it is given up.
                tokio::spawn(tokio::time::timeout(ANSWERED_WITHIN, session.give_up(StoreError::Silent)));
                return Err(Failed { error: StoreError::Silent, at: Stage::Applied });
            }
        }
        Ok(())
    }

    /// Begins with a book that is up to date.
    async fn begin(&mut self, session: &mut Session, fenced: bool) -> Result<Option<i64>, StoreError> {
        let Head { seq, next_id, .. } = self.ask(session).await?;
        if seq != self.seen {
            let news = session.news(self.seen).await?;
            self.heard_of_others(news.last_at_ms);
            if news.all {
                self.untold = None;
                let mut book = Book::with_token_prefix(self.options.limits, self.store.token_prefix());
                news.tell(&mut book);
                *self.known.write() = BookState::Read(Box::new(book));
            } else {
                if let Some(untold) = &mut self.untold {
                    untold.nodes.extend(news.nodes.iter().map(|n| n.id));
                    untold.claims.extend(news.claims.iter().map(|c| c.id));
                }
                self.on_book(|book| news.tell(book))?;
            }
            self.seen = seq;
        }
        self.on_book(|book| book.skip_ids(next_id))?;
        if fenced { session.leader_term().await.map(Some) } else { Ok(None) }
    }

    /// Claims of earlier tries with the same keys are known again.
    async fn know_keys(&mut self, session: &mut Session, keys: &[String]) -> Result<(), StoreError> {
        if keys.is_empty() {
            return Ok(());
        }
        let known = session.claims_of_keys(keys).await?;
        self.on_book(|book| known.iter().filter(|c| !c.is_open()).for_each(|c| book.know_ended(c)))
    }

    async fn transact(&mut self, session: &mut Session, batch: &mut Vec<Job>) -> Result<(), Failed> {
        let keys: Vec<String> = batch.iter().filter_map(|j| j.key.clone()).collect();
        let fenced = batch.iter().any(|j| j.fence.is_some());
        let leader = self.begin(session, fenced).await.map_err(Failed::of_the_log)?;
        self.know_keys(session, &keys).await.map_err(|error| Failed { error, at: Stage::Keys })?;
        let now_ms = self.now_ms();
        let allowed: Vec<bool> = batch.iter().map(|job| job.fence.is_none() || job.fence == leader).collect();
        let (fenced_off, mut kept): (Vec<_>, Vec<_>) =
            std::mem::take(batch).into_iter().zip(allowed).partition(|(_, allowed)| !allowed);
        fenced_off.into_iter().for_each(|(job, _)| job.answer(Err(WriteError::NotLeader)));
        let dirty = |error| Failed { error, at: Stage::Applied };
        let done = self.apply(session, &mut kept, now_ms).await.map_err(dirty);
        *batch = kept.into_iter().map(|(job, _)| job).collect();
        let (changes, wrote) = done?;
        if changes.is_empty() && !wrote {
            session.rollback().await.map_err(Failed::of_the_log)?;
            // A database that is read and not written (a full disk) lets nobody be heard.
            if !self.cannot_write {
                self.alive_at_ms = now_ms;
            }
            return Ok(());
        }
        if wrote {
            let news = session.book_documents(self.seen).await.map_err(dirty)?;
            self.on_book(|book| news.tell(book)).map_err(dirty)?;
        }
        let (rows, next_id) =
            self.on_book(|book| (session.rows(book, &changes, self.seen), book.next_id())).map_err(dirty)?;
        let last = rows.last();
        session.commit(rows, next_id, now_ms).await.map_err(dirty)?;
        self.seen = last;
        self.store.is_whole(last).await.map_err(dirty)?;
        let gap_ms = now_ms - self.alive_at_ms;
        // Now that it is written, and not with each try.
        if self.alive_at_ms > 0 && gap_ms > AWAY_MS {
            tracing::warn!(seconds = gap_ms / 1000, "nobody could be heard for a while; leases do not count it");
        }
        (self.alive_at_ms, self.cannot_write) = (now_ms, false);
        self.committed(&changes, now_ms).map_err(dirty)
    }

    /// Runs the operations of a batch, and what happens by itself. Returns what changed of the book, and whether
    /// anything was written beside it.
    async fn apply(
        &mut self,
        session: &mut Session,
        batch: &mut [(Job, bool)],
        now_ms: i64,
    ) -> Result<(Changes, bool), StoreError> {
        let gap_ms = now_ms - self.alive_at_ms;
        // A command beside the servers too: what it writes says that somebody was there.
        if self.alive_at_ms > 0 && gap_ms > AWAY_MS {
            self.on_book(|book| book.forgive(gap_ms))?;
        }
        let (next_seq, mut wrote_any) = (self.seen + 1, false);
        for (job, _) in batch.iter_mut() {
            match &mut job.work {
                // Where nobody waits any more nothing is done.
                Work::Book(operation) if operation.is_wanted() => {
                    self.on_book(|book| operation.run(book, now_ms))?;
                }
                Work::Book(_) => {}
                Work::Write { write, wrote, .. } => {
                    *wrote = Some(session.apply(write, next_seq, now_ms).await?);
                    wrote_any = true;
                }
            }
        }
        let nodes_are_due = self.options.ticks && now_ms - self.nodes_at_ms >= NODES_EVERY_MS;
        let ticks = self.options.ticks;
        let changes = self.on_book(|book| {
            if ticks {
                book.tick(now_ms);
            }
            if nodes_are_due {
                book.tick_nodes(now_ms);
            }
            book.forget_keys();
            book.take_changes()
        })?;
        if nodes_are_due {
            self.nodes_at_ms = now_ms;
        }
        Ok((changes, wrote_any))
    }

    /// After a commit: the invariants, of what changed and each minute of all; then what has ended is forgotten.
    fn committed(&mut self, changes: &Changes, now_ms: i64) -> Result<(), StoreError> {
        let whole = now_ms - self.checked_at_ms >= CHECKED_EVERY_MS;
        if whole {
            self.checked_at_ms = now_ms;
        }
        let breaches = self.on_book(|book| {
            let breaches = if whole { book.breaches() } else { book.breaches_in(changes) };
            book.forget_ended(changes);
            breaches
        })?;
        for breach in &breaches {
            (self.options.on_breach)(breach);
        }
        if let Some(untold) = &mut self.untold {
            untold.nodes.extend(&changes.nodes);
            untold.claims.extend(&changes.claims);
        }
        Ok(())
    }
}
