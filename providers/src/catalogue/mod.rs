//! The offer table: raw rows from any source, and the gate that lets only believable prices through.

pub mod aws_spot;
pub mod instances;
pub mod own;
pub mod public;
pub mod rental_market;
pub mod skypilot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use fleet::{GpuModel, Interconnect, Offer, OfferKey, UsdMicros};
use serde::Serialize;

/// A row before the gate: nothing in it is believed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct RawOffer {
    /// Identity.
    pub key: OfferKey,
    /// GPU as the source names it.
    pub gpu: String,
    /// GPUs of a node; 0 where the source sells a part of one.
    pub gpus_per_node: u32,
    /// Price of the node in dollars an hour as the source gives it.
    pub price_usd_per_h: Option<f64>,
    /// Day of the price, days since 1970-01-01.
    pub price_day: Option<i32>,
    /// Published interruptions per hour.
    pub interruption_per_h: f64,
    /// The source listed it once, and does not any more.
    pub delisted: bool,
    /// Link, where the source says more than the model's usual one.
    pub interconnect: Option<Interconnect>,
}

impl From<&Offer> for RawOffer {
    fn from(offer: &Offer) -> Self {
        Self {
            key: offer.key.clone(),
            gpu: offer.gpu.to_string(),
            gpus_per_node: offer.gpus_per_node,
            price_usd_per_h: Some(offer.price_usd_micros_per_h.usd()),
            price_day: offer.price_day,
            interruption_per_h: offer.interruption_per_h,
            delisted: false,
            interconnect: Some(offer.interconnect),
        }
    }
}

/// Why an offer is kept out of plans.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The GPU is not in the table of models.
    UnknownGpu(String),
    /// Less than one whole GPU.
    PartOfAGpu,
    /// The source has no price.
    NoPrice,
    /// A price of 0: usually a type sold by reservation only.
    ZeroPrice,
    /// Negative, not finite or too large.
    BadPrice(f64),
    /// The price is older than the rules allow.
    Stale {
        /// Age in days.
        age_days: i32,
    },
    /// Far from the median of its GPU model and market.
    FarFromPeers {
        /// Its price for a GPU-hour.
        price: UsdMicros,
        /// The median.
        median: UsdMicros,
    },
    /// Not in the source's last listing.
    Delisted,
    /// The same key came before.
    Duplicate,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownGpu(gpu) => write!(f, "unknown GPU '{gpu}'"),
            Self::PartOfAGpu => write!(f, "less than one whole GPU"),
            Self::NoPrice => write!(f, "no price"),
            Self::ZeroPrice => write!(f, "listed at $0 (sold by reservation only?)"),
            Self::BadPrice(price) => write!(f, "price {price} is not usable"),
            Self::Stale { age_days } => write!(f, "price is {age_days} days old"),
            Self::FarFromPeers { price, median } => {
                write!(f, "{price}/GPU-h is far from the median of {median}")
            }
            Self::Delisted => write!(f, "not listed or in stock any more"),
            Self::Duplicate => write!(f, "listed twice"),
        }
    }
}

impl Reason {
    /// A short name for counting.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UnknownGpu(_) => "unknown GPU",
            Self::PartOfAGpu => "part of a GPU",
            Self::NoPrice => "no price",
            Self::ZeroPrice => "price of $0",
            Self::BadPrice(_) => "unusable price",
            Self::Stale { .. } => "stale price",
            Self::FarFromPeers { .. } => "far from peers",
            Self::Delisted => "delisted",
            Self::Duplicate => "listed twice",
        }
    }
}

/// An offer that was set aside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SetAside {
    /// Which.
    pub key: OfferKey,
    /// Why.
    pub reason: Reason,
}

/// Offers that may be planned with, and those set aside. Every raw row is in one of the two.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    /// Believable offers, by key.
    pub offers: Vec<Offer>,
    /// The rest, with reasons.
    pub set_aside: Vec<SetAside>,
}

