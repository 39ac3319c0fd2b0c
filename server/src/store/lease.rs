//! Who leads: one replica at a time plans and acts. The epoch rises with each change of leader and fences out the one
//! before, whose writes the ledger refuses.

use std::time::Duration;

use sqlx::Row;

use super::{Ledger, Store, StoreError, WriteError};
use crate::clock;

/// How long a leader leads without renewing.
pub const LEASE: Duration = Duration::from_secs(10);

/// One replica's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    /// Name of the replica that leads.
    pub holder: String,
    /// Number of its term.
    pub epoch: i64,
    /// Until when, milliseconds since 1970.
    pub until_ms: i64,
}

impl Store {
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

    /// Takes the lead if nobody has it, or keeps it. Returns the term if `holder` leads now.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn lead(&self, ledger: &Ledger, holder: &str) -> Result<Option<i64>, WriteError> {
        let name = holder.to_owned();
        let statement: super::ledger::OnConnection = Box::new(move |connection, _| {
            Box::pin(async move {
                let now_ms = clock::now_ms();
                sqlx::query(
                    "UPDATE leases SET epoch = CASE WHEN holder = $1 AND until_ms >= $2 THEN epoch ELSE epoch + 1 END, \
                     holder = $1, until_ms = $3 WHERE name = 'leader' AND (holder = $1 OR until_ms < $2)",
                )
                .bind(name)
                .bind(now_ms)
                .bind(now_ms + LEASE.as_millis() as i64)
                .execute(connection)
                .await
                .map_err(StoreError::database("take the lead"))?;
                Ok(())
            })
        });
        ledger.statements(None, statement).await?;
        let now = self.leadership().await?;
        Ok((now.holder == holder && now.until_ms >= clock::now_ms()).then_some(now.epoch))
    }

    /// Gives the lead up, so that the next takes it at once.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn step_down(&self, ledger: &Ledger, holder: &str) -> Result<(), WriteError> {
        let name = holder.to_owned();
        let statement: super::ledger::OnConnection = Box::new(move |connection, _| {
            Box::pin(async move {
                sqlx::query("UPDATE leases SET until_ms = 0 WHERE name = 'leader' AND holder = $1")
                    .bind(name)
                    .execute(connection)
                    .await
                    .map_err(StoreError::database("give up the lead"))?;
                Ok(())
            })
        });
        ledger.statements(None, statement).await
    }
}
