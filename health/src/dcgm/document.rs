//! Both dialects of the document, read into one form.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::errors::{Version, id_of};
use super::strict;

/// Why a text is no document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "problem", content = "detail")]
pub enum Problem {
    /// There is no JSON in it.
    #[error("there is no JSON in it")]
    NoJson,
    /// The JSON does not read: cut off, mostly.
    #[error("the JSON does not read: {0}")]
    Malformed(String),
    /// Something follows the document: which of the two counts is not known.
    #[error("something follows it: {0}")]
    Trailing(String),
    /// It says two things at once.
    #[error("it says two things: {0}")]
    Contradiction(String),
    /// It is larger than any real one.
    #[error("it has {0} bytes")]
    TooLarge(usize),
    /// It has neither root that is known.
    #[error("it is of no version that is known (it has {0})")]
    UnknownRoot(String),
    /// DCGM gave up.
    #[error("DCGM gave up: {0}")]
    RuntimeError(String),
    /// It has no results.
    #[error("it has no results")]
    NoResults,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Passed.
    Pass,
    /// Passed with a warning, or failed mildly.
    Warn,
    /// Failed.
    Fail,
    /// Left out by DCGM, or not begun.
    NotRun,
    /// A word that is not known.
    Unknown(String),
}

impl Status {
    fn of(word: Option<&str>) -> Self {
        match word.unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "pass" => Self::Pass,
            "warn" | "warning" => Self::Warn,
            "fail" => Self::Fail,
            "skip" | "skipped" | "not run" | "notrun" => Self::NotRun,
            _ => Self::Unknown(word.unwrap_or("none").chars().take(40).collect()),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("Pass"),
            Self::Warn => f.write_str("Warn"),
            Self::Fail => f.write_str("Fail"),
            Self::NotRun => f.write_str("Skip"),
            Self::Unknown(word) => write!(f, "'{word}'"),
        }
    }
}

/// What a test has to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// DCGM's id of the error.
    pub error: Option<i64>,
    /// The number of its severity, which means one thing or another by version.
    pub severity: Option<i64>,
    /// Its text.
    pub text: String,
}

/// One test on one GPU, or on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// `software`, `memory`, `targeted_power`, …, as version 4 names them.
    pub test: String,
    /// GPU by DCGM's entity number; none where it is about the machine, or does not say.
    pub gpu: Option<u32>,
    /// How it ended.
    pub status: Status,
    /// What it says.
    pub warnings: Vec<Warning>,
    /// Measurements, as text.
    pub info: Vec<String>,
    /// It is the test's summary: it may report something, and proves nothing of any GPU.
    pub is_summary: bool,
    /// The check of version 3 that version 4 has inside `software`.
    pub part: Option<String>,
    /// Which repetition it is of.
    pub iteration: u32,
}

/// A document of either version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// DCGM's version, where it says.
    pub version: Option<Version>,
    /// Whether it is of the form of version 4.
    pub is_v4: bool,
    /// Driver, where it says.
    pub driver: Option<String>,
    /// Serial numbers of the GPUs that it lists, by entity; none where the GPU has none.
    pub gpus: BTreeMap<u32, Option<String>>,
    /// All results.
    pub results: Vec<TestResult>,
    /// Repetitions.
    pub iterations: u32,
    /// What it says of all repetitions together.
    pub overall: Option<Status>,
}

/// Larger than any real document of sixteen GPUs by far.
const BYTES_MAX: usize = 16 << 20;
const V3: &str = "DCGM GPU Diagnostic";
const V4: &str = "DCGM Diagnostic";

impl Document {
    /// Reads what `dcgmi diag -j` printed; a banner before the JSON does not matter.
    ///
    /// # Errors
    /// [`Problem`].
    pub fn read(text: &str) -> Result<Self, Problem> {
        if text.len() > BYTES_MAX {
            return Err(Problem::TooLarge(text.len()));
        }
        let start = text.find('{').ok_or(Problem::NoJson)?;
        let (value, rest) = strict::read(&text[start..]).map_err(|e| Problem::Malformed(e.to_string()))?;
        if !rest.trim().is_empty() {
            return Err(Problem::Trailing(rest.trim().chars().take(80).collect()));
        }
        let mut document = Self {
            version: None,
            is_v4: false,
            driver: None,
            gpus: BTreeMap::new(),
            results: Vec::new(),
            iterations: 0,
            overall: value.get("Overall Result").map(|word| Status::of(word.as_str())),
        };
        if let Some(error) = value.get("runtime_error") {
            return Err(Problem::RuntimeError(text_of(error)));
        }
        match value.get("iterations").and_then(Value::as_array) {
            Some(iterations) => {
                for one in iterations {
                    document.add(one)?;
                }
            }
            None => document.add(&value)?,
        }
        if document.results.is_empty() {
            return Err(Problem::NoResults);
        }
        Ok(document)
    }

