//! A class: what a scheduler claims.

use serde::{Deserialize, Serialize};

use crate::gpu::{GpuModel, Interconnect};
use crate::money::UsdMicros;
use crate::offer::Market;

/// The most that a class pays for one GPU model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceCap {
    /// Dollars for a GPU-hour.
    UsdMicrosPerGpuH(UsdMicros),
    /// Share above the cheapest admissible offer of the class's first model, spot against spot: 0.2 is 20 % more.
    Premium(f64),
}

/// A GPU model that a class takes, in order of preference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedGpu {
    /// The model.
    pub model: GpuModel,
    /// Offers above the cap are refused.
    #[serde(default)]
    pub cap: Option<PriceCap>,
}

/// What a scheduler claims, and how sure it wants to be of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Class {
    /// Unique name.
    pub name: String,
    /// Models in order of preference; the first is the yardstick of relative caps.
    pub gpus: Vec<AcceptedGpu>,
    /// GPUs of one claim, at least 1.
    pub gpus_per_claim: u32,
    /// A claim may span whole nodes of one zone (gang). Without it, a claim fits in one node.
    pub multi_node: bool,
    /// Largest node that may serve it ("never an 8-GPU node for a 1-GPU claim"); `None`: any.
    pub max_node_gpus: Option<u32>,
    /// Memory floor of one GPU in GiB.
    pub min_memory_gib: u32,
    /// Floor of the link between the node's GPUs.
    pub min_interconnect: Interconnect,
    /// Regions, `provider/region`, where `*` at the end matches the rest; empty: any.
    pub regions: Vec<String>,
    /// Markets; empty: any.
    pub markets: Vec<Market>,
    /// Share of claims granted within the wait, in [0, 1).
    pub hit_rate_target: f64,
    /// Cost of one missed claim.
    pub miss_cost_usd_micros: UsdMicros,
    /// Its claims borrow GPUs that are idle, for so many micro-dollars a GPU-hour, and are called back when others need them.
    /// Nothing is launched for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub borrows_usd_micros_per_gpu_h: Option<UsdMicros>,
}

impl Class {
    /// Whether its claims borrow idle GPUs until they are called back.
    #[must_use]
    pub fn borrows(&self) -> bool {
        self.borrows_usd_micros_per_gpu_h.is_some()
    }
}
