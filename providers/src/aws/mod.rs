//! Amazon EC2 as a provider: one account, some of its regions.
//!
//! All decisions are here, over the narrow [`Ec2`] interface; [`sdk`] only carries the calls out (feature `aws`).

pub mod ec2;
mod errors;
mod offers;
#[cfg(feature = "aws")]
pub mod sdk;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fleet::{Market, Offer, OfferKey};

use crate::catalogue::RawOffer;
use crate::clock::Clock;
use crate::pace::CallRate;
use crate::provider::{LaunchRequest, Provider, ProviderError};
use ec2::{Described, Ec2, InstanceType, Launch, Purchase, Reservation, Template};
use fleet::cloud::{ErrorKind, Hint, Instance, Notice};

/// Tag that every instance of a fleet carries, with the fleet's name.
pub const FLEET_TAG: &str = "pilotlight:fleet";
/// Tag with the token of an instance's launch.
pub const TOKEN_TAG: &str = "pilotlight:token";

/// Spot instances are taken back with two minutes' notice (EC2 user guide, spot interruption notices).
const NOTICE_MS: i64 = 120_000;

/// The tightest of the buckets that are used, that of RunInstances: 5 calls at once and 2 a second in each region (EC2
/// developer guide, request throttling). One bucket for all regions and calls keeps well inside.
const CALL_RATE: CallRate = CallRate { burst: 5.0, per_s: 2.0 };

/// One region of an account.
#[derive(Debug)]
pub struct Region {
    /// Name, `us-east-1`.
    pub name: String,
    /// What instances are made from.
    pub template: Template,
    /// Subnet by zone; zones without one use their default subnet.
    pub subnets: BTreeMap<String, String>,
    /// EC2 there.
    pub ec2: Arc<dyn Ec2>,
}

/// What to buy and under which names.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// The word that its offers carry as `provider`.
    pub name: String,
    /// Name of the fleet: another fleet in the same account is left alone.
    pub fleet: String,
    /// Types to buy.
    pub instance_types: Vec<String>,
    /// Markets to buy in: on demand, spot, reserved.
    pub markets: Vec<Market>,
    /// What hosts read at their first start; `{secret}` stands for the secret that they join with, `{image}` for the image
    /// that they are started from.
    pub user_data: String,
    /// On-demand prices by region and type (zone and provider do not matter): EC2 itself does not say them.
    pub list_prices: Vec<Offer>,
}

/// Amazon EC2.
#[derive(Debug)]
pub struct AwsProvider {
    account: Account,
    regions: Vec<Region>,
    clock: Clock,
    known: Mutex<Cache>,
}

/// What changes seldom and is asked for seldom.
#[derive(Debug, Default)]
struct Cache {
    /// Regions of the instances that run.
    instances: BTreeMap<String, String>,
    /// What each region sold when it last answered.
    offers: BTreeMap<String, Vec<RawOffer>>,
    /// What the types have, by region.
    types: BTreeMap<String, Vec<InstanceType>>,
    /// Active reservations, by offer.
    reservations: BTreeMap<OfferKey, Reservation>,
    /// Scores and when they were asked for, milliseconds since 1970.
    scores: Vec<Hint>,
    scored_at_ms: Option<i64>,
}

