//! Physical GPUs and what was seen of them, across the instances that they were rented as.

use std::collections::BTreeSet;

use fleet::book::Node;
use health::weekly::History;
use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, Row};

use super::rows::record;
use super::{Ledger, Page, Store, StoreError, WriteError};

/// A GPU, or all of a host where they tell no serial numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuRecord {
    /// Serial number, or `provider:instance`.
    pub serial: String,
    /// Cloud that rented it out last.
    pub provider: String,
    /// As which instance type.
    pub instance_type: String,
    /// As which instance.
    pub instance: String,
    /// As which node.
    pub node: u64,
    /// When it last passed or failed something, milliseconds since 1970.
    pub seen_at_ms: i64,
    /// What passed on it.
    pub history: History,
    /// Faults that took its node out, the newest last.
    #[serde(default)]
    pub faults: Vec<GpuFault>,
    /// When diagnostics were last tried and said nothing, milliseconds since 1970; 0 since they did.
    #[serde(default)]
    pub tried_at_ms: i64,
    /// They gave way then.
    #[serde(default)]
    pub gave_way: bool,
    /// When a person said that it is well, milliseconds since 1970: faults before it do not count.
    #[serde(default)]
    pub cleared_at_ms: i64,
}

/// A fault that took a node out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFault {
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// The node that it was.
    pub node: u64,
    /// Why.
    pub reason: String,
}

/// Faults that are remembered of each GPU.
const FAULTS_MAX: usize = 16;
/// A GPU that took so many nodes out within [`BLOCKED_WITHIN_MS`] is not taken again.
const BLOCKED_AT: usize = 2;
const BLOCKED_WITHIN_MS: i64 = 30 * 86_400_000;
/// A GPU that was not seen for so long is forgotten, and what was seen of it sooner, milliseconds.
pub(super) const GPUS_KEPT_MS: i64 = 180 * 86_400_000;
pub(super) const EVIDENCE_KEPT_MS: i64 = 30 * 86_400_000;

impl GpuRecord {
    /// Rented as this node from now on. A diagnostic of level 2 is due in the first idle gap of each node.
    pub fn met(&mut self, node: &Node, now_ms: i64) {
        if self.seen_at_ms == 0 {
            self.history.met_ms = now_ms;
        }
        if self.node != node.id {
            self.history.quick = false;
            self.tried_at_ms = 0;
        }
        self.node = node.id;
        self.provider.clone_from(&node.offer.provider);
        self.instance_type.clone_from(&node.offer.instance_type);
        self.instance = node.instance.clone().unwrap_or_default();
        self.seen_at_ms = now_ms;
    }

    /// It took its node out.
    pub fn failed(&mut self, reason: &str, now_ms: i64) {
        self.faults.push(GpuFault { at_ms: now_ms, node: self.node, reason: reason.to_owned() });
        let excess = self.faults.len().saturating_sub(FAULTS_MAX);
        self.faults.drain(..excess);
    }

    /// The last fault that keeps it from being taken again; none where it may be.
    #[must_use]
    pub fn blocked_by(&self, now_ms: i64) -> Option<&GpuFault> {
        let counts = |f: &&GpuFault| f.at_ms > self.cleared_at_ms && now_ms - f.at_ms < BLOCKED_WITHIN_MS;
        let nodes: BTreeSet<u64> = self.faults.iter().filter(counts).map(|f| f.node).collect();
        (nodes.len() >= BLOCKED_AT).then(|| self.faults.last()).flatten()
    }
}

/// Under which names the GPUs of a node are known.
#[must_use]
pub fn gpu_names(node: &Node) -> Vec<String> {
    if node.serials.is_empty() {
        let instance = node.instance.as_deref().unwrap_or("?");
        return vec![format!("{}:{instance}", node.offer.provider)];
    }
    node.serials.clone()
}

/// What a gate or a diagnostic said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct EvidenceRow {
    /// Its number.
    pub id: i64,
    /// When, milliseconds since 1970.
    pub at_ms: i64,
    /// Node, by its number.
    pub node: u64,
    /// `gate`, `diagnosis`.
    pub checks: String,
    /// `pass`, `degraded`, `fail`, `unmeasured`.
    pub verdict: String,
    /// Why, for people.
    pub reason: String,
    /// Every number with its limits, JSON.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
}

impl Store {
    /// GPUs after a name, in the order of their names.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn gpus(&self, after: &str, limit: i64) -> Result<Vec<GpuRecord>, StoreError> {
        let query = sqlx::query("SELECT serial, body FROM gpus WHERE serial > $1 ORDER BY serial LIMIT $2");
        let query = query.bind(after.to_owned()).bind(limit);
        let rows = query.fetch_all(&self.pool).await.map_err(StoreError::database("read GPUs"))?;
        rows.iter().map(|row| record(row, "gpus", "body")).collect()
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
}

/// Changes the records of GPUs, which are made where there are none.
///
/// # Errors
/// They were not written.
pub async fn change_gpus(
    ledger: &Ledger,
    names: Vec<String>,
    change: impl Fn(&mut GpuRecord) + Send + Sync + 'static,
) -> Result<(), WriteError> {
    let write: super::OnConnection = Box::new(move |connection, _| {
        Box::pin(async move {
            for name in names {
                let query = sqlx::query("SELECT serial, body FROM gpus WHERE serial = $1").bind(name.clone());
                let row = query.fetch_optional(&mut *connection).await.map_err(StoreError::database("read a GPU"))?;
                let mut gpu: GpuRecord = match &row {
                    Some(row) => record(row, "gpus", "body")?,
                    None => GpuRecord { serial: name, ..GpuRecord::default() },
                };
                change(&mut gpu);
                put(&mut *connection, &gpu).await?;
            }
            Ok(())
        })
    });
    ledger.statements(None, write).await
}

async fn put(connection: &mut AnyConnection, gpu: &GpuRecord) -> Result<(), StoreError> {
    let body = serde_json::to_string(gpu).map_err(|source| StoreError::Record {
        table: "gpus",
        id: gpu.serial.clone(),
        source: std::sync::Arc::new(source),
    })?;
    sqlx::query(
        "INSERT INTO gpus (serial, node, seen_at_ms, body) VALUES ($1, $2, $3, $4) ON CONFLICT (serial) \
         DO UPDATE SET node = excluded.node, seen_at_ms = excluded.seen_at_ms, body = excluded.body",
    )
    .bind(gpu.serial.clone())
    .bind(i64::try_from(gpu.node).unwrap_or(i64::MAX))
    .bind(gpu.seen_at_ms)
    .bind(body)
    .execute(connection)
    .await
    .map_err(StoreError::database("write a GPU"))?;
    Ok(())
}

/// Keeps what a gate or a diagnostic said. Its number is given.
///
/// # Errors
/// It was not written.
pub async fn write_evidence(ledger: &Ledger, evidence: EvidenceRow) -> Result<(), WriteError> {
    let write: super::OnConnection = Box::new(move |connection, _| {
        Box::pin(async move {
            sqlx::query(
                "INSERT INTO evidence (id, at_ms, node, checks, verdict, reason, body) \
                 SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4, $5, $6 FROM evidence",
            )
            .bind(evidence.at_ms)
            .bind(i64::try_from(evidence.node).unwrap_or(i64::MAX))
            .bind(evidence.checks)
            .bind(evidence.verdict)
            .bind(evidence.reason)
            .bind(evidence.body.to_string())
            .execute(connection)
            .await
            .map_err(StoreError::database("write evidence"))?;
            Ok(())
        })
    });
    ledger.statements(None, write).await
}
