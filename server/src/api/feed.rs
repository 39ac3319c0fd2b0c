//! Events for all who follow them: read once and written down once, whoever many follow.
//!
//! What comes within a quarter of a second is sent together, so that a stream costs one write for many events. Who falls
//! behind reads from the database until it has caught up, a few at a time.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::Instant;

use super::events::EventView;
use crate::store::{Ledger, Page, Store, StoreError};

/// Events are gathered for so long.
const GATHER: Duration = Duration::from_millis(250);
/// Events of one page.
const PAGE: i64 = 2_000;
/// Chunks that a slow stream may lie behind before it reads from the database.
const BEHIND_MAX: usize = 16;
/// Streams that read from the database at the same time.
const READERS_MAX: usize = 2;

/// Events, as they are sent.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// All events after this number …
    pub after: i64,
    /// … up to this.
    pub last: i64,
    /// As server-sent events (WHATWG HTML, section 9.2).
    pub text: Bytes,
}

/// The one reader for all who follow.
#[derive(Debug)]
pub struct Feed {
    store: Store,
    ledger: Ledger,
    sender: OnceLock<broadcast::Sender<Chunk>>,
    readers: Semaphore,
}

impl Feed {
    /// Over a store; nothing is read until somebody follows.
    pub fn new(store: Store, ledger: Ledger) -> Arc<Self> {
        Arc::new(Self { store, ledger, sender: OnceLock::new(), readers: Semaphore::new(READERS_MAX) })
    }

    /// What comes from now on.
    pub fn follow(self: &Arc<Self>) -> broadcast::Receiver<Chunk> {
        let start = || {
            let sender = broadcast::Sender::new(BEHIND_MAX);
            let mut seq = self.ledger.watch();
            // From here on: whatever comes after the first follower has looked is sent.
            let at = *seq.borrow_and_update();
            tokio::spawn(Arc::clone(self).read(sender.clone(), seq, at));
            sender
        };
        self.sender.get_or_init(start).subscribe()
    }

    /// The page after an event; none at the end.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn page(&self, after: i64) -> Result<Option<Chunk>, StoreError> {
        let _turn = self.readers.acquire().await;
        self.chunk(after).await
    }

    async fn chunk(&self, after: i64) -> Result<Option<Chunk>, StoreError> {
        let rows = self.store.events(Page { after, limit: PAGE }).await?;
        let Some(last) = rows.last().map(|row| row.seq) else { return Ok(None) };
        let mut text = String::with_capacity(rows.len() * 200);
        for row in rows {
            let seq = row.seq;
            let json = serde_json::to_string(&EventView::from(row)).unwrap_or_default();
            let _ = write!(text, "id: {seq}\ndata: {json}\n\n");
        }
        Ok(Some(Chunk { after, last, text: text.into() }))
    }

    async fn read(
        self: Arc<Self>,
        sender: broadcast::Sender<Chunk>,
        mut seq: tokio::sync::watch::Receiver<i64>,
        mut at: i64,
    ) {
        while seq.changed().await.is_ok() {
            let until = Instant::now() + GATHER;
            if sender.receiver_count() == 0 {
                at = *seq.borrow_and_update();
            }
            while sender.receiver_count() > 0 {
                match self.chunk(at).await {
                    Ok(Some(chunk)) => {
                        at = chunk.last;
                        // Whoever left meanwhile misses nothing.
                        let _ = sender.send(chunk);
                    }
                    Ok(None) => break,
                    Err(_) => tokio::time::sleep(GATHER).await,
                }
            }
            tokio::time::sleep_until(until).await;
        }
    }
}
