//! Who calls, and what they may do.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;

use super::problem::{ApiError, Code};
use crate::app::App;
pub use crate::tokens::{Caller, Role};

impl Caller {
    /// Refuses who may not do what `least` may.
    ///
    /// # Errors
    /// `forbidden`.
    pub fn may(&self, least: Role) -> Result<(), ApiError> {
        if self.role != Role::Agent && self.role >= least {
            return Ok(());
        }
        let detail = format!("token '{}' is {}; this needs {}", self.name, self.role.name(), least.name());
        Err(ApiError::new(Code::Forbidden, detail))
    }
}

/// The secret of a request. The scheme's name is the same in any case (RFC 9110, section 11.1).
pub fn bearer(parts: &Parts) -> Option<&str> {
    let (scheme, secret) = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        app.rates.take(caller.as_ref().map(|c| &c.name))?;
        caller.ok_or_else(|| {
            ApiError::new(Code::Unauthenticated, "send 'Authorization: Bearer TOKEN'; 'pilotlight token new' makes one")
        })
    }
}
