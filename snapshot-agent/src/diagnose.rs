//! `dcgmi diag`: NVIDIA's own diagnostics, run with a deadline, one at a time, and stopped in the right order.
//!
//! SIGKILL of a diagnostic has frozen GPUs (dcgm-exporter issue 84), so it comes last: an interrupt, which dcgmi passes on to
//! the host engine; a wait; SIGTERM; a wait; and only then SIGKILL.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use health::dcgm::{Document, Exit, Expected, Judgement, Plan, TEST_DEADLINE_S, Version, judge, level_deadline_s};
use rustix::process::{Pid, Signal, kill_process};

use crate::check::{Format, exit_code};
use crate::probe::{Answer, Ask};
use crate::worker::{Program, Worker};

/// Longest document, bytes: eight GPUs at level 4 print about 100 kB.
const DOCUMENT_MAX: u64 = 16 << 20;
/// How often it is looked whether it has ended, or is to.
const TICK: Duration = Duration::from_millis(50);
/// How long what it printed is read after its end, while somebody else holds the output open.
const DRAIN: Duration = Duration::from_secs(2);
/// Time between an interrupt and SIGTERM, and between that and SIGKILL.
const GRACE: [Duration; 2] = [Duration::from_secs(25), Duration::from_secs(10)];

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tests {
    /// A level, 1 to 4.
    Level(u8),
    /// A list, as a slice of a level.
    List(Vec<String>),
}

impl Tests {
    /// How long it may take at most.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        let seconds = match self {
            Self::Level(level) => level_deadline_s(*level).into(),
            Self::List(tests) => u64::from(TEST_DEADLINE_S) * tests.len().max(1) as u64,
        };
        Duration::from_secs(seconds)
    }

    /// What the control plane asks for: a level, or tests with commas between them.
    #[must_use]
    pub fn named(word: &str) -> Self {
        match word.parse() {
            Ok(level) if (1..=4).contains(&level) => Self::Level(level),
            _ => Self::List(word.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()),
        }
    }

    /// As `dcgmi` takes it after `-r`.
    #[must_use]
    pub fn word(&self) -> String {
        match self {
            Self::Level(level) => level.to_string(),
            Self::List(tests) => tests.join(","),
        }
    }

    fn plan(&self, version: Version, gpus: Vec<Expected>) -> Plan {
        match self {
            Self::Level(level) => Plan::of_level(*level, version, gpus),
            Self::List(tests) => Plan::of_tests(&tests.iter().map(String::as_str).collect::<Vec<_>>(), gpus),
        }
    }
}

/// How it is run.
#[derive(Debug, Clone)]
pub struct Diagnosis {
    /// `dcgmi`.
    pub program: PathBuf,
    /// What.
    pub tests: Tests,
    /// GPUs that must have a result.
    pub gpus: Vec<Expected>,
    /// Tests that this model does not have.
    pub not_applicable: Vec<String>,
    /// Longest time.
    pub deadline: Duration,
    /// A file that is locked while one runs: a host engine runs one at a time.
    pub lock: PathBuf,
    /// What the pauses of an abort are multiplied by.
    pub patience: f64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosed {
    /// What it proves.
    pub judgement: Judgement,
    /// How it ended.
    pub exit: Exit,
    /// What it printed.
    pub document: String,
    /// Seconds that it ran.
    pub seconds: f64,
    /// Seconds from the wish to stop it to its end, where there was one.
    pub yield_s: Option<f64>,
}

#[allow(clippy::disallowed_methods, reason = "deadlines are of real time")]
fn now() -> Instant {
    Instant::now()
}

/// What a process has printed. Its children may hold the output open for as long as they like.
struct Printed {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Printed {
    fn of(output: ChildStdout) -> Self {
        let bytes: Arc<Mutex<Vec<u8>>> = Arc::default();
        let kept = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut output = output.take(DOCUMENT_MAX);
            let mut part = [0; 64 << 10];
            while let Ok(read @ 1..) = output.read(&mut part) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&part[..read]);
            }
        });
        Self { bytes, reader }
    }

    /// All that the process itself printed, once it has ended: that lies in the pipe by then.
    fn so_far(&self) -> String {
        let asked = now();
        while !self.reader.is_finished() && asked.elapsed() < DRAIN {
            std::thread::sleep(TICK);
        }
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Diagnosis {
    /// Runs it, until it ends, its time is over, or `stop` is set.
    ///
    /// # Errors
    /// It cannot be started, or another one runs on this host.
    pub fn run(&self, stop: &AtomicBool) -> anyhow::Result<Diagnosed> {
        let lock = File::create(&self.lock).with_context(|| format!("cannot open {}", self.lock.display()))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .context("another diagnostic runs on this host: wait for its end")?;
        let began = now();
        let mut child = Command::new(&self.program)
            .args(["diag", "-r", &self.tests.word(), "-j"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}: install datacenter-gpu-manager", self.program.display()))?;
        let printed = Printed::of(child.stdout.take().context("dcgmi has no output")?);
        let (exit, yield_s) = self.wait(&mut child, began, stop);
        let document = printed.so_far();
        let version = Document::read(&document).ok().and_then(|d| d.version).unwrap_or(Version(4, 0, 0));
        let mut plan = self.tests.plan(version, self.gpus.clone());
        plan.not_applicable.extend(self.not_applicable.iter().cloned());
        let judgement = judge(&document, exit, &plan);
        Ok(Diagnosed { judgement, exit, document, seconds: began.elapsed().as_secs_f64(), yield_s })
    }

    fn wait(&self, child: &mut Child, began: Instant, stop: &AtomicBool) -> (Exit, Option<f64>) {
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                let code = status.code().and_then(|c| u8::try_from(c).ok());
                return (code.map_or(Exit::Signal(status.signal().unwrap_or(0)), Exit::Code), None);
            }
            let (over, wanted) = (began.elapsed() >= self.deadline, stop.load(Ordering::Relaxed));
            if over || wanted {
                let asked = now();
                self.abort(child);
                let yield_s = asked.elapsed().as_secs_f64();
                return (if wanted { Exit::Preempted } else { Exit::TimedOut }, Some(yield_s));
            }
            std::thread::sleep(TICK);
        }
    }

    fn abort(&self, child: &mut Child) {
        let Some(pid) = Pid::from_raw(child.id().cast_signed()) else { return };
        for (signal, grace) in [Signal::INT, Signal::TERM].into_iter().zip(GRACE) {
            let _ = kill_process(pid, signal);
            let asked = now();
            while asked.elapsed() < grace.mul_f64(self.patience) {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(TICK);
            }
        }
        let _ = child.kill();
        // One that hangs in the driver does not even die of that: it is not waited for.
        let _ = child.try_wait();
    }
}

