//! Demand that somebody knows of before it comes.

use serde::{Deserialize, Serialize};

/// Demand that is declared: every plan counts on at least so much.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ForecastSpec {
    /// Class.
    pub class: String,
    /// From when, milliseconds since 1970.
    pub from_ms: i64,
    /// Until when, milliseconds since 1970.
    pub until_ms: i64,
    /// Claims at the same time.
    pub claims: f64,
    /// Why, for people.
    #[serde(default)]
    pub note: String,
}
