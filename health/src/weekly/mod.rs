//! Weekly diagnostics that do not drain the buffer: which idle nodes are lent to a diagnostic now, and which.
//!
//! Two thousand nodes at twenty minutes a week are four at a time, so nothing is ever run as a batch; the hard part is that a
//! node in a diagnostic yields when a claim wants it. So what is held back is demand over the time to yield, not over the time
//! of the diagnostic.
//!
//! The clock is that of the physical GPUs, by their serial numbers: a host that comes back under another name has been tested.

mod arrivals;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use arrivals::Arrivals;

/// Days, milliseconds.
const DAY_MS: i64 = 86_400_000;
/// Parts of a full diagnostic (level 3), each short; passed within a week of each other they are one.
pub const SLICES: [&str; 6] = ["software", "memory", "pcie", "memory_bandwidth", "diagnostic", "targeted_stress"];

/// The rules of the schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Time between full diagnostics, days.
    pub every_days: f64,
    /// Each GPU set has a period of its own within this share of it, so that what came together does not stay together.
    pub jitter: f64,
    /// A node is lent when it was idle for so long, seconds: it does not race with a return.
    pub idle_min_s: f64,
    /// Share of a pool's nodes that are in diagnostics at the same time.
    pub share_max: f64,
    /// The same, while a node is late by [`late_days`](Self::late_days).
    pub catch_up_share_max: f64,
    /// Days after which a node is late.
    pub late_days: f64,
    /// Days since the last full pass after which the planner is asked for one more node.
    pub surge_days: f64,
    /// Days since the last full pass after which a node's test is stale.
    pub stale_days: f64,
    /// Share of a site's power that its GPUs in diagnostics may draw; one node may in any case.
    pub power_share_max: f64,
    /// After a driver or an image was first seen in a pool it is being rolled out for so long, seconds.
    pub rollout_s: f64,
    /// A full diagnostic takes so long, seconds.
    pub full_s: f64,
    /// One slice takes so long at most, seconds.
    pub slice_s: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            every_days: 7.0,
            jitter: 0.15,
            idle_min_s: 180.0,
            share_max: 0.01,
            catch_up_share_max: 0.03,
            late_days: 8.5,
            surge_days: 10.0,
            stale_days: 14.0,
            power_share_max: 0.02,
            rollout_s: 1800.0,
            full_s: 1200.0,
            slice_s: 180.0,
        }
    }
}

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// Level 2, minutes: the first idle gap of a new node, where most latent faults of new hosts are met.
    Quick,
    /// Level 3.
    Full,
    /// One part of level 3, of [`SLICES`].
    Slice(String),
}

impl Run {
    /// As `dcgmi` takes it and as it is told: a level, or the name of a test.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Quick => "2",
            Self::Full => "3",
            Self::Slice(name) => name,
        }
    }

    /// What tests that have passed were; none where they are no part of the schedule.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        match word {
            "2" => Some(Self::Quick),
            "3" | "4" => Some(Self::Full),
            one => SLICES.contains(&one).then(|| Self::Slice(one.to_owned())),
        }
    }
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Now {
    /// Idle since, milliseconds.
    Idle {
        /// Since when.
        since_ms: i64,
        /// A claim has just ended on it: what is run now disturbs nobody.
        released: bool,
    },
    /// In a diagnostic.
    Diagnosing,
    /// Its diagnostic is over or was called off: idle after a short gate.
    Coming,
    /// Anything else.
    Away,
}

/// What passed on a set of GPUs, wherever it was rented.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When it was first seen, milliseconds since 1970.
    pub met_ms: i64,
    /// Level 2 passed since it joined as this node.
    pub quick: bool,
    /// When level 3 last passed whole, milliseconds since 1970.
    pub full_ms: Option<i64>,
    /// When each slice last passed, milliseconds since 1970.
    pub slices_ms: BTreeMap<String, i64>,
    /// Diagnostics that failed.
    pub failures: u32,
}

