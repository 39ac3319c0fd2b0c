//! What a document, with the way the process ended, proves about the GPUs.

use std::collections::BTreeSet;
use std::fmt;

use fleet::Remedy;
use serde::{Deserialize, Serialize};

use super::document::{Document, Problem, Status, TestResult, Warning};
use super::errors::{Severity, Version, name_of};
use crate::verdict::Verdict;

/// How the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By itself, with this code: DCGM's return value as an unsigned byte.
    Code(u8),
    /// By a signal that was not ours.
    Signal(i32),
    /// By us, because its time was over.
    TimedOut,
    /// By us, because somebody wanted the GPUs.
    Preempted,
}

/// `DCGM_ST_OK`.
const OK: u8 = 0;
/// `DCGM_ST_NVVS_ERROR` (-30): something was found, be it a setting.
const FOUND: u8 = 226;
/// `DCGM_ST_NVVS_ISOLATE_ERROR` (-51): something was found that isolates a GPU.
const ISOLATE: u8 = 205;
/// `DCGM_ST_DIAG_ALREADY_RUNNING` (-39).
const RUNNING: u8 = 217;

/// Skipped unless the operator says where its programs are (DCGM 4.5 and later).
const OPTIONAL: [&str; 1] = ["nccl_tests"];

/// How long one test of a list may take, seconds.
pub const TEST_DEADLINE_S: u32 = 600;

/// How long a level may take, 1 to 4, seconds: half again as long as it usually takes (DCGM user guide; measured by others on
/// hosts of eight GPUs).
#[must_use]
pub fn level_deadline_s(level: u8) -> u32 {
    60 * match level {
        1 => 3,
        2 => 15,
        3 => 40,
        _ => 200,
    }
}

/// A GPU that was to be tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// DCGM's number of it.
    pub entity: u32,
    /// Its serial number, where the GPU tells it.
    pub serial: Option<String>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Tests that were to run.
    pub tests: BTreeSet<String>,
    /// Tests among them that this GPU model does not have: they prove nothing and need not.
    pub not_applicable: BTreeSet<String>,
    /// Tests among them that need what NVIDIA's package does not bring: a result of theirs counts, and none is missed.
    pub optional: BTreeSet<String>,
    /// GPUs that were to be tested.
    pub gpus: Vec<Expected>,
}

impl Plan {
    /// The tests of a level, 1 to 4 (DCGM user guide, "Run Levels and Tests"), for a version.
    #[must_use]
    pub fn of_level(level: u8, version: Version, gpus: Vec<Expected>) -> Self {
        let mut tests = vec!["software"];
        if level >= 2 {
            tests.extend(["memory", "pcie"]);
        }
        if level >= 3 {
            tests.extend(["diagnostic", "memory_bandwidth", "targeted_stress", "targeted_power"]);
            if version >= Version(4, 0, 0) {
                tests.push("nvbandwidth");
            }
            if version >= Version(4, 5, 0) {
                tests.push("nccl_tests");
            }
        }
        if level >= 4 {
            tests.extend(["memtest", "pulse_test"]);
        }
        let tests = tests.into_iter().map(str::to_owned).collect();
        let optional = OPTIONAL.map(str::to_owned).into();
        Self { tests, not_applicable: BTreeSet::new(), optional, gpus }
    }

    /// A list of tests, as `-r memory,targeted_stress` takes it.
    #[must_use]
    pub fn of_tests(tests: &[&str], gpus: Vec<Expected>) -> Self {
        let tests = tests.iter().map(|t| (*t).to_owned()).collect();
        Self { tests, not_applicable: BTreeSet::new(), optional: BTreeSet::new(), gpus }
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Test.
    pub test: String,
    /// GPU; none where it does not say.
    pub gpu: Option<u32>,
    /// What it asks for.
    pub severity: Severity,
    /// DCGM's id.
    pub error: Option<i64>,
    /// DCGM's text.
    pub text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.test)?;
        if let Some(gpu) = self.gpu {
            write!(f, " on GPU {gpu}")?;
        }
        if let Some(error) = self.error {
            write!(f, ", {}", name_of(error).map_or_else(|| format!("error {error}"), str::to_owned))?;
        }
        write!(f, " ({}): {}", self.severity.name(), self.text.trim())
    }
}

