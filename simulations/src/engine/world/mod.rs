//! The world of a run: its clock, the machines that its clouds run, the clients that claim. Nodes, claims, queues and intents
//! are the book's, and what is done with them is decided by `control`, as in the server.

mod clients;
mod copies;
mod decide;
mod faults;
mod machines;

use std::collections::BTreeMap;

use control::breakers::FaultLog;
use control::learning::Learnt;
use control::offers::Market;
use control::staging::Outlook;
use fleet::book::{Book, Change, ClassRule, Limits, What};
use fleet::rng::Rng;
use fleet::{NodeState, Offer, OfferKey};
use planner::gather::Prior;
use planner::input::LeadTime;
use planner::scenarios::History;
use providers::sim::SimCloud;

use super::events::{Event, Queue};
use super::{Disturbance, OfClass, Outcome, Sample, Setup, SimError};
use crate::policies::{Decision, Policy};
use clients::Client;
use copies::Remembered;
use machines::{Doing, Machine};

/// Points of the plots.
const SAMPLES: f64 = 600.0;
/// Decisions between two looks at all of the book; what changes is looked at each time.
const CHECK_EVERY: u64 = 30;
/// Where something is to be done for a node, nodes are looked at this often, ms: the server's default.
const LOOK_EVERY_MS: u64 = 15_000;

#[derive(Debug)]
struct World<'a> {
    setup: &'a Setup,
    now_ms: u64,
    measure_ms: u64,
    end_ms: u64,
    queue: Queue,
    book: Book,
    learnt: Learnt,
    /// Something was learnt since plans were told of it.
    heard_news: bool,
    faults: FaultLog,
    /// Nothing is known of it but what the book has.
    market: Market,
    /// What is assumed of each offer until launches tell more.
    priors: BTreeMap<OfferKey, Prior>,
    /// The first fleet is being bought: its launches teach nothing.
    starting: bool,
    cloud: SimCloud,
    cloud_rng: Rng,
    claim_rng: Rng,
    fault_rng: Rng,
    price_usd_per_s: Vec<f64>,
    machines: Vec<Machine>,
    /// Machines by their node.
    machine_of: BTreeMap<u64, u32>,
    /// Class that a simple policy launched an intent's nodes for.
    labels: BTreeMap<u64, usize>,
    clients: Vec<Client>,
    /// Clients by their claim.
    client_of: BTreeMap<u64, u32>,
    /// The next claim of the demand.
    next_claim: usize,
    /// Classes as the book has them, by name, then those that borrow, `[K + B]`; all that follows is in this order.
    rules: Vec<&'a ClassRule>,
    /// Classes that nodes are bought for.
    planned: usize,
    /// Index in the setup of each.
    setup_class: Vec<usize>,
    /// Claims with GPUs, `[K]`.
    active: Vec<u32>,
    /// Claims that wait, `[K]`.
    queued: Vec<u32>,
    history: History,
    /// Highest demand of each class in the step so far.
    peak: Vec<u32>,
    silent_until_ms: u64,
    late: Vec<Option<Decision>>,
    /// What the rules beside the staging plan go by.
    remembered: Remembered,
    /// What the last plan expects.
    outlook: Option<Outlook>,
    /// When nodes are looked at next.
    look_ms: Option<u64>,
    /// When a call is made again.
    act_ms: Option<u64>,
    out: Outcome,
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
        // What the book does by itself comes after all else of its moment.
        let due = world.book.next_due_ms().map_or(u64::MAX, |at| u64::try_from(at).unwrap_or(0));
        if arrival.min(event).min(due) > world.end_ms {
            break;
        }
        world.out.counts.events += 1;
        if due < arrival.min(event) {
            world.now_ms = world.now_ms.max(due);
            world.book.tick(world.book_ms());
        } else if arrival <= event {
            world.now_ms = arrival;
            let spec = setup.claims[world.next_claim];
            world.next_claim += 1;
            world.claim_comes(spec)?;
        } else if let Some((at, event)) = world.queue.pop() {
            world.now_ms = at;
            world.happens(event, policy)?;
        }
        world.settle()?;
    }
    world.finish()
}