impl History {
    /// Notes a pass.
    pub fn passed(&mut self, run: &Run, at_ms: i64) {
        match run {
            Run::Quick => {
                self.quick = true;
                for name in ["software", "memory", "pcie"] {
                    self.slices_ms.insert(name.to_owned(), at_ms);
                }
            }
            Run::Full => {
                self.quick = true;
                self.full_ms = Some(at_ms);
                self.slices_ms.clear();
            }
            Run::Slice(name) => {
                self.slices_ms.insert(name.clone(), at_ms);
            }
        }
        // All parts within a week: together they are a full pass, as old as the oldest.
        let oldest = SLICES.iter().map(|s| self.slices_ms.get(*s).copied()).min().flatten();
        if let Some(oldest) = oldest.filter(|o| at_ms - o <= 7 * DAY_MS && self.full_ms.is_none_or(|f| f < *o)) {
            self.full_ms = Some(oldest);
            self.slices_ms.clear();
        }
    }

    /// What passed on all of a node's GPUs; `None` where it has none.
    #[must_use]
    pub fn of_all<'a>(mut gpus: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let first = gpus.next()?.clone();
        Some(gpus.fold(first, |all, gpu| {
            Self {
                // The newest: what was tested before it came was tested without it.
                met_ms: all.met_ms.max(gpu.met_ms),
                quick: all.quick && gpu.quick,
                full_ms: all.full_ms.and_then(|a| gpu.full_ms.map(|b| a.min(b))),
                slices_ms: gpu
                    .slices_ms
                    .iter()
                    .filter_map(|(name, at)| Some((name.clone(), *all.slices_ms.get(name)?.min(at))))
                    .collect(),
                failures: all.failures.max(gpu.failures),
            }
        }))
    }

    /// The last full pass, or when it was met.
    #[must_use]
    pub fn tested_ms(&self) -> i64 {
        self.full_ms.unwrap_or(self.met_ms)
    }
}

/// One node of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolNode<'a> {
    /// Identity.
    pub id: u64,
    /// Its GPUs: their serial numbers, or the instance where they tell none.
    pub gpus: &'a str,
    /// What it does.
    pub now: Now,
    /// What passed on these GPUs.
    pub history: &'a History,
    /// What makes a test more urgent: a remap, replays, heat; 0 where nothing does.
    pub risk: f64,
    /// How much it would be missed: snapshots and images that are on it.
    pub warmth: f64,
    /// What it hangs together with others by (rack, NVLink domain): one of them at a time.
    pub domain: Option<&'a str>,
    /// What its GPUs draw under load, W.
    pub power_w: f64,
    /// Its driver or image is the one that is being rolled out.
    pub is_new: bool,
    /// It is to be given back: it is not tested, it goes.
    pub leaving: bool,
    /// It is not tried again before, milliseconds since 1970: it gave way, or nothing could be said.
    pub not_before_ms: i64,
    /// Its life is expected to last so long yet, seconds.
    pub life_left_s: Option<f64>,
}

/// One pool: cloud, region, zone, instance type.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool<'a> {
    /// Its nodes.
    pub nodes: Vec<PoolNode<'a>>,
    /// Idle nodes that the planner wants, diagnosing ones among them where their yield is proven.
    pub buffer_nodes: u32,
    /// Idle nodes that claims may want within the time to yield ([`Arrivals::hot_reserve`]).
    pub hot_nodes: u32,
    /// Nodes that waiting claims will take of those that come back.
    pub waiting_nodes: u32,
    /// Diagnostics of this type, driver and DCGM have been seen to yield in time.
    pub can_call_back: bool,
    /// Demand is not met, or nodes are on their way.
    pub short: bool,
    /// Demand is expected to rise by more than a fifth.
    pub rising: bool,
    /// The breaker of a common cause is open.
    pub held: bool,
    /// A driver or an image is being rolled out: one of the nodes that have it is tested at a time, and no other.
    pub rollout: bool,
    /// One of those is in diagnostics, of this pool or another of its cell.
    pub canary: bool,
    /// Domains of which a node is in diagnostics, of any pool.
    pub busy_domains: BTreeSet<&'a str>,
    /// Power of the site, where it is one's own.
    pub site: Option<Site>,
}

/// Power of a site.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Site {
    /// What it has, W.
    pub power_w: f64,
    /// Drawn by GPUs in diagnostics, of all its pools, W.
    pub tested_w: f64,
}

