//! `[diagnostics]`: weekly diagnostics of idle nodes.

use std::collections::BTreeMap;

use health::weekly::Rules;
use serde::Deserialize;

/// How idle nodes are tested, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Diagnostics {
    /// Whether idle nodes are lent to diagnostics.
    pub enabled: bool,
    /// Seconds between looks at who is due.
    pub every_s: f64,
    /// Diagnostics that were seen to give a node back within this time are proven to, seconds.
    pub yield_max_s: f64,
    /// Diagnostics that gave way are tried again after this time, seconds.
    pub again_s: f64,
    /// Diagnostics that could say nothing (a host without dcgmi, say) are tried again after this time, seconds.
    pub unmeasured_s: f64,
    /// Power of sites of one's own, by the name of the cloud, W.
    pub site_power_w: BTreeMap<String, f64>,
    /// When, which and how many.
    pub rules: Rules,
}

impl Default for Diagnostics {
    fn default() -> Self {
        Self {
            enabled: true,
            every_s: 15.0,
            yield_max_s: 45.0,
            again_s: 600.0,
            unmeasured_s: 6.0 * 3600.0,
            site_power_w: BTreeMap::new(),
            rules: Rules::default(),
        }
    }
}

impl Diagnostics {
    /// What the types do not say.
    ///
    /// # Errors
    /// The first thing that makes no sense, by its key.
    pub fn check(&self) -> Result<(), String> {
        let r = &self.rules;
        let numbers = [
            ("every_s", self.every_s, 1.0, 3600.0),
            ("yield_max_s", self.yield_max_s, 1.0, 3600.0),
            ("again_s", self.again_s, 0.0, 86_400.0),
            ("unmeasured_s", self.unmeasured_s, 0.0, 30.0 * 86_400.0),
            ("rules.every_days", r.every_days, 0.01, 365.0),
            ("rules.jitter", r.jitter, 0.0, 0.9),
            ("rules.idle_min_s", r.idle_min_s, 0.0, 86_400.0),
            ("rules.share_max", r.share_max, 0.0, 1.0),
            ("rules.catch_up_share_max", r.catch_up_share_max, r.share_max, 1.0),
            ("rules.late_days", r.late_days, r.every_days, 3650.0),
            ("rules.surge_days", r.surge_days, r.every_days, 3650.0),
            ("rules.stale_days", r.stale_days, r.every_days, 3650.0),
            ("rules.power_share_max", r.power_share_max, 0.0, 1.0),
            ("rules.rollout_s", r.rollout_s, 0.0, 7.0 * 86_400.0),
            ("rules.full_s", r.full_s, 1.0, 6.0 * 3600.0),
            ("rules.slice_s", r.slice_s, 1.0, 3600.0),
        ];
        if let Some((key, value, least, most)) =
            numbers.into_iter().find(|(_, v, least, most)| !(v >= least && v <= most))
        {
            return Err(format!("diagnostics.{key}: {value} is not in {least}..={most}"));
        }
        if let Some((site, power_w)) = self.site_power_w.iter().find(|(_, w)| !(w.is_finite() && **w > 0.0)) {
            return Err(format!("diagnostics.site_power_w.{site}: {power_w} W is no power of a site"));
        }
        Ok(())
    }
}
