//! Lists that are read page by page, and small tables.

use std::sync::Arc;

use fleet::book::{Change, Claim, Intent, Node};
use sqlx::{AssertSqlSafe, Row};

use super::super::StoreError;
use super::super::rows::{AuditRow, EventRow, EvidenceRow, Leadership, Page, PlanRow, TokenRow};
use super::statements::record;
use super::{Sql, legacy};
use control::gpus::GpuRecord;

impl Sql {
    /// What people did, after a number.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn audits(&self, page: Page) -> Result<Vec<AuditRow>, StoreError> {
        let failed = StoreError::database("read the audit log");
        let query = "SELECT id, at_ms, token, action, detail FROM audit WHERE id > $1 ORDER BY id LIMIT $2";
        let rows = sqlx::query(query).bind(page.after).bind(page.limit).fetch_all(&self.pool).await.map_err(&failed)?;
        let one = |row: &sqlx::any::AnyRow| {
            Ok(AuditRow {
                id: row.try_get("id")?,
                at_ms: row.try_get("at_ms")?,
                token: row.try_get("token")?,
                action: row.try_get("action")?,
                detail: row.try_get("detail")?,
            })
        };
        rows.iter().map(one).collect::<Result<_, _>>().map_err(&failed)
    }

    /// Events after a number.
    ///
    /// # Errors
    /// The database cannot be used, or a record does not read.
    pub async fn events(&self, page: Page) -> Result<Vec<EventRow>, StoreError> {
        let failed = StoreError::database("read events");
        let rows = sqlx::query(
            "SELECT seq AS id, at_ms, subject, subject_id, from_state, to_state, reason, body FROM events \
             WHERE seq > $1 ORDER BY seq LIMIT $2",
        )
        .bind(page.after)
        .bind(page.limit)
        .fetch_all(&self.pool)
        .await
        .map_err(&failed)?;
        let mut events = Vec::with_capacity(rows.len());
        for row in &rows {
            let read = || Ok((row.try_get("id")?, row.try_get("at_ms")?, row.try_get("reason")?));
            let (seq, at_ms, reason): (i64, i64, String) = read().map_err(&failed)?;
            let is_old = row.try_get::<&str, _>("body").map_err(&failed)?.is_empty();
            let what = if is_old { legacy::what(self, row).await? } else { Some(record(row, "events", "body")?) };
            // What an older version wrote of something that is forgotten by now says nothing to anybody.
            events.extend(what.map(|what| EventRow { seq, change: Change { at_ms, what, reason } }));
        }
        Ok(events)
    }

    /// The number of the last event that may be read.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn last_seq(&self) -> Result<i64, StoreError> {
        let failed = StoreError::database("read the log's head");
        let row = sqlx::query("SELECT seq FROM log_head WHERE id = 1").fetch_one(&self.pool).await.map_err(&failed)?;
        row.try_get("seq").map_err(failed)
    }

    /// Nodes by number, also those that have ended; of one state where given.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn nodes(&self, state: Option<&str>, page: Page) -> Result<Vec<Node>, StoreError> {
        self.list("nodes", state, page).await
    }

    /// Claims by number, also those that have ended; of one state where given.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn claims(&self, state: Option<&str>, page: Page) -> Result<Vec<Claim>, StoreError> {
        self.list("claims", state, page).await
    }

    async fn list<T: serde::de::DeserializeOwned>(
        &self,
        table: &'static str,
        state: Option<&str>,
        page: Page,
    ) -> Result<Vec<T>, StoreError> {
        let of_state = if state.is_some() { "state = $3" } else { "$3 = ''" };
        let text = format!("SELECT id, body FROM {table} WHERE id > $1 AND {of_state} ORDER BY id LIMIT $2");
        let query = sqlx::query(AssertSqlSafe(text)).bind(page.after).bind(page.limit).bind(state.unwrap_or(""));
        let rows = query.fetch_all(&self.pool).await.map_err(StoreError::database("read a list"))?;
        rows.iter().map(|row| record(row, table, "body")).collect()
    }

    /// One claim, also one that has ended.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn claim(&self, id: u64) -> Result<Option<Claim>, StoreError> {
        let after = i64::try_from(id).unwrap_or(i64::MAX) - 1;
        let found: Vec<Claim> = self.claims(None, Page { after, limit: 1 }).await?;
        Ok(found.into_iter().find(|c| c.id == id))
    }

    /// One node, also one that has ended.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn node(&self, id: u64) -> Result<Option<Node>, StoreError> {
        let after = i64::try_from(id).unwrap_or(i64::MAX) - 1;
        let found: Vec<Node> = self.nodes(None, Page { after, limit: 1 }).await?;
        Ok(found.into_iter().find(|n| n.id == id))
    }

    /// One intent, also one that is closed.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn intent(&self, id: u64) -> Result<Option<Intent>, StoreError> {
        let after = i64::try_from(id).unwrap_or(i64::MAX) - 1;
        let found: Vec<Intent> = self.list("intents", None, Page { after, limit: 1 }).await?;
        Ok(found.into_iter().find(|i| i.id == id))
    }

    /// The newest plans up to `epoch`, the newest first.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn plans(&self, up_to_epoch: i64, limit: i64) -> Result<Vec<PlanRow>, StoreError> {
        let failed = StoreError::database("read plans");
        let query =
            sqlx::query("SELECT epoch, made_at_ms, body FROM plans WHERE epoch <= $1 ORDER BY epoch DESC LIMIT $2");
        let rows = query.bind(up_to_epoch).bind(limit).fetch_all(&self.pool).await.map_err(&failed)?;
        let read = |row: &sqlx::any::AnyRow| {
            Ok(PlanRow {
                epoch: row.try_get("epoch")?,
                made_at_ms: row.try_get("made_at_ms")?,
                body: row.try_get("body")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// Demand since a moment: `(class, milliseconds since 1970, claims)`, by time.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn demand(&self, since_ms: i64) -> Result<Vec<(String, i64, f64)>, StoreError> {
        let failed = StoreError::database("read demand");
        let query = sqlx::query("SELECT class, at_ms, claims FROM demand WHERE at_ms >= $1 ORDER BY at_ms");
        let rows = query.bind(since_ms).fetch_all(&self.pool).await.map_err(&failed)?;
        let read = |row: &sqlx::any::AnyRow| Ok((row.try_get("class")?, row.try_get("at_ms")?, row.try_get("claims")?));
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// Whether there ever was a token, revoked or not.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn any_token_was_made(&self) -> Result<bool, StoreError> {
        let found = sqlx::query("SELECT name FROM tokens LIMIT 1").fetch_optional(&self.pool).await;
        Ok(found.map_err(StoreError::database("read tokens"))?.is_some())
    }

    /// Tokens that are not revoked.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let failed = StoreError::database("read tokens");
        let query = sqlx::query("SELECT name, role, hash FROM tokens WHERE revoked_at_ms IS NULL ORDER BY name");
        let rows = query.fetch_all(&self.pool).await.map_err(&failed)?;
        let read = |row: &sqlx::any::AnyRow| {
            Ok(TokenRow { name: row.try_get("name")?, role: row.try_get("role")?, hash: row.try_get("hash")? })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// GPUs after a name, in the order of their names.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn gpus(&self, after: &str, limit: i64) -> Result<Vec<Arc<GpuRecord>>, StoreError> {
        let query = sqlx::query("SELECT serial, body FROM gpus WHERE serial > $1 ORDER BY serial LIMIT $2");
        let query = query.bind(after.to_owned()).bind(limit);
        let rows = query.fetch_all(&self.pool).await.map_err(StoreError::database("read GPUs"))?;
        rows.iter().map(|row| record(row, "gpus", "body").map(Arc::new)).collect()
    }

    /// GPUs by their names; those that nobody has seen are left out.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn gpus_named(&self, names: &[String]) -> Result<Vec<GpuRecord>, StoreError> {
        let mut found = Vec::new();
        for name in names {
            let query = sqlx::query("SELECT serial, body FROM gpus WHERE serial = $1").bind(name);
            let row = query.fetch_optional(&self.pool).await.map_err(StoreError::database("read GPUs"))?;
            found.extend(row.as_ref().map(|row| record(row, "gpus", "body")).transpose()?);
        }
        Ok(found)
    }

    /// Evidence of a node after a number.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn evidence(&self, node: u64, page: Page) -> Result<Vec<EvidenceRow>, StoreError> {
        let failed = StoreError::database("read evidence");
        let query = sqlx::query(
            "SELECT id, at_ms, node, checks, verdict, reason, body FROM evidence \
             WHERE id > $1 AND node = $2 ORDER BY id LIMIT $3",
        );
        let of = i64::try_from(node).unwrap_or(i64::MAX);
        let rows = query.bind(page.after).bind(of).bind(page.limit).fetch_all(&self.pool).await.map_err(&failed)?;
        let one = |row: &sqlx::any::AnyRow| {
            let body: String = row.try_get("body")?;
            let node: i64 = row.try_get("node")?;
            Ok(EvidenceRow {
                id: row.try_get("id")?,
                at_ms: row.try_get("at_ms")?,
                node: node.unsigned_abs(),
                checks: row.try_get("checks")?,
                verdict: row.try_get("verdict")?,
                reason: row.try_get("reason")?,
                body: serde_json::from_str(&body).unwrap_or_default(),
            })
        };
        rows.iter().map(one).collect::<Result<_, _>>().map_err(&failed)
    }

    /// Who leads now; an old term may have run out.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn leadership(&self) -> Result<Leadership, StoreError> {
        let failed = StoreError::database("read who leads");
        let query = sqlx::query("SELECT holder, epoch, until_ms FROM leases WHERE name = 'leader'");
        let row = query.fetch_one(&self.pool).await.map_err(&failed)?;
        let read = || {
            Ok(Leadership {
                holder: row.try_get("holder")?,
                epoch: row.try_get("epoch")?,
                until_ms: row.try_get("until_ms")?,
            })
        };
        read().map_err(failed)
    }
}