/// A node that is lent.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// Which.
    pub node: u64,
    /// To what.
    pub run: Run,
    /// What it was chosen by.
    pub priority: f64,
}

/// Why nothing, or nothing more, is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// No node is due.
    NothingDue,
    /// Idle nodes are needed for claims that may come before a diagnostic could yield.
    HotReserve,
    /// The buffer would be smaller than planned.
    Buffer,
    /// As many run as may.
    Cap,
    /// The planner is short of nodes, or demand rises.
    Demand,
    /// A breaker is open, or a rollout is under way.
    Held,
    /// Another of the same rack or NVLink domain is in diagnostics.
    Domain,
    /// The power that diagnostics may draw at its site is drawn.
    Power,
}

/// What is to be done in a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    /// Nodes that are lent now.
    pub leases: Vec<Lease>,
    /// Why no more.
    pub refusal: Refusal,
    /// The planner is asked for one more node for the time of a diagnostic.
    pub surge: bool,
    /// Nodes whose test is stale: claims take others first.
    pub stale: Vec<u64>,
    /// Diagnosing nodes that are to yield now, since idle ones have become fewer than the hot reserve: as many.
    pub call_back: u32,
}

/// How many of `diagnosing` nodes are to yield, where `hot` are to be idle, `idle` are and `coming` will be in a moment.
#[must_use]
pub fn called_back(hot: u32, idle: u32, coming: u32, diagnosing: u32) -> u32 {
    hot.saturating_sub(idle + coming).min(diagnosing)
}

/// When a set of GPUs is due, milliseconds since 1970.
#[must_use]
pub fn due_ms(gpus: &str, history: &History, rules: &Rules) -> i64 {
    // Between -1 and 1, by the GPUs themselves.
    let hash = gpus.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let share = (hash >> 11) as f64 / (1_u64 << 53) as f64 * 2.0 - 1.0;
    let period_ms = rules.every_days * (1.0 + rules.jitter * share) * DAY_MS as f64;
    history.tested_ms().saturating_add(period_ms as i64)
}

fn days_since_test(node: &PoolNode<'_>, now_ms: i64) -> f64 {
    (now_ms - node.history.tested_ms()) as f64 / DAY_MS as f64
}

/// Which nodes of a pool are lent to diagnostics now.
#[must_use]
pub fn admit(pool: &Pool<'_>, rules: &Rules, now_ms: i64) -> Advice {
    let idle = count(pool, |n| matches!(n.now, Now::Idle { .. }));
    let diagnosing = count(pool, |n| n.now == Now::Diagnosing);
    let mut advice = Advice {
        leases: Vec::new(),
        refusal: Refusal::NothingDue,
        surge: false,
        stale: pool.nodes.iter().filter(|n| days_since_test(n, now_ms) > rules.stale_days).map(|n| n.id).collect(),
        call_back: called_back(
            pool.hot_nodes + pool.waiting_nodes,
            idle,
            count(pool, |n| n.now == Now::Coming),
            diagnosing,
        ),
    };
    // In a pool that is always busy the moment after a claim is the only one.
    let busy = idle <= pool.hot_nodes + 1;
    let mut wanted: Vec<(&PoolNode<'_>, f64)> =
        pool.nodes.iter().filter_map(|n| Some((n, priority(n, busy, rules, now_ms)?))).collect();
    // The most urgent first; of equal ones the coldest, whose caches nobody will miss.
    wanted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.warmth.total_cmp(&b.0.warmth)).then(a.0.id.cmp(&b.0.id)));
    let late = pool.nodes.iter().any(|n| days_since_test(n, now_ms) > rules.late_days);
    let share = if late { rules.catch_up_share_max } else { rules.share_max };
    let cap = ((share * pool.nodes.len() as f64) as u32).max(1);
    let (mut domains, mut canary) = (pool.busy_domains.clone(), pool.canary);
    // What the most urgent waits for, where others need not.
    let mut waits = None;
    let mut tested_w = pool.site.map_or(0.0, |s| s.tested_w);
    let (mut idle, mut diagnosing) = (idle, diagnosing);
    for (node, priority) in wanted {
        let refusal = if pool.held {
            Some(Refusal::Held)
        } else if pool.short || pool.rising {
            Some(Refusal::Demand)
        } else if idle < pool.hot_nodes + 1 {
            Some(Refusal::HotReserve)
        } else if diagnosing >= cap {
            Some(Refusal::Cap)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            waits.get_or_insert(refusal);
            break;
        }
        if let Some(refusal) = waits_for(pool, node, canary, &domains, tested_w, rules) {
            waits.get_or_insert(refusal);
            continue;
        }
        let whole = if pool.can_call_back { idle + diagnosing >= pool.buffer_nodes } else { idle > pool.buffer_nodes };
        let Some(run) = run_of(node, whole, pool.can_call_back, rules, now_ms) else {
            waits.get_or_insert(Refusal::Buffer);
            continue;
        };
        advice.leases.push(Lease { node: node.id, run, priority });
        domains.extend(node.domain);
        tested_w += node.power_w;
        canary |= node.is_new;
        idle -= 1;
        diagnosing += 1;
    }
    advice.refusal = waits.unwrap_or(Refusal::NothingDue);
    advice.surge = advice.leases.is_empty()
        && matches!(advice.refusal, Refusal::HotReserve | Refusal::Buffer)
        && pool.nodes.iter().any(|n| !n.leaving && days_since_test(n, now_ms) > rules.surge_days);
    advice
}

