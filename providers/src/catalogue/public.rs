//! Joins a folder of public price, specification and availability series into raw offers.
//!
//! Looked for, each if it is there: on-demand price histories of AWS, Azure and Google Cloud, AWS zone offerings and
//! spot advisor, neocloud price lists and availability snapshots (see docs/data.md for the columns).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use fleet::{Market, OfferKey};

use crate::catalogue::{RawOffer, day_of, instances};
use crate::table::{DataError, Table};

/// What one source gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceCount {
    /// File below the folder.
    pub file: &'static str,
    /// Rows read; `None` when the file is not there.
    pub offers: Option<usize>,
}

const AWS_PRICES: &str = "aws_ondemand_history/aws_gpu_ondemand_history.csv.zst";
const AWS_ZONES: &str = "aws_instance_catalog_moto/aws_gpu_zone_offerings.csv";
const AWS_SPECS: &str = "aws_instance_catalog_moto/aws_gpu_instance_specs.csv";
const AWS_ADVISOR: &str = "aws_spot_advisor/aws_gpu_spot_advisor_2025-06-28.csv";
const GCP_PRICES: &str = "gcp_price_history/gcp_gpu_price_changes.csv.zst";
const AZURE_PRICES: &str = "azure_ondemand_history/azure_gpu_ondemand_history.csv.zst";
const NEOCLOUDS: &str = "neocloud_prices/neocloud_gpu_prices.csv";
const AVAILABILITY: &str = "neocloud_availability_tugot17/provider_offers.csv.zst";

/// Reads everything below `folder`.
///
/// # Errors
/// A file that is there but broken, or no known file at all.
pub fn read(folder: &Path) -> Result<(Vec<RawOffer>, Vec<SourceCount>), DataError> {
    let mut offers = Vec::new();
    let mut counts = Vec::new();
    type Reader = fn(&Path) -> Result<Vec<RawOffer>, DataError>;
    let readers: [(&str, Reader); 5] = [
        (AWS_ZONES, aws),
        (GCP_PRICES, gcp),
        (AZURE_PRICES, azure),
        (NEOCLOUDS, neoclouds),
        (AVAILABILITY, availability),
    ];
    for (file, reader) in readers {
        if folder.join(file).exists() {
            let read = reader(folder)?;
            counts.push(SourceCount { file, offers: Some(read.len()) });
            offers.extend(read);
        } else {
            counts.push(SourceCount { file, offers: None });
        }
    }
    if counts.iter().all(|c| c.offers.is_none()) {
        return Err(DataError::file(folder, format!("has none of the known files, for instance {GCP_PRICES}")));
    }
    // One neocloud can stand in the price list and in the snapshots: the snapshots are finer, the list comes first.
    Ok((offers, counts))
}

/// A price with its day, and whether the last listing of its place still has it.
#[derive(Debug, Clone, Copy)]
struct Listed {
    usd_per_h: f64,
    day: Option<i32>,
    delisted: bool,
}

/// Prices by `(place, name)`.
type Prices = BTreeMap<(String, String), Listed>;

/// Newest price by key of a series of whole listings, one for each place and day.
fn newest(path: &Path, columns: [&str; 3], price: &str) -> Result<Prices, DataError> {
    let mut prices: BTreeMap<(String, String), (String, f64)> = BTreeMap::new();
    let mut last: HashMap<String, String> = HashMap::new();
    let [date, place, name] = columns;
    Table::open(path, &[date, place, name, price])?.each(|row| {
        let day = row.text(date);
        day_of(day).ok_or_else(|| row.error(date, format!("'{day}' is no date")))?;
        let newest = last.entry(row.text(place).to_owned()).or_default();
        *newest = newest.as_str().max(day).to_owned();
        let slot = prices.entry((row.text(place).to_owned(), row.text(name).to_owned())).or_default();
        if day >= slot.0.as_str() {
            *slot = (day.to_owned(), row.parse(price)?);
        }
        Ok(())
    })?;
    let listed = |(key, (day, usd_per_h)): ((String, String), (String, f64))| {
        let delisted = last.get(&key.0).is_some_and(|last| *last > day);
        (key, Listed { usd_per_h, day: day_of(&day), delisted })
    };
    Ok(prices.into_iter().map(listed).collect())
}

