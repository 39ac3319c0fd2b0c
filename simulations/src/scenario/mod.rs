//! A scenario file: which demand, which offers, which supply, what goes wrong, and what is compared.

mod build;
mod traces;

use std::path::{Path, PathBuf};

use planner::input::Survive;
use providers::sim::Dist;
use serde::Deserialize;

use protocol::{ClassSpec, Matching, QuotaSpec};

use crate::parts::{DemandPart, PartError};

pub use build::{Part, Prepared, prepare};

/// The file. Unknown keys are errors. Paths are relative to the file; those that begin with `$DATA/` to the folder of
/// public traces.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Name, for files and tables.
    pub name: String,
    /// One line on what it shows.
    pub title: String,
    /// Seeds of the runs, each once.
    pub seeds: Vec<u64>,
    /// Demand.
    pub demand: DemandPart,
    /// Multiplies the demand.
    #[serde(default = "one")]
    pub scale: f64,
    /// Parts of the trace.
    pub window: Window,
    /// Offers.
    pub offers: OffersPart,
    /// Classes.
    pub class: Vec<ClassSpec>,
    /// Quotas.
    #[serde(default)]
    pub quota: Vec<QuotaSpec>,
    /// Supply of every offer.
    pub supply: SupplyPart,
    /// Supply of some.
    #[serde(default)]
    pub supply_for: Vec<SupplyFor>,
    /// Faults of a real trace.
    pub faults: Option<FaultsPart>,
    /// Offers that go away for a time.
    #[serde(default)]
    pub outage: Vec<OutagePart>,
    /// Prices that change.
    #[serde(default)]
    pub price: Vec<PricePart>,
    /// Times without decisions.
    #[serde(default)]
    pub silence: Vec<SilencePart>,
    /// Demand that is multiplied for a time.
    #[serde(default)]
    pub surge: Vec<SurgePart>,
    /// How the planner plans.
    #[serde(default)]
    pub plan: PlanPart,
    /// Phases after the GPU is there.
    #[serde(default)]
    pub cold_start: ColdStartPart,
    /// Snapshots on hosts before they are asked for; without it all starts are alike.
    pub staging: Option<StagingPart>,
}

/// Parts of the trace, days from its start; one after the other: history, tuning, test.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Where the history begins.
    #[serde(default)]
    pub from_day: f64,
    /// Seen by forecasts before the first decision.
    pub history_days: f64,
    /// The knobs of simple policies are chosen here.
    pub tune_days: f64,
    /// Everything is compared here.
    pub test_days: f64,
}

/// Where offers come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffersPart {
    /// An offer table, or a folder of public price series.
    pub file: Option<PathBuf>,
    /// See `file`.
    pub public: Option<PathBuf>,
    /// Stock and prices of a rental market over time, replayed from where the demand trace begins: `supply.nodes` times
    /// the stock over its largest can be launched.
    pub market: Option<PathBuf>,
    /// GPUs of a node of the rental market.
    #[serde(default = "eight")]
    pub market_node_gpus: u32,
    /// Only these; empty: all.
    #[serde(default)]
    pub only: Vec<Matching>,
    /// The cheapest of each GPU model and market, at most so many.
    #[serde(default = "many")]
    pub most_of_each: usize,
}

/// Supply.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupplyPart {
    /// Nodes that can run at the same time.
    pub nodes: f64,
    /// Accepted to healthy.
    pub lead_time: Dist,
    /// Share of boots that fail the gate.
    #[serde(default)]
    pub boot_failure: f64,
    /// Share of requests refused although there is room.
    #[serde(default)]
    pub refusal: f64,
    /// Losses per node-hour beside the published interruptions.
    #[serde(default)]
    pub hazard_per_h: f64,
    /// Plans hear how boots and nodes have fared; otherwise they go by what is published.
    #[serde(default = "yes")]
    pub learns_health: bool,
    /// Shortest time that is billed.
    #[serde(default = "minute")]
    pub min_hold_s: u32,
    /// Warning before a spot node is taken back.
    #[serde(default = "two_minutes")]
    pub notice_s: f64,
    /// Launches a minute for each provider.
    pub launches_per_min: Option<f64>,
}

/// Supply of some offers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupplyFor {
    /// Which.
    #[serde(rename = "for")]
    pub matching: Matching,
    /// See [`SupplyPart`].
    pub nodes: Option<f64>,
    /// See [`SupplyPart`].
    pub lead_time: Option<Dist>,
    /// See [`SupplyPart`].
    pub refusal: Option<f64>,
    /// See [`SupplyPart`].
    pub hazard_per_h: Option<f64>,
    /// An availability trace (SkyPilot's JSON): `nodes` times its value can run. Offers take the files in turn.
    #[serde(default)]
    pub availability: Vec<PathBuf>,
}

/// Faults.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultsPart {
    /// Fault starts and ends of a fleet of servers (InfiniteHBD's JSON).
    pub file: PathBuf,
    /// Where the trace begins.
    #[serde(default)]
    pub from_day: f64,
}

