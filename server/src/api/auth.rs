//! Who calls, and what they may do. Secrets are 256 random bits; the database has their SHA-256.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use providers::{CallRate, Pace};
use sha2::{Digest, Sha256};

use super::App;
use super::problem::{ApiError, Code};
use crate::store::TokenRow;

/// What a token may do. Each role may do what the ones before it may, except agents, who speak only of their node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Claims.
    Scheduler,
    /// Edits, pauses, drains.
    Operator,
    /// Speaks for one node.
    Agent,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Scheduler, Self::Operator, Self::Agent];

    /// The word used in files and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Scheduler => "scheduler",
            Self::Operator => "operator",
            Self::Agent => "agent",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }
}

/// SHA-256 of a secret, hexadecimal.
#[must_use]
pub fn hash_of(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

/// A new secret: `pl_` and 256 random bits, hexadecimal.
///
/// # Errors
/// The system has no randomness.
pub fn new_secret() -> Result<String, getrandom::Error> {
    let mut bits = [0_u8; 32];
    getrandom::fill(&mut bits)?;
    Ok(format!("pl_{}", bits.iter().map(|b| format!("{b:02x}")).collect::<String>()))
}

/// The tokens that may be used, by hash.
#[derive(Debug, Default)]
pub struct Tokens(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    by_hash: HashMap<String, (Arc<str>, Role)>,
    /// Without any token, and on loopback only, everybody is an operator.
    open: bool,
}

impl Tokens {
    /// Replaces what is known. `open` lets everybody in while there is no token.
    pub fn set(&self, rows: &[TokenRow], open: bool) {
        let by_hash: HashMap<_, _> = rows
            .iter()
            .filter_map(|t| Some((t.hash.clone(), (Arc::from(t.name.as_str()), Role::named(&t.role)?))))
            .collect();
        let open = open && by_hash.is_empty();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Known { by_hash, open };
    }

    /// Whether any token is known.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.0.read().unwrap_or_else(PoisonError::into_inner).by_hash.is_empty()
    }

    fn caller(&self, secret: Option<&str>) -> Option<Caller> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match secret {
            // Looked up by hash, so that timing says nothing of the secret.
            Some(secret) => {
                known.by_hash.get(&hash_of(secret)).map(|(name, role)| Caller { name: Arc::clone(name), role: *role })
            }
            None => known.open.then(|| Caller { name: Arc::from("anonymous"), role: Role::Operator }),
        }
    }
}

/// How fast each token may call. Whoever has none that is known shares one small allowance, which slows guessing.
#[derive(Debug)]
pub struct Rates {
    limit: CallRate,
    paces: Mutex<HashMap<Arc<str>, Pace>>,
    hosts: Mutex<HashMap<u64, Pace>>,
}

/// Calls of one host: a heartbeat each ten seconds, a long poll, reports. A workload can read its host's secret.
const HOST: CallRate = CallRate { burst: 40.0, per_s: 4.0 };
/// Hosts that are remembered before those that were quiet are forgotten.
const HOSTS_MAX: usize = 20_000;

/// Calls without a token that is known, all together.
const STRANGERS: CallRate = CallRate { burst: 100.0, per_s: 20.0 };

impl Rates {
    /// With so many requests a second for each token; twice as many at once.
    #[must_use]
    pub fn new(per_s: f64) -> Self {
        Self { limit: CallRate { burst: 2.0 * per_s, per_s }, paces: Mutex::default(), hosts: Mutex::default() }
    }

    /// Takes a request of the agent of a node.
    ///
    /// # Errors
    /// `rate-limited`.
    pub fn take_host(&self, node: u64) -> Result<(), ApiError> {
        let now_ms = crate::clock::now_ms();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= HOSTS_MAX {
            hosts.retain(|_, pace| !pace.is_full(now_ms));
        }
        let taken = hosts.entry(node).or_insert_with(|| Pace::new(HOST, now_ms)).take(now_ms);
        taken.map_err(|wait_ms| too_fast(HOST, wait_ms))
    }

    /// Takes a request of a token; `None` for strangers.
    ///
    /// # Errors
    /// `rate-limited`.
    pub fn take(&self, token: Option<&Arc<str>>) -> Result<(), ApiError> {
        let now_ms = crate::clock::now_ms();
        let (name, limit) = match token {
            Some(name) => (Arc::clone(name), self.limit),
            None => (Arc::from(""), STRANGERS),
        };
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        // Names are of tokens that were made: there are as many as an operator made.
        let taken = paces.entry(name).or_insert_with(|| Pace::new(limit, now_ms)).take(now_ms);
        taken.map_err(|wait_ms| too_fast(limit, wait_ms))
    }
}

fn too_fast(limit: CallRate, wait_ms: i64) -> ApiError {
    let detail = format!("more than {} requests a second; try again in {wait_ms} ms", limit.per_s);
    let mut error = ApiError::new(Code::RateLimited, detail);
    error.retry_after_s = Some(u32::try_from(wait_ms.unsigned_abs().div_ceil(1000)).unwrap_or(60));
    error
}

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name of the token.
    pub name: Arc<str>,
    /// Its role.
    pub role: Role,
}

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

/// The secret of a request.
pub fn bearer(parts: &Parts) -> Option<&str> {
    parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let caller = app.tokens.caller(bearer(parts));
        app.rates.take(caller.as_ref().map(|c| &c.name))?;
        caller.ok_or_else(|| {
            ApiError::new(Code::Unauthenticated, "send 'Authorization: Bearer TOKEN'; 'pilotlight token new' makes one")
        })
    }
}
