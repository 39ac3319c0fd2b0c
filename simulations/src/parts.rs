//! Parts of plan files and scenarios: classes, demand, quotas, in the words that people write.

use std::path::{Path, PathBuf};

use fleet::{AcceptedGpu, Class, Interconnect, Market, Offer, OnEmpty, PriceCap, UsdMicros};
use planner::input::Quota;
use serde::{Deserialize, Serialize};

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

/// A class.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassPart {
    /// Unique name.
    pub name: String,
    /// Series of the demand file that add up to this class; without it the one of its name.
    pub demand: Option<Vec<String>>,
    /// Instead: series whose name begins so.
    pub demand_prefix: Option<String>,
    /// Of those, or of all: the largest by mean, from this rank to before that one.
    pub demand_ranks: Option<(usize, usize)>,
    gpus: Vec<GpuPart>,
    #[serde(default = "one")]
    /// GPUs of one claim.
    pub gpus_per_claim: u32,
    #[serde(default)]
    /// A claim may span nodes.
    pub multi_node: bool,
    max_node_gpus: Option<u32>,
    #[serde(default)]
    min_memory_gib: u32,
    #[serde(default = "pcie")]
    min_interconnect: Interconnect,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    markets: Vec<Market>,
    /// Target.
    pub hit_rate: f64,
    #[serde(default = "dollar")]
    miss_cost_usd: f64,
    /// Mean life of a claim; simulations measure it.
    #[serde(default = "hour")]
    pub claim_mean_s: f64,
    /// Longest wait for a hit, seconds.
    #[serde(default = "half_minute")]
    pub wait_s: f64,
    /// What a claim does when no GPU is free.
    #[serde(default = "launch_cold")]
    pub on_empty: OnEmpty,
}

fn half_minute() -> f64 {
    30.0
}

fn launch_cold() -> OnEmpty {
    OnEmpty::LaunchCold
}

fn one() -> u32 {
    1
}

fn pcie() -> Interconnect {
    Interconnect::Pcie
}

fn dollar() -> f64 {
    1.0
}

fn hour() -> f64 {
    3600.0
}

/// A GPU model that a class takes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuPart {
    model: fleet::GpuModel,
    /// Dollars for a GPU-hour.
    max_usd_per_gpu_h: Option<f64>,
    /// Share above the cheapest offer of the first model.
    max_premium: Option<f64>,
}

/// Which offers: every key that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matching {
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<fleet::GpuModel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    market: Option<Market>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_type: Option<String>,
}

impl Matching {
    /// Whether an offer is meant.
    #[must_use]
    pub fn matches(&self, offer: &Offer) -> bool {
        let key = &offer.key;
        self.provider.as_ref().is_none_or(|p| *p == key.provider)
            && self.region.as_ref().is_none_or(|r| *r == key.region)
            && self.gpu.is_none_or(|g| g == offer.gpu)
            && self.market.is_none_or(|m| m == key.market)
            && self.instance_type.as_ref().is_none_or(|t| *t == key.instance_type)
    }
}

/// A quota.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaPart {
    /// Name shown in reports.
    pub name: String,
    #[serde(rename = "for")]
    /// Which offers count.
    pub matching: Matching,
    /// GPUs.
    pub limit_gpus: f64,
}

impl ClassPart {
    /// The class.
    ///
    /// # Errors
    /// A price that is no money, or two caps at once.
    pub fn class(&self) -> Result<Class, PartError> {
        let place = |field: &str| format!("class '{}': {field}", self.name);
        let gpu = |g: &GpuPart| -> Result<AcceptedGpu, PartError> {
            let cap = match (g.max_usd_per_gpu_h, g.max_premium) {
                (Some(_), Some(_)) => {
                    return Err(PartError::at(
                        place("gpus"),
                        format!("{}: give max_usd_per_gpu_h or max_premium, not both", g.model),
                    ));
                }
                (Some(price), None) => Some(PriceCap::UsdMicrosPerGpuH(usd(&place("max_usd_per_gpu_h"), price)?)),
                (None, premium) => premium.map(PriceCap::Premium),
            };
            Ok(AcceptedGpu { model: g.model, cap })
        };
        Ok(Class {
            name: self.name.clone(),
            gpus: self.gpus.iter().map(gpu).collect::<Result<_, PartError>>()?,
            gpus_per_claim: self.gpus_per_claim,
            multi_node: self.multi_node,
            max_node_gpus: self.max_node_gpus,
            min_memory_gib: self.min_memory_gib,
            min_interconnect: self.min_interconnect,
            regions: self.regions.clone(),
            markets: self.markets.clone(),
            hit_rate_target: self.hit_rate,
            miss_cost_usd_micros: usd(&place("miss_cost_usd"), self.miss_cost_usd)?,
        })
    }

    /// Indices of the demand series that make up this class.
    ///
    /// # Errors
    /// A name that the demand does not have, or nothing at all.
    pub fn members(&self, series: &Series) -> Result<Vec<usize>, PartError> {
        let place = format!("class '{}'", self.name);
        let known: Vec<&str> = series.classes.iter().take(12).map(String::as_str).collect();
        let by_rule = self.demand_prefix.is_some() || self.demand_ranks.is_some();
        if by_rule {
            let prefix = self.demand_prefix.as_deref().unwrap_or("");
            let mut members: Vec<usize> =
                (0..series.classes.len()).filter(|i| series.classes[*i].starts_with(prefix)).collect();
            if let Some((from, to)) = self.demand_ranks {
                let size = |i: &usize| series.values[*i].iter().sum::<f64>();
                members.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.cmp(b)));
                members = members.into_iter().take(to).skip(from).collect();
            }
            if members.is_empty() {
                return Err(PartError::at(
                    place,
                    format!("no series of the demand is meant; it has {}", known.join(", ")),
                ));
            }
            return Ok(members);
        }
        let names = self.demand.clone().unwrap_or_else(|| vec![self.name.clone()]);
        let find = |name: &String| {
            series.classes.iter().position(|c| c == name).ok_or_else(|| {
                PartError::at(&place, format!("the demand has no series '{name}'; it has {}", known.join(", ")))
            })
        };
        names.iter().map(find).collect()
    }
}

fn usd(place: &str, value: f64) -> Result<UsdMicros, PartError> {
    UsdMicros::from_usd(value).map_err(|e| PartError::at(place, e.to_string()))
}

impl Matching {
    /// Indices of the offers that are meant.
    ///
    /// # Errors
    /// None is.
    pub fn members(&self, offers: &[Offer], place: &str) -> Result<Vec<usize>, PartError> {
        let hits: Vec<usize> = (0..offers.len()).filter(|p| self.matches(&offers[*p])).collect();
        if hits.is_empty() { Err(PartError::at(place, "no usable offer is meant by it")) } else { Ok(hits) }
    }
}

impl QuotaPart {
    /// The quota over `offers`, in GPUs.
    ///
    /// # Errors
    /// It means no offer.
    pub fn quota(&self, offers: &[Offer]) -> Result<Quota, PartError> {
        let hits = self.matching.members(offers, &format!("quota '{}'", self.name))?;
        let members = hits.into_iter().map(|p| (p, f64::from(offers[p].gpus_per_node))).collect();
        Ok(Quota { name: self.name.clone(), members, limit: self.limit_gpus })
    }
}
