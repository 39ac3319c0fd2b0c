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
    /// Demand in its unit, `[K][N]`.
    pub values: Vec<Vec<f64>>,
    /// What the values are.
    pub unit: Unit,
    /// What was done to the data while reading: filled gaps, skipped columns. Nothing is dropped in silence.
    pub notes: Vec<String>,
}

/// What the values of a series are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Work, in replicas kept busy at the target utilisation, not yet rounded: services that share replicas add up
    /// first. A replica stays for so many steps after it was last needed.
    Load {
        /// Scale-down window in steps.
        stay_steps: usize,
    },
    /// Replicas, each one claim.
    Replicas,
    /// GPUs.
    Gpus,
}

impl Series {
    /// Concurrent claims of one class that is made of `members` (indices of classes here), `[N]`.
    #[must_use]
    pub fn claims(&self, members: &[usize], gpus_per_claim: u32) -> Vec<f64> {
        let sum: Vec<f64> = (0..self.steps()).map(|i| members.iter().map(|m| self.values[*m][i]).sum()).collect();
        match self.unit {
            Unit::Replicas => sum,
            Unit::Gpus => sum.iter().map(|g| (g / f64::from(gpus_per_claim.max(1)) - 1e-9).ceil().max(0.0)).collect(),
            Unit::Load { stay_steps } => {
                let needed: Vec<f64> = sum.iter().map(|w| (w - 1e-9).ceil().max(0.0)).collect();
                let stays = |i: usize| needed[i.saturating_sub(stay_steps)..=i].iter().copied().fold(0.0, f64::max);
                (0..needed.len()).map(stays).collect()
            }
        }
    }

    /// Number of steps.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.values.first().map_or(0, Vec::len)
    }

    /// Claims of one GPU that all classes together make, `[N]`.
    #[must_use]
    pub fn total(&self) -> Vec<f64> {
        self.claims(&(0..self.values.len()).collect::<Vec<_>>(), 1)
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
