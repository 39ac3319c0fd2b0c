//! Claims: they come, are placed by the shipped best fit, wait, and end.

use fleet::placement::first_fit;
use fleet::{ClaimEvent, ClaimState, NodeEvent, OnEmpty};

use super::super::events::Event;
use super::super::{ClaimSpec, SimError};
use super::{Claim, World, ms};

impl World<'_> {
    fn claim_event(&mut self, id: u32, event: ClaimEvent) -> Result<(), SimError> {
        let at_s = self.now_s();
        let claim = &mut self.claims[id as usize];
        claim.state = claim.state.after(event).map_err(|source| SimError::Claim { at_s, source })?;
        Ok(())
    }

    /// A new claim, of the demand or of a lost node.
    pub(super) fn claim_comes(&mut self, spec: ClaimSpec) -> Result<(), SimError> {
        let id = self.claims.len() as u32;
        let k = spec.class as usize;
        let (at_ms, end_ms) = (spec.at_ms, spec.end_ms);
        self.claims.push(Claim {
            class: spec.class,
            state: ClaimState::Queued,
            node: u32::MAX,
            at_ms,
            end_ms,
            judged: false,
        });
        if self.measured() {
            self.out.counts.claims += 1;
            self.out.classes[k].1 += 1;
        }
        // Older claims of the class go first.
        let placed = self.waiting[k].is_empty() && self.place(id)?;
        if !placed {
            self.queued[k] += 1;
            self.waiting[k].push_back(id);
            let rule = &self.setup.classes[k];
            let wait_s = if rule.on_empty == OnEmpty::Fail { 0.0 } else { rule.wait_s };
            self.queue.push(self.now_ms + ms(wait_s), Event::Deadline(id));
        }
        self.peak[k] = self.peak[k].max(self.active[k] + self.queued[k]);
        self.queue.push(end_ms, Event::ClaimEnd(id));
        Ok(())
    }

    /// Puts a claim on the best node, if there is one.
    fn place(&mut self, id: u32) -> Result<bool, SimError> {
        let k = self.claims[id as usize].class as usize;
        let gpus = self.setup.classes[k].class.gpus_per_claim;
        let shelves = self.offers_of[k].iter().map(|p| (*p, &self.shelves[*p]));
        let Some((offer, free, node)) = first_fit(shelves, gpus) else { return Ok(false) };
        let node_id = node as u32;
        self.count_money(node_id);
        self.shelves[offer].take(node, free, false);
        if free > gpus {
            self.shelves[offer].put(node, free - gpus, false);
        }
        self.node_event(node_id, NodeEvent::ClaimPlaced)?;
        let node = &mut self.nodes[node_id as usize];
        node.free -= gpus;
        node.claims.push(id);
        match node.classes.binary_search_by_key(&k, |c| c.0) {
            Ok(i) => node.classes[i].1 += 1,
            Err(i) => node.classes.insert(i, (k, 1)),
        }
        self.gpus.idle -= i64::from(gpus);
        self.gpus.claimed += i64::from(gpus);
        self.active[k] += 1;
        self.claim_event(id, ClaimEvent::Placed)?;
        self.claims[id as usize].node = node_id;
        self.granted(id);
        Ok(true)
    }

    fn granted(&mut self, id: u32) {
        let claim = &self.claims[id as usize];
        let k = claim.class as usize;
        let wait_ms = self.now_ms - claim.at_ms;
        let phases: f64 = self.setup.cold_start.iter().map(|(_, dist)| dist.sample(&mut self.claim_rng)).sum();
        let measured = claim.at_ms >= self.measure_ms;
        if !claim.judged && wait_ms <= ms(self.setup.classes[k].wait_s) {
            self.claims[id as usize].judged = true;
            self.judged[k].hits += 1;
            self.out.counts.hits += u64::from(measured);
            self.out.classes[k].2 += u64::from(measured);
        }
        if !measured {
            return;
        }
        let wait_s = wait_ms as f64 / 1000.0;
        self.out.waits.add(wait_s);
        self.out.cold_starts.add(wait_s + phases);
    }

    /// The wait is over: a miss, and the end of the claim where the class does not wait on.
    pub(super) fn deadline(&mut self, id: u32) -> Result<(), SimError> {
        let claim = &mut self.claims[id as usize];
        if claim.state != ClaimState::Queued {
            return Ok(());
        }
        claim.judged = true;
        let (k, at_ms) = (claim.class as usize, claim.at_ms);
        self.judged[k].misses += 1;
        if at_ms >= self.measure_ms {
            self.out.counts.misses += 1;
            self.out.classes[k].3 += 1;
            self.out.money.misses_usd += self.setup.classes[k].class.miss_cost_usd_micros.usd();
        }
        match self.setup.classes[k].on_empty {
            OnEmpty::LaunchCold => Ok(()),
            OnEmpty::Fail => self.leave(id, ClaimEvent::NodeLost),
            OnEmpty::Queue | OnEmpty::Substitute => self.leave(id, ClaimEvent::TimedOut),
        }
    }

    /// A waiting claim goes.
    fn leave(&mut self, id: u32, event: ClaimEvent) -> Result<(), SimError> {
        let k = self.claims[id as usize].class as usize;
        self.claim_event(id, event)?;
        self.queued[k] -= 1;
        if self.waiting[k].front() == Some(&id) {
            self.waiting[k].pop_front();
        } else if let Ok(place) = self.waiting[k].binary_search(&id) {
            // Ids rise with time.
            self.waiting[k].remove(place);
        }
        Ok(())
    }

    pub(super) fn claim_ends(&mut self, id: u32) -> Result<(), SimError> {
        let claim = &self.claims[id as usize];
        match claim.state {
            ClaimState::Queued => {
                self.out.counts.given_up += u64::from(!claim.judged && claim.at_ms >= self.measure_ms);
                self.leave(id, ClaimEvent::Released)
            }
            ClaimState::Granted | ClaimState::Active => {
                self.claim_event(id, ClaimEvent::Released)?;
                self.give_back(id)
            }
            ClaimState::Released | ClaimState::Expired | ClaimState::Failed => Ok(()),
        }
    }

    /// Takes a live claim off its node.
    pub(super) fn unplace(&mut self, id: u32) -> u32 {
        let claim = &self.claims[id as usize];
        let (k, node_id) = (claim.class as usize, claim.node);
        let gpus = self.setup.classes[k].class.gpus_per_claim;
        self.count_money(node_id);
        let node = &mut self.nodes[node_id as usize];
        node.free += gpus;
        node.claims.retain(|c| *c != id);
        if let Ok(i) = node.classes.binary_search_by_key(&k, |c| c.0) {
            node.classes[i].1 -= 1;
            if node.classes[i].1 == 0 {
                node.classes.remove(i);
            }
        }
        self.gpus.claimed -= i64::from(gpus);
        self.gpus.idle += i64::from(gpus);
        self.active[k] -= 1;
        node_id
    }

    fn give_back(&mut self, id: u32) -> Result<(), SimError> {
        let node_id = self.unplace(id);
        let gpus = self.setup.classes[self.claims[id as usize].class as usize].class.gpus_per_claim;
        let node = &mut self.nodes[node_id as usize];
        let (free, takes) = (node.free, node.state.takes_claims());
        if node.claims.is_empty() {
            node.idle_since_ms = self.now_ms;
            self.node_event(node_id, NodeEvent::LastClaimEnded)?;
        }
        if takes {
            let offer = self.nodes[node_id as usize].offer as usize;
            self.shelves[offer].take(u64::from(node_id), free - gpus, false);
            self.shelves[offer].put(u64::from(node_id), free, false);
            self.serve_waiting(offer)?;
        }
        Ok(())
    }

    /// Places what waits for nodes of an offer, the oldest claim first.
    pub(super) fn serve_waiting(&mut self, offer: usize) -> Result<(), SimError> {
        loop {
            let fronts = self.classes_of[offer].iter().filter_map(|k| self.waiting[*k].front().map(|id| (*id, *k)));
            let mut fronts: Vec<(u32, usize)> = fronts.collect();
            fronts.sort_unstable();
            let mut any = false;
            for (id, k) in fronts {
                if self.place(id)? {
                    self.queued[k] -= 1;
                    self.waiting[k].pop_front();
                    any = true;
                    break;
                }
            }
            if !any {
                return Ok(());
            }
        }
    }
}
