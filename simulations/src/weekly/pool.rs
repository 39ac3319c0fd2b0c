//! One pool through the year, event by event.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use fleet::rng::Rng;
use health::weekly::{Arrivals, History, Node, Now, Pool, Run, admit, due_ms};

use super::faults::Outage;
use super::{DAY_S, Scenario};

/// The schedule looks at a pool this often, seconds.
const TICK_S: f64 = 60.0;
/// Time within which a diagnostic must have yielded, seconds: demand within it is the hot reserve.
const YIELD_S: f64 = 45.0;
const SETTLED_S: f64 = 14.0 * DAY_S;
/// A GPU is to be tested within this time, seconds.
const TESTED_S: f64 = 10.0 * DAY_S;
/// Lead time that the planner's buffer covers, seconds.
const LEAD_S: f64 = 900.0;

/// What was measured, after the first two weeks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Nodes.
    pub nodes: usize,
    /// Claims.
    pub claims: u64,
    /// Claims that found an idle node.
    pub at_once: u64,
    /// Claims that waited for a diagnostic to yield.
    pub waited_for_yield: u64,
    /// Claims that waited since nothing was idle or in a diagnostic.
    pub waited_for_node: u64,
    /// Diagnostics begun, quick and slices among them.
    pub begun: u64,
    /// Those that ran to their end.
    pub ended: u64,
    /// Diagnostics that were begun although fewer than the hot reserve stayed idle.
    pub begun_under_reserve: u64,
    /// Seconds in which fewer than the hot reserve were idle, or on their way back from a diagnostic, while another one ran
    /// that was not told to yield.
    pub under_reserve_s: f64,
    /// Seconds in which fewer were idle while diagnostics that were told to yield were on their way back.
    pub coming_back_s: f64,
    /// Node-seconds in service, and those in diagnostics.
    pub service_s: f64,
    /// Node-seconds in diagnostics.
    pub diagnostic_s: f64,
    /// Node-seconds in service in which the last full test was no older than ten days.
    pub tested_s: f64,
    /// Times that diagnostics took to yield, seconds.
    pub yields_s: Vec<f64>,
}

impl Measured {
    /// Adds another pool's.
    pub fn add(&mut self, o: &Self) {
        self.nodes += o.nodes;
        self.claims += o.claims;
        self.at_once += o.at_once;
        self.waited_for_yield += o.waited_for_yield;
        self.waited_for_node += o.waited_for_node;
        self.begun += o.begun;
        self.ended += o.ended;
        self.begun_under_reserve += o.begun_under_reserve;
        self.under_reserve_s += o.under_reserve_s;
        self.coming_back_s += o.coming_back_s;
        self.service_s += o.service_s;
        self.diagnostic_s += o.diagnostic_s;
        self.tested_s += o.tested_s;
        self.yields_s.extend(&o.yields_s);
    }

    /// The 99 % quantile of the times to yield, seconds; none where none yielded.
    #[must_use]
    pub fn yield_p99_s(&self) -> Option<f64> {
        let mut sorted = self.yields_s.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get((sorted.len() as f64 * 0.99).ceil() as usize - usize::from(!sorted.is_empty())).copied()
    }
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Claim,
    Released { node: usize, life: u64 },
    Diagnosed { node: usize, life: u64 },
    Yielded { node: usize, life: u64, asked_s: f64 },
    Fails { node: usize, until_s: f64 },
    Repaired { node: usize },
    Burst,
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct At(f64, u64, What);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Doing {
    Idle { since_s: f64, released: bool },
    Claimed,
    Testing(Run),
    Yielding,
    Out,
}

#[derive(Debug)]
struct Host {
    gpus: String,
    doing: Doing,
    history: History,
    /// Counts what it did: an end that was planned for something else is none.
    life: u64,
}

pub(super) struct PoolRun<'a> {
    scenario: &'a Scenario,
    hosts: Vec<Host>,
    idle: BTreeSet<usize>,
    /// Which nodes are due for a test.
    due: Vec<bool>,
    testing: BTreeSet<usize>,
    yielding: u32,
    waiting: VecDeque<bool>,
    queue: BinaryHeap<Reverse<At>>,
    order: u64,
    now_s: f64,
    out: usize,
    claim_rate_per_s: f64,
    /// What came within [`YIELD_S`], by the hour.
    arrivals: Arrivals,
    /// When the present window of it ends, seconds, and what came in it.
    window: (f64, u32),
    hot: u32,
    hour: usize,
    measured: Measured,
}

