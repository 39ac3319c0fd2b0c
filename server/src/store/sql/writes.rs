//! Writes that are not of the book, in SQL.

use control::gpus::{EVIDENCE_KEPT_MS, GPUS_KEPT_MS, GpuChange, GpuRecord};
use sqlx::{AnyConnection, Row};

use super::super::rows::{EvidenceRow, TokenRow};
use super::super::write::{
    CATCH_UP_MS, DEMAND_KEPT_MS, EVENTS_KEPT, EVIDENCE_OF_NODE_MAX, LEASE_MS, PLANS_KEPT_MS, text_of,
};
use super::super::{StoreError, Write, Wrote};
use super::documents;
use super::statements::record;

/// Makes a write, under the number that the batch will have.
///
/// # Errors
/// The database refuses.
pub(super) async fn apply(
    connection: &mut AnyConnection,
    write: &Write,
    seq: i64,
    now_ms: i64,
) -> Result<Wrote, StoreError> {
    match write {
        Write::Document { key, body, expected, by } => {
            let version = match documents::put(&mut *connection, key, body, *expected, seq).await? {
                Ok(version) => version,
                Err(crossed) => return Ok(Wrote::Crossed(crossed)),
            };
            if let Some((who, action)) = by {
                audit(connection, who, action, key.words().1, now_ms).await?;
            }
            return Ok(Wrote::Version(version));
        }
        Write::Plan { epoch, body } => {
            sqlx::query("INSERT INTO plans (epoch, made_at_ms, body) VALUES ($1, $2, $3)")
                .bind(*epoch)
                .bind(now_ms)
                .bind(body.clone())
                .execute(connection)
                .await
                .map_err(StoreError::database("write a plan"))?;
        }
        Write::Demand(rows) => demand(connection, rows).await?,
        Write::ForgetOld => forget_old(connection, seq, now_ms).await?,
        Write::Audit { who, action, detail } => audit(connection, who, action, detail, now_ms).await?,
        Write::PutToken(token) => put_token(connection, token, now_ms).await?,
        Write::RevokeToken(name) => {
            sqlx::query("UPDATE tokens SET revoked_at_ms = $1 WHERE name = $2")
                .bind(now_ms)
                .bind(name.clone())
                .execute(connection)
                .await
                .map_err(StoreError::database("end a token"))?;
        }
        Write::Gpus { names, change } => gpus(connection, names, change, now_ms).await?,
        Write::Evidence(evidence) => keep_evidence(connection, evidence).await?,
        Write::Probe => probe(connection, seq).await?,
        Write::Lead { holder } => return lead(connection, holder, now_ms).await,
        Write::StepDown { holder } => {
            sqlx::query("UPDATE leases SET until_ms = 0 WHERE name = 'leader' AND holder = $1")
                .bind(holder.clone())
                .execute(connection)
                .await
                .map_err(StoreError::database("give up the lead"))?;
        }
    }
    Ok(Wrote::Done)
}

/// Rows under a number that nothing else has.
async fn probe(connection: &mut AnyConnection, seq: i64) -> Result<(), StoreError> {
    for text in [
        "INSERT INTO claims (id, seq, state, class, body) VALUES (-1, $1, 'released', '', '{}')",
        "INSERT INTO nodes (id, seq, state, body) VALUES (-1, $1, 'terminated', '{}')",
        "INSERT INTO events (seq, at_ms, subject, subject_id, from_state, to_state, reason, body) \
         VALUES (-1, $1, 'probe', -1, '', '', '', '{}')",
    ] {
        sqlx::query(text).bind(seq).execute(&mut *connection).await.map_err(StoreError::database("try to write"))?;
    }
    for text in
        ["DELETE FROM claims WHERE id = -1", "DELETE FROM nodes WHERE id = -1", "DELETE FROM events WHERE seq = -1"]
    {
        sqlx::query(text).execute(&mut *connection).await.map_err(StoreError::database("try to write"))?;
    }
    Ok(())
}

async fn demand(connection: &mut AnyConnection, rows: &[(String, i64, f64)]) -> Result<(), StoreError> {
    for (class, at_ms, claims) in rows {
        sqlx::query(
            "INSERT INTO demand (class, at_ms, claims) VALUES ($1, $2, $3) ON CONFLICT (class, at_ms) \
             DO UPDATE SET claims = excluded.claims",
        )
        .bind(class.clone())
        .bind(*at_ms)
        .bind(*claims)
        .execute(&mut *connection)
        .await
        .map_err(StoreError::database("write demand"))?;
    }
    Ok(())
}

/// The oldest come first, and only so many are looked at: a commit waits for this.
async fn forget_old(connection: &mut AnyConnection, seq: i64, now_ms: i64) -> Result<(), StoreError> {
    for (text, bound) in [
        ("DELETE FROM changes WHERE at_ms < $1", now_ms - CATCH_UP_MS),
        ("DELETE FROM plans WHERE made_at_ms < $1", now_ms - PLANS_KEPT_MS),
        ("DELETE FROM demand WHERE at_ms < $1", now_ms - DEMAND_KEPT_MS),
        ("DELETE FROM gpus WHERE seen_at_ms < $1", now_ms - GPUS_KEPT_MS),
        ("DELETE FROM evidence WHERE at_ms < $1", now_ms - EVIDENCE_KEPT_MS),
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
        if bound > 0 {
            let done = sqlx::query(text).bind(bound).execute(&mut *connection).await;
            done.map_err(StoreError::database("delete what is old"))?;
        }
    }
    Ok(())
}

