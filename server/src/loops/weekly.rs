//! Weekly diagnostics: lends idle nodes to them, calls them back when idle ones become few, and says which nodes claims take
//! last. What is lent is decided by [`health::weekly`]; here it gets to know the fleet.

use std::collections::{BTreeMap, BTreeSet};

use fleet::NodeState;
use fleet::book::{Book, IntentAction, Node, cell_of};
use health::weekly::{self, Arrivals, History, Now, Pool, Run, admit, due_ms};
use serde::{Deserialize, Serialize};

use super::plan::PlanRecord;
use super::{Context, LoopError};
use crate::clock;
use crate::config::Diagnostics;
use crate::store::{Document, GpuRecord, gpu_names, write_document};

/// What is remembered from one run to the next.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    /// What came of each class within the time to yield.
    arrivals: BTreeMap<String, Arrivals>,
    /// When the present window began, milliseconds since 1970, and the claims of each class until then.
    window: (i64, BTreeMap<String, u64>),
    /// Nodes for whose test the planner was asked for another, and since when, milliseconds since 1970.
    surge: BTreeMap<u64, i64>,
}

/// Windows that were missed are not counted: nobody looked.
const MISSED_WINDOWS: i64 = 3;
/// A diagnostic that has run for so long is called back where nobody knows yet whether it comes, milliseconds.
const DRILL_AFTER_MS: i64 = 20_000;
/// The planner holds one node more for a test so long at most, milliseconds.
const SURGE_MS: i64 = 6 * 3_600_000;
/// Margin over the agent's own deadlines, milliseconds.
const MARGIN_MS: i64 = 120_000;

pub async fn run(context: Context, term: i64) -> Result<String, LoopError> {
    let rules = &*context.diagnostics;
    if !rules.enabled {
        return Ok("off".into());
    }
    if context.planning.dry_run || context.paused().await? {
        return Ok("paused".into());
    }
    let app = &context.app;
    let now_ms = clock::now_ms();
    let mut memory: Memory = match app.store.document("learnt", "weekly").await? {
        Some(document) => document.record().unwrap_or_default(),
        None => Memory::default(),
    };
    let window_over = memory.look(&app.ledger.book(), rules.yield_max_s, now_ms);
    let gpus: BTreeMap<String, GpuRecord> =
        app.store.gpus("", i64::MAX).await?.into_iter().map(|g| (g.serial.clone(), g)).collect();
    let plan: Option<PlanRecord> =
        app.store.plans(i64::MAX, 1).await?.first().and_then(|p| serde_json::from_str(&p.body).ok());
    let orders = decide(&app.ledger.book(), &gpus, &memory, plan.as_ref(), rules, now_ms);
    if window_over || memory.surge != orders.surge {
        memory.surge.clone_from(&orders.surge);
        let body = serde_json::to_string(&memory)?;
        let document = Document { kind: "learnt".into(), name: "weekly".into(), version: 0, body };
        write_document(&app.ledger, document, Some(term)).await?;
    }
    app.metrics.tested(orders.due, orders.stale);
    app.loops.set_uncounted(orders.uncounted);
    let text = format!(
        "{} due, {} stale, {} diagnosing, {} lent, {} called back{}",
        orders.due,
        orders.stale,
        orders.diagnosing,
        orders.lend.len(),
        orders.call_back.len(),
        orders.why
    );
    let changed = {
        let book = app.ledger.book();
        book.nodes().values().any(|n| n.claimed_last != orders.last.contains(&n.id))
    };
    if changed || !orders.lend.is_empty() || !orders.call_back.is_empty() {
        let (lend, call_back, last) = (orders.lend, orders.call_back, orders.last);
        let write = move |book: &mut Book, now_ms: i64| {
            // What was claimed or has ended meanwhile stays as it is.
            for (node, reason) in call_back {
                book.call_back(node, &reason, now_ms).ok();
            }
            for (node, run) in lend {
                book.lend(node, tests_of(&run), now_ms + longest_ms(&run), now_ms).ok();
            }
            book.take_last(&last);
        };
        app.ledger.write_as_leader(term, write).await?;
    }
    Ok(text)
}

