//! What is to be done in each pool: who is lent, who is called back, for whose test the planner is asked for another.

use std::borrow::{Borrow, Cow};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Book, IntentAction, Node};
use fleet::{Cell, NodeState};
use health::weekly::{self, Advice, History, Now, Pool, Refusal, Site, admit, due_ms};

use super::need::{Need, wanted_nodes};
use super::orders::{Lend, Orders, Place, place};
use super::{Diagnostics, Outlook, WeeklyMemory};
use crate::gpus::{GpuRecord, gpu_names};

/// A diagnostic that has run for so long is called back where nobody knows yet whether it comes, milliseconds.
const DRILL_AFTER_MS: i64 = 20_000;
/// The planner holds one node more for a test so long at most, milliseconds.
const SURGE_MS: i64 = 6 * 3_600_000;

/// All that pools are looked at with.
struct Look<'a> {
    book: &'a Book,
    gpus: &'a dyn Fn(&str) -> Option<&'a GpuRecord>,
    memory: &'a WeeklyMemory,
    outlook: &'a Outlook,
    rules: &'a Diagnostics,
    now_ms: i64,
    /// Nodes that are to end.
    leaving: BTreeSet<u64>,
    /// Cells in which a breaker is open.
    held: BTreeSet<&'a Cell>,
    /// Domains of which a node is in diagnostics.
    busy_domains: BTreeSet<String>,
    /// Cells of which a node with what is being rolled out is in diagnostics.
    canaries: BTreeSet<Cell>,
    /// Drawn by GPUs in diagnostics, by cloud, W.
    tested_w: BTreeMap<&'a str, f64>,
}

/// Looks at each pool.
#[must_use]
pub fn decide<Name: Borrow<str> + Ord, Gpu: Borrow<GpuRecord>>(
    book: &Book,
    gpus: &BTreeMap<Name, Gpu>,
    memory: &WeeklyMemory,
    outlook: &Outlook,
    rules: &Diagnostics,
    now_ms: i64,
) -> Orders {
    let mut pools: BTreeMap<Place<'_>, Vec<&Node>> = BTreeMap::new();
    for node in book.nodes().values() {
        pools.entry(place(node)).or_default().push(node);
    }
    let ends = book.intents().values().filter_map(|i| match i.action {
        IntentAction::Terminate { node } => Some(node),
        IntentAction::Launch { .. } => None,
    });
    let mut look = Look {
        book,
        gpus: &|name| gpus.get(name).map(Borrow::borrow),
        memory,
        outlook,
        rules,
        now_ms,
        leaving: ends.collect(),
        held: book.held_cells(),
        busy_domains: BTreeSet::new(),
        canaries: BTreeSet::new(),
        tested_w: BTreeMap::new(),
    };
    book.nodes().values().filter(|n| n.state == NodeState::Diagnosing).for_each(|n| look.tested(n));
    let mut orders = Orders::default();
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    for nodes in pools.values() {
        if let Some(refusal) = look.at(nodes, &mut orders) {
            *refusals.entry(format!("{refusal:?}")).or_default() += 1;
        }
    }
    let told: Vec<String> = refusals.into_iter().map(|(why, pools)| format!("{why} {pools}")).collect();
    orders.why = if told.is_empty() { String::new() } else { format!("; pools: {}", told.join(", ")) };
    orders
}

impl<'a> Look<'a> {
    /// A node is in diagnostics.
    fn tested(&mut self, node: &'a Node) {
        self.busy_domains.extend(domain_of(node));
        if self.is_new(node) {
            self.canaries.insert(Cell::of(&node.offer));
        }
        *self.tested_w.entry(&node.offer.provider).or_default() += power_w(self.book, node);
    }

    /// Whether it has what is being rolled out.
    fn is_new(&self, node: &Node) -> bool {
        self.memory.rollouts.has(node, self.rules.rules.rollout_s, self.now_ms)
    }