/// Offers that go away with their nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutagePart {
    /// Which.
    #[serde(rename = "for")]
    pub matching: Matching,
    /// Hours from the start of the test.
    pub at_h: f64,
    /// For so long.
    pub hours: f64,
}

/// Prices of some offers from a time on.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PricePart {
    /// Which.
    #[serde(rename = "for")]
    pub matching: Matching,
    /// Hours from the start of the test.
    pub at_h: f64,
    /// Times the price of the start.
    pub factor: f64,
}

/// No decisions for a time.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SilencePart {
    /// Hours from the start of the test.
    pub at_h: f64,
    /// For so long.
    pub minutes: f64,
}

/// Demand times `factor` for a time, reached within `ramp_minutes`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SurgePart {
    /// Hours from the start of the test.
    pub at_h: f64,
    /// Times the demand.
    pub factor: f64,
    /// Minutes until it is reached.
    pub ramp_minutes: f64,
    /// Hours that it stays.
    pub hours: f64,
}

/// How the planner plans.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanPart {
    /// A decision each so many seconds, of every policy.
    pub every_s: u32,
    /// Seconds from a decision's inputs to its actions.
    pub delay_s: f64,
    /// Lengths of the planner's periods.
    pub periods_s: Vec<u32>,
    /// Demand paths.
    pub paths: usize,
    /// What a launch beyond the plan before costs more, as a share of its boot.
    pub churn: f64,
    /// Spare nodes go after so many times their boot.
    pub hold: f64,
    /// Demand that must be served without any one domain (N-1).
    pub survive: Option<Survive>,
}

impl Default for PlanPart {
    fn default() -> Self {
        let periods_s = [vec![60; 4], vec![120; 3], vec![300; 4], vec![900; 3]].concat();
        Self {
            every_s: 60,
            delay_s: 0.0,
            periods_s,
            paths: 100,
            churn: planner::input::Policy::default().churn,
            hold: planner::input::Policy::default().hold,
            survive: None,
        }
    }
}

/// Phases of a cold start once the GPU is there. The default adds up to about 50 s: image mounted lazily, host and
/// device memory restored.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColdStartPart {
    /// Root filesystem and weights.
    pub image: Dist,
    /// Interpreter and libraries, or restored host memory.
    pub host_start: Dist,
    /// CUDA, compilation and weights on the GPU, or restored device memory.
    pub device_start: Dist,
}

/// Snapshots, and what hosts keep of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagingPart {
    /// Room on each host's disk.
    pub disk_gib: f64,
    /// Room in its memory.
    #[serde(default)]
    pub memory_gib: f64,
    /// What a host fetches, gigabytes a second.
    #[serde(default = "one")]
    pub fetch_gb_per_s: f64,
    /// What it reads off its disk, gigabytes a second.
    #[serde(default = "five")]
    pub read_gb_per_s: f64,
    /// The snapshots.
    pub snapshot: Vec<SnapshotPart>,
}

/// A snapshot.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotPart {
    /// Unique name.
    pub name: String,
    /// Class whose claims start from it.
    pub class: String,
    /// Size of a copy.
    pub gib: f64,
    /// Seconds from grant to readiness without a copy.
    pub cold_s: f64,
    /// Seconds of a restore beside those in which its bytes move.
    #[serde(default = "two")]
    pub restore_s: f64,
    /// Share of the class's claims.
    #[serde(default = "one")]
    pub share: f64,
    /// Dollars that a second of waiting for readiness costs, beside the GPUs that wait.
    #[serde(default)]
    pub wait_cost_usd_per_s: f64,
}

impl Default for ColdStartPart {
    fn default() -> Self {
        Self { image: Dist::Fixed(5.0), host_start: Dist::Fixed(20.0), device_start: Dist::Fixed(25.0) }
    }
}

fn one() -> f64 {
    1.0
}

fn two() -> f64 {
    2.0
}

fn five() -> f64 {
    5.0
}

fn eight() -> u32 {
    8
}

fn many() -> usize {
    1000
}

fn yes() -> bool {
    true
}

fn minute() -> u32 {
    60
}

fn two_minutes() -> f64 {
    120.0
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It makes no sense.
    #[error(transparent)]
    Part(#[from] PartError),
    /// It needs public traces that are not here.
    #[error("skipped: no data ({0} is not there; PILOTLIGHT_DATA names the folder of public traces)")]
    NoData(String),
}

/// Reads a scenario file. Returns it with its text.
///
/// # Errors
/// It cannot be read, or has keys or values that make no sense.
pub fn read(path: &Path) -> Result<(Scenario, String), ScenarioError> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| PartError {
        place: place.clone(),
        what: format!("cannot be read ({e})"),
        source: Some(Box::new(e)),
    })?;
    let scenario: Scenario = toml::from_str(&text).map_err(|e| PartError {
        place: place.clone(),
        what: e.to_string().trim().to_owned(),
        source: Some(Box::new(e)),
    })?;
    check(&scenario).map_err(|e| PartError { place: format!("{place}: {}", e.place), ..e })?;
    Ok((scenario, text))
}