/// Hosts are heard all the time: an agent that falls silent is not simulated. Everything else is as in the server.
fn limits(setup: &Setup) -> Limits {
    let usual = Limits::default();
    // A class may be asked to wait longer than a server would let it.
    let longest_ms = setup.classes.iter().map(|k| k.wait_ms).fold(usual.queue_max_ms, i64::max);
    Limits { silent_ms: i64::MAX / 4, proof_max_age_ms: i64::MAX / 4, queue_max_ms: longest_ms, ..usual }
}

impl<'a> World<'a> {
    fn new(setup: &'a Setup) -> Self {
        let quotas = setup.quotas.iter().map(|q| (q.members.clone(), q.limit)).collect();
        let mut setup_class: Vec<usize> = (0..setup.classes.len()).collect();
        setup_class.sort_by_key(|k| (setup.classes[*k].class.borrows(), &setup.classes[*k].class.name));
        let planned = setup.classes.iter().filter(|k| !k.class.borrows()).count();
        let rules: Vec<&ClassRule> = setup_class.iter().map(|k| &setup.classes[*k]).collect();
        let claims = setup_class[..planned].iter().map(|k| setup.history.claims[*k].clone()).collect();
        let mut book = Book::new(limits(setup));
        book.set_offers(setup.offers.clone());
        book.set_classes(setup.classes.iter().cloned());
        if let Some(staging) = &setup.staging {
            book.set_snapshots(staging.snapshots.iter().cloned());
        }
        let mut learnt = Learnt::default();
        learnt.health.know(&book);
        let prior = |(o, lead): (&Offer, &LeadTime)| {
            (o.key.clone(), Prior { lead_time: lead.clone(), min_hold_s: setup.min_hold_s })
        };
        let count = rules.len();
        let mut world = Self {
            setup,
            now_ms: 0,
            measure_ms: ms(setup.measure_from_s),
            end_ms: ms(setup.end_s),
            queue: Queue::default(),
            book,
            learnt,
            heard_news: false,
            faults: FaultLog::default(),
            market: Market::default(),
            priors: setup.offers.iter().zip(&setup.priors).map(prior).collect(),
            starting: false,
            cloud: SimCloud::new(setup.supply.clone(), quotas, setup.rate_per_min),
            cloud_rng: Rng::new(setup.seed),
            claim_rng: Rng::new(setup.seed ^ 0xC0FF_EE00_C0FF_EE00),
            fault_rng: Rng::new(setup.seed ^ 0x00FA_0170_00FA_0170),
            price_usd_per_s: setup.offers.iter().map(|o| o.price_usd_micros_per_h.usd() / 3600.0).collect(),
            machines: Vec::new(),
            machine_of: BTreeMap::new(),
            labels: BTreeMap::new(),
            clients: Vec::with_capacity(setup.claims.len()),
            client_of: BTreeMap::new(),
            next_claim: 0,
            rules,
            planned,
            setup_class,
            active: vec![0; count],
            queued: vec![0; count],
            history: History { step_s: setup.history.step_s, claims, filled_steps: Vec::new() },
            peak: vec![0; count],
            silent_until_ms: 0,
            late: Vec::new(),
            remembered: Remembered::default(),
            outlook: None,
            look_ms: None,
            act_ms: None,
            out: Outcome { measured_s: setup.end_s - setup.measure_from_s, ..Outcome::default() },
        };
        let of_class = |k: &ClassRule| OfClass {
            name: k.class.name.clone(),
            hit_rate_target: k.class.hit_rate_target,
            ..OfClass::default()
        };
        world.out.classes = setup.classes.iter().map(of_class).collect();
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

    /// Now, as the book counts it.
    fn book_ms(&self) -> i64 {
        self.now_ms as i64
    }

    fn measured(&self) -> bool {
        self.now_ms >= self.measure_ms
    }

    fn happens(&mut self, event: Event, policy: &mut dyn Policy) -> Result<(), SimError> {
        match event {
            Event::Gate(machine) => self.gate_answers(machine),
            Event::Notice(machine) => {
                self.book.reclaim_noticed(self.machines[machine as usize].node, self.book_ms());
                Ok(())
            }
            Event::Gone(machine) => self.machine_lost(machine),
            Event::Heartbeat(client) => self.heartbeat(client),
            Event::ClaimEnd(client) => self.claim_ends(client),
            Event::Disturbance(i) => {
                let setup = self.setup;
                self.disturb(&setup.disturbances[i as usize].1)
            }
            Event::Step => {
                self.step_is_full();
                Ok(())
            }
            Event::Decide => self.decide(policy),
            Event::Carry(i) => match self.late[i as usize].take() {
                Some(decision) => self.carry_out(&decision),
                None => Ok(()),
            },
            Event::Look => self.look(),
            Event::Act => self.act(),
            Event::Copies(machine) => self.copies_come(machine),
            Event::Sample => {
                self.sample();
                Ok(())
            }
        }
    }

    /// Hears what the book has changed, until nothing does any more.
    fn settle(&mut self) -> Result<(), SimError> {
        loop {
            let changes = self.book.take_changes();
            if changes.is_empty() {
                return Ok(());
            }
            if let Some(source) = self.book.breaches_in(&changes).into_iter().next() {
                return Err(SimError::Invariant { at_s: self.now_s(), source });
            }
            changes.events.iter().for_each(|change| self.hear(change));
            for node in &changes.nodes {
                self.node_changed(*node)?;
            }
            for claim in &changes.claims {
                self.claim_changed(*claim)?;
            }
            self.book.forget_ended(&changes);
        }
    }

    fn hear(&mut self, change: &Change) {
        // Nobody waited for the first fleet.
        match &change.what {
            What::Intent(_) if self.starting => {}
            What::Node(node) if self.starting && node.to == NodeState::Checking => self.learnt.health.is_there(node.id),
            _ => self.heard_news |= self.learnt.hear(change).news,
        }
        self.faults.hear(change);
    }

    /// Closes a step of the demand history.
    fn step_is_full(&mut self) {
        for k in 0..self.planned {
            self.history.claims[k].push(f64::from(self.peak[k]));
            self.peak[k] = self.active[k] + self.queued[k];
        }
        self.queue.push(self.now_ms + u64::from(self.history.step_s) * 1000, Event::Step);
    }

    fn sample(&mut self) {
        let demand = |k: usize| (self.active[k] + self.queued[k]) * self.rules[k].class.gpus_per_claim;
        let mut sample = Sample {
            at_s: (self.now_ms - self.measure_ms) as f64 / 1000.0,
            demand_gpus: (0..self.planned).map(demand).sum(),
            misses: self.out.counts.misses,
            moves: self.out.counts.launches + self.out.counts.releases,
            ..Sample::default()
        };
        for machine in self.machine_of.values().map(|m| &self.machines[*m as usize]) {
            match machine.doing() {
                Doing::Nothing => continue,
                Doing::Booting => sample.arriving_gpus += machine.gpus,
                Doing::Serving => {
                    sample.idle_gpus += machine.free;
                    sample.claimed_gpus += machine.gpus - machine.free;
                }
                Doing::Out => {}
            }
            sample.spend_usd_per_h += 3600.0 * self.price_usd_per_s[machine.offer];
        }
        self.out.samples.push(sample);
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
            Disturbance::Fault(server) => self.fault_on(*server),
            Disturbance::Reclaim(offer) => {
                self.reclaim_excess(*offer);
                Ok(())
            }
        }
    }

    fn check_invariants(&self) -> Result<(), SimError> {
        match self.book.breaches().into_iter().next() {
            Some(source) => Err(SimError::Invariant { at_s: self.now_s(), source }),
            None => Ok(()),
        }
    }

    fn finish(mut self) -> Result<Outcome, SimError> {
        self.now_ms = self.end_ms;
        self.check_invariants()?;
        for machine in self.machine_of.values().copied().collect::<Vec<_>>() {
            self.count_money(machine);
        }
        for client in 0..self.clients.len() {
            self.count_loan(client as u32);
        }
        Ok(self.out)
    }
}
