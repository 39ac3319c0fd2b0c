//! One pool through the year, event by event: hosts that are tested, break and come back, and clients that claim them. Nodes and
//! claims are the book's; what is tested when is decided by `control::weekly`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use control::gpus::{GpuChange, GpuRecord, Tested, gpu_names};
use control::weekly::{Diagnostics, Lend, Outlook, WeeklyMemory, decide, reserve};
use fleet::book::{Book, Change, ClaimRequest, ClassRule, Gate, Identity, Limits, Taken, What};
use fleet::rng::Rng;
use fleet::{
    AcceptedGpu, ClaimState, Class, GpuModel, LaunchAnswer, Market, NodeState, Offer, OfferKey, OnEmpty, UsdMicros,
};
use health::weekly::{History, Run};

use super::faults::Outage;
use super::measured::Measured;
use super::{DAY_S, Scenario};

/// The schedule looks at a pool this often, seconds.
const TICK_S: f64 = 60.0;
const SETTLED_S: f64 = 14.0 * DAY_S;
/// A GPU is to be tested within this time, seconds.
const TESTED_S: f64 = 10.0 * DAY_S;
/// Lead time that the planner's buffer covers, seconds.
const LEAD_S: f64 = 900.0;
/// Clients wait an hour at most, as the book's limits say.
const WAIT_MS: i64 = 3_600_000;
const CLASS: &str = "whole-node";
const BOOT: &str = "boot";

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Claim,
    Burst,
    Done { claim: u64 },
    Diagnosed { host: usize, life: u64 },
    GatePasses { host: usize, life: u64 },
    Fails { host: usize, until_s: f64 },
    Repaired { host: usize },
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct At(f64, u64, Event);

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

/// A machine, which is one node after another.
#[derive(Debug)]
struct PoolMachine {
    instance: String,
    /// Its node; none while it is out.
    node: Option<u64>,
    /// What its agent runs.
    runs: Option<Run>,
    /// Counts what it did: an end that was planned for something else is none.
    life: u64,
    /// When it was called back, seconds.
    called_back_s: Option<f64>,
}

/// Nodes by what they do, kept as the book says that they change.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    idle: u32,
    testing: u32,
    /// In the short gate after diagnostics.
    coming: u32,
}

pub(super) struct PoolRun<'a> {
    scenario: &'a Scenario,
    book: Book,
    memory: WeeklyMemory,
    rules: Diagnostics,
    offer: OfferKey,
    gpus: BTreeMap<String, GpuRecord>,
    hosts: Vec<PoolMachine>,
    host_of: BTreeMap<u64, usize>,
    counts: Counts,
    queue: BinaryHeap<Reverse<At>>,
    order: u64,
    now_s: f64,
    claim_rate_per_s: f64,
    hot: u32,
    measured: Measured,
}

fn ms(seconds: f64) -> i64 {
    (seconds * 1e3).round() as i64
}

/// A pool whose hosts are heard all the time, and whose clients keep their claims.
fn empty_book() -> (Book, OfferKey) {
    let mut book = Book::new(Limits {
        silent_ms: i64::MAX / 4,
        proof_max_age_ms: i64::MAX / 4,
        lease_max_ms: i64::MAX / 4,
        ..Limits::default()
    });
    let gpu = GpuModel::default();
    let key = OfferKey {
        provider: "lab".into(),
        region: "region".into(),
        zone: "zone".into(),
        instance_type: "host".into(),
        market: Market::OnDemand,
    };
    book.set_offers(vec![Offer {
        key: key.clone(),
        gpu,
        gpus_per_node: 1,
        interconnect: gpu.interconnect(),
        price_usd_micros_per_h: UsdMicros(1_000_000),
        price_day: None,
        interruption_per_h: 0.0,
    }]);
    let class = Class {
        name: CLASS.into(),
        gpus: vec![AcceptedGpu { model: gpu, cap: None }],
        gpus_per_claim: 1,
        multi_node: false,
        max_node_gpus: None,
        min_memory_gib: 0,
        min_interconnect: gpu.interconnect(),
        regions: vec![],
        markets: vec![],
        hit_rate_target: 0.99,
        miss_cost_usd_micros: UsdMicros(1_000_000),
        borrows_usd_micros_per_gpu_h: None,
    };
    let (wait_ms, lease_ms) = (WAIT_MS, i64::MAX / 4);
    book.set_classes([ClassRule { class, wait_ms, on_empty: OnEmpty::Queue, lease_ms, claim_mean_s: 3600.0 }]);
    (book, key)
}

