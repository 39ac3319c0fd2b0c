//! Cloud accounts in the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use fleet::{Market, Offer};
use providers::sim::{Dist, SimOffer, Steps};
use serde::Deserialize;

use super::Config;

/// A cloud account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "kebab-case")]
pub enum ProviderPart {
    /// Simulated.
    Sim {
        /// Offers to sell: a table as `pilotlight offers import` writes it; those of all its providers are sold.
        offers: PathBuf,
        /// Simulated seconds in a second.
        #[serde(default = "one")]
        speed: f64,
        /// Nodes of each offer.
        #[serde(default = "sixteen")]
        capacity: f64,
        /// Launch to healthy.
        #[serde(default = "usual_lead")]
        lead: Dist,
        /// Share of boots that fail the gate.
        #[serde(default)]
        boot_failure: f64,
        /// Seed.
        #[serde(default)]
        seed: u64,
    },
    /// Machines that you own.
    Static {
        /// Its name in offers.
        name: String,
        /// Offers, a table as above; each is one kind of machine.
        offers: PathBuf,
        /// Host names by instance type.
        hosts: BTreeMap<String, Vec<String>>,
    },
    /// Amazon EC2.
    Aws(AwsPart),
}

/// An account of Amazon EC2. Credentials are the machine's: environment, profile, web identity, or instance role.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsPart {
    /// Its name in offers.
    #[serde(default = "aws")]
    pub name: String,
    /// Name of the fleet, a tag of every instance: instances with it that nobody asked for are ended.
    pub fleet: String,
    /// Types to buy.
    pub instance_types: Vec<String>,
    /// Markets to buy in: `on-demand`, `spot`, `reserved`.
    #[serde(default = "on_demand_and_spot")]
    pub markets: Vec<Market>,
    /// On-demand prices by region and type: a table as `pilotlight offers import` writes it. EC2 does not say them.
    pub offers: Option<PathBuf>,
    /// What hosts read at their first start, in place of the usual; `{url}` and `{secret}` stand for where they join, and
    /// with what.
    #[serde(default = "usual_user_data")]
    pub user_data: String,
    /// Regions.
    pub region: Vec<AwsRegionPart>,
}

/// One region of an account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AwsRegionPart {
    /// `us-east-1`.
    pub name: String,
    /// Image, `ami-…`.
    pub image: Option<String>,
    /// Launch template, `lt-…`, for everything that is not said here.
    pub launch_template: Option<String>,
    /// Subnet by zone; other zones use their default subnet.
    #[serde(default)]
    pub subnets: BTreeMap<String, String>,
    /// Security groups.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// Name of the instance profile.
    pub instance_profile: Option<String>,
    /// SSH key.
    pub key_name: Option<String>,
    /// In place of the region's own endpoint.
    pub endpoint_url: Option<String>,
}

impl ProviderPart {
    /// What the types do not say.
    ///
    /// # Errors
    /// The first thing that makes no sense, by its key.
    pub fn check(&self, config: &Config) -> anyhow::Result<()> {
        let Self::Aws(part) = self else { return Ok(()) };
        if !cfg!(feature = "aws") {
            bail!("provider.kind: this pilotlight was built without EC2; build it with --features aws");
        }
        if part.fleet.is_empty() || part.instance_types.is_empty() || part.region.is_empty() {
            bail!("provider '{}': fleet, instance_types and [[provider.region]] may not be empty", part.name);
        }
        if let Some(market) = part.markets.iter().find(|m| matches!(m, Market::Block | Market::Standby)) {
            bail!("provider.markets: EC2 is bought on-demand, spot or reserved, not {market}");
        }
        for region in &part.region {
            if region.image.is_none() && region.launch_template.is_none() {
                bail!("provider.region '{}': give an image or a launch_template", region.name);
            }
        }
        let names_url = part.user_data.contains("{url}");
        if names_url && config.advertise_url.is_none() {
            bail!(
                "advertise_url: hosts of provider '{}' must know where to join; say where they reach this API",
                part.name
            );
        }
        Ok(())
    }
}

impl ProviderPart {
    /// The word that its offers carry; simulated clouds have those of their table.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Sim { .. } => None,
            Self::Static { name, .. } => Some(name),
            Self::Aws(part) => Some(&part.name),
        }
    }

    /// What two accounts may not share: each would take the other's nodes for gone, or for strays.
    ///
    /// # Errors
    /// They share it.
    pub fn beside(&self, other: &Self) -> anyhow::Result<()> {
        if let (Some(one), Some(two)) = (self.name(), other.name())
            && one == two
        {
            bail!("provider.name: '{one}' is there twice; give each [[provider]] a name of its own");
        }
        if let (Self::Aws(one), Self::Aws(two)) = (self, other)
            && one.fleet == two.fleet
            && let Some(region) = one.region.iter().find(|r| two.region.iter().any(|t| t.name == r.name))
        {
            let (one, two, fleet) = (&one.name, &two.name, &one.fleet);
            bail!("provider.fleet: '{one}' and '{two}' both have '{fleet}' in {}; give one another fleet", region.name);
        }
        Ok(())
    }
}

fn aws() -> String {
    "aws".into()
}
fn on_demand_and_spot() -> Vec<Market> {
    vec![Market::OnDemand, Market::Spot]
}
fn usual_user_data() -> String {
    include_str!("user_data.yaml").into()
}

fn one() -> f64 {
    1.0
}
fn sixteen() -> f64 {
    16.0
}
fn usual_lead() -> Dist {
    Dist::LogNormal { median_s: 240.0, p99_s: 600.0 }
}

/// How a simulated offer behaves.
#[must_use]
pub fn sim_offer(offer: &Offer, capacity: f64, lead: &Dist, boot_failure: f64) -> SimOffer {
    SimOffer {
        provider: 0,
        capacity: Steps::constant(capacity),
        lead: lead.clone(),
        boot_failure,
        refusal: 0.0,
        hazard_per_h: offer.interruption_per_h,
    }
}
