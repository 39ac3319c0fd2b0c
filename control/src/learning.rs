//! Learns from the event log: supply from how launches ended, how long they took and how long nodes lived; and how nodes
//! fared, by place. Where it is in the log is written with what it learnt, so that a restart learns nothing twice.

use std::collections::{BTreeMap, BTreeSet};

use fleet::book::{Asked, Change, IntentChange, NodeChange, NodeFacts, What};
use fleet::{IntentState, LaunchAnswer, NodeEvent, NodeState, OfferKey};
use planner::supply::{Outcome, Rules, Supply};
use serde::{Deserialize, Serialize};

use crate::as_list;
use crate::outcomes::NodeOutcomes;

/// All that was learnt.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Learnt {
    /// The last event that was learnt from.
    pub seq: i64,
    /// By offer.
    #[serde(with = "as_list")]
    pub supply: BTreeMap<OfferKey, Supply>,
    /// Launches that are not all answered, by intent.
    open: BTreeMap<u64, Batch>,
    /// Nodes that are to be taken back: their loss is counted.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    noticed: BTreeSet<u64>,
    /// How nodes fared, by place.
    #[serde(default)]
    pub health: NodeOutcomes,
}

/// Nodes of one launch and how they ended so far.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Batch {
    offer: OfferKey,
    asked: u32,
    waiting: u32,
    outcomes: Vec<Outcome>,
}

/// What an event said.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Heard {
    /// It said something.
    pub news: bool,
    /// A node has become idle for the first time, so long after it was asked for, seconds.
    pub ready_after_s: Option<f64>,
}

impl Learnt {
    /// Learns from one event.
    pub fn hear(&mut self, change: &Change) -> Heard {
        let at_s = change.at_ms as f64 / 1000.0;
        match &change.what {
            What::Intent(intent) => Heard { news: self.intent(intent, at_s), ready_after_s: None },
            What::Node(node) => self.node(node, change.at_ms),
            What::Claim(_) | What::Copy(_) | What::Start(_) => Heard::default(),
        }
    }

    /// Whether plans go by it at once. What only counts the hours of nodes that serve on can wait for a minute.
    #[must_use]
    pub fn is_urgent(&self, change: &Change) -> bool {
        use NodeState as S;
        let goes_on = |state| matches!(state, S::Idle | S::Claimed | S::Diagnosing | S::Checking);
        match &change.what {
            What::Claim(_) | What::Copy(_) | What::Start(_) => false,
            What::Intent(_) => true,
            What::Node(node) => {
                let answers = node.to == S::Idle && self.waits(&node.node);
                answers || !goes_on(node.to) || !node.from.is_some_and(goes_on)
            }
        }
    }

    fn intent(&mut self, change: &IntentChange, at_s: f64) -> bool {
        let Asked::Launch { offer, nodes, answer } = &change.action else { return false };
        match change.to {
            IntentState::Pending if change.from.is_none() => {
                self.of(offer, at_s).asked(at_s, *nodes);
                let batch = Batch { offer: offer.clone(), asked: *nodes, waiting: *nodes, outcomes: Vec::new() };
                self.open.insert(change.id, batch);
                false
            }
            IntentState::Refused | IntentState::Partial | IntentState::Expired => {
                self.refused(change.id, answer.unwrap_or(LaunchAnswer::NoCapacity), at_s);
                true
            }
            IntentState::Pending | IntentState::Sent | IntentState::Fulfilled => false,
        }
    }

