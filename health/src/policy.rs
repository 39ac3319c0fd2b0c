//! What is done about each cause: a table, not code. NVIDIA's catalogue is the start; [`Policy::default`] lays our own
//! rules over it, and an operator's file over those. Each layer shows as a difference.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use fleet::Remedy;
use serde::{Deserialize, Serialize};

use crate::kernel_log::Fatality;

/// What is wrong, whichever GPU it is. Written `xid:63`, `driver:2`, `remap-pending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Cause {
    /// An error of the driver, by its code.
    Xid(u32),
    /// An error of the driver in a line that does not read.
    XidUnreadable,
    /// An error of an NVSwitch.
    SXid {
        /// Whether the switch says that it is fatal.
        fatality: Fatality,
    },
    /// The driver's own verdict (Xid 154, NVML field 230): 1 reset, 2 reboot, …
    Driver(u32),
    /// PCIe reports corrected errors.
    PcieCorrected,
    /// PCIe reports an error that was not corrected.
    PcieUncorrected,
    /// A port cut off what is behind it, and nobody says whether that was a GPU.
    PciePort,
    /// The driver cannot start a GPU.
    InitFailed,
    /// A GPU's system processor gives no sign of life.
    GspSilent,
    /// Links of NVLink did not come up again.
    LinksDown,
    /// The driver of unified memory has given up.
    UvmFatal,
    /// A row is to be remapped at the next reset.
    RemapPending,
    /// A row could not be remapped.
    RemapFailed,
    /// More errors in SRAM than NVIDIA allows.
    SramThreshold,
    /// It is too hot, or slowed down by its hardware.
    Thermal,
    /// Lines of the kernel log were lost: what they said is not known.
    LogGap,
    /// The kernel log cannot be read.
    LogUnreadable,
    /// A probe did not come back.
    ProbeStuck,
}

const PLAIN: [(Cause, &str); 18] = [
    (Cause::XidUnreadable, "xid-unreadable"),
    (Cause::SXid { fatality: Fatality::Fatal }, "sxid-fatal"),
    (Cause::SXid { fatality: Fatality::NonFatal }, "sxid-non-fatal"),
    (Cause::SXid { fatality: Fatality::Unknown }, "sxid-unknown"),
    (Cause::PcieCorrected, "pcie-corrected"),
    (Cause::PcieUncorrected, "pcie-uncorrected"),
    (Cause::PciePort, "pcie-port"),
    (Cause::InitFailed, "init-failed"),
    (Cause::GspSilent, "gsp-silent"),
    (Cause::LinksDown, "links-down"),
    (Cause::UvmFatal, "uvm-fatal"),
    (Cause::RemapPending, "remap-pending"),
    (Cause::RemapFailed, "remap-failed"),
    (Cause::SramThreshold, "sram-threshold"),
    (Cause::Thermal, "thermal"),
    (Cause::LogGap, "log-gap"),
    (Cause::LogUnreadable, "log-unreadable"),
    (Cause::ProbeStuck, "probe-stuck"),
];

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(code) => write!(f, "xid:{code}"),
            Self::Driver(action) => write!(f, "driver:{action}"),
            plain => f.write_str(PLAIN.iter().find(|(cause, _)| cause == plain).map_or("", |(_, name)| name)),
        }
    }
}

impl FromStr for Cause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<u32>().ok();
        let read = match text.split_once(':') {
            Some(("xid", code)) => number(code).map(Self::Xid),
            Some(("driver", action)) => number(action).map(Self::Driver),
            _ => PLAIN.iter().find(|(_, name)| *name == text).map(|(cause, _)| *cause),
        };
        read.ok_or_else(|| {
            let names: Vec<&str> = PLAIN.iter().map(|(_, name)| *name).collect();
            format!("'{text}' is no cause: use xid:CODE, driver:NUMBER, {}", names.join(", "))
        })
    }
}

impl From<Cause> for String {
    fn from(cause: Cause) -> Self {
        cause.to_string()
    }
}

impl TryFrom<String> for Cause {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What becomes of the node, the mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing; the application's own affair, or noise.
    Record,
    /// Serves on; the gate runs before the next claim.
    Recheck,
    /// Serves on; reset before the next claim.
    ResetAtIdle,
    /// Takes no more claims; reset when it is empty.
    DrainReset,
    /// Takes no more claims; rebooted when it is empty.
    DrainReboot,
    /// Out at once, with the evidence; claims are told.
    Quarantine,
}

impl Effect {
    /// What is done about it.
    #[must_use]
    pub fn remedy(self) -> Remedy {
        match self {
            Self::Record => Remedy::Record,
            Self::Recheck => Remedy::Recheck,
            Self::ResetAtIdle | Self::DrainReset => Remedy::Reset,
            Self::DrainReboot => Remedy::Reboot,
            Self::Quarantine => Remedy::Replace,
        }
    }

    /// Whether claims that are there have to go, within a time of grace.
    #[must_use]
    pub fn drains(self) -> bool {
        matches!(self, Self::DrainReset | Self::DrainReboot)
    }

    /// Whether a node with it may be claimed.
    #[must_use]
    pub fn is_claimable(self) -> bool {
        self == Self::Record
    }

    /// The word used in files and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Recheck => "recheck",
            Self::ResetAtIdle => "reset-at-idle",
            Self::DrainReset => "drain-reset",
            Self::DrainReboot => "drain-reboot",
            Self::Quarantine => "quarantine",
        }
    }
}