impl Memory {
    /// Notes what came in the window that is over. Returns whether one is.
    fn look(&mut self, book: &Book, window_s: f64, now_ms: i64) -> bool {
        let window_ms = (window_s * 1000.0) as i64;
        let passed_ms = now_ms - self.window.0;
        if (0..window_ms).contains(&passed_ms) {
            return false;
        }
        let now: BTreeMap<String, u64> = book.tallies().iter().map(|(k, t)| (k.clone(), t.hits + t.misses)).collect();
        if (0..MISSED_WINDOWS * window_ms).contains(&passed_ms) {
            let windows = u32::try_from(passed_ms / window_ms).unwrap_or(1).max(1);
            for (class, claims) in &now {
                let came = claims.saturating_sub(self.window.1.get(class).copied().unwrap_or(0));
                let each = u32::try_from(came).unwrap_or(u32::MAX).div_ceil(windows);
                self.arrivals.entry(class.clone()).or_default().saw(now_ms, each);
            }
        }
        self.arrivals.retain(|class, _| book.classes().contains_key(class));
        self.window = (now_ms, now);
        true
    }
}

/// As the agent takes it.
fn tests_of(run: &Run) -> &str {
    match run {
        Run::Quick => "2",
        Run::Full => "3",
        Run::Slice(name) => name,
    }
}

/// When it is over in any case: the agent's deadlines, and some time to start.
fn longest_ms(run: &Run) -> i64 {
    let minutes = match run {
        Run::Quick => 15,
        Run::Full => 40,
        Run::Slice(_) => 10,
    };
    // What asks for it is repeated.
    2 * minutes * 60_000 + MARGIN_MS
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
struct Orders {
    lend: Vec<(u64, Run)>,
    call_back: Vec<(u64, String)>,
    /// Nodes that claims take last.
    last: BTreeSet<u64>,
    /// Nodes that the planner is not to count: those of which nobody knows whether they come back in time, and those for
    /// whose test it is asked for another.
    uncounted: BTreeSet<u64>,
    /// Those for whose test it is asked for another, and since when, milliseconds since 1970.
    surge: BTreeMap<u64, i64>,
    due: usize,
    stale: usize,
    diagnosing: usize,
    why: String,
}

/// Cloud, region, zone, instance type.
type Place<'a> = (&'a str, &'a str, &'a str, &'a str);

fn place(node: &Node) -> Place<'_> {
    let o = &node.offer;
    (&o.provider, &o.region, &o.zone, &o.instance_type)
}

