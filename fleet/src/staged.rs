//! Snapshots that lie on hosts before they are asked for: what they are, how far a copy has come, and how soon a claim is
//! ready with it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::gpu::GpuModel;
use crate::money::UsdMicros;
use crate::offer::Offer;
use crate::start::StartTook;

/// Where on a host a copy lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// On its NVMe.
    Disk,
    /// In its pinned memory. Its disk has it too: memory does not outlast a restart.
    Memory,
}

impl Tier {
    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }
}

/// What of a copy is on a host, as its agent says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// Nothing that can be used.
    #[default]
    Absent,
    /// A part.
    Fetching,
    /// All of it on the disk, every byte verified.
    Disk,
    /// All of it in memory too.
    Memory,
}

impl Presence {
    /// The tier that a claim is served from.
    #[must_use]
    pub fn tier(self) -> Option<Tier> {
        match self {
            Self::Absent | Self::Fetching => None,
            Self::Disk => Some(Tier::Disk),
            Self::Memory => Some(Tier::Memory),
        }
    }
}

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyState {
    /// It is to be there.
    Wanted,
    /// It comes.
    Fetching,
    /// It is on the disk, verified.
    Verified,
    /// It is in memory.
    Hot,
    /// It is to go.
    Evicting,
}

impl CopyState {
    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Fetching => "fetching",
            Self::Verified => "verified",
            Self::Hot => "hot",
            Self::Evicting => "evicting",
        }
    }
}

/// A copy of a snapshot on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedCopy {
    /// Where it is to lie; none: it is to go.
    pub wanted: Option<Tier>,
    /// What is there.
    pub presence: Presence,
    /// Bytes that are there.
    #[serde(default)]
    pub bytes: u64,
    /// When its state last changed, milliseconds since 1970.
    pub since_ms: i64,
    /// What stands in its way, for people; empty where nothing does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

impl StagedCopy {
    /// Of a snapshot that is not there and that nobody wants, yet.
    #[must_use]
    pub fn nothing(now_ms: i64) -> Self {
        Self { wanted: None, presence: Presence::Absent, bytes: 0, since_ms: now_ms, problem: String::new() }
    }

    /// How far it has come; none: there is nothing and nothing is to be.
    #[must_use]
    pub fn state(&self) -> Option<CopyState> {
        match (self.wanted, self.presence) {
            (None, Presence::Absent) => None,
            (None, _) => Some(CopyState::Evicting),
            (Some(_), Presence::Absent) => Some(CopyState::Wanted),
            (Some(_), Presence::Fetching) => Some(CopyState::Fetching),
            (Some(_), Presence::Disk) => Some(CopyState::Verified),
            (Some(_), Presence::Memory) => Some(CopyState::Hot),
        }
    }
}

/// What a host can keep, and how fast it is, as its agent has measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StagingRoom {
    /// For copies on its disk, bytes.
    pub disk_bytes: u64,
    /// For copies in its memory, bytes.
    pub memory_bytes: u64,
    /// What it fetches, bytes a second; none before it fetched anything.
    #[serde(default)]
    pub fetch_bytes_per_s: Option<f64>,
    /// What it reads off its disk, bytes a second.
    #[serde(default)]
    pub disk_bytes_per_s: Option<f64>,
    /// Where other hosts of its zone reach its copies, `10.0.0.7:7071`.
    #[serde(default)]
    pub peer: Option<String>,
}

/// Bytes a second off a disk that was not measured yet: one NVMe drive.
const DISK_BYTES_PER_S: f64 = 2e9;
/// Bytes a second from pinned memory into a GPU, all in: 32 GiB in 1.20 s on an H200 with the process gone in between.
const MEMORY_BYTES_PER_S: f64 = 2.8e10;

/// Who brings up what a claim starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StartedBy {
    /// Its client, who has the GPUs.
    #[default]
    Client,
    /// The agent of the host that has them, as soon as they are granted; it ends it with the claim.
    Agent,
}

/// A stored object that claims of a class start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Unique name.
    pub name: String,
    /// Class whose claims start from it.
    pub class: String,
    /// Address of the store that it lies in.
    pub store: String,
    /// Its id there.
    pub object: String,
    /// Bytes of a copy.
    pub bytes: u64,
    /// GPU model that it runs on; none: each that the class takes.
    #[serde(default)]
    pub gpu: Option<GpuModel>,
    /// Seconds from grant to readiness without it.
    pub cold_s: f64,
    /// Seconds of a restore beside those in which its bytes move.
    pub restore_s: f64,
    /// Share of its class's claims that start from it, where they do not say so themselves.
    pub share: f64,
    /// What a second of waiting for readiness costs, beside the GPUs that wait.
    #[serde(default)]
    pub wait_cost_usd_micros_per_s: UsdMicros,
    /// Who brings it up.
    #[serde(default)]
    pub started_by: StartedBy,
}

impl Snapshot {
    /// Seconds to readiness on a host with a copy in a tier, or none, before anything was learnt. A restore that would take
    /// longer than a cold start is not made.
    #[must_use]
    pub fn ready_s(&self, tier: Option<Tier>, room: Option<&StagingRoom>) -> f64 {
        let measured = |rate: Option<f64>| rate.filter(|rate| rate.is_finite() && *rate > 0.0);
        let bytes_per_s = match tier {
            None => return self.cold_s,
            Some(Tier::Disk) => measured(room.and_then(|room| room.disk_bytes_per_s)).unwrap_or(DISK_BYTES_PER_S),
            Some(Tier::Memory) => MEMORY_BYTES_PER_S,
        };
        (self.restore_s + self.bytes as f64 / bytes_per_s).min(self.cold_s)
    }

