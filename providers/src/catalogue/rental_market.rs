//! A rental market over time: what each provider had of each GPU, and its price, snapshot by snapshot.

use std::collections::BTreeMap;
use std::path::Path;

use fleet::{GpuModel, Market, OfferKey};

use super::RawOffer;
use crate::sim::Steps;
use crate::table::{DataError, Table};

/// One provider's nodes with one GPU model.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// The offer at its first price.
    pub offer: RawOffer,
    /// Listings in stock, 0 where a snapshot of its GPU does not have it, seconds from the first snapshot of the file.
    pub stock: Steps,
    /// Dollars for a node-hour; holds while there is no stock.
    pub price_usd_per_h: Steps,
}

/// All that a file has.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RentalMarket {
    /// By GPU and provider.
    pub listings: Vec<Listing>,
    /// Seconds from the first snapshot to the last.
    pub length_s: f64,
}

/// Time, listings in stock, dollars for a GPU-hour.
type Row = (i64, f64, f64);

/// Snapshots as rows `ts_utc, gpu, provider, offers, min_usd_gpu_h`; a provider without a row in a snapshot has no
/// stock. Nodes have `gpus_per_node` GPUs. GPU models that are not known are left out.
///
/// # Errors
/// A row that is no such row, times that go back, or nothing at all, by its place.
pub fn read(path: &Path, gpus_per_node: u32) -> Result<RentalMarket, DataError> {
    let table = Table::open(path, &["ts_utc", "gpu", "provider", "offers", "min_usd_gpu_h"])?;
    // Of each GPU its snapshots, and of each provider its rows `(time, listings, price)`.
    let mut snapshots: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut rows: BTreeMap<(String, String), Vec<Row>> = BTreeMap::new();
    table.each(|row| {
        let at = chrono::NaiveDateTime::parse_from_str(row.text("ts_utc"), "%Y-%m-%dT%H:%M:%S")
            .map_err(|e| row.error("ts_utc", format!("'{}' is no time ({e})", row.text("ts_utc"))))?
            .and_utc()
            .timestamp();
        let (offers, price) = (row.number("offers")?, row.number("min_usd_gpu_h")?);
        let gpu = row.text("gpu").to_owned();
        let times = snapshots.entry(gpu.clone()).or_default();
        if times.last().is_some_and(|last| *last > at) {
            return Err(row.error("ts_utc", "goes back in time"));
        }
        if times.last() != Some(&at) {
            times.push(at);
        }
        if price > 0.0 {
            let of_provider = rows.entry((gpu, row.text("provider").to_owned())).or_default();
            if of_provider.last().is_some_and(|last| last.0 == at) {
                return Err(row.error("provider", "stands twice in a snapshot"));
            }
            of_provider.push((at, offers, price));
        }
        Ok(())
    })?;
    let all = || snapshots.values().flatten().copied();
    let (Some(first), Some(last)) = (all().min(), all().max()) else {
        return Err(DataError::file(path, "has no snapshots"));
    };
    let known = rows.into_iter().filter(|((gpu, _), _)| gpu.parse::<GpuModel>().is_ok());
    let listed = known.map(|((gpu, provider), rows)| listing(gpu, provider, &rows, &snapshots, first, gpus_per_node));
    Ok(RentalMarket { listings: listed.collect(), length_s: (last - first) as f64 })
}

fn listing(
    gpu: String,
    provider: String,
    rows: &[Row],
    snapshots: &BTreeMap<String, Vec<i64>>,
    first: i64,
    gpus_per_node: u32,
) -> Listing {
    let node_usd = |row: &Row| row.2 * f64::from(gpus_per_node);
    let (mut stock, mut price) = (vec![(0.0, 0.0)], vec![(0.0, rows.first().map_or(0.0, node_usd))]);
    let change = |steps: &mut Vec<(f64, f64)>, at: f64, value: f64| {
        if steps.last().is_none_or(|last| last.1 != value) {
            steps.push((at, value));
        }
    };
    let mut next = rows.iter().peekable();
    for &at in &snapshots[&gpu] {
        let at_s = (at - first) as f64;
        let row = next.next_if(|row| row.0 == at);
        change(&mut stock, at_s, row.map_or(0.0, |row| row.1));
        if let Some(row) = row {
            change(&mut price, at_s, node_usd(row));
        }
    }
    let offer = RawOffer {
        key: OfferKey {
            provider,
            region: "any".into(),
            zone: String::new(),
            instance_type: format!("{gpus_per_node}x-{}", gpu.to_lowercase().replace('_', "-")),
            market: Market::OnDemand,
        },
        gpu,
        gpus_per_node,
        price_usd_per_h: Some(price[0].1),
        price_day: None,
        interruption_per_h: 0.0,
        delisted: false,
        interconnect: None,
    };
    Listing { offer, stock: Steps(stock), price_usd_per_h: Steps(price) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(rows: &str) -> Result<RentalMarket, DataError> {
        let folder = tempfile::tempdir().expect("temp");
        let path = folder.path().join("market.csv");
        std::fs::write(&path, format!("ts_utc,gpu,provider,offers,min_usd_gpu_h\n{rows}")).expect("write");
        read(&path, 8)
    }

    #[test]
    fn stock_ends_where_a_snapshot_does_not_have_it() {
        let rows = "2025-10-19T21:00:00,H100_80GB_SXM5,alpha,3,2.0\n2025-10-19T21:00:00,H100_80GB_SXM5,beta,1,2.5\n\
                    2025-10-19T21:30:00,H100_80GB_SXM5,beta,1,2.5\n2025-10-19T21:30:00,XPU,beta,1,2.5\n\
                    2025-10-19T22:00:00,H100_80GB_SXM5,alpha,2,1.5\n";
        let RentalMarket { listings: all, length_s } = parsed(rows).expect("good");
        assert_eq!(length_s, 3600.0);
        assert_eq!(all.len(), 2, "the unknown GPU is left out");
        assert_eq!(all[0].stock.0, [(0.0, 0.0), (0.0, 3.0), (1800.0, 0.0), (3600.0, 2.0)]);
        assert_eq!(all[0].price_usd_per_h.0, [(0.0, 16.0), (3600.0, 12.0)]);
        assert_eq!(all[1].stock.at(3600.0), 0.0);
        assert_eq!((all[0].stock.at(0.0), all[0].offer.price_usd_per_h), (3.0, Some(16.0)));
    }

    #[test]
    fn bad_rows_are_told_by_their_place() {
        let error = |rows: &str| parsed(rows).expect_err("bad").to_string();
        assert!(error("2025-10-19,H100,a,1,2\n").contains("line 2, column 'ts_utc'"));
        assert!(error("2025-10-19T21:00:00,H100,a,x,2\n").contains("column 'offers'"));
        let back = "2025-10-19T21:00:00,H100,a,1,2\n2025-10-19T20:00:00,H100,a,1,2\n";
        assert!(error(back).contains("line 3") && error(back).contains("goes back"));
        let twice = "2025-10-19T21:00:00,H100,a,1,2\n2025-10-19T21:00:00,H100,a,1,2\n";
        assert!(error(twice).contains("line 3, column 'provider'"));
        assert!(error("").contains("no snapshots"));
    }
}
