//! The plan file: one TOML file that names offers, demand, classes and limits, and becomes one `PlanInput`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fleet::{AcceptedGpu, Class, Interconnect, Market, Offer, OfferKey, PriceCap, UsdMicros};
use planner::input::{
    Commitment, DomainLevel, LeadTime, NodeGroup, OfferState, PlanInput, Policy, Quota, Spread, SpreadBy, Survive,
};
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
    policy: PolicyPart,
}

fn thirty() -> i32 {
    30
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
    /// Seconds until they can be released.
    #[serde(default)]
    kept_s: u32,
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
    let mut offers: Vec<OfferState> =
        catalogue.offers.iter().map(|o| offer_state(o, &file)).collect::<anyhow::Result<_>>()?;
    place_nodes(&file, &classes, &mut offers)?;
    if let Some(parent) = parent {
        for target in &parent.targets {
            if let Some(state) = offers.iter_mut().find(|o| o.offer.key == target.offer) {
                state.planned_nodes = target.launches.iter().skip(1).copied().take(file.periods_s.len()).collect();
            }
        }
    }
    let mut notes = series.notes;
    for (class, method) in classes.iter().zip(methods) {
        notes.push(format!("{} is forecast by {}", class.name, method.name()));
    }
    let input = PlanInput {
        epoch: parent.map_or(1, |p| p.epoch + 1),
        quotas: file.quota.iter().map(|q| quota(q, &offers)).collect(),
        commitments: file.commitment.iter().map(|c| commitment(c, &offers, &file.periods_s)).collect(),
        policy: policy(&file.policy, &classes)?,
        period_s: file.periods_s,
        offers,
        classes,
        scenarios,
    };
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
        seed: file.seed,
        ..base
    };
    params.check().map_err(|what| anyhow::anyhow!("demand.{what}"))?;
    Ok(demand::read(&path, kind, &params)?)
}

/// The demand of each class: the sum of its series.
fn history(file: &PlanFile, series: &Series) -> anyhow::Result<History> {
    let mut claims = Vec::new();
    for part in &file.class {
        let names = part.demand.clone().unwrap_or_else(|| vec![part.name.clone()]);
        let mut sum = vec![0.0; series.steps()];
        for name in &names {
            let place = series.classes.iter().position(|c| c == name).with_context(|| {
                let known: Vec<&str> = series.classes.iter().take(12).map(String::as_str).collect();
                format!("class '{}': the demand has no series '{name}'; it has {}", part.name, known.join(", "))
            })?;
            sum.iter_mut().zip(&series.values[place]).for_each(|(s, v)| *s += v);
        }
        claims.push(sum);
    }
    Ok(History { step_s: series.step_s, claims })
}

fn offer_state(offer: &Offer, file: &PlanFile) -> anyhow::Result<OfferState> {
    let mut supply = file.supply.clone();
    let name = offer.key.to_string();
    for part in file.supply_for.iter().filter(|s| name.contains(&s.matching)) {
        supply.launch_limit_nodes = part.launch_limit_nodes.unwrap_or(supply.launch_limit_nodes);
        supply.fill = part.fill.unwrap_or(supply.fill);
        supply.lead_time = part.lead_time.clone().unwrap_or(supply.lead_time);
        supply.hazard_per_h = part.hazard_per_h.unwrap_or(supply.hazard_per_h);
        supply.min_hold_s = part.min_hold_s.unwrap_or(supply.min_hold_s);
    }
    let lead_time = LeadTime { cdf: supply.lead_time };
    let boot_usd = offer.price_usd_micros_per_h.usd() * lead_time.mean_s() / 3600.0;
    Ok(OfferState {
        offer: offer.clone(),
        launch_limit_nodes: supply.launch_limit_nodes,
        fill: supply.fill,
        hazard_per_h: supply.hazard_per_h + offer.interruption_per_h,
        launch_cost_usd_micros: usd(&format!("supply of {name}: lead_time"), boot_usd)?,
        lead_time,
        min_hold_s: supply.min_hold_s,
        nodes: Vec::new(),
        arriving_nodes: Vec::new(),
        planned_nodes: Vec::new(),
    })
}

fn place_nodes(file: &PlanFile, classes: &[Class], offers: &mut [OfferState]) -> anyhow::Result<()> {
    for part in &file.nodes {
        let state = offers
            .iter_mut()
            .find(|o| o.offer.key == part.offer)
            .with_context(|| format!("nodes: there is no usable offer {}", part.offer))?;
        let mut claims = Vec::new();
        for (name, count) in &part.claims {
            let k = classes.iter().position(|k| k.name == *name);
            claims.push((k.with_context(|| format!("nodes: there is no class '{name}'"))?, *count));
        }
        let mut start = 0;
        let mut kept_nodes = Vec::new();
        for length in &file.periods_s {
            if start < part.kept_s {
                kept_nodes.push(f64::from(part.count));
            }
            start += length;
        }
        state.nodes.push(NodeGroup { nodes: part.count, claims, kept_nodes });
    }
    Ok(())
}

fn quota(part: &QuotaPart, offers: &[OfferState]) -> Quota {
    let hits = offers.iter().enumerate().filter(|(_, o)| part.matching.matches(&o.offer));
    let members = hits.map(|(p, o)| (p, f64::from(o.offer.gpus_per_node))).collect();
    Quota { name: part.name.clone(), members, limit: part.limit_gpus }
}

fn commitment(part: &CommitmentPart, offers: &[OfferState], periods_s: &[u32]) -> Commitment {
    let hits = offers.iter().enumerate().filter(|(_, o)| part.matching.matches(&o.offer));
    let mut start = 0;
    let mut nodes = Vec::new();
    for length in periods_s {
        nodes.push(if part.ends_in_s.is_none_or(|end| start < end) { part.nodes } else { 0.0 });
        start += length;
    }
    Commitment { name: part.name.clone(), offers: hits.map(|(p, _)| p).collect(), nodes }
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