/// Why something was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no document.
    NoDocument(Problem),
    /// A test that was to run has no result.
    Missing {
        /// Test.
        test: String,
        /// GPU; none where it is missing altogether.
        gpu: Option<u32>,
    },
    /// A test was left out.
    Skipped {
        /// Test.
        test: String,
        /// GPU.
        gpu: Option<u32>,
    },
    /// A status that is not known.
    UnknownStatus {
        /// Test.
        test: String,
        /// The word.
        status: String,
    },
    /// It says of all repetitions together what no result says.
    Overall(String),
    /// Exit code and document say different things.
    Inconsistent {
        /// The code.
        code: u8,
    },
    /// Another diagnostic is running: to be tried again later.
    AlreadyRunning,
    /// It ended with a code that is not one of a diagnostic that ran.
    ExitCode(u8),
    /// It was killed by somebody else.
    Killed(i32),
    /// It took too long.
    TimedOut,
    /// We stopped it for a claim.
    Preempted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |gpu: &Option<u32>| gpu.map_or_else(String::new, |g| format!(" on GPU {g}"));
        match self {
            Self::NoDocument(problem) => write!(f, "no document: {problem}"),
            Self::Missing { test, gpu } => write!(f, "{test} has no result{}", on(gpu)),
            Self::Skipped { test, gpu } => write!(f, "{test} was left out{}", on(gpu)),
            Self::UnknownStatus { test, status } => write!(f, "{test} ended with {status}"),
            Self::Overall(status) => write!(f, "the document says {status} of all together, and no result of it does"),
            Self::Inconsistent { code } => write!(f, "exit code {code} says something else than the document"),
            Self::AlreadyRunning => write!(f, "another diagnostic is running"),
            Self::ExitCode(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
            Self::TimedOut => write!(f, "it took too long"),
            Self::Preempted => write!(f, "stopped for a claim"),
        }
    }
}

/// One test on one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tested {
    /// Test.
    pub test: String,
    /// GPU.
    pub gpu: u32,
    /// What it says.
    pub verdict: Verdict,
}

/// What it proves.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judgement {
    /// All together.
    pub verdict: Verdict,
    /// What is to be done.
    pub remedy: Remedy,
    /// What was found.
    pub findings: Vec<Finding>,
    /// What was not measured, and why.
    pub unmeasured: Vec<Reason>,
    /// GPUs that were to be tested and are not there.
    pub missing_gpus: Vec<u32>,
    /// Tests that were left out, and need not have run.
    pub left_out: Vec<String>,
    /// Every GPU has the same wrong setting: the image is to blame.
    pub image_fault: bool,
    /// By test and GPU.
    pub tests: Vec<Tested>,
}

impl fmt::Display for Judgement {
    /// For people: the verdict, and a line for each thing that was found or not measured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verdict.name(), self.remedy.name())?;
        for gpu in &self.missing_gpus {
            write!(f, "\n  GPU {gpu} is missing")?;
        }
        for finding in &self.findings {
            write!(f, "\n  {finding}")?;
        }
        for reason in &self.unmeasured {
            write!(f, "\n  not measured: {reason}")?;
        }
        for test in &self.left_out {
            write!(f, "\n  left out, and optional: {test}")?;
        }
        if self.image_fault {
            write!(f, "\n  every GPU has the same wrong setting: the image is to blame")?;
        }
        Ok(())
    }
}

/// Judges what `dcgmi diag -j` printed.
#[must_use]
pub fn judge(text: &str, exit: Exit, plan: &Plan) -> Judgement {
    let mut made = Judgement {
        verdict: Verdict::Unmeasured,
        remedy: Remedy::TryAgain,
        findings: Vec::new(),
        unmeasured: Vec::new(),
        missing_gpus: Vec::new(),
        left_out: Vec::new(),
        image_fault: false,
        tests: Vec::new(),
    };
    let ended = match exit {
        Exit::Preempted => Some(Reason::Preempted),
        Exit::TimedOut => Some(Reason::TimedOut),
        Exit::Signal(signal) => Some(Reason::Killed(signal)),
        Exit::Code(RUNNING) => Some(Reason::AlreadyRunning),
        Exit::Code(OK | FOUND | ISOLATE) => None,
        Exit::Code(code) => Some(Reason::ExitCode(code)),
    };
    if let Some(reason) = ended {
        // What it printed before it was stopped may be half a result.
        made.unmeasured.push(reason);
        return made;
    }
    let document = match Document::read(text) {
        Ok(document) => document,
        Err(problem) => {
            made.unmeasured.push(Reason::NoDocument(problem));
            return made;
        }
    };
    made.missing_gpus = missing_gpus(&document, plan);
    for result in &document.results {
        // The form of version 4 has one enumeration only.
        let version = document.version.or(document.is_v4.then_some(Version(4, 0, 0)));
        made.findings.extend(findings(result, version));
    }
    made.cover(&document, plan);
    made.overall(&document);
    if let Exit::Code(code) = exit
        && !made.agrees(&document, code)
    {
        made.unmeasured.push(Reason::Inconsistent { code });
    }
    made.conclude(plan);
    made
}

