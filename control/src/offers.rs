//! What is sold now: what the providers that answered say, and of those that did not what they sold a moment ago.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, Ceiling, Ceilings};
use fleet::cloud::Hint;
use fleet::{Offer, OfferKey};
use planner::input::Commitment;
use protocol::QuotaSpec;

/// What is known of the market. Fades with the process: a new leader asks before it plans.
#[derive(Debug, Clone, Default)]
pub struct Market {
    /// What providers sell now; none until they were asked.
    sold: Option<BTreeSet<OfferKey>>,
    /// What providers tell of their offers, and when they did, milliseconds since 1970.
    hints: BTreeMap<OfferKey, (Hint, i64)>,
}

/// What a round of asking found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The table to write down: what is sold, what a silent provider sold, what has nodes.
    pub table: Vec<Offer>,
    /// Offers that are new or at another price.
    pub changed: usize,
}

impl Market {
    /// Whether an offer can be bought now, as far as is known.
    #[must_use]
    pub fn is_sold(&self, offer: &OfferKey) -> bool {
        self.sold.as_ref().is_none_or(|s| s.contains(offer))
    }

    /// What the provider tells of an offer beside its price, and when it did, milliseconds since 1970.
    #[must_use]
    pub fn hint(&self, offer: &OfferKey) -> Option<&(Hint, i64)> {
        self.hints.get(offer)
    }

    /// Replaces what one provider told.
    pub fn set_hints(&mut self, provider: &str, hints: Vec<Hint>, now_ms: i64) {
        self.hints.retain(|offer, _| offer.provider != provider);
        self.hints.extend(hints.into_iter().map(|h| (h.offer.clone(), (h, now_ms))));
    }

    /// What can be had at most: machines that somebody owns, and quotas.
    #[must_use]
    pub fn ceilings(&self, offers: &[Offer], quotas: &[QuotaSpec]) -> Ceilings {
        let owned = offers.iter().filter_map(|offer| {
            let nodes = self.hint(&offer.key)?.0.nodes_max?;
            let gpus = u64::from(nodes) * u64::from(offer.gpus_per_node);
            Some(Ceiling { name: format!("the machines of {}", offer.key), offers: vec![offer.key.clone()], gpus })
        });
        let quota = |quota: &QuotaSpec| {
            let members = offers.iter().filter(|o| quota.matching.matches(o)).map(|o| o.key.clone()).collect();
            Ceiling { name: format!("quota '{}'", quota.name), offers: members, gpus: quota.limit_gpus as u64 }
        };
        Ceilings(owned.chain(quotas.iter().map(quota)).filter(|c| !c.offers.is_empty()).collect())
    }

    /// Notes what was answered: `offers` that passed the gate, and the providers that did not answer.
    pub fn asked(&mut self, book: &Book, offers: &[Offer], silent: &BTreeSet<String>) -> Found {
        let known = book.offers();
        let in_use: BTreeSet<&OfferKey> = book.nodes().values().map(|n| &n.offer).collect();
        let changed = offers.iter().filter(|o| !known.contains(o)).count();
        let answered: BTreeSet<&OfferKey> = offers.iter().map(|o| &o.key).collect();
        let others: Vec<&Offer> = known.iter().filter(|o| !answered.contains(&o.key)).collect();
        let stays = |o: &&&Offer| silent.contains(&o.key.provider) || in_use.contains(&o.key);
        let table = offers.iter().chain(others.iter().filter(stays).copied()).cloned().collect();
        let still = known.iter().filter(|o| silent.contains(&o.key.provider) && self.is_sold(&o.key));
        self.sold = Some(answered.into_iter().chain(still.map(|o| &o.key)).cloned().collect());
        Found { table, changed }
    }
}

/// What a provider says is paid for in any case, for each of `periods`.
#[must_use]
pub fn commitment(offer: usize, hint: &Hint, periods: usize) -> Option<Commitment> {
    let nodes = f64::from(hint.committed_nodes);
    (nodes > 0.0).then(|| Commitment { name: hint.offer.to_string(), offers: vec![offer], nodes: vec![nodes; periods] })
}
