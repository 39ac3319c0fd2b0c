//! The world of a run: its clock, and what each event does.

mod claims;
mod decide;
mod health;
mod nodes;

use std::collections::VecDeque;

use fleet::book::Tally;
use fleet::placement::Shelf;
use fleet::rng::Rng;
use fleet::{ClaimState, NodeState, admission, invariants};
use planner::gather::Estimate;
use planner::scenarios::History;
use planner::supply::{Rules, Supply};
use providers::sim::SimCloud;

use super::events::{Event, Queue};
use super::{Disturbance, Outcome, Sample, Setup, SimError};
use crate::policies::{Decision, Policy};

/// Points of the plots.
const SAMPLES: f64 = 600.0;
/// Decisions between two checks of the invariants.
const CHECK_EVERY: u64 = 30;

#[derive(Debug)]
struct Node {
    offer: u32,
    state: NodeState,
    gpus: u32,
    free: u32,
    born_ms: u64,
    /// Money is counted up to here.
    counted_ms: u64,
    idle_since_ms: u64,
    /// The gate's answer, when it comes.
    passes: bool,
    /// It was in the buffer: its GPUs count as idle or claimed, no more as on their way.
    joined: bool,
    batch: u32,
    label: Option<usize>,
    /// `(class, claims)`, by class.
    classes: Vec<(usize, u32)>,
    /// Live claims on it.
    claims: Vec<u32>,
}

#[derive(Debug)]
struct Claim {
    class: u32,
    state: ClaimState,
    node: u32,
    at_ms: u64,
    end_ms: u64,
    judged: bool,
}

/// A launch request that is learnt from when all its nodes have an answer.
#[derive(Debug)]
struct Batch {
    offer: u32,
    asked: u32,
    waiting: u32,
    outcomes: Vec<planner::supply::Outcome>,
}

#[derive(Debug)]
struct World<'a> {
    setup: &'a Setup,
    now_ms: u64,
    measure_ms: u64,
    end_ms: u64,
    queue: Queue,
    cloud: SimCloud,
    cloud_rng: Rng,
    claim_rng: Rng,
    price_usd_per_s: Vec<f64>,
    offers: Vec<fleet::Offer>,
    supply: Vec<Supply>,
    places: health::Places,
    estimates: Vec<Estimate>,
    nodes: Vec<Node>,
    alive: Vec<u32>,
    batches: Vec<Batch>,
    claims: Vec<Claim>,
    /// The next claim of the demand.
    next_claim: usize,
    /// Nodes of each offer that take claims.
    shelves: Vec<Shelf>,
    /// Offers of each class, the cheapest GPU first.
    offers_of: Vec<Vec<usize>>,
    classes_of: Vec<Vec<usize>>,
    waiting: Vec<VecDeque<u32>>,
    active: Vec<u32>,
    queued: Vec<u32>,
    /// Running totals of each class, from the start.
    judged: Vec<Tally>,
    history: History,
    /// Highest demand of each class in the step so far.
    peak: Vec<u32>,
    silent_until_ms: u64,
    late: Vec<Option<Decision>>,
    out: Outcome,
    gpus: Gpus,
    spend_usd_per_s: f64,
}

/// GPUs by what they do, kept as nodes change.
#[derive(Debug, Default, Clone, Copy)]
struct Gpus {
    arriving: i64,
    idle: i64,
    claimed: i64,
}

fn ms(seconds: f64) -> u64 {
    (seconds * 1000.0).round().max(0.0) as u64
}