    fn node(&mut self, change: &NodeChange, at_ms: i64) -> Heard {
        use NodeState as S;
        let (node, at_s) = (&change.node, at_ms as f64 / 1000.0);
        let mut heard = Heard::default();
        if NodeOutcomes::cares(change) {
            heard.news = change.to != S::Idle;
            self.health.hear(change, at_s);
        }
        match (change.from, change.to) {
            (Some(S::Requested), S::Terminated) => {
                if let Some(batch) = node.intent.and_then(|i| self.open.get_mut(&i)) {
                    batch.waiting = batch.waiting.saturating_sub(1);
                }
            }
            (Some(S::Checking), S::Idle) if self.waits(node) => {
                let lead_s = (at_ms - node.asked_at_ms) as f64 / 1000.0;
                heard = Heard { news: true, ready_after_s: Some(lead_s) };
                self.answered(node, Outcome::Healthy { lead_s }, at_s);
            }
            (Some(S::Booting | S::Checking), S::Quarantined | S::Terminated | S::Lost | S::Terminating)
                if self.waits(node) =>
            {
                heard.news = true;
                self.answered(node, Outcome::Unhealthy, at_s);
            }
            // Its hours are counted when it has ended.
            (_, S::Draining) if change.event == Some(NodeEvent::ReclaimNoticed) => {
                self.noticed.insert(change.id);
                self.of(&node.offer, at_s).observe_life(at_s, 0.0, 1);
            }
            (Some(S::Terminating), S::Terminated) => {
                self.noticed.remove(&change.id);
                self.lived(node, at_ms, 0);
            }
            (Some(S::Idle | S::Claimed | S::Draining | S::Diagnosing), S::Terminated) => {
                let lost = u32::from(!self.noticed.remove(&change.id));
                self.lived(node, at_ms, lost);
            }
            _ => {}
        }
        heard
    }

    fn of(&mut self, offer: &OfferKey, at_s: f64) -> &mut Supply {
        self.supply.entry(offer.clone()).or_insert_with(|| Supply::new(Rules::default(), at_s, 0.9, 0.0))
    }

    /// A launch that gave fewer nodes than asked.
    fn refused(&mut self, intent: u64, answer: LaunchAnswer, at_s: f64) {
        let Some(batch) = self.open.get_mut(&intent) else { return };
        let outcome = match answer {
            LaunchAnswer::Quota | LaunchAnswer::Price | LaunchAnswer::Configuration | LaunchAnswer::Authorisation => {
                Outcome::Blocked
            }
            LaunchAnswer::TimedOut | LaunchAnswer::NoProvider => Outcome::Limited,
            // Fewer than asked.
            LaunchAnswer::NoCapacity | LaunchAnswer::Launched => Outcome::NoCapacity,
        };
        let (offer, asked) = (batch.offer.clone(), batch.asked);
        self.of(&offer, at_s).observe(at_s, asked, &[outcome]);
        if let Some(batch) = self.open.get_mut(&intent) {
            // Those that were launched still answer for themselves; the budget has had its answer.
            batch.asked = 0;
            if batch.waiting == 0 {
                self.open.remove(&intent);
            }
        }
    }

    fn waits(&self, node: &NodeFacts) -> bool {
        node.intent.is_some_and(|i| self.open.contains_key(&i))
    }

    fn answered(&mut self, node: &NodeFacts, outcome: Outcome, at_s: f64) {
        let Some(intent) = node.intent else { return };
        let Some(batch) = self.open.get_mut(&intent) else { return };
        batch.outcomes.push(outcome);
        batch.waiting = batch.waiting.saturating_sub(1);
        if batch.waiting > 0 {
            return;
        }
        if let Some(batch) = self.open.remove(&intent) {
            self.of(&batch.offer, at_s).observe(at_s, batch.asked, &batch.outcomes);
        }
    }

    fn lived(&mut self, node: &NodeFacts, at_ms: i64, lost: u32) {
        let hours = (at_ms - node.asked_at_ms) as f64 / 3.6e6;
        let at_s = at_ms as f64 / 1000.0;
        self.of(&node.offer, at_s).observe_life(at_s, hours.max(0.0), lost);
    }
}

#[cfg(test)]
mod tests {
    use fleet::book::{Book, Gate, Limits};
    use fleet::{GpuModel, Market, Offer, UsdMicros};

    use super::*;

    fn key() -> OfferKey {
        OfferKey {
            provider: "lab".into(),
            region: "r".into(),
            zone: "z".into(),
            instance_type: "h8".into(),
            market: Market::OnDemand,
        }
    }