impl AwsProvider {
    /// An account with its regions.
    #[must_use]
    pub fn new(account: Account, regions: Vec<Region>, clock: Clock) -> Self {
        Self { account, regions, clock, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Cache> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn region(&self, name: &str) -> Result<&Region, ProviderError> {
        let region = self.regions.iter().find(|r| r.name == name);
        region.ok_or_else(|| {
            let what = format!("{} has no region {name}: add it under [[provider.region]]", self.account.name);
            ProviderError::new(ErrorKind::Configuration, what)
        })
    }

    /// Makes a call for an instance in its region; where that is not known, in one after the other until one knows it.
    async fn there<'a, F, R>(&'a self, instance: &str, call: F) -> Result<(), ProviderError>
    where
        F: Fn(&'a Region) -> R + Send + Sync,
        R: Future<Output = Result<(), ec2::Ec2Error>> + Send,
    {
        let known = self.known().instances.get(instance).cloned();
        let mut gone = ProviderError::new(ErrorKind::Gone, format!("there is no instance {instance}"));
        for region in self.regions.iter().filter(|r| known.as_ref().is_none_or(|k| *k == r.name)) {
            match call(region).await.map_err(ProviderError::from) {
                Err(error) if error.kind == ErrorKind::Gone => gone = error,
                answer => return answer,
            }
        }
        Err(gone)
    }

    fn key(&self, region: &str, zone: &str, instance_type: &str, market: Market) -> OfferKey {
        OfferKey {
            provider: self.account.name.clone(),
            region: region.into(),
            zone: zone.into(),
            instance_type: instance_type.into(),
            market,
        }
    }

    fn instance(&self, region: &str, described: &Described) -> Instance {
        let reserved = described.reservation.is_some() && self.account.markets.contains(&Market::Reserved);
        let market = match (reserved, described.spot) {
            (true, _) => Market::Reserved,
            (false, true) => Market::Spot,
            (false, false) => Market::OnDemand,
        };
        let tag = |name: &str| described.tags.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
        Instance {
            id: described.id.clone(),
            offer: self.key(region, &described.zone, &described.instance_type, market),
            token: tag(TOKEN_TAG).unwrap_or_default(),
            state: described.state,
            launched_at_ms: described.launched_at_ms,
        }
    }

    async fn tagged(&self, region: &Region, tag: (&str, &str)) -> Result<Vec<Instance>, ProviderError> {
        let described = region.ec2.describe_instances(tag).await?;
        let ours = |d: &&Described| d.tags.iter().any(|(k, v)| k == FLEET_TAG && *v == self.account.fleet);
        Ok(described.iter().filter(ours).map(|d| self.instance(&region.name, d)).collect())
    }

    fn purchase(&self, offer: &OfferKey) -> Result<Purchase, ProviderError> {
        let no = |what: String| Err(ProviderError::new(ErrorKind::Configuration, what));
        match offer.market {
            Market::OnDemand => Ok(Purchase::OnDemand),
            Market::Spot => Ok(Purchase::Spot),
            Market::Reserved => match self.known().reservations.get(offer) {
                Some(reservation) => Ok(Purchase::Reservation(reservation.id.clone())),
                None => no(format!("launch {offer}: there is no active capacity reservation")),
            },
            Market::Block | Market::Standby => no(format!("launch {offer}: EC2 instances are not launched so")),
        }
    }
}

/// What the regions that answered said; the error where none did.
fn of_some<T>(all: Vec<T>, answered: bool, failed: Option<ProviderError>) -> Result<Vec<T>, ProviderError> {
    match failed {
        Some(error) if !answered => Err(error),
        _ => Ok(all),
    }
}

#[async_trait]
impl Provider for AwsProvider {
    fn name(&self) -> &str {
        &self.account.name
    }

    fn recalls(&self) -> bool {
        true
    }

    fn recall(&self, known: &[Instance]) {
        self.known().instances = known.iter().map(|i| (i.id.clone(), i.offer.region.clone())).collect();
    }

    fn call_rate(&self) -> CallRate {
        CALL_RATE
    }

    async fn offers(&self) -> Result<Vec<RawOffer>, ProviderError> {
        let (mut all, mut answered, mut failed) = (Vec::new(), false, None);
        for region in &self.regions {
            match self.offers_of(region).await {
                Ok(offers) => {
                    answered = true;
                    self.known().offers.insert(region.name.clone(), offers);
                }
                Err(error) => failed = Some(error),
            }
            // A region that does not answer sells what it sold: launches there find out.
            all.extend(self.known().offers.get(&region.name).cloned().unwrap_or_default());
        }
        of_some(all, answered, failed)
    }

    async fn hints(&self) -> Result<Vec<Hint>, ProviderError> {
        self.all_hints().await
    }

    /// EC2 launches once for a client token. The tag is looked for besides, so that nothing depends on that alone: a call
    /// whose answer was lost is followed by others only after its instances had time to show.
    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<Instance>, ProviderError> {
        let (offer, region) = (&request.offer, self.region(&request.offer.region)?);
        if offer.provider != self.account.name || !self.account.instance_types.contains(&offer.instance_type) {
            let what = format!("{} does not buy {offer}", self.account.name);
            return Err(ProviderError::new(ErrorKind::Configuration, what));
        }
        let before = self.tagged(region, (TOKEN_TAG, &request.token)).await?;
        if !before.is_empty() {
            return Ok(before);
        }
        let launch = Launch {
            instance_type: offer.instance_type.clone(),
            zone: offer.zone.clone(),
            subnet: region.subnets.get(&offer.zone).cloned(),
            count: request.count,
            purchase: self.purchase(offer)?,
            client_token: request.token.clone(),
            tags: vec![
                (FLEET_TAG.into(), self.account.fleet.clone()),
                (TOKEN_TAG.into(), request.token.clone()),
                ("Name".into(), format!("pilotlight-{}", request.token)),
            ],
            user_data: self
                .account
                .user_data
                .replace("{secret}", &request.join)
                .replace("{image}", region.template.image.as_deref().unwrap_or_default()),
            template: region.template.clone(),
        };
        let described = region.ec2.run_instances(&launch).await?;
        Ok(described.iter().map(|d| Instance { offer: offer.clone(), ..self.instance(&region.name, d) }).collect())
    }

    async fn terminate(&self, instance: &str) -> Result<(), ProviderError> {
        self.there(instance, |region| region.ec2.terminate_instance(instance)).await
    }

    async fn list(&self) -> Result<Vec<Instance>, ProviderError> {
        let mut all = Vec::new();
        for region in &self.regions {
            all.extend(self.tagged(region, (FLEET_TAG, &self.account.fleet)).await?);
        }
        Ok(all)
    }

    async fn notices(&self) -> Result<Vec<Notice>, ProviderError> {
        let now_ms = self.clock.now_ms();
        let notice = |w: ec2::Warning| Notice { instance: w.instance, at_ms: w.at_ms.unwrap_or(now_ms + NOTICE_MS) };
        let (mut all, mut answered, mut failed) = (Vec::new(), false, None);
        for region in &self.regions {
            // The warnings of other regions do not wait for one that does not answer.
            match region.ec2.warnings().await {
                Ok(warnings) => {
                    answered = true;
                    all.extend(warnings.into_iter().map(notice));
                }
                Err(error) => failed = Some(error.into()),
            }
        }
        of_some(all, answered, failed)
    }

    async fn report_fault(&self, instance: &str, what: &str) -> Result<bool, ProviderError> {
        self.there(instance, |region| region.ec2.report_instance(instance, what)).await?;
        Ok(true)
    }

    async fn stop(&self, instance: &str) -> Result<(), ProviderError> {
        self.there(instance, |region| region.ec2.stop_instance(instance)).await
    }

    /// A stopped instance has no claim on a machine: starting it may be refused for lack of capacity (EC2 user guide).
    async fn start(&self, instance: &str) -> Result<(), ProviderError> {
        self.there(instance, |region| region.ec2.start_instance(instance)).await
    }
}
