//! The event log, by page and as a stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::Stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{Caller, Role};
use super::problem::{ApiError, Problem};
use super::{Listed, PageQuery};
use crate::app::App;
use crate::store::{EventRow, Page};

/// One state change with its reason.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventView {
    /// Its number; numbers rise in the order of commits.
    pub seq: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// What it is about: `n-17`, `c-42`, `i-3`.
    pub subject: String,
    /// State before; empty for a new one.
    pub from: String,
    /// State after.
    pub to: String,
    /// Why.
    pub reason: String,
}

impl From<EventRow> for EventView {
    fn from(row: EventRow) -> Self {
        let (from, to) = row.change.what.states();
        Self {
            seq: row.seq,
            at_ms: row.change.at_ms,
            subject: row.change.what.name(),
            from: from.into(),
            to: to.into(),
            reason: row.change.reason,
        }
    }
}

/// Events by number, a page at a time.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", params(PageQuery),
    responses((status = 200, description = "Events", body = Listed<EventView>))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
) -> Result<Json<Listed<EventView>>, ApiError> {
    caller.may(Role::Viewer)?;
    page.state(&[])?;
    let items: Vec<EventView> = app.store.events(page.page()?).await?.into_iter().map(Into::into).collect();
    let last = items.last().map(|e| e.seq.unsigned_abs());
    Ok(Json(page.listed(items, last)))
}

/// Where the log is.
#[derive(Debug, Serialize, ToSchema)]
pub struct LastEvent {
    /// The number of the last event.
    pub seq: i64,
}

/// The number of the last event.
#[utoipa::path(get, path = "/v1/events/last", tag = "events", responses((status = 200, description = "The number", body = LastEvent)))]
pub async fn last(State(app): State<Arc<App>>, caller: Caller) -> Result<Json<LastEvent>, ApiError> {
    caller.may(Role::Viewer)?;
    Ok(Json(LastEvent { seq: app.store.last_seq().await? }))
}

/// Events as they happen (server-sent events). Begins after `Last-Event-ID` or `after`, without them with what comes now.
#[utoipa::path(
    get, path = "/v1/events/stream", tag = "events", params(PageQuery),
    responses((status = 200, description = "A stream of events", content_type = "text/event-stream", body = EventView),
              (status = 401, description = "A token is needed", body = Problem))
)]
pub async fn stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(page): Query<PageQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    caller.may(Role::Viewer)?;
    let again = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
    let after = match again.or(page.after.map(|a| i64::try_from(a).unwrap_or(i64::MAX))) {
        Some(after) => after,
        None => app.store.last_seq().await?,
    };
    let tail = Tail { seq: app.ledger.watch(), app, after, read: VecDeque::new() };
    let events = futures_util::stream::unfold(tail, |mut tail| async move {
        let event = tail.next().await?;
        Some((Ok(event), tail))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// Where a stream is.
struct Tail {
    app: Arc<App>,
    seq: tokio::sync::watch::Receiver<i64>,
    after: i64,
    read: VecDeque<EventRow>,
}

impl Tail {
    /// The next event; none when the server ends or the database fails, so that the client comes again.
    async fn next(&mut self) -> Option<Event> {
        while self.read.is_empty() {
            self.seq.borrow_and_update();
            self.read = self.app.store.events(Page { after: self.after, limit: 500 }).await.ok()?.into();
            if self.read.is_empty() {
                self.seq.changed().await.ok()?;
            }
        }
        let row = self.read.pop_front()?;
        self.after = row.seq;
        let event = Event::default().id(row.seq.to_string());
        event.json_data(EventView::from(row)).ok()
    }
}
