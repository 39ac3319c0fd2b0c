//! What people and loops write down whole, by key, each with a record type of its own and a version against edits that
//! cross.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::breakers::{Closed, FaultLog};
use control::learning::Learnt;
use control::weekly::WeeklyMemory;
use fleet::book::{Ceilings, ClassRule, Held};
use fleet::{Offer, Readiness, Snapshot};
use health::gate::Learned;
use planner::rolling;
use protocol::{BudgetSpec, ForecastSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;

/// Which document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKey {
    /// A class, by its name.
    Class(String),
    /// A declared forecast, by its name.
    Forecast(String),
    /// A snapshot, by its name.
    Snapshot(String),
    /// The offer table.
    Offers,
    /// What may be spent and launched.
    Budget,
    /// Whether acting is paused.
    Paused,
    /// What launches and nodes have taught.
    Learnt,
    /// What hosts of each kind have been measured at.
    HostLimits,
    /// What starts of claims took, for every replica's book.
    Readiness,
    /// What the planner remembers from plan to plan.
    Planner,
    /// What the weekly schedule remembers.
    Weekly,
    /// What breakers remember.
    Faults,
    /// Causes that are held, for every replica's book.
    Held,
    /// Breakers that a person closes.
    Closed,
    /// The key that join secrets and host tokens are made of: text, not JSON.
    JoinKey,
    /// What can be had at most, for every replica's book.
    Ceilings,
    /// First part of the launch tokens of this database: text, not JSON.
    TokenPrefix,
}

/// The part of a key that says what a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// Classes.
    Class,
    /// Declared forecasts.
    Forecast,
    /// Snapshots.
    Snapshot,
}

impl DocumentKind {
    /// The word in the database.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Class => "class",
            Self::Forecast => "forecast",
            Self::Snapshot => "snapshot",
        }
    }

    /// The key of one of them.
    #[must_use]
    pub fn key(self, name: String) -> DocumentKey {
        match self {
            Self::Class => DocumentKey::Class(name),
            Self::Forecast => DocumentKey::Forecast(name),
            Self::Snapshot => DocumentKey::Snapshot(name),
        }
    }
}

impl DocumentKey {
    /// Kind and name in the database.
    #[must_use]
    pub fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Class(name) => ("class", name),
            Self::Forecast(name) => ("forecast", name),
            Self::Snapshot(name) => ("snapshot", name),
            Self::Offers => ("offers", "all"),
            Self::Budget => ("budget", "fleet"),
            Self::Paused => ("switch", "paused"),
            Self::Learnt => ("learnt", "supply"),
            Self::HostLimits => ("learnt", "limits"),
            Self::Readiness => ("learnt", "readiness"),
            Self::Planner => ("learnt", "planner"),
            Self::Weekly => ("learnt", "weekly"),
            Self::Faults => ("breakers", "memory"),
            Self::Held => ("breakers", "held"),
            Self::Closed => ("breakers", "closed"),
            Self::JoinKey => ("secret", "join"),
            Self::Ceilings => ("fleet", "ceilings"),
            Self::TokenPrefix => ("fleet", "token-prefix"),
        }
    }

    /// Whether every replica's book has to know of it.
    #[must_use]
    pub fn is_of_book(&self) -> bool {
        matches!(
            self,
            Self::Class(_) | Self::Offers | Self::Held | Self::Snapshot(_) | Self::Readiness | Self::Ceilings
        )
    }
}

/// The one document of its kind.
pub trait Single: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// Its key.
    const KEY: DocumentKey;
}

/// One of many documents, each with a name.
pub trait Named: Serialize + DeserializeOwned {
    /// What they are.
    const KIND: DocumentKind;
}

/// The offer table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OfferTable(pub Vec<Offer>);

/// Whether acting is paused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Paused(pub bool);

/// What hosts of each kind have been measured at: `provider/instance type`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostLimits(pub BTreeMap<String, Learned>);

/// Breakers that a person closes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClosedBreakers(pub Vec<Closed>);

macro_rules! singles {
    ($($record:ty = $key:ident;)*) => {
        $(impl Single for $record {
            const KEY: DocumentKey = DocumentKey::$key;
        })*
    };
}

singles! {
    OfferTable = Offers;
    BudgetSpec = Budget;
    Paused = Paused;
    Learnt = Learnt;
    HostLimits = HostLimits;
    Readiness = Readiness;
    rolling::RollingMemory = Planner;
    WeeklyMemory = Weekly;
    FaultLog = Faults;
    Held = Held;
    Ceilings = Ceilings;
    ClosedBreakers = Closed;
}

impl Named for ClassRule {
    const KIND: DocumentKind = DocumentKind::Class;
}

impl Named for Snapshot {
    const KIND: DocumentKind = DocumentKind::Snapshot;
}

impl Named for ForecastSpec {
    const KIND: DocumentKind = DocumentKind::Forecast;
}

/// A document as it is in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its name within its kind.
    pub name: String,
    /// Rises with each edit.
    pub version: i64,
    /// JSON, or text; empty where it was deleted.
    pub body: String,
}

/// A record with the version that it was read at.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// Rises with each edit; 0 for what is not written down.
    pub version: i64,
    /// The record.
    pub record: T,
}

impl Document {
    /// The record that it holds.
    ///
    /// # Errors
    /// It does not read.
    pub fn record<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        serde_json::from_str(&self.body).map_err(|source| StoreError::Record {
            table: "documents",
            id: self.name.clone(),
            source: Arc::new(source),
        })
    }
}

/// An edit that did not happen: somebody else edited it since it was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} '{name}' is at version {now}, not {expected}: read it again, then edit")]
pub struct Crossed {
    /// What it is.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// The version that the editor had read; 0 for a new one.
    pub expected: i64,
    /// The version that is there; 0 for none.
    pub now: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_words_of_its_own() {
        let keys = [
            DocumentKey::Class("x".into()),
            DocumentKey::Forecast("x".into()),
            DocumentKey::Snapshot("x".into()),
            DocumentKey::Offers,
            DocumentKey::Budget,
            DocumentKey::Paused,
            DocumentKey::Learnt,
            DocumentKey::HostLimits,
            DocumentKey::Readiness,
            DocumentKey::Planner,
            DocumentKey::Weekly,
            DocumentKey::Faults,
            DocumentKey::Held,
            DocumentKey::Closed,
            DocumentKey::JoinKey,
            DocumentKey::Ceilings,
            DocumentKey::TokenPrefix,
        ];
        let words: std::collections::BTreeSet<_> = keys.iter().map(DocumentKey::words).collect();
        assert_eq!(words.len(), keys.len());
    }
}
