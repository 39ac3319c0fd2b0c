//! The weekly schedule: what it may never do, and what it must in the end.

use health::weekly::{self, History, Now, Pool, Refusal, Rules, Run, SLICES, Site, admit, due_ms};
use proptest::prelude::*;

const DAY_MS: i64 = 86_400_000;

/// A node that owns what it is made of.
#[derive(Debug, Clone)]
struct Node {
    id: u64,
    gpus: String,
    now: Now,
    history: History,
    risk: f64,
    warmth: f64,
    domain: Option<String>,
    power_w: f64,
    is_new: bool,
    leaving: bool,
}

impl Node {
    fn view(&self) -> weekly::PoolNode<'_> {
        weekly::PoolNode {
            id: self.id,
            gpus: &self.gpus,
            now: self.now,
            history: &self.history,
            risk: self.risk,
            warmth: self.warmth,
            domain: self.domain.as_deref(),
            power_w: self.power_w,
            is_new: self.is_new,
            leaving: self.leaving,
            not_before_ms: 0,
            life_left_s: None,
        }
    }
}

/// A pool that owns its nodes.
#[derive(Debug, Clone)]
struct Owned {
    nodes: Vec<Node>,
    buffer_nodes: u32,
    hot_nodes: u32,
    can_call_back: bool,
    short: bool,
    rising: bool,
    held: bool,
    rollout: bool,
    site_w: Option<f64>,
}

impl Owned {
    fn admit(&self) -> weekly::Advice {
        let busy = || self.nodes.iter().filter(|n| n.now == Now::Diagnosing);
        let pool = Pool {
            nodes: self.nodes.iter().map(Node::view).collect(),
            buffer_nodes: self.buffer_nodes,
            hot_nodes: self.hot_nodes,
            waiting_nodes: 0,
            can_call_back: self.can_call_back,
            short: self.short,
            rising: self.rising,
            held: self.held,
            rollout: self.rollout,
            canary: busy().any(|n| n.is_new),
            busy_domains: busy().filter_map(|n| n.domain.as_deref()).collect(),
            site: self.site_w.map(|power_w| Site { power_w, tested_w: busy().map(|n| n.power_w).sum() }),
        };
        admit(&pool, &Rules::default(), NOW_MS)
    }
}

fn node(id: u64, now: Now, full_days_ago: f64) -> Node {
    let full_ms = Some((100.0 * DAY_MS as f64 - full_days_ago * DAY_MS as f64) as i64);
    Node {
        id,
        gpus: format!("serial-{id}"),
        now,
        history: History { met_ms: 0, quick: true, full_ms, ..History::default() },
        risk: 0.0,
        warmth: 0.0,
        domain: None,
        power_w: 5600.0,
        is_new: false,
        leaving: false,
    }
}

const NOW_MS: i64 = 100 * DAY_MS;
const IDLE: Now = Now::Idle { since_ms: NOW_MS - 3_600_000, released: false };

fn pool(idle: u64, hot_nodes: u32, buffer_nodes: u32) -> Owned {
    let nodes = (0..idle).map(|i| node(i, IDLE, 9.0)).collect();
    Owned {
        nodes,
        buffer_nodes,
        hot_nodes,
        can_call_back: true,
        short: false,
        rising: false,
        held: false,
        rollout: false,
        site_w: None,
    }
}

#[test]
fn one_at_a_time_the_most_urgent_first_and_the_coldest_of_equals() {
    let mut p = pool(10, 2, 5);
    p.nodes[7].history.full_ms = Some(NOW_MS - 12 * DAY_MS);
    let advice = p.admit();
    assert_eq!((advice.leases.len(), advice.leases[0].node, advice.refusal), (1, 7, Refusal::Cap));
    assert_eq!(advice.leases[0].run, Run::Full);
    p.nodes[3].history.failures = 1;
    assert_eq!(p.admit().leases[0].node, 3, "what failed before comes first");
    let mut p = pool(10, 2, 5);
    p.nodes.iter_mut().for_each(|n| (n.gpus, n.warmth) = ("same".into(), 1.0));
    p.nodes[4].warmth = 0.0;
    assert_eq!(p.admit().leases[0].node, 4);
}