/// Looks at each pool.
fn decide(
    book: &Book,
    gpus: &BTreeMap<String, GpuRecord>,
    memory: &Memory,
    plan: Option<&PlanRecord>,
    rules: &Diagnostics,
    now_ms: i64,
) -> Orders {
    let mut pools: BTreeMap<Place<'_>, Vec<&Node>> = BTreeMap::new();
    for node in book.nodes().values() {
        pools.entry(place(node)).or_default().push(node);
    }
    let leaving: BTreeSet<u64> = book
        .intents()
        .values()
        .filter_map(|i| match i.action {
            IntentAction::Terminate { node } => Some(node),
            IntentAction::Launch { .. } => None,
        })
        .collect();
    let mut orders = Orders::default();
    let held = book.held_cells();
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    for nodes in pools.values() {
        let serving: Vec<&Node> = nodes.iter().copied().filter(|n| n.state.in_service() || n.gate_is_short()).collect();
        if serving.is_empty() {
            continue;
        }
        let known: Vec<Known<'_>> = serving.iter().map(|n| Known::of(n, gpus, rules, now_ms)).collect();
        let need = Need::of(book, nodes, &memory.arrivals, plan, now_ms);
        let limit_ms = rules.yield_max_s * 1000.0;
        let yields: Vec<f64> = serving.iter().filter_map(|n| n.yield_ms).map(|ms| ms as f64).collect();
        // One slow host does not speak for its pool, but half of them do.
        let in_time = yields.iter().filter(|ms| **ms <= limit_ms).count();
        let proven = in_time > 0 && 2 * in_time >= yields.len();
        let pool = Pool {
            nodes: known.iter().map(|k| k.seen(&leaving)).collect(),
            buffer_nodes: need.buffer_nodes,
            hot_nodes: need.hot_nodes,
            yields: proven,
            short: need.short,
            rising: need.rising,
            held: held.contains(cell_of(&serving[0].offer).as_str()),
        };
        let diagnosing: Vec<&Node> = serving.iter().copied().filter(|n| n.state == NodeState::Diagnosing).collect();
        let advice = admit(&pool, &rules.rules, now_ms);
        let due = |k: &&Known<'_>| !k.history.quick || due_ms(&k.names[0], &k.history, &rules.rules) <= now_ms;
        let late: Vec<u64> = known.iter().filter(due).map(|k| k.node.id).collect();
        orders.due += late.len();
        orders.stale += advice.stale.len();
        orders.diagnosing += diagnosing.len();
        orders.last.extend(&late);
        if advice.surge {
            let longest =
                known.iter().filter(|k| k.node.state == NodeState::Idle).min_by_key(|k| k.history.tested_ms());
            orders.surge.extend(longest.map(|k| (k.node.id, now_ms)));
        }
        // Once asked for, it stays until the test has been: the node that comes for it is not to go before.
        let asked = late.iter().filter_map(|id| Some((*id, *memory.surge.get(id)?)));
        orders.surge.extend(asked.filter(|(_, since_ms)| now_ms - since_ms < SURGE_MS));
        orders.uncounted.extend(late.iter().filter(|id| orders.surge.contains_key(id)));
        // The newest first: they lose the least.
        let mut back: Vec<&Node> = diagnosing.clone();
        back.sort_by_key(|n| std::cmp::Reverse(n.since_ms));
        let yielding =
            back.iter().take(advice.yields as usize).map(|n| (n.id, "idle nodes have become few".to_owned()));
        orders.call_back.extend(yielding);
        if !proven {
            orders.uncounted.extend(diagnosing.iter().map(|n| n.id));
            // Each node once: where all are slow, tests still come to their end.
            let due = |n: &&&Node| n.yield_ms.is_none() && now_ms - n.since_ms >= DRILL_AFTER_MS;
            let drilled = back.iter().skip(advice.yields as usize).find(due);
            let reason = "a drill: how soon it is back is not known here yet";
            orders.call_back.extend(drilled.map(|n| (n.id, reason.to_owned())));
        }
        // One at a time until it is known to come back.
        let room = if proven { usize::MAX } else { 1_usize.saturating_sub(diagnosing.len()) };
        orders.lend.extend(advice.leases.into_iter().take(room).map(|l| (l.node, l.run)));
        *refusals.entry(format!("{:?}", advice.refusal)).or_default() += 1;
    }
    let told: Vec<String> = refusals.into_iter().map(|(why, pools)| format!("{why} {pools}")).collect();
    orders.why = if told.is_empty() { String::new() } else { format!("; pools: {}", told.join(", ")) };
    orders
}

/// A node with what is known of its GPUs.
struct Known<'a> {
    node: &'a Node,
    names: Vec<String>,
    history: History,
    not_before_ms: i64,
    risk: f64,
}

impl<'a> Known<'a> {
    fn of(node: &'a Node, gpus: &BTreeMap<String, GpuRecord>, rules: &Diagnostics, now_ms: i64) -> Self {
        let names = gpu_names(node);
        let records: Vec<&GpuRecord> = names.iter().filter_map(|n| gpus.get(n)).collect();
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
        Self { node, names, history, not_before_ms, risk }
    }

