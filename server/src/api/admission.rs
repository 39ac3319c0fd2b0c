//! Who has how many requests open at the same time: none takes the room of all others.
//!
//! A caller may have as many requests open as there are places free: one alone gets a half of all, the next a half of what is
//! left, and whoever comes anew always finds some (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory
//! packet switches", 1998, with factor 1).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

use super::agents::host_of_token;
use super::auth::{Caller, bearer};
use super::doors;
use super::listener::{Origin, Peer};
use super::problem::{ApiError, Code};
use crate::app::App;

/// Requests that are open at the same time, long polls and streams among them.
pub const OPEN_MAX: usize = 8192;
/// Longest time that a handler may take; long polls end before.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(90);

/// Who has requests open.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    /// A token, by its name.
    Token(Arc<str>),
    /// The agent of a node.
    Host(u64),
    /// Nobody that is known, from there.
    Stranger(Origin),
    /// A part of the server itself: the demo's clients and hosts.
    Inside,
}

/// How many requests are open.
#[derive(Debug, Default)]
pub struct Admission(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    all: usize,
    of: HashMap<Who, usize>,
}

impl Admission {
    fn enter(self: &Arc<Self>, who: Who) -> Result<Place, ApiError> {
        let mut open = self.0.lock();
        let mine = open.of.get(&who).copied().unwrap_or(0);
        if mine >= OPEN_MAX - open.all {
            let detail = format!("{mine} requests of this caller are open, and {} in all of {OPEN_MAX}", open.all);
            return Err(ApiError { retry_after_s: Some(1), ..ApiError::new(Code::TooManyOpen, detail) });
        }
        open.all += 1;
        *open.of.entry(who.clone()).or_default() += 1;
        Ok(Place(Arc::new(Held { who, all: Arc::clone(self) })))
    }
}

/// A place that a request has until the last copy of this is dropped.
#[derive(Debug, Clone)]
pub struct Place(#[expect(dead_code, reason = "its drop is what it is for")] Arc<Held>);

#[derive(Debug)]
struct Held {
    who: Who,
    all: Arc<Admission>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = self.all.0.lock();
        open.all -= 1;
        if let Some(mine) = open.of.get_mut(&self.who) {
            *mine -= 1;
            if *mine == 0 {
                open.of.remove(&self.who);
            }
        }
    }
}

/// Every request comes through here: from where it comes, who calls, and whether there is a place for it.
pub async fn admit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().cloned();
    if let Err(error) = doors::check(&app, &parts) {
        return error.into_response();
    }
    let caller = Caller::of(&app, &parts);
    let host = || host_of_token(&app, bearer(&parts)?);
    let who = match (&caller, &peer) {
        (_, None) => Who::Inside,
        (Some(caller), _) => Who::Token(Arc::clone(&caller.name)),
        (None, Some(peer)) => host().map_or_else(|| Who::Stranger(peer.origin()), Who::Host),
    };
    if let Some(peer) = peer
        && !matches!(who, Who::Stranger(_))
    {
        peer.let_in();
    }
    let place = match app.admission.enter(who) {
        Ok(place) => place,
        Err(error) => return error.into_response(),
    };
    if let Some(caller) = caller {
        parts.extensions.insert(caller);
    }
    parts.extensions.insert(place.clone());
    let answered = tokio::time::timeout(HANDLER_TIMEOUT, next.run(Request::from_parts(parts, body))).await;
    answered.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s; it may have been done: ask again", HANDLER_TIMEOUT.as_secs());
        ApiError::new(Code::TooSlow, detail).into_response()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_room_for_the_next() {
        let all = Arc::new(Admission::default());
        let token = |name: &str| Who::Token(Arc::from(name));
        let fill = |who: &Who| -> Vec<Place> {
            std::iter::from_fn(|| all.enter(who.clone()).ok()).take(OPEN_MAX + 1).collect()
        };
        let first = fill(&token("a"));
        assert_eq!(first.len(), OPEN_MAX / 2);
        let second = fill(&Who::Host(1));
        assert_eq!(second.len(), OPEN_MAX / 4);
        assert!(all.enter(token("b")).is_ok(), "whoever comes anew finds a place");
        drop((first, second));
        assert!(all.0.lock().of.is_empty());
        assert_eq!(all.0.lock().all, 0);
    }
}
