//! What may be spent and launched: in the configuration at first, over the API after that.

use fleet::UsdMicros;
use serde::{Deserialize, Serialize};

use crate::offers::Matching;

/// What may be spent and launched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BudgetSpec {
    /// Spend that plans aim to stay under, dollars an hour; none: any.
    pub budget_usd_per_h: Option<f64>,
    /// Spend above which nothing is launched, whatever a plan says, dollars an hour; none: any.
    pub spend_guard_usd_per_h: Option<f64>,
    /// Nodes that are launched in a minute at most, whatever a plan says.
    pub launch_guard_nodes_per_min: u32,
    /// Quotas of the cloud accounts: `{"name": "alpha H100", "for": {"provider": "alpha", "gpu": "H100-SXM"}, "limit_gpus": 64}`.
    #[cfg_attr(feature = "schema", schema(value_type = Vec<Object>))]
    pub quota: Vec<QuotaSpec>,
}

/// A quota of a cloud account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaSpec {
    /// Name shown in reports.
    pub name: String,
    /// Which offers count.
    #[serde(rename = "for")]
    pub matching: Matching,
    /// GPUs.
    pub limit_gpus: f64,
}

impl Default for BudgetSpec {
    fn default() -> Self {
        Self { budget_usd_per_h: None, spend_guard_usd_per_h: None, launch_guard_nodes_per_min: 60, quota: Vec::new() }
    }
}

/// Most quotas that are taken.
const QUOTAS_MAX: usize = 200;
/// Largest budget, dollars an hour: above it a number is a slip of the pen, and solvers lose digits.
pub const BUDGET_USD_PER_H_MAX: f64 = 1e9;
/// Largest quota, GPUs: as for budgets.
pub const QUOTA_GPUS_MAX: f64 = 1e7;

impl BudgetSpec {
    /// The first quota for a provider that is none of these.
    #[must_use]
    pub fn of_nobody(&self, providers: &[String]) -> Option<&str> {
        let unknown = |q: &&QuotaSpec| q.matching.provider.as_ref().is_some_and(|p| !providers.contains(p));
        self.quota.iter().find(unknown).map(|q| q.name.as_str())
    }

    /// What the types do not say.
    ///
    /// # Errors
    /// The first key that makes no sense.
    pub fn check(&self) -> Result<(), String> {
        for (key, value) in
            [("budget_usd_per_h", self.budget_usd_per_h), ("spend_guard_usd_per_h", self.spend_guard_usd_per_h)]
        {
            if let Some(usd) = value {
                let money = UsdMicros::from_usd(usd).map_err(|e| format!("{key}: {e}"))?;
                if usd > BUDGET_USD_PER_H_MAX {
                    return Err(format!("{key}: {usd} is more than {BUDGET_USD_PER_H_MAX}; leave it out for no limit"));
                }
                if money <= UsdMicros(0) {
                    return Err(format!("{key}: {usd} buys nothing; leave it out for no limit, or pause"));
                }
            }
        }
        if self.quota.len() > QUOTAS_MAX {
            return Err(format!("quota: at most {QUOTAS_MAX}"));
        }
        for (i, quota) in self.quota.iter().enumerate() {
            if !(0.0..=QUOTA_GPUS_MAX).contains(&quota.limit_gpus) {
                let name = &quota.name;
                return Err(format!("quota '{name}': limit_gpus {} is not in 0..={QUOTA_GPUS_MAX}", quota.limit_gpus));
            }
            if self.quota[..i].iter().any(|q| q.name == quota.name) {
                return Err(format!("quota '{}' is there twice", quota.name));
            }
        }
        Ok(())
    }
}
