//! What agents report, and what becomes of it: a node's state, and what is known of its GPUs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use fleet::NodeState;
use fleet::book::{Book, Care, Gate, Identity, Node, NodeError, Pending};
use health::dcgm::Action;
use health::policy::Effect;
use health::weekly::Run;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::problem::{ApiError, Code, Problem};
use super::super::{App, Body};
use super::secrets::Secret;
use super::{Registered, told};
use crate::clock;
use crate::store::{EvidenceRow, GpuRecord, change_gpus, gpu_names, write_evidence};

/// What was measured. Only `pass` proves health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every required check was made and passed.
    Pass,
    /// It works, and less well than it should.
    Degraded,
    /// A check failed.
    Fail,
    /// A check could not be made.
    Unmeasured,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Degraded => "degraded",
            Self::Fail => "fail",
            Self::Unmeasured => "unmeasured",
        }
    }
}

/// Which checks a report is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Checks {
    /// The boot gate.
    Gate,
    /// Passive watching while the node is in use.
    Passive,
    /// NVIDIA's diagnostics.
    Diagnosis,
}

impl Checks {
    fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Passive => "passive",
            Self::Diagnosis => "diagnosis",
        }
    }
}

/// A report of an agent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The boot that it is about.
    pub boot: String,
    /// Which checks.
    pub checks: Checks,
    /// What they say.
    pub verdict: Verdict,
    /// Why, for people.
    #[serde(default)]
    pub reason: String,
    /// Number of the report within the boot, rising: one that comes twice counts once.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Of the gate: what would mend it.
    #[serde(default)]
    pub mend: Option<Mend>,
    /// Of passive watching: what is wrong now, all of it.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Of the gate and of diagnostics: serial numbers of the GPUs, in their order, where each tells its own.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Of the gate: `version` of the desired state that asked for it. One that was asked for by another is not noted.
    #[serde(default)]
    pub version: Option<i64>,
    /// Of the gate: version of the driver.
    #[serde(default)]
    pub driver: Option<String>,
    /// Of the gate: image that the host was started from.
    #[serde(default)]
    pub image: Option<String>,
    /// Of the gate: what the host hangs together with others by: a rack, an NVLink domain over several hosts, a placement
    /// group. Hosts of one are not tested at the same time.
    #[serde(default)]
    pub domain: Option<String>,
    /// Of the gate and of diagnostics: every number with its limits, kept as it is.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub evidence: serde_json::Value,
    /// Of diagnostics.
    #[serde(default)]
    pub diagnosis: Option<Diagnosis>,
}

impl Report {
    /// Whether a fault that it brings is one of the GPUs, and not of the host's set-up.
    fn blames_gpus(&self) -> bool {
        let gate = self.checks == Checks::Gate;
        let set_up = matches!(self.mend, Some(Mend::Nothing | Mend::Again | Mend::SetUp));
        !gate || (self.verdict == Verdict::Fail && !set_up)
    }
}

/// What diagnostics ended with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Diagnosis {
    /// What was run: a level, `3`, or tests with commas between them.
    pub tests: String,
    /// What they ask for: `nothing`, `record`, `try-again`, `fix-and-repeat`, `repeat`, `reset-and-recheck`, `quarantine`.
    #[schema(value_type = String)]
    pub action: Action,
    /// NVIDIA's id of the worst error that was found.
    #[serde(default)]
    pub error: Option<i64>,
    /// Seconds from the wish to stop them to their end, where they were stopped.
    #[serde(default)]
    pub yield_s: Option<f64>,
}

/// What would mend a host that failed its gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mend {
    /// Nothing is known that would.
    Nothing,
    /// The gate once more.
    Again,
    /// Its set-up.
    SetUp,
    /// A reset of the GPU.
    Reset,
    /// A reboot.
    Reboot,
    /// Another host.
    Replace,
}

/// Something that is wrong with a host until its rule ends it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Condition {
    /// Cause, `xid:63`.
    pub cause: String,
    /// GPU by its PCI address; none where it is the host's.
    #[serde(default)]
    pub gpu: Option<String>,
    /// What the policy says becomes of the node: `record`, `recheck`, `reset-at-idle`, `drain-reset`, `drain-reboot`,
    /// `quarantine`.
    #[schema(value_type = String)]
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

