//! From a scenario and a seed to the setups of its runs.

use std::path::{Path, PathBuf};

use fleet::book::ClassRule;
use fleet::rng::Rng;
use fleet::{Market, Offer, Snapshot, StagingRoom, UsdMicros};
use planner::input::{LeadTime, Policy as Weights};
use planner::scenarios::History;
use providers::catalogue::rental_market::{self, Listing, RentalMarket};
use providers::catalogue::{self, GateRules};
use providers::sim::{SimOffer, Steps};

use super::{Scenario, ScenarioError, traces};
use crate::claims;
use crate::engine::{Disturbance, Setup, Stager, Staging};
use crate::parts::{self, PartError};
use planner::rolling::Rules as LiveRules;

/// Seconds of each run before anything is counted: the fleet fills.
const WARM_UP_S: f64 = 3.0 * 3600.0;

/// What the runs of a scenario share.
#[derive(Debug, Clone)]
pub struct Prepared {
    scenario: Scenario,
    offers: Vec<Offer>,
    /// Concurrent claims of each class, `[K][N]`, whole numbers.
    demand: Vec<Vec<f64>>,
    step_s: u32,
    supply: Vec<SimOffer>,
    /// Prices and stock of a rental market over the whole trace, of the offers that are from one.
    market: Vec<Option<Listing>>,
    faults: Vec<(f64, u32)>,
    /// What was done to the demand while reading.
    pub notes: Vec<String>,
}

/// Which part of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The days on which knobs are chosen.
    Tune,
    /// The days on which everything is compared.
    Test,
}

/// Reads all that a scenario names.
///
/// # Errors
/// Data that are not there, or anything that makes no sense, by its place.
pub fn prepare(scenario: &Scenario, folder: &Path, data: Option<&Path>) -> Result<Prepared, ScenarioError> {
    let find = |path: &Path| -> Result<PathBuf, ScenarioError> {
        let Ok(below) = path.strip_prefix("$DATA") else { return Ok(folder.join(path)) };
        let found = data.map(|d| d.join(below)).filter(|p| p.exists());
        found.ok_or_else(|| ScenarioError::NoData(below.display().to_string()))
    };
    let series = scenario.demand.read(&find(&scenario.demand.file)?, scenario.seeds[0])?;
    let (offers, market) = offers(scenario, &find)?;
    let mut demand = Vec::new();
    for part in &scenario.class {
        let members = parts::series_of(part, &series)?;
        let scaled = series.claims(&members, part.gpus_per_claim);
        demand.push(scaled.iter().map(|v| (v * scenario.scale).round()).collect::<Vec<f64>>());
        let class = parts::rule(part)?.class;
        let served = offers.iter().any(|o| fleet::offer_share(o, &class, None).is_ok());
        if !served {
            let what = format!("class '{}'", part.name);
            return Err(
                PartError::at(what, "no offer of the scenario serves it: see 'offers' and the class's 'gpus'").into()
            );
        }
    }
    let window = scenario.window;
    let days = window.from_day + window.history_days + window.tune_days + window.test_days;
    let have = series.steps() as f64 * f64::from(series.step_s) / 86_400.0;
    if days > have + 1e-9 {
        let what = format!("asks for {days:.2} days of a trace of {have:.2}");
        return Err(PartError::at("window", what).into());
    }
    if scenario.offers.market.is_some() {
        check_market(scenario, market.length_s / 86_400.0, days)?;
    }
    apply_surges(scenario, &mut demand, series.step_s);
    let supply = supply(scenario, &offers, &find)?;
    let faults = match &scenario.faults {
        Some(part) => traces::faults(&find(&part.file)?, part.from_day * 86_400.0).map_err(data_error)?,
        None => Vec::new(),
    };
    let market =
        offers.iter().map(|o| market.listings.iter().find(|listing| listing.offer.key == o.key).cloned()).collect();
    Ok(Prepared {
        scenario: scenario.clone(),
        offers,
        market,
        demand,
        step_s: series.step_s,
        supply,
        faults,
        notes: series.notes,
    })
}

fn data_error(error: providers::DataError) -> ScenarioError {
    PartError { place: error.place(), what: error.what.clone(), source: Some(Box::new(error)) }.into()
}