impl<'a> PoolRun<'a> {
    pub fn new(scenario: &'a Scenario, nodes: usize, servers: &[Vec<Outage>], rng: &mut Rng) -> Self {
        let mean_s = scenario.claim_median_h * 3600.0 * (scenario.claim_sigma.powi(2) / 2.0).exp();
        let bursts = scenario.bursts_per_day / DAY_S * burst_mean(nodes);
        let claim_rate_per_s = (scenario.occupancy * nodes as f64 / mean_s - bursts).max(0.0);
        let (book, offer) = empty_book();
        let host = |n: usize| PoolMachine {
            instance: format!("{nodes}-{n}"),
            node: None,
            runs: None,
            life: 0,
            called_back_s: None,
        };
        let mut run = Self {
            scenario,
            book,
            memory: WeeklyMemory::default(),
            rules: Diagnostics { every_s: TICK_S, rules: scenario.rules.clone(), ..Diagnostics::default() },
            offer,
            gpus: BTreeMap::new(),
            hosts: (0..nodes).map(host).collect(),
            host_of: BTreeMap::new(),
            counts: Counts::default(),
            queue: BinaryHeap::new(),
            order: 0,
            now_s: 0.0,
            claim_rate_per_s,
            hot: 1,
            measured: Measured { nodes, ..Measured::default() },
        };
        for host in 0..nodes {
            run.joins(host);
            // Tests of the past are spread over a week.
            let full_ms = Some(-ms(rng.unit() * 7.0 * DAY_S));
            run.record(host, |gpu| gpu.history = History { quick: true, full_ms, ..History::default() });
            for outage in &servers[rng.below(servers.len())] {
                run.later(outage.from_s, Event::Fails { host, until_s: outage.until_s });
            }
        }
        run.later(0.0, Event::Claim);
        run.later(rng.unit() * DAY_S, Event::Burst);
        run.later(TICK_S, Event::Tick);
        run
    }