    fn seen(&self, leaving: &BTreeSet<u64>) -> weekly::Node<'_> {
        let node = self.node;
        let released = node.released_at_ms == Some(node.since_ms);
        weekly::Node {
            id: node.id,
            gpus: &self.names[0],
            now: match node.state {
                NodeState::Idle if node.care.is_none() => Now::Idle { since_ms: node.since_ms, released },
                NodeState::Diagnosing => Now::Diagnosing,
                _ => Now::Away,
            },
            history: &self.history,
            risk: self.risk,
            warmth: 0.0,
            domain: None,
            leaving: node.out || leaving.contains(&node.id),
            not_before_ms: self.not_before_ms,
            life_left_s: None,
        }
    }
}

/// What claims and the plan want of a pool.
#[derive(Debug, PartialEq)]
struct Need {
    buffer_nodes: u32,
    hot_nodes: u32,
    short: bool,
    rising: bool,
}

impl Need {
    fn of(
        book: &Book,
        nodes: &[&Node],
        arrivals: &BTreeMap<String, Arrivals>,
        plan: Option<&PlanRecord>,
        now_ms: i64,
    ) -> Self {
        let offers: BTreeSet<usize> = nodes.iter().filter_map(|n| book.offer(&n.offer)).collect();
        let served = |class: &str| book.offers_of(class).iter().any(|p| offers.contains(p));
        let classes: Vec<&str> = book.classes().keys().map(String::as_str).filter(|k| served(k)).collect();
        let gpus = nodes.iter().map(|n| n.gpus).max().unwrap_or(1).max(1);
        let in_nodes = |class: &str, claims: u32| {
            let each = book.classes().get(class).map_or(1, |r| r.class.gpus_per_claim);
            claims.saturating_mul(each).div_ceil(gpus)
        };
        let reserve = |class: &&str| arrivals.get(*class).map_or(1, |a| a.hot_reserve(now_ms));
        let hot_nodes = classes.iter().map(|k| in_nodes(k, reserve(k))).sum::<u32>().max(1);
        let waits = classes.iter().any(|k| book.queue(k) > 0);
        let arrives = nodes.iter().any(|n| n.state.is_arriving() && !n.gate_is_short());
        let claimed = nodes.iter().filter(|n| n.state == NodeState::Claimed).count() as f64;
        let meant: f64 = plan
            .iter()
            .flat_map(|p| &p.plan.targets)
            .filter(|t| book.offer(&t.offer).is_some_and(|p| offers.contains(&p)))
            .filter_map(|t| t.nodes.get(1).or(t.nodes.first()))
            .sum();
        Self {
            buffer_nodes: (meant - claimed).round().max(0.0) as u32,
            hot_nodes,
            short: waits || arrives,
            rising: plan.is_some_and(|p| rises(p, &classes)),
        }
    }
}

/// Whether the plan expects a fifth more claims of these classes in its second period than in its first.
fn rises(plan: &PlanRecord, classes: &[&str]) -> bool {
    let input = &plan.input;
    let of = |t: usize| -> f64 {
        let path = |s: &planner::input::Scenario| {
            let row = s.claims.get(t);
            let mine = input.classes.iter().enumerate().filter(|(_, c)| classes.contains(&c.name.as_str()));
            s.weight * mine.filter_map(|(k, _)| row?.get(k)).sum::<f64>()
        };
        input.scenarios.iter().map(path).sum()
    };
    let (now, next) = (of(0), of(1));
    next > 1.2 * now && next > now + 1.0
}

#[cfg(test)]
mod tests {
    use fleet::book::{ClassRule, Gate, Limits};
    use fleet::{AcceptedGpu, Class, GpuModel, Interconnect, Market, NodeState, Offer, OfferKey, OnEmpty, UsdMicros};

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
        book.launched(intent, &names, "done", 0).expect("open");
        for id in book.nodes().keys().copied().collect::<Vec<_>>() {
            book.register(id, "b", 8, 0).expect("booting");
            book.gate(id, "b", &Gate::Passed, "passed", 0).expect("checking");
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
        decide(book, gpus, &Memory::default(), None, &Diagnostics::default(), now_ms)
    }

