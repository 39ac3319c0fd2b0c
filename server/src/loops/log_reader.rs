//! The event log for the loops that read it, page by page; each goes on where it was in this term of the lead.

use crate::app::App;
use crate::store::{EventRow, Page, StoreError};

/// Events that are read at once.
const AT_ONCE: i64 = 2_000;
/// Pages of one run; the rest is for the next.
const PAGES: usize = 100;

/// One run of one reader.
pub struct LogReader<'a> {
    app: &'a App,
    pages: usize,
    at: i64,
}

impl<'a> LogReader<'a> {
    /// Goes on after an event.
    pub fn after(app: &'a App, seq: i64) -> Self {
        Self { app, pages: PAGES, at: seq }
    }

    /// The next events; none at the end, or when it is enough for one run.
    pub async fn next(&mut self) -> Result<Vec<EventRow>, StoreError> {
        if self.pages == 0 {
            return Ok(Vec::new());
        }
        let events = self.app.store.events(Page { after: self.at, limit: AT_ONCE }).await?;
        self.at = events.last().map_or(self.at, |e| e.seq);
        self.pages = if events.len() < AT_ONCE as usize { 0 } else { self.pages - 1 };
        Ok(events)
    }

    /// The last event that was read.
    pub fn seq(&self) -> i64 {
        self.at
    }
}