/// GPUs that no result is about, or whose serial number is another's.
fn missing_gpus(document: &Document, plan: &Plan) -> Vec<u32> {
    let missing = |gpu: &&Expected| {
        let listed = document.gpus.get(&gpu.entity);
        let another = matches!((listed, &gpu.serial), (Some(Some(there)), Some(bought)) if there != bought);
        let seen = listed.is_some() || document.results.iter().any(|r| r.gpu == Some(gpu.entity));
        // Old documents list no GPUs, and their software tests name none: a level 1 run of theirs tells of no GPU at all.
        let told = !document.gpus.is_empty() || document.results.iter().any(|r| r.gpu.is_some());
        another || (told && !seen)
    };
    plan.gpus.iter().filter(missing).map(|g| g.entity).collect()
}

/// Id 0 is "no error": what it says beside that counts all the same.
fn says_something(warning: &Warning) -> bool {
    warning.error != Some(0) || !warning.text.trim().is_empty()
}

/// What a result reports.
fn findings(result: &TestResult, version: Option<Version>) -> Vec<Finding> {
    let finding = |severity: Severity, warning: Option<&Warning>| Finding {
        test: result.test.clone(),
        gpu: result.gpu,
        severity,
        error: warning.and_then(|w| w.error),
        text: warning.map_or_else(|| format!("{} without a reason", result.status), |w| w.text.clone()),
    };
    let judged = |warning: &Warning| {
        let by_number = |number| match version {
            Some(version) => Severity::of_number(number, version),
            // Which of the two meanings the number has is not known: the worse one, and no better than usual.
            None => {
                let (old, new) = (Version(3, 1, 0), Version(3, 3, 0));
                let usual = warning.error.map_or(Severity::Triage, Severity::of_error);
                Severity::of_number(number, old).max(Severity::of_number(number, new)).max(usual)
            }
        };
        let severity = match (warning.severity, warning.error) {
            (Some(number), _) => by_number(number),
            (None, Some(error)) => Severity::of_error(error),
            (None, None) => Severity::Triage,
        };
        // An error beside a pass: the test says two things.
        let contradicts = result.status == Status::Pass && says_something(warning);
        finding(if contradicts { severity.max(Severity::Triage) } else { severity }, Some(warning))
    };
    let is_bad = matches!(result.status, Status::Fail | Status::Warn);
    // Whether it has an id or not: a test that passes has nothing to warn of.
    let counts = |w: &&Warning| is_bad || says_something(w);
    let mut all: Vec<Finding> = result.warnings.iter().filter(counts).map(judged).collect();
    if is_bad && all.is_empty() {
        all.push(finding(Severity::Triage, None));
    }
    all
}

/// Checks of which version 3's software test consists, as far as they tell of GPUs (DCGM user guide, deployment plugin).
const V3_SOFTWARE: [&str; 4] = ["NVML Library", "CUDA Main Library", "Page Retirement/Row Remap", "Inforom"];

/// Whether a test has a result for a GPU. Version 3's software test has parts, each of its own name, with GPUs or without:
/// it needs all of them.
fn document_covers(document: &Document, test: &str, gpu: u32, results: &[&TestResult]) -> bool {
    if document.is_v4 || test != "software" {
        return results.iter().any(|r| r.gpu == Some(gpu));
    }
    let has = |part: &str| results.iter().any(|r| !r.is_summary && r.part.as_deref() == Some(part));
    V3_SOFTWARE.iter().all(|part| has(part))
}

impl Judgement {
    /// Every test that was to run needs a result for each GPU, in each repetition.
    fn cover(&mut self, document: &Document, plan: &Plan) {
        for test in &plan.tests {
            let needed = !plan.not_applicable.contains(test) && !plan.optional.contains(test);
            let ran = |r: &TestResult| r.test == *test && r.status != Status::NotRun;
            if plan.optional.contains(test) && !document.results.iter().any(ran) {
                self.left_out.push(test.clone());
            }
            for gpu in &plan.gpus {
                let mut verdict = Verdict::Pass;
                for iteration in 0..document.iterations {
                    let of = |r: &&TestResult| {
                        r.test == *test && r.iteration == iteration && r.gpu.is_none_or(|g| g == gpu.entity)
                    };
                    let results: Vec<&TestResult> = document.results.iter().filter(of).collect();
                    let own = document_covers(document, test, gpu.entity, &results);
                    verdict = verdict.max(self.one(test, gpu.entity, &results, own, needed));
                }
                if document.iterations == 0 {
                    verdict = Verdict::Unmeasured;
                }
                self.tests.push(Tested { test: test.clone(), gpu: gpu.entity, verdict });
            }
        }
        // A word that nobody knows, of whatever test it is.
        for result in &document.results {
            if let Status::Unknown(word) = &result.status {
                self.unmeasured.push(Reason::UnknownStatus { test: result.test.clone(), status: word.clone() });
            }
        }
        let mut seen = BTreeSet::new();
        self.unmeasured.retain(|r| seen.insert(r.to_string()));
    }

