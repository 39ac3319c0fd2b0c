//! The simple rules that people use today, each with one knob, or one for each class. They keep classes apart: a node is
//! launched for a class, at the cheapest offer that the class accepts, and goes when it is not needed for five minutes.

use fleet::Market;
use serde::{Deserialize, Serialize};

use super::{Decision, LaunchOrder, Policy, Seen, SeenNode};

/// Kinds of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// No buffer: a node is launched when a claim waits.
    None,
    /// So many times the mean demand of the past, always (static provisioning).
    Fixed,
    /// A share of what is in use on top (Kubernetes CapacityBuffer's percentage).
    Percentage,
    /// What is in use and a constant, as a share of the mean demand (Agones' `allocated + b`).
    Allocated,
    /// A node stays so many seconds after its last claim.
    KeepAlive,
    /// As before, for the quantile of the idle times seen (Shahrad et al. 2020).
    Histogram,
    /// What is in use and the quantile of demand's growth over a lead time (base stock).
    BaseStock,
    /// A percentage on spot nodes spread over zones, on-demand where spot falls short (SkyServe's SpotHedge).
    SpotHedge,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Fixed,
        Self::Percentage,
        Self::Allocated,
        Self::KeepAlive,
        Self::Histogram,
        Self::BaseStock,
        Self::SpotHedge,
    ];

    /// The word used in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Fixed => "fixed",
            Self::Percentage => "percentage",
            Self::Allocated => "allocated+b",
            Self::KeepAlive => "keep-alive",
            Self::Histogram => "histogram",
            Self::BaseStock => "base-stock",
            Self::SpotHedge => "spot-hedge",
        }
    }

    /// The knobs that are tried, rising.
    #[must_use]
    pub fn knobs(self) -> &'static [f64] {
        match self {
            Self::None => &[0.0],
            Self::Fixed => &[0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0],
            Self::Percentage | Self::Allocated | Self::SpotHedge => {
                &[0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0]
            }
            Self::KeepAlive => &[300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 43_200.0, 86_400.0],
            Self::Histogram => &[0.5, 0.75, 0.9, 0.95, 0.99],
            Self::BaseStock => &[0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0],
        }
    }
}

/// A rule with its knob.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Which.
    pub family: Family,
    /// How much of it.
    pub knob: f64,
}

impl Rule {
    /// A rule.
    #[must_use]
    pub const fn new(family: Family, knob: f64) -> Self {
        Self { family, knob }
    }
}

/// A node goes when it was not needed for so long, seconds (the default window of Kubernetes' autoscalers).
const SCALE_DOWN_S: f64 = 300.0;
/// Idle times that are kept of each class.
const IDLE_TIMES_MAX: usize = 2000;

/// A rule with what it remembers.
#[derive(Debug)]
pub struct Simple {
    family: Family,
    /// Knob of each class by its name; one for all where it is under no name.
    knobs: Vec<(Option<String>, f64)>,
    /// Mean demand of the past, `[K]`.
    mean: Vec<f64>,
    /// `(seconds, target)` of the last minutes, `[K]`.
    recent: Vec<Vec<(f64, f64)>>,
    /// Idle times of each class's nodes, and how long each node was idle when last seen.
    idle_times: Vec<Vec<f64>>,
    idle: std::collections::BTreeMap<u64, f64>,
}

