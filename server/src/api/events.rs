//! The event log, by page and as a stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::admission::Place;
use super::auth::{Caller, Role};
use super::feed::Chunk;
use super::problem::{ApiError, Problem};
use super::{Listed, PageQuery};
use crate::app::App;
use crate::store::EventRow;

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
    place: Option<Extension<Place>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.may(Role::Viewer)?;
    let again = headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
    let after = match again.or(page.after.map(|a| i64::try_from(a).unwrap_or(i64::MAX))) {
        Some(after) => after,
        None => app.store.last_seq().await?,
    };
    let tail = Tail { live: app.feed.follow(), after, caller, behind: true, beat: false, _place: place, app };
    let chunks = futures_util::stream::unfold(tail, |mut tail| async move {
        let chunk = tail.next().await?;
        Some((Ok::<_, Infallible>(chunk), tail))
    });
    let sent_as = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((sent_as, Body::from_stream(chunks)).into_response())
}

/// A stream that says nothing says so this often.
const BEAT: Duration = Duration::from_secs(15);
/// Whether its token is still good is looked at this often.
const CHECKED_EVERY: Duration = Duration::from_secs(1);

/// Where a stream is.
struct Tail {
    app: Arc<App>,
    caller: Caller,
    live: broadcast::Receiver<Chunk>,
    after: i64,
    /// It has to read from the database what it missed.
    behind: bool,
    beat: bool,
    _place: Option<Extension<Place>>,
}

impl Tail {
    /// The next events; none when the server ends, the database fails or the token is revoked: the client comes again, or
    /// hears why it may not.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::replace(&mut self.beat, true) {
            // The answer's head goes out with this.
            return Some(Bytes::from_static(b": pilotlight\n\n"));
        }
        let quiet_since = Instant::now();
        loop {
            if !self.app.tokens.still(self.caller.token.as_deref()) {
                return None;
            }
            if self.behind {
                match self.app.feed.page(self.after).await.ok()? {
                    // It may have waited long.
                    Some(_) if !self.app.tokens.still(self.caller.token.as_deref()) => return None,
                    Some(chunk) => {
                        self.after = chunk.last;
                        return Some(chunk.text);
                    }
                    None => self.behind = false,
                }
            }
            match tokio::time::timeout(CHECKED_EVERY, self.live.recv()).await {
                Err(_) if quiet_since.elapsed() >= BEAT => {
                    // Whatever was missed is found now.
                    self.behind = true;
                    return Some(Bytes::from_static(b":\n\n"));
                }
                Err(_) => {}
                Ok(Ok(chunk)) if chunk.last <= self.after => {}
                Ok(Ok(chunk)) if chunk.after == self.after => {
                    self.after = chunk.last;
                    return Some(chunk.text);
                }
                // It does not follow what this stream has sent last.
                Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => self.behind = true,
                Ok(Err(broadcast::error::RecvError::Closed)) => return None,
            }
        }
    }
}