    fn add(&mut self, value: &Value) -> Result<(), Problem> {
        if value.get(V4).is_some() && value.get(V3).is_some() {
            return Err(Problem::Contradiction("it is of version 3 and of version 4".into()));
        }
        let root = value.get(V4).map(|root| (root, true)).or_else(|| value.get(V3).map(|root| (root, false)));
        let Some((root, is_v4)) = root else {
            let keys = value.as_object().map(|o| o.keys().take(5).cloned().collect::<Vec<_>>().join(", "));
            return Err(Problem::UnknownRoot(keys.unwrap_or_else(|| "no object".into())));
        };
        if let Some(error) = root.get("runtime_error").or_else(|| value.get("runtime_error")) {
            return Err(Problem::RuntimeError(text_of(error)));
        }
        self.is_v4 = is_v4;
        let about = value.get("metadata").unwrap_or(root);
        self.version = about.get("version").and_then(Value::as_str).and_then(|v| v.parse().ok()).or(self.version);
        let driver = about.get("Driver Version Detected").and_then(Value::as_str);
        self.driver = driver.map(str::to_owned).or(self.driver.take());
        for (entity, serial) in if is_v4 { entities(value) } else { serials(root) } {
            let before = self.gpus.insert(entity, serial.clone());
            if before.is_some_and(|before| before != serial) {
                return Err(Problem::Contradiction(format!("GPU {entity} has two serial numbers")));
            }
        }
        let before = self.results.len();
        for category in array(root, "test_categories") {
            let deployment = category.get("category").and_then(Value::as_str) == Some("Deployment");
            for test in array(category, "tests") {
                self.add_test(test, deployment && !is_v4);
            }
        }
        if self.results.len() == before {
            return Err(Problem::NoResults);
        }
        self.iterations += 1;
        Ok(())
    }

    fn add_test(&mut self, test: &Value, is_software: bool) {
        let said = test.get("name").and_then(Value::as_str).unwrap_or("?");
        let name = if is_software { "software".to_owned() } else { name_of(said) };
        let result = |gpu: Option<u32>, from: &Value| TestResult {
            test: name.clone(),
            gpu,
            status: Status::of(from.get("status").and_then(Value::as_str)),
            warnings: warnings(from),
            info: info(from),
            is_summary: false,
            part: is_software.then(|| said.to_owned()),
            iteration: self.iterations,
        };
        let mut found = Vec::new();
        for one in array(test, "results") {
            let gpus = gpus_of(one);
            if gpus.is_empty() {
                found.push(result(None, one));
            }
            found.extend(gpus.into_iter().map(|gpu| result(Some(gpu), one)));
        }
        // The summary repeats what the results say. What it alone says counts.
        if let Some(summary) = test.get("test_summary") {
            let mut only = TestResult { is_summary: true, ..result(None, summary) };
            only.warnings.retain(|w| !found.iter().any(|r: &TestResult| r.warnings.contains(w)));
            let told = found.iter().any(|r| r.status == only.status);
            if !only.warnings.is_empty() || !told {
                found.push(only);
            }
        }
        self.results.extend(found);
    }
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text_of(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(2000).collect()
}

/// Version 4's name of a test: `Targeted Power` and `targeted_power` are one.
fn name_of(said: &str) -> String {
    let name = said.trim().to_ascii_lowercase().replace([' ', '-'], "_");
    match name.as_str() {
        "gpu_memory" => "memory".into(),
        _ => name,
    }
}

/// GPUs that a result is about: an entity of version 4, `gpu_id` or a list `gpu_ids` of version 3.
fn gpus_of(result: &Value) -> Vec<u32> {
    let is_gpu = result.get("entity_group").and_then(Value::as_str).is_none_or(|g| g == "GPU");
    if let Some(entity) = result.get("entity_id").filter(|_| is_gpu) {
        return number(entity).into_iter().collect();
    }
    let listed = result.get("gpu_id").or_else(|| result.get("gpu_ids"));
    let text = listed.map(text_of).unwrap_or_default();
    text.split(',').filter_map(|n| n.trim().parse().ok()).collect()
}

fn number(value: &Value) -> Option<u32> {
    let direct = value.as_u64().and_then(|n| u32::try_from(n).ok());
    direct.or_else(|| value.as_str()?.trim().parse().ok())
}

/// A number, be it written as text.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn warnings(from: &Value) -> Vec<Warning> {
    let listed = from.get("warnings").or_else(|| from.get("warning"));
    let all: &[Value] = match listed {
        Some(Value::Array(all)) => all,
        Some(one) => std::slice::from_ref(one),
        None => &[],
    };
    let one = |w: &Value| {
        let id = w.get("error_id").filter(|id| !id.is_null());
        let said = text_of(w.get("warning").unwrap_or(w));
        // One that has nothing but a name that nobody knows says that name.
        let text = match id.filter(|_| said.trim().is_empty()) {
            Some(id) => text_of(id),
            None => said,
        };
        let error = id.and_then(|id| integer(id).or_else(|| id_of(id.as_str()?)));
        Warning { error, severity: w.get("error_severity").and_then(integer), text }
    };
    all.iter().map(one).filter(|w| !w.text.trim().is_empty() || w.error.is_some()).collect()
}

fn info(from: &Value) -> Vec<String> {
    match from.get("info") {
        Some(Value::Array(all)) => all.iter().map(text_of).collect(),
        Some(one) => text_of(one).split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect(),
        None => Vec::new(),
    }
}

/// Serial numbers of version 4. `<<<NOT_SUPPORTED>>>` is none.
fn entities(value: &Value) -> Vec<(u32, Option<String>)> {
    let groups = array(value, "entity_groups").iter();
    let gpus = groups.filter(|g| g.get("entity_group").and_then(Value::as_str) == Some("GPU"));
    let all = gpus.flat_map(|g| array(g, "entities"));
    all.filter_map(|e| Some((number(e.get("entity_id")?)?, serial(e.get("serial_num"))))).collect()
}

/// Those of version 3.
fn serials(root: &Value) -> Vec<(u32, Option<String>)> {
    let empty = Map::new();
    let listed = root.get("GPU Device Serials").and_then(Value::as_object).unwrap_or(&empty);
    listed.iter().filter_map(|(id, s)| Some((id.parse().ok()?, serial(Some(s))))).collect()
}

fn serial(value: Option<&Value>) -> Option<String> {
    value?.as_str().filter(|s| !s.is_empty() && !s.contains("NOT_SUPPORTED")).map(str::to_owned)
}