/// Options of the command.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Level, 1 to 4.
    #[arg(short = 'r', long, value_parser = clap::value_parser!(u8).range(1..=4), default_value_t = 2)]
    pub level: u8,
    /// Tests in place of a level: memory, pcie, memory_bandwidth, targeted_stress, …
    #[arg(long, value_delimiter = ',')]
    pub tests: Vec<String>,
    /// Tests that this GPU model does not have.
    #[arg(long, value_delimiter = ',')]
    pub not_applicable: Vec<String>,
    /// GPUs that must have a result; without it, as many as the driver sees.
    #[arg(long)]
    pub gpus: Option<u32>,
    /// Longest time, seconds; without it, by the level.
    #[arg(long)]
    pub deadline_s: Option<u32>,
    /// NVIDIA's tool.
    #[arg(long, default_value = "dcgmi")]
    pub dcgmi: PathBuf,
    /// Folder of the agent: one diagnostic runs at a time, be it the agent's or yours.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/pilotlight-agent")]
    pub state: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value = "table")]
    pub output: Format,
}

/// Runs diagnostics once and says what they prove. Exit code: 0 pass, 3 degraded, 4 unmeasured, 5 fail.
///
/// # Errors
/// They cannot be started.
pub fn run(options: &Options, program: Program, patience: f64) -> anyhow::Result<ExitCode> {
    let tests = if options.tests.is_empty() { Tests::Level(options.level) } else { Tests::List(options.tests.clone()) };
    let gpus = match options.gpus {
        Some(count) => (0..count).map(|entity| Expected { entity, serial: None }).collect(),
        None => expected(&mut Worker::new(program)),
    };
    anyhow::ensure!(!gpus.is_empty(), "the driver sees no GPU: say with --gpus how many there must be");
    let deadline = options.deadline_s.map_or_else(|| tests.deadline(), |s| Duration::from_secs(s.into()));
    let diagnosis = Diagnosis {
        program: options.dcgmi.clone(),
        tests,
        gpus,
        not_applicable: options.not_applicable.clone(),
        deadline,
        lock: lock_in(&options.state),
        patience,
    };
    let done = diagnosis.run(&AtomicBool::new(false))?;
    let text = match options.output {
        Format::Json => serde_json::to_string_pretty(&done.judgement)? + "\n",
        Format::Table => format!("{} ({:.1} s)\n", done.judgement, done.seconds),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(exit_code(done.judgement.verdict))
}

/// The file that is locked while one runs.
#[must_use]
pub fn lock_in(state: &Path) -> PathBuf {
    let folder = if state.is_dir() { state.to_owned() } else { std::env::temp_dir() };
    folder.join("dcgmi.lock")
}

/// The GPUs that the driver sees, in its order, with their serial numbers.
pub fn expected(library: &mut Worker) -> Vec<Expected> {
    let Ok(Answer::Survey(_, gpus)) = library.ask(&Ask::Survey, Duration::from_secs(15)) else { return Vec::new() };
    let serial = |index: u32, library: &mut Worker| match library.ask(&Ask::Identity(index), Duration::from_secs(15)) {
        Ok(Answer::Identity(identity)) => identity.serial,
        _ => None,
    };
    gpus.into_iter().map(|(index, _)| Expected { entity: index, serial: serial(index, library) }).collect()
}
