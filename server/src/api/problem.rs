//! Errors as RFC 9457 problems with stable codes, each with a page under `docs/errors/`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fleet::book::{ClaimError, IntentError, NodeError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::errors::{Seldom, chain_of};
use crate::pacing::TooFast;
use crate::store::{Crossed, StoreError, Unread, WriteError};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:ident, $title:literal;)*) => {
        /// What went wrong. The name is stable; programs act on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in the API.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// The HTTP status.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status,)* }
            }

            /// A short title.
            #[must_use]
            pub fn title(self) -> &'static str {
                match self { $(Self::$name => $title,)* }
            }

            /// Its page, in Markdown.
            #[must_use]
            pub fn page(self) -> &'static str {
                match self { $(Self::$name => include_str!(concat!("../../../docs/errors/", $code, ".md")),)* }
            }
        }
    };
}

codes! {
    /// The request does not read.
    InvalidRequest = "invalid-request", BAD_REQUEST, "The request does not read";
    /// A number is out of its range.
    OutOfRange = "out-of-range", UNPROCESSABLE_ENTITY, "A number is out of its range";
    /// No token, or one that is not known.
    Unauthenticated = "unauthenticated", UNAUTHORIZED, "A token is needed";
    /// The caller may not do it.
    Forbidden = "forbidden", FORBIDDEN, "This caller may not do this";
    /// There is no such thing.
    NotFound = "not-found", NOT_FOUND, "There is no such thing";
    /// There is no such class.
    UnknownClass = "unknown-class", NOT_FOUND, "There is no such class";
    /// The key belongs to another request.
    KeyReused = "idempotency-key-reused", CONFLICT, "The idempotency key belongs to another request";
    /// The claim has ended.
    ClaimEnded = "claim-ended", CONFLICT, "The claim has ended";
    /// The state does not allow it.
    WrongState = "wrong-state", CONFLICT, "The state does not allow this";
    /// Agent and server do not understand each other.
    AgentVersion = "agent-version", UNPROCESSABLE_ENTITY, "Agent and server do not understand each other";
    /// Another edit came first.
    EditCrossed = "edit-crossed", PRECONDITION_FAILED, "Somebody else edited it first";
    /// An edit without a version.
    VersionNeeded = "version-needed", PRECONDITION_REQUIRED, "An edit needs the version it was made from";
    /// The body does not come.
    BodyTooSlow = "body-too-slow", REQUEST_TIMEOUT, "The request's body did not come in time";
    /// Too many requests of one caller are open.
    TooManyOpen = "too-many-open", TOO_MANY_REQUESTS, "Too many requests of this caller are open";
    /// The server took too long.
    TooSlow = "too-slow", GATEWAY_TIMEOUT, "The server took too long";
    /// Too many requests of one token.
    RateLimited = "rate-limited", TOO_MANY_REQUESTS, "Too many requests";
    /// The body is too large.
    TooLarge = "too-large", PAYLOAD_TOO_LARGE, "The request is too large";
    /// No GPUs are free.
    Empty = "no-free-gpus", SERVICE_UNAVAILABLE, "No GPUs are free";
    /// No zone will ever have so many GPUs.
    NeverFits = "never-fits", UNPROCESSABLE_ENTITY, "So many GPUs can never be had";
    /// Too many claims wait.
    QueueFull = "queue-full", SERVICE_UNAVAILABLE, "Too many claims wait";
    /// Too much at once.
    Busy = "busy", SERVICE_UNAVAILABLE, "The server is busy";
    /// The answer would come too late.
    TooLate = "deadline-passed", GATEWAY_TIMEOUT, "The client's deadline has passed";
    /// The database cannot be used.
    Storage = "storage-unavailable", SERVICE_UNAVAILABLE, "The database cannot be used";
    /// Not the leader.
    NotLeader = "not-leader", SERVICE_UNAVAILABLE, "This replica does not lead";
    /// A bug.
    Internal = "internal", INTERNAL_SERVER_ERROR, "A bug in Pilotlight";
}