impl Simple {
    /// One knob for all classes, without a past.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self::with(rule.family, vec![(None, rule.knob)])
    }

    /// A knob for each class by its name, without a past.
    #[must_use]
    pub fn by_class<'a>(family: Family, knobs: impl Iterator<Item = (&'a str, f64)>) -> Self {
        Self::with(family, knobs.map(|(name, knob)| (Some(name.to_owned()), knob)).collect())
    }

    fn with(family: Family, knobs: Vec<(Option<String>, f64)>) -> Self {
        let (mean, idle) = (Vec::new(), Default::default());
        Self { family, knobs, mean, recent: Vec::new(), idle_times: Vec::new(), idle }
    }

    fn knob(&self, seen: &Seen, k: usize) -> f64 {
        let name = &seen.inputs.classes[k].name;
        let of = |(class, _): &&(Option<String>, f64)| class.as_ref().is_none_or(|class| class == name);
        self.knobs.iter().find(of).map_or(0.0, |(_, knob)| *knob)
    }

    fn remember(&mut self, seen: &Seen) {
        let classes = seen.inputs.classes.len();
        if self.mean.is_empty() {
            let mean = |row: &Vec<f64>| row.iter().sum::<f64>() / row.len().max(1) as f64;
            self.mean = seen.inputs.history.claims.iter().map(mean).collect();
            self.recent = vec![Vec::new(); classes];
            self.idle_times = vec![Vec::new(); classes];
        }
        for node in seen.nodes.iter().filter(|n| n.healthy) {
            let before = self.idle.insert(node.id, node.idle_s).unwrap_or(0.0);
            if let (true, Some(k)) = (before > 0.0 && node.idle_s < before, node.label) {
                self.idle_times[k].push(before);
                let excess = self.idle_times[k].len().saturating_sub(IDLE_TIMES_MAX);
                self.idle_times[k].drain(..excess);
            }
        }
        let alive: std::collections::BTreeSet<u64> = seen.nodes.iter().map(|n| n.id).collect();
        self.idle.retain(|id, _| alive.contains(id));
    }

    /// Claims that class `k` should have room for.
    fn target(&self, seen: &Seen, k: usize, lead_s: f64) -> f64 {
        let now = f64::from(seen.active[k] + seen.queued[k]);
        let (knob, history) = (self.knob(seen, k), &seen.inputs.history);
        match self.family {
            Family::None | Family::KeepAlive | Family::Histogram => now,
            Family::Fixed => now.max(knob * self.mean[k]),
            Family::Percentage | Family::SpotHedge => now * (1.0 + knob),
            Family::Allocated => now + knob * self.mean[k],
            Family::BaseStock => now + growth(&history.claims[k], history.step_s, lead_s, knob),
        }
    }

    /// Seconds that an idle node of class `k` stays.
    fn stay_s(&self, seen: &Seen, k: usize) -> f64 {
        match self.family {
            Family::KeepAlive => self.knob(seen, k),
            Family::Histogram if self.idle_times[k].len() >= 20 => {
                quantile(&self.idle_times[k], self.knob(seen, k)).clamp(60.0, 14_400.0)
            }
            Family::Histogram => 600.0,
            _ => SCALE_DOWN_S,
        }
    }
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((q * sorted.len() as f64) as usize).min(sorted.len() - 1)]
}

/// The `q` quantile of how much demand grew at most within a lead time, over the last day.
fn growth(history: &[f64], step_s: u32, lead_s: f64, q: f64) -> f64 {
    let ahead = (lead_s / f64::from(step_s)).ceil() as usize + 1;
    let from = history.len().saturating_sub((86_400 / step_s.max(1)) as usize + ahead);
    let last = history.len().saturating_sub(ahead);
    let grew = |i: usize| history[i + 1..=i + ahead].iter().copied().fold(0.0, f64::max) - history[i];
    let all: Vec<f64> = (from..last).map(grew).collect();
    if all.is_empty() { 0.0 } else { quantile(&all, q).max(0.0) }
}

/// What one offer can do for one class: claims on a node, parts of one where a claim spans nodes; 0 where it does not serve
/// the class.
fn slots(seen: &Seen, p: usize, k: usize) -> f64 {
    if !seen.serves[k].contains(&p) {
        return 0.0;
    }
    let (offer, class) = (&seen.inputs.offers[p], &seen.inputs.classes[k]);
    let usable = fleet::offer_share(offer, class, None).unwrap_or(0.0) * f64::from(offer.gpus_per_node);
    usable / f64::from(class.gpus_per_claim.max(1))
}

/// Nodes that may still be launched: supply, quotas.
struct Room {
    supply: Vec<f64>,
    quotas: Vec<f64>,
}

impl Room {
    fn new(seen: &Seen) -> Self {
        let used = |p: usize| seen.nodes.iter().filter(|n| n.offer == p).count() as f64;
        let left =
            |q: &planner::input::Quota| q.limit - q.members.iter().map(|&(p, units)| units * used(p)).sum::<f64>();
        Self {
            supply: seen.inputs.estimates.iter().map(|e| e.launch_limit_nodes.floor()).collect(),
            quotas: seen.inputs.quotas.iter().map(left).collect(),
        }
    }

    fn nodes(&self, seen: &Seen, p: usize) -> f64 {
        let of = |(q, left): (&planner::input::Quota, &f64)| {
            let units = q.members.iter().find(|(m, _)| *m == p).map(|m| m.1)?;
            Some((left / units.max(1e-9) + 1e-9).floor().max(0.0))
        };
        seen.inputs.quotas.iter().zip(&self.quotas).filter_map(of).fold(self.supply[p], f64::min)
    }

