//! What people write down whole: classes, offers, forecasts, and what loops remember. Each has a version.

use fleet::Offer;
use fleet::book::{Book, ClassRule, Held};
use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::{Store, StoreError};

/// One document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// What it is: `class`, `offers`, …
    pub kind: String,
    /// Its name within the kind.
    pub name: String,
    /// Rises with each edit.
    pub version: i64,
    /// JSON.
    pub body: String,
}

/// An edit that did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EditError {
    /// Somebody else edited it since it was read.
    #[error("{kind} '{name}' is at version {now}, not {expected}: read it again, then edit")]
    Crossed {
        /// What it is.
        kind: String,
        /// Its name.
        name: String,
        /// The version that the editor had read; 0 for a new one.
        expected: i64,
        /// The version that is there; 0 for none.
        now: i64,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn document(row: &AnyRow) -> Result<Document, StoreError> {
    let read = || {
        Ok(Document {
            kind: row.try_get("kind")?,
            name: row.try_get("name")?,
            version: row.try_get("version")?,
            body: row.try_get("body")?,
        })
    };
    read().map_err(StoreError::database("read a document"))
}

impl Document {
    /// The record that it holds.
    ///
    /// # Errors
    /// It does not read.
    pub fn record<T: DeserializeOwned>(&self) -> Result<T, StoreError> {
        serde_json::from_str(&self.body).map_err(|source| StoreError::Record {
            table: "documents",
            id: format!("{}/{}", self.kind, self.name),
            source: std::sync::Arc::new(source),
        })
    }
}

impl Store {
    /// All documents of a kind, by name.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn documents(&self, kind: &str) -> Result<Vec<Document>, StoreError> {
        let query =
            sqlx::query("SELECT kind, name, version, body FROM documents WHERE kind = $1 AND body <> '' ORDER BY name");
        let rows = query.bind(kind).fetch_all(&self.pool).await.map_err(StoreError::database("read documents"))?;
        rows.iter().map(document).collect()
    }

    /// One document.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn document(&self, kind: &str, name: &str) -> Result<Option<Document>, StoreError> {
        let query =
            sqlx::query("SELECT kind, name, version, body FROM documents WHERE kind = $1 AND name = $2 AND body <> ''");
        let row = query.bind(kind).bind(name).fetch_optional(&self.pool).await;
        row.map_err(StoreError::database("read a document"))?.as_ref().map(document).transpose()
    }
}

/// Writes a document in the transaction of a batch. `expected`: the version that was read, 0 for a new one; `None`
/// writes over whatever is there. An empty body deletes it and keeps its version. Returns the new version.
///
/// # Errors
/// Somebody else was faster, or the database refuses.
pub async fn put(
    connection: &mut AnyConnection,
    document: &Document,
    expected: Option<i64>,
    seq: i64,
) -> Result<i64, EditError> {
    let found = sqlx::query("SELECT version, body FROM documents WHERE kind = $1 AND name = $2")
        .bind(&document.kind)
        .bind(&document.name)
        .fetch_optional(&mut *connection)
        .await
        .map_err(StoreError::database("read a document"))?;
    let (last, there) = match &found {
        Some(row) => {
            let version: i64 = row.try_get("version").map_err(StoreError::database("read a document"))?;
            let body: String = row.try_get("body").map_err(StoreError::database("read a document"))?;
            (version, !body.is_empty())
        }
        None => (0, false),
    };
    let now = if there { last } else { 0 };
    if let Some(expected) = expected.filter(|e| *e != now) {
        return Err(EditError::Crossed { kind: document.kind.clone(), name: document.name.clone(), expected, now });
    }
    sqlx::query(
        "INSERT INTO documents (kind, name, seq, version, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (kind, name) \
         DO UPDATE SET seq = excluded.seq, version = excluded.version, body = excluded.body",
    )
    .bind(&document.kind)
    .bind(&document.name)
    .bind(seq)
    .bind(last + 1)
    .bind(&document.body)
    .execute(connection)
    .await
    .map_err(StoreError::database("write a document"))?;
    Ok(last + 1)
}

/// Classes and offers that changed.
#[derive(Debug)]
pub struct News {
    offers: Option<Vec<Offer>>,
    classes: Option<Vec<ClassRule>>,
    held: Option<Held>,
}

impl News {
    /// Brings a book up to date.
    pub fn tell(self, book: &mut Book) {
        if let Some(offers) = self.offers {
            book.set_offers(offers);
        }
        if let Some(held) = self.held {
            book.set_held(held);
        }
        if let Some(classes) = self.classes {
            book.set_classes(classes);
        }
    }
}

/// What changed under numbers after `seen`.
///
/// # Errors
/// The database refuses, or a document does not read.
pub(super) async fn news(connection: &mut AnyConnection, seen: i64) -> Result<News, StoreError> {
    let failed = StoreError::database("read documents");
    let changed = sqlx::query(
        "SELECT kind, name, version, body FROM documents WHERE seq > $1 AND (kind IN ('class', 'offers') OR (kind = 'breakers' AND name = 'held'))",
    );
    let changed = changed.bind(seen).fetch_all(&mut *connection).await.map_err(&failed)?;
    let changed = changed.iter().map(document).collect::<Result<Vec<_>, _>>()?;
    let offers = changed.iter().find(|d| d.kind == "offers" && !d.body.is_empty()).map(Document::record).transpose()?;
    let held = changed.iter().find(|d| d.kind == "breakers" && !d.body.is_empty()).map(Document::record).transpose()?;
    if changed.iter().all(|d| d.kind != "class") {
        return Ok(News { offers, classes: None, held });
    }
    let all = sqlx::query("SELECT kind, name, version, body FROM documents WHERE kind = 'class' AND body <> ''");
    let all = all.fetch_all(connection).await.map_err(&failed)?;
    let rules = all.iter().map(|row| document(row)?.record::<ClassRule>()).collect::<Result<Vec<_>, _>>()?;
    Ok(News { offers, classes: Some(rules), held })
}
