//! How nodes fared, by place: boots, faults, hours in service, repairs; and the rates that plans are told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fleet::book::{Book, Held, NodeChange, NodeFacts};
use fleet::{Cell, NodeState, OfferKey};
use health::gate::{HOSTS_MIN as LIMITS_HOSTS_MIN, Learned, medians};
use health::rates::{self, Brief, Counts, FAULTS_PER_GPU_H, Place, Places, Rates, Told};
use serde::{Deserialize, Serialize};

use crate::as_list;

/// What was counted of nodes that boot, serve, break and are mended, by place; and what plans are told of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeOutcomes {
    /// What was counted.
    #[serde(with = "as_list")]
    counts: BTreeMap<Place, Counts>,
    /// What plans are told.
    #[serde(with = "as_list")]
    told: BTreeMap<Place, Told>,
    /// What hosts of a kind were measured at, by cloud and instance type, and node.
    #[serde(with = "as_list")]
    hosts: BTreeMap<Kind, BTreeMap<u64, BTreeMap<String, f64>>>,
    /// Nodes that have passed their first gate or failed it: a boot is counted once.
    booted: BTreeSet<u64>,
    /// Nodes in service.
    serving: BTreeMap<u64, Serving>,
    /// Nodes that are out: since when, seconds since 1970.
    out: BTreeMap<u64, f64>,
    /// When what is told was last looked at, seconds since 1970.
    told_at_s: f64,
    /// Common causes that are held: what fails for them is not a place's.
    #[serde(skip)]
    held: Held,
    /// GPU model of each cloud's instance types.
    #[serde(skip)]
    gpus: BTreeMap<Kind, String>,
}

/// Cloud and instance type.
type Kind = (String, String);

/// A node in service.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Serving {
    /// Shared, so that what was learnt of a thousand nodes is copied at little cost.
    #[serde(with = "shared")]
    place: Arc<Place>,
    gpus: u32,
    /// Since when its hours are not counted yet, seconds since 1970.
    since_s: f64,
}

/// What is shared in memory is written out each time.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &Arc<T>, to: S) -> Result<S::Ok, S::Error> {
        (**value).serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Arc<T>, D::Error> {
        T::deserialize(from).map(Arc::new)
    }
}

/// Where nothing happens rates are looked at this often, seconds.
const FADES_S: f64 = 3600.0;
/// Hosts of a kind whose numbers are kept.
const HOSTS_MAX: usize = 200;
/// Hosts of a kind from which it is said how fast one is.
const HOSTS_MIN: usize = 5;

/// Where an offer is.
#[must_use]
pub fn place_of(offer: &OfferKey, gpu: &str) -> Place {
    Place {
        provider: offer.provider.clone(),
        region: offer.region.clone(),
        instance_type: offer.instance_type.clone(),
        gpu: gpu.to_owned(),
    }
}

fn kind_of(offer: &OfferKey) -> Kind {
    (offer.provider.clone(), offer.instance_type.clone())
}

impl NodeOutcomes {
    /// What is sold, and which causes are held now.
    pub fn know(&mut self, book: &Book) {
        self.held = book.held().clone();
        self.gpus = book.offers().iter().map(|o| (kind_of(&o.key), o.gpu.to_string())).collect();
    }

    fn place(&self, node: &NodeFacts) -> Place {
        place_of(&node.offer, self.gpus.get(&kind_of(&node.offer)).map_or("", String::as_str))
    }

    fn at(&mut self, node: &NodeFacts, at_s: f64) -> &mut Counts {
        let counts = self.counts.entry(self.place(node)).or_default();
        counts.age(at_s);
        counts
    }

    /// What fails for a cause that is held is not its place's.
    fn is_excused(&self, node: &NodeFacts) -> bool {
        self.held.of(&Cell::of(&node.offer), &node.causes, None).is_some()
    }

    /// Whether a change of a node's state says how it fared.
    #[must_use]
    pub fn cares(change: &NodeChange) -> bool {
        use NodeState as S;
        (change.from, change.to) == (Some(S::Checking), S::Idle)
            || matches!(change.to, S::Quarantined | S::Repairing | S::Lost | S::Terminating | S::Terminated)
    }

