//! `offers.csv`: Pilotlight's own offer table.
//!
//! Columns: `provider, region, zone, instance_type, market, gpu, gpus_per_node, price_usd_per_h, price_date,
//! interruption_per_h`; the last two may be empty.

use std::io::{self, Write};
use std::path::Path;

use fleet::{Market, Offer, OfferKey};

use crate::catalogue::{RawOffer, date_of, day_of};
use crate::table::{DataError, Table};

const COLUMNS: [&str; 10] = [
    "provider",
    "region",
    "zone",
    "instance_type",
    "market",
    "gpu",
    "gpus_per_node",
    "price_usd_per_h",
    "price_date",
    "interruption_per_h",
];

/// Reads a table.
///
/// # Errors
/// A missing column, or a row with a bad number, market or date, by line and column. Prices are judged by the gate.
pub fn read(path: &Path) -> Result<Vec<RawOffer>, DataError> {
    let mut offers = Vec::new();
    Table::open(path, &COLUMNS)?.each(|row| {
        let market: Market = row.text("market").parse().map_err(|e: String| row.error("market", e))?;
        let price = row.text("price_usd_per_h");
        let date = row.text("price_date");
        let interruption = row.text("interruption_per_h");
        offers.push(RawOffer {
            key: OfferKey {
                provider: row.parse("provider")?,
                region: row.parse("region")?,
                zone: row.text("zone").to_owned(),
                instance_type: row.parse("instance_type")?,
                market,
            },
            gpu: row.parse("gpu")?,
            gpus_per_node: row.parse("gpus_per_node")?,
            price_usd_per_h: if price.is_empty() { None } else { Some(row.parse("price_usd_per_h")?) },
            price_day: match date {
                "" => None,
                text => Some(day_of(text).ok_or_else(|| row.error("price_date", format!("'{text}' is no date")))?),
            },
            interruption_per_h: if interruption.is_empty() { 0.0 } else { row.number("interruption_per_h")? },
            delisted: false,
            interconnect: None,
        });
        Ok(())
    })?;
    if offers.is_empty() {
        return Err(DataError::file(path, "has no offers"));
    }
    Ok(offers)
}

/// Writes a table.
///
/// # Errors
/// Whatever the writer reports.
pub fn write(offers: &[Offer], out: impl Write) -> io::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(COLUMNS)?;
    for offer in offers {
        let key = &offer.key;
        csv.write_record([
            key.provider.as_str(),
            &key.region,
            &key.zone,
            &key.instance_type,
            key.market.name(),
            offer.gpu.name(),
            &offer.gpus_per_node.to_string(),
            &format!("{:.6}", offer.price_usd_micros_per_h.usd()),
            &offer.price_day.map_or_else(String::new, date_of),
            &offer.interruption_per_h.to_string(),
        ])?;
    }
    csv.flush()
}