/// An error as it is sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Where its page is.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short, the same for each code.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: String,
    /// What happened this time, and what to do.
    pub detail: String,
}

/// An error on its way out.
#[derive(Debug)]
pub struct ApiError {
    /// Its code.
    pub code: Code,
    /// What happened this time.
    pub detail: String,
    /// When to try again, seconds.
    pub retry_after_s: Option<u32>,
}

impl ApiError {
    /// An error.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let retry_after_s = (code.status() == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { code, detail: detail.into(), retry_after_s }
    }

    /// What is sent.
    #[must_use]
    pub fn problem(&self) -> Problem {
        Problem {
            kind: format!("/errors/{}", self.code.name()),
            title: self.code.title().into(),
            status: self.code.status().as_u16(),
            code: self.code.name().into(),
            detail: self.detail.clone(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.code.status(), Json(self.problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthenticated {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<ClaimError> for ApiError {
    fn from(error: ClaimError) -> Self {
        let code = match &error {
            ClaimError::UnknownClass(_) => Code::UnknownClass,
            ClaimError::UnknownClaim(_) | ClaimError::UnknownSnapshot { .. } => Code::NotFound,
            ClaimError::OutOfRange { .. } => Code::OutOfRange,
            ClaimError::KeyReused(_) => Code::KeyReused,
            ClaimError::Empty { .. } => Code::Empty,
            ClaimError::QueueFull { .. } => Code::QueueFull,
            ClaimError::NeverFits { .. } => Code::NeverFits,
            ClaimError::NotYours { .. } => Code::Forbidden,
            ClaimError::TooLate => Code::TooLate,
            ClaimError::Ended { .. } => Code::ClaimEnded,
            ClaimError::Illegal(_) => Code::WrongState,
        };
        let mut made = Self::new(code, error.to_string());
        if let ClaimError::Empty { arriving, .. } = error {
            made.retry_after_s = Some(if arriving > 0 { 5 } else { 30 });
        }
        made
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let code = match &error {
            NodeError::Unknown(_) => Code::NotFound,
            NodeError::TooLarge(_) | NodeError::OtherSerials { .. } => Code::OutOfRange,
            _ => Code::WrongState,
        };
        Self::new(code, error.to_string())
    }
}

impl From<IntentError> for ApiError {
    fn from(error: IntentError) -> Self {
        match error {
            IntentError::Node(error) => error.into(),
            IntentError::Unknown(_) | IntentError::UnknownOffer(_) => Self::new(Code::NotFound, error.to_string()),
            IntentError::Illegal(_) => Self::new(Code::WrongState, error.to_string()),
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        match &error {
            WriteError::Store(source) => source.clone().into(),
            WriteError::Busy | WriteError::Closed => Self::new(Code::Busy, error.to_string()),
            WriteError::NotLeader => Self::new(Code::NotLeader, error.to_string()),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        // What the database says is for the operator's log, not for every client.
        static DATABASE_FAILS: Seldom = Seldom::new();
        let said = chain_of(&error);
        if let Some(held_back) = DATABASE_FAILS.now(&said) {
            tracing::error!(error = said, held_back, "the database cannot be used");
        }
        Self::new(Code::Storage, "nothing was changed; the server's log says why")
    }
}

impl From<Crossed> for ApiError {
    fn from(error: Crossed) -> Self {
        Self::new(Code::EditCrossed, error.to_string())
    }
}

impl From<Unread> for ApiError {
    fn from(error: Unread) -> Self {
        Self::new(Code::Storage, error.to_string())
    }
}

impl From<TooFast> for ApiError {
    fn from(error: TooFast) -> Self {
        let wait_s = u32::try_from(error.wait_ms.unsigned_abs().div_ceil(1000)).unwrap_or(60);
        Self { retry_after_s: Some(wait_s), ..Self::new(Code::RateLimited, error.to_string()) }
    }
}
