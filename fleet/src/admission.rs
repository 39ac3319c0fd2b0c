//! Which offers serve which classes: one predicate for the planner, the claim path and the simulator.

use std::fmt;

use crate::class::{AcceptedGpu, Class, PriceCap};
use crate::gpu::{GpuModel, Interconnect};
use crate::money::UsdMicros;
use crate::offer::{Market, Offer};

/// Why an offer does not serve a class.
#[derive(Debug, Clone, PartialEq)]
pub enum Refusal {
    /// The class does not take this model.
    Model(GpuModel),
    /// Outside the class's regions.
    Region(String),
    /// Not one of the class's markets.
    Market(Market),
    /// The node is too small for a claim that may not span nodes, or does not divide it.
    NodeTooSmall {
        /// GPUs of the node.
        node_gpus: u32,
        /// GPUs of the claim.
        claim_gpus: u32,
    },
    /// The node is larger than the class allows.
    NodeTooLarge {
        /// GPUs of the node.
        node_gpus: u32,
        /// The class's limit.
        max_node_gpus: u32,
    },
    /// Too little memory in one GPU.
    Memory {
        /// What it has.
        memory_gib: u32,
        /// The class's floor.
        min_memory_gib: u32,
    },
    /// The link between GPUs is too slow.
    Interconnect(Interconnect),
    /// Above the class's price cap.
    Price {
        /// Price of one GPU-hour.
        price: UsdMicros,
        /// The cap.
        cap: UsdMicros,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(m) => write!(f, "{m} is not an accepted GPU"),
            Self::Region(r) => write!(f, "region {r} is outside the class"),
            Self::Market(m) => write!(f, "market {m} is not accepted"),
            Self::NodeTooSmall { node_gpus, claim_gpus } => {
                write!(f, "a claim of {claim_gpus} GPUs does not fit nodes of {node_gpus}")
            }
            Self::NodeTooLarge { node_gpus, max_node_gpus } => {
                write!(f, "nodes of {node_gpus} GPUs are above the class's limit of {max_node_gpus}")
            }
            Self::Memory { memory_gib, min_memory_gib } => write!(f, "{memory_gib} GiB is under {min_memory_gib} GiB"),
            Self::Interconnect(have) => write!(f, "link {have:?} is under the class's floor"),
            Self::Price { price, cap } => write!(f, "{price}/GPU-h is above the cap of {cap}"),
        }
    }
}

/// Price caps of one class, resolved to dollars for a GPU-hour.
#[derive(Debug, Clone)]
pub struct Caps(Vec<[Option<UsdMicros>; 2]>);

impl Caps {
    /// A relative cap is measured against the cheapest offer of the class's first model that the class admits
    /// otherwise, spot against spot and the rest against the rest, or against the other where there is none. Without
    /// any yardstick the substitute is refused: its premium is not known.
    #[must_use]
    pub fn resolve<'a>(class: &Class, offers: impl Iterator<Item = &'a Offer> + Clone) -> Self {
        let first = class.gpus.first().map(|g| g.model);
        let cheapest = [false, true].map(|spot| {
            let yardstick =
                offers.clone().filter(|o| Some(o.gpu) == first && is_spot(o) == spot && admits_node(o, class).is_ok());
            yardstick.map(Offer::gpu_price_usd_micros_per_h).filter(|price| price.0 > 0).min()
        });
        let resolve = |gpu: &AcceptedGpu| {
            [0, 1].map(|spot| match (gpu.cap?, cheapest[spot].or(cheapest[1 - spot])) {
                (PriceCap::UsdMicrosPerGpuH(cap), _) => Some(cap),
                (PriceCap::Premium(share), Some(base)) => UsdMicros::from_usd(base.usd() * (1.0 + share)).ok(),
                (PriceCap::Premium(_), None) => Some(UsdMicros::ZERO),
            })
        };
        Self(class.gpus.iter().map(resolve).collect())
    }

    /// The cap that applies to an offer of the class.
    #[must_use]
    pub fn of(&self, class: &Class, offer: &Offer) -> Option<UsdMicros> {
        let place = class.gpus.iter().position(|g| g.model == offer.gpu)?;
        self.0[place][usize::from(is_spot(offer))]
    }
}

fn is_spot(offer: &Offer) -> bool {
    offer.key.market == Market::Spot
}

fn region_matches(pattern: &str, offer: &Offer) -> bool {
    let place = format!("{}/{}", offer.key.provider, offer.key.region);
    match pattern.strip_suffix('*') {
        Some(prefix) => place.starts_with(prefix),
        None => place == pattern,
    }
}

/// The share of a free node's GPUs that claims of `class` can use at most: `⌊g/g_k⌋·g_k / g`, so that a node of 8
/// GPUs serves two claims of 3 and the two GPUs left serve other classes. Multi-node gangs use whole nodes.
///
/// `cap` is the class's cap for the offer's model, already in dollars for a GPU-hour.
///
/// # Errors
/// The first reason why the offer does not serve the class.
pub fn offer_share(offer: &Offer, class: &Class, cap: Option<UsdMicros>) -> Result<f64, Refusal> {
    admits_node(offer, class)?;
    let price = offer.gpu_price_usd_micros_per_h();
    match cap {
        Some(cap) if price > cap => Err(Refusal::Price { price, cap }),
        _ => usable_share(offer.gpus_per_node, offer.gpus_per_node, class)
            .ok_or(Refusal::NodeTooSmall { node_gpus: offer.gpus_per_node, claim_gpus: class.gpus_per_claim }),
    }
}

