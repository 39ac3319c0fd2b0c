//! The plan file: one TOML file that names offers, demand, classes and limits, and becomes one `PlanInput`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fleet::book::Tally;
use fleet::{Class, Offer, OfferKey, UsdMicros};
use planner::gather::{Estimate, ObservedNode};
use planner::input::{Commitment, LeadTime, PlanInput, Policy, Spread, SpreadBy, Survive};
use planner::plan::Plan;
use planner::rolling::{self, Moment, RollingMemory, Rules};
use planner::scenarios::History;
use protocol::{ClassSpec, Matching, QuotaSpec};
use providers::catalogue::{self, Catalogue, GateRules};
use serde::Deserialize;
use simulations::demand::Series;
use simulations::parts::{self, DemandPart, PartError};

/// The file. Unknown keys are errors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// Offer table, relative to this file.
    offers: PathBuf,
    /// Day that prices are judged by, `2026-09-16`; without it their age is not checked.
    as_of: Option<String>,
    /// Oldest price that is used, days.
    #[serde(default = "thirty")]
    price_age_days_max: i32,
    /// Period lengths in seconds.
    #[serde(default = "ladder")]
    periods_s: Vec<u32>,
    /// Seconds since the plan that `--parent` names was made.
    #[serde(default = "minute")]
    parent_age_s: u32,
    /// Number of demand paths.
    #[serde(default = "hundred")]
    paths: usize,
    /// Seed of the paths.
    #[serde(default)]
    seed: u64,
    demand: DemandPart,
    #[serde(default)]
    supply: SupplyPart,
    #[serde(default)]
    supply_for: Vec<SupplyFor>,
    class: Vec<ClassSpec>,
    #[serde(default)]
    quota: Vec<QuotaSpec>,
    #[serde(default)]
    commitment: Vec<CommitmentPart>,
    #[serde(default)]
    nodes: Vec<NodesPart>,
    #[serde(default)]
    launching: Vec<LaunchingPart>,
    #[serde(default)]
    policy: PolicyPart,
}

fn thirty() -> i32 {
    30
}

fn minute() -> u32 {
    60
}

fn hundred() -> usize {
    100
}

/// 6 x 1 min, 6 x 5 min, 4 x 15 min: fine where launches of now arrive, coarse beyond.
fn ladder() -> Vec<u32> {
    [vec![60; 6], vec![300; 6], vec![900; 4]].concat()
}

/// What is known of supply before own launches tell more.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SupplyPart {
    launch_limit_nodes: f64,
    fill: f64,
    /// `[[seconds, share], …]`.
    lead_time: Vec<(f64, f64)>,
    hazard_per_h: f64,
    /// Share of a node's work that is had of it: hours in service times speed.
    usable_share: f64,
    min_hold_s: u32,
}

