//! A class as people write it: in the configuration, over the API, on the command line, in plan files and scenarios. One
//! text means the same everywhere.

use fleet::book::ClassRule;
use fleet::{AcceptedGpu, Class, Interconnect, Market, OnEmpty, PriceCap, UsdMicros};
use serde::{Deserialize, Serialize};

/// A GPU model that a class takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct GpuSpec {
    /// The model, as `pilotlight offers show` names it.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub model: fleet::GpuModel,
    /// Dollars for a GPU-hour; offers above are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_usd_per_gpu_h: Option<f64>,
    /// Share above the cheapest offer of the class's first model; offers above are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_premium: Option<f64>,
}

/// What schedulers claim, and how sure they want to be of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ClassSpec {
    /// Unique name.
    pub name: String,
    /// In plan files and scenarios: series of the demand file that add up to this class; without it the one of its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(ignore))]
    pub demand: Option<Vec<String>>,
    /// There, instead: series whose name begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(ignore))]
    pub demand_prefix: Option<String>,
    /// Of those, or of all: the largest by mean, from this rank to before that one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(ignore))]
    pub demand_ranks: Option<(usize, usize)>,
    /// Models in order of preference.
    pub gpus: Vec<GpuSpec>,
    /// GPUs of one claim.
    #[serde(default = "one")]
    pub gpus_per_claim: u32,
    /// A claim may span whole nodes of one zone.
    #[serde(default)]
    pub multi_node: bool,
    /// Largest node that may serve it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_node_gpus: Option<u32>,
    /// Memory floor of one GPU, GiB.
    #[serde(default)]
    pub min_memory_gib: u32,
    /// Floor of the link between the node's GPUs: `pcie`, `nvlink-bridge`, `nvlink`, …
    #[serde(default = "pcie")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub min_interconnect: Interconnect,
    /// Regions, `provider/region`, where `*` at the end matches the rest; empty: any.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Markets; empty: any.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = Vec<String>))]
    pub markets: Vec<Market>,
    /// Share of claims granted within the wait, in [0, 1]; 1 is planned as 99.999 %.
    pub hit_rate: f64,
    /// Cost of a claim that is not, dollars.
    #[serde(default = "dollar")]
    pub miss_cost_usd: f64,
    /// Its claims borrow GPUs that are idle, for so many dollars a GPU-hour, and are called back when others need them. Nothing
    /// is launched for them, and `hit_rate` is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrows_usd_per_gpu_h: Option<f64>,
    /// A claim granted within this time is a hit, seconds.
    #[serde(default = "half_minute")]
    pub wait_s: f64,
    /// What a claim does when nothing is free.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub on_empty: OnEmpty,
    /// A claim without a heartbeat for this time is given back, seconds.
    #[serde(default = "five_minutes")]
    pub lease_s: f64,
    /// Mean life of a claim, seconds.
    #[serde(default = "hour")]
    pub claim_mean_s: f64,
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
fn half_minute() -> f64 {
    30.0
}
fn five_minutes() -> f64 {
    300.0
}
fn hour() -> f64 {
    3600.0
}

/// A class that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("class '{class}': {field}: {what}")]
pub struct ClassError {
    /// Its name.
    pub class: String,
    /// Which field.
    pub field: &'static str,
    /// What is wrong with it.
    pub what: String,
}