/// The part of [`offer_share`] that does not depend on price: what a node already paid for can serve.
///
/// # Errors
/// The first reason why the offer's nodes do not serve the class.
pub fn admits_node(offer: &Offer, class: &Class) -> Result<(), Refusal> {
    if !class.gpus.iter().any(|g| g.model == offer.gpu) {
        return Err(Refusal::Model(offer.gpu));
    }
    if !class.regions.is_empty() && !class.regions.iter().any(|r| region_matches(r, offer)) {
        return Err(Refusal::Region(format!("{}/{}", offer.key.provider, offer.key.region)));
    }
    if !class.markets.is_empty() && !class.markets.contains(&offer.key.market) {
        return Err(Refusal::Market(offer.key.market));
    }
    if offer.gpu.memory_gib() < class.min_memory_gib {
        return Err(Refusal::Memory { memory_gib: offer.gpu.memory_gib(), min_memory_gib: class.min_memory_gib });
    }
    if offer.interconnect < class.min_interconnect && class.gpus_per_claim > 1 {
        return Err(Refusal::Interconnect(offer.interconnect));
    }
    if let Some(max_node_gpus) = class.max_node_gpus.filter(|m| offer.gpus_per_node > *m) {
        return Err(Refusal::NodeTooLarge { node_gpus: offer.gpus_per_node, max_node_gpus });
    }
    Ok(())
}

/// The share of a node's `gpus_per_node` GPUs that new claims of `class` can use when `free` of them are free;
/// `None` where not even one claim fits.
#[must_use]
pub fn usable_share(gpus_per_node: u32, free: u32, class: &Class) -> Option<f64> {
    let claim = class.gpus_per_claim;
    let usable = if claim > gpus_per_node {
        let whole = class.multi_node && free == gpus_per_node && claim.is_multiple_of(gpus_per_node);
        if whole { gpus_per_node } else { 0 }
    } else {
        free / claim.max(1) * claim
    };
    (usable > 0).then(|| f64::from(usable) / f64::from(gpus_per_node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::OfferKey;

    fn offer(gpus: u32) -> Offer {
        let gpu: GpuModel = "H100".parse().expect("known");
        Offer {
            key: OfferKey {
                provider: "aws".into(),
                region: "us-east-1".into(),
                zone: "us-east-1a".into(),
                instance_type: "t".into(),
                market: Market::OnDemand,
            },
            gpu,
            gpus_per_node: gpus,
            interconnect: gpu.interconnect(),
            price_usd_micros_per_h: UsdMicros(4_000_000 * i64::from(gpus)),
            price_day: None,
            interruption_per_h: 0.0,
        }
    }

    fn class(gpus_per_claim: u32) -> Class {
        Class {
            name: "k".into(),
            gpus: vec![AcceptedGpu { model: "H100".parse().expect("known"), cap: None }],
            gpus_per_claim,
            multi_node: false,
            max_node_gpus: None,
            min_memory_gib: 0,
            min_interconnect: Interconnect::Pcie,
            regions: vec![],
            markets: vec![],
            hit_rate_target: 0.99,
            miss_cost_usd_micros: UsdMicros(1_000_000),
            borrows_usd_micros_per_gpu_h: None,
        }
    }

    #[test]
    fn fragmentation_counts() {
        assert_eq!(offer_share(&offer(8), &class(1), None), Ok(1.0));
        assert_eq!(offer_share(&offer(8), &class(8), None), Ok(1.0));
        assert_eq!(offer_share(&offer(8), &class(3), None), Ok(0.75));
        assert!(matches!(offer_share(&offer(4), &class(8), None), Err(Refusal::NodeTooSmall { .. })));
        let gang = Class { multi_node: true, ..class(16) };
        assert_eq!(offer_share(&offer(8), &gang, None), Ok(1.0));
        assert!(offer_share(&offer(5), &gang, None).is_err());
        assert_eq!(usable_share(8, 5, &class(4)), Some(0.5));
        assert_eq!(usable_share(8, 5, &class(8)), None);
        assert_eq!(usable_share(8, 7, &gang), None);
    }

    #[test]
    fn place_market_price_and_size() {
        let pinned = Class { regions: vec!["aws/us-*".into()], ..class(1) };
        assert!(offer_share(&offer(8), &pinned, None).is_ok());
        let elsewhere = Class { regions: vec!["aws/eu-west-1".into(), "gcp/*".into()], ..class(1) };
        assert!(matches!(offer_share(&offer(8), &elsewhere, None), Err(Refusal::Region(_))));
        let spot = Class { markets: vec![Market::Spot], ..class(1) };
        assert!(matches!(offer_share(&offer(8), &spot, None), Err(Refusal::Market(_))));
        assert!(matches!(offer_share(&offer(8), &class(1), Some(UsdMicros(3_999_999))), Err(Refusal::Price { .. })));
        let small = Class { max_node_gpus: Some(2), ..class(1) };
        assert!(matches!(offer_share(&offer(8), &small, None), Err(Refusal::NodeTooLarge { .. })));
    }
}
