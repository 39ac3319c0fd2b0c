//! Demand traces of several kinds, turned into concurrent GPU claims of each class.

pub mod convert;
pub mod demo;
pub mod rates;
pub mod replicas;
pub mod requests;

use std::path::Path;

use providers::DataError;

/// Concurrent demand in equal steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Length of a step in seconds.
    pub step_s: u32,
    /// Names, `[K]`.
    pub classes: Vec<String>,
    /// GPUs or replicas in use, `[K][N]`.
    pub values: Vec<Vec<f64>>,
    /// What was done to the data while reading: filled gaps, skipped columns. Nothing is dropped in silence.
    pub notes: Vec<String>,
}

impl Series {
    /// Number of steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }

    /// Sum over the classes, `[N]`.
    #[must_use]
    pub fn total(&self) -> Vec<f64> {
        (0..self.steps()).map(|i| self.values.iter().map(|v| v[i]).sum()).collect()
    }
}

/// Kinds of trace files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `TIMESTAMP,ContextTokens,GeneratedTokens` (Azure LLM inference traces).
    AzureLlm,
    /// `Timestamp,Model,Request tokens,Response tokens,…` (BurstGPT).
    BurstGpt,
    /// JSON lines with `timestamp` in ms, `input_length`, `output_length` (Mooncake).
    Mooncake,
    /// `model,client_id,t_start_s,rate_req_per_s,cv,…` (ServeGen).
    ServeGen,
    /// `timestamp,value` or any table of a time and one rate.
    Rate,
    /// `t_s,class,gpus`, or `t_s` (or `hour`) and a column for each class.
    Replicas,
    /// The answer of a Prometheus `query_range`.
    Prometheus,
}

impl Kind {
    /// Names on the command line.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("azure-llm", Self::AzureLlm),
        ("burstgpt", Self::BurstGpt),
        ("mooncake", Self::Mooncake),
        ("servegen", Self::ServeGen),
        ("rate", Self::Rate),
        ("replicas", Self::Replicas),
        ("prometheus", Self::Prometheus),
    ];

    /// Guesses the kind from a file's first bytes.
    ///
    /// # Errors
    /// The file cannot be read, or looks like none of them.
    pub fn guess(path: &Path) -> Result<Self, DataError> {
        let text = providers::table::read_text(path)?;
        let head = text.lines().next().unwrap_or("").trim();
        let has = |name: &str| head.split(',').any(|c| c.trim() == name);
        let kind = if head.starts_with('{') {
            match head {
                h if h.contains("\"input_length\"") => Some(Self::Mooncake),
                h if h.contains("\"week1_min\"") => Some(Self::Rate),
                _ => Some(Self::Prometheus),
            }
        } else if has("ContextTokens") {
            Some(Self::AzureLlm)
        } else if has("Request tokens") {
            Some(Self::BurstGpt)
        } else if has("rate_req_per_s") {
            Some(Self::ServeGen)
        } else if has("t_s") || has("hour") {
            Some(Self::Replicas)
        } else if has("timestamp") || has("timestamp_utc") {
            Some(Self::Rate)
        } else {
            None
        };
        let names: Vec<&str> = Self::NAMES.iter().map(|(n, _)| *n).collect();
        kind.ok_or_else(|| {
            DataError::file(
                path,
                format!("is no trace that is recognised; say which with --kind: {}", names.join(", ")),
            )
        })
    }
}

/// Reads any trace and converts it to concurrent claims.
///
/// # Errors
/// The file is broken: file, line and column are named.
pub fn read(path: &Path, kind: Kind, params: &convert::Params) -> Result<Series, DataError> {
    match kind {
        Kind::AzureLlm | Kind::BurstGpt | Kind::Mooncake => {
            let requests = requests::read(path, kind)?;
            Ok(convert::from_requests(&requests, &name_of(path), params))
        }
        Kind::ServeGen => {
            let clients = rates::read_servegen(path)?;
            Ok(convert::from_rates(&clients, params))
        }
        Kind::Rate => Ok(convert::from_rates(&rates::read_rate(path)?, params)),
        Kind::Replicas => replicas::read_replicas(path),
        Kind::Prometheus => replicas::read_prometheus(path),
    }
}

/// The file's name without endings.
fn name_of(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| "trace".into(), |n| n.to_string_lossy().into_owned());
    name.split('.').next().unwrap_or("trace").to_owned()
}