impl<'a> PoolRun<'a> {
    pub fn new(scenario: &'a Scenario, nodes: usize, servers: &[Vec<Outage>], rng: &mut Rng) -> Self {
        let mean_s = scenario.claim_median_h * 3600.0 * (scenario.claim_sigma.powi(2) / 2.0).exp();
        let bursts = scenario.bursts_per_day / DAY_S * burst_mean(nodes);
        let claim_rate_per_s = (scenario.occupancy * nodes as f64 / mean_s - bursts).max(0.0);
        let host = |n: usize| Host {
            gpus: format!("{nodes}-{n}"),
            doing: Doing::Idle { since_s: 0.0, released: false },
            // Tests of the past are spread over a week.
            history: History {
                quick: true,
                full_ms: Some(-(rng.unit() * 7.0 * DAY_S * 1e3) as i64),
                ..History::default()
            },
            life: 0,
        };
        let hosts: Vec<Host> = (0..nodes).map(host).collect();
        let mut run = Self {
            scenario,
            hosts,
            idle: (0..nodes).collect(),
            due: vec![false; nodes],
            testing: BTreeSet::new(),
            yielding: 0,
            waiting: VecDeque::new(),
            queue: BinaryHeap::new(),
            order: 0,
            now_s: 0.0,
            out: 0,
            claim_rate_per_s,
            arrivals: Arrivals::default(),
            window: (YIELD_S, 0),
            hot: 1,
            hour: usize::MAX,
            measured: Measured { nodes, ..Measured::default() },
        };
        for node in 0..nodes {
            for outage in &servers[rng.below(servers.len())] {
                run.later(outage.from_s, What::Fails { node, until_s: outage.until_s });
            }
        }
        run.later(0.0, What::Claim);
        run.later(rng.unit() * DAY_S, What::Burst);
        run.later(TICK_S, What::Tick);
        run
    }

    fn later(&mut self, at_s: f64, what: What) {
        self.order += 1;
        self.queue.push(Reverse(At(at_s, self.order, what)));
    }

    pub fn run(mut self, rng: &mut Rng) -> Measured {
        while let Some(Reverse(At(at_s, _, what))) = self.queue.pop() {
            if at_s > self.scenario.days * DAY_S {
                break;
            }
            self.pass(at_s);
            self.happen(what, rng);
        }
        self.measured
    }

    fn settled(&self) -> bool {
        self.now_s >= SETTLED_S
    }

    /// Time passes, and is counted.
    fn pass(&mut self, to_s: f64) {
        let seconds = to_s - self.now_s;
        if self.settled() {
            self.measured.service_s += seconds * (self.hosts.len() - self.out) as f64;
            self.measured.diagnostic_s += seconds * (self.testing.len() as f64 + f64::from(self.yielding));
            let idle = self.idle.len() as u32;
            if !self.testing.is_empty() && idle + self.yielding < self.hot {
                self.measured.under_reserve_s += seconds;
            }
            if self.yielding > 0 && idle < self.hot {
                self.measured.coming_back_s += seconds;
            }
        }
        self.now_s = to_s;
    }

    fn happen(&mut self, what: What, rng: &mut Rng) {
        match what {
            What::Claim => {
                // Thinning (Lewis & Shedler 1979): demand follows the day.
                if rng.unit() * RATE_MAX < day_factor(self.now_s) {
                    self.claim(rng);
                }
                let gap_s = -rng.unit().max(1e-300).ln() / (self.claim_rate_per_s * RATE_MAX).max(1e-12);
                self.later(self.now_s + gap_s, What::Claim);
            }
            What::Burst => {
                // Geometric, one at least.
                let mean = burst_mean(self.hosts.len()).max(1.01);
                let claims = (1.0 - rng.unit()).max(1e-300).ln() / (1.0 - 1.0 / mean).ln();
                for _ in 0..claims.ceil().max(1.0) as u32 {
                    self.claim(rng);
                }
                let gap_s = -rng.unit().max(1e-300).ln() * DAY_S / self.scenario.bursts_per_day.max(1e-9);
                self.later(self.now_s + gap_s, What::Burst);
            }
            What::Released { node, life } if self.hosts[node].life == life => self.idle_again(node, true, rng),
            What::Diagnosed { node, life } if self.hosts[node].life == life => self.diagnosed(node, rng),
            What::Yielded { node, life, asked_s } if self.hosts[node].life == life => {
                self.yielding -= 1;
                if self.settled() {
                    self.measured.yields_s.push(self.now_s - asked_s);
                }
                self.idle_again(node, false, rng);
            }
            What::Released { .. } | What::Diagnosed { .. } | What::Yielded { .. } => {}
            What::Fails { node, until_s } => self.fails(node, until_s, rng),
            What::Repaired { node } => {
                self.out -= 1;
                // The gate after a repair is followed by level 2 in the first gap.
                self.hosts[node].history.quick = false;
                self.idle_again(node, false, rng);
            }
            What::Tick => {
                self.tick(rng);
                self.later(self.now_s + TICK_S, What::Tick);
            }
        }
    }

