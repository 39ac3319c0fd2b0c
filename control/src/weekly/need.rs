//! What claims and the plan want of a pool while its nodes are lent.

use std::collections::{BTreeMap, BTreeSet};

use fleet::NodeState;
use fleet::book::{Book, Node};
use health::weekly::Arrivals;

use crate::plan::PlanRecord;

/// What claims and the plan want of a pool.
#[derive(Debug, PartialEq)]
pub(super) struct Need {
    pub buffer_nodes: u32,
    pub hot_nodes: u32,
    pub short: bool,
    pub rising: bool,
}

impl Need {
    pub(super) fn of(
        book: &Book,
        nodes: &[&Node],
        arrivals: &BTreeMap<String, Arrivals>,
        plan: Option<&PlanRecord>,
        now_ms: i64,
    ) -> Self {
        let offers: BTreeSet<usize> = nodes.iter().filter_map(|n| book.offer_of(n)).collect();
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
