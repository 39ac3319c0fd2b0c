//! Rows of small tables, as they are read.

use fleet::book::Change;
use serde::Serialize;

/// One line of the event log.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    /// Its number; numbers rise in the order of commits.
    pub seq: i64,
    /// What happened.
    pub change: Change,
}

/// A part of a list.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Items after this number.
    pub after: i64,
    /// At most so many.
    pub limit: i64,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanRow {
    /// Its number.
    pub epoch: i64,
    /// When it was made, milliseconds since 1970.
    pub made_at_ms: i64,
    /// JSON.
    pub body: String,
}

/// A token that may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// SHA-256 of its secret, hexadecimal.
    pub hash: String,
}

/// What somebody did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number.
    pub id: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Name of the token.
    pub token: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub detail: String,
}

/// What a gate or a diagnostic said.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct EvidenceRow {
    /// Its number.
    pub id: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Node, by its number.
    pub node: u64,
    /// `gate`, `diagnosis`, `passive`.
    pub checks: String,
    /// `pass`, `degraded`, `fail`, `unmeasured`.
    pub verdict: String,
    /// Why, for people.
    pub reason: String,
    /// Every number with its limits, JSON.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
}

/// One replica's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// Name of the replica that leads.
    pub holder: String,
    /// Number of its term.
    pub epoch: i64,
    /// Until when, milliseconds since 1970.
    pub until_ms: i64,
}
