//! Work that takes time, in a thread of its own: the gate, and repairs that end with it.

use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use health::Verdict;
use health::gate::{Evidence, Expected, Limits, Mend, Reading, Report, judge};
use health::kernel_log::PciAddress;
use health::policy::Policy;

use super::Message;
use super::repair::Tools;
use crate::gate::{self, HARD_STOP, Setup};
use crate::gpu::Effort;
use crate::host::Host;
use crate::kmsg::KernelLog;
use crate::probe::{Answer, Ask};
use crate::worker::{Program, Worker};

/// Gates whose evidence is kept.
const EVIDENCE_MAX: usize = 5;
/// A process that is ending lets go of its GPU within this time.
const ENDING: Duration = Duration::from_secs(5);

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Task {
    /// The gate.
    Gate,
    /// Resets, and the gate.
    Reset(Vec<PciAddress>),
    /// A reboot.
    Reboot,
}

/// What the gate needs.
#[derive(Debug, Clone)]
pub struct GateOf {
    /// What was bought.
    pub expected: Expected,
    /// How to start a probe.
    pub program: Program,
    /// The host's folders.
    pub host: Host,
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
    pub mend: Mend,
    /// Why.
    pub reason: String,
    /// The last event before it began.
    pub after_seq: u64,
    /// The first line of the log that it has not seen.
    pub log_next: u64,
}

/// What was done.
#[derive(Debug)]
pub struct Done {
    /// GPUs that were reset.
    pub reset: Vec<PciAddress>,
    /// Where the log stood after a reset.
    pub log_mended_at: Option<u64>,
    /// What the gate said, where it ran.
    pub gate: Option<Gated>,
}

/// Starts it.
pub fn start(mut of: GateOf, task: Task, tools: Tools, to: SyncSender<Message>) {
    std::thread::spawn(move || {
        let done = match task {
            Task::Gate => Done { reset: Vec::new(), log_mended_at: None, gate: Some(gate(&of)) },
            Task::Reset(gpus) => reset(&mut of, &gpus, &tools),
            Task::Reboot => match tools.reboot() {
                Ok(()) => Done { reset: Vec::new(), log_mended_at: None, gate: None },
                Err(error) => failed(&of, &format!("the host could not be rebooted: {error}")),
            },
        };
        // The daemon is there as long as the process.
        let _ = to.send(Message::Done(done));
    });
}

fn failed(of: &GateOf, reason: &str) -> Done {
    let (verdict, mend) = (Verdict::Fail, Mend::Replace);
    let gate = Gated { verdict, mend, reason: reason.to_owned(), after_seq: of.event_seq, log_next: of.log_next };
    Done { reset: Vec::new(), log_mended_at: None, gate: Some(gate) }
}

fn reset(of: &mut GateOf, gpus: &[PciAddress], tools: &Tools) -> Done {
    if let Some(why) = in_use(of) {
        return failed(of, &format!("no reset: {why}"));
    }
    if let Err(error) = tools.reset(gpus) {
        return failed(of, &format!("a GPU could not be reset: {error}"));
    }
    // What the log said until now is mended, and what the reset itself made it say.
    let mut log = KernelLog::from_line(&of.kernel_log, of.log_next);
    let _ = log.read_on();
    of.log_next = log.next_line();
    Done { reset: gpus.to_vec(), log_mended_at: Some(of.log_next), gate: Some(gate(of)) }
}

/// Whether workloads run: the gate would take their memory.
fn in_use(of: &GateOf) -> Option<String> {
    let mut library = Worker::new(of.program.clone());
    let tries = 5;
    for attempt in 1..=tries {
        // Where the driver does not answer nobody uses it, and the gate says why.
        let Ok(Answer::Survey(_, gpus)) = library.ask(&Ask::Survey, ENDING) else { return None };
        let processes = |index: u32, library: &mut Worker| match library.ask(&Ask::Read(index), ENDING) {
            Ok(Answer::Readings(readings)) => {
                readings.get(&Reading::Processes).and_then(|p| p.clone().ok()).unwrap_or(0)
            }
            _ => 0,
        };
        let busy: i64 = gpus.iter().map(|(index, _)| processes(*index, &mut library)).sum();
        if busy == 0 {
            return None;
        }
        if attempt < tries {
            std::thread::sleep((ENDING / tries).mul_f64(of.patience));
        } else {
            return Some(format!("{busy} processes run on the GPUs, and are not disturbed"));
        }
    }
    None
}

fn gate(of: &GateOf) -> Gated {
    if let Some(reason) = in_use(of) {
        let (verdict, mend) = (Verdict::Unmeasured, Mend::SetUp);
        return Gated { verdict, mend, reason, after_seq: of.event_seq, log_next: of.log_next };
    }
    let (mut report, mut log_next) = once(of);
    // What could not be measured is tried once more.
    if report.verdict == Verdict::Unmeasured && report.mend <= Mend::Again {
        (report, log_next) = once(of);
    }
    let reason = report.findings().join("; ");
    Gated { verdict: report.verdict, mend: report.mend, reason, after_seq: of.event_seq, log_next }
}

/// Runs the gate once; what it says, and the first line of the log that it has not seen.
fn once(of: &GateOf) -> (Report, u64) {
    let setup = Setup {
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
    keep(&of.evidence, &report, &evidence);
    (report, log.next_line())
}

/// Keeps the evidence of the last gates. A disk that is full costs the evidence, not the gate.
fn keep(folder: &Path, report: &Report, evidence: &Evidence) {
    let kept = || -> std::io::Result<()> {
        for n in (1..EVIDENCE_MAX).rev() {
            let older = folder.join(format!("gate-{n}.json"));
            if older.exists() {
                std::fs::rename(older, folder.join(format!("gate-{}.json", n + 1)))?;
            }
        }
        let text = serde_json::to_vec(&serde_json::json!({ "report": report, "evidence": evidence }))?;
        std::fs::write(folder.join("gate-1.json"), text)
    };
    if let Err(error) = kept() {
        tracing::error!(%error, folder = %folder.display(), "the gate's evidence was not kept");
    }
}
