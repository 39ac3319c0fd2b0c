//! Records to rows and back. Each table is written by one statement a batch, whatever the number of rows.

use std::sync::Arc;

use fleet::book::{Book, Changes, Claim, Tally};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe, Row};

use super::super::StoreError;
use super::super::news::News;
use super::super::session::Head;
use super::Dialect;
use super::documents;

/// Statements of a transaction, for one database. Each is one round trip: the way to the database costs more than what
/// it does there.
#[derive(Debug)]
pub struct Statements {
    /// Begins, locks the log's head and reads it.
    begin: &'static str,
    /// Writes nodes, claims, intents, tallies and events (`$1` to `$5`, JSON arrays of rows), the head (`$6`, `$7`) and what
    /// changed (`$8` to `$12`).
    write: String,
    ended_keys: String,
    commits_itself: bool,
}

impl Statements {
    /// For one database.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        let rows = |parameter: u32| dialect.elements(parameter);
        let number = |i: u32| format!("CAST(value ->> {i} AS BIGINT)");
        let text = |i: u32| format!("value ->> {i}");
        let put = |parameter: u32, table: &str, columns: &str, values: &[String], key: &str, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|c| format!("{c} = excluded.{c}")).collect();
            let (values, set, rows) = (values.join(", "), set.join(", "), rows(parameter));
            // SQLite needs the WHERE to tell the conflict clause from a join.
            format!(
                "INSERT INTO {table} ({columns}) SELECT {values} FROM {rows} WHERE 1 = 1 ON CONFLICT ({key}) DO UPDATE SET {set}"
            )
        };
        let record = |parameter: u32, table: &str| {
            let values = [number(0), number(1), text(2), text(3)];
            put(parameter, table, "id, seq, state, body", &values, "id", &["seq", "state", "body"])
        };
        let claims = [number(0), number(1), text(2), text(3), text(4), text(5)];
        let tallies = [text(0), number(1), number(2), number(3)];
        let columns = "id, seq, state, class, idempotency_key, body";
        let events: Vec<String> = (0..8).map(|i| if [0, 1, 3].contains(&i) { number(i) } else { text(i) }).collect();
        let parts = [
            record(1, "nodes"),
            put(2, "claims", columns, &claims, "id", &["seq", "state", "body"]),
            record(3, "intents"),
            put(4, "tallies", "class, seq, hits, misses", &tallies, "class", &["seq", "hits", "misses"]),
            format!(
                "INSERT INTO events (seq, at_ms, subject, subject_id, from_state, to_state, reason, body) SELECT {} FROM {}",
                events.join(", "),
                rows(5)
            ),
            "INSERT INTO changes (seq, prev, at_ms, nodes, claims, intents) VALUES ($6, $8, $9, $10, $11, $12)".into(),
        ];
        let head = "UPDATE log_head SET seq = $6, next_id = $7 WHERE id = 1";
        let ended_keys =
            format!("SELECT body FROM claims WHERE idempotency_key IN (SELECT value ->> 0 FROM {})", rows(1));
        match dialect {
            Dialect::Sqlite => Self {
                begin: "BEGIN IMMEDIATE; SELECT seq, next_id FROM log_head WHERE id = 1",
                write: format!("{}; {head}; COMMIT", parts.join("; ")),
                ended_keys,
                commits_itself: true,
            },
            Dialect::Postgres => {
                // A prepared statement is one command; commands that write can stand in its WITH.
                let with: Vec<String> = parts.iter().enumerate().map(|(i, p)| format!("p{i} AS ({p})")).collect();
                Self {
                    begin: "BEGIN; SET LOCAL lock_timeout = '500ms'; SELECT seq, next_id, \
                            CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS now_ms \
                            FROM log_head WHERE id = 1 FOR UPDATE",
                    write: format!("WITH {} {head}", with.join(", ")),
                    ended_keys,
                    commits_itself: false,
                }
            }
        }
    }

    /// Begins a transaction that is alone with the log.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn begin(&self, connection: &mut AnyConnection) -> Result<Head, StoreError> {
        let failed = StoreError::database("begin, and lock the log");
        // Of these statements only the last has a row.
        let rows = sqlx::raw_sql(self.begin).fetch_all(connection).await.map_err(&failed)?;
        let row = rows.last().ok_or(sqlx::Error::RowNotFound).map_err(&failed)?;
        // A file has no clock of its own.
        let now_ms = row.try_get("now_ms").ok();
        let read =
            || Ok(Head { seq: row.try_get("seq")?, next_id: row.try_get::<i64, _>("next_id")?.unsigned_abs(), now_ms });
        read().map_err(failed)
    }

    /// Ends a transaction that wrote nothing.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn rollback(&self, connection: &mut AnyConnection) -> Result<(), StoreError> {
        sqlx::raw_sql("ROLLBACK").execute(connection).await.map_err(StoreError::database("end a reading"))?;
        Ok(())
    }

    /// Writes a batch and commits.
    ///
    /// # Errors
    /// The database refuses; nothing was written.
    pub async fn commit(
        &self,
        connection: &mut AnyConnection,
        batch: Batch,
        next_id: u64,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let failed = StoreError::database("write and commit");
        let mut query = sqlx::query(AssertSqlSafe(self.write.clone()));
        for rows in [batch.nodes, batch.claims, batch.intents, batch.tallies, batch.events] {
            query = query.bind(Value::Array(rows).to_string());
        }
        let query = query.bind(batch.last).bind(i64::try_from(next_id).unwrap_or(i64::MAX));
        let [nodes, claims, intents] = batch.ids;
        let query = query.bind(batch.prev).bind(now_ms).bind(nodes).bind(claims).bind(intents);
        query.execute(&mut *connection).await.map_err(&failed)?;
        if !self.commits_itself {
            sqlx::raw_sql("COMMIT").execute(connection).await.map_err(failed)?;
        }
        Ok(())
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
        let ids = |ids: &std::collections::BTreeSet<u64>| json!(ids).to_string();
        Batch {
            last,
            prev: seq,
            ids: [ids(&changes.nodes), ids(&changes.claims), ids(&changes.intents)],
            nodes: nodes.map(|n| json!([n.id, last, n.state.name(), text_of(n)])).collect(),
            claims: claims.map(|c| json!([c.id, last, c.state.name(), c.class, c.key, text_of(c)])).collect(),
            intents: intents.map(|i| json!([i.id, last, i.state.name(), text_of(i)])).collect(),
            tallies: tallies.map(|(class, t)| json!([class, last, t.hits, t.misses])).collect(),
            events: events
                .map(|(e, seq)| {
                    let (from, to) = e.what.states();
                    json!([seq, e.at_ms, e.what.subject(), e.what.id(), from, to, e.reason, text_of(&e.what)])
                })
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
    /// The last number used before.
    prev: i64,
    /// JSON lists of the nodes, claims and intents that changed.
    ids: [String; 3],
    nodes: Vec<Value>,
    claims: Vec<Value>,
    intents: Vec<Value>,
    tallies: Vec<Value>,
    events: Vec<Value>,
}

fn text_of<T: Serialize>(record: &T) -> String {
    // Records are made of numbers, text and lists; they always have a JSON text.
    serde_json::to_string(record).unwrap_or_default()
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

/// What was committed after `seen`, or all that is open where that is not known any more.
///
/// # Errors
/// The database refuses, or a record does not read.
pub async fn news(connection: &mut AnyConnection, dialect: Dialect, seen: i64) -> Result<News, StoreError> {
    let failed = StoreError::database("read what changed");
    let changes =
        sqlx::query("SELECT prev, nodes, claims, intents FROM changes WHERE seq > $1 ORDER BY seq").bind(seen);
    let changes = changes.fetch_all(&mut *connection).await.map_err(&failed)?;
    let newest =
        sqlx::query("SELECT COALESCE(MAX(at_ms), 0) AS at_ms FROM changes WHERE seq = (SELECT MAX(seq) FROM changes)");
    let newest = newest.fetch_one(&mut *connection).await.map_err(&failed)?;
    let last_at_ms: i64 = newest.try_get("at_ms").map_err(&failed)?;
    let first: Option<i64> = changes.first().map(|row| row.try_get("prev")).transpose().map_err(&failed)?;
    // A gap: what is missing was deleted as too old, or nothing was ever read.
    let all = seen == 0 || first.is_none_or(|prev| prev > seen);
    let seen = if all { 0 } else { seen };
    let ids = |column: &str| -> Result<String, StoreError> {
        let mut ids = std::collections::BTreeSet::new();
        for row in &changes {
            let list: &str = row.try_get(column).map_err(&failed)?;
            ids.extend(serde_json::from_str::<Vec<u64>>(list).unwrap_or_default());
        }
        Ok(Value::from_iter(ids.into_iter().map(|id| json!([id]))).to_string())
    };
    let which = |open: &str| if all { open.to_owned() } else { among(dialect) };
    let (nodes, claims, intents) = (ids("nodes")?, ids("claims")?, ids("intents")?);
    let (alive, live, pending) =
        ("state <> 'terminated'", "state IN ('queued', 'granted', 'active')", "state IN ('pending', 'sent')");
    Ok(News {
        all,
        last_at_ms,
        nodes: records(connection, "nodes", &which(alive), &nodes).await?,
        claims: records(connection, "claims", &which(live), &claims).await?,
        intents: records(connection, "intents", &which(pending), &intents).await?,
        tallies: tallies(connection, seen).await?,
        documents: documents::of_book(connection, seen).await?,
    })
}

fn among(dialect: Dialect) -> String {
    format!("id IN (SELECT CAST(value ->> 0 AS BIGINT) FROM {})", dialect.elements(1))
}

async fn records<T: DeserializeOwned>(
    connection: &mut AnyConnection,
    table: &'static str,
    which: &str,
    ids: &str,
) -> Result<Vec<T>, StoreError> {
    let text = format!("SELECT id, body FROM {table} WHERE {which} ORDER BY id");
    let query = sqlx::query(AssertSqlSafe(text));
    let query = if which.contains("$1") { query.bind(ids) } else { query };
    let rows = query.fetch_all(connection).await.map_err(StoreError::database("read what changed"))?;
    rows.iter().map(|row| record(row, table, "body")).collect()
}

async fn tallies(connection: &mut AnyConnection, seen: i64) -> Result<Vec<(String, Tally)>, StoreError> {
    let failed = StoreError::database("read tallies");
    let changed = sqlx::query("SELECT class, hits, misses FROM tallies WHERE seq > $1").bind(seen);
    let read = |row: &AnyRow| -> Result<(String, Tally), sqlx::Error> {
        let (hits, misses): (i64, i64) = (row.try_get("hits")?, row.try_get("misses")?);
        Ok((row.try_get("class")?, Tally { hits: hits.unsigned_abs(), misses: misses.unsigned_abs() }))
    };
    let rows = changed.fetch_all(connection).await.map_err(&failed)?;
    rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
}
