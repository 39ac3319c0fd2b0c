//! Which classes nodes serve, and how much of a node each can use.

use fleet::{AcceptedGpu, Class, Market, PriceCap, Refusal, UsdMicros, admission};

use crate::input::{OfferState, PlanInput};

/// Price caps of one class, resolved to dollars for a GPU-hour.
#[derive(Debug, Clone)]
pub struct Caps(Vec<[Option<UsdMicros>; 2]>);

impl Caps {
    /// A relative cap is measured against the cheapest offer of the class's first model that the class admits
    /// otherwise, spot against spot and the rest against the rest, or against the other where there is none. Without
    /// any yardstick the substitute is refused: its premium is not known.
    #[must_use]
    pub fn resolve(class: &Class, offers: &[OfferState]) -> Self {
        let first = class.gpus.first().map(|g| g.model);
        let cheapest = [false, true].map(|spot| {
            let yardstick = offers
                .iter()
                .map(|o| &o.offer)
                .filter(|o| Some(o.gpu) == first && is_spot(o) == spot && admission::admits_node(o, class).is_ok());
            yardstick.map(fleet::Offer::gpu_price_usd_micros_per_h).filter(|price| price.0 > 0).min()
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
    pub fn of(&self, class: &Class, offer: &fleet::Offer) -> Option<UsdMicros> {
        let place = class.gpus.iter().position(|g| g.model == offer.gpu)?;
        self.0[place][usize::from(is_spot(offer))]
    }
}

fn is_spot(offer: &fleet::Offer) -> bool {
    offer.key.market == Market::Spot
}

/// Classes that a whole free node of the offer serves; else the refusal of the class that came closest.
pub fn whole_node_serves(input: &PlanInput, p: usize, caps: &[Caps]) -> (Vec<(usize, f64)>, Option<Refusal>) {
    let offer = &input.offers[p].offer;
    let mut serves = Vec::new();
    let mut refusal: Option<Refusal> = None;
    for (k, class) in input.classes.iter().enumerate() {
        match admission::yields(offer, class, caps[k].of(class, offer)) {
            Ok(share) => serves.push((k, share)),
            Err(why) if refusal.is_none() || matches!(refusal, Some(Refusal::Model(_))) => refusal = Some(why),
            Err(_) => {}
        }
    }
    (serves, refusal)
}

/// Classes that a partly claimed node serves: its own claims, and what still fits beside them.
pub fn fragment_serves(input: &PlanInput, p: usize, claims: &[(usize, u32)]) -> Vec<(usize, f64)> {
    let offer = &input.offers[p].offer;
    let size = |k: usize| input.classes[k].gpus_per_claim.min(offer.gpus_per_node);
    let used: u32 = claims.iter().map(|&(k, n)| n * size(k)).sum();
    let free = offer.gpus_per_node.saturating_sub(used);
    let mut serves = Vec::new();
    for (k, class) in input.classes.iter().enumerate() {
        let own: u32 = claims.iter().filter(|c| c.0 == k).map(|&(_, n)| n * size(k)).sum();
        let more = if admission::admits_node(offer, class).is_ok() {
            admission::usable_share(offer.gpus_per_node, free, class).unwrap_or(0.0)
        } else {
            0.0
        };
        let share = f64::from(own) / f64::from(offer.gpus_per_node) + more;
        if share > 0.0 {
            serves.push((k, share.min(1.0)));
        }
    }
    serves
}