/// What ends a condition. Every condition has one: none stays for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClearRule {
    /// A reset of the GPU, or a reboot, and the gate after it.
    AfterReset,
    /// A reboot, and the gate after it.
    AfterReboot,
    /// The gate passes.
    AfterGate,
    /// It is quiet for ten minutes.
    Quiet,
    /// The GPU is another.
    AfterReplace,
}

/// A quiet time, milliseconds.
pub const QUIET_MS: i64 = 10 * 60_000;

/// More than so often is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escalation {
    /// Episodes on one GPU,
    pub episodes: u32,
    /// within so many hours,
    pub within_h: u32,
    /// have this effect.
    pub to: Effect,
}

/// What is done about a cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The cause.
    pub on: Cause,
    /// What becomes of the node.
    pub effect: Effect,
    /// What ends it.
    pub clear: ClearRule,
    /// When it comes again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalate: Option<Escalation>,
    /// It is only shown what would be done.
    #[serde(default)]
    pub shadow: bool,
    /// Why, with the source.
    #[serde(default)]
    pub why: String,
}

/// An operator's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Rule>,
}

/// A policy that does not read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The text.
    #[error("the policy does not read")]
    Toml(#[from] toml::de::Error),
    /// A cause has two rules.
    #[error("'{0}' has two rules; which of them holds?")]
    Twice(Cause),
    /// A rule that would take a GPU out for ever, or pass over what it takes out.
    #[error("'{on}': {what}")]
    Senseless {
        /// The cause.
        on: Cause,
        /// What is wrong.
        what: &'static str,
    },
}

/// Rules by cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: BTreeMap<Cause, Rule>,
}

impl Default for Policy {
    fn default() -> Self {
        let own: Vec<Rule> = read(include_str!("../data/policy.toml")).unwrap_or_default();
        Self::catalogue().with(own)
    }
}

fn read(text: &str) -> Result<Vec<Rule>, PolicyError> {
    let rules = toml::from_str::<File>(text)?.rule;
    for (i, rule) in rules.iter().enumerate() {
        if rules[..i].iter().any(|r| r.on == rule.on) {
            return Err(PolicyError::Twice(rule.on));
        }
        let senseless = |what| Err(PolicyError::Senseless { on: rule.on, what });
        if rule.effect != Effect::Record && rule.clear == ClearRule::Quiet {
            return senseless(
                "silence proves no health: clear it after-gate, after-reset, after-reboot or after-replace",
            );
        }
        if rule.escalate.is_some_and(|e| e.episodes < 2 || e.within_h == 0 || e.to <= rule.effect) {
            return senseless("escalation needs two episodes or more, an hour or more, and a worse effect");
        }
    }
    Ok(rules)
}

impl Policy {
    /// What NVIDIA's catalogue of Xid codes says, and nothing else.
    #[must_use]
    pub fn catalogue() -> Self {
        let row = |line: &str| {
            let mut cells = line.split(',');
            let (code, name, immediate) = (cells.next()?.parse().ok()?, cells.next()?, cells.next()?);
            let (effect, clear) = of_catalogue(immediate);
            let why = format!("NVIDIA: {name}, {immediate}");
            Some(Rule { on: Cause::Xid(code), effect, clear, escalate: None, shadow: false, why })
        };
        let rules = include_str!("../data/xid.csv").lines().filter_map(row);
        Self { rules: rules.map(|r| (r.on, r)).collect() }
    }

    fn with(mut self, rules: Vec<Rule>) -> Self {
        self.rules.extend(rules.into_iter().map(|r| (r.on, r)));
        self
    }

    /// With an operator's rules in place of those of the same causes.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn overridden(self, text: &str) -> Result<Self, PolicyError> {
        Ok(self.with(read(text)?))
    }

    /// The rule of a cause. One that nobody wrote a rule for is unknown, and unknown is never healthy: the gate decides.
    #[must_use]
    pub fn rule(&self, cause: Cause) -> Rule {
        let unknown = || Rule {
            on: cause,
            effect: Effect::Recheck,
            clear: ClearRule::AfterGate,
            escalate: None,
            shadow: false,
            why: "not in the table".into(),
        };
        self.rules.get(&cause).cloned().unwrap_or_else(unknown)
    }

    /// Rules in which it differs from another: `(the other's, ours)`.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(Rule, Rule)> {
        let causes = self.rules.keys().chain(other.rules.keys().filter(|c| !self.rules.contains_key(c)));
        let pair = |cause: &Cause| (other.rule(*cause), self.rule(*cause));
        let same = |(a, b): &(Rule, Rule)| {
            (a.effect, a.clear, a.escalate, a.shadow) == (b.effect, b.clear, b.escalate, b.shadow)
        };
        causes.map(pair).filter(|p| !same(p)).collect()
    }

    /// All rules by cause.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.values()
    }
}

/// NVIDIA's words for what is to be done at once.
fn of_catalogue(immediate: &str) -> (Effect, ClearRule) {
    match immediate {
        "IGNORE" | "RESTART_APP" | "WORKFLOW_XID_45" => (Effect::Record, ClearRule::Quiet),
        "RESET_GPU" | "WORKFLOW_XID_48" | "WORKFLOW_NVLINK_ERR" => (Effect::DrainReset, ClearRule::AfterReset),
        "RESTART_BM" | "RESTART_VM" => (Effect::DrainReboot, ClearRule::AfterReboot),
        "CHECK_MECHANICALS" => (Effect::Quarantine, ClearRule::AfterReplace),
        // Xid 154 is read by its number (`driver:`); a line of it that cannot be read says something, and not what. Ask
        // somebody, update something, decode: the gate says whether it works.
        _ => (Effect::Recheck, ClearRule::AfterGate),
    }
}