#[test]
fn each_condition_holds_it_back() {
    let refused = |change: fn(&mut Owned), why: Refusal| {
        let mut p = pool(10, 2, 5);
        change(&mut p);
        let advice = p.admit();
        assert_eq!((advice.leases.len(), advice.refusal), (0, why));
    };
    refused(|p| p.rollout = true, Refusal::Held);
    refused(|p| p.hot_nodes = 10, Refusal::HotReserve);
    refused(|p| p.short = true, Refusal::Demand);
    refused(|p| p.rising = true, Refusal::Demand);
    refused(|p| p.held = true, Refusal::Held);
    refused(|p| p.nodes[0].now = Now::Diagnosing, Refusal::Cap);
    refused(|p| (p.can_call_back, p.buffer_nodes) = (false, 10), Refusal::Buffer);
    refused(|p| p.nodes.iter_mut().for_each(|n| n.leaving = true), Refusal::NothingDue);
    refused(
        |p| p.nodes.iter_mut().for_each(|n| n.now = Now::Idle { since_ms: NOW_MS - 60_000, released: false }),
        Refusal::NothingDue,
    );
    refused(|p| p.nodes.iter_mut().for_each(|n| n.history.full_ms = Some(NOW_MS - DAY_MS)), Refusal::NothingDue);
}

/// Several at a time, in a large pool that is late: only what is above the reserve.
#[test]
fn each_lease_counts_against_the_reserve() {
    let advice = pool(300, 297, 10).admit();
    assert_eq!((advice.leases.len(), advice.refusal), (3, Refusal::HotReserve));
    let advice = pool(300, 10, 298).admit();
    assert_eq!((advice.leases.len(), advice.refusal), (9, Refusal::Cap), "3 % where some are late");
}

#[test]
fn small_pools_are_tested_in_slices_on_release_and_then_ask_for_one_more() {
    // The buffer is as large as the pool: a slice, which yields, and never the whole.
    let mut p = pool(3, 1, 4);
    assert_eq!(p.admit().leases[0].run, Run::Slice(SLICES[0].into()));
    for (i, name) in SLICES.iter().enumerate() {
        p.nodes[0].history.passed(&Run::Slice((*name).to_owned()), NOW_MS + i as i64);
    }
    assert_eq!(p.nodes[0].history.full_ms, Some(NOW_MS), "together they are a full pass, as old as the oldest");
    // A claim has just ended, and there is no other moment.
    let mut p = pool(2, 1, 1);
    p.nodes.iter_mut().for_each(|n| n.now = Now::Idle { since_ms: NOW_MS - 1000, released: true });
    assert_eq!(p.admit().leases.len(), 1);
    // Nothing is ever idle enough.
    let mut p = pool(1, 1, 1);
    assert!(!p.admit().surge);
    p.nodes[0].history.full_ms = Some(NOW_MS - 11 * DAY_MS);
    assert!(p.admit().surge);
    p.nodes[0].history.full_ms = Some(NOW_MS - 15 * DAY_MS);
    assert_eq!(p.admit().stale, [0]);
}

#[test]
fn a_new_node_is_looked_at_in_its_first_idle_gap_and_a_known_gpu_keeps_its_clock() {
    let rules = Rules::default();
    let mut p = pool(5, 1, 2);
    p.nodes.iter_mut().for_each(|n| n.history.full_ms = Some(NOW_MS - DAY_MS));
    p.nodes[2].history.quick = false;
    let advice = p.admit();
    assert_eq!((advice.leases[0].node, &advice.leases[0].run), (2, &Run::Quick));
    let (a, mut b) = (node(1, IDLE, 3.0), node(2, IDLE, 3.0));
    b.gpus = a.gpus.clone();
    assert_eq!(
        due_ms(a.view().gpus, a.view().history, &rules),
        due_ms(b.view().gpus, b.view().history, &rules),
        "the clock is the GPUs', whatever the node is called"
    );
}

#[test]
fn a_burst_of_claims_calls_diagnostics_back() {
    let mut p = pool(4, 3, 3);
    p.nodes[0].now = Now::Away;
    p.nodes[1].now = Now::Away;
    p.nodes[2].now = Now::Diagnosing;
    assert_eq!(p.admit().call_back, 1, "one is idle, three may be wanted, one can come back");
}

#[test]
fn racks_power_and_rollouts_let_one_through() {
    // 400 nodes may have four in diagnostics.
    let lent = |change: fn(&mut Owned)| {
        let mut p = pool(400, 2, 5);
        change(&mut p);
        let advice = p.admit();
        (advice.leases.len(), advice.refusal)
    };
    assert_eq!(lent(|_| ()), (12, Refusal::Cap), "some are late: three of a hundred");
    assert_eq!(lent(|p| p.nodes.iter_mut().for_each(|n| n.domain = Some("rack-1".into()))), (1, Refusal::Domain));
    assert_eq!(lent(|p| p.site_w = Some(1_000_000.0)), (3, Refusal::Power), "20 kW, and 5.6 for each");
    assert_eq!(lent(|p| p.site_w = Some(1000.0)), (1, Refusal::Power), "one in any case");
    let one_is_new = |p: &mut Owned| {
        p.rollout = true;
        p.nodes[17].is_new = true;
        p.nodes[18].is_new = true;
    };
    assert_eq!(lent(one_is_new), (1, Refusal::Held));
    let mut p = pool(400, 2, 5);
    one_is_new(&mut p);
    assert!([17, 18].contains(&p.admit().leases[0].node), "what was rolled out is tested");
}

