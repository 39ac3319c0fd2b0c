//! Snapshots that lie on hosts before they are asked for: as people write them, as hosts are told, and as hosts report.

use fleet::{GpuModel, Presence, Snapshot, StagingRoom, StartedBy, Tier, UsdMicros};
use serde::{Deserialize, Serialize};

/// A stored object that claims of a class start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotSpec {
    /// Class whose claims start from it.
    pub class: String,
    /// Address of the store that it lies in, as hosts reach it: `s3://BUCKET/PREFIX`, or a folder that all of them have.
    pub store: String,
    /// Its id there, 64 hexadecimal digits, as `pilotlight-agent store put` prints it.
    pub object: String,
    /// Bytes of a copy.
    pub bytes: u64,
    /// GPU model that it runs on; without it each that the class takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub gpu: Option<GpuModel>,
    /// Seconds from grant to readiness without it.
    pub cold_s: f64,
    /// Seconds of a restore beside those in which its bytes move.
    #[serde(default = "restore_s")]
    pub restore_s: f64,
    /// Share of its class's claims that start from it, in (0, 1]; 1 where it is the only one.
    #[serde(default = "whole")]
    pub share: f64,
    /// Dollars that a second of waiting for readiness costs, beside the GPUs that wait: what a copy is worth when claims are
    /// placed and nodes are given back.
    #[serde(default)]
    pub wait_cost_usd_per_s: f64,
    /// Who brings it up when a claim gets its GPUs: `client`, or `agent`, the host's own, which also ends it with the claim.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub started_by: StartedBy,
}

fn restore_s() -> f64 {
    2.0
}

fn whole() -> f64 {
    1.0
}

/// Largest copy, bytes: 64 TiB.
const BYTES_MAX: u64 = 64 << 40;
/// Longest start, seconds.
const SECONDS_MAX: f64 = 86_400.0;
/// Dearest second, dollars.
const SECOND_USD_MAX: f64 = 100.0;
/// Longest address and longest name, bytes.
const ADDRESS_MAX: usize = 1000;
const NAME_MAX: usize = 63;

impl SnapshotSpec {
    /// The snapshot of this name.
    ///
    /// # Errors
    /// What makes no sense, by its key.
    pub fn snapshot(&self, name: &str) -> Result<Snapshot, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            return Err(format!("a snapshot's name has 1 to {NAME_MAX} letters, digits and -_."));
        }
        let id: snapshots::ObjectId =
            self.object.parse().map_err(|_| "object: give the 64 digits that 'store put' printed".to_owned())?;
        if self.store.is_empty() || self.store.len() > ADDRESS_MAX || self.store.chars().any(char::is_control) {
            return Err(format!("store: an address has 1 to {ADDRESS_MAX} characters"));
        }
        if !(1..=BYTES_MAX).contains(&self.bytes) {
            return Err(format!("bytes: {} is not in 1..={BYTES_MAX}", self.bytes));
        }
        for (key, seconds) in [("cold_s", self.cold_s), ("restore_s", self.restore_s)] {
            if !(0.0..=SECONDS_MAX).contains(&seconds) {
                return Err(format!("{key}: {seconds} is not in 0..={SECONDS_MAX}"));
            }
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(format!("share: {} is not above 0 and at most 1", self.share));
        }
        let wait_cost_usd_micros_per_s = UsdMicros::from_usd(self.wait_cost_usd_per_s).ok();
        let wait_cost_usd_micros_per_s =
            wait_cost_usd_micros_per_s.filter(|cost| (0.0..=SECOND_USD_MAX).contains(&cost.usd())).ok_or_else(
                || format!("wait_cost_usd_per_s: {} is not in 0..={SECOND_USD_MAX}", self.wait_cost_usd_per_s),
            )?;
        Ok(Snapshot {
            name: name.to_owned(),
            class: self.class.clone(),
            store: self.store.clone(),
            object: id.to_string(),
            bytes: self.bytes,
            gpu: self.gpu,
            cold_s: self.cold_s,
            restore_s: self.restore_s,
            share: self.share,
            wait_cost_usd_micros_per_s,
            started_by: self.started_by,
        })
    }

    /// As it was written.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self {
            class: snapshot.class.clone(),
            store: snapshot.store.clone(),
            object: snapshot.object.clone(),
            bytes: snapshot.bytes,
            gpu: snapshot.gpu,
            cold_s: snapshot.cold_s,
            restore_s: snapshot.restore_s,
            share: snapshot.share,
            wait_cost_usd_per_s: snapshot.wait_cost_usd_micros_per_s.usd(),
            started_by: snapshot.started_by,
        }
    }
}

/// Which copies a host is to have: all of them, and no others.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StagingOrder {
    /// The copies, those for memory first.
    pub copies: Vec<CopyOrder>,
    /// What hosts of the zone prove themselves to each other with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_key: Option<String>,
    /// Another number is another order.
    pub version: i64,
}

/// A copy that a host is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CopyOrder {
    /// Id of the object.
    pub object: String,
    /// Address of its store.
    pub store: String,
    /// Its bytes, as they were declared.
    pub bytes: u64,
    /// Where it is to lie: `disk` or `memory`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub tier: Tier,
    /// Hosts of the zone that have it, or are to, and have it from each other, `10.0.0.7:7071`; this one among them, or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

/// What a host has, all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct StagingReport {
    /// The boot that it is about.
    pub boot: String,
    /// What it can keep, and how fast it is.
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub room: StagingRoom,
    /// Its copies.
    pub copies: Vec<CopyReport>,
    /// Where their bytes came from since the agent started.
    #[serde(default)]
    pub traffic: Traffic,
}

/// Bytes of leaves that an agent moved since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// From object stores.
    pub store_bytes: u64,
    /// From other hosts of the zone.
    pub peer_bytes: u64,
    /// To other hosts of the zone.
    pub sent_bytes: u64,
    /// Read off its own disk and verified.
    pub disk_bytes: u64,
}

/// What a host has of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CopyReport {
    /// Id of the object.
    pub object: String,
    /// `absent`, `fetching`, `disk` or `memory`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub presence: Presence,
    /// Bytes of it that are there.
    #[serde(default)]
    pub bytes: u64,
    /// What stands in its way, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}
