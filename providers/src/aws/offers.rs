//! What an account can buy: types by zone, list prices, spot prices, reservations, placement scores.

use std::collections::{BTreeMap, BTreeSet};

use fleet::{Market, Offer, OfferKey};

use super::ec2::{InstanceType, SpotPrice};
use super::{AwsProvider, Region};
use crate::catalogue::{RawOffer, instances};
use crate::provider::ProviderError;
use fleet::cloud::Hint;

/// Placement scores are asked for this seldom, milliseconds: EC2 limits how many different ones an account may ask for
/// in a day (EC2 user guide, spot placement score).
const SCORES_MS: i64 = 3_600_000;
/// Nodes that scores are asked for.
const SCORED_NODES: u32 = 4;
/// Types that a score means something for.
const SCORED_TYPES_MIN: usize = 3;
/// The best score, 10, is likely and not certain.
const FILL_MAX: f64 = 0.95;

impl AwsProvider {
    pub(super) async fn offers_of(&self, region: &Region) -> Result<Vec<RawOffer>, ProviderError> {
        let types = self.types_of(region).await?;
        let names = &self.account.instance_types;
        let zones: BTreeSet<(String, String)> = region.ec2.offerings(names).await?.into_iter().collect();
        let buys = |market| self.account.markets.contains(&market);
        let now_ms = self.clock.now_ms();
        let today = i32::try_from(now_ms.div_euclid(86_400_000)).ok();
        let spot = if buys(Market::Spot) { region.ec2.spot_prices(names, now_ms).await? } else { Vec::new() };
        let spot = newest(spot);
        let mut offers = Vec::new();
        for (instance_type, zone) in &zones {
            let Some(info) = types.iter().find(|t| t.name == *instance_type) else { continue };
            let key = |market| self.key(&region.name, zone, instance_type, market);
            let raw = |market, price, hazard_per_h| RawOffer {
                key: key(market),
                gpu: gpu_of(info),
                gpus_per_node: info.gpus,
                price_usd_per_h: price,
                price_day: today,
                interruption_per_h: hazard_per_h,
                delisted: false,
                interconnect: None,
            };
            let listed = |market| {
                let same = |o: &&Offer| {
                    o.key.market == market && o.key.region == region.name && o.key.instance_type == *instance_type
                };
                self.account.list_prices.iter().find(same)
            };
            let list_usd = listed(Market::OnDemand).map(|o| o.price_usd_micros_per_h.usd());
            if buys(Market::OnDemand) {
                offers.push(raw(Market::OnDemand, list_usd, 0.0));
            }
            if buys(Market::Spot) {
                let price = spot.get(&(instance_type.clone(), zone.clone())).copied();
                offers.push(raw(Market::Spot, price, listed(Market::Spot).map_or(0.0, |o| o.interruption_per_h)));
            }
            // A reservation is billed at the list price, used or not (EC2 user guide, capacity reservation billing).
            if self.known().reservations.contains_key(&key(Market::Reserved)) {
                offers.push(raw(Market::Reserved, list_usd, 0.0));
            }
        }
        Ok(offers)
    }

    async fn types_of(&self, region: &Region) -> Result<Vec<InstanceType>, ProviderError> {
        if let Some(types) = self.known().types.get(&region.name) {
            return Ok(types.clone());
        }
        let types = region.ec2.instance_types(&self.account.instance_types).await?;
        self.known().types.insert(region.name.clone(), types.clone());
        Ok(types)
    }

    pub(super) async fn all_hints(&self) -> Result<Vec<Hint>, ProviderError> {
        let mut hints = self.reserved().await?;
        let now_ms = self.clock.now_ms();
        let due = self.known().scored_at_ms.is_none_or(|at| now_ms - at >= SCORES_MS);
        if due && self.account.markets.contains(&Market::Spot) {
            // Whether it works or not: a failure is no reason to use up the day's questions.
            self.known().scored_at_ms = Some(now_ms);
            let scores = self.scores().await?;
            self.known().scores = scores;
        }
        hints.extend(self.known().scores.iter().cloned());
        Ok(hints)
    }

    async fn reserved(&self) -> Result<Vec<Hint>, ProviderError> {
        if !self.account.markets.contains(&Market::Reserved) {
            return Ok(Vec::new());
        }
        let mut hints = Vec::new();
        let mut reservations = BTreeMap::new();
        for region in &self.regions {
            for found in region.ec2.capacity_reservations().await? {
                let offer = self.key(&region.name, &found.zone, &found.instance_type, Market::Reserved);
                if !self.account.instance_types.contains(&found.instance_type) {
                    continue;
                }
                hints.push(Hint {
                    offer: offer.clone(),
                    fill: None,
                    launch_limit_nodes: Some(found.available),
                    nodes_max: None,
                    committed_nodes: found.total,
                });
                // Of several in one zone, the one with most room is launched into.
                let best = reservations.entry(offer).or_insert_with(|| found.clone());
                if found.available > best.available {
                    *best = found;
                }
            }
        }
        self.known().reservations = reservations;
        Ok(merged(hints))
    }

    /// One score for all types together in each zone: for one or two types EC2's score is always low and says nothing
    /// (EC2 API reference, GetSpotPlacementScores).
    async fn scores(&self) -> Result<Vec<Hint>, ProviderError> {
        let types = &self.account.instance_types;
        let mut hints = Vec::new();
        if types.len() < SCORED_TYPES_MIN {
            return Ok(hints);
        }
        for region in &self.regions {
            let zones = region.ec2.zones().await?;
            for score in region.ec2.placement_scores(types, SCORED_NODES).await? {
                let Some((_, zone)) = zones.iter().find(|(id, _)| *id == score.zone_id) else { continue };
                hints.extend(types.iter().map(|instance_type| Hint {
                    offer: self.key(&region.name, zone, instance_type, Market::Spot),
                    fill: Some((f64::from(score.score) / 10.0).clamp(0.05, FILL_MAX)),
                    launch_limit_nodes: None,
                    nodes_max: None,
                    committed_nodes: 0,
                }));
            }
        }
        Ok(hints)
    }
}

/// Hints of one offer together: several reservations in one zone are one offer.
fn merged(hints: Vec<Hint>) -> Vec<Hint> {
    let mut all: BTreeMap<OfferKey, Hint> = BTreeMap::new();
    for hint in hints {
        match all.get_mut(&hint.offer) {
            Some(known) => {
                known.committed_nodes += hint.committed_nodes;
                known.launch_limit_nodes = known.launch_limit_nodes.max(hint.launch_limit_nodes);
            }
            None => drop(all.insert(hint.offer.clone(), hint)),
        }
    }
    all.into_values().collect()
}

/// The newest price of each pool, by type and zone.
fn newest(prices: Vec<SpotPrice>) -> BTreeMap<(String, String), f64> {
    let mut all: BTreeMap<(String, String), (i64, f64)> = BTreeMap::new();
    for price in prices {
        let slot = all.entry((price.instance_type, price.zone)).or_insert((i64::MIN, 0.0));
        if price.at_ms > slot.0 {
            *slot = (price.at_ms, price.usd_per_h);
        }
    }
    all.into_iter().map(|(pool, (_, usd))| (pool, usd)).collect()
}

/// The model by the type's name, which tells SXM from PCIe and memory sizes apart; EC2's own word otherwise.
fn gpu_of(info: &InstanceType) -> String {
    instances::aws(&info.name).map_or_else(|| info.gpu.clone(), |(gpu, _)| gpu.to_owned())
}