    /// A node was there before anybody looked: its boot says nothing, and its hours count from when it serves.
    pub fn is_there(&mut self, node: u64) {
        self.booted.insert(node);
    }

    /// A node went from one state to another, of those that [`Self::cares`] knows.
    pub fn hear(&mut self, change: &NodeChange, at_s: f64) {
        use NodeState as S;
        let (id, node) = (change.id, &change.node);
        match (change.from, change.to) {
            (_, S::Idle) => self.in_service(id, node, at_s),
            (Some(S::Booting | S::Checking), _) if !self.booted.contains(&id) => {
                self.booted.insert(id);
                if !self.is_excused(node) {
                    self.at(node, at_s).boots += 1.0;
                }
            }
            // It is out already: what was found then was counted then.
            (Some(S::Quarantined), S::Repairing) => {
                self.out.entry(id).or_insert(at_s);
            }
            (_, S::Quarantined | S::Repairing) => self.broke(id, node, at_s),
            _ => {}
        }
        if change.to != S::Idle {
            self.count_hours(id, at_s);
            self.serving.remove(&id);
        }
        if matches!(change.to, S::Terminating | S::Terminated) {
            self.booted.remove(&id);
            if let Some(since_s) = self.out.remove(&id) {
                self.out_for(node, at_s - since_s, at_s);
            }
        }
        if change.to == S::Idle && !node.rates.is_empty() {
            self.measured(id, node, &node.rates, at_s);
        }
    }

    /// It passed its gate: the first time it has booted, later it has been repaired.
    fn in_service(&mut self, id: u64, node: &NodeFacts, at_s: f64) {
        self.count_hours(id, at_s);
        if self.booted.insert(id) {
            let counts = self.at(node, at_s);
            counts.boots += 1.0;
            counts.passed += 1.0;
        }
        if let Some(since_s) = self.out.remove(&id) {
            self.out_for(node, at_s - since_s, at_s);
        }
        let serving = Serving { place: Arc::new(self.place(node)), gpus: node.gpus, since_s: at_s };
        self.serving.insert(id, serving);
    }

    /// A fault took it out of service.
    fn broke(&mut self, id: u64, node: &NodeFacts, at_s: f64) {
        let known = self.out.contains_key(&id);
        self.out.entry(id).or_insert(at_s);
        if !known && !self.is_excused(node) {
            self.at(node, at_s).faults += 1.0;
        }
    }

    fn out_for(&mut self, node: &NodeFacts, seconds: f64, at_s: f64) {
        let counts = self.at(node, at_s);
        counts.repaired(seconds);
        counts.node_hours += seconds.max(0.0) / 3600.0;
        counts.out_node_hours += seconds.max(0.0) / 3600.0;
    }

    fn count_hours(&mut self, node: u64, at_s: f64) {
        let Some(serving) = self.serving.get_mut(&node) else { return };
        let hours = (at_s - serving.since_s).max(0.0) / 3600.0;
        serving.since_s = at_s.max(serving.since_s);
        let add = |counts: &mut Counts| {
            counts.age(at_s);
            counts.gpu_hours += f64::from(serving.gpus) * hours;
            counts.node_hours += hours;
        };
        match self.counts.get_mut(&*serving.place) {
            Some(counts) => add(counts),
            None => add(self.counts.entry((*serving.place).clone()).or_default()),
        }
    }

    /// What the whole gate of a host measured: the slowest GPU of each number.
    fn measured(&mut self, id: u64, node: &NodeFacts, rates: &BTreeMap<String, f64>, at_s: f64) {
        let hosts = self.hosts.entry(kind_of(&node.offer)).or_default();
        hosts.insert(id, rates.clone());
        while hosts.len() > HOSTS_MAX {
            hosts.pop_first();
        }
        let medians = medians(hosts.values(), HOSTS_MIN);
        let shares = rates.iter().filter_map(|(name, rate)| Some(rate / medians.get(name).filter(|m| **m > 0.0)?));
        // It is as slow as the slowest of what it does.
        if let Some(speed) = shares.min_by(f64::total_cmp) {
            self.at(node, at_s).measured(speed);
        }
    }