    /// Looks at one pool. Returns why no more of it is lent; nothing where nobody serves.
    fn at(&mut self, nodes: &[&'a Node], orders: &mut Orders) -> Option<Refusal> {
        let serving: Vec<&Node> = nodes.iter().copied().filter(|n| n.state.in_service() || n.gate_is_short()).collect();
        let known: Vec<Tested<'_>> =
            serving.iter().map(|n| Tested::of(n, self.gpus, self.rules, self.now_ms)).collect();
        let proven = self.is_proven(&serving);
        let pool = self.pool(nodes, *serving.first()?, &known, proven);
        let advice = admit(&pool, &self.rules.rules, self.now_ms);
        let (refusal, hot_nodes) = (advice.refusal, pool.hot_nodes);
        self.ask_for_surge(&known, &advice, orders);
        orders.stale += advice.stale.len();
        let back = in_tests(&serving);
        orders.diagnosing += back.len();
        orders.hot_nodes += hot_nodes;
        orders.call_back.extend(back.iter().take(advice.call_back as usize).map(few));
        if !proven {
            orders.uncounted.extend(back.iter().map(|n| n.id));
            // Each node once: where all are slow, tests still come to their end.
            let due = |n: &&&Node| n.yield_ms.is_none() && self.now_ms - n.since_ms >= DRILL_AFTER_MS;
            let drilled = back.iter().skip(advice.call_back as usize).find(due);
            let reason = "a drill: how soon it is back is not known here yet";
            orders.call_back.extend(drilled.map(|n| (n.id, reason.to_owned())));
        }
        // One at a time until it is known to come back.
        let room = if proven { usize::MAX } else { 1_usize.saturating_sub(back.len()) };
        for lease in advice.leases.into_iter().take(room) {
            if let Some(node) = self.book.nodes().get(&lease.node) {
                self.tested(node);
            }
            orders.lend.push(Lend { node: lease.node, run: lease.run, hot_nodes });
        }
        Some(refusal)
    }

    /// Whether its nodes have been seen to come back in time.
    fn is_proven(&self, serving: &[&Node]) -> bool {
        let limit_ms = self.rules.yield_max_s * 1000.0;
        let yields: Vec<f64> = serving.iter().filter_map(|n| n.yield_ms).map(|ms| ms as f64).collect();
        // One slow host does not speak for its pool, but half of them do.
        let in_time = yields.iter().filter(|ms| **ms <= limit_ms).count();
        in_time > 0 && 2 * in_time >= yields.len()
    }

    fn pool<'b>(&'b self, nodes: &[&Node], one: &Node, known: &'b [Tested<'_>], proven: bool) -> Pool<'b> {
        let need = Need::of(self.book, nodes, &self.memory.arrivals, self.outlook, self.now_ms);
        let (cell, provider) = (Cell::of(&one.offer), one.offer.provider.as_str());
        let tested_w = self.tested_w.get(provider).copied().unwrap_or(0.0);
        let site = self.rules.site_power_w.get(provider).map(|power_w| Site { power_w: *power_w, tested_w });
        Pool {
            nodes: known.iter().map(|k| k.seen(self)).collect(),
            buffer_nodes: need.buffer_nodes,
            hot_nodes: need.hot_nodes,
            waiting_nodes: need.waiting_nodes,
            can_call_back: proven,
            short: need.short,
            rising: need.rising,
            held: self.held.contains(&cell),
            rollout: self.memory.rollouts.runs(&cell, self.rules.rules.rollout_s, self.now_ms),
            canary: self.canaries.contains(&cell),
            busy_domains: self.busy_domains.iter().map(String::as_str).collect(),
            site,
        }
    }

    /// Which nodes are due, and for whose test the planner is asked for another.
    fn ask_for_surge(&self, known: &[Tested<'_>], advice: &Advice, orders: &mut Orders) {
        let now_ms = self.now_ms;
        let due = |k: &&Tested<'_>| !k.history.quick || due_ms(&k.names[0], &k.history, &self.rules.rules) <= now_ms;
        let late: Vec<u64> = known.iter().filter(due).map(|k| k.node.id).collect();
        orders.due += late.len();
        orders.last.extend(&late);
        if advice.surge {
            let longest =
                known.iter().filter(|k| k.node.state == NodeState::Idle).min_by_key(|k| k.history.tested_ms());
            orders.surge.extend(longest.map(|k| (k.node.id, now_ms)));
        }
        // Once asked for, it stays until the test has been: the node that comes for it is not to go before.
        let asked = late.iter().filter_map(|id| Some((*id, *self.memory.surge.get(id)?)));
        orders.surge.extend(asked.filter(|(_, since_ms)| now_ms - since_ms < SURGE_MS));
        orders.uncounted.extend(late.iter().filter(|id| orders.surge.contains_key(id)));
    }
}

