//! The output of `aws ec2 describe-spot-price-history`: the newest price of each zone and type.

use std::collections::BTreeMap;
use std::path::Path;

use fleet::{Market, OfferKey};
use serde::Deserialize;

use crate::catalogue::{RawOffer, day_of, instances};
use crate::table::{DataError, read_text};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct History {
    spot_price_history: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    availability_zone: String,
    instance_type: String,
    #[serde(default)]
    product_description: String,
    spot_price: String,
    timestamp: String,
}

/// Reads the GPU types with a Linux price; other types are not GPU offers and are left out.
///
/// # Errors
/// Not the JSON of that command, or a price or time that cannot be read, by its place in the list.
pub fn read(path: &Path) -> Result<Vec<RawOffer>, DataError> {
    let text = read_text(path)?;
    let history: History = serde_json::from_str(&text).map_err(|e| {
        let what = format!("is not the output of 'aws ec2 describe-spot-price-history' ({e})");
        DataError::line(path, e.line() as u64, None, what)
    })?;
    let mut newest: BTreeMap<(String, String), (String, f64)> = BTreeMap::new();
    for (i, entry) in history.spot_price_history.into_iter().enumerate() {
        let place = |field: &str| Some(format!("SpotPriceHistory[{i}].{field}"));
        let bad = |field: &str, text: &str| DataError {
            column: place(field),
            ..DataError::file(path, format!("'{text}' cannot be read"))
        };
        if !entry.product_description.is_empty() && !entry.product_description.starts_with("Linux/UNIX") {
            continue;
        }
        let price: f64 = entry.spot_price.parse().map_err(|_| bad("SpotPrice", &entry.spot_price))?;
        day_of(&entry.timestamp).ok_or_else(|| bad("Timestamp", &entry.timestamp))?;
        let slot = newest.entry((entry.availability_zone, entry.instance_type)).or_default();
        // ISO times in one zone compare as text.
        if entry.timestamp > slot.0 {
            *slot = (entry.timestamp, price);
        }
    }
    let offer = |((zone, instance_type), (time, price)): ((String, String), (String, f64))| {
        let (gpu, gpus_per_node) = instances::aws(&instance_type)?;
        Some(RawOffer {
            key: OfferKey {
                provider: "aws".into(),
                region: zone.trim_end_matches(|c: char| c.is_ascii_lowercase()).to_owned(),
                zone,
                instance_type,
                market: Market::Spot,
            },
            gpu: gpu.to_owned(),
            gpus_per_node,
            price_usd_per_h: Some(price),
            price_day: day_of(&time),
            interruption_per_h: 0.0,
            delisted: false,
            interconnect: None,
        })
    };
    Ok(newest.into_iter().filter_map(offer).collect())
}