    /// What hosts of each kind have been measured at, where enough have: `provider/instance type`, by number.
    #[must_use]
    pub fn limits(&self) -> BTreeMap<String, Learned> {
        let of_kind = |((provider, kind), hosts): (&Kind, &BTreeMap<u64, BTreeMap<String, f64>>)| {
            let learned = Learned { medians: medians(hosts.values(), LIMITS_HOSTS_MIN) };
            (!learned.medians.is_empty()).then(|| (format!("{provider}/{kind}"), learned))
        };
        self.hosts.iter().filter_map(of_kind).collect()
    }

    /// Counts the hours of nodes that serve on, and says what has changed.
    pub fn tell(&mut self, now_s: f64) {
        for node in self.serving.keys().copied().collect::<Vec<_>>() {
            self.count_hours(node, now_s);
        }
        // Where nobody is any more, what was seen fades too.
        self.counts.values_mut().for_each(|c| c.age(now_s));
        for (place, rates) in Places::of(&self.counts).rates() {
            let told = rates::tell(self.told.get(&place), &rates, now_s);
            self.told.insert(place, told);
        }
        self.told_at_s = now_s;
    }

    /// Whether nobody has looked at what is told for so long that it may have faded.
    #[must_use]
    pub fn is_due(&self, now_s: f64) -> bool {
        now_s - self.told_at_s >= FADES_S
    }

    /// What plans go by at each of these places; where nobody has been, as at its like.
    #[must_use]
    pub fn briefs(&self, places: impl IntoIterator<Item = Place>) -> BTreeMap<Place, Brief> {
        let seen = Places::of(&self.counts);
        let brief = |place: Place| {
            let brief = self.told.get(&place).map_or_else(|| seen.brief_at(&place), |told| told.rates.brief());
            (place, brief)
        };
        places.into_iter().collect::<BTreeSet<_>>().into_iter().map(brief).collect()
    }

    /// Faults of a GPU in an hour that are certain (with 90 %), by cell, where somebody has been: a few that have just come do
    /// not make more of them look usual.
    #[must_use]
    pub fn faults_per_gpu_h(&self) -> BTreeMap<Cell, f64> {
        let cell = |p: &Place| Cell {
            provider: p.provider.clone(),
            region: p.region.clone(),
            instance_type: p.instance_type.clone(),
        };
        self.told
            .iter()
            .map(|(place, told)| (cell(place), told.rates.faults_per_gpu_h.q10.max(FAULTS_PER_GPU_H)))
            .collect()
    }

    /// What plans were told of each place, and what was counted there.
    pub fn places(&self) -> impl Iterator<Item = (&Place, &Rates, &Counts)> {
        self.told.iter().filter_map(|(place, told)| Some((place, &told.rates, self.counts.get(place)?)))
    }
}

#[cfg(test)]
mod tests {
    use fleet::Market;
    use fleet::book::HeldCause;

    use super::*;

    fn node() -> NodeFacts {
        let offer = OfferKey {
            provider: "lab".into(),
            region: "r".into(),
            zone: "z".into(),
            instance_type: "h8".into(),
            market: Market::OnDemand,
        };
        NodeFacts { offer, gpus: 8, intent: None, asked_at_ms: 0, causes: vec![], rates: BTreeMap::new() }
    }

    /// A change of a node's state, by the words of the states.
    fn went(id: u64, from: &str, to: &str, node: NodeFacts) -> NodeChange {
        let state = |word: &str| NodeState::named(word).expect("a state");
        NodeChange { id, from: Some(state(from)), to: state(to), event: None, node }
    }

    fn counts(health: &NodeOutcomes) -> &Counts {
        health.counts.values().next().expect("one place")
    }

