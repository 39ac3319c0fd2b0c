//! Parts of plan files and scenarios: classes, demand, quotas, in the words that people write.

use std::path::{Path, PathBuf};

use fleet::Offer;
use fleet::book::ClassRule;
use planner::input::Quota;
use protocol::{ClassSpec, Matching, QuotaSpec};
use serde::Deserialize;

use crate::demand::{self, Kind, Series, convert};

/// Something in a file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct PartError {
    /// Where.
    pub place: String,
    /// What is wrong, and what to do where that is known.
    pub what: String,
    /// The reader's own error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl PartError {
    /// An error at a place.
    pub fn at(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into(), source: None }
    }
}

/// Where the demand is, and what a replica can do.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DemandPart {
    /// The trace.
    pub file: PathBuf,
    kind: Option<String>,
    /// Season, seconds.
    #[serde(default = "day")]
    pub season_s: u32,
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    target_utilisation: Option<f64>,
    scale_down_s: Option<u32>,
    step_s: Option<u32>,
    input_tokens: Option<f64>,
    output_tokens: Option<f64>,
}

fn day() -> u32 {
    86_400
}

impl DemandPart {
    /// Reads the trace at `path`.
    ///
    /// # Errors
    /// An unknown kind, a parameter out of range, or a broken file, by its place.
    pub fn read(&self, path: &Path, seed: u64) -> Result<Series, PartError> {
        let data =
            |e: providers::DataError| PartError { place: e.place(), what: e.what.clone(), source: Some(Box::new(e)) };
        let kind = match &self.kind {
            Some(name) => Kind::NAMES.iter().find(|(n, _)| n == name).map(|(_, k)| *k).ok_or_else(|| {
                let names: Vec<&str> = Kind::NAMES.iter().map(|(n, _)| *n).collect();
                PartError::at("demand.kind", format!("'{name}' is none of {}", names.join(", ")))
            })?,
            None => Kind::guess(path).map_err(data)?,
        };
        let base = convert::Params::default();
        let params = convert::Params {
            prefill_tokens_per_s: self.prefill_tokens_per_s.unwrap_or(base.prefill_tokens_per_s),
            decode_tokens_per_s: self.decode_tokens_per_s.unwrap_or(base.decode_tokens_per_s),
            target_utilisation: self.target_utilisation.unwrap_or(base.target_utilisation),
            scale_down_s: self.scale_down_s.unwrap_or(base.scale_down_s),
            step_s: self.step_s.unwrap_or(base.step_s),
            input_tokens: self.input_tokens.unwrap_or(base.input_tokens),
            output_tokens: self.output_tokens.unwrap_or(base.output_tokens),
            seed,
        };
        params.check().map_err(|what| PartError::at("demand", what))?;
        if self.season_s == 0 {
            return Err(PartError::at("demand.season_s", "0 seconds are no season; 86400 is a day"));
        }
        demand::read(path, kind, &params).map_err(data)
    }
}

/// The rule of a class as it is written.
///
/// # Errors
/// A field that makes no sense, by its name.
pub fn rule(spec: &ClassSpec) -> Result<ClassRule, PartError> {
    spec.rule().map_err(|e| PartError::at(format!("class '{}': {}", e.class, e.field), e.what.clone()))
}

/// Indices of the demand series that make up this class.
///
/// # Errors
/// A name that the demand does not have, or nothing at all.
pub fn series_of(spec: &ClassSpec, series: &Series) -> Result<Vec<usize>, PartError> {
    let place = format!("class '{}'", spec.name);
    let known: Vec<&str> = series.classes.iter().take(12).map(String::as_str).collect();
    let by_rule = spec.demand_prefix.is_some() || spec.demand_ranks.is_some();
    if by_rule {
        let prefix = spec.demand_prefix.as_deref().unwrap_or("");
        let mut members: Vec<usize> =
            (0..series.classes.len()).filter(|i| series.classes[*i].starts_with(prefix)).collect();
        if let Some((from, to)) = spec.demand_ranks {
            let size = |i: &usize| series.values[*i].iter().sum::<f64>();
            members.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
            members = members.into_iter().take(to).skip(from).collect();
        }
        if members.is_empty() {
            return Err(PartError::at(place, format!("no series of the demand is meant; it has {}", known.join(", "))));
        }
        return Ok(members);
    }
    let names = spec.demand.clone().unwrap_or_else(|| vec![spec.name.clone()]);
    let find = |name: &String| {
        series.classes.iter().position(|c| c == name).ok_or_else(|| {
            PartError::at(&place, format!("the demand has no series '{name}'; it has {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// Indices of the offers that are meant.
///
/// # Errors
/// None is.
pub fn members(matching: &Matching, offers: &[Offer], place: &str) -> Result<Vec<usize>, PartError> {
    let hits = matching.members(offers);
    if hits.is_empty() { Err(PartError::at(place, "no usable offer is meant by it")) } else { Ok(hits) }
}

/// A quota over `offers`, in GPUs.
///
/// # Errors
/// It means no offer.
pub fn quota(spec: &QuotaSpec, offers: &[Offer]) -> Result<Quota, PartError> {
    let hits = members(&spec.matching, offers, &format!("quota '{}'", spec.name))?;
    let members = hits.into_iter().map(|p| (p, f64::from(offers[p].gpus_per_node))).collect();
    Ok(Quota { name: spec.name.clone(), members, limit: spec.limit_gpus })
}