/// Who is called back when a claim has taken a node: the part of [`decide`] that does not wait for the next look.
#[must_use]
pub fn reserve(book: &Book, memory: &WeeklyMemory, now_ms: i64) -> Vec<(u64, String)> {
    let mut pools: BTreeMap<usize, Vec<&Node>> = BTreeMap::new();
    let lent: BTreeSet<Place<'_>> = book.lent().iter().filter_map(|id| book.nodes().get(id)).map(place).collect();
    for node in book.nodes().values().filter(|_| !lent.is_empty()) {
        if let Some(at) = lent.iter().position(|p| *p == place(node)) {
            pools.entry(at).or_default().push(node);
        }
    }
    let of_pool = |nodes: Vec<&Node>| -> Vec<(u64, String)> {
        let count = |is: fn(&&&Node) -> bool| nodes.iter().filter(is).count() as u32;
        let back = in_tests(&nodes);
        let (idle, coming) = (count(|n| n.state == NodeState::Idle && n.care.is_none()), count(|n| comes(n)));
        let wanted = wanted_nodes(book, &nodes, &memory.arrivals, now_ms);
        let yields = weekly::called_back(wanted, idle, coming, back.len() as u32);
        back.iter().take(yields as usize).map(few).collect()
    };
    pools.into_values().flat_map(of_pool).collect()
}

/// Nodes in diagnostics, the newest first: they lose the least.
fn in_tests<'a>(nodes: &[&'a Node]) -> Vec<&'a Node> {
    let mut back: Vec<&Node> = nodes.iter().copied().filter(|n| n.state == NodeState::Diagnosing).collect();
    back.sort_by_key(|n| Reverse(n.since_ms));
    back
}

/// Whether it is idle after the short gate that it is in.
fn comes(node: &Node) -> bool {
    node.gate_is_short() && !node.out && node.care.is_none()
}

fn few(node: &&Node) -> (u64, String) {
    (node.id, "idle nodes have become few".to_owned())
}

/// What it hangs together with others by: racks are named within a region, NVLink domains everywhere.
fn domain_of(node: &Node) -> Option<String> {
    let (domain, o) = (node.domain.as_ref()?, &node.offer);
    Some(if domain.starts_with("nvlink:") { domain.clone() } else { format!("{}/{}/{domain}", o.provider, o.region) })
}

/// What its GPUs draw under load, W; of a type that is sold no more nothing is known.
fn power_w(book: &Book, node: &Node) -> f64 {
    let tdp_w = book.offer_of(node).and_then(|p| book.offers().get(p)).map_or(0, |o| o.gpu.tdp_w());
    f64::from(tdp_w * node.gpus)
}

/// A node with what has passed on its GPUs.
struct Tested<'a> {
    node: &'a Node,
    names: Cow<'a, [String]>,
    history: History,
    not_before_ms: i64,
    risk: f64,
    domain: Option<String>,
}

