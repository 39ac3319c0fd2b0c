//! What a report of an agent means: for the state of its node, and for what is known of its GPUs.

use fleet::book::{Book, Gate, Identity, Node, NodeError, Pending};
use fleet::{Cause, NodeState, Remedy};
use health::Verdict;
use health::weekly::Run;
use protocol::agent::{Checks, Condition, Desired, Diagnosis, Gate as GateReport, HealthOrder, HealthReport, Work};

use crate::gpus::{GpuChange, GpuRecord, Tested};

/// Characters of a name that are kept.
const NAME_MAX: usize = 80;
/// Characters of a reason that are kept.
const REASON_MAX: usize = 200;
/// Claims on a node that is to be drained have this time, milliseconds.
const GRACE_MS: i64 = 10 * 60_000;

fn short(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}

/// The number of what a node's agent is to do: another says that something changed.
#[must_use]
pub fn version(book: &Book, id: u64) -> i64 {
    book.nodes().get(&id).map_or(i64::MAX, |node| node.desired.all)
}

/// What a node's state makes its agent do.
#[must_use]
pub fn desired(book: &Book, id: u64) -> Desired {
    let node = book.nodes().get(&id);
    // A node that the book has forgotten has ended.
    let state = node.map_or(NodeState::Terminated, |n| n.state);
    let reboots = node.and_then(|n| n.care.as_ref()).is_some_and(|c| c.remedy == Remedy::Reboot);
    let work = match state {
        NodeState::Requested | NodeState::Booting | NodeState::Checking => {
            let short = node.is_some_and(Node::gate_is_short);
            let scope = if short { health::gate::Scope::Short } else { health::gate::Scope::Whole };
            Work::Gate { scope, learned: std::collections::BTreeMap::new() }
        }
        NodeState::Idle | NodeState::Claimed => Work::Serve,
        NodeState::Draining => Work::Drain,
        NodeState::Diagnosing => {
            let tests = node.and_then(|n| n.diagnosis.as_ref()).map(|d| d.tests.clone());
            Work::Diagnose { tests: tests.unwrap_or_else(|| Run::Quick.word().to_owned()) }
        }
        NodeState::Repairing if reboots => Work::Reboot,
        NodeState::Repairing => Work::Reset,
        NodeState::Quarantined | NodeState::Lost => Work::Hold,
        NodeState::Terminating | NodeState::Terminated => Work::End,
    };
    let (version, of_health) = node.map_or((i64::MAX, i64::MAX), |n| (n.desired.all, n.desired.health));
    // One that is to end, or that nobody trusts, fetches nothing and throws nothing away.
    let stages = |node: &&Node| node.state.in_service() || node.state.is_arriving();
    let staging = node.filter(stages).map(|node| crate::staging::order(book, node));
    // Whatever becomes of the node: what claims have runs until they end.
    let starts = Some(crate::starts::orders(book, id));
    let health = HealthOrder { work, version: of_health };
    Desired { node: format!("n-{id}"), state, health, staging, starts, version }
}

/// What conditions ask for.
enum Asked {
    /// Nothing.
    Nothing,
    /// Care.
    Care(Pending),
    /// Out, for this cause.
    Out(Cause, String),
}

fn asked(conditions: &[Condition], now_ms: i64) -> Asked {
    let Some(worst) = conditions.iter().filter(|c| !c.shadow).max_by_key(|c| c.effect) else { return Asked::Nothing };
    let cause = Cause::condition(&short(&worst.cause, NAME_MAX));
    match worst.effect.remedy() {
        Remedy::Replace => {
            let reason = short(&format!("{cause}: {}", worst.text), REASON_MAX);
            Asked::Out(cause, reason)
        }
        remedy if remedy.is_care() => {
            let claims_until_ms = worst.effect.drains().then_some(now_ms + GRACE_MS);
            Asked::Care(Pending { remedy, cause, claims_until_ms })
        }
        _ => Asked::Nothing,
    }
}

/// Why a host that passed its gate is not taken: one of its GPUs took nodes out before.
#[must_use]
pub fn blocked(node: u64, gpus: &[GpuRecord], now_ms: i64) -> Option<String> {
    gpus.iter().find_map(|gpu| {
        let fault = gpu.blocked_by(now_ms).filter(|f| f.node != node)?;
        let days = (now_ms - fault.at_ms) / 86_400_000;
        let GpuRecord { serial, .. } = gpu;
        Some(format!("its GPU {serial} took nodes out before, last n-{} {days} days ago: {}", fault.node, fault.reason))
    })
}

