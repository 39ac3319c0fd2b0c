//! Records to rows and back. Each table is written by one statement a batch, whatever the number of rows.

use std::sync::Arc;

use fleet::book::{Book, Changes, Claim, Intent, Node, Tally};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::{Dialect, StoreError};

/// Statements that write the rows of a JSON array, for one database.
#[derive(Debug)]
pub struct Statements {
    nodes: String,
    claims: String,
    intents: String,
    tallies: String,
    events: String,
    ended_keys: String,
}

impl Statements {
    /// For one database.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        let rows = dialect.elements();
        let number = |i: u32| format!("CAST(value ->> {i} AS BIGINT)");
        let text = |i: u32| format!("value ->> {i}");
        let put = |table: &str, columns: &str, values: &[String], key: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|c| format!("{c} = excluded.{c}")).collect();
            let (values, set) = (values.join(", "), set.join(", "));
            // SQLite needs the WHERE to tell the conflict clause from a join.
            format!(
                "INSERT INTO {table} ({columns}) SELECT {values} FROM {rows} WHERE 1 = 1 ON CONFLICT ({key}) DO UPDATE SET {set}"
            )
        };
        let record = |table: &str| {
            let values = [number(0), number(1), text(2), text(3)];
            put(table, "id, seq, state, body", &values, "id", &["seq", "state", "body"])
        };
        Self {
            nodes: record("nodes"),
            intents: record("intents"),
            claims: put(
                "claims",
                "id, seq, state, class, idempotency_key, body",
                &[number(0), number(1), text(2), text(3), text(4), text(5)],
                "id",
                &["seq", "state", "body"],
            ),
            tallies: put(
                "tallies",
                "class, seq, hits, misses",
                &[text(0), number(1), number(2), number(3)],
                "class",
                &["seq", "hits", "misses"],
            ),
            events: format!(
                "INSERT INTO events (seq, at_ms, subject, subject_id, from_state, to_state, reason) SELECT {}, {}, {}, {}, {}, {}, {} FROM {rows}",
                number(0),
                number(1),
                text(2),
                number(3),
                text(4),
                text(5),
                text(6)
            ),
            ended_keys: format!("SELECT body FROM claims WHERE idempotency_key IN (SELECT value ->> 0 FROM {rows})"),
        }
    }

    /// The rows of what changed, under numbers after `seq`.
    #[must_use]
    pub fn batch(&self, book: &Book, changes: &Changes, seq: i64) -> Batch {
        let last = seq + i64::try_from(changes.events.len()).unwrap_or(i64::MAX - seq).max(1);
        let nodes = changes.nodes.iter().filter_map(|id| book.nodes().get(id));
        let claims = changes.claims.iter().filter_map(|id| book.claims().get(id));
        let intents = changes.intents.iter().filter_map(|id| book.intents().get(id));
        let tallies = changes.tallies.iter().filter_map(|class| Some((class, book.tallies().get(class)?)));
        let events = changes.events.iter().zip(seq + 1..);
        Batch {
            last,
            nodes: nodes.map(|n| json!([n.id, last, n.state.name(), text_of(n)])).collect(),
            claims: claims.map(|c| json!([c.id, last, c.state.name(), c.class, c.key, text_of(c)])).collect(),
            intents: intents.map(|i| json!([i.id, last, i.state.name(), text_of(i)])).collect(),
            tallies: tallies.map(|(class, t)| json!([class, last, t.hits, t.misses])).collect(),
            events: events
                .map(|(e, seq)| json!([seq, e.at_ms, e.subject.name().0, e.id, e.from, e.to, e.reason]))
                .collect(),
        }
    }

    /// Claims that were made with one of these keys.
    ///
    /// # Errors
    /// The database refuses, or a record does not read.
    pub async fn claims_of_keys(
        &self,
        connection: &mut AnyConnection,
        keys: &[String],
    ) -> Result<Vec<Claim>, StoreError> {
        let rows: Vec<Value> = keys.iter().map(|k| json!([k])).collect();
        let found = sqlx::query(AssertSqlSafe(self.ended_keys.clone()))
            .bind(Value::Array(rows).to_string())
            .fetch_all(connection)
            .await
            .map_err(StoreError::database("look for claims by key"))?;
        found.iter().map(|row| record(row, "claims", "body")).collect()
    }
}