impl<'a> Tested<'a> {
    fn of(node: &'a Node, gpus: &dyn Fn(&str) -> Option<&'a GpuRecord>, rules: &Diagnostics, now_ms: i64) -> Self {
        let names = gpu_names(node);
        let records: Vec<&GpuRecord> = names.iter().filter_map(|n| gpus(n)).collect();
        let known =
            if records.len() == names.len() { History::of_all(records.iter().map(|g| &g.history)) } else { None };
        // One that is not known was met now: nothing has passed on it.
        let history = known.unwrap_or(History { met_ms: now_ms, ..History::default() });
        let month_ms = 30 * 86_400_000;
        let failed = records.iter().any(|g| g.faults.last().is_some_and(|f| now_ms - f.at_ms < month_ms));
        let risk = if failed { 1.0 } else { 0.0 } + if node.repairs.is_empty() { 0.0 } else { 1.0 };
        let again = |g: &&GpuRecord| {
            let wait_s = if g.gave_way { rules.again_s } else { rules.unmeasured_s };
            if g.tried_at_ms == 0 { 0 } else { g.tried_at_ms + (wait_s * 1000.0) as i64 }
        };
        let not_before_ms = records.iter().map(again).max().unwrap_or(0);
        Self { node, names, history, not_before_ms, risk, domain: domain_of(node) }
    }

