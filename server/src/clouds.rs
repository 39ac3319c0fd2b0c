//! The cloud accounts that the configuration names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use fleet::Offer;
use planner::synthetic::{self, Size};
#[cfg(feature = "aws")]
use providers::aws::{Account, AwsProvider, Region, ec2::Template, sdk::SdkEc2};
use providers::sim::Dist;
use providers::{Clock, GateRules, Provider, SimProvider, StaticProvider, catalogue};

#[cfg(feature = "aws")]
use crate::config::AwsPart;
use crate::config::{Config, ProviderPart, sim_offer};

/// All accounts, and those that are simulated.
pub type Clouds = (Vec<Arc<dyn Provider>>, Vec<Arc<SimProvider>>);

/// Opens all accounts. Those that are simulated come a second time, for whoever plays their hosts.
///
/// # Errors
/// A table of offers does not read, or has nothing that can be sold.
pub async fn open(config: &Config, clock: &Clock) -> anyhow::Result<Clouds> {
    let (mut clouds, mut sims): Clouds = (Vec::new(), Vec::new());
    if config.provider.is_empty() && config.demo.is_some() {
        for (name, offers) in by_provider(demo_offers()) {
            let supply = offers.iter().map(|o| sim_offer(o, 8.0, &demo_lead(), 0.05)).collect();
            sims.push(Arc::new(SimProvider::new(&name, offers, supply, 20.0, 1, clock.clone())));
        }
    }
    for part in &config.provider {
        match part {
            ProviderPart::Sim { offers, speed, capacity, lead, boot_failure, seed } => {
                lead.check().map_err(|what| anyhow::anyhow!("provider.lead: {what}"))?;
                for (name, offers) in by_provider(table(&config.folder.join(offers))?) {
                    let supply = offers.iter().map(|o| sim_offer(o, *capacity, lead, *boot_failure)).collect();
                    sims.push(Arc::new(SimProvider::new(&name, offers, supply, *speed, *seed, clock.clone())));
                }
            }
            ProviderPart::Static { name, offers, hosts } => {
                let kind = |offer: Offer| {
                    let hosts = hosts.get(&offer.key.instance_type).cloned().unwrap_or_default();
                    providers::static_provider::Owned { offer, hosts }
                };
                let owned =
                    table(&config.folder.join(offers))?.into_iter().filter(|o| o.key.provider == *name).map(kind);
                clouds.push(Arc::new(StaticProvider::new(name, owned.collect(), clock.clone())));
            }
            #[cfg(feature = "aws")]
            ProviderPart::Aws(part) => clouds.push(Arc::new(aws(config, part, clock).await?)),
            #[cfg(not(feature = "aws"))]
            ProviderPart::Aws(_) => part.check(config)?,
        }
    }
    clouds.extend(sims.iter().map(|s| Arc::clone(s) as Arc<dyn Provider>));
    for (i, cloud) in clouds.iter().enumerate() {
        if clouds[..i].iter().any(|c| c.name() == cloud.name()) {
            bail!("provider '{}' is there twice: two accounts cannot share a name", cloud.name());
        }
    }
    Ok((clouds, sims))
}

#[cfg(feature = "aws")]
async fn aws(config: &Config, part: &AwsPart, clock: &Clock) -> anyhow::Result<AwsProvider> {
    let mut regions = Vec::new();
    for region in &part.region {
        let ec2 = SdkEc2::connect(&region.name, region.endpoint_url.as_deref(), None).await;
        let template = Template {
            image: region.image.clone(),
            launch_template: region.launch_template.clone(),
            security_groups: region.security_groups.clone(),
            instance_profile: region.instance_profile.clone(),
            key_name: region.key_name.clone(),
        };
        let (name, subnets) = (region.name.clone(), region.subnets.clone());
        regions.push(Region { name, template, subnets, ec2: Arc::new(ec2) });
    }
    let list_prices = match &part.offers {
        Some(path) => table(&config.folder.join(path))?,
        None => Vec::new(),
    };
    let account = Account {
        name: part.name.clone(),
        fleet: part.fleet.clone(),
        instance_types: part.instance_types.clone(),
        markets: part.markets.clone(),
        user_data: part.user_data.replace("{url}", config.advertise_url.as_deref().unwrap_or_default()),
        list_prices,
    };
    Ok(AwsProvider::new(account, regions, clock.clone()))
}

fn table(path: &Path) -> anyhow::Result<Vec<Offer>> {
    let raw = catalogue::own::read(path)?;
    let judged = catalogue::gate(raw, GateRules::default());
    if judged.offers.is_empty() {
        bail!("{}: every offer was set aside, see 'pilotlight offers show'", path.display());
    }
    Ok(judged.offers)
}

fn by_provider(offers: Vec<Offer>) -> BTreeMap<String, Vec<Offer>> {
    let mut all = BTreeMap::new();
    for offer in offers {
        all.entry(offer.key.provider.clone()).or_insert_with(Vec::new).push(offer);
    }
    all
}

fn demo_lead() -> Dist {
    Dist::LogNormal { median_s: 240.0, p99_s: 500.0 }
}

/// Models that the demo's classes take: enough of each is on sale that their targets can be met.
const DEMO_MODELS: [&str; 6] = ["H100-SXM", "H200", "L40S", "A10G", "L4", "T4"];

fn demo_offers() -> Vec<Offer> {
    let size = Size { offers: 120, classes: 1, scenarios: 1, periods: 1 };
    let all = synthetic::catalogue(size, 1).offers.into_iter().map(|state| state.offer);
    all.filter(|offer| DEMO_MODELS.contains(&offer.gpu.name())).collect()
}
