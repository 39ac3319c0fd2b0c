//! Work that takes time, in a thread of its own: the gate, and repairs that end with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fleet::Remedy;
use health::Verdict;
use health::gate::{Evidence, Expected, Limits, Look, Reading, Report, Scope, Unseen, judge, slowest};
use health::kernel_log::PciAddress;
use health::policy::Policy;
use protocol::agent;

use super::repair::Tools;
use super::state::UnreportedDiagnosis;
use crate::diagnose::{Diagnosed, Diagnosis, Tests, expected, lock_in};
use crate::gate::{self, HARD_STOP, Setup};
use crate::gpu::Effort;
use crate::host::HostFolders;
use crate::kmsg::KernelLog;
use crate::probe::{Answer, Ask};
use crate::worker::{Program, Worker};

/// Gates, and diagnostics, whose evidence is kept.
const EVIDENCE_MAX: usize = 5;
/// A workload that is told to end has ended within this time; it is looked for so often.
const ENDING: Duration = Duration::from_secs(90);
const TRIES: u32 = 30;
/// Memory is wiped, and a GPU has cooled down, within this time.
const SETTLES: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Task {
    /// The gate.
    Gate(Scope),
    /// Diagnostics.
    Diagnose(Box<DiagnoseWith>),
    /// Resets, and the gate.
    Reset(Vec<PciAddress>),
    /// A reboot.
    Reboot,
}

/// How diagnostics are run.
#[derive(Debug, Clone)]
pub struct DiagnoseWith {
    /// NVIDIA's tool.
    pub dcgmi: PathBuf,
    /// What is run.
    pub tests: Tests,
    /// Tests that this model does not have.
    pub not_applicable: Vec<String>,
    /// Set when the node is wanted.
    pub stop: Arc<AtomicBool>,
}

/// What the gate needs.
#[derive(Debug, Clone)]
pub struct GateRun {
    /// What was bought.
    pub expected: Expected,
    /// How to start a probe.
    pub program: Program,
    /// The host's folders.
    pub host: HostFolders,
    /// What deadlines are multiplied by.
    pub patience: f64,
    /// The limits.
    pub limits: Limits,
    /// The policy.
    pub policy: Policy,
    /// The kernel's log.
    pub kernel_log: PathBuf,
    /// Its first line that counts.
    pub log_next: u64,
    /// The last event before the gate.
    pub event_seq: u64,
    /// Folder in which evidence is kept.
    pub evidence: PathBuf,
}

/// What a gate said.
#[derive(Debug)]
pub struct Gated {
    /// In a word.
    pub verdict: Verdict,
    /// What would mend it.
    pub mend: Remedy,
    /// The first check that failed.
    pub failed_check: Option<String>,
    /// What a whole gate measured, the slowest GPU of each number.
    pub rates: std::collections::BTreeMap<String, f64>,
    /// Why.
    pub reason: String,
    /// The last event before it began.
    pub after_seq: u64,
    /// The first line of the log that it has not seen.
    pub log_next: u64,
    /// Serial numbers of the GPUs, where all tell theirs.
    pub serials: Vec<String>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// NVLink domain over several hosts.
    pub nvlink_domain: Option<String>,
    /// Every number with its limits.
    pub evidence: serde_json::Value,
}

/// What was done.
#[derive(Debug, Default)]
pub struct Done {
    /// GPUs that were reset.
    pub reset: Vec<PciAddress>,
    /// Where the log stood after a reset.
    pub log_mended_at: Option<u64>,
    /// What the gate said, where it ran.
    pub gate: Option<Gated>,
    /// What diagnostics said, where they ran.
    pub diagnosis: Option<UnreportedDiagnosis>,
    /// Nothing was done, since workloads run: to be tried again.
    pub busy: Option<String>,
}

impl Done {
    fn busy(why: &str) -> Self {
        Self { busy: Some(why.to_owned()), ..Self::default() }
    }
}

/// Starts it. Whatever becomes of it, it is said that it is over; where it could not begin, that is returned.
pub fn start(mut of: GateRun, task: Task, tools: Tools, over: Arc<dyn Fn(Done) + Send + Sync>) -> Option<Done> {
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(|| make(&mut of, &task, &tools)))
            .unwrap_or_else(|_| failed(&of, "the agent failed at it: see its log"));
        over(done);
    };
    let error = std::thread::Builder::new().spawn(work).err()?;
    tracing::error!(%error, "no thread for the gate");
    Some(Done::busy("no thread"))
}