/// Rows to write, as JSON arrays.
#[derive(Debug)]
pub struct Batch {
    /// The last number used.
    pub last: i64,
    nodes: Vec<Value>,
    claims: Vec<Value>,
    intents: Vec<Value>,
    tallies: Vec<Value>,
    events: Vec<Value>,
}

impl Batch {
    /// Writes them.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn write(self, statements: &Statements, connection: &mut AnyConnection) -> Result<(), StoreError> {
        run(connection, &statements.nodes, "write nodes", self.nodes).await?;
        run(connection, &statements.claims, "write claims", self.claims).await?;
        run(connection, &statements.intents, "write intents", self.intents).await?;
        run(connection, &statements.tallies, "write tallies", self.tallies).await?;
        run(connection, &statements.events, "write events", self.events).await
    }
}

fn text_of<T: Serialize>(record: &T) -> String {
    // Records are made of numbers, text and lists; they always have a JSON text.
    serde_json::to_string(record).unwrap_or_default()
}

async fn run(
    connection: &mut AnyConnection,
    statement: &str,
    doing: &'static str,
    rows: Vec<Value>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(AssertSqlSafe(statement.to_owned()))
        .bind(Value::Array(rows).to_string())
        .execute(connection)
        .await
        .map_err(StoreError::database(doing))?;
    Ok(())
}

/// A record from its JSON column.
///
/// # Errors
/// It does not read.
pub fn record<T: DeserializeOwned>(row: &AnyRow, table: &'static str, column: &str) -> Result<T, StoreError> {
    let body: &str = row.try_get(column).map_err(StoreError::database("read a record"))?;
    serde_json::from_str(body).map_err(|source| {
        let id = row.try_get::<i64, _>("id").map_or_else(|_| "?".into(), |id| id.to_string());
        StoreError::Record { table, id, source: Arc::new(source) }
    })
}

/// What was committed since a book was last read.
#[derive(Debug)]
pub struct News {
    nodes: Vec<Node>,
    claims: Vec<Claim>,
    intents: Vec<Intent>,
    tallies: Vec<(String, Tally)>,
    documents: super::documents::News,
}

impl News {
    /// Brings a book up to date.
    pub fn tell(self, book: &mut Book) {
        self.documents.tell(book);
        self.nodes.into_iter().for_each(|n| book.load_node(n));
        self.claims.into_iter().for_each(|c| book.load_claim(c));
        self.intents.into_iter().for_each(|i| book.load_intent(i));
        self.tallies.into_iter().for_each(|(class, tally)| book.load_tally(class, tally));
    }
}

/// What was committed under numbers after `seen`; with `seen` 0 only what is open.
///
/// # Errors
/// The database refuses, or a record does not read.
pub async fn news(connection: &mut AnyConnection, seen: i64) -> Result<News, StoreError> {
    let ended = |open: &'static str| if seen == 0 { open } else { "1 = 1" };
    let mut tallies = Vec::new();
    let failed = StoreError::database("read tallies");
    let changed = sqlx::query("SELECT class, hits, misses FROM tallies WHERE seq > $1").bind(seen);
    for row in changed.fetch_all(&mut *connection).await.map_err(&failed)? {
        let read = || -> Result<(String, Tally), sqlx::Error> {
            let (hits, misses): (i64, i64) = (row.try_get("hits")?, row.try_get("misses")?);
            Ok((row.try_get("class")?, Tally { hits: hits.unsigned_abs(), misses: misses.unsigned_abs() }))
        };
        tallies.push(read().map_err(&failed)?);
    }
    Ok(News {
        nodes: changed_since(connection, "nodes", ended("state <> 'terminated'"), seen).await?,
        claims: changed_since(connection, "claims", ended("state IN ('queued', 'granted', 'active')"), seen).await?,
        intents: changed_since(connection, "intents", ended("state IN ('pending', 'sent')"), seen).await?,
        tallies,
        documents: super::documents::news(connection, seen).await?,
    })
}

async fn changed_since<T: DeserializeOwned>(
    connection: &mut AnyConnection,
    table: &'static str,
    which: &str,
    seen: i64,
) -> Result<Vec<T>, StoreError> {
    let text = format!("SELECT id, body FROM {table} WHERE seq > $1 AND {which} ORDER BY id");
    let rows = sqlx::query(AssertSqlSafe(text)).bind(seen).fetch_all(connection).await;
    let rows = rows.map_err(StoreError::database("read what changed"))?;
    rows.iter().map(|row| record(row, table, "body")).collect()
}
