//! What is wrong with a host now. Evidence raises conditions, and each has a rule that ends it.
//!
//! Lines are not faults: a burst of them is one episode. Evidence of an earlier boot, or that was seen before, changes
//! nothing (HLT-5, HLT-7).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::kernel_log::places::Place;
use crate::kernel_log::{Fault, PciAddress, Places, Record};
use crate::nvlink;
use crate::policy::{Cause, ClearRule, Effect, Policy, QUIET_MS};

/// Lines of one cause that come within this time of each other are one episode, milliseconds (NVIDIA Fleet Intelligence
/// groups bursts so).
pub const EPISODE_GAP_MS: i64 = 3 * 60_000;
/// What goes on for longer counts again, milliseconds: a link that is corrected all day long is no better than one that is
/// corrected now and then.
pub const EPISODE_MAX_MS: i64 = 3_600_000;
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
        /// The last event before it began: what was seen after that is not ended by it.
        after_seq: u64,
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
    /// Milliseconds since 1970; none where nobody knows: nothing is made worse, or ended, by a time that was not told.
    pub at_ms: Option<i64>,
    /// The boot in which it happened.
    pub boot: String,
    /// Number of it within the boot, rising.
    pub seq: u64,
    /// What.
    pub what: What,
}

impl What {
    /// What a line of the kernel log means. `driver_major`: the driver's version, by which sub-codes are read; where nobody
    /// knows it, the worse of what they can mean. None where the line is about a device that is no GPU.
    #[must_use]
    pub fn of_record(record: &Record, driver_major: Option<u32>, places: &Places) -> Option<Self> {
        let mut decoded = None;
        let mut gpu = record.device;
        let cause = match &record.fault {
            Fault::Xid { code, registers } => {
                decoded = nvlink::worst(*code, registers, driver_major);
                Cause::Xid(*code)
            }
            Fault::XidUnreadable => Cause::XidUnreadable,
            Fault::RecoveryAction { action } => Cause::Driver(*action),
            Fault::RemapPending => Cause::RemapPending,
            Fault::SXid { fatality, .. } => Cause::SXid { fatality: *fatality },
            Fault::OffTheBus => Cause::Xid(79),
            // Any driver's words, of any device.
            Fault::ResetFailed if !gpu.is_some_and(|d| matches!(places.place(d), Place::Gpu(_))) => return None,
            Fault::InitFailed | Fault::ResetFailed => Cause::InitFailed,
            Fault::GspSilent => Cause::GspSilent,
            Fault::LinksDown => Cause::LinksDown,
            Fault::UvmFatal => Cause::UvmFatal,
            // Disks and network cards report in the same way.
            Fault::PcieCorrected | Fault::PcieUncorrected { .. } | Fault::LinkLost => {
                gpu = match gpu.map(|device| places.place(device)) {
                    Some(Place::Gpu(gpu)) => Some(gpu),
                    Some(Place::Several) => None,
                    Some(Place::Unknown) | None if record.fault == Fault::LinkLost => {
                        let (cause, text) = (Cause::PciePort, record.text.clone());
                        return Some(Self::Fault { cause, gpu: None, decoded, text });
                    }
                    Some(Place::Other | Place::Unknown) | None => return None,
                };
                if record.fault == Fault::PcieCorrected { Cause::PcieCorrected } else { Cause::PcieUncorrected }
            }
        };
        Some(Self::Fault { cause, gpu, decoded, text: record.text.clone() })
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
    /// The event with which it was last seen; 0 in an earlier boot.
    pub seen_seq: u64,
    /// Episodes within the escalation's time, this one among them.
    pub episodes: u32,
    /// The reset or reboot that it needs was made; the gate is to follow.
    pub mended: bool,
    /// Of the evidence of this condition, what has no time: whether that is of one episode or of many is not known.
    #[serde(default, skip_serializing_if = "is_none_left")]
    pub undated: u32,
    /// The last evidence.
    pub text: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's form")]
fn is_none_left(count: &u32) -> bool {
    *count == 0
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
pub struct HostConditions {
    boot: String,
    /// Boots before that: their events come too late.
    past_boots: VecDeque<String>,
    seq: Option<u64>,
    #[serde(with = "as_list")]
    conditions: BTreeMap<Key, Condition>,
    /// The episodes of each cause, the newest last.
    #[serde(with = "as_list")]
    episodes: BTreeMap<Key, VecDeque<Episode>>,
}

/// Lines of one cause that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Episode {
    began_ms: i64,
    last_ms: i64,
    /// Nobody told when: the next time that is told may be its own.
    #[serde(default)]
    is_undated: bool,
    /// Something was done against it, and the gate passed.
    over: bool,
}

/// Boots that are remembered.
const BOOTS_MAX: usize = 32;

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

impl HostConditions {
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
        let mut changes = event.at_ms.map_or_else(Vec::new, |at_ms| self.tick(at_ms));
        // An event of a boot that nobody announced is the announcement: what it says must not be lost.
        if event.boot != self.boot && !self.past_boots.contains(&event.boot) {
            self.booted(&event.boot);
        }
        if event.boot != self.boot || self.seq.is_some_and(|last| event.seq <= last) {
            return changes;
        }
        self.seq = Some(event.seq);
        match &event.what {
            What::Fault { cause, gpu, decoded, text } => {
                changes.extend(self.fault(policy, (*gpu, *cause), *decoded, text, event.at_ms));
            }
            // Which GPU a condition without one is of is not known: a reset of one does not mend it, a reboot does.
            What::Reset { gpu } => self.mend(|clear, on| clear == ClearRule::AfterReset && on == Some(*gpu)),
            What::GatePassed { gpu, after_seq } => {
                let passes = |c: &Condition| {
                    let there = gpu.is_none_or(|g| c.gpu == Some(g));
                    there && c.seen_seq <= *after_seq && (c.mended || c.clear == ClearRule::AfterGate)
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
        let is_quiet = |c: &Condition| c.undated == 0 && now_ms.saturating_sub(c.seen_at_ms) >= QUIET_MS;
        self.end(|c| c.clear == ClearRule::Quiet && is_quiet(c))
    }

    fn end(&mut self, is_over: impl Fn(&Condition) -> bool) -> Vec<Change> {
        let over: Vec<Key> = self.conditions.iter().filter(|(_, c)| is_over(c)).map(|(key, _)| *key).collect();
        let mut changes = Vec::new();
        for key in over {
            let Some(condition) = self.conditions.remove(&key) else { continue };
            // After a reset that was to mend it, the next line is of another episode, however soon it comes.
            if condition.mended
                && let Some(last) = self.episodes.get_mut(&key).and_then(VecDeque::back_mut)
            {
                last.over = true;
            }
            changes.push(Change::Cleared(condition));
        }
        changes
    }

    fn booted(&mut self, boot: &str) {
        let first = self.boot.is_empty();
        let before = std::mem::replace(&mut self.boot, boot.to_owned());
        self.seq = None;
        if first {
            return;
        }
        self.past_boots.push_back(before);
        let excess = self.past_boots.len().saturating_sub(BOOTS_MAX);
        self.past_boots.drain(..excess);
        self.mend(|clear, _| matches!(clear, ClearRule::AfterReset | ClearRule::AfterReboot));
        for condition in self.conditions.values_mut() {
            condition.seen_seq = 0;
        }
    }

    fn mend(&mut self, by: impl Fn(ClearRule, Option<PciAddress>) -> bool) {
        for condition in self.conditions.values_mut() {
            condition.mended |= by(condition.clear, condition.gpu);
        }
    }

    fn fault(
        &mut self,
        policy: &Policy,
        key: Key,
        decoded: Option<Effect>,
        text: &str,
        told_ms: Option<i64>,
    ) -> Option<Change> {
        let rule = policy.rule(key.1);
        let before = self.conditions.get(&key).cloned();
        let at_ms = told_ms.or(before.as_ref().map(|b| b.seen_at_ms)).unwrap_or(0);
        let undated = before.as_ref().map_or(0, |b| b.undated).saturating_add(u32::from(told_ms.is_none()));
        let was_mended = before.as_ref().is_some_and(|b| b.mended);
        // What nothing is done about is another episode after a while: it would never end otherwise.
        let is_left_alone = matches!(rule.effect, Effect::Record | Effect::Recheck);
        let times = self.episode(key, was_mended, told_ms, is_left_alone);
        let within = |hours: u32| {
            let since = at_ms.saturating_sub(i64::from(hours) * 3_600_000);
            u32::try_from(times.iter().filter(|e| e.began_ms >= since).count()).unwrap_or(u32::MAX)
        };
        let episodes = rule.escalate.map_or(1, |e| within(e.within_h));
        // A sub-code decides where the rule leaves it open; it never makes less of a rule that says more.
        let plain = match decoded {
            Some(decoded) if rule.effect == Effect::Recheck => decoded,
            Some(decoded) => decoded.max(rule.effect),
            None => rule.effect,
        };
        let effect = match rule.escalate {
            Some(e) if episodes >= e.episodes => plain.max(e.to),
            // It may have come too often: that is not known, and what is not known is looked at.
            Some(e) if undated > 0 && episodes.saturating_add(undated) > e.episodes => plain.max(Effect::Recheck),
            _ => plain,
        };
        // What is merely recorded after all ends by silence.
        let rule_clear = if effect == Effect::Record { ClearRule::Quiet } else { rule.clear };
        let clear = cleared_at_least_by(rule_clear, effect);
        let condition = Condition {
            gpu: key.0,
            cause: key.1,
            // What it was raised to stays until its rule ends it.
            effect: before.as_ref().map_or(effect, |b| b.effect.max(effect)),
            clear: before.as_ref().map_or(clear, |b| b.clear.max_strength(clear)),
            shadow: rule.shadow,
            raised_at_ms: before.as_ref().map_or(at_ms, |b| b.raised_at_ms),
            seen_at_ms: at_ms.max(before.as_ref().map_or(at_ms, |b| b.seen_at_ms)),
            seen_seq: self.seq.unwrap_or(0),
            episodes,
            // It came again: whatever was done did not mend it.
            mended: false,
            undated,
            text: text.to_owned(),
        };
        self.conditions.insert(key, condition.clone());
        match before {
            None => Some(Change::Raised(condition)),
            Some(b) if condition.effect > b.effect || b.mended => Some(Change::Worsened(condition)),
            Some(_) => None,
        }
    }

    /// Notes an episode: the last one going on, or a new one after a silence, or after what was done against the last.
    /// What has no time belongs to the last. Returns all that are remembered.
    fn episode(&mut self, key: Key, was_mended: bool, told_ms: Option<i64>, is_left_alone: bool) -> VecDeque<Episode> {
        if self.episodes.len() >= KEYS_MAX && !self.episodes.contains_key(&key) {
            // The one that was quiet the longest.
            let oldest = self.episodes.iter().min_by_key(|(_, times)| times.back().map(|e| e.last_ms)).map(|(k, _)| *k);
            oldest.and_then(|k| self.episodes.remove(&k));
        }
        let times = self.episodes.entry(key).or_default();
        let at_ms = told_ms.or(times.back().map(|e| e.last_ms)).unwrap_or(0);
        let goes_on = |e: &Episode| {
            at_ms.saturating_sub(e.last_ms) <= EPISODE_GAP_MS
                && !(is_left_alone && at_ms.saturating_sub(e.began_ms) >= EPISODE_MAX_MS)
        };
        match times.back_mut() {
            Some(e) if !e.over && !was_mended && e.is_undated && told_ms.is_some() => {
                (e.began_ms, e.last_ms, e.is_undated) = (at_ms, at_ms, false);
            }
            Some(e) if !e.over && !was_mended && goes_on(e) => e.last_ms = at_ms.max(e.last_ms),
            _ => {
                times.push_back(Episode {
                    began_ms: at_ms,
                    last_ms: at_ms,
                    is_undated: told_ms.is_none(),
                    over: false,
                });
            }
        }
        let forgotten = |e: &Episode| at_ms.saturating_sub(e.last_ms) > FORGOTTEN_MS;
        while times.len() > EPISODES_MAX || times.front().is_some_and(forgotten) {
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