fn make(of: &mut GateRun, task: &Task, tools: &Tools) -> Done {
    // Workloads are not disturbed, whatever is asked for: it is tried again when they have ended.
    let short = matches!(task, Task::Gate(Scope::Short));
    let settled = match in_use(of) {
        Use::Free { settled } => settled,
        Use::Busy(why) => return Done::busy(&why),
    };
    if !settled && !short {
        // What they left is wiped, and the GPUs cool down.
        std::thread::sleep(SETTLES.mul_f64(of.patience));
    }
    match task {
        Task::Gate(scope) => Done { gate: Some(gate(of, *scope)), ..Done::default() },
        Task::Diagnose(with) => Done { diagnosis: Some(diagnose(of, with)), ..Done::default() },
        Task::Reset(gpus) => reset(of, gpus, tools),
        Task::Reboot => match tools.reboot() {
            Ok(()) => Done::default(),
            Err(error) => failed(of, &format!("the host could not be rebooted: {error}")),
        },
    }
}

fn failed(of: &GateRun, reason: &str) -> Done {
    let gate = Gated {
        verdict: Verdict::Fail,
        mend: Remedy::Replace,
        failed_check: None,
        rates: std::collections::BTreeMap::new(),
        reason: reason.to_owned(),
        after_seq: of.event_seq,
        log_next: of.log_next,
        serials: Vec::new(),
        driver: None,
        nvlink_domain: None,
        evidence: serde_json::Value::Null,
    };
    Done { gate: Some(gate), ..Done::default() }
}

fn reset(of: &mut GateRun, gpus: &[PciAddress], tools: &Tools) -> Done {
    if let Err(error) = tools.reset(gpus) {
        return failed(of, &format!("a GPU could not be reset: {error}"));
    }
    // What the log said until now is mended, and what the reset itself made it say.
    let mut log = KernelLog::from_line(&of.kernel_log, of.log_next);
    let _ = log.read_on();
    of.log_next = log.next_line();
    let gated = gate(of, Scope::Whole);
    Done { reset: gpus.to_vec(), log_mended_at: Some(of.log_next), gate: Some(gated), ..Done::default() }
}

/// Whether workloads run.
enum Use {
    /// No; `settled` where none did when it was first asked.
    Free { settled: bool },
    /// Yes, or it cannot be told.
    Busy(String),
}

/// Whether workloads run: the gate would take their memory, a reset all of them. One that is ending gets some time.
fn in_use(of: &GateRun) -> Use {
    let mut library = Worker::new(of.program.clone());
    let mut why = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            // Often at first: what was told to end has ended soon.
            let pause = (ENDING / TRIES).min(Duration::from_millis(250) * attempt);
            std::thread::sleep(pause.mul_f64(of.patience));
        }
        match processes(&mut library, of.patience) {
            Ok(0) => return Use::Free { settled: attempt == 0 },
            // Without a driver nobody uses it, and the gate says what is wrong.
            Err(Unseen::NoDriver(_)) => return Use::Free { settled: true },
            Ok(count) => why = format!("{count} processes run on the GPUs, and are not disturbed"),
            Err(unseen) => {
                why = format!("whether processes run on the GPUs is not known: {unseen}");
                library.renew();
            }
        }
    }
    Use::Busy(why)
}

/// Processes that compute on the GPUs.
fn processes(library: &mut Worker, patience: f64) -> Look<i64> {
    let deadline = Duration::from_secs(10).mul_f64(patience);
    let Answer::Survey(_, gpus) = library.ask(&Ask::Survey, deadline)? else {
        return Err(Unseen::Crashed("another answer".into()));
    };
    let mut count = 0;
    for (index, _) in gpus {
        let Answer::Readings(readings) = library.ask(&Ask::Read(index), deadline)? else {
            return Err(Unseen::Crashed("another answer".into()));
        };
        match readings.get(&Reading::Processes) {
            Some(Ok(n)) => count += n,
            // A GPU that is gone has none.
            Some(Err(Unseen::GpuLost)) => {}
            Some(Err(why)) => return Err(why.clone()),
            None => return Err(Unseen::NotReached("not asked for".into())),
        }
    }
    Ok(count)
}

fn gate(of: &GateRun, scope: Scope) -> Gated {
    let (mut report, mut evidence, mut log_next) = once(of, scope);
    let mut ran = scope;
    if scope == Scope::Short && report.verdict != Verdict::Pass {
        // The short one is enough for a pass, and for nothing else.
        tracing::info!(findings = report.findings().join("; "), "the short gate did not pass: the whole one runs");
        (report, evidence, log_next) = once(of, Scope::Whole);
        ran = Scope::Whole;
    }
    // What could not be measured, or was hot from the last workload, is tried once more.
    if matches!(report.verdict, Verdict::Unmeasured | Verdict::Degraded) && report.mend <= Remedy::TryAgain {
        std::thread::sleep(SETTLES.mul_f64(of.patience));
        (report, evidence, log_next) = once(of, Scope::Whole);
        ran = Scope::Whole;
    }
    let reason = report.findings().join("; ");
    Gated {
        verdict: report.verdict,
        mend: report.mend,
        failed_check: report.failed_check().map(|check| check.name().to_owned()),
        rates: if ran == Scope::Whole { slowest(&report) } else { Default::default() },
        reason,
        after_seq: of.event_seq,
        log_next,
        serials: evidence.serials(),
        driver: evidence.driver.as_ref().ok().map(|d| d.version.clone()),
        nvlink_domain: evidence.nvlink_domain(),
        evidence: serde_json::to_value(&report).unwrap_or_default(),
    }
}