    #[test]
    fn a_life_is_counted_once() {
        let (mut health, hour_s) = (NodeOutcomes::default(), 3600.0);
        let life = [
            (1.0, "checking", "idle"),
            (11.0, "claimed", "repairing"),
            (11.5, "checking", "idle"),
            (21.5, "idle", "quarantined"),
            (22.0, "quarantined", "terminating"),
            (22.1, "terminating", "terminated"),
        ];
        for (hour, from, to) in life {
            let change = went(7, from, to, node());
            assert!(NodeOutcomes::cares(&change));
            health.hear(&change, hour * hour_s);
        }
        let counted = counts(&health);
        let near = |a: f64, b: f64| (a - b).abs() < 0.02 * b;
        assert_eq!(
            (counted.boots.round(), counted.passed.round(), counted.faults.round()),
            (1.0, 1.0, 2.0),
            "{counted:?}"
        );
        assert!(near(counted.gpu_hours, 160.0) && near(counted.out_node_hours, 1.0), "{counted:?}");
        assert_eq!(counted.repairs_s, [1800.0, 1800.0]);
        assert!(
            health.serving.is_empty() && health.out.is_empty() && health.booted.is_empty(),
            "nothing is left of it"
        );
        for (from, to) in [("idle", "claimed"), ("claimed", "idle")] {
            assert!(!NodeOutcomes::cares(&went(7, from, to, node())), "claims say nothing of health");
        }
    }

    #[test]
    fn boots_that_fail_count_and_silence_stops_the_clock() {
        let (mut health, hour_s) = (NodeOutcomes::default(), 3600.0);
        health.hear(&went(1, "checking", "quarantined", node()), hour_s);
        health.hear(&went(2, "booting", "terminated", node()), hour_s);
        health.hear(&went(3, "checking", "idle", node()), hour_s);
        health.hear(&went(3, "claimed", "lost", node()), 2.0 * hour_s);
        health.tell(10.0 * hour_s);
        let counted = counts(&health);
        assert_eq!((counted.boots.round(), counted.passed.round(), counted.faults), (3.0, 1.0, 0.0));
        assert!(counted.gpu_hours < 8.1, "not while it was silent: {counted:?}");
        let place = place_of(&node().offer, "");
        let brief = health.briefs([place.clone()])[&place];
        assert!(brief.boot_pass < 0.98, "{brief:?}");
    }

    #[test]
    fn faults_of_a_held_cause_are_not_the_places() {
        let mut health = NodeOutcomes::default();
        let failing = NodeFacts { causes: vec!["xid:119".into()], ..node() };
        let (cell, cause) = (Cell::of(&failing.offer), "xid:119".into());
        health.held = Held { causes: vec![HeldCause { cell, cause, canary: None }] };
        health.hear(&went(1, "checking", "idle", failing.clone()), 1.0);
        health.hear(&went(1, "idle", "quarantined", failing), 2.0);
        assert_eq!(counts(&health).faults, 0.0);
    }

    #[test]
    fn speed_is_a_share_of_the_median_and_limits_need_many_hosts() {
        let mut health = NodeOutcomes::default();
        let measured = |id: u64, gbps: f64| {
            let rates = BTreeMap::from([("read_gbps".to_owned(), gbps)]);
            went(id, "checking", "idle", NodeFacts { rates, ..node() })
        };
        for id in 0..19 {
            health.hear(&measured(id, 4000.0), 1.0);
        }
        assert!(health.limits().is_empty(), "19 hosts are too few");
        health.hear(&measured(19, 2000.0), 1.0);
        assert_eq!(health.limits()["lab/h8"].medians["read_gbps"], 4000.0);
        let last = counts(&health).speeds.last().copied();
        assert_eq!(last, Some(0.5));
    }

    #[test]
    fn what_was_counted_is_written_and_read() {
        let mut health = NodeOutcomes::default();
        health.hear(&went(1, "checking", "idle", node()), 1.0);
        let rates = BTreeMap::from([("read_gbps".to_owned(), 1.0)]);
        health.hear(&went(1, "checking", "idle", NodeFacts { rates, ..node() }), 1.0);
        health.tell(2.0);
        let text = serde_json::to_string(&health).expect("JSON");
        let again: NodeOutcomes = serde_json::from_str(&text).expect("reads");
        assert_eq!((&again.booted, again.serving.len(), again.hosts.len()), (&health.booted, 1, 1));
        assert!((counts(&again).gpu_hours - counts(&health).gpu_hours).abs() < 1e-12, "{text}");
        assert_eq!(again.told.keys().collect::<Vec<_>>(), health.told.keys().collect::<Vec<_>>());
    }
}