fn any_node() -> impl Strategy<Value = Node> {
    (0_u8..200, 0_i64..20, any::<bool>(), 0_u64..40, any::<bool>(), 0_i64..600, any::<bool>()).prop_map(
        |(now, days, quick, domain, leaving, idle_s, is_new)| {
            let since_ms = NOW_MS - idle_s * 1000;
            // Few are in diagnostics, or the cap would hold back all others.
            let now = match now {
                0 => Now::Diagnosing,
                1..60 => Now::Away,
                other => Now::Idle { since_ms, released: other % 2 == 0 },
            };
            let mut made = node(0, now, days as f64);
            made.history.quick = quick;
            made.domain = (domain > 0).then(|| format!("rack-{domain}"));
            made.is_new = is_new;
            made.leaving = leaving;
            made
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever the pool: the hot reserve stays, the cap holds, nobody is lent who is not idle, and one of a domain at most.
    #[test]
    fn nothing_is_lent_that_is_needed(
        nodes in proptest::collection::vec(any_node(), 0..400), hot in 0_u32..200, buffer in 0_u32..200,
        can_call_back in any::<bool>(), short in any::<bool>(), held in any::<bool>(), rollout in proptest::bool::weighted(0.2),
        site_w in proptest::option::of(0.0..2e6_f64),
    ) {
        let nodes: Vec<Node> = (0..).zip(nodes).map(|(id, n)| Node { id, gpus: format!("g{id}"), ..n }).collect();
        let pool = Owned { nodes, buffer_nodes: buffer, hot_nodes: hot, can_call_back, short, rising: false, held, rollout, site_w };
        let rules = Rules::default();
        let advice = pool.admit();
        let idle = pool.nodes.iter().filter(|n| matches!(n.now, Now::Idle { .. })).count();
        let busy: Vec<&Node> = pool.nodes.iter().filter(|n| n.now == Now::Diagnosing).collect();
        let lent: Vec<&Node> = advice.leases.iter().map(|l| &pool.nodes[l.node as usize]).collect();
        prop_assert!(lent.is_empty() || idle - lent.len() >= hot as usize, "the hot reserve");
        prop_assert!(lent.is_empty() || !(short || held));
        let cap = ((rules.catch_up_share_max * pool.nodes.len() as f64) as usize).max(1);
        prop_assert!(lent.is_empty() || busy.len() + lent.len() <= cap, "the cap");
        let is_new = |all: &[&Node]| all.iter().filter(|n| n.is_new).count();
        let canary = lent.len() <= 1 && is_new(&lent) == lent.len() && is_new(&busy) == 0;
        prop_assert!(!rollout || lent.is_empty() || canary, "a rollout tests its canary alone");
        let all_w = 5600.0 * (busy.len() + lent.len()) as f64;
        let alone = busy.is_empty() && lent.len() <= 1;
        prop_assert!(lent.is_empty() || alone || site_w.is_none_or(|w| all_w <= 0.02 * w), "the site's power");
        for lease in &lent {
            let is_idle = matches!(lease.now, Now::Idle { .. });
            prop_assert!(is_idle && !lease.leaving);
            let beside = lent.iter().chain(&busy).filter(|o| o.domain.is_some() && o.domain == lease.domain).count();
            prop_assert!(beside <= 1, "one of a domain");
        }
        let whole = advice.leases.iter().any(|l| l.run == Run::Full);
        prop_assert!(!whole || idle + busy.len() >= buffer as usize, "the buffer is not lent whole");
        prop_assert!(advice.call_back as usize <= busy.len());
    }
}

/// A node is tested when each of its GPUs is; one that was put in yesterday was not tested a week ago.
#[test]
fn a_node_has_what_passed_on_all_of_its_gpus() {
    let gpu = |met: i64, full: Option<i64>, memory: Option<i64>| History {
        met_ms: met,
        quick: full.is_some(),
        full_ms: full,
        slices_ms: memory.map(|at| ("memory".to_owned(), at)).into_iter().collect(),
        failures: u32::from(full.is_none()),
    };
    let (old, new) = (gpu(1, Some(90), Some(95)), gpu(80, None, None));
    let all = History::of_all([&old, &new].into_iter()).expect("two");
    assert_eq!(all, gpu(80, None, None));
    let both = History::of_all([&old, &gpu(2, Some(70), Some(99))].into_iter()).expect("two");
    assert_eq!(both, gpu(2, Some(70), Some(95)));
    assert_eq!(History::of_all(std::iter::empty()), None);
}