fn offers(
    scenario: &Scenario,
    find: &dyn Fn(&Path) -> Result<PathBuf, ScenarioError>,
) -> Result<(Vec<Offer>, RentalMarket), ScenarioError> {
    let part = &scenario.offers;
    let mut market = RentalMarket::default();
    let raw = match (&part.file, &part.public, &part.market) {
        (Some(file), None, None) => catalogue::own::read(&find(file)?).map_err(data_error)?,
        (None, Some(folder), None) => catalogue::public::read(&find(folder)?).map_err(data_error)?.0,
        (None, None, Some(file)) => {
            market = rental_market::read(&find(file)?, part.market_node_gpus).map_err(data_error)?;
            market.listings.iter().map(|listing| listing.offer.clone()).collect()
        }
        _ => return Err(PartError::at("offers", "give one of file, public and market").into()),
    };
    let mut offers = catalogue::gate(raw, GateRules::default()).offers;
    offers.retain(|o| part.only.is_empty() || part.only.iter().any(|m| m.matches(o)));
    offers.sort_by(|a, b| {
        a.gpu_price_usd_micros_per_h().cmp(&b.gpu_price_usd_micros_per_h()).then_with(|| a.key.cmp(&b.key))
    });
    let mut counts = std::collections::BTreeMap::new();
    offers.retain(|o| {
        let count = counts.entry((o.gpu, o.key.market)).or_insert(0_usize);
        *count += 1;
        *count <= part.most_of_each
    });
    if offers.is_empty() {
        return Err(PartError::at("offers", "no offer is left by 'only'").into());
    }
    Ok((offers, market))
}

/// What a rental market says already must not be said again.
fn check_market(scenario: &Scenario, market_days: f64, days: f64) -> Result<(), PartError> {
    if !scenario.price.is_empty() {
        return Err(PartError::at("price[0]", "prices come from 'offers.market'"));
    }
    let said = |s: &super::SupplyFor| s.nodes.is_some() || !s.availability.is_empty();
    if let Some(i) = scenario.supply_for.iter().position(said) {
        return Err(PartError::at(format!("supply_for[{i}]"), "stock comes from 'offers.market'"));
    }
    if days > market_days {
        return Err(PartError::at("window", format!("asks for {days:.2} days of a market of {market_days:.2}")));
    }
    Ok(())
}

fn apply_surges(scenario: &Scenario, demand: &mut [Vec<f64>], step_s: u32) {
    let window = scenario.window;
    let test_s = (window.from_day + window.history_days + window.tune_days) * 86_400.0;
    for surge in &scenario.surge {
        let start = test_s + surge.at_h * 3600.0;
        for row in demand.iter_mut() {
            for (i, value) in row.iter_mut().enumerate() {
                let since = i as f64 * f64::from(step_s) - start;
                if since >= 0.0 && since < surge.hours * 3600.0 {
                    let ramp = (since / (surge.ramp_minutes * 60.0).max(1e-9)).min(1.0);
                    *value = (*value * (1.0 + (surge.factor - 1.0) * ramp)).round();
                }
            }
        }
    }
}

fn supply(
    scenario: &Scenario,
    offers: &[Offer],
    find: &dyn Fn(&Path) -> Result<PathBuf, ScenarioError>,
) -> Result<Vec<SimOffer>, ScenarioError> {
    let base = &scenario.supply;
    let mut providers: Vec<&str> = offers.iter().map(|o| o.key.provider.as_str()).collect();
    providers.sort_unstable();
    providers.dedup();
    let plain = |o: &Offer| SimOffer {
        provider: providers.binary_search(&o.key.provider.as_str()).unwrap_or(0),
        capacity: Steps::constant(base.nodes),
        lead: base.lead_time.clone(),
        boot_failure: base.boot_failure,
        refusal: base.refusal,
        hazard_per_h: base.hazard_per_h + o.interruption_per_h,
    };
    let mut all: Vec<SimOffer> = offers.iter().map(plain).collect();
    for (i, part) in scenario.supply_for.iter().enumerate() {
        let hits = parts::members(&part.matching, offers, &format!("supply_for[{i}]"))?;
        for (turn, p) in hits.into_iter().enumerate() {
            let offer = &mut all[p];
            let nodes = part.nodes.unwrap_or(base.nodes);
            offer.capacity = match part.availability.get(turn % part.availability.len().max(1)) {
                // Offers that share a file begin at different days of it.
                Some(file) => {
                    let from_s = (turn / part.availability.len()) as f64 * 2.0 * 86_400.0;
                    traces::availability(&find(file)?, from_s, nodes).map_err(data_error)?
                }
                None => Steps::constant(nodes),
            };
            offer.lead = part.lead_time.clone().unwrap_or_else(|| offer.lead.clone());
            offer.refusal = part.refusal.unwrap_or(offer.refusal);
            offer.hazard_per_h = part.hazard_per_h.map_or(offer.hazard_per_h, |h| h + offers[p].interruption_per_h);
        }
    }
    Ok(all)
}