/// What makes a price believable.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateRules {
    /// Today, days since 1970-01-01; `None` checks no age.
    pub today: Option<i32>,
    /// Oldest price in days.
    pub age_days_max: i32,
    /// A price for a GPU-hour may be at most so many times its peers' median, and at least the inverse.
    pub peer_ratio_max: f64,
    /// So many peers are needed for a median.
    pub peers_min: usize,
}

impl Default for GateRules {
    fn default() -> Self {
        Self { today: None, age_days_max: 30, peer_ratio_max: 5.0, peers_min: 4 }
    }
}

/// Sorts raw rows into believable offers and the rest.
#[must_use]
pub fn gate(raw: Vec<RawOffer>, rules: GateRules) -> Catalogue {
    let mut catalogue = Catalogue::default();
    let mut seen = BTreeSet::new();
    let mut passed: Vec<Offer> = Vec::new();
    for row in raw {
        let key = row.key.clone();
        if !seen.insert(key.clone()) {
            catalogue.set_aside.push(SetAside { key, reason: Reason::Duplicate });
            continue;
        }
        match believe(row, rules) {
            Ok(offer) => passed.push(offer),
            Err(reason) => catalogue.set_aside.push(SetAside { key, reason }),
        }
    }
    let medians = medians(&passed);
    for offer in passed {
        let price = offer.gpu_price_usd_micros_per_h();
        let peers = medians.get(&(offer.gpu, offer.key.market == fleet::Market::Spot));
        let far = peers.filter(|(count, median)| {
            let ratio = price.usd() / median.usd();
            *count >= rules.peers_min && (ratio > rules.peer_ratio_max || ratio < 1.0 / rules.peer_ratio_max)
        });
        match far {
            Some(&(_, median)) => {
                let reason = Reason::FarFromPeers { price, median };
                catalogue.set_aside.push(SetAside { key: offer.key, reason });
            }
            None => catalogue.offers.push(offer),
        }
    }
    catalogue.offers.sort_by(|a, b| a.key.cmp(&b.key));
    catalogue.set_aside.sort_by(|a, b| a.key.cmp(&b.key));
    catalogue
}

fn believe(row: RawOffer, rules: GateRules) -> Result<Offer, Reason> {
    if row.gpus_per_node == 0 {
        return Err(Reason::PartOfAGpu);
    }
    let gpu: GpuModel = row.gpu.parse().map_err(|_| Reason::UnknownGpu(row.gpu.clone()))?;
    if row.delisted {
        return Err(Reason::Delisted);
    }
    let usd = row.price_usd_per_h.ok_or(Reason::NoPrice)?;
    if usd == 0.0 {
        return Err(Reason::ZeroPrice);
    }
    let price = UsdMicros::from_usd(usd).ok().filter(|p| p.0 > 0 && p.usd() <= 1e5).ok_or(Reason::BadPrice(usd))?;
    if let (Some(today), Some(day)) = (rules.today, row.price_day) {
        let age_days = today - day;
        if age_days > rules.age_days_max {
            return Err(Reason::Stale { age_days });
        }
    }
    let interruption_per_h = if row.interruption_per_h.is_finite() { row.interruption_per_h.max(0.0) } else { 0.0 };
    Ok(Offer {
        key: row.key,
        gpu,
        gpus_per_node: row.gpus_per_node,
        interconnect: row.interconnect.unwrap_or_else(|| usual_link(gpu, row.gpus_per_node)),
        price_usd_micros_per_h: price,
        price_day: row.price_day,
        interruption_per_h,
    })
}

/// A node of one GPU has no link between GPUs to speak of; larger ones have the model's.
fn usual_link(gpu: GpuModel, gpus: u32) -> Interconnect {
    if gpus > 1 { gpu.interconnect() } else { Interconnect::Pcie }
}