    /// Dollars that a second costs in which a claim of so many GPUs of an offer is not ready.
    #[must_use]
    pub fn second_usd(&self, gpus: u32, offer: &Offer) -> f64 {
        let gpus_usd_per_h = offer.gpu_price_usd_micros_per_h().usd() * f64::from(gpus);
        self.wait_cost_usd_micros_per_s.usd() + gpus_usd_per_h / 3600.0
    }
}

/// Seconds from grant to readiness, as they are predicted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The tier of the copy that is restored; none: a cold start.
    pub tier: Option<Tier>,
    /// In half of all cases at most so many.
    pub p50_s: f64,
    /// In nine of ten.
    pub p90_s: f64,
    /// Starts that this was learnt from; 0: it is what was declared.
    pub learnt_from: u32,
}

/// What starts took, each as a multiple of what was thought before anything was learnt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Readiness {
    /// The newest last: `snapshot/memory`, `snapshot/disk`, `snapshot/cold`.
    pub multiples: BTreeMap<String, Vec<f64>>,
    /// Open claims whose start was heard.
    #[serde(default)]
    pub heard: BTreeSet<u64>,
    /// By class, starts that hosts made by themselves and that became ready, the newest last.
    #[serde(default)]
    pub starts: BTreeMap<String, Vec<StartTook>>,
}

/// Starts that are remembered.
const STARTS_KEPT: usize = 64;
/// Starts of a class that are remembered phase by phase: enough for one in a hundred.
const STARTS_OF_CLASS_KEPT: usize = 128;
/// Fewer say too little.
const STARTS_MIN: usize = 5;
/// Nine of ten starts take at most so many times the declared seconds, until starts say more.
const P90_UNKNOWN: f64 = 1.5;

impl Readiness {
    fn key(snapshot: &str, tier: Option<Tier>) -> String {
        format!("{snapshot}/{}", tier.map_or("cold", Tier::name))
    }

    /// Seconds that a start will take that would take `ready_s` by what was declared and measured.
    #[must_use]
    pub fn predict(&self, snapshot: &str, tier: Option<Tier>, ready_s: f64) -> Prediction {
        let known = self.multiples.get(&Self::key(snapshot, tier)).map_or(&[][..], Vec::as_slice);
        if known.len() < STARTS_MIN {
            return Prediction { tier, p50_s: ready_s, p90_s: ready_s * P90_UNKNOWN, learnt_from: 0 };
        }
        let mut sorted = known.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The nearest rank.
        let quantile = |q: f64| sorted[((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
        let learnt_from = u32::try_from(known.len()).unwrap_or(u32::MAX);
        Prediction { tier, p50_s: ready_s * quantile(0.5), p90_s: ready_s * quantile(0.9), learnt_from }
    }

    /// A start took so many times what was thought.
    pub fn learn(&mut self, snapshot: &str, tier: Option<Tier>, multiple: f64) {
        if !(multiple.is_finite() && multiple > 0.0) {
            return;
        }
        let known = self.multiples.entry(Self::key(snapshot, tier)).or_default();
        known.push(multiple);
        if known.len() > STARTS_KEPT {
            known.remove(0);
        }
    }

    /// A start that a host made by itself became ready.
    pub fn took(&mut self, class: &str, start: StartTook) {
        let known = self.starts.entry(class.to_owned()).or_default();
        known.push(start);
        let excess = known.len().saturating_sub(STARTS_OF_CLASS_KEPT);
        known.drain(..excess);
    }

    /// Forgets snapshots that are not there any more.
    pub fn keep(&mut self, is_there: impl Fn(&str) -> bool) {
        self.multiples.retain(|key, _| key.rsplit_once('/').is_some_and(|(snapshot, _)| is_there(snapshot)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_what_was_declared_until_starts_say_more() {
        let mut readiness = Readiness::default();
        let declared = readiness.predict("chat", Some(Tier::Disk), 10.0);
        assert_eq!((declared.p50_s, declared.p90_s, declared.learnt_from), (10.0, 15.0, 0));
        for multiple in [1.0, 1.1, 1.2, 3.0, 1.3, f64::NAN, -1.0] {
            readiness.learn("chat", Some(Tier::Disk), multiple);
        }
        let learnt = readiness.predict("chat", Some(Tier::Disk), 10.0);
        assert_eq!((learnt.p50_s, learnt.p90_s, learnt.learnt_from), (12.0, 30.0, 5));
        assert_eq!(readiness.predict("chat", None, 60.0).learnt_from, 0, "cold starts are others");
        (0..200).for_each(|_| readiness.learn("chat", None, 2.0));
        assert_eq!(readiness.multiples["chat/cold"].len(), STARTS_KEPT);
        readiness.keep(|name| name != "chat");
        assert!(readiness.multiples.is_empty());
    }

    #[test]
    fn a_copy_is_where_wish_and_presence_say() {
        let copy =
            |wanted, presence| StagedCopy { wanted, presence, bytes: 0, since_ms: 0, problem: String::new() }.state();
        assert_eq!(copy(Some(Tier::Disk), Presence::Absent), Some(CopyState::Wanted));
        assert_eq!(copy(Some(Tier::Memory), Presence::Disk), Some(CopyState::Verified));
        assert_eq!(copy(Some(Tier::Memory), Presence::Memory), Some(CopyState::Hot));
        assert_eq!(copy(None, Presence::Disk), Some(CopyState::Evicting));
        assert_eq!(copy(None, Presence::Absent), None);
    }
}