    fn later(&mut self, at_s: f64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(At(at_s, self.order, event)));
    }

    fn now_ms(&self) -> i64 {
        ms(self.now_s)
    }

    pub fn run(mut self, rng: &mut Rng) -> Measured {
        self.settle(rng);
        while let Some(Reverse(At(at_s, _, event))) = self.queue.pop() {
            if at_s > self.scenario.days * DAY_S {
                break;
            }
            self.pass(at_s);
            self.happen(event, rng);
            self.settle(rng);
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
            let Counts { idle, testing, coming } = self.counts;
            self.measured.service_s += seconds * self.host_of.len() as f64;
            self.measured.diagnostic_s += seconds * f64::from(testing + coming);
            let waiting = self.book.queue(CLASS) as u32;
            if testing > 0 && idle + coming < self.hot + waiting {
                self.measured.under_reserve_s += seconds;
            }
            if coming > 0 && idle < self.hot {
                self.measured.coming_back_s += seconds;
            }
        }
        self.now_s = to_s;
    }

    fn happen(&mut self, event: Event, rng: &mut Rng) {
        match event {
            Event::Claim => {
                // Thinning (Lewis & Shedler 1979): demand follows the day.
                if rng.unit() * RATE_MAX < day_factor(self.now_s) {
                    self.claim(rng);
                }
                let gap_s = -rng.unit().max(1e-300).ln() / (self.claim_rate_per_s * RATE_MAX).max(1e-12);
                self.later(self.now_s + gap_s, Event::Claim);
            }
            Event::Burst => {
                // Geometric, one at least.
                let mean = burst_mean(self.hosts.len()).max(1.01);
                let claims = (1.0 - rng.unit()).max(1e-300).ln() / (1.0 - 1.0 / mean).ln();
                for _ in 0..claims.ceil().max(1.0) as u32 {
                    self.claim(rng);
                }
                let gap_s = -rng.unit().max(1e-300).ln() * DAY_S / self.scenario.bursts_per_day.max(1e-9);
                self.later(self.now_s + gap_s, Event::Burst);
            }
            Event::Done { claim } => {
                // It may have ended with its host.
                self.book.release(claim, "its client is done", self.now_ms()).ok();
            }
            Event::Diagnosed { host, life } if self.hosts[host].life == life => self.diagnosed(host, rng),
            Event::GatePasses { host, life } if self.hosts[host].life == life => self.gate_passes(host),
            Event::Diagnosed { .. } | Event::GatePasses { .. } => {}
            Event::Fails { host, until_s } => self.fails(host, until_s, rng),
            Event::Repaired { host } => self.joins(host),
            Event::Tick => {
                self.tick(rng);
                self.later(self.now_s + TICK_S, Event::Tick);
            }
        }
    }

    /// Hears what the book has changed, until nothing does any more.
    fn settle(&mut self, rng: &mut Rng) {
        loop {
            let changes = self.book.take_changes();
            if changes.is_empty() {
                return;
            }
            debug_assert_eq!(self.book.breaches_in(&changes), []);
            for change in &changes.events {
                self.hear(change, rng);
            }
            self.book.forget_ended(&changes);
        }
    }

    fn hear(&mut self, change: &Change, rng: &mut Rng) {
        match &change.what {
            What::Node(node) => {
                if let Some(from) = node.from {
                    self.count(node.id, from, -1);
                }
                self.count(node.id, node.to, 1);
                if node.to == NodeState::Terminated {
                    self.host_of.remove(&node.id);
                }
                if (node.from, node.to) == (Some(NodeState::Diagnosing), NodeState::Checking) {
                    self.comes_back(node.id, rng);
                }
            }
            What::Claim(claim) => match (claim.from, claim.to) {
                (_, ClaimState::Granted) => self.granted(claim.id, rng),
                // Its client asks again.
                (Some(ClaimState::Granted | ClaimState::Active), ClaimState::Failed) => self.claim(rng),
                _ => {}
            },
            What::Intent(_) | What::Copy(_) | What::Start(_) => {}
        }
    }

    fn count(&mut self, node: u64, state: NodeState, by: i32) {
        let tested = self.host_of.get(&node).is_some_and(|h| self.hosts[*h].runs.is_some());
        let count = match state {
            NodeState::Idle => &mut self.counts.idle,
            NodeState::Diagnosing => &mut self.counts.testing,
            NodeState::Checking if tested => &mut self.counts.coming,
            _ => return,
        };
        *count = count.saturating_add_signed(by);
    }

    fn claim(&mut self, rng: &mut Rng) {
        let request = ClaimRequest::of(CLASS);
        let taken = self.book.claim(request, self.now_ms());
        self.settle(rng);
        let count = u64::from(self.settled());
        self.measured.claims += count;
        if matches!(taken, Ok((_, Taken::Granted))) {
            self.measured.at_once += count;
        } else if self.book.queue(CLASS) <= self.counts.coming as usize {
            // The book has called one back for it.
            self.measured.waited_for_yield += count;
        } else {
            self.measured.waited_for_node += count;
        }
        self.keep_reserve(rng);
    }

    /// What may come before a diagnostic has yielded must be there: the server looks each second.
    fn keep_reserve(&mut self, rng: &mut Rng) {
        for (node, reason) in reserve(&self.book, &self.memory, self.now_ms()) {
            self.book.call_back(node, &reason, self.now_ms()).ok();
        }
        self.settle(rng);
    }

    fn granted(&mut self, claim: u64, rng: &mut Rng) {
        // It was granted a moment ago.
        self.book.heartbeat(claim, None, self.now_ms()).ok();
        let holds_s = self.scenario.claim_median_h * 3600.0 * (self.scenario.claim_sigma * rng.normal()).exp();
        self.later(self.now_s + holds_s, Event::Done { claim });
    }

    /// A host is there, or there again: as a new node that passes its gate.
    fn joins(&mut self, host: usize) {
        let (now_ms, instance) = (self.now_ms(), self.hosts[host].instance.clone());
        let Ok(intent) = self.book.intend_launch(0, &self.offer, 1, WAIT_MS, now_ms) else { return };
        let launched = self.book.intent_sent(intent, now_ms).is_ok()
            && self
                .book
                .launched(intent, std::slice::from_ref(&instance), LaunchAnswer::Launched, "launched", now_ms)
                .is_ok();
        let Some(node) = self.book.nodes_of(&instance).next().map(|n| n.id).filter(|_| launched) else { return };
        (self.hosts[host].node, self.hosts[host].runs) = (Some(node), None);
        self.host_of.insert(node, host);
        let joined = self.book.register(node, BOOT, 1, now_ms).is_ok()
            && self.book.gate(node, BOOT, &Gate::passed(), "every check passed", now_ms).is_ok();
        debug_assert!(joined);
        let serials = vec![instance];
        self.book.identify(node, &Identity { serials, ..Identity::default() });
        // A new node is met with level 2.
        self.record(host, |_| {});
    }

    /// Notes something of a host's GPUs.
    fn record(&mut self, host: usize, change: impl FnOnce(&mut GpuRecord)) {
        let now_ms = self.now_ms();
        let Some(node) = self.hosts[host].node.and_then(|id| self.book.nodes().get(&id)) else { return };
        let Some(serial) = gpu_names(node).first().cloned() else { return };
        let gpu = self.gpus.entry(serial).or_default();
        gpu.met(node, now_ms);
        change(gpu);
    }

    fn fails(&mut self, host: usize, until_s: f64, rng: &mut Rng) {
        let now_ms = self.now_ms();
        self.record(host, |gpu| gpu.failed("it broke", now_ms));
        let Some(node) = self.hosts[host].node.take() else { return };
        self.hosts[host].life += 1;
        self.hosts[host].called_back_s = None;
        let known = self.book.gone(node, "it broke", self.now_ms());
        debug_assert!(known.is_ok(), "{known:?}");
        self.later(until_s.max(self.now_s + 60.0), Event::Repaired { host });
        self.settle(rng);
        self.book.tick_nodes(now_ms);
        self.settle(rng);
        self.keep_reserve(rng);
    }

    /// Its agent says that what it ran has passed.
    fn diagnosed(&mut self, host: usize, rng: &mut Rng) {
        let Some(node) = self.hosts[host].node else { return };
        let Some(run) = self.hosts[host].runs.clone() else { return };
        let now_ms = self.now_ms();
        if let Some(seen) = self.book.nodes().get(&node).cloned() {
            let passed = GpuChange::Seen { node: Box::new(seen), tested: Tested::Passed(run), fault: None };
            self.record(host, |gpu| passed.apply(gpu, now_ms));
        }
        self.measured.ended += u64::from(self.settled());
        // Not told to yield: the gate follows at once.
        self.hosts[host].called_back_s = None;
        self.hosts[host].life += 1;
        let life = self.hosts[host].life;
        let gate_s = self.scenario.recheck_s * rng.between(0.8, 1.5);
        self.later(self.now_s + gate_s, Event::GatePasses { host, life });
        self.book.diagnosed(node, BOOT, "every test passed", now_ms).ok();
    }

    /// A node has left diagnostics: by itself, or it was called back.
    fn comes_back(&mut self, node: u64, rng: &mut Rng) {
        let Some(&host) = self.host_of.get(&node) else { return };
        let called_back = self.book.nodes().get(&node).and_then(|n| n.diagnosis.as_ref()?.called_back_ms).is_some();
        if !called_back {
            return;
        }
        let now_ms = self.now_ms();
        if let Some(seen) = self.book.nodes().get(&node).cloned() {
            let gave_way =
                GpuChange::Seen { node: Box::new(seen), tested: Tested::Nothing { gave_way: true }, fault: None };
            self.record(host, |gpu| gave_way.apply(gpu, now_ms));
        }
        let (least_s, most_s) = self.scenario.abort_s;
        let takes_s = rng.between(least_s, most_s) + self.scenario.recheck_s * rng.between(0.8, 1.5);
        let machine = &mut self.hosts[host];
        machine.called_back_s = Some(self.now_s);
        machine.life += 1;
        let life = machine.life;
        self.later(self.now_s + takes_s, Event::GatePasses { host, life });
    }

    fn gate_passes(&mut self, host: usize) {
        let Some(node) = self.hosts[host].node else { return };
        let passed = self.book.gate(node, BOOT, &Gate::passed(), "the short gate passed", self.now_ms());
        debug_assert!(passed.is_ok(), "{passed:?}");
        if let Some(asked_s) = self.hosts[host].called_back_s.take()
            && self.settled()
        {
            self.measured.yields_s.push(self.now_s - asked_s);
        }
    }

    fn tick(&mut self, rng: &mut Rng) {
        let now_ms = self.now_ms();
        self.book.tick(now_ms);
        self.book.tick_nodes(now_ms);
        if self.settled() {
            let young = |h: &&PoolMachine| h.node.is_some() && self.age_s(h) <= TESTED_S;
            self.measured.tested_s += TICK_S * self.hosts.iter().filter(young).count() as f64;
        }
        self.memory.look(&self.book, &self.rules, now_ms);
        if !self.scenario.tests {
            return;
        }
        let orders = decide(&self.book, &self.gpus, &self.memory, &self.outlook(), &self.rules, now_ms);
        self.hot = orders.hot_nodes.max(1);
        self.memory.ordered(&orders);
        let breaches = orders.carry_out(&mut self.book, now_ms);
        debug_assert_eq!(breaches, []);
        for Lend { node, run, .. } in orders.lend {
            let lent = self.book.nodes().get(&node).is_some_and(|n| n.state == NodeState::Diagnosing);
            if let Some(&host) = self.host_of.get(&node).filter(|_| lent) {
                self.begins(host, run, rng);
            }
        }
    }

    /// Seconds since a host's last full test.
    fn age_s(&self, host: &PoolMachine) -> f64 {
        let gpu = self.gpus.get(&host.instance);
        self.now_s - gpu.and_then(|g| g.history.full_ms).unwrap_or(0) as f64 / 1e3
    }

    fn begins(&mut self, host: usize, run: Run, rng: &mut Rng) {
        let takes_s = match &run {
            Run::Full => self.scenario.rules.full_s,
            Run::Quick | Run::Slice(_) => self.scenario.rules.slice_s * 0.8,
        };
        self.hosts[host].runs = Some(run);
        self.hosts[host].life += 1;
        let life = self.hosts[host].life;
        self.later(self.now_s + takes_s * rng.between(0.9, 1.1), Event::Diagnosed { host, life });
        self.settle(rng);
        if self.settled() {
            self.measured.begun += 1;
            self.measured.begun_under_reserve += u64::from(self.counts.idle < self.hot);
        }
    }

    /// What a planner would hold for the claims that come while a node boots, beside those in use.
    fn outlook(&self) -> Outlook {
        let expected = self.claim_rate_per_s * day_factor(self.now_s) * LEAD_S;
        let claimed = self.host_of.len() as u32 - self.counts.idle - self.counts.testing - self.counts.coming;
        let nodes = f64::from(claimed) + (2.6 * expected.sqrt()).ceil().max(1.0);
        Outlook { nodes: BTreeMap::from([(self.offer.clone(), nodes)]), claims: BTreeMap::new() }
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