/// Characters of a name that are kept.
const NAME_MAX: usize = 80;
/// Characters of a reason that are kept.
const REASON_MAX: usize = 2000;
/// Conditions of one report.
const CONDITIONS_MAX: usize = 1000;
/// Claims on a node that is to be drained have this time, milliseconds.
const GRACE_MS: i64 = 10 * 60_000;

/// What conditions ask for: care, or a quarantine, with the cause.
fn asked(conditions: &[Condition], now_ms: i64) -> Option<Result<Pending, (String, String)>> {
    let worst = conditions.iter().filter(|c| !c.shadow).max_by_key(|c| c.effect)?;
    let cause = worst.cause.clone();
    let pending = |care, drains: bool| {
        Some(Ok(Pending { care, cause: cause.clone(), claims_until_ms: drains.then_some(now_ms + GRACE_MS) }))
    };
    match worst.effect {
        Effect::Record => None,
        Effect::Recheck => pending(Care::Recheck, false),
        Effect::ResetAtIdle => pending(Care::Reset, false),
        Effect::DrainReset => pending(Care::Reset, true),
        Effect::DrainReboot => pending(Care::Reboot, true),
        Effect::Quarantine => {
            let reason = format!("{cause}: {}", worst.text).chars().take(200).collect();
            Some(Err((cause, reason)))
        }
    }
}

/// An agent reports. Every report is a heartbeat.
#[utoipa::path(
    post, path = "/v1/agents/{instance}/report", tag = "agents", request_body = Report,
    params(("instance" = String, Path, description = "The cloud's name for the host")),
    responses(
        (status = 200, description = "Noted", body = Registered),
        (status = 409, description = "The report is of another boot, or cannot be now", body = Problem),
    )
)]
pub async fn report(
    State(app): State<Arc<App>>,
    secret: Secret,
    Path(instance): Path<String>,
    Body(report): Body<Report>,
) -> Result<Json<Registered>, ApiError> {
    let host = secret.host(&app, &instance)?;
    if report.conditions.len() > CONDITIONS_MAX {
        let count = report.conditions.len();
        return Err(ApiError::new(Code::OutOfRange, format!("{count} conditions; {CONDITIONS_MAX} are the most")));
    }
    if report.serials.len() > fleet::GpuSet::MAX as usize || report.serials.iter().any(|s| s.is_empty() || s.len() > 64)
    {
        let detail = format!("serials: at most {} of at most 64 characters", fleet::GpuSet::MAX);
        return Err(ApiError::new(Code::OutOfRange, detail));
    }
    let blocked = blocked(&app, host.id, &report).await?;
    let of_gpus = blocked.is_none() && report.blames_gpus();
    let report = Arc::new(report);
    let noting = Arc::clone(&report);
    let noted = app.ledger.write(move |book, now_ms| {
        let before = book.nodes().get(&host.id).cloned();
        let new = note(book, host.id, &noting, blocked, now_ms)?;
        Ok::<_, NodeError>(new.then(|| (before, book.nodes().get(&host.id).cloned())))
    });
    if let Some((Some(before), Some(after))) = noted.await?? {
        remember(&app, &report, of_gpus, (&before, &after)).await?;
    }
    Ok(Json(told(&app, host)))
}

/// Why a host that passed its gate is not taken: one of its GPUs took nodes out before.
async fn blocked(app: &App, id: u64, report: &Report) -> Result<Option<String>, ApiError> {
    if report.checks != Checks::Gate || report.serials.is_empty() {
        return Ok(None);
    }
    let now_ms = clock::now_ms();
    let known = app.store.gpus_named(&report.serials).await?;
    let why = known.iter().find_map(|gpu| {
        let fault = gpu.blocked_by(now_ms).filter(|f| f.node != id)?;
        let days = (now_ms - fault.at_ms) / 86_400_000;
        let GpuRecord { serial, .. } = gpu;
        Some(format!("its GPU {serial} took nodes out before, last n-{} {days} days ago: {}", fault.node, fault.reason))
    });
    Ok(why)
}

