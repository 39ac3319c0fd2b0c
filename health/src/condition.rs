//! What is wrong with a host now. Evidence raises conditions, and each has a rule that ends it.
//!
//! Lines are not faults: a burst of them is one episode. Evidence of an earlier boot, or that was seen before, changes
//! nothing (HLT-5, HLT-7).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::kernel_log::{Fault, PciAddress, Record};
use crate::nvlink;
use crate::policy::{Cause, ClearRule, Effect, Policy, QUIET_MS};

/// Lines of one cause that come within this time of each other are one episode, milliseconds (NVIDIA Fleet Intelligence
/// groups bursts so).
pub const EPISODE_GAP_MS: i64 = 3 * 60_000;
/// Episodes that are remembered of one cause on one GPU.
const EPISODES_MAX: usize = 64;
/// Causes and GPUs that are remembered.
const KEYS_MAX: usize = 4096;
/// Episodes are forgotten after this time, milliseconds.
const FORGOTTEN_MS: i64 = 60 * 86_400_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Something is wrong. `decoded`: what its sub-code asks for, in place of the rule's effect.
    Fault {
        /// Which.
        cause: Cause,
        /// GPU; none where it is the host's, or not told.
        gpu: Option<PciAddress>,
        /// What the sub-code asks for.
        decoded: Option<Effect>,
        /// The evidence.
        text: String,
    },
    /// The GPU was reset.
    Reset {
        /// Which.
        gpu: PciAddress,
    },
    /// The host started, in the boot of the event.
    Booted,
    /// The gate passed, every check of it measured; on one GPU, or on all.
    GatePassed {
        /// Which.
        gpu: Option<PciAddress>,
    },
    /// The GPU at that place is another one; without a place, the whole host is.
    Replaced {
        /// Where.
        gpu: Option<PciAddress>,
    },
}

/// What happened, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// The boot in which it happened.
    pub boot: String,
    /// Number of it within the boot, rising.
    pub seq: u64,
    /// What.
    pub what: What,
}

impl What {
    /// What a line of the kernel log means, with the driver's major version for its sub-codes.
    #[must_use]
    pub fn of_record(record: &Record, driver_major: u32) -> Self {
        let mut decoded = None;
        let cause = match &record.fault {
            Fault::Xid { code, registers } => {
                decoded = nvlink::decode(*code, registers, driver_major).and_then(|d| d.effect);
                Cause::Xid(*code)
            }
            Fault::RecoveryAction { action } => Cause::Driver(*action),
            Fault::SXid { fatal, .. } => Cause::SXid { fatal: *fatal },
            Fault::OffTheBus => Cause::Xid(79),
            Fault::InitFailed => Cause::InitFailed,
            Fault::PcieCorrected => Cause::PcieCorrected,
            Fault::PcieUncorrected { .. } => Cause::PcieUncorrected,
        };
        Self::Fault { cause, gpu: record.device, decoded, text: record.text.clone() }
    }
}

/// Which condition.
type Key = (Option<PciAddress>, Cause);

/// Something that is wrong until its rule ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// GPU.
    pub gpu: Option<PciAddress>,
    /// Cause.
    pub cause: Cause,
    /// What becomes of the node.
    pub effect: Effect,
    /// What ends it.
    pub clear: ClearRule,
    /// Only shown.
    pub shadow: bool,
    /// When it was raised, milliseconds since 1970.
    pub raised_at_ms: i64,
    /// When it was last seen, milliseconds since 1970.
    pub seen_at_ms: i64,
    /// Episodes within the escalation's time, this one among them.
    pub episodes: u32,
    /// The reset or reboot that it needs was made; the gate is to follow.
    pub mended: bool,
    /// The last evidence.
    pub text: String,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Raised, or raised again.
    Raised(Condition),
    /// It came too often, or asks for more than before.
    Worsened(Condition),
    /// Ended by its rule.
    Cleared(Condition),
}

/// What a host may be used for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Whether it may be claimed, as far as conditions go: the gate's proof is needed besides.
    pub claimable: bool,
    /// The worst that a condition asks for.
    pub effect: Option<Effect>,
}

/// All that is known of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    boot: String,
    seq: Option<u64>,
    #[serde(with = "as_list")]
    conditions: BTreeMap<Key, Condition>,
    /// When the episodes of each cause began, the newest last, milliseconds since 1970.
    #[serde(with = "as_list")]
    episodes: BTreeMap<Key, VecDeque<i64>>,
}

/// JSON has only text as keys.
mod as_list {
    use std::collections::BTreeMap;

    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: DeserializeOwned + Ord,
        V: DeserializeOwned,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

impl Host {
    /// What is wrong now.
    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.values()
    }

