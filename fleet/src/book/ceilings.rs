//! What can be had at most, whatever is launched: a claim above it would wait for nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::claim::OnEmpty;
use crate::class::Class;
use crate::offer::OfferKey;

use super::lines::{Zone, usable_gpus};
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
    /// Borrowers take what there is, of any zone.
    pub(super) fn refuse_what_never_fits(&self, claim: &Claim) -> Result<(), ClaimError> {
        let Some(rule) = self.classes.get(&claim.class) else { return Ok(()) };
        if self.ceilings.0.is_empty() || claim.borrowed {
            return Ok(());
        }
        let wanted = u64::from(claim.count) * u64::from(rule.class.gpus_per_claim);
        let above = self.above.get(&claim.class).filter(|_| claim.on_empty == OnEmpty::Substitute);
        let mut zones: BTreeMap<Zone<'_>, Vec<usize>> = BTreeMap::new();
        for &offer in self.offers_of(&claim.class).iter().chain(above.into_iter().flatten()) {
            zones.entry(self.zone_of(offer)).or_default().push(offer);
        }
        let mut most: Option<(u64, &str)> = None;
        for offers in zones.values() {
            match self.most_in(offers, &rule.class) {
                // Most classes have a zone that nobody limits, or that is large enough.
                Some((gpus, limit)) if gpus < wanted => most = most.max(Some((gpus, limit))),
                _ => return Ok(()),
            }
        }
        let Some((most, limit)) = most else { return Ok(()) };
        if self.there(&zones, &rule.class) >= wanted {
            return Ok(());
        }
        Err(ClaimError::NeverFits { class: claim.class.clone(), wanted, most, limit: limit.to_owned() })
    }

    /// GPUs that claims of a class can use of these offers of one zone together at most, and what limits them; none where
    /// nothing does.
    fn most_in(&self, offers: &[usize], class: &Class) -> Option<(u64, &str)> {
        let limits = |ceiling: &Ceiling, p: usize| ceiling.offers.contains(&self.offers[p].key);
        // A limit on GPUs allows whole nodes, each with room for whole claims.
        let usable = |gpus: u64, p: usize| {
            let size = self.offers[p].gpus_per_node;
            gpus / u64::from(size.max(1)) * usable_gpus(size, size, class)
        };
        let of_all = |ceiling: &&Ceiling| offers.iter().all(|p| limits(ceiling, *p));
        let together = self.ceilings.0.iter().filter(of_all).map(|ceiling| {
            let most = offers.iter().map(|p| usable(ceiling.gpus, *p)).max().unwrap_or(0);
            (most, ceiling.name.as_str())
        });
        // Each by itself, where each has one.
        let each = offers.iter().try_fold((0_u64, ""), |(sum, _), p| {
            let own = self.ceilings.0.iter().filter(|c| limits(c, *p)).min_by_key(|c| c.gpus)?;
            Some((sum.saturating_add(usable(own.gpus, *p)), own.name.as_str()))
        });
        together.chain(each).min_by_key(|(gpus, _)| *gpus)
    }

    /// The most that any of these zones has now, whatever was allowed.
    fn there(&self, zones: &BTreeMap<Zone<'_>, Vec<usize>>, class: &Class) -> u64 {
        let mut gpus: BTreeMap<Zone<'_>, u64> = BTreeMap::new();
        for node in self.nodes.values() {
            let Some(offer) = self.offer_of(node) else { continue };
            let zone = self.zone_of(offer);
            if zones.get(&zone).is_some_and(|offers| offers.contains(&offer)) {
                *gpus.entry(zone).or_default() += usable_gpus(node.gpus, node.gpus, class);
            }
        }
        gpus.into_values().max().unwrap_or(0)
    }
}