async fn audit(
    connection: &mut AnyConnection,
    who: &str,
    action: &'static str,
    detail: &str,
    now_ms: i64,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO audit (id, at_ms, token, action, detail) SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4 FROM audit")
        .bind(now_ms)
        .bind(who.to_owned())
        .bind(action)
        .bind(detail.to_owned())
        .execute(connection)
        .await
        .map_err(StoreError::database("write the audit log"))?;
    Ok(())
}

async fn put_token(connection: &mut AnyConnection, token: &TokenRow, now_ms: i64) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO tokens (name, role, hash, made_at_ms, revoked_at_ms) VALUES ($1, $2, $3, $4, NULL) \
         ON CONFLICT (name) DO UPDATE SET role = excluded.role, hash = excluded.hash, \
         made_at_ms = excluded.made_at_ms, revoked_at_ms = NULL",
    )
    .bind(token.name.clone())
    .bind(token.role.clone())
    .bind(token.hash.clone())
    .bind(now_ms)
    .execute(connection)
    .await
    .map_err(StoreError::database("write a token"))?;
    Ok(())
}

async fn gpus(
    connection: &mut AnyConnection,
    names: &[String],
    change: &GpuChange,
    now_ms: i64,
) -> Result<(), StoreError> {
    for name in names {
        let query = sqlx::query("SELECT serial, body FROM gpus WHERE serial = $1").bind(name.clone());
        let row = query.fetch_optional(&mut *connection).await.map_err(StoreError::database("read a GPU"))?;
        let mut gpu: GpuRecord = match &row {
            Some(row) => record(row, "gpus", "body")?,
            None => GpuRecord { serial: name.clone(), ..GpuRecord::default() },
        };
        change.apply(&mut gpu, now_ms);
        sqlx::query(
            "INSERT INTO gpus (serial, node, seen_at_ms, body) VALUES ($1, $2, $3, $4) ON CONFLICT (serial) \
             DO UPDATE SET node = excluded.node, seen_at_ms = excluded.seen_at_ms, body = excluded.body",
        )
        .bind(gpu.serial.clone())
        .bind(i64::try_from(gpu.node).unwrap_or(i64::MAX))
        .bind(gpu.seen_at_ms)
        .bind(text_of(&gpu, "gpus")?)
        .execute(&mut *connection)
        .await
        .map_err(StoreError::database("write a GPU"))?;
    }
    Ok(())
}

async fn keep_evidence(connection: &mut AnyConnection, evidence: &EvidenceRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO evidence (id, at_ms, node, checks, verdict, reason, body) \
         SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4, $5, $6 FROM evidence",
    )
    .bind(evidence.at_ms)
    .bind(i64::try_from(evidence.node).unwrap_or(i64::MAX))
    .bind(evidence.checks.clone())
    .bind(evidence.verdict.clone())
    .bind(evidence.reason.clone())
    .bind(evidence.body.to_string())
    .execute(&mut *connection)
    .await
    .map_err(StoreError::database("write evidence"))?;
    sqlx::query(
        "DELETE FROM evidence WHERE node = $1 AND id <= (SELECT id FROM evidence WHERE node = $1 ORDER BY id DESC \
         LIMIT 1 OFFSET $2)",
    )
    .bind(i64::try_from(evidence.node).unwrap_or(i64::MAX))
    .bind(EVIDENCE_OF_NODE_MAX)
    .execute(connection)
    .await
    .map_err(StoreError::database("delete what is old"))?;
    Ok(())
}

/// The term rises with each change of leader and fences out the one before, whose writes the ledger refuses.
async fn lead(connection: &mut AnyConnection, holder: &str, now_ms: i64) -> Result<Wrote, StoreError> {
    let failed = StoreError::database("take the lead");
    sqlx::query(
        // A lead that lasts longer than any lease is none: it was taken by a clock that was ahead.
        "UPDATE leases SET epoch = CASE WHEN holder = $1 AND until_ms >= $2 THEN epoch ELSE epoch + 1 END, \
         holder = $1, until_ms = $3 WHERE name = 'leader' AND (holder = $1 OR until_ms < $2 OR until_ms > $4)",
    )
    .bind(holder.to_owned())
    .bind(now_ms)
    .bind(now_ms + LEASE_MS)
    .bind(now_ms + 2 * LEASE_MS)
    .execute(&mut *connection)
    .await
    .map_err(&failed)?;
    let row = sqlx::query("SELECT holder, epoch FROM leases WHERE name = 'leader'").fetch_one(connection).await;
    let row = row.map_err(&failed)?;
    let read = || Ok((row.try_get::<String, _>("holder")?, row.try_get::<i64, _>("epoch")?));
    let (now, term) = read().map_err(failed)?;
    Ok(Wrote::Leads((now == holder).then_some(term)))
}
