//! Who has how many requests open at the same time: none takes the room of all others.
//!
//! A token may have as many requests open as there are places free: one alone gets a half of all, the next a half of what is
//! left, and whoever comes anew finds some (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
//! switches", 1998, with factor 1). Strangers share places of their own in the same way, by where they come from; each host has
//! a few of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

use super::agents::host_of_token;
use super::auth::bearer;
use super::doors;
use super::listener::{Origin, Peer};
use super::problem::{ApiError, Code};
use crate::app::App;

/// Requests of tokens that are open at the same time, long polls and streams among them.
const OPEN_MAX: usize = 8192;
/// Requests of strangers that are open at the same time.
const STRANGERS_MAX: usize = 2048;
/// Requests of one host that are open at the same time: a poll, a report, and what follows a start.
const HOST_MAX: usize = 16;
/// Longest time that a handler may take; long polls end before.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(90);

/// Who has requests open.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
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
    of_tokens: usize,
    of_strangers: usize,
    of: HashMap<Who, usize>,
}

impl Open {
    /// How many more requests a caller may have open, by those that are open, and whose are counted with them.
    fn room(&self, who: &Who) -> usize {
        match who {
            Who::Token(_) | Who::Inside => OPEN_MAX - self.of_tokens,
            Who::Stranger(_) => STRANGERS_MAX - self.of_strangers,
            Who::Host(_) => HOST_MAX,
        }
    }

    fn shared(&mut self, who: &Who) -> Option<&mut usize> {
        match who {
            Who::Token(_) | Who::Inside => Some(&mut self.of_tokens),
            Who::Stranger(_) => Some(&mut self.of_strangers),
            Who::Host(_) => None,
        }
    }
}

impl Admission {
    fn enter(self: &Arc<Self>, who: Who) -> Result<Place, ApiError> {
        let mut open = self.0.lock();
        let mine = open.of.get(&who).copied().unwrap_or(0);
        let room = open.room(&who);
        if mine >= room {
            let detail =
                format!("{mine} requests of this caller are open, and there is room for {room} more of anybody's");
            return Err(ApiError { retry_after_s: Some(1), ..ApiError::new(Code::TooManyOpen, detail) });
        }
        if let Some(all) = open.shared(&who) {
            *all += 1;
        }
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
        if let Some(all) = open.shared(&self.who) {
            *all -= 1;
        }
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
    let caller = app.tokens.caller(bearer(&parts));
    let host = || host_of_token(&app, bearer(&parts)?);
    let who = match (&caller, &peer) {
        (_, None) => Who::Inside,
        (Some(caller), _) => Who::Token(Arc::clone(&caller.name)),
        (None, Some(peer)) => host().map_or_else(|| Who::Stranger(peer.origin()), Who::Host),
    };
    if let Some(peer) = peer
        && !matches!(who, Who::Stranger(_))
    {
        peer.let_in(&who);
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
        let second = fill(&token("c"));
        assert_eq!(second.len(), OPEN_MAX / 4);
        let from = |last: u8| Who::Stranger(Origin::of(std::net::IpAddr::from([10, 0, 0, last])));
        let strangers: Vec<_> = (0..100).map(|last| fill(&from(last))).collect();
        assert!(strangers.iter().map(Vec::len).sum::<usize>() <= STRANGERS_MAX);
        let hosts: Vec<_> = (0..10_000).map(|host| fill(&Who::Host(host))).collect();
        assert!(hosts.iter().all(|places| places.len() == HOST_MAX), "each host has its own");
        assert!(all.enter(token("b")).is_ok(), "whoever comes anew finds a place");
        drop((first, second, strangers, hosts));
        let open = all.0.lock();
        assert!(open.of.is_empty());
        assert_eq!((open.of_tokens, open.of_strangers), (0, 0));
    }
}