/// Runs diagnostics; what asks for it is repeated once, as NVIDIA says.
fn diagnose(of: &GateRun, with: &DiagnoseWith) -> UnreportedDiagnosis {
    let gpus = expected(&mut Worker::new(of.program.clone()));
    let told: Vec<String> = gpus.iter().filter_map(|g| g.serial.clone()).collect();
    let serials = if told.len() == gpus.len() { told } else { Vec::new() };
    let diagnosis = Diagnosis {
        program: with.dcgmi.clone(),
        tests: with.tests.clone(),
        gpus,
        not_applicable: with.not_applicable.clone(),
        deadline: with.tests.deadline(),
        lock: lock_in(&of.evidence),
        patience: of.patience,
    };
    let mut done = UnreportedDiagnosis {
        said: agent::Diagnosis {
            tests: with.tests.word(),
            remedy: Remedy::TryAgain,
            error: None,
            yield_s: None,
            serials,
            evidence: serde_json::Value::Null,
        },
        verdict: Verdict::Unmeasured,
        reason: String::new(),
        version: None,
        seq: None,
    };
    if diagnosis.gpus.is_empty() {
        done.reason = "the driver sees no GPU".into();
        return done;
    }
    let first = match diagnosis.run(&with.stop) {
        Ok(done) => done,
        Err(error) => {
            done.reason = format!("{error:#}");
            return done;
        }
    };
    let asks = |run: &Diagnosed| run.judgement.remedy == Remedy::Recheck;
    let second = if asks(&first) && !with.stop.load(Ordering::Relaxed) { diagnosis.run(&with.stop).ok() } else { None };
    // A second run that was stopped, or says nothing, does not take back what the first one found.
    let second = second.filter(|run| run.judgement.verdict != Verdict::Unmeasured);
    // A second time it is not by chance.
    let repeated = second.as_ref().is_some_and(asks);
    let run = second.unwrap_or(first);
    keep(&of.evidence, "diagnosis", &serde_json::json!({ "judgement": run.judgement, "document": run.document }));
    done.verdict = run.judgement.verdict;
    done.reason = run.judgement.to_string().lines().skip(1).map(str::trim).collect::<Vec<_>>().join("; ");
    done.said.remedy = if repeated { Remedy::Replace } else { run.judgement.remedy };
    done.said.error = run.judgement.findings.iter().filter_map(|f| f.error).next();
    done.said.yield_s = run.yield_s;
    done.said.evidence = serde_json::to_value(&run.judgement).unwrap_or_default();
    done
}

/// Runs the gate once; what it says, by what, and the first line of the log that it has not seen.
fn once(of: &GateRun, scope: Scope) -> (Report, Evidence, u64) {
    let setup = Setup {
        scope,
        expected: of.expected.clone(),
        program: of.program.clone(),
        host: of.host.clone(),
        effort: Effort { tensor_s: 4.0 * of.patience, fp32_s: 2.0 * of.patience, repeats_min: 64, spoil: None },
        patience: of.patience,
        hard_stop: HARD_STOP,
    };
    let mut log = KernelLog::from_line(&of.kernel_log, of.log_next);
    let evidence = gate::run(&setup, &mut log, &mut |_| {});
    let report = judge(&evidence, &of.limits, &of.policy);
    keep(&of.evidence, "gate", &serde_json::json!({ "report": report, "evidence": evidence }));
    (report, evidence, log.next_line())
}

/// Keeps the evidence of the last ones of a kind. A disk that is full costs the evidence, not the verdict.
fn keep(folder: &Path, kind: &str, evidence: &serde_json::Value) {
    let kept = || -> std::io::Result<()> {
        for n in (1..EVIDENCE_MAX).rev() {
            let older = folder.join(format!("{kind}-{n}.json"));
            if older.exists() {
                std::fs::rename(older, folder.join(format!("{kind}-{}.json", n + 1)))?;
            }
        }
        std::fs::write(folder.join(format!("{kind}-1.json")), serde_json::to_vec(evidence)?)
    };
    if let Err(error) = kept() {
        tracing::error!(%error, folder = %folder.display(), kind, "the evidence was not kept");
    }
}