fn check(scenario: &Scenario) -> Result<(), PartError> {
    let range = |place: &str, value: f64, low: f64, high: f64| {
        if value >= low && value <= high {
            Ok(())
        } else {
            Err(PartError::at(place, format!("{value} is not in {low}..{high}")))
        }
    };
    if scenario.name.is_empty() || !scenario.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
        return Err(PartError::at("name", format!("'{}' names files: letters, digits, - and _ only", scenario.name)));
    }
    let mut seeds = scenario.seeds.clone();
    seeds.sort_unstable();
    if seeds.is_empty() || seeds.len() > 1000 {
        return Err(PartError::at("seeds", format!("{} seeds; 1 to 1000 are possible", seeds.len())));
    }
    if let Some(twice) = seeds.windows(2).find(|w| w[0] == w[1]) {
        return Err(PartError::at("seeds", format!("{} stands twice: its runs would be counted twice", twice[0])));
    }
    range("scale", scenario.scale, 1e-6, 1e6)?;
    let window = scenario.window;
    range("window.from_day", window.from_day, 0.0, 3650.0)?;
    range("window.history_days", window.history_days, 0.01, 3650.0)?;
    range("window.tune_days", window.tune_days, 0.01, 365.0)?;
    range("window.test_days", window.test_days, 0.01, 365.0)?;
    let supply = &scenario.supply;
    range("supply.nodes", supply.nodes, 0.0, 1e6)?;
    range("supply.boot_failure", supply.boot_failure, 0.0, 0.99)?;
    range("supply.refusal", supply.refusal, 0.0, 1.0)?;
    range("supply.hazard_per_h", supply.hazard_per_h, 0.0, 100.0)?;
    range("supply.notice_s", supply.notice_s, 0.0, 3600.0)?;
    supply.lead_time.check().map_err(|what| PartError::at("supply.lead_time", what))?;
    for (i, part) in scenario.supply_for.iter().enumerate() {
        let at = |field: &str| format!("supply_for[{i}].{field}");
        part.lead_time.as_ref().map_or(Ok(()), Dist::check).map_err(|what| PartError::at(at("lead_time"), what))?;
        range(&at("nodes"), part.nodes.unwrap_or(0.0), 0.0, 1e6)?;
        range(&at("refusal"), part.refusal.unwrap_or(0.0), 0.0, 1.0)?;
        range(&at("hazard_per_h"), part.hazard_per_h.unwrap_or(0.0), 0.0, 100.0)?;
    }
    let cold = &scenario.cold_start;
    for (name, dist) in [("image", &cold.image), ("host_start", &cold.host_start), ("device_start", &cold.device_start)]
    {
        dist.check().map_err(|what| PartError::at(format!("cold_start.{name}"), what))?;
    }
    range("plan.every_s", f64::from(scenario.plan.every_s), 1.0, 3600.0)?;
    range("plan.delay_s", scenario.plan.delay_s, 0.0, 3600.0)?;
    range("offers.market_node_gpus", f64::from(scenario.offers.market_node_gpus), 1.0, 72.0)?;
    range("plan.churn", scenario.plan.churn, 0.0, 100.0)?;
    range("plan.hold", scenario.plan.hold, 0.0, 100.0)?;
    if let Some(survive) = &scenario.plan.survive {
        range("plan.survive.share", survive.share, 0.0, 10.0)?;
    }
    range("plan.paths", scenario.plan.paths as f64, 1.0, 512.0)?;
    let mut ends: Vec<(f64, f64)> = scenario.surge.iter().map(|s| (s.at_h, s.at_h + s.hours)).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    if ends.windows(2).any(|w| w[1].0 < w[0].1) {
        return Err(PartError::at("surge", "two surges overlap"));
    }
    for (i, surge) in scenario.surge.iter().enumerate() {
        range(&format!("surge[{i}].factor"), surge.factor, 0.0, 1e3)?;
        range(&format!("surge[{i}].hours"), surge.hours, 0.0, 1e4)?;
        range(&format!("surge[{i}].ramp_minutes"), surge.ramp_minutes, 0.0, 1e4)?;
    }
    for (i, price) in scenario.price.iter().enumerate() {
        range(&format!("price[{i}].factor"), price.factor, 1e-3, 1e3)?;
    }
    for (i, class) in scenario.class.iter().enumerate() {
        range(&format!("class[{i}].wait_s"), class.wait_s, 0.0, 86_400.0)?;
        range(&format!("class[{i}].hit_rate"), class.hit_rate, 0.0, 0.9999)?;
    }
    if scenario.class.is_empty() {
        return Err(PartError::at("class", "there are no classes"));
    }
    Ok(())
}
