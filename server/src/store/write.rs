//! Writes that are not of the book, as data: they can be made again, on any store.

use std::sync::Arc;

use control::gpus::GpuChange;

use super::document::{Crossed, DocumentKey, Named, Single, Versioned};
use super::{EvidenceRow, Ledger, Store, StoreError, TokenRow, WriteError};

/// Who edits, and what it is called in the audit log.
pub type EditedBy = (Arc<str>, &'static str);

/// A write in the transaction of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// A document.
    Document {
        /// Which.
        key: DocumentKey,
        /// Its text; empty to delete it, which keeps its version.
        body: String,
        /// The version that was read, 0 for a new one; none writes over whatever is there.
        expected: Option<i64>,
        /// With it the edit is noted in the audit log.
        by: Option<EditedBy>,
    },
    /// A plan: they are numbered without gaps, each the child of the one before.
    Plan {
        /// Its number.
        epoch: i64,
        /// JSON.
        body: String,
    },
    /// Demand: `(class, milliseconds since 1970, claims)`.
    Demand(Vec<(String, i64, f64)>),
    /// Deletes what is older than anybody asks for: nothing grows without end.
    ForgetOld,
    /// Notes what somebody did.
    Audit {
        /// Name of the token.
        who: String,
        /// What was done.
        action: &'static str,
        /// To what.
        detail: String,
    },
    /// A token, in place of one of the same name.
    PutToken(TokenRow),
    /// Ends a token.
    RevokeToken(String),
    /// Changes the records of GPUs, which are made where there are none.
    Gpus {
        /// Under which names they are known.
        names: Vec<String>,
        /// What changes.
        change: GpuChange,
    },
    /// Keeps what a gate or a diagnostic said. Its number is given.
    Evidence(EvidenceRow),
    /// Takes the lead if nobody has it, or keeps it.
    Lead {
        /// Name of the replica.
        holder: String,
    },
    /// Writes a row of each kind that a claim writes, and takes them back in the same transaction: whether claims could be
    /// written now.
    Probe,
    /// Gives the lead up, so that the next takes it at once.
    StepDown {
        /// Name of the replica.
        holder: String,
    },
}

/// What came of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrote {
    /// It is done.
    Done,
    /// The document has this version now.
    Version(i64),
    /// Somebody else was faster; nothing was changed.
    Crossed(Crossed),
    /// The term in which the replica leads; none where another does.
    Leads(Option<i64>),
}

/// How long a leader leads without renewing, milliseconds.
pub const LEASE_MS: i64 = 10_000;
/// Time after which a replica that fell behind reads everything, milliseconds.
pub const CATCH_UP_MS: i64 = 10 * 60_000;
/// Plans, with all that they were made from, are kept for so long, milliseconds.
pub const PLANS_KEPT_MS: i64 = 2 * 86_400_000;
/// Evidence of one node that is kept: the newest.
pub const EVIDENCE_OF_NODE_MAX: i64 = 64;
/// Demand is kept for so long, milliseconds.
pub const DEMAND_KEPT_MS: i64 = 30 * 86_400_000;
/// The event log is kept for so many numbers.
pub const EVENTS_KEPT: i64 = 20_000_000;

/// The JSON text of a record.
///
/// # Errors
/// It has none: a bug.
pub fn text_of<T: serde::Serialize>(record: &T, what: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| StoreError::Record {
        table: what,
        id: "new".into(),
        source: Arc::new(source),
    })
}

impl Ledger {
    /// Writes the one document of its kind over whatever is there.
    ///
    /// # Errors
    /// It was not written.
    pub async fn put<T: Single>(&self, record: &T, term: Option<i64>) -> Result<(), WriteError> {
        let body = text_of(record, T::KEY.words().0)?;
        self.parsed.note(record, &body);
        self.record(Write::Document { key: T::KEY, body, expected: None, by: None }, term).await.map(drop)
    }

    /// Writes the one document of its kind where it still is what was read at `expected`; 0: it was not there.
    ///
    /// # Errors
    /// Outer: it was not written. Inner: somebody else was faster.
    pub async fn edit_single<T: Single>(&self, record: &T, expected: i64) -> Result<Result<i64, Crossed>, WriteError> {
        let body = text_of(record, T::KEY.words().0)?;
        self.edit(T::KEY, body, Some(expected), None).await
    }

    /// Edits a document, which somebody has read at `expected`. An empty body deletes it. Returns its version.
    ///
    /// # Errors
    /// Outer: it was not written. Inner: somebody else was faster.
    pub async fn edit(
        &self,
        key: DocumentKey,
        body: String,
        expected: Option<i64>,
        by: Option<EditedBy>,
    ) -> Result<Result<i64, Crossed>, WriteError> {
        match self.record(Write::Document { key, body, expected, by }, None).await? {
            Wrote::Crossed(crossed) => Ok(Err(crossed)),
            Wrote::Version(version) => Ok(Ok(version)),
            Wrote::Done | Wrote::Leads(_) => Ok(Ok(0)),
        }
    }
}

impl Store {
    /// The one document of its kind; none where it was never written.
    ///
    /// # Errors
    /// The database cannot be used, or the record does not read.
    pub async fn single<T: Single>(&self) -> Result<Option<Versioned<T>>, StoreError> {
        let found = self.document(&T::KEY).await?;
        let record = |d: &super::Document| self.parsed.record(d).map(|record: Arc<T>| T::clone(&record));
        found.map(|d| Ok(Versioned { version: d.version, record: record(&d)? })).transpose()
    }

    /// The same for those who only look: nothing is copied.
    ///
    /// # Errors
    /// As for [`Self::single`].
    pub async fn shared<T: Single + Default>(&self) -> Result<Arc<T>, StoreError> {
        let found = self.document(&T::KEY).await?;
        found.map_or_else(|| Ok(Arc::default()), |d| self.parsed.record(&d))
    }

    /// The record of the one document of its kind; the default where it was never written.
    ///
    /// # Errors
    /// As for [`Self::single`].
    pub async fn single_or_default<T: Single + Default>(&self) -> Result<T, StoreError> {
        Ok(self.single::<T>().await?.map(|v| v.record).unwrap_or_default())
    }

    /// One of many documents.
    ///
    /// # Errors
    /// As for [`Self::single`].
    pub async fn named<T: Named>(&self, name: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let found = self.document(&T::KIND.key(name.to_owned())).await?;
        found.map(|d| Ok(Versioned { version: d.version, record: d.record()? })).transpose()
    }

    /// All documents of a kind, by name.
    ///
    /// # Errors
    /// As for [`Self::single`].
    pub async fn all<T: Named>(&self) -> Result<Vec<(String, Versioned<T>)>, StoreError> {
        let found = self.documents(T::KIND).await?;
        found.into_iter().map(|d| Ok((d.name.clone(), Versioned { version: d.version, record: d.record()? }))).collect()
    }
}