    fn claim(&mut self, rng: &mut Rng) {
        self.windows();
        self.window.1 += 1;
        let count = self.settled();
        self.measured.claims += u64::from(count);
        // Nodes that are due are taken last: an idle gap is what they wait for.
        if let Some(node) = self.idle.iter().find(|n| !self.due[**n]).or(self.idle.first()).copied() {
            self.idle.remove(&node);
            self.measured.at_once += u64::from(count);
            self.hold(node, rng);
            // What may come before a diagnostic could yield must be there.
            while (self.idle.len() as u32 + self.yielding) < self.hot && self.call_back(rng) {}
            return;
        }
        // A diagnostic that is told to yield serves it; without one it waits for whatever comes first.
        let yields = self.yielding > self.waiting.iter().filter(|y| **y).count() as u32 || self.call_back(rng);
        *(if yields { &mut self.measured.waited_for_yield } else { &mut self.measured.waited_for_node }) +=
            u64::from(count);
        self.waiting.push_back(yields);
    }

    fn hold(&mut self, node: usize, rng: &mut Rng) {
        let host = &mut self.hosts[node];
        host.doing = Doing::Claimed;
        host.life += 1;
        let life = host.life;
        let holds_s = self.scenario.claim_median_h * 3600.0 * (self.scenario.claim_sigma * rng.normal()).exp();
        self.later(self.now_s + holds_s, What::Released { node, life });
    }

    fn idle_again(&mut self, node: usize, released: bool, rng: &mut Rng) {
        if self.waiting.pop_front().is_some() {
            return self.hold(node, rng);
        }
        let host = &mut self.hosts[node];
        host.life += 1;
        host.doing = Doing::Idle { since_s: self.now_s, released };
        self.idle.insert(node);
    }

    fn leave(&mut self, node: usize) {
        self.idle.remove(&node);
        self.testing.remove(&node);
        if self.hosts[node].doing == Doing::Yielding {
            self.yielding -= 1;
        }
    }

    fn fails(&mut self, node: usize, until_s: f64, rng: &mut Rng) {
        if self.hosts[node].doing == Doing::Out {
            return;
        }
        let had_claim = self.hosts[node].doing == Doing::Claimed;
        self.leave(node);
        self.hosts[node].doing = Doing::Out;
        self.hosts[node].life += 1;
        self.out += 1;
        self.later(until_s.max(self.now_s + 60.0), What::Repaired { node });
        if had_claim {
            // Its client asks again.
            self.claim(rng);
        }
    }

    fn diagnosed(&mut self, node: usize, rng: &mut Rng) {
        if let Doing::Testing(run) = self.hosts[node].doing.clone() {
            self.hosts[node].history.passed(&run, (self.now_s * 1e3) as i64);
            self.measured.ended += u64::from(self.settled());
        }
        self.leave(node);
        self.idle_again(node, false, rng);
    }

    /// Tells one diagnostic to yield: the one that has run the shortest, of which least is lost.
    fn call_back(&mut self, rng: &mut Rng) -> bool {
        let Some(node) = self.testing.iter().max_by_key(|n| self.hosts[**n].life).copied() else { return false };
        self.testing.remove(&node);
        self.yielding += 1;
        let host = &mut self.hosts[node];
        host.doing = Doing::Yielding;
        host.life += 1;
        let life = host.life;
        let (least_s, most_s) = self.scenario.abort_s;
        let takes_s = rng.between(least_s, most_s) + self.scenario.recheck_s * rng.between(0.8, 1.5);
        self.later(self.now_s + takes_s, What::Yielded { node, life, asked_s: self.now_s });
        true
    }