    /// What it may be used for.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let effect = self.conditions.values().filter(|c| !c.shadow).map(|c| c.effect).max();
        Standing { claimable: effect.is_none_or(Effect::is_claimable), effect }
    }

    /// Takes an event in. One that was seen before, or is of another boot, changes nothing.
    pub fn observe(&mut self, policy: &Policy, event: &Event) -> Vec<Change> {
        let mut changes = self.tick(event.at_ms);
        if event.what == What::Booted {
            if self.boot != event.boot {
                self.boot.clone_from(&event.boot);
                self.seq = Some(event.seq);
                self.mend(|clear, _| matches!(clear, ClearRule::AfterReset | ClearRule::AfterReboot));
            }
            return changes;
        }
        if self.boot.is_empty() {
            self.boot.clone_from(&event.boot);
        }
        if event.boot != self.boot || self.seq.is_some_and(|last| event.seq <= last) {
            return changes;
        }
        self.seq = Some(event.seq);
        match &event.what {
            What::Fault { cause, gpu, decoded, text } => {
                changes.extend(self.fault(policy, (*gpu, *cause), *decoded, text, event.at_ms));
            }
            What::Reset { gpu } => {
                self.mend(|clear, on| clear == ClearRule::AfterReset && on.is_none_or(|g| g == *gpu))
            }
            What::GatePassed { gpu } => {
                let passes = |c: &Condition| {
                    let there = gpu.is_none_or(|g| c.gpu == Some(g));
                    there && (c.mended || c.clear == ClearRule::AfterGate)
                };
                changes.extend(self.end(passes));
            }
            What::Replaced { gpu } => {
                self.episodes.retain(|(on, _), _| gpu.is_some() && on != gpu);
                changes.extend(self.end(|c| gpu.is_none() || c.gpu == *gpu));
            }
            What::Booted => {}
        }
        changes
    }

    /// Ends what has been quiet for long enough.
    pub fn tick(&mut self, now_ms: i64) -> Vec<Change> {
        self.end(|c| c.clear == ClearRule::Quiet && now_ms.saturating_sub(c.seen_at_ms) >= QUIET_MS)
    }

    fn end(&mut self, is_over: impl Fn(&Condition) -> bool) -> Vec<Change> {
        let over: Vec<Key> = self.conditions.iter().filter(|(_, c)| is_over(c)).map(|(key, _)| *key).collect();
        over.iter().filter_map(|key| self.conditions.remove(key)).map(Change::Cleared).collect()
    }

    fn mend(&mut self, by: impl Fn(ClearRule, Option<PciAddress>) -> bool) {
        for condition in self.conditions.values_mut() {
            condition.mended |= by(condition.clear, condition.gpu);
        }
    }

    fn fault(&mut self, policy: &Policy, key: Key, decoded: Option<Effect>, text: &str, at_ms: i64) -> Option<Change> {
        let rule = policy.rule(key.1);
        let seen_at_ms = self.conditions.get(&key).map(|c| c.seen_at_ms);
        let times = self.episode(key, seen_at_ms, at_ms);
        let within = |hours: u32| {
            let since = at_ms.saturating_sub(i64::from(hours) * 3_600_000);
            u32::try_from(times.iter().filter(|at| **at >= since).count()).unwrap_or(u32::MAX)
        };
        let episodes = rule.escalate.map_or(1, |e| within(e.within_h));
        let plain = decoded.unwrap_or(rule.effect);
        let (effect, clear) = match rule.escalate {
            Some(e) if episodes >= e.episodes => (plain.max(e.to), cleared_at_least_by(rule.clear, e.to)),
            _ => (plain, cleared_at_least_by(rule.clear, plain)),
        };
        let before = self.conditions.get(&key).cloned();
        let condition = Condition {
            gpu: key.0,
            cause: key.1,
            // What it was raised to stays until its rule ends it.
            effect: before.as_ref().map_or(effect, |b| b.effect.max(effect)),
            clear: before.as_ref().map_or(clear, |b| b.clear.max_strength(clear)),
            shadow: rule.shadow,
            raised_at_ms: before.as_ref().map_or(at_ms, |b| b.raised_at_ms),
            seen_at_ms: at_ms.max(before.as_ref().map_or(at_ms, |b| b.seen_at_ms)),
            episodes,
            // It came again: whatever was done did not mend it.
            mended: false,
            text: text.to_owned(),
        };
        self.conditions.insert(key, condition.clone());
        match before {
            None => Some(Change::Raised(condition)),
            Some(b) if condition.effect > b.effect || b.mended => Some(Change::Worsened(condition)),
            Some(_) => None,
        }
    }

    /// Notes when an episode began, unless it is the last one going on. Returns all that are remembered.
    fn episode(&mut self, key: Key, seen_at_ms: Option<i64>, at_ms: i64) -> VecDeque<i64> {
        if self.episodes.len() >= KEYS_MAX && !self.episodes.contains_key(&key) {
            // The one that was quiet the longest.
            let oldest = self.episodes.iter().min_by_key(|(_, times)| times.back().copied()).map(|(k, _)| *k);
            oldest.and_then(|k| self.episodes.remove(&k));
        }
        let times = self.episodes.entry(key).or_default();
        let last = seen_at_ms.or(times.back().copied());
        if last.is_none_or(|last| at_ms.saturating_sub(last) > EPISODE_GAP_MS) {
            times.push_back(at_ms);
        }
        while times.len() > EPISODES_MAX || times.front().is_some_and(|t| at_ms.saturating_sub(*t) > FORGOTTEN_MS) {
            times.pop_front();
        }
        times.clone()
    }
}

/// Silence does not end what asks for more than to be written down; a quarantine ends with another GPU.
fn cleared_at_least_by(clear: ClearRule, effect: Effect) -> ClearRule {
    let least = match effect {
        Effect::Record => ClearRule::Quiet,
        Effect::Recheck => ClearRule::AfterGate,
        Effect::ResetAtIdle | Effect::DrainReset => ClearRule::AfterReset,
        Effect::DrainReboot => ClearRule::AfterReboot,
        Effect::Quarantine => ClearRule::AfterReplace,
    };
    clear.max_strength(least)
}

impl ClearRule {
    /// The one that asks for more.
    #[must_use]
    pub fn max_strength(self, other: Self) -> Self {
        let strength = |rule: Self| match rule {
            Self::Quiet => 0,
            Self::AfterGate => 1,
            Self::AfterReset => 2,
            Self::AfterReboot => 3,
            Self::AfterReplace => 4,
        };
        if strength(self) >= strength(other) { self } else { other }
    }
}
