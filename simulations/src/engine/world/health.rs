//! What boots and losses say about the places of the offers: the rates that the control plane tells its planner, from the
//! same code.

use std::collections::{BTreeMap, BTreeSet};

use fleet::Offer;
use health::rates::{self, Brief, Counts, Place, Told};

/// Plans hear of changes this often, seconds.
const TOLD_EVERY_S: f64 = 900.0;

/// What was seen of each place.
#[derive(Debug)]
pub struct Places {
    /// Of each offer, `[P]`.
    places: Vec<Place>,
    counts: BTreeMap<Place, Counts>,
    /// The same, each once.
    seen: BTreeSet<Place>,
    /// What plans were told of each.
    rates: BTreeMap<Place, Told>,
    /// What plans were told, `[P]`.
    told: Vec<Brief>,
    told_at_s: f64,
    changed: bool,
    /// Nothing is learnt where it is false: plans go by the prior.
    learns: bool,
}

impl Places {
    /// Of these offers.
    pub fn of(offers: &[Offer], learns: bool) -> Self {
        let place = |o: &Offer| Place {
            provider: o.key.provider.clone(),
            region: o.key.region.clone(),
            instance_type: o.key.instance_type.clone(),
            gpu: o.gpu.to_string(),
        };
        let places: Vec<Place> = offers.iter().map(place).collect();
        let nothing = BTreeMap::new();
        let told = places.iter().map(|p| rates::Places::of(&nothing).brief_at(p)).collect();
        let seen = places.iter().cloned().collect();
        Self {
            places,
            seen,
            rates: BTreeMap::new(),
            counts: BTreeMap::new(),
            told,
            told_at_s: 0.0,
            changed: false,
            learns,
        }
    }

    fn at(&mut self, p: usize, now_s: f64) -> &mut Counts {
        self.changed = true;
        let counts = self.counts.entry(self.places[p].clone()).or_default();
        counts.age(now_s);
        counts
    }

    /// A node came through its boot, or did not.
    pub fn booted(&mut self, p: usize, passed: bool, now_s: f64) {
        let counts = self.at(p, now_s);
        counts.boots += 1.0;
        counts.passed += f64::from(u8::from(passed));
    }

    /// A node has ended after so many hours, by a fault or not.
    pub fn lived(&mut self, p: usize, gpus: u32, hours: f64, fault: bool, now_s: f64) {
        let counts = self.at(p, now_s);
        counts.gpu_hours += f64::from(gpus) * hours;
        counts.node_hours += hours;
        counts.faults += f64::from(u8::from(fault));
    }

    /// Tells plans what has changed, now and then. Returns whether it did.
    pub fn tell(&mut self, now_s: f64) -> bool {
        if !self.learns || !self.changed || now_s - self.told_at_s < TOLD_EVERY_S {
            return false;
        }
        (self.changed, self.told_at_s) = (false, now_s);
        self.counts.values_mut().for_each(|c| c.age(now_s));
        let seen = rates::Places::of(&self.counts);
        for place in &self.seen {
            let told = rates::tell(self.rates.get(place), &seen.rates_at(place), now_s);
            self.rates.insert(place.clone(), told);
        }
        self.told = self.places.iter().map(|place| self.rates[place].rates.brief()).collect();
        true
    }

    /// What plans know of an offer.
    pub fn health(&self, p: usize) -> &Brief {
        &self.told[p]
    }
}
