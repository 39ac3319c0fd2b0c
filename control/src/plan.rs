//! What a plan becomes: the record that is written down, and the intents that carry it out.

use fleet::book::{Book, Node};
use fleet::invariants::{Breach, Invariant};
use fleet::{NodeState, OfferKey, UsdMicros};
use planner::input::PlanInput;
use planner::plan::{Launch, Plan};
use protocol::BudgetSpec;
use serde::{Deserialize, Serialize};

/// A plan with what it was made from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanRecord {
    /// The plan.
    pub plan: Plan,
    /// Its input, so that it can be made again and asked what if.
    pub input: PlanInput,
    /// What was done with it.
    pub acted: Acted,
}

/// What was done with a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acted {
    /// It is carried out.
    Yes,
    /// It is only shown.
    DryRun,
    /// It was made while acting was paused.
    Paused,
}

impl Acted {
    /// The word used in output.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::DryRun => "dry-run",
            Self::Paused => "paused",
        }
    }
}

/// What a plan asks for, within what an operator allows.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Number of the plan.
    pub epoch: u64,
    /// Nodes to launch.
    pub launches: &'a [Launch],
    /// Nodes to give back.
    pub releases: &'a [u64],
    /// The operator's guards.
    pub budget: &'a BudgetSpec,
    /// A launch that has no answer after this time is given up, milliseconds.
    pub launch_expires_ms: i64,
}

/// What was intended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Intended {
    /// Nodes that will be launched.
    pub launched: u32,
    /// Nodes that will be given back.
    pub released: u32,
    /// Launches that a guard holds back.
    pub held_back: Vec<HeldBack>,
    /// Guards that are passed by what was launched all the same: none, but for a bug.
    pub breaches: Vec<Breach>,
}

/// Launches that a guard holds back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// Of which offer.
    pub offer: OfferKey,
    /// How many nodes.
    pub nodes: u32,
    /// By which guard.
    pub by: Guard,
}

/// A limit that holds whatever a plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Dollars an hour.
    Spend,
    /// Nodes a minute.
    Launches,
}

impl Guard {
    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spend => "spend guard",
            Self::Launches => "launch guard",
        }
    }
}

const MINUTE_MS: i64 = 60_000;
/// More nodes than a guard ever lets through.
const NODES_MAX: f64 = 1e6;

/// Writes the intents of a plan, within the operator's guards (CAP-6).
pub fn intend(book: &mut Book, wanted: &Wanted<'_>, now_ms: i64) -> Intended {
    let mut done = Intended::default();
    for node in rather_idle(book, wanted.releases) {
        // One that was claimed meanwhile stays.
        done.released += u32::from(book.intend_release(wanted.epoch, node, now_ms).is_ok());
    }
    let price =
        |book: &Book, key: &OfferKey| book.offer(key).map_or(0.0, |p| book.offers()[p].price_usd_micros_per_h.usd());
    let billed = |n: &&Node| n.state.is_billed() || n.state == NodeState::Requested;
    let mut spend_usd_per_h: f64 = book.nodes().values().filter(billed).map(|n| price(book, &n.offer)).sum();
    let recent = |n: &&Node| now_ms - n.asked_at_ms < MINUTE_MS;
    let asked = u32::try_from(book.nodes().values().filter(recent).count()).unwrap_or(u32::MAX);
    let mut room = wanted.budget.launch_guard_nodes_per_min.saturating_sub(asked);
    for launch in wanted.launches {
        let each = price(book, &launch.offer);
        let affordable = match wanted.budget.spend_guard_usd_per_h {
            Some(guard) if each > 0.0 => ((guard - spend_usd_per_h) / each).floor().clamp(0.0, NODES_MAX) as u32,
            _ => u32::MAX,
        };
        let nodes = launch.nodes.min(room).min(affordable);
        if nodes < launch.nodes {
            let by = if affordable < launch.nodes.min(room) { Guard::Spend } else { Guard::Launches };
            let nodes = launch.nodes - nodes;
            done.held_back.push(HeldBack { offer: launch.offer.clone(), nodes, by });
        }
        let asked =
            |book: &mut Book| book.intend_launch(wanted.epoch, &launch.offer, nodes, wanted.launch_expires_ms, now_ms);
        if nodes > 0 && asked(book).is_ok() {
            done.launched += nodes;
            room -= nodes;
            spend_usd_per_h += each * f64::from(nodes);
        }
    }
    if done.launched > 0 {
        // What costs nothing is launched above a guard on money too.
        let paid = wanted.launches.iter().any(|launch| price(book, &launch.offer) > 0.0);
        done.breaches = breaches(book, wanted.budget, paid, now_ms);
    }
    done
}