impl ClassSpec {
    /// The rule, checked.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn rule(&self) -> Result<ClassRule, ClassError> {
        let bad = |field: &'static str, what: String| ClassError { class: self.name.clone(), field, what };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > 60 || !self.name.chars().all(plain) {
            return Err(bad("name", "1 to 60 letters, digits, '-', '_' or '.'".into()));
        }
        if self.gpus.is_empty() {
            return Err(bad("gpus", "name at least one model".into()));
        }
        if !(1..=4096).contains(&self.gpus_per_claim) {
            return Err(bad("gpus_per_claim", format!("{} is not in 1..=4096", self.gpus_per_claim)));
        }
        if !(0.0..=1.0).contains(&self.hit_rate) {
            return Err(bad("hit_rate", format!("{} is not in [0, 1]", self.hit_rate)));
        }
        let times =
            [("wait_s", self.wait_s, 0.0), ("lease_s", self.lease_s, 1.0), ("claim_mean_s", self.claim_mean_s, 1.0)];
        if let Some((field, value, least)) =
            times.into_iter().find(|(_, v, least)| !(v.is_finite() && v >= least && *v <= 1e7))
        {
            return Err(bad(field, format!("{value} is not in {least}..=1e7 seconds")));
        }
        if self.borrows_usd_per_gpu_h.is_some() {
            if self.hit_rate > 0.0 {
                let what = format!("{}: who borrows is promised nothing; write 0", self.hit_rate);
                return Err(bad("hit_rate", what));
            }
            if !matches!(self.on_empty, OnEmpty::Fail | OnEmpty::Queue) {
                return Err(bad("on_empty", "nothing is launched for who borrows: fail or queue".into()));
            }
            if self.multi_node {
                return Err(bad("multi_node", "a claim that borrows has its GPUs on one node".into()));
            }
        }
        let usd = |field: &'static str, value: f64| {
            let money = UsdMicros::from_usd(value).ok().filter(|m| m.0 >= 0);
            money.ok_or_else(|| bad(field, format!("{value} is no amount of dollars")))
        };
        let accepted = |g: &GpuSpec| {
            let cap = match (g.max_usd_per_gpu_h, g.max_premium) {
                (Some(_), Some(_)) => {
                    return Err(bad("gpus", format!("{}: give max_usd_per_gpu_h or max_premium, not both", g.model)));
                }
                (Some(price), None) => Some(PriceCap::UsdMicrosPerGpuH(usd("gpus", price)?)),
                (None, Some(share)) if !(share.is_finite() && share >= 0.0) => {
                    return Err(bad("gpus", format!("{}: max_premium {share} is no share", g.model)));
                }
                (None, premium) => premium.map(PriceCap::Premium),
            };
            Ok(AcceptedGpu { model: g.model, cap })
        };
        Ok(ClassRule {
            class: Class {
                name: self.name.clone(),
                gpus: self.gpus.iter().map(accepted).collect::<Result<_, _>>()?,
                gpus_per_claim: self.gpus_per_claim,
                multi_node: self.multi_node,
                max_node_gpus: self.max_node_gpus,
                min_memory_gib: self.min_memory_gib,
                min_interconnect: self.min_interconnect,
                regions: self.regions.clone(),
                markets: self.markets.clone(),
                hit_rate_target: self.hit_rate,
                miss_cost_usd_micros: usd("miss_cost_usd", self.miss_cost_usd)?,
                borrows_usd_micros_per_gpu_h: match self.borrows_usd_per_gpu_h {
                    Some(price) => Some(usd("borrows_usd_per_gpu_h", price)?),
                    None => None,
                },
            },
            wait_ms: (self.wait_s * 1000.0).round() as i64,
            on_empty: self.on_empty,
            lease_ms: (self.lease_s * 1000.0).round() as i64,
            claim_mean_s: self.claim_mean_s,
        })
    }

    /// The same for a server, which sees its own demand.
    ///
    /// # Errors
    /// As for [`Self::rule`], and where it names series of a demand file.
    pub fn rule_of_server(&self) -> Result<ClassRule, ClassError> {
        if self.demand.is_some() || self.demand_prefix.is_some() || self.demand_ranks.is_some() {
            let what = "a server sees its own demand; series are for plan files and scenarios".into();
            return Err(ClassError { class: self.name.clone(), field: "demand", what });
        }
        self.rule()
    }

    /// A rule as people write it.
    #[must_use]
    pub fn of(rule: &ClassRule) -> Self {
        let class = &rule.class;
        let gpu = |g: &AcceptedGpu| GpuSpec {
            model: g.model,
            max_usd_per_gpu_h: match g.cap {
                Some(PriceCap::UsdMicrosPerGpuH(cap)) => Some(cap.usd()),
                _ => None,
            },
            max_premium: match g.cap {
                Some(PriceCap::Premium(share)) => Some(share),
                _ => None,
            },
        };
        Self {
            name: class.name.clone(),
            demand: None,
            demand_prefix: None,
            demand_ranks: None,
            gpus: class.gpus.iter().map(gpu).collect(),
            gpus_per_claim: class.gpus_per_claim,
            multi_node: class.multi_node,
            max_node_gpus: class.max_node_gpus,
            min_memory_gib: class.min_memory_gib,
            min_interconnect: class.min_interconnect,
            regions: class.regions.clone(),
            markets: class.markets.clone(),
            hit_rate: class.hit_rate_target,
            miss_cost_usd: class.miss_cost_usd_micros.usd(),
            borrows_usd_per_gpu_h: class.borrows_usd_micros_per_gpu_h.map(UsdMicros::usd),
            wait_s: rule.wait_ms as f64 / 1000.0,
            on_empty: rule.on_empty,
            lease_s: rule.lease_ms as f64 / 1000.0,
            claim_mean_s: rule.claim_mean_s,
        }
    }
}
