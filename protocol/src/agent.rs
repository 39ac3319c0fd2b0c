//! The wire between the agent on a GPU host and the control plane: `POST /v1/agents/register`,
//! `POST /v1/agents/{instance}/report`, `GET /v1/agents/{instance}/desired`.

use std::collections::BTreeMap;

use fleet::{NodeState, Remedy};
use health::Verdict;
use health::gate::Scope;
use health::policy::Effect;
use serde::{Deserialize, Serialize};

use crate::staging::StagingOrder;
use crate::starts::StartOrder;

/// The protocol that this version speaks. 1: one version number for all that is desired. 2: health's order has its own.
/// 3: hosts bring up what claims start from.
pub const PROTOCOL: u32 = 3;
/// The oldest that the control plane still understands.
pub const OLDEST_PROTOCOL: u32 = 1;

fn first_protocol() -> u32 {
    1
}

/// What an agent says when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The cloud's name for the host.
    pub instance: String,
    /// Changes with each boot of the host.
    pub boot: String,
    /// GPUs that it sees.
    pub gpus: u32,
    /// The protocol that it speaks.
    #[serde(default = "first_protocol")]
    pub protocol: u32,
}

/// What an agent is told, after registering and after each report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Registered {
    /// Its node, `n-17`.
    pub node: String,
    /// Seconds between heartbeats.
    pub heartbeat_s: u32,
    /// State of the node.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub state: NodeState,
    /// The host's own token, where it is new: from now on it sends this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Number of the last report of this boot that counted; the next has a higher one.
    pub report_seq: u64,
}

/// What a host is to do. One that an agent does not know is an error to it: it does nothing, and says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "work")]
pub enum Work {
    /// Run the boot gate and report it.
    Gate {
        /// `short` after diagnostics, on a host that passed the whole gate in this boot.
        #[serde(default)]
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        scope: Scope,
        /// What healthy hosts of its kind have been measured at, by number, where enough have.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        learned: BTreeMap<String, f64>,
    },
    /// Watch, and let workloads run.
    Serve,
    /// Watch; workloads end, and no new ones come.
    Drain,
    /// Run diagnostics, and stop them when this changes.
    Diagnose {
        /// A level, `3`, or tests with commas between them.
        tests: String,
    },
    /// Reset what the last report named, and run the gate again.
    Reset,
    /// Reboot, and run the gate again.
    Reboot,
    /// Keep all evidence; no workloads.
    Hold,
    /// The host is ended.
    End,
}

impl Work {
    /// The word that says it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gate { .. } => "gate",
            Self::Serve => "serve",
            Self::Drain => "drain",
            Self::Diagnose { .. } => "diagnose",
            Self::Reset => "reset",
            Self::Reboot => "reboot",
            Self::Hold => "hold",
            Self::End => "end",
        }
    }

    /// Whether it ends with a gate's answer.
    #[must_use]
    pub fn ends_with_gate(&self) -> bool {
        matches!(self, Self::Gate { .. } | Self::Reset | Self::Reboot)
    }
}

/// The desired state of a host, by subsystem of its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Desired {
    /// Its node, `n-17`.
    pub node: String,
    /// State of the node.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub state: NodeState,
    /// What the health subsystem is to do.
    pub health: HealthOrder,
    /// What the snapshot subsystem is to have on the host; none: it leaves all as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<StagingOrder>,
    /// What it is to have brought up, all of it: for each claim on it that wants that. None: it leaves all as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts: Option<Vec<StartOrder>>,
    /// Rises with each change of anything here; send it back as `known` to hear of the next change.
    pub version: i64,
}

/// What the health subsystem of an agent is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HealthOrder {
    /// The work.
    #[serde(flatten)]
    pub work: Work,
    /// Another number is another order: work is done once for each. Other subsystems' orders do not change it.
    pub version: i64,
}

/// Which checks a report is about, with what only they tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case", tag = "checks")]
pub enum Checks {
    /// The boot gate.
    Gate(Gate),
    /// Passive watching while the node is in use.
    Passive {
        /// What is wrong now, all of it.
        #[serde(default)]
        conditions: Vec<Condition>,
    },
    /// NVIDIA's diagnostics.
    Diagnosis(Diagnosis),
}

impl Checks {
    /// The word for these checks.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gate(_) => "gate",
            Self::Passive { .. } => "passive",
            Self::Diagnosis(_) => "diagnosis",
        }
    }
}