/// CAP-6, counted anew after launches. What stood above a guard before is no breach: nothing is launched then.
fn breaches(book: &Book, budget: &BudgetSpec, paid: bool, now_ms: i64) -> Vec<Breach> {
    let mut spend = UsdMicros::ZERO;
    let mut asked = 0_u32;
    for node in book.nodes().values() {
        if node.state.is_billed() || node.state == NodeState::Requested {
            let price = book.offer(&node.offer).map_or(UsdMicros::ZERO, |p| book.offers()[p].price_usd_micros_per_h);
            spend.0 = spend.0.saturating_add(price.0);
        }
        asked += u32::from(now_ms - node.asked_at_ms < MINUTE_MS);
    }
    let mut found = Vec::new();
    if let Some(guard) = budget.spend_guard_usd_per_h.filter(|guard| paid && spend.usd() > guard + 1e-6) {
        let what = format!("{:.2} $/h after a launch, of {guard:.2}", spend.usd());
        found.push(Breach::new(Invariant::Cap6, what));
    }
    if asked > budget.launch_guard_nodes_per_min {
        let what = format!("{asked} nodes in a minute, of {}", budget.launch_guard_nodes_per_min);
        found.push(Breach::new(Invariant::Cap6, what));
    }
    found
}

/// The same nodes, but idle ones in place of those in diagnostics, whose test would be for nothing, and of those that are lent.
fn rather_idle(book: &Book, releases: &[u64]) -> Vec<u64> {
    let state = |id: &u64| book.nodes().get(id).map(|n| (n.state, &n.offer));
    let mut chosen: Vec<u64> = releases.to_vec();
    for at in 0..chosen.len() {
        let Some((NodeState::Diagnosing | NodeState::Claimed, offer)) = state(&chosen[at]) else { continue };
        let free = |n: &&Node| n.state == NodeState::Idle && n.offer == *offer && !chosen.contains(&n.id);
        if let Some(idle) = book.nodes().values().find(free).map(|n| n.id) {
            chosen[at] = idle;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use fleet::book::Limits;
    use fleet::{GpuModel, Market, Offer};

    use super::*;

    /// Nodes of eight GPUs at $20 an hour.
    fn market() -> (Book, OfferKey) {
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
        (book, key)
    }

    fn launched(book: &mut Book, offer: &OfferKey, nodes: u32, budget: &BudgetSpec) -> Intended {
        let launches = [Launch { offer: offer.clone(), nodes }];
        let wanted = Wanted { epoch: 1, launches: &launches, releases: &[], budget, launch_expires_ms: 60_000 };
        intend(book, &wanted, 1000)
    }

    #[test]
    fn guards_hold_launches_back_and_a_guard_that_is_passed_is_a_breach() {
        let spend = BudgetSpec { spend_guard_usd_per_h: Some(70.0), ..BudgetSpec::default() };
        let rate = BudgetSpec { launch_guard_nodes_per_min: 2, ..BudgetSpec::default() };
        for (budget, most) in [(&spend, 3), (&rate, 2)] {
            let (mut book, offer) = market();
            let done = launched(&mut book, &offer, 5, budget);
            assert_eq!((done.launched, done.held_back.len(), done.breaches.len()), (most, 1, 0), "{done:?}");
            // Planted: one that no guard saw.
            book.intend_launch(1, &offer, 1, 60_000, 1000).expect("an offer");
            let found = breaches(&book, budget, true, 1000);
            assert_eq!(found.iter().map(|b| b.invariant).collect::<Vec<_>>(), [Invariant::Cap6], "{found:?}");
        }
    }
}
