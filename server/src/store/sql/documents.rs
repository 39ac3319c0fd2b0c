//! Documents in the database.

use serde::de::DeserializeOwned;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

use super::super::StoreError;
use super::super::document::{Crossed, Document, DocumentKey, DocumentKind};
use super::super::news::BookDocuments;
use super::Sql;

fn document(row: &AnyRow) -> Result<Document, StoreError> {
    let read =
        || Ok(Document { name: row.try_get("name")?, version: row.try_get("version")?, body: row.try_get("body")? });
    read().map_err(StoreError::database("read a document"))
}

impl Sql {
    /// All documents of a kind, by name.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn documents(&self, kind: DocumentKind) -> Result<Vec<Document>, StoreError> {
        let query =
            sqlx::query("SELECT name, version, body FROM documents WHERE kind = $1 AND body <> '' ORDER BY name");
        let rows = query.bind(kind.name()).fetch_all(&self.pool).await;
        rows.map_err(StoreError::database("read documents"))?.iter().map(document).collect()
    }

    /// One document.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn document(&self, key: &DocumentKey) -> Result<Option<Document>, StoreError> {
        let (kind, name) = key.words();
        let query =
            sqlx::query("SELECT name, version, body FROM documents WHERE kind = $1 AND name = $2 AND body <> ''");
        let row = query.bind(kind).bind(name.to_owned()).fetch_optional(&self.pool).await;
        row.map_err(StoreError::database("read a document"))?.as_ref().map(document).transpose()
    }
}

/// Writes a document in the transaction of a batch. Returns the new version, or what came first.
pub(super) async fn put(
    connection: &mut AnyConnection,
    key: &DocumentKey,
    body: &str,
    expected: Option<i64>,
    seq: i64,
) -> Result<Result<i64, Crossed>, StoreError> {
    let (kind, name) = key.words();
    let found = sqlx::query("SELECT name, version, body FROM documents WHERE kind = $1 AND name = $2")
        .bind(kind)
        .bind(name.to_owned())
        .fetch_optional(&mut *connection)
        .await
        .map_err(StoreError::database("read a document"))?;
    let found = found.as_ref().map(document).transpose()?;
    let last = found.as_ref().map_or(0, |d| d.version);
    let now = found.filter(|d| !d.body.is_empty()).map_or(0, |d| d.version);
    if let Some(expected) = expected.filter(|e| *e != now) {
        return Ok(Err(Crossed { kind, name: name.to_owned(), expected, now }));
    }
    sqlx::query(
        "INSERT INTO documents (kind, name, seq, version, body) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (kind, name) \
         DO UPDATE SET seq = excluded.seq, version = excluded.version, body = excluded.body",
    )
    .bind(kind)
    .bind(name.to_owned())
    .bind(seq)
    .bind(last + 1)
    .bind(body.to_owned())
    .execute(connection)
    .await
    .map_err(StoreError::database("write a document"))?;
    Ok(Ok(last + 1))
}

/// Documents of the book that changed under numbers after `seen`.
pub(super) async fn of_book(connection: &mut AnyConnection, seen: i64) -> Result<BookDocuments, StoreError> {
    let failed = StoreError::database("read documents");
    let query = sqlx::query(
        "SELECT kind, name, version, body FROM documents WHERE seq > $1 AND (kind IN ('class', 'offers', 'snapshot') \
         OR (kind = 'breakers' AND name = 'held') OR (kind = 'learnt' AND name = 'readiness') OR (kind = 'fleet' AND name = 'ceilings'))",
    );
    let rows = query.bind(seen).fetch_all(&mut *connection).await.map_err(&failed)?;
    let (mut news, mut classes, mut snapshots) = (BookDocuments::default(), false, false);
    for row in &rows {
        let (kind, found): (&str, Document) = (row.try_get("kind").map_err(&failed)?, document(row)?);
        classes |= kind == DocumentKind::Class.name();
        snapshots |= kind == DocumentKind::Snapshot.name();
        if found.body.is_empty() {
            continue;
        }
        if kind == DocumentKey::Offers.words().0 {
            news.offers = Some(found.record()?);
        } else if kind == DocumentKey::Held.words().0 {
            news.held = Some(found.record()?);
        } else if kind == DocumentKey::Readiness.words().0 {
            news.readiness = Some(found.record()?);
        } else if kind == DocumentKey::Ceilings.words().0 {
            news.ceilings = Some(found.record()?);
        }
    }
    if classes {
        news.classes = Some(all_of(connection, DocumentKind::Class).await?);
    }
    if snapshots {
        news.snapshots = Some(all_of(connection, DocumentKind::Snapshot).await?);
    }
    Ok(news)
}

/// The records of all documents of a kind.
async fn all_of<T: DeserializeOwned>(connection: &mut AnyConnection, kind: DocumentKind) -> Result<Vec<T>, StoreError> {
    let all = sqlx::query("SELECT name, version, body FROM documents WHERE kind = $1 AND body <> ''").bind(kind.name());
    let all = all.fetch_all(connection).await.map_err(StoreError::database("read documents"))?;
    all.iter().map(|row| document(row)?.record()).collect()
}
