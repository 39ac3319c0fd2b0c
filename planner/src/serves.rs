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

/// Classes that the free GPUs of a partly claimed node serve, with the share of those GPUs that each can use.
pub fn free_part_serves(input: &PlanInput, p: usize, free: u32, caps: &[Caps]) -> Vec<(usize, f64)> {
    let offer = &input.offers[p].offer;
    let share = |(k, class): (usize, &fleet::Class)| {
        admission::offer_share(offer, class, caps[k].of(class, offer)).ok()?;
        let of_node = admission::usable_share(offer.gpus_per_node, free, class)?;
        Some((k, (of_node * f64::from(offer.gpus_per_node) / f64::from(free)).min(1.0)))
    };
    input.classes.iter().enumerate().filter_map(share).collect()
}

/// GPUs that a class's claims have on a node.
pub fn claimed_gpus(input: &PlanInput, p: usize, class: usize, claims: u32) -> u32 {
    claims * input.classes[class].gpus_per_claim.min(input.offers[p].offer.gpus_per_node)
}