    fn tick(&mut self, rng: &mut Rng) {
        self.learn();
        if self.settled() {
            let old = |h: &&Host| {
                h.doing != Doing::Out && self.now_s * 1e3 - h.history.full_ms.unwrap_or(0) as f64 <= TESTED_S * 1e3
            };
            self.measured.tested_s += TICK_S * self.hosts.iter().filter(old).count() as f64;
        }
        if !self.scenario.tests {
            return;
        }
        let now_ms = (self.now_s * 1e3) as i64;
        for id in 0..self.hosts.len() {
            let node = seen((id, &self.hosts[id]));
            self.due[id] = !node.history.quick || due_ms(node.gpus, node.history, &self.scenario.rules) <= now_ms;
        }
        let advice = admit(&self.view(), &self.scenario.rules, (self.now_s * 1e3) as i64);
        for _ in 0..advice.yields.saturating_sub(self.yielding) {
            self.call_back(rng);
        }
        for lease in advice.leases {
            let node = lease.node as usize;
            let takes_s = match &lease.run {
                Run::Full => self.scenario.rules.full_s,
                Run::Quick | Run::Slice(_) => self.scenario.rules.slice_s * 0.8,
            };
            self.idle.remove(&node);
            self.testing.insert(node);
            let host = &mut self.hosts[node];
            host.doing = Doing::Testing(lease.run);
            host.life += 1;
            let life = host.life;
            if self.settled() {
                self.measured.begun += 1;
                self.measured.begun_under_reserve += u64::from((self.idle.len() as u32) < self.hot);
            }
            self.later(self.now_s + takes_s * rng.between(0.9, 1.1), What::Diagnosed { node, life });
        }
    }

    /// The pool as the schedule sees it.
    fn view(&self) -> Pool<'_> {
        // What a planner would hold for the claims that come while a node boots.
        let expected = self.claim_rate_per_s * day_factor(self.now_s) * LEAD_S;
        let buffer_nodes = (2.6 * expected.sqrt()).ceil().max(1.0) as u32;
        Pool {
            nodes: self.hosts.iter().enumerate().map(seen).collect(),
            buffer_nodes,
            hot_nodes: self.hot,
            yields: true,
            short: !self.waiting.is_empty(),
            rising: false,
            held: false,
            rollout: false,
            canary: false,
            busy_domains: BTreeSet::new(),
            site: None,
        }
    }

    /// Notes the windows that are over.
    fn windows(&mut self) {
        while self.window.0 <= self.now_s {
            self.arrivals.saw((self.window.0 * 1e3) as i64, self.window.1);
            self.window = (self.window.0 + YIELD_S, 0);
        }
    }

    /// Each hour anew: what is held back.
    fn learn(&mut self) {
        self.windows();
        let hour = (self.now_s / 3600.0) as usize;
        if hour != self.hour {
            self.hour = hour;
            self.hot = self.arrivals.hot_reserve((self.now_s * 1e3) as i64);
        }
    }
}

/// A node as the schedule sees it.
fn seen((id, host): (usize, &Host)) -> Node<'_> {
    Node {
        id: id as u64,
        gpus: &host.gpus,
        now: match host.doing {
            Doing::Idle { since_s, released } => Now::Idle { since_ms: (since_s * 1e3) as i64, released },
            Doing::Testing(_) => Now::Diagnosing,
            Doing::Claimed | Doing::Yielding | Doing::Out => Now::Away,
        },
        history: &host.history,
        risk: 0.0,
        warmth: 0.0,
        domain: None,
        power_w: 0.0,
        is_new: false,
        leaving: false,
        not_before_ms: 0,
        life_left_s: None,
    }
}

/// The highest that [`day_factor`] comes to.
const RATE_MAX: f64 = 1.6;

/// Demand at a time of day and week, against its mean.
fn day_factor(at_s: f64) -> f64 {
    let day = 1.0 + 0.5 * (std::f64::consts::TAU * (at_s / DAY_S - 0.3)).sin();
    let weekend = (at_s / DAY_S) as u64 % 7 >= 5;
    day * if weekend { 0.8 } else { 1.06 }
}

/// Claims of a burst, on average.
fn burst_mean(nodes: usize) -> f64 {
    (0.03 * nodes as f64).max(1.0)
}