/// Writes down what is known of the GPUs, and the evidence. `of_gpus`: a fault that the report brings is theirs.
async fn remember(app: &App, report: &Report, of_gpus: bool, (before, after): (&Node, &Node)) -> Result<(), ApiError> {
    let now_ms = clock::now_ms();
    let quarantined = before.state != NodeState::Quarantined && after.state == NodeState::Quarantined;
    // What many have in common is no fault of these GPUs.
    let faulty = quarantined && of_gpus && app.ledger.book().held_for(after).is_none();
    if let (NodeState::Checking, NodeState::Idle | NodeState::Claimed, Some(called)) =
        (before.state, after.state, before.diagnosis.as_ref().and_then(|d| d.called_back_ms))
    {
        app.metrics.yielded((now_ms - called) as f64 / 1000.0);
    }
    if report.checks == Checks::Passive && !quarantined {
        return Ok(());
    }
    let run = report.diagnosis.as_ref().map(|d| (Run::of_word(&d.tests), d.action));
    let (verdict, node, reason) = (report.verdict, after.clone(), after.reason.clone());
    let preempted = report.diagnosis.as_ref().is_some_and(|d| d.yield_s.is_some());
    change_gpus(&app.ledger, gpu_names(after), move |gpu| {
        gpu.met(&node, now_ms);
        match &run {
            Some((Some(run), _)) if verdict == Verdict::Pass => {
                gpu.tried_at_ms = 0;
                gpu.history.passed(run, now_ms);
            }
            Some((_, action)) if verdict == Verdict::Fail && *action > Action::FixAndRepeat => {
                // It is the next to be tested.
                (gpu.history.quick, gpu.tried_at_ms) = (false, 0);
                gpu.history.failures += 1;
            }
            Some(_) => (gpu.tried_at_ms, gpu.gave_way) = (now_ms, preempted),
            None => {}
        }
        if faulty && node.care.is_none() {
            gpu.failed(&reason, now_ms);
        }
    })
    .await?;
    if let (Checks::Diagnosis, Some(d)) = (report.checks, &report.diagnosis) {
        app.metrics.diagnosed(report.verdict.name(), &d.tests);
    }
    let evidence = EvidenceRow {
        id: 0,
        at_ms: now_ms,
        node: after.id,
        checks: report.checks.name().into(),
        verdict: report.verdict.name().into(),
        reason: report.reason.chars().take(REASON_MAX).collect(),
        body: report.evidence.clone(),
    };
    Ok(write_evidence(&app.ledger, evidence).await?)
}

/// Writes down what a report says. Returns whether it says anything: one that was seen before does not.
fn note(book: &mut Book, id: u64, report: &Report, blocked: Option<String>, now_ms: i64) -> Result<bool, NodeError> {
    if !book.is_new(id, &report.boot, report.seq)? {
        return Ok(false);
    }
    let asked_for = book.nodes().get(&id).map(|n| n.since_ms);
    if report.checks == Checks::Gate && report.version.is_some() && report.version != asked_for {
        return Ok(false);
    }
    if report.checks == Checks::Gate {
        let text =
            |t: &Option<String>| Some(t.as_ref()?.chars().take(NAME_MAX).collect()).filter(|t: &String| !t.is_empty());
        let (driver, image, domain) = (text(&report.driver), text(&report.image), text(&report.domain));
        book.identify(id, &Identity { serials: report.serials.clone(), driver, image, domain });
    }
    let reason: String = report.reason.chars().take(200).collect();
    match (report.checks, report.verdict) {
        (Checks::Gate, verdict) => {
            let mend = match report.mend {
                Some(Mend::Reset) => Some(Care::Reset),
                Some(Mend::Reboot) => Some(Care::Reboot),
                _ => None,
            };
            let (said, why) = match (verdict, blocked) {
                (Verdict::Pass, Some(why)) => (Gate::Failed { mend: None }, why),
                (Verdict::Pass, None) => (Gate::Passed, "every check of the gate passed".to_owned()),
                (Verdict::Unmeasured, _) => {
                    (Gate::Failed { mend }, format!("a check of the gate could not be made: {reason}"))
                }
                (Verdict::Degraded | Verdict::Fail, _) => {
                    (Gate::Failed { mend }, format!("a check of the gate failed: {reason}"))
                }
            };
            if let Gate::Failed { .. } = said {
                book.blame(id, &failed_check(&report.evidence));
            }
            book.gate(id, &report.boot, &said, &why, now_ms)?;
        }
        (Checks::Diagnosis, _) => diagnosed(book, id, report, &reason, now_ms)?,
        (Checks::Passive, verdict) => {
            let healthy = match verdict {
                Verdict::Pass => Some(true),
                // A condition says what is wrong, and what is to be done; without one it is a fault.
                Verdict::Fail if report.conditions.is_empty() => Some(false),
                _ => None,
            };
            book.heard(id, &report.boot, healthy, now_ms)?;
            match asked(&report.conditions, now_ms) {
                None => book.needs(id, &report.boot, None, now_ms)?,
                Some(Ok(pending)) => book.needs(id, &report.boot, Some(pending), now_ms)?,
                Some(Err((cause, reason))) => fault(book, id, &cause, &reason, now_ms),
            }
        }
    }
    Ok(true)
}

