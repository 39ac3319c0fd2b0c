//! Spare nodes stay for as long as starting them again would be paid for, and go at once where they are in the way.

use planner::gather::{Estimate, Observed, ObservedNode, nodes_to_release, plan_input};
use planner::input::{LeadTime, Policy, Quota, Scenario};
use planner::plan::Plan;
use planner::planning::{Options, plan};

use crate::tiny::{class, offer};

const LEAD_S: f64 = 300.0;
const PERIODS_S: [u32; 4] = [60, 120, 300, 600];

struct World {
    claims: f64,
    idle_nodes: [usize; 2],
    quotas: Vec<Quota>,
}

impl World {
    /// The plan of this moment; the parent is `ago_s` seconds old.
    fn plan(&self, epoch: u64, parent: Option<(&Plan, f64)>) -> Plan {
        let offers = [offer(0, 0, "H100", 1, 3.0, false).offer, offer(1, 0, "A100", 1, 3.0, false).offer];
        let estimate = Estimate {
            launch_limit_nodes: 100.0,
            fill: 1.0,
            lead_time: LeadTime::fixed(LEAD_S),
            hazard_per_h: 0.0,
            usable_share: 1.0,
            faults_per_h: 0.0,
            restage_usd_micros: fleet::UsdMicros::ZERO,
            min_hold_s: 0,
        };
        let node = |offer: usize| ObservedNode {
            offer,
            age_s: 9000.0,
            healthy: true,
            claims: vec![],
            copies_usd_micros: fleet::UsdMicros::ZERO,
        };
        let nodes: Vec<ObservedNode> = (0..2).flat_map(|p| (0..self.idle_nodes[p]).map(move |_| node(p))).collect();
        let claims = vec![vec![self.claims]; PERIODS_S.len()];
        let input = plan_input(
            &Observed {
                borrowers: &[],
                epoch,
                period_s: &PERIODS_S,
                offers: &offers,
                estimates: &[estimate.clone(), estimate],
                classes: &[class(0, &["H100"], 1)],
                miss_prices: &[],
                claim_mean_s: &[3600.0],
                nodes: &nodes,
                quotas: &self.quotas,
                commitments: &[],
                policy: &Policy::default(),
                parent,
            },
            vec![Scenario { weight: 1.0, new_claims: claims.clone(), claims }],
        );
        plan(&input, Options::default()).expect("a plan")
    }
}

fn released(plan: &Plan) -> u32 {
    plan.releases.iter().map(|r| r.nodes).sum()
}

fn spare(plan: &Plan) -> usize {
    plan.spare.iter().map(|s| s.since_s.len()).sum()
}

#[test]
fn they_go_when_waiting_has_cost_as_much_as_a_boot() {
    let world = World { claims: 2.0, idle_nodes: [6, 0], quotas: vec![] };
    assert_eq!(released(&world.plan(1, None)), 4, "nothing to be true to: at once");
    // The same nodes without the release: a plan that just learnt of them.
    let mut parent = World { claims: 6.0, ..world }.plan(1, None);
    let world = World { claims: 2.0, idle_nodes: [6, 0], quotas: vec![] };
    let mut held_s = 0.0;
    for epoch in 2..20 {
        let next = world.plan(epoch, Some((&parent, 60.0)));
        if released(&next) > 0 {
            assert_eq!((released(&next), spare(&next)), (4, 0));
            break;
        }
        assert_eq!(spare(&next), 4);
        parent = next;
        held_s += 60.0;
    }
    assert_eq!(held_s, LEAD_S);
}

#[test]
fn one_that_is_needed_again_begins_anew() {
    let idle_nodes = [6, 0];
    let few = |claims: f64| World { claims, idle_nodes, quotas: vec![] };
    let all = few(6.0).plan(1, None);
    let two_spare = few(4.0).plan(2, Some((&all, 60.0)));
    let one_spare = few(5.0).plan(3, Some((&two_spare, 200.0)));
    let again = few(4.0).plan(4, Some((&one_spare, 200.0)));
    assert_eq!((released(&again), spare(&again)), (1, 1), "only the one that was spare all the time goes");
}

#[test]
fn they_go_at_once_where_their_room_is_needed() {
    let quota = |limit: f64| vec![Quota { name: "all".into(), members: vec![(0, 1.0), (1, 1.0)], limit }];
    // The six of the second offer serve nobody; the first parent holds on to what it has just learnt of.
    let with = |claims: f64, limit: f64| World { claims, idle_nodes: [0, 6], quotas: quota(limit) };
    let mut parent = with(0.0, 10.0).plan(1, None);
    parent.releases.clear();
    let held = with(0.0, 10.0).plan(2, Some((&parent, 60.0)));
    assert_eq!((released(&held), spare(&held)), (0, 6), "nothing is launched: nothing is in the way");
    let needed = with(4.0, 6.0).plan(2, Some((&parent, 60.0)));
    assert_eq!(needed.launches.iter().map(|l| l.nodes).sum::<u32>(), 4);
    assert!(released(&needed) >= 4, "{:?}", needed.releases);
}

/// Nodes go whose copies are worth least, and of equals the oldest.
#[test]
fn copies_are_given_back_last() {
    let world = World { claims: 1.0, idle_nodes: [4, 0], quotas: vec![] };
    let plan = world.plan(1, None);
    assert_eq!(released(&plan), 3);
    let offers = [offer(0, 0, "H100", 1, 3.0, false).offer];
    let node = |age_s: f64, cents: i64| ObservedNode {
        offer: 0,
        age_s,
        healthy: true,
        claims: vec![],
        copies_usd_micros: fleet::UsdMicros(cents * 10_000),
    };
    let nodes = [node(90.0, 5), node(10.0, 0), node(20.0, 0), node(10.0, 2)];
    assert_eq!(nodes_to_release(&plan, &offers, &nodes), [2, 1, 3]);
}