impl Prepared {
    /// The scenario.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Concurrent claims of each class over the whole trace, `[K][N]`, and the length of a step in seconds.
    #[must_use]
    pub fn demand(&self) -> (&[Vec<f64>], u32) {
        (&self.demand, self.step_s)
    }

    /// Number of offers.
    #[must_use]
    pub fn offers(&self) -> usize {
        self.offers.len()
    }

    /// The setup of one run. The same part and seed give the same setup.
    ///
    /// # Errors
    /// A name in a disturbance that means no offer.
    pub fn setup(&self, part: Part, seed: u64) -> Result<Setup, ScenarioError> {
        let scenario = &self.scenario;
        let window = scenario.window;
        let (days, length) = match part {
            Part::Tune => (window.from_day + window.history_days, window.tune_days),
            Part::Test => (window.from_day + window.history_days + window.tune_days, window.test_days),
        };
        let per_day = 86_400.0 / f64::from(self.step_s);
        let warm_steps = (WARM_UP_S / f64::from(self.step_s)).ceil() as usize;
        let measured = (days * per_day) as usize;
        let start = measured.saturating_sub(warm_steps);
        let end = ((days + length) * per_day) as usize;
        let past = ((window.from_day * per_day) as usize).min(start);
        let mut rng = Rng::new(seed);
        let mut stream = Vec::new();
        let mut classes = Vec::new();
        for (k, row) in self.demand.iter().enumerate() {
            let claims = claims::of_series(&row[start..end.min(row.len())], self.step_s, k as u32, &mut rng);
            let claim_mean_s = claims::mean_life_s(&claims, 3600.0);
            classes.push(ClassRule { claim_mean_s, ..parts::rule(&scenario.class[k])? });
            stream.extend(claims);
        }
        stream.sort_unstable();
        let offset_s = (measured - start) as f64 * f64::from(self.step_s);
        let end_s = (end - start) as f64 * f64::from(self.step_s);
        let (mut offers, mut supply) = (self.offers.clone(), self.supply.clone());
        let mut disturbances = self.disturbances(part, days, offset_s, end_s)?;
        let from_s = start as f64 * f64::from(self.step_s);
        for (p, listing) in self.market.iter().enumerate() {
            let Some(listing) = listing else { continue };
            let price = after(&listing.price_usd_per_h, from_s);
            offers[p].price_usd_micros_per_h =
                UsdMicros::from_usd(price.0[0].1).unwrap_or(offers[p].price_usd_micros_per_h);
            let changes = price.0[1..].iter().filter(|(at, _)| *at < end_s);
            disturbances.extend(changes.map(|(at, usd)| (*at, Disturbance::Price(vec![p], usd / price.0[0].1))));
            let largest = listing.stock.0.iter().map(|s| s.1).fold(1.0, f64::max);
            let mut stock = after(&listing.stock, from_s);
            stock.0.iter_mut().for_each(|s| s.1 = (s.1 / largest * scenario.supply.nodes).ceil());
            supply[p].capacity = stock;
        }
        disturbances.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Setup {
            offers,
            supply,
            priors: self.supply.iter().map(|s| LeadTime { cdf: s.lead.points() }).collect(),
            min_hold_s: scenario.supply.min_hold_s,
            learns_health: scenario.supply.learns_health,
            notice_s: scenario.supply.notice_s,
            rate_per_min: scenario.supply.launches_per_min.unwrap_or(f64::INFINITY),
            quotas: scenario.quota.iter().map(|q| parts::quota(q, &self.offers)).collect::<Result<_, _>>()?,
            classes,
            claims: stream,
            disturbances,
            history: History {
                step_s: self.step_s,
                claims: self.demand.iter().map(|row| row[past..start].to_vec()).collect(),
                filled_steps: Vec::new(),
            },
            start_fleet: true,
            measure_from_s: offset_s,
            end_s,
            plan_every_s: scenario.plan.every_s,
            plan_delay_s: scenario.plan.delay_s,
            cold_start: vec![
                ("image".into(), scenario.cold_start.image.clone()),
                ("host start".into(), scenario.cold_start.host_start.clone()),
                ("device start".into(), scenario.cold_start.device_start.clone()),
            ],
            staging: self.staging(),
            seed,
        })
    }

    /// Copies, if the scenario has any.
    fn staging(&self) -> Option<Staging> {
        let part = self.scenario.staging.as_ref()?;
        let bytes = |gib: f64| (gib * f64::from(1 << 30)) as u64;
        let one = |(n, s): (usize, &super::SnapshotPart)| Snapshot {
            name: s.name.clone(),
            class: s.class.clone(),
            store: "simulated".into(),
            object: format!("{n:064x}"),
            bytes: bytes(s.gib),
            gpu: None,
            cold_s: s.cold_s,
            restore_s: s.restore_s,
            share: s.share,
            wait_cost_usd_micros_per_s: UsdMicros::from_usd(s.wait_cost_usd_per_s).unwrap_or(UsdMicros::ZERO),
            started_by: fleet::StartedBy::Client,
        };
        let room = StagingRoom {
            disk_bytes: bytes(part.disk_gib),
            memory_bytes: bytes(part.memory_gib),
            fetch_bytes_per_s: Some(part.fetch_gb_per_s * 1e9),
            disk_bytes_per_s: Some(part.read_gb_per_s * 1e9),
            peer: None,
        };
        let snapshots = part.snapshot.iter().enumerate().map(one).collect();
        Some(Staging { snapshots, room, stager: Stager::Plan })
    }

    /// What happens in a part. Outages, price steps and silences belong to the test; faults and supply to both.
    fn disturbances(
        &self,
        part: Part,
        days: f64,
        offset_s: f64,
        end_s: f64,
    ) -> Result<Vec<(f64, Disturbance)>, ScenarioError> {
        let mut all: Vec<(f64, Disturbance)> = Vec::new();
        let start_s = days * 86_400.0 - offset_s;
        let here =
            self.faults.iter().map(|(at, server)| (at - start_s, *server)).filter(|(at, _)| (0.0..end_s).contains(at));
        all.extend(here.map(|(at, server)| (at, Disturbance::Fault(server))));
        // Spot is taken back when the pool shrinks; nobody takes back what was rented on demand.
        let spot = |p: &usize| self.offers[*p].key.market == Market::Spot;
        for (p, supply) in self.supply.iter().enumerate().filter(|(p, _)| spot(p)) {
            let falls = supply.capacity.0.windows(2).filter(|w| w[1].1 < w[0].1).map(|w| w[1].0);
            all.extend(falls.filter(|at| *at < end_s).map(|at| (at, Disturbance::Reclaim(p))));
        }
        if part == Part::Test {
            for (i, outage) in self.scenario.outage.iter().enumerate() {
                let offers = parts::members(&outage.matching, &self.offers, &format!("outage[{i}]"))?;
                let at = offset_s + outage.at_h * 3600.0;
                all.push((at, Disturbance::Down(offers.clone())));
                all.push((at + outage.hours * 3600.0, Disturbance::Up(offers)));
            }
            for (i, price) in self.scenario.price.iter().enumerate() {
                let offers = parts::members(&price.matching, &self.offers, &format!("price[{i}]"))?;
                all.push((offset_s + price.at_h * 3600.0, Disturbance::Price(offers, price.factor)));
            }
            for silence in &self.scenario.silence {
                let at = offset_s + silence.at_h * 3600.0;
                all.push((at, Disturbance::PlannerSilent(at + silence.minutes * 60.0)));
            }
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(all)
    }

    /// How the live planner plans.
    #[must_use]
    pub fn live_rules(&self, mean_only: bool) -> LiveRules {
        let plan = &self.scenario.plan;
        LiveRules {
            period_s: plan.periods_s.clone(),
            season_s: self.scenario.demand.season_s,
            paths: plan.paths,
            weights: Weights { churn: plan.churn, hold: plan.hold, survive: plan.survive, ..Weights::default() },
            mean_only,
        }
    }
}

/// What comes from `from_s` on, with that moment as 0.
fn after(steps: &Steps, from_s: f64) -> Steps {
    let later = steps.0.iter().filter(|s| s.0 > from_s).map(|s| (s.0 - from_s, s.1));
    Steps(std::iter::once((0.0, steps.at(from_s))).chain(later).collect())
}
