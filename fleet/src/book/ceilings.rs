//! What can be had at most, whatever is launched: a claim above it would wait for nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::offer::OfferKey;

use super::{Book, Claim, ClaimError};

/// GPUs that there can be of some offers together: a quota, or machines that somebody owns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ceiling {
    /// What it is, for people.
    pub name: String,
    /// Of which offers.
    pub offers: Vec<OfferKey>,
    /// GPUs.
    pub gpus: u64,
}

/// All that are known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ceilings(pub Vec<Ceiling>);

impl Book {
    /// What can be had at most.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.ceilings = ceilings;
    }

    /// Refuses what no zone could ever give. Nodes that are there count in any case: a quota may have been lowered since.
    pub(super) fn refuse_what_never_fits(&self, claim: &Claim) -> Result<(), ClaimError> {
        let Some(rule) = self.classes.get(&claim.class) else { return Ok(()) };
        let wanted = u64::from(claim.count) * u64::from(rule.class.gpus_per_claim);
        let offers = self.offers_of(&claim.class);
        if offers.is_empty() || self.ceilings.0.is_empty() {
            // Nobody has said yet what is sold.
            return Ok(());
        }
        let mut zones: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for &offer in offers {
            zones.entry(self.zone_of(offer)).or_default().push(offer);
        }
        let most = zones.values().map(|offers| self.most_in(offers)).max_by_key(|(gpus, _)| *gpus);
        match most {
            Some((gpus, Some(limit))) if gpus < wanted => {
                Err(ClaimError::NeverFits { class: claim.class.clone(), wanted, most: gpus, limit: limit.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// GPUs that these offers of one zone can have together at most, and what limits them.
    fn most_in(&self, offers: &[usize]) -> (u64, Option<&str>) {
        let key = |p: &usize| &self.offers[*p].key;
        let of_all = |ceiling: &&Ceiling| offers.iter().all(|p| ceiling.offers.contains(key(p)));
        let together = self.ceilings.0.iter().filter(of_all).min_by_key(|c| c.gpus);
        // Each by itself, where each has one.
        let each = offers.iter().try_fold((0_u64, ""), |(sum, _), p| {
            let own = self.ceilings.0.iter().filter(|c| c.offers.contains(key(p))).min_by_key(|c| c.gpus)?;
            Some((sum.saturating_add(own.gpus), own.name.as_str()))
        });
        let here = self.nodes.values().filter(|n| self.offer_of(n).is_some_and(|p| offers.contains(&p)));
        let there: u64 = here.map(|n| u64::from(n.gpus)).sum();
        let limits = together.map(|c| (c.gpus, c.name.as_str())).into_iter().chain(each);
        match limits.min_by_key(|(gpus, _)| *gpus) {
            Some((gpus, name)) => (gpus.max(there), Some(name)),
            None => (u64::MAX, None),
        }
    }
}
