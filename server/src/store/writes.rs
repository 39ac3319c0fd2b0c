//! Writes that are not of the book: documents, plans, demand, tokens, what people did.

use sqlx::AnyConnection;
use tokio::sync::oneshot;

use super::documents::{self, Document, EditError};
use super::{Ledger, Store, StoreError, TokenRow, WriteError};
use crate::clock;

/// Who edits, and what it is called in the audit log.
pub type EditedBy = (std::sync::Arc<str>, &'static str);

/// Writes a document. `expected`: the version that was read, 0 for a new one; `None` writes over whatever is there. With
/// `by` it is noted in the audit log. Returns its version.
///
/// # Errors
/// Outer: it was not written. Inner: somebody else was faster.
pub async fn edit_document(
    ledger: &Ledger,
    document: Document,
    expected: Option<i64>,
    by: Option<EditedBy>,
    term: Option<i64>,
) -> Result<Result<i64, EditError>, WriteError> {
    let (send, answer) = oneshot::channel();
    let write: super::ledger::OnConnection = Box::new(move |connection, seq| {
        Box::pin(async move {
            let result = documents::put(&mut *connection, &document, expected, seq).await;
            if let (Ok(_), Some((who, action))) = (&result, &by) {
                audit(connection, who, action, &document.name).await?;
            }
            match result {
                Err(EditError::Store(error)) => return Err(error),
                result => drop(send.send(result)),
            }
            Ok(())
        })
    });
    ledger.statements(term, write).await?;
    answer.await.map_err(|_| WriteError::Closed)
}

/// Writes a document over whatever is there.
///
/// # Errors
/// It was not written.
pub async fn write_document(ledger: &Ledger, document: Document, term: Option<i64>) -> Result<(), WriteError> {
    // Without an expected version nothing crosses.
    edit_document(ledger, document, None, None, term).await.map(drop)
}

/// Writes a document that is not there yet; one that is stays.
///
/// # Errors
/// It was not written.
pub async fn write_new_document(ledger: &Ledger, document: Document) -> Result<(), WriteError> {
    edit_document(ledger, document, Some(0), None, None).await.map(drop)
}

/// Writes a plan, if it is the next: plans are numbered without gaps, each the child of the one before.
///
/// # Errors
/// It was not written.
pub async fn write_plan(ledger: &Ledger, epoch: i64, body: String, term: i64) -> Result<(), WriteError> {
    let write: super::ledger::OnConnection = Box::new(move |connection, _| {
        Box::pin(async move {
            sqlx::query("INSERT INTO plans (epoch, made_at_ms, body) VALUES ($1, $2, $3)")
                .bind(epoch)
                .bind(clock::now_ms())
                .bind(body)
                .execute(connection)
                .await
                .map_err(StoreError::database("write a plan"))?;
            Ok(())
        })
    });
    ledger.statements(Some(term), write).await
}

/// Writes demand: `(class, milliseconds since 1970, claims)`.
///
/// # Errors
/// It was not written.
pub async fn write_demand(ledger: &Ledger, rows: Vec<(String, i64, f64)>, term: Option<i64>) -> Result<(), WriteError> {
    let write: super::ledger::OnConnection = Box::new(move |connection, _| {
        Box::pin(async move {
            for (class, at_ms, claims) in rows {
                sqlx::query(
                    "INSERT INTO demand (class, at_ms, claims) VALUES ($1, $2, $3) ON CONFLICT (class, at_ms) \
                     DO UPDATE SET claims = excluded.claims",
                )
                .bind(class)
                .bind(at_ms)
                .bind(claims)
                .execute(&mut *connection)
                .await
                .map_err(StoreError::database("write demand"))?;
            }
            Ok(())
        })
    });
    ledger.statements(term, write).await
}

/// Time after which a replica that fell behind reads everything, milliseconds.
const CATCH_UP_MS: i64 = 10 * 60_000;
/// Plans, with all that they were made from, are kept for so long, milliseconds.
const PLANS_KEPT_MS: i64 = 2 * 86_400_000;
/// Demand is kept for so long, milliseconds.
const DEMAND_KEPT_MS: i64 = 30 * 86_400_000;
/// The event log is kept for so many numbers.
const EVENTS_KEPT: i64 = 20_000_000;

/// Deletes what is older than anybody asks for: nothing grows without end.
///
/// # Errors
/// It was not written.
pub async fn forget_old(ledger: &Ledger, now_ms: i64, term: Option<i64>) -> Result<(), WriteError> {
    let write: super::ledger::OnConnection = Box::new(move |connection, seq| {
        Box::pin(async move {
            for (text, bound) in [
                ("DELETE FROM changes WHERE at_ms < $1", now_ms - CATCH_UP_MS),
                ("DELETE FROM plans WHERE made_at_ms < $1", now_ms - PLANS_KEPT_MS),
                ("DELETE FROM demand WHERE at_ms < $1", now_ms - DEMAND_KEPT_MS),
                ("DELETE FROM gpus WHERE seen_at_ms < $1", now_ms - super::gpus::GPUS_KEPT_MS),
                ("DELETE FROM evidence WHERE at_ms < $1", now_ms - super::gpus::EVIDENCE_KEPT_MS),
                ("DELETE FROM events WHERE seq < $1", seq - EVENTS_KEPT),
                (
                    "DELETE FROM claims WHERE id IN (SELECT id FROM (SELECT id, seq, state FROM claims ORDER BY id LIMIT 20000) \
                     AS old WHERE seq < $1 AND state IN ('released', 'expired', 'failed'))",
                    seq - EVENTS_KEPT,
                ),
                (
                    "DELETE FROM nodes WHERE id IN (SELECT id FROM (SELECT id, seq, state FROM nodes ORDER BY id LIMIT 20000) \
                     AS old WHERE seq < $1 AND state = 'terminated')",
                    seq - EVENTS_KEPT,
                ),
                (
                    "DELETE FROM intents WHERE id IN (SELECT id FROM (SELECT id, seq, state FROM intents ORDER BY id LIMIT 20000) \
                     AS old WHERE seq < $1 AND state NOT IN ('pending', 'sent'))",
                    seq - EVENTS_KEPT,
                ),
            ] {
                // The oldest come first, and only so many are looked at: a commit waits for this.
                if bound > 0 {
                    let done = sqlx::query(text).bind(bound).execute(&mut *connection).await;
                    done.map_err(StoreError::database("delete what is old"))?;
                }
            }
            Ok(())
        })
    });
    ledger.statements(term, write).await
}

/// Notes what somebody did, in the transaction that does it.
///
/// # Errors
/// The database refuses.
pub async fn audit(
    connection: &mut AnyConnection,
    token: &str,
    action: &'static str,
    detail: &str,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (id, at_ms, token, action, detail) SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4 FROM audit")
        .bind(clock::now_ms())
        .bind(token.to_owned())
        .bind(action)
        .bind(detail.to_owned())
        .execute(connection)
        .await
        .map_err(StoreError::database("write the audit log"))?;
    Ok(())
}

impl Store {
    /// Writes a token down, in place of one of the same name.
    ///
    /// # Errors
    /// It was not written.
    pub async fn put_token(&self, ledger: &Ledger, token: TokenRow) -> Result<(), WriteError> {
        ledger
            .statements(
                None,
                Box::new(move |connection, _| {
                    Box::pin(async move {
                        sqlx::query(
                            "INSERT INTO tokens (name, role, hash, made_at_ms, revoked_at_ms) VALUES ($1, $2, $3, $4, NULL) \
                             ON CONFLICT (name) DO UPDATE SET role = excluded.role, hash = excluded.hash, \
                             made_at_ms = excluded.made_at_ms, revoked_at_ms = NULL",
                        )
                        .bind(token.name)
                        .bind(token.role)
                        .bind(token.hash)
                        .bind(clock::now_ms())
                        .execute(connection)
                        .await
                        .map_err(StoreError::database("write a token"))?;
                        Ok(())
                    })
                }),
            )
            .await
    }

    /// Ends a token.
    ///
    /// # Errors
    /// It was not written.
    pub async fn revoke_token(&self, ledger: &Ledger, name: String) -> Result<(), WriteError> {
        let write: super::ledger::OnConnection = Box::new(move |connection, _| {
            Box::pin(async move {
                sqlx::query("UPDATE tokens SET revoked_at_ms = $1 WHERE name = $2")
                    .bind(clock::now_ms())
                    .bind(name)
                    .execute(connection)
                    .await
                    .map_err(StoreError::database("end a token"))?;
                Ok(())
            })
        });
        ledger.statements(None, write).await
    }
}
