//! The plan file: one TOML file that names offers, demand, classes and limits, and becomes one `PlanInput`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fleet::{AcceptedGpu, Class, Interconnect, Market, Offer, OfferKey, PriceCap, UsdMicros};
use planner::gather::{self, Estimate, Observed, ObservedNode};
use planner::input::{Commitment, DomainLevel, LeadTime, PlanInput, Policy, Quota, Spread, SpreadBy, Survive};
use planner::plan::Plan;
use planner::scenarios::{self, History, PathRules};
use providers::catalogue::{self, Catalogue, GateRules};
use serde::Deserialize;
use simulations::demand::{self, Kind, Series, convert};

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
    #[serde(default = "twenty")]
    paths: usize,
    /// Seed of the paths.
    #[serde(default)]
    seed: u64,
    demand: DemandPart,
    #[serde(default)]
    supply: SupplyPart,
    #[serde(default)]
    supply_for: Vec<SupplyFor>,
    class: Vec<ClassPart>,
    #[serde(default)]
    quota: Vec<QuotaPart>,
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

fn twenty() -> usize {
    20
}

/// 6 x 1 min, 6 x 5 min, 4 x 15 min: fine where launches of now arrive, coarse beyond.
fn ladder() -> Vec<u32> {
    [vec![60; 6], vec![300; 6], vec![900; 4]].concat()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DemandPart {
    file: PathBuf,
    kind: Option<String>,
    #[serde(default = "day")]
    season_s: u32,
    prefill_tokens_per_s: Option<f64>,
    decode_tokens_per_s: Option<f64>,
    target_utilisation: Option<f64>,
    scale_down_s: Option<u32>,
    step_s: Option<u32>,
    input_tokens: Option<f64>,
    output_tokens: Option<f64>,
}

fn day() -> u32 {
    86_400
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
    min_hold_s: u32,
}

impl Default for SupplyPart {
    fn default() -> Self {
        Self {
            launch_limit_nodes: 8.0,
            fill: 0.9,
            lead_time: vec![(120.0, 0.0), (300.0, 0.7), (600.0, 1.0)],
            hazard_per_h: 0.0005,
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
    min_hold_s: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClassPart {
    name: String,
    /// Series of the demand file that add up to this class; without it the one of its name.
    demand: Option<Vec<String>>,
    gpus: Vec<GpuPart>,
    #[serde(default = "one")]
    gpus_per_claim: u32,
    #[serde(default)]
    multi_node: bool,
    max_node_gpus: Option<u32>,
    #[serde(default)]
    min_memory_gib: u32,
    #[serde(default = "pcie")]
    min_interconnect: Interconnect,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    markets: Vec<Market>,
    hit_rate: f64,
    #[serde(default = "dollar")]
    miss_cost_usd: f64,
    /// Mean life of a claim.
    #[serde(default = "hour")]
    claim_mean_s: f64,
}

fn one() -> u32 {
    1
}

fn pcie() -> Interconnect {
    Interconnect::Pcie
}

fn dollar() -> f64 {
    1.0
}

fn hour() -> f64 {
    3600.0
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GpuPart {
    model: fleet::GpuModel,
    /// Dollars for a GPU-hour.
    max_usd_per_gpu_h: Option<f64>,
    /// Share above the cheapest offer of the first model.
    max_premium: Option<f64>,
}

/// Which offers: every key that is given must match.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Matching {
    provider: Option<String>,
    region: Option<String>,
    gpu: Option<fleet::GpuModel>,
    market: Option<Market>,
    instance_type: Option<String>,
}

impl Matching {
    fn matches(&self, offer: &Offer) -> bool {
        let key = &offer.key;
        self.provider.as_ref().is_none_or(|p| *p == key.provider)
            && self.region.as_ref().is_none_or(|r| *r == key.region)
            && self.gpu.is_none_or(|g| g == offer.gpu)
            && self.market.is_none_or(|m| m == key.market)
            && self.instance_type.as_ref().is_none_or(|t| *t == key.instance_type)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaPart {
    name: String,
    #[serde(rename = "for")]
    matching: Matching,
    limit_gpus: f64,
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
    cvar_weight: Option<f64>,
    cvar_level: Option<f64>,
    churn: Option<f64>,
    budget_usd_per_h: Option<f64>,
    launch_rate_nodes_per_min: Option<f64>,
    survive: Option<SurvivePart>,
    spread: Vec<SpreadPart>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SurvivePart {
    level: DomainLevel,
    share: f64,
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
    if file.demand.season_s == 0 {
        bail!("{}: demand.season_s: 0 seconds are no season; 86400 is a day", path.display());
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
    let classes = file.class.iter().map(class).collect::<anyhow::Result<Vec<Class>>>()?;
    let series = read_demand(&file, folder)?;
    let history = history(&file, &series)?;
    let rules = PathRules {
        season_s: file.demand.season_s,
        paths: file.paths,
        seed: file.seed,
        claim_mean_s: file.class.iter().map(|k| k.claim_mean_s).collect(),
    };
    let methods = scenarios::choose(&history, &file.periods_s, rules.season_s);
    let scenarios = scenarios::build(&history, &methods, &file.periods_s, &rules);
    let mut notes = series.notes;
    for (class, method) in classes.iter().zip(methods) {
        notes.push(format!("{} is forecast by {}", class.name, method.name()));
    }
    let offers = &catalogue.offers;
    let estimates = offers.iter().map(|o| estimate(o, &file)).collect::<anyhow::Result<Vec<_>>>()?;
    let observed = Observed {
        epoch: match parent {
            Some(parent) => parent.epoch.checked_add(1).context("the parent plan's epoch is the last that there is")?,
            None => 1,
        },
        period_s: &file.periods_s,
        offers,
        estimates: &estimates,
        classes: &classes,
        claim_mean_s: &rules.claim_mean_s,
        nodes: &nodes(&file, &classes, offers)?,
        quotas: &file.quota.iter().map(|q| quota(q, offers)).collect::<anyhow::Result<Vec<_>>>()?,
        commitments: &commitments(&file, offers)?,
        policy: &policy(&file.policy, &classes)?,
        parent: parent.map(|plan| (plan, f64::from(file.parent_age_s))),
    };
    let input = gather::plan_input(&observed, scenarios);
    Ok(Loaded { input, catalogue, notes })
}

fn usd(place: &str, value: f64) -> anyhow::Result<UsdMicros> {
    UsdMicros::from_usd(value).with_context(|| place.to_owned())
}

fn class(part: &ClassPart) -> anyhow::Result<Class> {
    let place = |field: &str| format!("class '{}': {field}", part.name);
    let gpu = |g: &GpuPart| -> anyhow::Result<AcceptedGpu> {
        let cap = match (g.max_usd_per_gpu_h, g.max_premium) {
            (Some(_), Some(_)) => {
                bail!(place(&format!("{}: give max_usd_per_gpu_h or max_premium, not both", g.model)))
            }
            (Some(price), None) => Some(PriceCap::UsdMicrosPerGpuH(usd(&place("max_usd_per_gpu_h"), price)?)),
            (None, premium) => premium.map(PriceCap::Premium),
        };
        Ok(AcceptedGpu { model: g.model, cap })
    };
    Ok(Class {
        name: part.name.clone(),
        gpus: part.gpus.iter().map(gpu).collect::<anyhow::Result<_>>()?,
        gpus_per_claim: part.gpus_per_claim,
        multi_node: part.multi_node,
        max_node_gpus: part.max_node_gpus,
        min_memory_gib: part.min_memory_gib,
        min_interconnect: part.min_interconnect,
        regions: part.regions.clone(),
        markets: part.markets.clone(),
        hit_rate_target: part.hit_rate,
        miss_cost_usd_micros: usd(&place("miss_cost_usd"), part.miss_cost_usd)?,
    })
}

fn read_demand(file: &PlanFile, folder: &Path) -> anyhow::Result<Series> {
    let path = folder.join(&file.demand.file);
    let kind = match &file.demand.kind {
        Some(name) => Kind::NAMES.iter().find(|(n, _)| n == name).map(|(_, k)| *k).with_context(|| {
            let names: Vec<&str> = Kind::NAMES.iter().map(|(n, _)| *n).collect();
            format!("demand.kind: '{name}' is none of {}", names.join(", "))
        })?,
        None => Kind::guess(&path)?,
    };
    let base = convert::Params::default();
    let part = &file.demand;
    let params = convert::Params {
        prefill_tokens_per_s: part.prefill_tokens_per_s.unwrap_or(base.prefill_tokens_per_s),
        decode_tokens_per_s: part.decode_tokens_per_s.unwrap_or(base.decode_tokens_per_s),
        target_utilisation: part.target_utilisation.unwrap_or(base.target_utilisation),
        scale_down_s: part.scale_down_s.unwrap_or(base.scale_down_s),
        step_s: part.step_s.unwrap_or(base.step_s),
        input_tokens: part.input_tokens.unwrap_or(base.input_tokens),
        output_tokens: part.output_tokens.unwrap_or(base.output_tokens),
        seed: file.seed,
    };
    params.check().map_err(|what| anyhow::anyhow!("demand.{what}"))?;
    Ok(demand::read(&path, kind, &params)?)
}

/// The demand of each class, from the sum of its series.
fn history(file: &PlanFile, series: &Series) -> anyhow::Result<History> {
    let mut claims = Vec::new();
    for part in &file.class {
        let names = part.demand.clone().unwrap_or_else(|| vec![part.name.clone()]);
        let mut members = Vec::new();
        for name in &names {
            let place = series.classes.iter().position(|c| c == name).with_context(|| {
                let known: Vec<&str> = series.classes.iter().take(12).map(String::as_str).collect();
                format!("class '{}': the demand has no series '{name}'; it has {}", part.name, known.join(", "))
            })?;
            members.push(place);
        }
        claims.push(series.claims(&members, part.gpus_per_claim));
    }
    Ok(History { step_s: series.step_s, claims })
}

fn estimate(offer: &Offer, file: &PlanFile) -> anyhow::Result<Estimate> {
    let mut supply = file.supply.clone();
    let name = offer.key.to_string();
    for part in file.supply_for.iter().filter(|s| name.contains(&s.matching)) {
        supply.launch_limit_nodes = part.launch_limit_nodes.unwrap_or(supply.launch_limit_nodes);
        supply.fill = part.fill.unwrap_or(supply.fill);
        supply.lead_time = part.lead_time.clone().unwrap_or(supply.lead_time);
        supply.hazard_per_h = part.hazard_per_h.unwrap_or(supply.hazard_per_h);
        supply.min_hold_s = part.min_hold_s.unwrap_or(supply.min_hold_s);
    }
    Ok(Estimate {
        launch_limit_nodes: supply.launch_limit_nodes,
        fill: supply.fill,
        lead_time: LeadTime { cdf: supply.lead_time },
        hazard_per_h: supply.hazard_per_h + offer.interruption_per_h,
        min_hold_s: supply.min_hold_s,
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
        let node = ObservedNode { offer, age_s: part.age_s, healthy: true, claims };
        all.extend(std::iter::repeat_n(node, part.count as usize));
    }
    for (i, part) in file.launching.iter().enumerate() {
        let place = format!("launching[{i}]");
        checked(&place, part.count, part.age_s)?;
        let offer = find(&part.offer, &place)?;
        let node = ObservedNode { offer, age_s: part.age_s, healthy: false, claims: Vec::new() };
        all.extend(std::iter::repeat_n(node, part.count as usize));
    }
    Ok(all)
}

fn matching(part: &Matching, offers: &[Offer], place: &str) -> anyhow::Result<Vec<usize>> {
    let hits: Vec<usize> = (0..offers.len()).filter(|p| part.matches(&offers[*p])).collect();
    if hits.is_empty() {
        bail!("{place}: no usable offer is meant by it");
    }
    Ok(hits)
}

fn quota(part: &QuotaPart, offers: &[Offer]) -> anyhow::Result<Quota> {
    let hits = matching(&part.matching, offers, &format!("quota '{}'", part.name))?;
    let members = hits.into_iter().map(|p| (p, f64::from(offers[p].gpus_per_node))).collect();
    Ok(Quota { name: part.name.clone(), members, limit: part.limit_gpus })
}

fn commitments(file: &PlanFile, offers: &[Offer]) -> anyhow::Result<Vec<Commitment>> {
    let mut all = Vec::new();
    for part in &file.commitment {
        let hits = matching(&part.matching, offers, &format!("commitment '{}'", part.name))?;
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
        cvar_weight: part.cvar_weight.unwrap_or(base.cvar_weight),
        cvar_level: part.cvar_level.unwrap_or(base.cvar_level),
        churn: part.churn.unwrap_or(base.churn),
        budget_usd_micros_per_h: match part.budget_usd_per_h {
            Some(value) => Some(usd("policy.budget_usd_per_h", value)?),
            None => None,
        },
        launch_rate_nodes_per_min: part.launch_rate_nodes_per_min,
        spread,
        survive: part.survive.as_ref().map(|s| Survive { level: s.level, share: s.share }),
    })
}