impl Default for SupplyPart {
    fn default() -> Self {
        Self {
            launch_limit_nodes: 8.0,
            fill: 0.9,
            lead_time: vec![(120.0, 0.0), (300.0, 0.7), (600.0, 1.0)],
            hazard_per_h: 0.0005,
            usable_share: 1.0,
            min_hold_s: 60,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SupplyFor {
    /// Part of `provider/zone/type/market`.
    matching: String,
    launch_limit_nodes: Option<f64>,
    fill: Option<f64>,
    lead_time: Option<Vec<(f64, f64)>>,
    hazard_per_h: Option<f64>,
    usable_share: Option<f64>,
    min_hold_s: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitmentPart {
    name: String,
    #[serde(rename = "for")]
    matching: Matching,
    nodes: f64,
    /// Seconds until it ends; without it beyond the horizon.
    ends_in_s: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodesPart {
    offer: OfferKey,
    count: u32,
    /// Claims on each node: class name to number.
    #[serde(default)]
    claims: std::collections::BTreeMap<String, u32>,
    /// Seconds since their launch.
    #[serde(default = "long_ago")]
    age_s: f64,
}

fn long_ago() -> f64 {
    1e6
}

/// Launches whose nodes are not healthy yet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LaunchingPart {
    offer: OfferKey,
    count: u32,
    /// Seconds since the launch.
    age_s: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyPart {
    churn: Option<f64>,
    hold: Option<f64>,
    budget_usd_per_h: Option<f64>,
    launch_rate_nodes_per_min: Option<f64>,
    survive: Option<Survive>,
    spread: Vec<SpreadPart>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpreadPart {
    class: String,
    by: SpreadBy,
    max_share: f64,
}

/// Everything that a plan file leads to.
#[derive(Debug)]
pub struct Loaded {
    /// The planner's input.
    pub input: PlanInput,
    /// The offer table with what was set aside.
    pub catalogue: Catalogue,
    /// Notes about the demand.
    pub notes: Vec<String>,
}

/// Reads a plan file and all it names. `parent` is the plan before, if there is one.
///
/// # Errors
/// Anything unreadable or contradictory, by file and place.
pub fn load(path: &Path, parent: Option<&Plan>) -> anyhow::Result<Loaded> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: PlanFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let today = match &file.as_of {
        Some(text) => Some(catalogue::day_of(text).with_context(|| format!("as_of: '{text}' is no date"))?),
        None => None,
    };
    let rules = GateRules { today, age_days_max: file.price_age_days_max, ..GateRules::default() };
    let catalogue = catalogue::gate(catalogue::own::read(&folder.join(&file.offers))?, rules);
    if catalogue.offers.is_empty() {
        bail!("{}: every offer was set aside, see 'pilotlight offers show'", file.offers.display());
    }
    let most = planner::validate::MAX_SCENARIOS;
    if !(1..=most).contains(&file.paths) {
        bail!("{}: paths: {} is not in 1..{most}", path.display(), file.paths);
    }
    let horizon_s: u64 = file.periods_s.iter().map(|s| u64::from(*s)).sum();
    if horizon_s > 30 * 86_400 {
        bail!("{}: periods_s: {horizon_s} s in all; at most 30 days are possible", path.display());
    }
    for part in &file.class {
        if !(part.claim_mean_s.is_finite() && part.claim_mean_s >= 1.0) {
            bail!("{}: class '{}': claim_mean_s: {} is under a second", path.display(), part.name, part.claim_mean_s);
        }
    }
    let stray =
        file.supply_for.iter().find(|s| !catalogue.offers.iter().any(|o| o.key.to_string().contains(&s.matching)));
    if let Some(part) = stray {
        bail!("{}: supply_for: no usable offer has '{}' in its name", path.display(), part.matching);
    }
    let classes = file.class.iter().map(|c| Ok(parts::rule(c)?.class)).collect::<Result<Vec<Class>, PartError>>()?;
    let series = file.demand.read(&folder.join(&file.demand.file), file.seed)?;
    let history = history(&file, &series)?;
    let offers = &catalogue.offers;
    let estimates = offers.iter().map(|o| estimate(o, &file)).collect::<anyhow::Result<Vec<_>>>()?;
    let rules = Rules {
        period_s: file.periods_s.clone(),
        season_s: file.demand.season_s,
        paths: file.paths,
        weights: policy(&file.policy, &classes)?,
        mean_only: false,
    };
    let (epoch, mut memory) = match parent {
        Some(parent) => {
            let epoch = parent.epoch.checked_add(1).context("the parent plan's epoch is the last that there is")?;
            (epoch, RollingMemory::with_parent(parent.clone(), 0.0))
        }
        None => (1, RollingMemory::default()),
    };
    let moment = Moment {
        borrowers: &[],
        now_s: f64::from(file.parent_age_s),
        epoch,
        offers,
        estimates: &estimates,
        classes: &classes,
        claim_mean_s: &file.class.iter().map(|k| k.claim_mean_s).collect::<Vec<_>>(),
        nodes: &nodes(&file, &classes, offers)?,
        quotas: &file.quota.iter().map(|q| parts::quota(q, offers)).collect::<Result<Vec<_>, _>>()?,
        commitments: &commitments(&file, offers)?,
        judged: &vec![Tally::default(); classes.len()],
        declared: &[],
        history: &history,
        known: None,
    };
    let input = rolling::input(&rules, &mut memory, &moment);
    let mut notes = series.notes;
    for (class, mix) in classes.iter().zip(memory.mixes()) {
        notes.push(format!("{} is forecast by {mix}", class.name));
    }
    notes.extend(memory.assumed().iter().map(ToString::to_string));
    Ok(Loaded { input, catalogue, notes })
}

/// The demand of each class, from the sum of its series.
fn history(file: &PlanFile, series: &Series) -> anyhow::Result<History> {
    let mut claims = Vec::new();
    for part in &file.class {
        let members = parts::series_of(part, series)?;
        claims.push(series.claims(&members, part.gpus_per_claim));
    }
    Ok(History { step_s: series.step_s, claims, filled_steps: Vec::new() })
}

fn estimate(offer: &Offer, file: &PlanFile) -> anyhow::Result<Estimate> {
    let mut supply = file.supply.clone();
    let name = offer.key.to_string();
    for part in file.supply_for.iter().filter(|s| name.contains(&s.matching)) {
        supply.launch_limit_nodes = part.launch_limit_nodes.unwrap_or(supply.launch_limit_nodes);
        supply.fill = part.fill.unwrap_or(supply.fill);
        supply.lead_time = part.lead_time.clone().unwrap_or(supply.lead_time);
        supply.hazard_per_h = part.hazard_per_h.unwrap_or(supply.hazard_per_h);
        supply.usable_share = part.usable_share.unwrap_or(supply.usable_share);
        supply.min_hold_s = part.min_hold_s.unwrap_or(supply.min_hold_s);
    }
    Ok(Estimate {
        launch_limit_nodes: supply.launch_limit_nodes,
        fill: supply.fill,
        lead_time: LeadTime { cdf: supply.lead_time },
        hazard_per_h: supply.hazard_per_h + offer.interruption_per_h,
        min_hold_s: supply.min_hold_s,
        usable_share: supply.usable_share,
        faults_per_h: 0.0,
        restage_usd_micros: UsdMicros::ZERO,
    })
}

/// Most nodes of one entry: more is a mistake.
const NODES_MAX: u32 = 100_000;

fn nodes(file: &PlanFile, classes: &[Class], offers: &[Offer]) -> anyhow::Result<Vec<ObservedNode>> {
    let find = |key: &OfferKey, place: &str| {
        let found = offers.iter().position(|o| o.key == *key);
        found.with_context(|| format!("{place}: there is no usable offer {key}; 'pilotlight offers show' says why"))
    };
    let checked = |place: &str, count: u32, age_s: f64| {
        if count > NODES_MAX {
            bail!("{place}: {count} nodes; at most {NODES_MAX} are possible");
        }
        if !(age_s.is_finite() && age_s >= 0.0) {
            bail!("{place}: age_s: {age_s} is no number of seconds");
        }
        Ok(())
    };
    let mut all = Vec::new();
    for (i, part) in file.nodes.iter().enumerate() {
        let place = format!("nodes[{i}]");
        checked(&place, part.count, part.age_s)?;
        let offer = find(&part.offer, &place)?;
        let mut claims = Vec::new();
        for (name, count) in &part.claims {
            let k = classes.iter().position(|k| k.name == *name);
            let k = k.with_context(|| format!("{place}: there is no class '{name}'"))?;
            let gpus = u64::from(*count) * u64::from(classes[k].gpus_per_claim);
            if gpus > u64::from(offers[offer].gpus_per_node) {
                bail!(
                    "{place}: claims: {gpus} GPUs of '{name}' on {}, which has {}",
                    part.offer,
                    offers[offer].gpus_per_node
                );
            }
            claims.push((k, *count));
        }
        claims.sort_unstable();
        let node = ObservedNode { offer, age_s: part.age_s, healthy: true, claims, copies_usd_micros: UsdMicros::ZERO };
        all.extend(std::iter::repeat_n(node, part.count as usize));
    }
    for (i, part) in file.launching.iter().enumerate() {
        let place = format!("launching[{i}]");
        checked(&place, part.count, part.age_s)?;
        let offer = find(&part.offer, &place)?;
        let node = ObservedNode {
            offer,
            age_s: part.age_s,
            healthy: false,
            claims: Vec::new(),
            copies_usd_micros: UsdMicros::ZERO,
        };
        all.extend(std::iter::repeat_n(node, part.count as usize));
    }
    Ok(all)
}

fn commitments(file: &PlanFile, offers: &[Offer]) -> anyhow::Result<Vec<Commitment>> {
    let mut all = Vec::new();
    for part in &file.commitment {
        let hits = parts::members(&part.matching, offers, &format!("commitment '{}'", part.name))?;
        let mut start = 0_u64;
        let mut nodes = Vec::new();
        for length in &file.periods_s {
            nodes.push(if part.ends_in_s.is_none_or(|end| start < u64::from(end)) { part.nodes } else { 0.0 });
            start += u64::from(*length);
        }
        all.push(Commitment { name: part.name.clone(), offers: hits, nodes });
    }
    Ok(all)
}

fn policy(part: &PolicyPart, classes: &[Class]) -> anyhow::Result<Policy> {
    let base = Policy::default();
    let mut spread = Vec::new();
    for s in &part.spread {
        let class = classes.iter().position(|k| k.name == s.class);
        let class = class.with_context(|| format!("policy.spread: there is no class '{}'", s.class))?;
        spread.push(Spread { class, by: s.by, max_share: s.max_share });
    }
    Ok(Policy {
        churn: part.churn.unwrap_or(base.churn),
        hold: part.hold.unwrap_or(base.hold),
        budget_usd_micros_per_h: match part.budget_usd_per_h {
            Some(value) => Some(UsdMicros::from_usd(value).context("policy.budget_usd_per_h")?),
            None => None,
        },
        launch_rate_nodes_per_min: part.launch_rate_nodes_per_min,
        spread,
        survive: part.survive,
    })
}
