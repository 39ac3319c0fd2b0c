//! What hosts prove themselves with, and with what it is made. A launch gives each host a join secret in its user data, which
//! registers a host once; from then on it has a token of its own, which is made anew each day. Neither is stored: both are
//! made of the server's key.

use crate::tokens::hash_of;

/// A text that only who has the key can make. Hashed twice under the key, as HMAC does, so that nothing can be appended.
fn seal(key: &str, text: &str) -> String {
    hash_of(&format!("{key}/{}", hash_of(&format!("{key}/{text}"))))
}

/// The secret with which the hosts of one launch join.
#[must_use]
pub fn join_secret(key: &str, token: &str) -> String {
    format!("plj_{}", seal(key, token))
}

/// The secret with which one machine that you own joins, whichever launch takes it.
#[must_use]
pub fn host_secret(key: &str, instance: &str) -> String {
    join_secret(key, &format!("host/{instance}"))
}

/// What hosts of one zone prove themselves to each other with.
#[must_use]
pub fn peer_key(key: &str, zone: &fleet::OfferKey) -> String {
    seal(key, &format!("peers/{}/{}/{}", zone.provider, zone.region, zone.zone))
}

/// The token of a host that has joined as a node.
#[must_use]
pub fn agent_token(key: &str, node: u64, issued_ms: i64) -> String {
    format!("pla_{node}_{issued_ms}_{}", seal(key, &format!("agent/{node}/{issued_ms}")))
}