    fn one(&mut self, test: &str, gpu: u32, results: &[&TestResult], own: bool, needed: bool) -> Verdict {
        let test_name = || test.to_owned();
        if !own {
            if needed {
                self.unmeasured.push(Reason::Missing { test: test_name(), gpu: Some(gpu) });
                return Verdict::Unmeasured;
            }
            return Verdict::Pass;
        }
        let mut verdict = Verdict::Pass;
        for result in results {
            let said = match &result.status {
                Status::Pass => Verdict::Pass,
                Status::Warn | Status::Fail => Verdict::Fail,
                Status::NotRun if !needed => Verdict::Pass,
                Status::NotRun => {
                    self.unmeasured.push(Reason::Skipped { test: test_name(), gpu: Some(gpu) });
                    Verdict::Unmeasured
                }
                // Said for all tests at once.
                Status::Unknown(_) => Verdict::Unmeasured,
            };
            verdict = verdict.max(said);
        }
        verdict
    }

    /// What the document says of all repetitions must be what some result says.
    fn overall(&mut self, document: &Document) {
        let Some(overall) = document.overall.as_ref().filter(|o| **o != Status::Pass) else { return };
        if !document.results.iter().any(|r| r.status == *overall) {
            self.unmeasured.push(Reason::Overall(overall.to_string()));
        }
    }

    /// Whether the exit code says what the document says. Since 4.6 the code is made of the errors that results name, and not
    /// of their status.
    fn agrees(&self, document: &Document, code: u8) -> bool {
        let bad = document.results.iter().any(|r| matches!(r.status, Status::Fail | Status::Warn));
        let failed = document.results.iter().any(|r| r.status == Status::Fail);
        let by_errors = document.version.is_some_and(|version| version >= Version(4, 6, 0));
        let names_error = document.results.iter().any(|r| r.warnings.iter().any(|w| w.error.is_some_and(|e| e != 0)));
        let isolates = self.findings.iter().any(|f| f.severity == Severity::Isolate);
        match code {
            OK => !failed,
            ISOLATE => isolates || (by_errors && names_error),
            _ => bad || (by_errors && names_error),
        }
    }

    fn conclude(&mut self, plan: &Plan) {
        let inconsistent = self.unmeasured.iter().any(|r| matches!(r, Reason::Inconsistent { .. }));
        let worst = self.findings.iter().map(|f| f.severity).max();
        self.image_fault = self.is_image_fault(plan);
        let from_findings = match worst {
            None => (Verdict::Pass, Remedy::Nothing),
            Some(Severity::Monitor) => (Verdict::Degraded, Remedy::Record),
            // A machine that is set up wrongly was not measured as it will run.
            Some(Severity::Config) => (Verdict::Unmeasured, Remedy::SetUp),
            Some(Severity::Triage) => (Verdict::Fail, Remedy::Recheck),
            Some(Severity::Reset) => (Verdict::Fail, Remedy::Reset),
            Some(Severity::Isolate) => (Verdict::Fail, Remedy::Replace),
        };
        let (mut verdict, mut remedy) = from_findings;
        if !self.unmeasured.is_empty() {
            verdict = verdict.max(Verdict::Unmeasured);
            remedy = remedy.max(Remedy::TryAgain);
        }
        if inconsistent {
            // Neither of the two can be believed.
            (verdict, remedy) = (Verdict::Unmeasured, remedy.clamp(Remedy::TryAgain, Remedy::Recheck));
        }
        if !self.missing_gpus.is_empty() {
            (verdict, remedy) = (Verdict::Fail, Remedy::Replace);
        }
        if plan.gpus.is_empty() || plan.tests.is_empty() {
            (verdict, remedy) = (verdict.max(Verdict::Unmeasured), remedy.max(Remedy::TryAgain));
        }
        (self.verdict, self.remedy) = (verdict, remedy);
    }

    /// The same wrong setting on every GPU of a host with several.
    fn is_image_fault(&self, plan: &Plan) -> bool {
        let config: Vec<&Finding> = self.findings.iter().filter(|f| f.severity == Severity::Config).collect();
        plan.gpus.len() > 1
            && config.iter().any(|first| {
                let same = |gpu: &Expected| {
                    config.iter().any(|f| f.error == first.error && f.gpu.is_none_or(|g| g == gpu.entity))
                };
                plan.gpus.iter().all(same)
            })
    }
}