/// What one node waits for while others need not.
fn waits_for(
    pool: &Pool<'_>,
    node: &PoolNode<'_>,
    canary: bool,
    domains: &BTreeSet<&str>,
    tested_w: f64,
    rules: &Rules,
) -> Option<Refusal> {
    let most_w = pool.site.map_or(f64::INFINITY, |s| rules.power_share_max * s.power_w);
    if pool.rollout && (canary || !node.is_new) {
        Some(Refusal::Held)
    } else if node.domain.is_some_and(|d| domains.contains(d)) {
        Some(Refusal::Domain)
    } else if tested_w > 0.0 && tested_w + node.power_w > most_w {
        Some(Refusal::Power)
    } else {
        None
    }
}

fn count(pool: &Pool<'_>, which: impl Fn(&PoolNode<'_>) -> bool) -> u32 {
    u32::try_from(pool.nodes.iter().filter(|n| which(n)).count()).unwrap_or(u32::MAX)
}

/// How urgent a node's test is; none where it is not to be tested now.
fn priority(node: &PoolNode<'_>, busy: bool, rules: &Rules, now_ms: i64) -> Option<f64> {
    let Now::Idle { since_ms, released } = node.now else { return None };
    let quick = !node.history.quick;
    let overdue_ms = now_ms - due_ms(node.gpus, node.history, rules);
    if node.leaving || now_ms < node.not_before_ms || (!quick && overdue_ms < 0) {
        return None;
    }
    if (now_ms - since_ms) as f64 / 1e3 < rules.idle_min_s && !(released && busy) {
        return None;
    }
    let overdue = overdue_ms as f64 / (7 * DAY_MS) as f64;
    let new = if quick { 1.0 } else { 0.0 };
    Some(overdue.max(0.0) + new + 2.0 * f64::from(node.history.failures.min(3)) + node.risk)
}

/// What is run on a node: all of it where the buffer allows, a slice where it does not.
fn run_of(node: &PoolNode<'_>, whole: bool, can_call_back: bool, rules: &Rules, now_ms: i64) -> Option<Run> {
    if !node.history.quick {
        return Some(Run::Quick);
    }
    let lasts = node.life_left_s.is_none_or(|left| left > 2.0 * rules.full_s);
    if whole && lasts {
        return Some(Run::Full);
    }
    // A slice is short: it is lent out of the buffer, above the hot reserve, if it yields.
    let fresh = |name: &&&str| node.history.slices_ms.get(**name).is_some_and(|at| now_ms - at < 6 * DAY_MS);
    let next = SLICES.iter().filter(|n| !fresh(n)).min_by_key(|n| node.history.slices_ms.get(**n).copied());
    (can_call_back || whole).then_some(())?;
    next.map(|name| Run::Slice((*name).to_owned()))
}