/// A report of the health subsystem of an agent. Another subsystem reports by a path of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct HealthReport {
    /// The boot that it is about.
    pub boot: String,
    /// Which checks.
    #[serde(flatten)]
    pub checks: Checks,
    /// What they say. Only `pass` proves health.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub verdict: Verdict,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
    /// Number of the report within the boot, rising: one that comes twice counts once.
    #[serde(default)]
    pub seq: Option<u64>,
}

/// What a gate says besides its verdict.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Gate {
    /// What would mend it.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>))]
    pub mend: Option<Remedy>,
    /// The first check that failed, `memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_check: Option<String>,
    /// What was measured, the slowest GPU of each number; empty for a short gate.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, f64>,
    /// `version` of the order that asked for it. One that was asked for by another is not noted.
    #[serde(default)]
    pub version: Option<i64>,
    /// Who the host is.
    #[serde(flatten)]
    pub identity: Identity,
    /// Every number with its limits, kept as it is.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub evidence: serde_json::Value,
}

/// Who a host is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Identity {
    /// Serial numbers of the GPUs, in their order, where each tells its own.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Version of the driver.
    #[serde(default)]
    pub driver: Option<String>,
    /// Image that the host was started from.
    #[serde(default)]
    pub image: Option<String>,
    /// What the host hangs together with others by: a rack, an NVLink domain over several hosts, a placement group. Hosts
    /// of one are not tested at the same time.
    #[serde(default)]
    pub domain: Option<String>,
}

/// What diagnostics ended with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Diagnosis {
    /// What was run: a level, `3`, or tests with commas between them.
    pub tests: String,
    /// What they ask for: `nothing`, `record`, `try-again`, `set-up`, `recheck`, `reset`, `replace`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub remedy: Remedy,
    /// NVIDIA's id of the worst error that was found.
    #[serde(default)]
    pub error: Option<i64>,
    /// Seconds from the wish to stop them to their end, where they were stopped.
    #[serde(default)]
    pub yield_s: Option<f64>,
    /// Serial numbers of the GPUs, in their order, where each tells its own.
    #[serde(default)]
    pub serials: Vec<String>,
    /// What was found and not measured, kept as it is.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Object))]
    pub evidence: serde_json::Value,
}

/// Something that is wrong with a host until its rule ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Cause, `xid:63`.
    pub cause: String,
    /// GPU by its PCI address; none where it is the host's.
    #[serde(default)]
    pub gpu: Option<String>,
    /// What the policy says becomes of the node: `record`, `recheck`, `reset-at-idle`, `drain-reset`, `drain-reboot`,
    /// `quarantine`.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub effect: Effect,
    /// Only shown.
    #[serde(default)]
    pub shadow: bool,
    /// When it was raised, milliseconds since 1970.
    pub raised_at_ms: i64,
    /// The last evidence.
    #[serde(default)]
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not known is refused where it would steer something.
    #[test]
    fn unknown_words_are_no_orders() {
        let desired = |work: &str| {
            format!("{{\"node\":\"n-1\",\"state\":\"repairing\",\"health\":{{{work},\"version\":1}},\"version\":4}}")
        };
        let read = |work: &str| serde_json::from_str::<Desired>(&desired(work));
        assert_eq!(read("\"work\":\"reboot\"").expect("known").health.work, Work::Reboot);
        assert!(read("\"work\":\"reflash\"").is_err(), "an order that nobody knows is no reset");
        assert!(read("\"work\":\"diagnose\"").is_err(), "tests are named");
        let report = |checks: &str| format!("{{\"boot\":\"b\",\"verdict\":\"pass\",{checks}}}");
        let read = |checks: &str| serde_json::from_str::<HealthReport>(&report(checks));
        assert!(matches!(read("\"checks\":\"passive\"").expect("known").checks, Checks::Passive { .. }));
        assert!(read("\"checks\":\"another\"").is_err());
        let asks = |word: &str| read(&format!("\"checks\":\"gate\",\"mend\":\"{word}\""));
        assert!(asks("reset").is_ok() && asks("melt").is_err());
    }

    #[test]
    fn what_is_written_reads_again() {
        let identity = Identity { serials: vec!["s".into()], driver: Some("580.1".into()), ..Identity::default() };
        let rates = BTreeMap::from([("read_gbps".to_owned(), 4000.0)]);
        let gate = Gate { mend: Some(Remedy::Reset), rates, version: Some(3), identity, ..Gate::default() };
        let report = HealthReport {
            boot: "b".into(),
            checks: Checks::Gate(gate),
            verdict: Verdict::Fail,
            reason: "why".into(),
            seq: Some(7),
        };
        let text = serde_json::to_string(&report).expect("JSON");
        assert_eq!(serde_json::from_str::<HealthReport>(&text).expect("reads"), report, "{text}");
    }
}