/// GPU and count of AWS types by its own specification, for types that the built-in table does not know.
fn aws_specs(folder: &Path) -> Result<HashMap<String, (String, u32)>, DataError> {
    let mut specs = HashMap::new();
    let path = folder.join(AWS_SPECS);
    if path.exists() {
        Table::open(&path, &["instance_type", "gpu", "gpu_count"])?.each(|row| {
            specs.insert(row.parse("instance_type")?, (row.parse("gpu")?, row.parse("gpu_count")?));
            Ok(())
        })?;
    }
    Ok(specs)
}

fn raw(key: OfferKey, gpu: (&str, u32), price: Option<f64>, day: Option<i32>) -> RawOffer {
    RawOffer {
        key,
        gpu: gpu.0.to_owned(),
        gpus_per_node: gpu.1,
        price_usd_per_h: price,
        price_day: day,
        interruption_per_h: 0.0,
        delisted: false,
        interconnect: None,
    }
}

fn key(provider: &str, region: &str, zone: &str, instance_type: &str, market: Market) -> OfferKey {
    let own = str::to_owned;
    OfferKey {
        provider: own(provider),
        region: own(region),
        zone: own(zone),
        instance_type: own(instance_type),
        market,
    }
}

/// AWS: every zone offering, with the on-demand price of its region where there is one, and a spot offer where the
/// advisor gives a saving. Zones without a price come out without one, and the gate says so.
fn aws(folder: &Path) -> Result<Vec<RawOffer>, DataError> {
    let prices = folder.join(AWS_PRICES);
    let prices = if prices.exists() {
        newest(&prices, ["generated_date", "region", "instance_type"], "usd_per_hour")?
    } else {
        Prices::new()
    };
    let specs = aws_specs(folder)?;
    let mut advisor: HashMap<(String, String), (f64, f64)> = HashMap::new();
    if folder.join(AWS_ADVISOR).exists() {
        Table::open(
            &folder.join(AWS_ADVISOR),
            &["region", "instance_type", "savings_pct_vs_od", "interruption_bucket"],
        )?
        .each(|row| {
            let saving: f64 = row.parse("savings_pct_vs_od")?;
            let bucket: usize = row.parse("interruption_bucket")?;
            // Middle of the published monthly band; the last is open above 20 %.
            let monthly = [0.025, 0.075, 0.125, 0.175, 0.25].get(bucket).copied().unwrap_or(0.25);
            let hourly = -(1.0_f64 - monthly).ln() / 730.0;
            advisor.insert((row.text("region").into(), row.text("instance_type").into()), (saving, hourly));
            Ok(())
        })?;
    }
    let mut offers = Vec::new();
    Table::open(&folder.join(AWS_ZONES), &["region", "zone", "instance_type"])?.each(|row| {
        let (region, zone, name) = (row.text("region"), row.text("zone"), row.text("instance_type"));
        // Accelerators that are no GPUs (Inferentia, Trainium, Gaudi, FPGA) are not offers of ours.
        let known = instances::aws(name).or_else(|| specs.get(name).map(|(gpu, count)| (gpu.as_str(), *count)));
        let Some(gpu) = known else {
            return Ok(());
        };
        let place = (region.to_owned(), name.to_owned());
        let listed = prices.get(&place).copied();
        let (price, day) = (listed.map(|l| l.usd_per_h), listed.and_then(|l| l.day));
        let delisted = listed.is_some_and(|l| l.delisted);
        let offer = raw(key("aws", region, zone, name, Market::OnDemand), gpu, price, day);
        offers.push(RawOffer { delisted, ..offer });
        if let Some((saving, hourly)) = advisor.get(&place) {
            let spot = price.map(|p| p * (1.0 - saving / 100.0));
            let offer = raw(key("aws", region, zone, name, Market::Spot), gpu, spot, day);
            offers.push(RawOffer { interruption_per_h: *hourly, delisted, ..offer });
        }
        Ok(())
    })?;
    Ok(offers)
}