    fn take(&mut self, seen: &Seen, p: usize, nodes: f64) {
        self.supply[p] -= nodes;
        for (quota, left) in seen.inputs.quotas.iter().zip(&mut self.quotas) {
            *left -= nodes * quota.members.iter().find(|(m, _)| *m == p).map_or(0.0, |m| m.1);
        }
    }
}

/// Launches for `missing` claims of class `k` at the offers of `market`, or of any that the class accepts, that cost least
/// for them.
fn buy(
    seen: &Seen,
    k: usize,
    mut missing: f64,
    market: Option<Market>,
    spread: bool,
    room: &mut Room,
    decision: &mut Decision,
) -> f64 {
    let mut zones: std::collections::BTreeMap<&str, f64> = std::collections::BTreeMap::new();
    let most_in_zone = (missing / 3.0).ceil();
    while missing > 1e-9 {
        let cost = |p: usize| {
            let slots = slots(seen, p, k);
            let zone = zones.get(seen.inputs.offers[p].key.zone.as_str()).copied().unwrap_or(0.0);
            let open = market.is_none_or(|m| seen.inputs.offers[p].key.market == m)
                && slots > 0.0
                && room.nodes(seen, p) >= 1.0;
            let fits = !spread || zone < most_in_zone;
            (open && fits).then(|| (missing / slots).ceil() * seen.inputs.offers[p].price_usd_micros_per_h.usd())
        };
        let best = (0..seen.inputs.offers.len()).filter_map(|p| cost(p).map(|c| (c, p)));
        let Some((_, p)) = best.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))) else { break };
        let slots = slots(seen, p, k);
        let wanted = if spread { missing.min(most_in_zone) } else { missing };
        let nodes = (wanted / slots).ceil().min(room.nodes(seen, p));
        room.take(seen, p, nodes);
        *zones.entry(seen.inputs.offers[p].key.zone.as_str()).or_default() += nodes * slots;
        missing -= nodes * slots;
        decision.launches.push(LaunchOrder { offer: p, nodes: nodes as u32, label: Some(k) });
    }
    missing
}

impl Policy for Simple {
    fn decide(&mut self, seen: &Seen) -> Result<Decision, String> {
        self.remember(seen);
        let mut decision = Decision::default();
        let mut room = Room::new(seen);
        for k in 0..seen.inputs.classes.len() {
            let size = f64::from(seen.inputs.classes[k].gpus_per_claim.max(1));
            // What a claim that spans nodes can have is a part of it.
            let claims = |gpus: u32| {
                let claims = f64::from(gpus) / size;
                if claims < 1.0 && seen.inputs.classes[k].multi_node { claims } else { claims.floor() }
            };
            let of_class = |n: &&SeenNode| n.label == Some(k) && !n.draining;
            let free: f64 = seen.nodes.iter().filter(of_class).map(|n| claims(n.free_gpus)).sum();
            let cheapest = seen.serves[k].first();
            let lead_s = cheapest.map_or(600.0, |p| seen.inputs.estimates[*p].lead_time.mean_s());
            let target = self.target(seen, k, lead_s).ceil();
            let have = f64::from(seen.active[k]) + free;
            let spot = self.family == Family::SpotHedge;
            if target > have {
                let mut missing = target - have;
                if spot {
                    missing = buy(seen, k, missing, Some(Market::Spot), true, &mut room, &mut decision);
                    // On-demand only for what is asked for now.
                    missing = missing.min((f64::from(seen.active[k] + seen.queued[k]) - have).max(0.0));
                }
                let market = spot.then_some(Market::OnDemand);
                buy(seen, k, missing, market, false, &mut room, &mut decision);
            }
            let recent = &mut self.recent[k];
            recent.push((seen.inputs.now_s, target));
            recent.retain(|(at, _)| seen.inputs.now_s - at <= SCALE_DOWN_S);
            let wanted = recent.iter().map(|r| r.1).fold(0.0, f64::max);
            let stay_s = self.stay_s(seen, k);
            let mut surplus = have - wanted;
            let mut idle: Vec<&SeenNode> =
                seen.nodes.iter().filter(of_class).filter(|n| n.healthy && n.claims.is_empty()).collect();
            let dear = |n: &SeenNode| seen.inputs.offers[n.offer].gpu_price_usd_micros_per_h();
            idle.sort_by_key(|n| (std::cmp::Reverse(dear(n)), n.id));
            for node in idle.into_iter().filter(|n| n.idle_s >= stay_s) {
                let slots = claims(node.free_gpus);
                if surplus >= slots {
                    surplus -= slots;
                    decision.releases.push(node.id);
                }
            }
        }
        Ok(decision)
    }
}
