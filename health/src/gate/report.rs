//! What the gate says.

use fleet::Remedy;
use serde::{Deserialize, Serialize};

use super::evidence::Scope;
use crate::verdict::Verdict;

/// What is checked, in the order in which it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The driver's device files.
    DeviceFiles,
    /// As many GPUs on the bus and in NVML as were bought.
    Census,
    /// The GPUs are who they should be.
    Identity,
    /// What the kernel log said before.
    KernelLog,
    /// Errors that the GPU remembers.
    ErrorState,
    /// Temperature, power, throttling.
    Thermal,
    /// NVLink and fabric.
    Links,
    /// A context, and a kernel that answers.
    Context,
    /// Memory holds what is written.
    Memory,
    /// Memory is as fast as it should be.
    MemoryBandwidth,
    /// Copies to and from the host.
    HostCopies,
    /// Products are made as fast as they should.
    Products,
    /// Products are the same to the bit, on all GPUs.
    Repeatability,
    /// Copies between GPUs.
    PeerCopies,
    /// Log and errors again, after all the work.
    Afterwards,
}

impl Check {
    /// Every check; each is required by the whole gate.
    pub const ALL: [Self; 15] = [
        Self::DeviceFiles,
        Self::Census,
        Self::Identity,
        Self::KernelLog,
        Self::ErrorState,
        Self::Thermal,
        Self::Links,
        Self::Context,
        Self::Memory,
        Self::MemoryBandwidth,
        Self::HostCopies,
        Self::Products,
        Self::Repeatability,
        Self::PeerCopies,
        Self::Afterwards,
    ];

    /// Whether each GPU has its own answer.
    #[must_use]
    pub fn is_per_gpu(self) -> bool {
        !matches!(self, Self::DeviceFiles | Self::Census | Self::KernelLog | Self::PeerCopies)
    }

    /// Whether a gate of this scope requires it.
    #[must_use]
    pub fn is_in(self, scope: Scope) -> bool {
        let works_the_gpu = matches!(
            self,
            Self::Memory
                | Self::MemoryBandwidth
                | Self::HostCopies
                | Self::Products
                | Self::Repeatability
                | Self::PeerCopies
        );
        scope == Scope::Whole || !works_the_gpu
    }

    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::DeviceFiles => "device-files",
            Self::Census => "census",
            Self::Identity => "identity",
            Self::KernelLog => "kernel-log",
            Self::ErrorState => "error-state",
            Self::Thermal => "thermal",
            Self::Links => "links",
            Self::Context => "context",
            Self::Memory => "memory",
            Self::MemoryBandwidth => "memory-bandwidth",
            Self::HostCopies => "host-copies",
            Self::Products => "products",
            Self::Repeatability => "repeatability",
            Self::PeerCopies => "peer-copies",
            Self::Afterwards => "afterwards",
        }
    }
}

/// Where a number may lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Below it the check fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_below: Option<f64>,
    /// Below it the GPU is degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_below: Option<f64>,
    /// Above it the check fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fail_above: Option<f64>,
    /// Above it the GPU is degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warn_above: Option<f64>,
}

impl Bound {
    /// What a number proves. One that is none fails.
    #[must_use]
    pub fn verdict(&self, value: f64) -> Verdict {
        let below = |limit: Option<f64>| limit.is_some_and(|l| value < l);
        let above = |limit: Option<f64>| limit.is_some_and(|l| value > l);
        if !value.is_finite() || below(self.fail_below) || above(self.fail_above) {
            Verdict::Fail
        } else if below(self.warn_below) || above(self.warn_above) {
            Verdict::Degraded
        } else {
            Verdict::Pass
        }
    }
}

/// A number that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Number {
    /// Name, its unit last.
    pub name: String,
    /// Value.
    pub value: f64,
    /// Where it may lie; none where it is only written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<Bound>,
}

impl Number {
    pub(super) fn of(name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), value, bound: None }
    }

    pub(super) fn within(name: &str, value: f64, bound: Bound) -> Self {
        Self { name: name.to_owned(), value, bound: Some(bound) }
    }
}

/// One check on one GPU, or on the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which check.
    pub check: Check,
    /// GPU by NVML's number; none for the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<u32>,
    /// What it says.
    pub verdict: Verdict,
    /// What would mend it.
    pub mend: Remedy,
    /// What was found, for people. Empty where it passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub numbers: Vec<Number>,
}

impl Outcome {
    pub(super) fn pass(check: Check, gpu: Option<u32>) -> Self {
        Self { check, gpu, verdict: Verdict::Pass, mend: Remedy::Nothing, findings: Vec::new(), numbers: Vec::new() }
    }

    /// Something that is not as it should be.
    pub(super) fn find(&mut self, verdict: Verdict, mend: Remedy, what: impl Into<String>) {
        self.verdict = self.verdict.max(verdict);
        self.mend = self.mend.max(mend);
        self.findings.push(what.into());
    }

    /// A number with its limits.
    pub(super) fn measure(&mut self, name: &str, value: f64, bound: Bound, mend: Remedy) {
        let verdict = bound.verdict(value);
        if verdict != Verdict::Pass {
            self.find(verdict, mend, said(name, value, &bound));
        }
        self.numbers.push(Number::within(name, value, bound));
    }
}

fn said(name: &str, value: f64, bound: &Bound) -> String {
    let limits = [
        ("below", bound.fail_below.filter(|l| value < *l).or(bound.warn_below.filter(|l| value < *l))),
        ("above", bound.fail_above.filter(|l| value > *l).or(bound.warn_above.filter(|l| value > *l))),
    ];
    match limits.into_iter().find_map(|(side, limit)| Some((side, limit?))) {
        Some((side, limit)) => format!("{name} {} is {side} {}", short(value), short(limit)),
        None => format!("{name} is {value}"),
    }
}

/// A number as people read it.
pub(super) fn short(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// The whole gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// All checks together.
    pub verdict: Verdict,
    /// What would mend it.
    pub mend: Remedy,
    /// Each check on each GPU, in order.
    pub outcomes: Vec<Outcome>,
    /// Time that it took, seconds.
    pub seconds: f64,
}

impl Report {
    /// The first check that failed.
    #[must_use]
    pub fn failed_check(&self) -> Option<Check> {
        self.outcomes.iter().find(|o| o.verdict == Verdict::Fail).map(|o| o.check)
    }

    /// What is not as it should be, a line each: `GPU 3: memory: …`.
    #[must_use]
    pub fn findings(&self) -> Vec<String> {
        let of = |o: &Outcome| {
            let place = o.gpu.map_or_else(String::new, |g| format!("GPU {g}: "));
            let name = o.check.name();
            o.findings.iter().map(move |f| format!("{place}{name}: {f}")).collect::<Vec<_>>()
        };
        self.outcomes.iter().flat_map(of).collect()
    }
}