    #[test]
    fn an_unproven_pool_lends_one_node_and_calls_it_back_to_see_that_it_comes() {
        let mut book = fleet_of(4);
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS);
        assert_eq!(orders.lend.len(), 1, "{orders:?}");
        let (node, run) = orders.lend[0].clone();
        assert_eq!((run, orders.due), (Run::Quick, 4), "new nodes are met with level 2");
        book.lend(node, "2", 2 * HOUR_MS, HOUR_MS).expect("idle");
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS + 1000);
        assert_eq!((orders.lend.len(), orders.call_back.len()), (0, 0), "one at a time");
        assert!(orders.uncounted.contains(&node), "whether it comes back in time is not known");
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS + DRILL_AFTER_MS);
        assert!(orders.call_back[0].1.contains("drill"), "{orders:?}");
        book.call_back(node, "a drill", HOUR_MS + DRILL_AFTER_MS).expect("lent");
        book.gate(node, "b", &Gate::Passed, "passed", HOUR_MS + DRILL_AFTER_MS + 9000).expect("checking");
        let orders = decided(&book, &BTreeMap::new(), HOUR_MS + 2 * DRILL_AFTER_MS);
        assert!(!orders.lend.is_empty() && orders.uncounted.is_empty(), "it is proven now: {orders:?}");
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
        let claim = fleet::book::ClaimRequest {
            class: "chat".into(),
            count: 1,
            key: None,
            digest: String::new(),
            holder: "test".into(),
            on_empty: Some(OnEmpty::Fail),
            wait_ms: None,
            lease_ms: None,
            answer_by_ms: None,
        };
        book.claim(claim, HOUR_MS).expect("free");
        let gpus = tested(&book, HOUR_MS);
        let orders = decided(&book, &gpus, 9 * 24 * HOUR_MS);
        assert!(orders.lend.is_empty() && orders.uncounted.is_empty(), "one is idle, and may be wanted: {orders:?}");
        let orders = decided(&book, &gpus, 11 * 24 * HOUR_MS);
        let idle = book.nodes().values().find(|n| n.state == NodeState::Idle).expect("one").id;
        assert_eq!(orders.uncounted, BTreeSet::from([idle]), "plans are made without it");
        let asked = Memory { surge: orders.surge.clone(), ..Memory::default() };
        let later = 11 * 24 * HOUR_MS + 600_000;
        let orders = decide(&book, &gpus, &asked, None, &Diagnostics::default(), later);
        assert_eq!(orders.surge[&idle], 11 * 24 * HOUR_MS, "since it was first asked for");
        let orders = decide(&book, &tested(&book, later), &asked, None, &Diagnostics::default(), later);
        assert!(orders.surge.is_empty() && orders.uncounted.is_empty(), "it was tested");
    }

    #[test]
    fn what_came_is_counted_by_the_window() {
        let book = fleet_of(1);
        let mut memory = Memory::default();
        assert!(memory.look(&book, 45.0, HOUR_MS), "the first look begins a window");
        assert!(memory.arrivals.is_empty(), "and knows nothing of what came before");
        assert!(!memory.look(&book, 45.0, HOUR_MS + 44_999));
        let mut busy = fleet_of(1);
        busy.load_tally("chat".into(), fleet::book::Tally { hits: 5, misses: 2 });
        assert!(memory.look(&busy, 45.0, HOUR_MS + 45_000));
        assert_eq!(memory.arrivals["chat"].hot_reserve(HOUR_MS), 7);
        memory.look(&busy, 45.0, 3 * HOUR_MS);
        assert_eq!(memory.arrivals["chat"].hot_reserve(3 * HOUR_MS), 1, "nobody looked for hours: nothing is counted");
    }
}
