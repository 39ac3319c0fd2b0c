//! SkyPilot's catalogue CSV (versions 5 to 8): one row for an instance type in a region or zone, with an on-demand and
//! a spot price.

use std::path::Path;

use fleet::{Market, OfferKey};

use crate::catalogue::RawOffer;
use crate::table::{DataError, Table};

/// Reads the rows that have an accelerator. The cloud is not in the file, so `provider` says it.
///
/// # Errors
/// A missing column or a bad number, by line and column.
pub fn read(path: &Path, provider: &str, price_day: Option<i32>) -> Result<Vec<RawOffer>, DataError> {
    let required = ["InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"];
    let mut offers = Vec::new();
    Table::open(path, &required)?.each(|row| {
        let gpu = row.text("AcceleratorName");
        if gpu.is_empty() {
            return Ok(());
        }
        let count = row.number("AcceleratorCount")?;
        for (column, market) in [("Price", Market::OnDemand), ("SpotPrice", Market::Spot)] {
            let price = row.text(column);
            if price.is_empty() && market == Market::Spot {
                continue;
            }
            // GCP lists a bare accelerator without an instance type: the host is chosen later.
            let instance_type = match row.text("InstanceType") {
                "" => format!("{gpu}:{count}"),
                name => name.to_owned(),
            };
            offers.push(RawOffer {
                key: OfferKey {
                    provider: provider.to_owned(),
                    region: row.parse("Region")?,
                    zone: row.text("AvailabilityZone").to_owned(),
                    instance_type,
                    market,
                },
                gpu: gpu.to_owned(),
                gpus_per_node: count as u32,
                price_usd_per_h: if price.is_empty() { None } else { Some(row.parse(column)?) },
                price_day,
                interruption_per_h: 0.0,
                delisted: false,
                interconnect: None,
            });
        }
        Ok(())
    })?;
    Ok(offers)
}
