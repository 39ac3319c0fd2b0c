//! Which offers are meant, in the words of files and of the API.

use fleet::{GpuModel, Market, Offer};
use serde::{Deserialize, Serialize};

/// Which offers: every key that is given must match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matching {
    /// Cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// The cloud's region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// GPU model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuModel>,
    /// How it is bought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub market: Option<Market>,
    /// The cloud's instance type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
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

    /// Indices of the offers that are meant.
    #[must_use]
    pub fn members(&self, offers: &[Offer]) -> Vec<usize> {
        (0..offers.len()).filter(|p| self.matches(&offers[*p])).collect()
    }
}