/// A report with what is known of the GPUs it names.
#[derive(Debug, Clone)]
pub struct Heard<'a> {
    /// The report.
    pub report: &'a HealthReport,
    /// Why the host is not taken, though it passed its gate.
    pub blocked: Option<&'a str>,
}

/// Does what a report says. Returns whether it says anything: one that was seen before, or that another state of the node
/// asked for, does not (HLT-4).
///
/// # Errors
/// The node is unknown, runs another boot, or is in a state in which such a report makes no sense.
pub fn note(book: &mut Book, id: u64, heard: &Heard<'_>, now_ms: i64) -> Result<bool, NodeError> {
    let report = heard.report;
    if let Checks::Gate(gate) = &report.checks {
        book.can_have(id, &gate.identity.serials)?;
    }
    if !book.is_new(id, &report.boot, report.seq)? {
        return Ok(false);
    }
    match &report.checks {
        Checks::Gate(gate) => {
            let asked_for = book.nodes().get(&id).map(|n| n.desired.health);
            if gate.version.is_some() && gate.version != asked_for {
                return Ok(false);
            }
            book.identify(id, &identity(&gate.identity));
            // What it is known by now, told this time or before.
            let serials = book.nodes().get(&id).map(|n| n.serials.clone()).unwrap_or_default();
            let others = book.owner_of(id, &serials).map(|(owner, serial)| {
                format!("it names GPU {serial}, which is n-{owner}'s: one of the two does not say what it has")
            });
            if others.is_some() {
                book.disown(id);
            }
            gated(book, id, &Heard { blocked: others.as_deref().or(heard.blocked), ..heard.clone() }, gate, now_ms)?;
        }
        Checks::Diagnosis(diagnosis) => diagnosed(book, id, report, diagnosis, now_ms)?,
        Checks::Passive { conditions } => passive(book, id, report, conditions, now_ms)?,
    }
    Ok(true)
}

fn identity(told: &protocol::agent::Identity) -> Identity {
    let text = |t: &Option<String>| t.as_deref().map(|t| short(t, NAME_MAX)).filter(|t| !t.is_empty());
    // Boards with several GPUs tell one number for all of them, and some tell zeros: that names none.
    let different: std::collections::BTreeSet<&String> = told.serials.iter().collect();
    let names_one = |serial: &String| serial.bytes().any(|b| b.is_ascii_alphanumeric() && b != b'0');
    let told_each = different.len() == told.serials.len() && told.serials.iter().all(names_one);
    let serials = if told_each { told.serials.clone() } else { Vec::new() };
    Identity { serials, driver: text(&told.driver), image: text(&told.image), domain: text(&told.domain) }
}

fn gated(book: &mut Book, id: u64, heard: &Heard<'_>, gate: &GateReport, now_ms: i64) -> Result<(), NodeError> {
    let (report, reason) = (heard.report, short(&heard.report.reason, REASON_MAX));
    let failed = || Gate::Failed { mend: gate.mend.filter(|m| matches!(m, Remedy::Reset | Remedy::Reboot)) };
    let (said, why) = match (report.verdict, heard.blocked) {
        (Verdict::Pass, Some(why)) => (Gate::Failed { mend: None }, why.to_owned()),
        (Verdict::Pass, None) => {
            (Gate::Passed { rates: gate.rates.clone() }, "every check of the gate passed".to_owned())
        }
        (Verdict::Unmeasured, _) => (failed(), format!("a check of the gate could not be made: {reason}")),
        (Verdict::Degraded | Verdict::Fail, _) => (failed(), format!("a check of the gate failed: {reason}")),
    };
    if let Gate::Failed { .. } = said {
        book.blame(id, Cause::Gate(gate.failed_check.as_deref().map(|c| short(c, NAME_MAX))));
    }
    book.gate(id, &report.boot, &said, &why, now_ms)
}

fn passive(
    book: &mut Book,
    id: u64,
    report: &HealthReport,
    conditions: &[Condition],
    now_ms: i64,
) -> Result<(), NodeError> {
    let healthy = match report.verdict {
        Verdict::Pass => Some(true),
        // A condition says what is wrong, and what is to be done; without one it is a fault.
        Verdict::Fail if conditions.is_empty() => Some(false),
        Verdict::Fail | Verdict::Degraded | Verdict::Unmeasured => None,
    };
    book.heard(id, &report.boot, healthy, now_ms)?;
    match asked(conditions, now_ms) {
        Asked::Nothing => book.needs(id, &report.boot, None, now_ms),
        Asked::Care(pending) => book.needs(id, &report.boot, Some(pending), now_ms),
        Asked::Out(cause, reason) => {
            fault(book, id, cause, &reason, now_ms);
            Ok(())
        }
    }
}