    fn seen(&self, look: &Look<'_>) -> weekly::PoolNode<'_> {
        let node = self.node;
        let released = node.released_at_ms == Some(node.since_ms);
        weekly::PoolNode {
            id: node.id,
            gpus: &self.names[0],
            now: match node.state {
                NodeState::Idle if node.care.is_none() => Now::Idle { since_ms: node.since_ms, released },
                NodeState::Diagnosing => Now::Diagnosing,
                NodeState::Checking if comes(node) => Now::Coming,
                _ => Now::Away,
            },
            history: &self.history,
            risk: self.risk,
            warmth: 0.0,
            domain: self.domain.as_deref(),
            power_w: power_w(look.book, node),
            is_new: look.is_new(node),
            leaving: node.out || look.leaving.contains(&node.id),
            not_before_ms: self.not_before_ms,
            life_left_s: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet::book::{ClassRule, Gate, Identity, Limits};
    use fleet::{
        AcceptedGpu, Class, GpuModel, Interconnect, LaunchAnswer, Market, NodeState, Offer, OfferKey, OnEmpty,
        UsdMicros,
    };

    use fleet::invariants::Invariant;
    use health::weekly::Run;

    use super::super::orders::breach_of;
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// `count` idle nodes of eight GPUs, since an hour, and a class of claims of eight.
    fn fleet_of(count: u32) -> Book {
        let gpu: GpuModel = "H100-SXM".parse().expect("known");
        let name = |s: &str| s.to_owned();
        let key = OfferKey {
            provider: name("lab"),
            region: name("r"),
            zone: name("z"),
            instance_type: name("h8"),
            market: Market::OnDemand,
        };
        let mut book = Book::new(Limits::default());
        book.set_offers(vec![Offer {
            key: key.clone(),
            gpu,
            gpus_per_node: 8,
            interconnect: gpu.interconnect(),
            price_usd_micros_per_h: UsdMicros(20_000_000),
            price_day: None,
            interruption_per_h: 0.0,
        }]);
        let class = Class {
            name: name("chat"),
            gpus: vec![AcceptedGpu { model: gpu, cap: None }],
            gpus_per_claim: 8,
            multi_node: false,
            max_node_gpus: None,
            min_memory_gib: 0,
            min_interconnect: Interconnect::Pcie,
            regions: vec![],
            markets: vec![],
            hit_rate_target: 0.99,
            miss_cost_usd_micros: UsdMicros(1_000_000),
            borrows_usd_micros_per_gpu_h: None,
        };
        book.set_classes([ClassRule {
            class,
            wait_ms: 5_000,
            on_empty: OnEmpty::Queue,
            lease_ms: 60_000,
            claim_mean_s: 600.0,
        }]);
        let intent = book.intend_launch(1, &key, count, 60_000, 0).expect("known");
        book.intent_sent(intent, 0).expect("open");
        let names: Vec<String> = (0..count).map(|i| format!("i-{i}")).collect();
        book.launched(intent, &names, LaunchAnswer::Launched, "done", 0).expect("open");
        for id in book.nodes().keys().copied().collect::<Vec<_>>() {
            book.register(id, "b", 8, 0).expect("booting");
            book.gate(id, "b", &Gate::passed(), "passed", 0).expect("checking");
        }
        book
    }

    /// Records of GPUs on which everything passed at this time.
    fn tested(book: &Book, at_ms: i64) -> BTreeMap<String, GpuRecord> {
        let history = History { met_ms: 0, quick: true, full_ms: Some(at_ms), ..History::default() };
        let record = |n: &Node| {
            let serial = gpu_names(n)[0].clone();
            (serial.clone(), GpuRecord { serial, node: n.id, history: history.clone(), ..GpuRecord::default() })
        };
        book.nodes().values().map(record).collect()
    }

    fn decided(book: &Book, gpus: &BTreeMap<String, GpuRecord>, now_ms: i64) -> Orders {
        decide(book, gpus, &WeeklyMemory::default(), &Outlook::default(), &Diagnostics::default(), now_ms)
    }

    #[test]
    fn an_unproven_pool_lends_one_node_and_calls_it_back_to_see_that_it_comes() {
        let mut book = fleet_of(4);
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS);
        assert_eq!(orders.lend.len(), 1, "{orders:?}");
        let Lend { node, run, .. } = orders.lend[0].clone();
        assert_eq!((run, orders.due), (Run::Quick, 4), "new nodes are met with level 2");
        book.lend(node, "2", 2 * HOUR_MS, HOUR_MS).expect("idle");
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS + 1000);
        assert_eq!((orders.lend.len(), orders.call_back.len()), (0, 0), "one at a time");
        assert!(orders.uncounted.contains(&node), "whether it comes back in time is not known");
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS + DRILL_AFTER_MS);
        assert!(orders.call_back[0].1.contains("drill"), "{orders:?}");
        book.call_back(node, "a drill", HOUR_MS + DRILL_AFTER_MS).expect("lent");
        book.gate(node, "b", &Gate::passed(), "passed", HOUR_MS + DRILL_AFTER_MS + 9000).expect("checking");
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS + 2 * DRILL_AFTER_MS);
        assert!(!orders.lend.is_empty() && orders.uncounted.is_empty(), "it is proven now: {orders:?}");
    }

    /// Between the look and its orders claims may come: what they leave is looked at again.
    #[test]
    fn a_reserve_that_was_claimed_meanwhile_is_not_lent() {
        let mut book = fleet_of(4);
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS);
        let Lend { node, hot_nodes, .. } = orders.lend[0].clone();
        for _ in 0..3 {
            book.take_last(&BTreeSet::from([node]));
            book.claim(fleet::book::ClaimRequest::of("chat"), HOUR_MS).expect("free");
        }
        assert_eq!(orders.carry_out(&mut book, HOUR_MS), []);
        assert_eq!(book.nodes()[&node].state, NodeState::Idle, "it is the reserve now, of {hot_nodes}");
        // Planted: lent all the same.
        book.lend(node, "2", 2 * HOUR_MS, HOUR_MS).expect("idle");
        let breach = breach_of(&book, &orders.lend[0]).expect("it is seen");
        assert_eq!(breach.invariant, Invariant::Hlt3);
    }

    #[test]
    fn what_was_tested_lately_is_left_alone_and_what_is_due_is_taken_last() {
        let book = fleet_of(3);
        let gpus = tested(&book, HOUR_MS);
        let orders = decided(&book, &gpus, 2 * HOUR_MS);
        assert_eq!((orders.lend.len(), orders.due, orders.last.len()), (0, 0, 0), "{orders:?}");
        let orders = decided(&book, &gpus, 9 * 24 * HOUR_MS);
        assert_eq!((orders.due, orders.last.len()), (3, 3), "{orders:?}");
        let mut waits = gpus.clone();
        waits.values_mut().for_each(|g| (g.tried_at_ms, g.gave_way) = (9 * 24 * HOUR_MS - 1000, true));
        assert!(decided(&book, &waits, 9 * 24 * HOUR_MS).lend.is_empty(), "what gave way is not tried at once");
    }

    #[test]
    fn few_idle_nodes_are_not_lent_and_after_ten_days_the_planner_is_asked_for_another() {
        let mut book = fleet_of(2);
        let claim =
            fleet::book::ClaimRequest { on_empty: Some(OnEmpty::Fail), ..fleet::book::ClaimRequest::of("chat") };
        book.claim(claim, HOUR_MS).expect("free");
        let gpus = tested(&book, HOUR_MS);
        let orders = decided(&book, &gpus, 9 * 24 * HOUR_MS);
        assert!(orders.lend.is_empty() && orders.uncounted.is_empty(), "one is idle, and may be wanted: {orders:?}");
        let orders = decided(&book, &gpus, 11 * 24 * HOUR_MS);
        let idle = book.nodes().values().find(|n| n.state == NodeState::Idle).expect("one").id;
        assert_eq!(orders.uncounted, BTreeSet::from([idle]), "plans are made without it");
        let asked = WeeklyMemory { surge: orders.surge.clone(), ..WeeklyMemory::default() };
        let later = 11 * 24 * HOUR_MS + 600_000;
        let orders = decide(&book, &gpus, &asked, &Outlook::default(), &Diagnostics::default(), later);
        assert_eq!(orders.surge[&idle], 11 * 24 * HOUR_MS, "since it was first asked for");
        let orders = decide(&book, &tested(&book, later), &asked, &Outlook::default(), &Diagnostics::default(), later);
        assert!(orders.surge.is_empty() && orders.uncounted.is_empty(), "it was tested");
    }

    /// What comes back for a claim that waits is no reserve: it is taken as soon as it is there.
    #[test]
    fn the_reserve_is_called_back_beside_what_waiting_claims_take() {
        let mut book = fleet_of(6);
        let nodes: Vec<u64> = book.nodes().keys().copied().collect();
        for id in &nodes[2..] {
            book.lend(*id, "3", 2 * HOUR_MS, HOUR_MS).expect("idle");
        }
        let back = |book: &Book| reserve(book, &WeeklyMemory::default(), HOUR_MS).len();
        assert_eq!(back(&book), 0, "two are idle");
        let mut claim = || {
            let ask =
                fleet::book::ClaimRequest { on_empty: Some(OnEmpty::Queue), ..fleet::book::ClaimRequest::of("chat") };
            book.claim(ask, HOUR_MS).expect("it waits at worst");
            back(&book)
        };
        assert_eq!((claim(), claim()), (0, 1), "one stays idle; then none is");
        assert_eq!(claim(), 1, "the book has called one back for the claim, and the reserve wants another");
        for (id, reason) in reserve(&book, &WeeklyMemory::default(), HOUR_MS) {
            book.call_back(id, &reason, HOUR_MS).expect("lent");
        }
        assert_eq!(back(&book), 0, "they are on their way");
    }

    #[test]
    fn what_came_is_counted_by_the_window() {
        let book = fleet_of(1);
        let mut memory = WeeklyMemory::default();
        assert!(memory.arrived(&book, 45.0, HOUR_MS), "the first look begins a window");
        assert!(memory.arrivals.is_empty(), "and knows nothing of what came before");
        assert!(!memory.arrived(&book, 45.0, HOUR_MS + 44_999));
        let mut busy = fleet_of(1);
        busy.load_tally("chat".into(), fleet::book::Tally { hits: 5, misses: 2 });
        assert!(memory.arrived(&busy, 45.0, HOUR_MS + 45_000));
        assert_eq!(memory.arrivals["chat"].hot_reserve(HOUR_MS), 7);
        memory.arrived(&busy, 45.0, 3 * HOUR_MS);
        assert_eq!(memory.arrivals["chat"].hot_reserve(3 * HOUR_MS), 1, "nobody looked for hours: nothing is counted");
    }

    #[test]
    fn what_is_rolled_out_is_tested_first_on_one_node() {
        let (mut book, minute_ms) = (fleet_of(4), 60_000);
        let nodes: Vec<u64> = book.nodes().keys().copied().collect();
        let driver = |version: &str| Identity { driver: Some(version.into()), ..Identity::default() };
        nodes.iter().for_each(|id| book.identify(*id, &driver("580.1")));
        let mut memory = WeeklyMemory::default();
        memory.rollouts.look(&book, HOUR_MS);
        let gpus = tested(&book, 0);
        let at = |book: &Book, memory: &WeeklyMemory, now_ms| {
            decide(book, &gpus, memory, &Outlook::default(), &Diagnostics::default(), now_ms)
                .lend
                .into_iter()
                .map(|l| l.node)
                .collect()
        };
        let late_ms = 9 * 24 * HOUR_MS;
        let lent: Vec<u64> = at(&book, &memory, late_ms);
        assert_eq!(lent.len(), 1, "the first driver of a cell is no rollout");
        book.identify(nodes[2], &driver("590.1"));
        memory.rollouts.look(&book, late_ms);
        let lent: Vec<u64> = at(&book, &memory, late_ms + 29 * minute_ms);
        assert_eq!(lent, [nodes[2]], "its canary");
        let text = serde_json::to_string(&memory).expect("JSON");
        let again: WeeklyMemory = serde_json::from_str(&text).expect("reads");
        assert_eq!(again.rollouts, memory.rollouts, "it outlives a restart");
        book.identify(nodes[2], &driver("580.1"));
        assert!(Vec::<u64>::is_empty(&at(&book, &memory, late_ms + 29 * minute_ms)), "nobody has it any more");
        assert_eq!(Vec::<u64>::len(&at(&book, &memory, late_ms + 31 * minute_ms)), 1, "it is over");
    }

    #[test]
    fn a_name_that_changes_with_each_host_is_no_rollout() {
        let book = &mut fleet_of(12);
        let nodes: Vec<u64> = book.nodes().keys().copied().collect();
        let image = |name: String| Identity { image: Some(name), ..Identity::default() };
        book.identify(nodes[0], &image("build-0".into()));
        let mut memory = WeeklyMemory::default();
        memory.rollouts.look(book, HOUR_MS);
        let late_ms = 9 * 24 * HOUR_MS;
        let cell = Cell::of(&book.nodes()[&nodes[0]].offer);
        for (id, rollout) in nodes.iter().skip(1).zip(1..) {
            book.identify(*id, &image(format!("build-{id}")));
            memory.rollouts.look(book, late_ms);
            assert_eq!(memory.rollouts.runs(&cell, 1800.0, late_ms), rollout <= 6, "{rollout} new ones in a day");
        }
    }

    #[test]
    fn one_of_a_rack_and_what_a_site_has_power_for() {
        let mut book = fleet_of(400);
        let nodes: Vec<u64> = book.nodes().keys().copied().collect();
        // Proven to come back, so that more than one may be lent.
        book.lend(nodes[0], "2", 2 * HOUR_MS, HOUR_MS).expect("idle");
        book.call_back(nodes[0], "a drill", HOUR_MS).expect("lent");
        book.gate(nodes[0], "b", &Gate::passed(), "passed", HOUR_MS + 9000).expect("checking");
        let gpus = tested(&book, 0);
        let lent = |book: &Book, rules: &Diagnostics| {
            decide(book, &gpus, &WeeklyMemory::default(), &Outlook::default(), rules, 9 * 24 * HOUR_MS).lend.len()
        };
        let rules = Diagnostics::default();
        assert_eq!(lent(&book, &rules), 12);
        // Eight H100 are 5.6 kW.
        let site = |kw: f64| Diagnostics { site_power_w: [("lab".to_owned(), kw * 1e3)].into(), ..rules.clone() };
        assert_eq!(lent(&book, &site(600.0)), 2);
        assert_eq!(lent(&book, &site(10.0)), 1, "one in any case");
        for id in &nodes {
            book.identify(*id, &Identity { domain: Some(format!("rack-{}", id % 3)), ..Identity::default() });
        }
        assert_eq!(lent(&book, &rules), 3);
    }
}
