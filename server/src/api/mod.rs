//! The REST API.

mod admission;
mod agents;
mod audit;
mod auth;
mod breakers;
mod budget;
mod claims;
mod classes;
mod doors;
mod edits;
mod events;
mod feed;
mod fleet;
mod forecasts;
mod gpus;
mod health;
mod listener;
mod loops;
mod openapi;
mod plans;
mod problem;
mod rates;
mod snapshots;
mod starts;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::store::Page;

pub use admission::Admission;
pub use feed::Feed;
pub use listener::{Listener, Tls, serve};
pub use openapi::document;
pub use problem::{ApiError, Code};

/// Largest request body, bytes.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// A request's body must be whole within this time.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(claims::create, claims::list))
        .routes(routes!(claims::get))
        .routes(routes!(claims::heartbeat))
        .routes(routes!(claims::release))
        .routes(routes!(claims::report_unhealthy))
        .routes(routes!(classes::list))
        .routes(routes!(classes::get, classes::put, classes::delete))
        .routes(routes!(budget::get, budget::put))
        .routes(routes!(forecasts::list))
        .routes(routes!(forecasts::put, forecasts::delete))
        .routes(routes!(audit::list))
        .routes(routes!(fleet::nodes))
        .routes(routes!(fleet::node))
        .routes(routes!(fleet::drain))
        .routes(routes!(gpus::evidence))
        .routes(routes!(gpus::list))
        .routes(routes!(gpus::clear))
        .routes(routes!(breakers::list))
        .routes(routes!(breakers::close))
        .routes(routes!(rates::list))
        .routes(routes!(fleet::offers))
        .routes(routes!(fleet::pools))
        .routes(routes!(plans::current))
        .routes(routes!(plans::list))
        .routes(routes!(plans::get))
        .routes(routes!(plans::input))
        .routes(routes!(plans::what_if))
        .routes(routes!(events::list))
        .routes(routes!(events::last))
        .routes(routes!(events::stream))
        .routes(routes!(loops::list))
        .routes(routes!(loops::pause))
        .routes(routes!(loops::resume))
        .routes(routes!(agents::register))
        .routes(routes!(agents::report::report))
        .routes(routes!(agents::desired))
        .routes(routes!(agents::staged::staged))
        .routes(routes!(agents::started::started))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::get, snapshots::put, snapshots::delete))
        .routes(routes!(snapshots::copies))
        .routes(routes!(starts::list))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
}

/// The service.
pub fn router(app: Arc<App>) -> Router {
    let (routes, document) = api().split_for_parts();
    let text: Arc<str> = openapi::text(document).into();
    routes
        .merge(openapi::pages(&text))
        .fallback(|| async { ApiError::new(Code::NotFound, "there is no such path; /docs lists them") })
        .layer(CatchPanicLayer::custom(|_| ApiError::new(Code::Internal, "the server's log has more").into_response()))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), admission::admit))
        .layer(axum::middleware::from_fn(refuse_nul))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

/// PostgreSQL keeps no U+0000 in its texts, and no name has use for one.
const NO_NUL: &str = "no text may have the character U+0000 in it";

/// Whether a JSON text has an escaped U+0000 in one of its strings; JSON has no other way to say it.
fn has_nul(text: &[u8]) -> bool {
    let escape = b"u0000";
    let before = |end: usize| text[..end].iter().rev().take_while(|b| **b == b'\\').count();
    let mut places = text.windows(escape.len()).enumerate().filter(|(_, w)| w == escape).map(|(at, _)| at);
    // Two backslashes are one that is meant; an odd one begins an escape.
    places.any(|at| before(at) % 2 == 1)
}

/// Refuses U+0000 in paths and queries, on every route.
async fn refuse_nul(request: Request, next: Next) -> Response {
    let place = request.uri().path_and_query().map_or("", |p| p.as_str());
    if place.contains("%00") {
        return ApiError::new(Code::InvalidRequest, NO_NUL).into_response();
    }
    next.run(request).await
}

/// A JSON body whose errors are problems. An empty one is `{}`.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await;
        let read = read.map_err(|_| {
            ApiError::new(Code::BodyTooSlow, format!("the body was not whole within {} s", BODY_TIMEOUT.as_secs()))
        })?;
        let bytes = read.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                ApiError::new(Code::TooLarge, format!("at most {BODY_BYTES_MAX} bytes"))
            } else {
                ApiError::new(Code::InvalidRequest, rejection.body_text())
            }
        })?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        if has_nul(text) {
            return Err(ApiError::new(Code::InvalidRequest, NO_NUL));
        }
        let read = serde_json::from_slice(text);
        read.map(Self).map_err(|error| ApiError::new(Code::InvalidRequest, format!("the body does not read: {error}")))
    }
}

/// The number in `n-17`.
fn number(text: &str, letter: char) -> Result<u64, ApiError> {
    let digits = text.strip_prefix(letter).and_then(|t| t.strip_prefix('-'));
    let read = digits.and_then(|d| d.parse().ok()).filter(|id| *id < i64::MAX as u64);
    read.ok_or_else(|| ApiError::new(Code::NotFound, format!("'{text}' is no identity; one looks like {letter}-42")))
}

/// Which part of a list.
#[derive(Debug, Deserialize, IntoParams)]
pub struct PageQuery {
    /// Only of this state.
    #[serde(default)]
    pub state: Option<String>,
    /// `next` of the page before.
    #[serde(default)]
    pub after: Option<u64>,
    /// Items, 1 to 1000; 100 without it.
    #[serde(default)]
    pub limit: Option<u32>,
}

impl PageQuery {
    fn limit(&self) -> Result<u32, ApiError> {
        let limit = self.limit.unwrap_or(100);
        if (1..=1000).contains(&limit) {
            Ok(limit)
        } else {
            Err(ApiError::new(Code::OutOfRange, format!("limit: {limit} is not in 1..=1000")))
        }
    }

    fn page(&self) -> Result<Page, ApiError> {
        let after = i64::try_from(self.after.unwrap_or(0)).unwrap_or(i64::MAX);
        Ok(Page { after, limit: i64::from(self.limit()?) })
    }

    fn state<'a>(&'a self, known: &[&str]) -> Result<Option<&'a str>, ApiError> {
        match self.state.as_deref() {
            Some(state) if !known.contains(&state) => {
                let detail = format!("state: '{state}' is none of {}", known.join(", "));
                Err(ApiError::new(Code::InvalidRequest, detail))
            }
            state => Ok(state),
        }
    }

    fn listed<T>(&self, items: Vec<T>, last: Option<u64>) -> Listed<T> {
        let full = items.len() >= self.limit.unwrap_or(100) as usize;
        Listed { items, next: last.filter(|_| full) }
    }
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Listed<T> {
    /// The items.
    pub items: Vec<T>,
    /// `after` of the next page; absent on the last one.
    pub next: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_nul_is_seen_and_its_like_is_not() {
        for (text, is) in [
            (r#"{"a":"x\u0000y"}"#, true),
            (r#"{"a":"\u00001"}"#, true),
            (r#"{"a":"u0000"}"#, false),
            (r#"{"a":"\\u0000"}"#, false),
            (r#"{"a":"\\\u0000"}"#, true),
        ] {
            let said = serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            assert_eq!(said["a"].as_str().expect("text").contains('\0'), is, "{text}");
            assert_eq!(has_nul(text.as_bytes()), is, "{text}");
        }
    }
}
