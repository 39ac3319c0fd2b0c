//! Which classes nodes serve, and how much of a node each can use.

use fleet::{Caps, Refusal, admission};

use crate::input::PlanInput;

/// Classes that a whole free node of the offer serves; else the refusal of the class that came closest.
pub fn whole_node_serves(input: &PlanInput, p: usize, caps: &[Caps]) -> (Vec<(usize, f64)>, Option<Refusal>) {
    let offer = &input.offers[p].offer;
    let mut serves = Vec::new();
    let mut refusal: Option<Refusal> = None;
    for (k, class) in input.classes.iter().enumerate() {
        match admission::offer_share(offer, class, caps[k].of(class, offer)) {
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
