//! Work that takes time, in a thread of its own: the gate, and repairs that end with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use health::Verdict;
use health::gate::{Evidence, Expected, Limits, Look, Mend, Reading, Report, Unseen, judge};
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
/// A workload that is told to end has ended within this time; it is looked for so often.
const ENDING: Duration = Duration::from_secs(90);
const TRIES: u32 = 30;
/// Memory is wiped, and a GPU has cooled down, within this time.
const SETTLES: Duration = Duration::from_secs(10);

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
#[derive(Debug, Default)]
pub struct Done {
    /// GPUs that were reset.
    pub reset: Vec<PciAddress>,
    /// Where the log stood after a reset.
    pub log_mended_at: Option<u64>,
    /// What the gate said, where it ran.
    pub gate: Option<Gated>,
    /// Nothing was done, since workloads run: to be tried again.
    pub busy: Option<String>,
}

impl Done {
    fn busy(why: &str) -> Self {
        Self { busy: Some(why.to_owned()), ..Self::default() }
    }
}

/// Starts it. Whatever becomes of it, it is said that it is over.
pub fn start(mut of: GateOf, task: Task, tools: Tools, to: SyncSender<Message>) {
    let over = to.clone();
    let work = move || {
        let done = catch_unwind(AssertUnwindSafe(|| make(&mut of, &task, &tools)))
            .unwrap_or_else(|_| failed(&of, "the agent failed at it: see its log"));
        // The daemon is there as long as the process.
        let _ = to.send(Message::Done(done));
    };
    if let Err(error) = std::thread::Builder::new().spawn(work) {
        tracing::error!(%error, "no thread for the gate");
        let _ = over.try_send(Message::Done(Done::busy("no thread")));
    }
}

fn make(of: &mut GateOf, task: &Task, tools: &Tools) -> Done {
    // Workloads are not disturbed, whatever is asked for: it is tried again when they have ended.
    let settled = match in_use(of) {
        Use::Free { settled } => settled,
        Use::Busy(why) => return Done::busy(&why),
    };
    if !settled {
        // What they left is wiped, and the GPUs cool down.
        std::thread::sleep(SETTLES.mul_f64(of.patience));
    }
    match task {
        Task::Gate => Done { gate: Some(gate(of)), ..Done::default() },
        Task::Reset(gpus) => reset(of, gpus, tools),
        Task::Reboot => match tools.reboot() {
            Ok(()) => Done::default(),
            Err(error) => failed(of, &format!("the host could not be rebooted: {error}")),
        },
    }
}

fn failed(of: &GateOf, reason: &str) -> Done {
    let (verdict, mend) = (Verdict::Fail, Mend::Replace);
    let gate = Gated { verdict, mend, reason: reason.to_owned(), after_seq: of.event_seq, log_next: of.log_next };
    Done { gate: Some(gate), ..Done::default() }
}

fn reset(of: &mut GateOf, gpus: &[PciAddress], tools: &Tools) -> Done {
    if let Err(error) = tools.reset(gpus) {
        return failed(of, &format!("a GPU could not be reset: {error}"));
    }
    // What the log said until now is mended, and what the reset itself made it say.
    let mut log = KernelLog::from_line(&of.kernel_log, of.log_next);
    let _ = log.read_on();
    of.log_next = log.next_line();
    Done { reset: gpus.to_vec(), log_mended_at: Some(of.log_next), gate: Some(gate(of)), busy: None }
}

/// Whether workloads run.
enum Use {
    /// No; `settled` where none did when it was first asked.
    Free { settled: bool },
    /// Yes, or it cannot be told.
    Busy(String),
}

/// Whether workloads run: the gate would take their memory, a reset all of them. One that is ending gets some time.
fn in_use(of: &GateOf) -> Use {
    let mut library = Worker::new(of.program.clone());
    let mut why = String::new();
    for attempt in 0..TRIES {
        if attempt > 0 {
            std::thread::sleep((ENDING / TRIES).mul_f64(of.patience));
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

fn gate(of: &GateOf) -> Gated {
    let (mut report, mut log_next) = once(of);
    // What could not be measured, or was hot from the last workload, is tried once more.
    if matches!(report.verdict, Verdict::Unmeasured | Verdict::Degraded) && report.mend <= Mend::Again {
        std::thread::sleep(SETTLES.mul_f64(of.patience));
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