    fn book() -> Book {
        let gpu: GpuModel = "H100-SXM".parse().expect("known");
        let mut book = Book::new(Limits::default());
        book.set_offers(vec![Offer {
            key: key(),
            gpu,
            gpus_per_node: 8,
            interconnect: gpu.interconnect(),
            price_usd_micros_per_h: UsdMicros(1),
            price_day: None,
            interruption_per_h: 0.0,
        }]);
        book
    }

    /// What was learnt of a launch of four that was answered so, after its words were changed by `reword`.
    fn learnt_of(answer: LaunchAnswer, reword: impl Fn(&str) -> String) -> String {
        let mut book = book();
        let intent = book.intend_launch(1, &key(), 4, 60_000, 0).expect("known");
        book.intent_sent(intent, 10).expect("open");
        book.launched(intent, &["i-1".into()], answer, "the provider's words", 1000).expect("open");
        let node = book.nodes().values().find(|n| n.instance.is_some()).expect("one").id;
        book.register(node, "b", 8, 2000).expect("booting");
        book.gate(node, "b", &Gate::passed(), "passed", 300_000).expect("checking");
        assert!(book.reclaim_noticed(node, 400_000) && !book.reclaim_noticed(node, 400_001));
        book.gone(node, "gone", 500_000).expect("known");
        let mut learnt = Learnt::default();
        for change in book.take_changes().events {
            learnt.hear(&Change { reason: reword(&change.reason), ..change });
        }
        assert!(learnt.open.is_empty(), "every launch is answered: {:?}", learnt.open);
        serde_json::to_string(&learnt).expect("JSON")
    }

    /// Answers and losses are heard at once; that a node is used, or tested, waits.
    #[test]
    fn what_plans_go_by_is_urgent() {
        let mut book = book();
        let intent = book.intend_launch(1, &key(), 1, 60_000, 0).expect("known");
        book.intent_sent(intent, 10).expect("open");
        book.launched(intent, &["i-1".into()], LaunchAnswer::Launched, "here", 1000).expect("open");
        let node = book.nodes().values().find(|n| n.instance.is_some()).expect("one").id;
        book.register(node, "b", 8, 2000).expect("booting");
        book.gate(node, "b", &Gate::passed(), "passed", 300_000).expect("checking");
        let boot = book.take_changes().events;
        book.lend(node, "2", 900_000, 310_000).expect("idle");
        book.call_back(node, "claims wait", 320_000).expect("lent");
        book.gate(node, "b", &Gate::passed(), "passed", 330_000).expect("checking");
        let serves = book.take_changes().events;
        book.reclaim_noticed(node, 400_000);
        book.gone(node, "gone", 500_000).expect("known");
        let loss = book.take_changes().events;
        let mut learnt = Learnt::default();
        let mut urgent = |events: &[Change]| -> Vec<bool> {
            let each = |change: &Change| {
                let urgent = learnt.is_urgent(change);
                learnt.hear(change);
                urgent
            };
            events.iter().map(each).collect()
        };
        assert!(boot.len() >= 5 && urgent(&boot).iter().all(|u| *u), "{boot:?}");
        assert!(serves.len() == 3 && !urgent(&serves).iter().any(|u| *u), "{serves:?}");
        assert!(loss.len() >= 2 && urgent(&loss).iter().all(|u| *u), "{loss:?}");
    }

    /// Words are for people: another wording teaches the same, another answer something else.
    #[test]
    fn words_teach_nothing_and_answers_do() {
        let plain = learnt_of(LaunchAnswer::NoCapacity, str::to_owned);
        assert_eq!(plain, learnt_of(LaunchAnswer::NoCapacity, |_| "quota: expired: capacity".into()));
        assert_eq!(plain, learnt_of(LaunchAnswer::NoCapacity, |_| String::new()));
        assert_ne!(plain, learnt_of(LaunchAnswer::Quota, str::to_owned), "a quota is no lack of machines");
    }
}