/// Runs a policy through a setup. The same setup and policy give the same outcome, byte for byte.
///
/// # Errors
/// See [`SimError`]: each is a bug.
pub fn run(setup: &Setup, policy: &mut dyn Policy) -> Result<Outcome, SimError> {
    let mut world = World::new(setup);
    if setup.start_fleet {
        world.start_fleet()?;
    }
    loop {
        let arrival = setup.claims.get(world.next_claim).map_or(u64::MAX, |c| c.at_ms);
        let event = world.queue.next_ms().unwrap_or(u64::MAX);
        if arrival.min(event) > world.end_ms {
            break;
        }
        world.out.counts.events += 1;
        if arrival <= event {
            world.now_ms = arrival;
            let spec = setup.claims[world.next_claim];
            world.next_claim += 1;
            world.claim_comes(spec)?;
        } else if let Some((at, event)) = world.queue.pop() {
            world.now_ms = at;
            world.happens(event, policy)?;
        }
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(setup: &'a Setup) -> Self {
        let count = setup.offers.len();
        let quotas = setup.quotas.iter().map(|q| (q.members.clone(), q.limit)).collect();
        let supply = (0..count).map(|p| Supply::new(Rules::default(), 0.0, 0.9, setup.offers[p].interruption_per_h));
        let classes = setup.classes.len();
        let classes_of = served(setup);
        let offers_of = (0..classes).map(|k| by_price(setup, k, &classes_of)).collect();
        let mut world = Self {
            setup,
            now_ms: 0,
            measure_ms: ms(setup.measure_from_s),
            end_ms: ms(setup.end_s),
            queue: Queue::default(),
            cloud: SimCloud::new(setup.supply.clone(), quotas, setup.rate_per_min),
            cloud_rng: Rng::new(setup.seed),
            claim_rng: Rng::new(setup.seed ^ 0xC0FF_EE00_C0FF_EE00),
            price_usd_per_s: setup.offers.iter().map(|o| o.price_usd_micros_per_h.usd() / 3600.0).collect(),
            offers: setup.offers.clone(),
            supply: supply.collect(),
            places: health::Places::of(&setup.offers, setup.learns_health),
            estimates: Vec::new(),
            nodes: Vec::new(),
            alive: Vec::new(),
            batches: Vec::new(),
            claims: Vec::with_capacity(setup.claims.len()),
            next_claim: 0,
            shelves: vec![Shelf::default(); count],
            offers_of,
            classes_of,
            waiting: vec![VecDeque::new(); classes],
            active: vec![0; classes],
            queued: vec![0; classes],
            judged: vec![Tally::default(); classes],
            history: setup.history.clone(),
            peak: vec![0; classes],
            silent_until_ms: 0,
            late: Vec::new(),
            out: Outcome { measured_s: setup.end_s - setup.measure_from_s, ..Outcome::default() },
            gpus: Gpus::default(),
            spend_usd_per_s: 0.0,
        };
        world.out.classes = setup.classes.iter().map(|k| (k.class.name.clone(), 0, 0, 0)).collect();
        world.estimates = (0..count).map(|p| world.estimate(p)).collect();
        for (i, (at_s, _)) in setup.disturbances.iter().enumerate() {
            world.queue.push(ms(*at_s), Event::Disturbance(i as u32));
        }
        world.queue.push(0, Event::Decide);
        world.queue.push(u64::from(setup.history.step_s) * 1000, Event::Step);
        world.queue.push(world.measure_ms, Event::Sample);
        world
    }

    fn now_s(&self) -> f64 {
        self.now_ms as f64 / 1000.0
    }

    fn measured(&self) -> bool {
        self.now_ms >= self.measure_ms
    }

    fn happens(&mut self, event: Event, policy: &mut dyn Policy) -> Result<(), SimError> {
        match event {
            Event::Gate(node) => self.gate_answers(node),
            Event::Notice(node) => self.notice(node),
            Event::Gone(node) => {
                self.out.counts.reclaims += u64::from(self.measured() && self.is_alive(node));
                self.node_lost(node)
            }
            Event::ClaimEnd(claim) => self.claim_ends(claim),
            Event::Deadline(claim) => self.deadline(claim),
            Event::Disturbance(i) => {
                let setup = self.setup;
                self.disturb(&setup.disturbances[i as usize].1)
            }
            Event::Step => {
                self.step_is_full();
                Ok(())
            }
            Event::Decide => self.decide(policy),
            Event::Act(i) => match self.late[i as usize].take() {
                Some(decision) => self.act(&decision),
                None => Ok(()),
            },
            Event::Sample => {
                self.sample();
                Ok(())
            }
        }
    }

    /// Closes a step of the demand history.
    fn step_is_full(&mut self) {
        for k in 0..self.peak.len() {
            self.history.claims[k].push(f64::from(self.peak[k]));
            self.peak[k] = self.active[k] + self.queued[k];
        }
        self.queue.push(self.now_ms + u64::from(self.history.step_s) * 1000, Event::Step);
    }

    fn sample(&mut self) {
        let demand = |k: usize| (self.active[k] + self.queued[k]) * self.setup.classes[k].class.gpus_per_claim;
        self.out.samples.push(Sample {
            at_s: (self.now_ms - self.measure_ms) as f64 / 1000.0,
            demand_gpus: (0..self.active.len()).map(demand).sum(),
            claimed_gpus: self.gpus.claimed.max(0) as u32,
            idle_gpus: self.gpus.idle.max(0) as u32,
            arriving_gpus: self.gpus.arriving.max(0) as u32,
            misses: self.out.counts.misses,
            spend_usd_per_h: (self.spend_usd_per_s * 3600.0).max(0.0),
            moves: self.out.counts.launches + self.out.counts.releases,
        });
        let every = ((self.end_ms - self.measure_ms) as f64 / SAMPLES).max(1000.0) as u64;
        self.queue.push(self.now_ms + every, Event::Sample);
    }

    fn disturb(&mut self, what: &Disturbance) -> Result<(), SimError> {
        match what {
            Disturbance::Down(offers) => {
                offers.iter().for_each(|p| self.cloud.set_down(*p, true));
                self.lose_all(offers)
            }
            Disturbance::Up(offers) => {
                offers.iter().for_each(|p| self.cloud.set_down(*p, false));
                Ok(())
            }
            Disturbance::Price(offers, factor) => {
                for &p in offers {
                    self.reprice(p, *factor);
                }
                Ok(())
            }
            Disturbance::PlannerSilent(until_s) => {
                self.silent_until_ms = self.silent_until_ms.max(ms(*until_s));
                Ok(())
            }
            Disturbance::Fault(server) => self.fault(*server),
            Disturbance::Reclaim(offer) => self.reclaim_excess(*offer),
        }
    }

    fn check_invariants(&self) -> Result<(), SimError> {
        let over = |&id: &u32| {
            let node = &self.nodes[id as usize];
            let gpus = |c: &u32| self.setup.classes[self.claims[*c as usize].class as usize].class.gpus_per_claim;
            node.claims.iter().map(gpus).sum::<u32>() > node.gpus
        };
        match self.alive.iter().copied().find(|id| over(id)) {
            Some(id) => {
                let source = invariants::Breach::new(invariants::Invariant::Cap1, format!("node {id}"));
                Err(SimError::Invariant { at_s: self.now_s(), source })
            }
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<Outcome, SimError> {
        self.now_ms = self.end_ms;
        self.check_invariants()?;
        for id in self.alive.clone() {
            self.count_money(id);
        }
        Ok(self.out)
    }
}

/// Classes that each offer's nodes serve.
fn served(setup: &Setup) -> Vec<Vec<usize>> {
    let of = |offer: &fleet::Offer| {
        let serves = |k: &usize| {
            let class = &setup.classes[*k].class;
            let fits = admission::usable_share(offer.gpus_per_node, offer.gpus_per_node, class).is_some();
            fits && class.gpus_per_claim <= offer.gpus_per_node && admission::admits_node(offer, class).is_ok()
        };
        (0..setup.classes.len()).filter(serves).collect()
    };
    setup.offers.iter().map(of).collect()
}

/// Offers that serve a class, the cheapest GPU first.
fn by_price(setup: &Setup, class: usize, classes_of: &[Vec<usize>]) -> Vec<usize> {
    let mut able: Vec<usize> = (0..classes_of.len()).filter(|p| classes_of[*p].contains(&class)).collect();
    able.sort_by_key(|&p| (setup.offers[p].gpu_price_usd_micros_per_h(), p));
    able
}