/// Number of offers and median price of a GPU-hour, by model and spot or not.
fn medians(offers: &[Offer]) -> BTreeMap<(GpuModel, bool), (usize, UsdMicros)> {
    let mut prices: BTreeMap<(GpuModel, bool), Vec<UsdMicros>> = BTreeMap::new();
    for offer in offers {
        let group = (offer.gpu, offer.key.market == fleet::Market::Spot);
        prices.entry(group).or_default().push(offer.gpu_price_usd_micros_per_h());
    }
    let median = |mut list: Vec<UsdMicros>| {
        list.sort_unstable();
        (list.len(), list[list.len() / 2])
    };
    prices.into_iter().map(|(group, list)| (group, median(list))).collect()
}

/// Days since 1970-01-01 of `2026-09-16` or of a longer timestamp that begins so.
#[must_use]
pub fn day_of(text: &str) -> Option<i32> {
    let date = chrono::NaiveDate::parse_from_str(text.get(..10)?, "%Y-%m-%d").ok()?;
    i32::try_from(date.signed_duration_since(chrono::NaiveDate::default()).num_days()).ok()
}

/// The date of a day number, `2026-09-16`.
#[must_use]
pub fn date_of(day: i32) -> String {
    let date = chrono::NaiveDate::default().checked_add_signed(chrono::TimeDelta::days(i64::from(day)));
    date.map_or_else(|| "-".into(), |d| d.format("%Y-%m-%d").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleet::Market;

    fn raw(zone: &str, price: Option<f64>) -> RawOffer {
        RawOffer {
            key: OfferKey {
                provider: "aws".into(),
                region: "us-east-1".into(),
                zone: zone.into(),
                instance_type: "p5.48xlarge".into(),
                market: Market::OnDemand,
            },
            gpu: "H100".into(),
            gpus_per_node: 8,
            price_usd_per_h: price,
            price_day: day_of("2026-09-16"),
            interruption_per_h: 0.0,
            delisted: false,
            interconnect: None,
        }
    }

    #[test]
    fn bad_prices_are_set_aside_with_a_reason() {
        let mut rows: Vec<RawOffer> = ["a", "b", "c", "d", "e"].iter().map(|z| raw(z, Some(55.0))).collect();
        rows.push(raw("zero", Some(0.0)));
        rows.push(raw("none", None));
        rows.push(raw("nan", Some(f64::NAN)));
        rows.push(raw("negative", Some(-3.0)));
        rows.push(raw("dear", Some(600.0)));
        rows.push(raw("cheap", Some(0.8)));
        rows.push(raw("a", Some(55.0)));
        rows.push(RawOffer { price_day: day_of("2026-01-01"), ..raw("old", Some(55.0)) });
        rows.push(RawOffer { gpu: "Z9".into(), ..raw("unknown", Some(55.0)) });
        rows.push(RawOffer { delisted: true, ..raw("gone", Some(55.0)) });
        let total = rows.len();
        let rules = GateRules { today: day_of("2026-09-20"), ..GateRules::default() };
        let catalogue = gate(rows, rules);
        assert_eq!(catalogue.offers.len(), 5);
        assert_eq!(catalogue.offers.len() + catalogue.set_aside.len(), total, "no row is lost");
        let kinds: BTreeSet<&str> = catalogue.set_aside.iter().map(|s| s.reason.kind()).collect();
        for kind in [
            "price of $0",
            "no price",
            "unusable price",
            "far from peers",
            "listed twice",
            "stale price",
            "unknown GPU",
            "delisted",
        ] {
            assert!(kinds.contains(kind), "{kind} in {kinds:?}");
        }
    }

    #[test]
    fn days() {
        assert_eq!(day_of("1970-01-02"), Some(1));
        assert_eq!(day_of("2026-09-16T12:00:00Z").map(date_of).as_deref(), Some("2026-09-16"));
        assert_eq!(day_of("soon"), None);
    }
}
