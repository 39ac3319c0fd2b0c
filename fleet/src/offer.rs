//! An offer: what a cloud sells, at one place and price.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::gpu::{GpuModel, Interconnect};
use crate::money::UsdMicros;

/// How capacity is bought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Market {
    /// List price, kept until released.
    OnDemand,
    /// Cheaper; the cloud may take it back with short notice.
    Spot,
    /// Paid by a commitment whether used or not.
    Reserved,
    /// A fixed block of time, paid in advance.
    Block,
    /// A stopped instance that can be resumed; resuming can be refused.
    Standby,
}

impl Market {
    /// The word used in files and output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OnDemand => "on-demand",
            Self::Spot => "spot",
            Self::Reserved => "reserved",
            Self::Block => "block",
            Self::Standby => "standby",
        }
    }
}

impl fmt::Display for Market {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Market {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::OnDemand, Self::Spot, Self::Reserved, Self::Block, Self::Standby]
            .into_iter()
            .find(|m| m.name() == text)
            .ok_or_else(|| format!("'{text}' is no market: use on-demand, spot, reserved, block or standby"))
    }
}

/// What makes an offer one and the same over time. Errors, budgets and estimates are kept under the whole key, so
/// that a refusal of spot never marks on-demand as unavailable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OfferKey {
    /// Cloud, lower case: `aws`, `gcp`, `azure`, `nebius`, …
    pub provider: String,
    /// The cloud's own region name.
    pub region: String,
    /// Zone, or empty where the cloud sells by region.
    #[serde(default)]
    pub zone: String,
    /// The cloud's instance type.
    pub instance_type: String,
    /// How it is bought.
    pub market: Market,
}

impl fmt::Display for OfferKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.zone.is_empty() { &self.region } else { &self.zone };
        f.pad(&format!("{}/{}/{}/{}", self.provider, place, self.instance_type, self.market))
    }
}

/// One row of the offer table. Prices are for the whole node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Identity.
    pub key: OfferKey,
    /// GPU model.
    pub gpu: GpuModel,
    /// GPUs of one node, at least 1.
    pub gpus_per_node: u32,
    /// Link between the node's GPUs.
    pub interconnect: Interconnect,
    /// Price of the whole node.
    pub price_usd_micros_per_h: UsdMicros,
    /// Day of the price, as days since 1970-01-01; `None` where the source gives none.
    pub price_day: Option<i32>,
    /// Rate of interruption per hour of life that the provider publishes (0 for on-demand).
    pub interruption_per_h: f64,
}

impl Offer {
    /// Price of one GPU for an hour.
    #[must_use]
    pub fn gpu_price_usd_micros_per_h(&self) -> UsdMicros {
        UsdMicros(self.price_usd_micros_per_h.0 / i64::from(self.gpus_per_node.max(1)))
    }
}
