//! Tokens: what each may do. Secrets are 256 random bits; the database has their SHA-256.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use sha2::{Digest, Sha256};

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
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(secret.as_bytes()) {
        text.extend([byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16).unwrap_or('0')));
    }
    text
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

/// Who calls.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name of the token.
    pub name: Arc<str>,
    /// Its role.
    pub role: Role,
    /// The token, by its hash; none where none is needed.
    pub token: Option<Arc<str>>,
}

/// The tokens that may be used, by hash.
#[derive(Debug, Default)]
pub struct Tokens(RwLock<ByHash>);

#[derive(Debug, Default)]
struct ByHash {
    by_hash: HashMap<Arc<str>, (Arc<str>, Role)>,
    /// Without any token, and on loopback only, everybody is an operator.
    open: bool,
}

impl Tokens {
    /// Replaces what is known. `open` lets everybody in while there is no token.
    pub fn set(&self, rows: &[TokenRow], open: bool) {
        let by_hash: HashMap<_, _> = rows
            .iter()
            .filter_map(|t| Some((Arc::from(t.hash.as_str()), (Arc::from(t.name.as_str()), Role::named(&t.role)?))))
            .collect();
        let open = open && by_hash.is_empty();
        *self.0.write() = ByHash { by_hash, open };
    }

    /// Whether everybody is let in.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.read().open
    }

    /// Whether a token may still be used; none: whether everybody is still let in.
    #[must_use]
    pub fn still(&self, token: Option<&str>) -> bool {
        let known = self.0.read();
        token.map_or(known.open, |hash| known.by_hash.contains_key(hash))
    }

    /// Whether any token is known.
    #[must_use]
    pub fn any(&self) -> bool {
        !self.0.read().by_hash.is_empty()
    }

    /// Whoever has this secret; whoever has none while everybody is let in.
    #[must_use]
    pub fn caller(&self, secret: Option<&str>) -> Option<Caller> {
        let known = self.0.read();
        let Some(secret) = secret else {
            return known.open.then(|| Caller { name: Arc::from("anonymous"), role: Role::Operator, token: None });
        };
        // Looked up by hash, so that timing says nothing of the secret.
        let (hash, (name, role)) = known.by_hash.get_key_value(hash_of(secret).as_str())?;
        Some(Caller { name: Arc::clone(name), role: *role, token: Some(Arc::clone(hash)) })
    }
}