/// A fault; where the node's state has no place for it, it is out of service already.
fn fault(book: &mut Book, id: u64, cause: Cause, reason: &str, now_ms: i64) {
    book.fault(id, cause, reason, now_ms).ok();
}

/// What diagnostics say of a node: they end, and what they found is done.
fn diagnosed(
    book: &mut Book,
    id: u64,
    report: &HealthReport,
    diagnosis: &Diagnosis,
    now_ms: i64,
) -> Result<(), NodeError> {
    let cause = Cause::Diagnosis(diagnosis.error);
    let (tests, reason) = (short(&diagnosis.tests, NAME_MAX), short(&report.reason, REASON_MAX));
    let said = match report.verdict {
        Verdict::Pass => format!("diagnostics {tests} passed"),
        verdict => format!("diagnostics {tests} were {}: {reason}", verdict.name()),
    };
    match diagnosis.remedy {
        // A pass that asks for another host is nonsense, and nonsense is not healthy.
        Remedy::Replace => {
            let reason = format!("{cause}: {said}");
            fault(book, id, cause, &reason, now_ms);
        }
        // Out until it has had it: what its heartbeats say does not take that back.
        remedy @ (Remedy::Reset | Remedy::Reboot) => {
            book.diagnosed(id, &report.boot, &said, now_ms)?;
            if book.nodes().get(&id).is_some_and(|n| n.state == NodeState::Checking) {
                book.blame(id, cause);
                book.gate(id, &report.boot, &Gate::Failed { mend: Some(remedy) }, &said, now_ms)?;
            }
        }
        // Nothing has confirmed it yet, nor taken it back: the whole gate, and the test again in the next gap.
        Remedy::Recheck if report.verdict == Verdict::Fail => {
            book.diagnosed(id, &report.boot, &said, now_ms)?;
            book.check_whole(id, &said);
        }
        Remedy::Nothing | Remedy::Record | Remedy::TryAgain | Remedy::SetUp | Remedy::Recheck => {
            book.diagnosed(id, &report.boot, &said, now_ms)?;
        }
    }
    Ok(())
}

/// What a report leaves to be remembered.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    /// What changes of the records of its GPUs; none where the report says nothing of them.
    pub gpus: Option<GpuChange>,
    /// Time from being called back out of diagnostics to being idle again, seconds.
    pub yielded_s: Option<f64>,
}

/// What is remembered of a report that was noted: `before` and `after` are the node around it.
#[must_use]
pub fn remember(book: &Book, heard: &Heard<'_>, (before, after): (&Node, &Node), now_ms: i64) -> Remembered {
    let report = heard.report;
    let quarantined = !before.is_quarantined() && after.is_quarantined();
    let of_gpus = heard.blocked.is_none() && blames_gpus(report);
    // What many have in common is no fault of these GPUs; what a reset may mend is none yet.
    let faulty = quarantined && of_gpus && book.held_for(after).is_none() && after.care.is_none();
    let called_back_ms = before.diagnosis.as_ref().and_then(|d| d.called_back_ms);
    let is_back = before.state == NodeState::Checking && after.state.takes_claims();
    let yielded_s = called_back_ms.filter(|_| is_back).map(|at| (now_ms - at) as f64 / 1000.0);
    let tested = match &report.checks {
        Checks::Passive { .. } if !quarantined => return Remembered { gpus: None, yielded_s },
        Checks::Passive { .. } | Checks::Gate(_) => Tested::No,
        Checks::Diagnosis(diagnosis) => tested(report, diagnosis),
    };
    let fault = faulty.then(|| after.reason.clone());
    Remembered { gpus: Some(GpuChange::Seen { node: Box::new(after.clone()), tested, fault }), yielded_s }
}

fn tested(report: &HealthReport, diagnosis: &Diagnosis) -> Tested {
    match (report.verdict, Run::of_word(&diagnosis.tests)) {
        (Verdict::Pass, Some(run)) => Tested::Passed(run),
        (Verdict::Fail, _) if diagnosis.remedy > Remedy::SetUp => Tested::Failed,
        _ => Tested::Nothing { gave_way: diagnosis.yield_s.is_some() },
    }
}

/// Whether a fault that a report brings is one of the GPUs, and not of the host's set-up.
fn blames_gpus(report: &HealthReport) -> bool {
    let Checks::Gate(gate) = &report.checks else { return true };
    let set_up = matches!(gate.mend, Some(Remedy::Nothing | Remedy::TryAgain | Remedy::SetUp));
    report.verdict == Verdict::Fail && !set_up
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
