//! Which host a request comes from.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::api::auth::bearer;
use crate::api::problem::{ApiError, Code};
use crate::app::App;
use crate::secrets::{agent_token, host_secret, join_secret};

/// A token is taken for so long: a host that hears nothing for a week is not one any more. Milliseconds.
const TOKEN_LIFE_MS: i64 = 7 * 86_400_000;
/// A token that is older is replaced, milliseconds.
const TOKEN_RENEWED_MS: i64 = 86_400_000;

/// The secret of a request, whatever it opens.
#[derive(Debug)]
pub struct Secret(String);

impl FromRequestParts<Arc<App>> for Secret {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let secret = bearer(parts).map(|s| Self(s.to_owned()));
        secret.ok_or_else(|| {
            ApiError::new(Code::Unauthenticated, "an agent sends the join secret of its launch, or its token")
        })
    }
}

/// A host that has proved itself.
#[derive(Debug, Clone, Copy)]
pub struct ProvenHost {
    /// Its node.
    pub id: u64,
    /// Its token is to be made anew.
    pub renews: bool,
}

/// The node whose host's token this is.
#[must_use]
pub fn host_of_token(app: &App, secret: &str) -> Option<u64> {
    Secret(secret.to_owned()).token(app).map(|host| host.id)
}

impl Secret {
    /// The host whose token this is.
    ///
    /// # Errors
    /// It is none, of another host, or too old.
    pub fn host(&self, app: &App, instance: &str) -> Result<ProvenHost, ApiError> {
        let book = app.book()?;
        let of_instance =
            |host: &ProvenHost| book.nodes().get(&host.id).is_some_and(|n| n.instance.as_deref() == Some(instance));
        admitted(app, self.token(app).filter(of_instance), instance)
    }

    fn token(&self, app: &App) -> Option<ProvenHost> {
        let mut parts = self.0.strip_prefix("pla_")?.split('_');
        let (id, issued_ms) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let age_ms = app.now_ms().checked_sub(issued_ms)?;
        let good = agent_token(&app.join_key, id, issued_ms) == self.0 && age_ms < TOKEN_LIFE_MS;
        good.then_some(ProvenHost { id, renews: age_ms > TOKEN_RENEWED_MS })
    }

    /// The host that registers with this: by its token; by the join secret of its launch, once, where an answer that was lost
    /// may be asked for again; or by the secret of a machine of your own.
    ///
    /// # Errors
    /// It opens nothing, or was used.
    pub fn joining(&self, app: &App, instance: &str, boot: &str) -> Result<ProvenHost, ApiError> {
        if self.0.starts_with("pla_") {
            return self.host(app, instance);
        }
        let found = {
            let book = app.book()?;
            let own = host_secret(&app.join_key, instance) == self.0;
            let of_launch = |i: u64| join_secret(&app.join_key, &book.launch_token(i)) == self.0;
            let mut mine = book.nodes_of(instance).filter(|n| own || n.intent.is_some_and(of_launch));
            // The answer may have been lost, until the host has spoken with its token.
            let again = |n: &fleet::book::Node| n.boot.as_deref() == Some(boot) && n.report_seq.is_none();
            mine.next().map(|n| (n.id, own || n.boot.is_none() || again(n)))
        };
        if let Some((_, false)) = found {
            let why = format!("{instance} has joined, and its join secret is used: it has a token of its own since");
            return Err(ApiError::new(Code::Forbidden, why));
        }
        admitted(app, found.map(|(id, _)| ProvenHost { id, renews: false }), instance)
    }
}

/// The same answer for a wrong secret and an unknown host: nobody learns which hosts there are.
fn admitted(app: &App, host: Option<ProvenHost>, instance: &str) -> Result<ProvenHost, ApiError> {
    let Some(host) = host else {
        app.rates.take(None)?;
        return Err(ApiError::new(Code::Forbidden, format!("this is no secret of {instance}")));
    };
    app.rates.take_host(host.id)?;
    Ok(host)
}