fn gcp(folder: &Path) -> Result<Vec<RawOffer>, DataError> {
    let path = folder.join(GCP_PRICES);
    let mut offers = Vec::new();
    let mut prices: BTreeMap<(String, String, String), (String, f64)> = BTreeMap::new();
    let mut last = String::new();
    Table::open(&path, &["commit_date", "machine_type", "region", "kind", "usd_per_hour"])?.each(|row| {
        let day = row.text("commit_date");
        day_of(day).ok_or_else(|| row.error("commit_date", format!("'{day}' is no date")))?;
        last = last.as_str().max(day).to_owned();
        let at = (row.text("region").into(), row.text("machine_type").into(), row.text("kind").into());
        let slot = prices.entry(at).or_default();
        if day >= slot.0.as_str() {
            *slot = (day.to_owned(), row.parse("usd_per_hour")?);
        }
        Ok(())
    })?;
    for ((region, name, kind), (_, price)) in prices {
        let market = if kind == "hour_spot" { Market::Spot } else { Market::OnDemand };
        if let Some(gpu) = instances::gcp(&name) {
            offers.push(raw(key("gcp", &region, "", &name, market), gpu, Some(price), day_of(&last)));
        }
    }
    Ok(offers)
}

fn azure(folder: &Path) -> Result<Vec<RawOffer>, DataError> {
    let prices = newest(&folder.join(AZURE_PRICES), ["generated_date", "region", "sku"], "usd_per_hour")?;
    let offer = |((region, sku), listed): ((String, String), Listed)| {
        let gpu = instances::azure(&sku)?;
        let key = key("azure", &region, "", &sku, Market::OnDemand);
        let delisted = listed.delisted;
        Some(RawOffer { delisted, ..raw(key, gpu, Some(listed.usd_per_h), listed.day) })
    };
    Ok(prices.into_iter().filter_map(offer).collect())
}

fn neoclouds(folder: &Path) -> Result<Vec<RawOffer>, DataError> {
    let mut offers = Vec::new();
    let required = ["provider", "gpu", "gpu_count", "region", "on_demand_usd_h", "spot_usd_h", "as_of"];
    Table::open(&folder.join(NEOCLOUDS), &required)?.each(|row| {
        let count: u32 = row.parse("gpu_count")?;
        let region = match row.text("region") {
            "" => "any",
            region => region,
        };
        let gpu = row.text("gpu");
        let name = format!("{}x{}", count, gpu.replace(' ', "-"));
        for (column, market) in [("on_demand_usd_h", Market::OnDemand), ("spot_usd_h", Market::Spot)] {
            let text = row.text(column);
            if text.is_empty() && market == Market::Spot {
                continue;
            }
            let price = if text.is_empty() { None } else { Some(row.parse(column)?) };
            let key = key(row.text("provider"), region, "", &name, market);
            offers.push(raw(key, (gpu, count), price, day_of(row.text("as_of"))));
        }
        Ok(())
    })?;
    Ok(offers)
}

/// The last snapshot of each provider and GPU; out of stock where it is more than a day older than the newest of all.
fn availability(folder: &Path) -> Result<Vec<RawOffer>, DataError> {
    let mut last: BTreeMap<(String, String), (String, f64)> = BTreeMap::new();
    Table::open(&folder.join(AVAILABILITY), &["ts_utc", "gpu", "provider", "min_usd_gpu_h"])?.each(|row| {
        let time = row.text("ts_utc");
        day_of(time).ok_or_else(|| row.error("ts_utc", format!("'{time}' is no time")))?;
        let slot = last.entry((row.text("provider").to_owned(), row.text("gpu").to_owned())).or_default();
        if time >= slot.0.as_str() {
            *slot = (time.to_owned(), row.number("min_usd_gpu_h")?);
        }
        Ok(())
    })?;
    let newest = last.values().filter_map(|(time, _)| day_of(time)).max();
    let offer = |((provider, gpu), (time, price)): ((String, String), (String, f64))| {
        let day = day_of(&time);
        let recent = newest.zip(day).is_some_and(|(newest, day)| newest - day <= 1);
        let name = format!("1x{gpu}");
        let model = gpu.replace("H200_141GB", "H200").replace("B200_180GB", "B200");
        let key = key(&provider, "marketplace", "", &name, Market::OnDemand);
        RawOffer { delisted: !recent, ..raw(key, (&model, 1), Some(price), day) }
    };
    Ok(last.into_iter().map(offer).collect())
}