/// A fault; where the node's state has no place for it, it is out of service already.
fn fault(book: &mut Book, id: u64, cause: &str, reason: &str, now_ms: i64) {
    if book.fault(id, reason, now_ms).is_ok() {
        book.blame(id, cause);
    }
}

/// The first check that failed: `gate:memory`; `gate` where none is named.
fn failed_check(evidence: &serde_json::Value) -> String {
    let failed = |o: &&serde_json::Value| o["verdict"] == "fail";
    let check = evidence["outcomes"].as_array().and_then(|all| all.iter().find(failed)?["check"].as_str());
    check.map_or_else(|| "gate".to_owned(), |c| format!("gate:{}", c.chars().take(NAME_MAX).collect::<String>()))
}

/// What diagnostics say of a node: they end, and what they found is done.
fn diagnosed(book: &mut Book, id: u64, report: &Report, reason: &str, now_ms: i64) -> Result<(), NodeError> {
    let Some(diagnosis) = &report.diagnosis else { return Ok(()) };
    let cause = diagnosis.error.map_or_else(|| "dcgm".to_owned(), |e| format!("dcgm:{e}"));
    let said = match report.verdict {
        Verdict::Pass => format!("diagnostics {} passed", diagnosis.tests),
        verdict => format!("diagnostics {} were {}: {reason}", diagnosis.tests, verdict.name()),
    };
    match diagnosis.action {
        // A pass that asks for a quarantine is nonsense, and nonsense is not healthy.
        Action::Quarantine => {
            fault(book, id, &cause, &format!("{cause}: {said}"), now_ms);
        }
        // Out until it has had it: what its heartbeats say does not take that back.
        Action::ResetAndRecheck => {
            book.diagnosed(id, &report.boot, &said, now_ms)?;
            if book.nodes().get(&id).is_some_and(|n| n.state == NodeState::Checking) {
                book.blame(id, &cause);
                book.gate(id, &report.boot, &Gate::Failed { mend: Some(Care::Reset) }, &said, now_ms)?;
            }
        }
        // Nothing has confirmed it yet, nor taken it back: the whole gate, and the test again in the next gap.
        Action::Repeat if report.verdict == Verdict::Fail => {
            book.diagnosed(id, &report.boot, &said, now_ms)?;
            book.check_whole(id, &said, now_ms);
        }
        Action::Nothing | Action::Record | Action::TryAgain | Action::FixAndRepeat | Action::Repeat => {
            book.diagnosed(id, &report.boot, &said, now_ms)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_parts_of_the_schedule() {
        assert_eq!(Run::of_word("2"), Some(Run::Quick));
        assert_eq!(Run::of_word("memory_bandwidth"), Some(Run::Slice("memory_bandwidth".into())));
        assert_eq!(Run::of_word("memory,pcie"), None);
    }
}
