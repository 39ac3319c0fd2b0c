//! Nodes: they are granted, boot, pass or fail the gate, are lost, and cost money all the while.

use fleet::{ClaimEvent, Market, NodeEvent, NodeState, UsdMicros};
use planner::gather::Estimate;
use planner::supply::Outcome as Learnt;
use providers::sim::Refusal;

use super::super::events::Event;
use super::super::{ClaimSpec, SimError};
use super::{Batch, Node, World, ms};

impl World<'_> {
    pub(super) fn node_event(&mut self, id: u32, event: NodeEvent) -> Result<(), SimError> {
        let at_s = self.now_s();
        let node = &mut self.nodes[id as usize];
        node.state = node.state.after(event).map_err(|source| SimError::Node { at_s, source })?;
        Ok(())
    }

    pub(super) fn is_alive(&self, id: u32) -> bool {
        self.nodes[id as usize].state != NodeState::Terminated
    }

    pub(super) fn estimate(&self, p: usize) -> Estimate {
        let supply = &self.supply[p];
        Estimate {
            launch_limit_nodes: supply.launch_limit_nodes(self.now_s()),
            fill: supply.fill(),
            lead_time: supply.lead_time(&self.setup.priors[p]),
            hazard_per_h: supply.hazard_per_h(),
            min_hold_s: self.setup.min_hold_s,
            usable_share: 1.0,
            faults_per_h: 0.0,
        }
        .with_health(self.offers[p].gpus_per_node, self.places.health(p))
    }

    fn learn(&mut self, p: usize, asked: u32, outcomes: &[Learnt]) {
        let now_s = self.now_s();
        self.supply[p].observe(now_s, asked, outcomes);
        self.estimates[p] = self.estimate(p);
    }

    /// A fleet for the claims of the first moment, on the cheapest offers that have room, healthy at once: every policy
    /// starts from a fleet that was bought at leisure.
    pub(super) fn start_fleet(&mut self) -> Result<(), SimError> {
        for k in 0..self.setup.classes.len() {
            let first = self.setup.claims.iter().take_while(|c| c.at_ms == 0).filter(|c| c.class as usize == k).count();
            let mut missing = first as u32;
            let size = self.setup.classes[k].class.gpus_per_claim.max(1);
            for p in self.offers_of[k].clone() {
                let slots = self.offers[p].gpus_per_node / size;
                let room = self.setup.supply[p].capacity.at(0.0) as u32;
                let nodes = missing.div_ceil(slots).min(room);
                if nodes == 0 {
                    continue;
                }
                let before = self.nodes.len();
                self.launch(p, nodes, Some(k))?;
                for id in before..self.nodes.len() {
                    // Nothing is learnt from it: nobody waited for these nodes.
                    self.node_event(id as u32, NodeEvent::Registered)?;
                    self.joins(id as u32)?;
                    missing = missing.saturating_sub(slots);
                }
            }
        }
        Ok(())
    }

    /// Asks the cloud for nodes of one offer, and learns from refusals at once.
    pub(super) fn launch(&mut self, p: usize, asked: u32, label: Option<usize>) -> Result<(), SimError> {
        let batch = self.batches.len() as u32;
        self.batches.push(Batch { offer: p as u32, asked, waiting: 0, outcomes: Vec::new() });
        let now_s = self.now_s();
        self.supply[p].asked(now_s, asked);
        let mut refused = None;
        for _ in 0..asked {
            match self.cloud.launch(self.now_s(), p, &mut self.cloud_rng) {
                Ok(grant) => {
                    let id = self.nodes.len() as u32;
                    let gpus = self.offers[p].gpus_per_node;
                    self.nodes.push(Node {
                        offer: p as u32,
                        state: NodeState::Requested,
                        gpus,
                        free: gpus,
                        born_ms: self.now_ms,
                        counted_ms: self.now_ms,
                        idle_since_ms: self.now_ms,
                        passes: grant.passes,
                        joined: false,
                        batch,
                        label,
                        classes: Vec::new(),
                        claims: Vec::new(),
                    });
                    self.node_event(id, NodeEvent::Accepted)?;
                    self.alive.push(id);
                    self.batches[batch as usize].waiting += 1;
                    self.gpus.arriving += i64::from(gpus);
                    self.spend_usd_per_s += self.price_usd_per_s[p];
                    self.out.counts.launches += u64::from(self.measured());
                    self.queue.push(self.now_ms + ms(grant.ready_after_s), Event::Gate(id));
                    if grant.lost_after_s.is_finite() {
                        let notice = if self.offers[p].key.market == Market::Spot { self.setup.notice_s } else { 0.0 };
                        self.queue.push(self.now_ms + ms((grant.lost_after_s - notice).max(0.0)), Event::Notice(id));
                        self.queue.push(self.now_ms + ms(grant.lost_after_s), Event::Gone(id));
                    }
                }
                Err(refusal) => {
                    let counts = &mut self.out.counts;
                    *match refusal {
                        Refusal::Capacity => &mut counts.refused_capacity,
                        Refusal::Quota => &mut counts.refused_quota,
                        Refusal::Throttled => &mut counts.refused_throttled,
                    } += u64::from(self.now_ms >= self.measure_ms);
                    refused = Some(refusal);
                    break;
                }
            }
        }
        match refused {
            Some(Refusal::Capacity) => self.learn(p, asked, &[Learnt::NoCapacity]),
            Some(Refusal::Quota | Refusal::Throttled) => self.learn(p, asked, &[Learnt::Limited]),
            None => {}
        }
        Ok(())
    }

    fn answered(&mut self, id: u32, outcome: Learnt) {
        let batch = &mut self.batches[self.nodes[id as usize].batch as usize];
        batch.outcomes.push(outcome);
        batch.waiting -= 1;
        if batch.waiting == 0 {
            let (p, asked, outcomes) = (batch.offer as usize, batch.asked, std::mem::take(&mut batch.outcomes));
            self.learn(p, asked, &outcomes);
        }
    }

    /// The boot gate's answer.
    pub(super) fn gate_answers(&mut self, id: u32) -> Result<(), SimError> {
        if self.nodes[id as usize].state != NodeState::Booting {
            return Ok(());
        }
        self.count_money(id);
        self.node_event(id, NodeEvent::Registered)?;
        let node = &self.nodes[id as usize];
        let (passes, lead_s) = (node.passes, (self.now_ms - node.born_ms) as f64 / 1000.0);
        let (p, now_s) = (node.offer as usize, self.now_s());
        self.places.booted(p, passes, now_s);
        if !passes {
            self.node_event(id, NodeEvent::GateFailed)?;
            self.out.counts.boot_failures += u64::from(self.measured());
            self.answered(id, Learnt::Unhealthy);
            return self.end(id);
        }
        self.answered(id, Learnt::Healthy { lead_s });
        self.joins(id)
    }

    /// A node that was checked joins the buffer.
    fn joins(&mut self, id: u32) -> Result<(), SimError> {
        self.node_event(id, NodeEvent::GatePassed)?;
        let node = &mut self.nodes[id as usize];
        node.idle_since_ms = self.now_ms;
        node.joined = true;
        let (gpus, offer) = (node.gpus, node.offer as usize);
        self.gpus.arriving -= i64::from(gpus);
        self.gpus.idle += i64::from(gpus);
        self.shelves[offer].put(u64::from(id), gpus, false);
        self.serve_waiting(offer)
    }

    fn off_the_shelf(&mut self, id: u32) {
        let node = &self.nodes[id as usize];
        let offer = node.offer as usize;
        self.shelves[offer].take(u64::from(id), node.free, false);
    }

    /// The cloud will take a node back: no new claims.
    pub(super) fn notice(&mut self, id: u32) -> Result<(), SimError> {
        if self.nodes[id as usize].state.takes_claims() {
            self.off_the_shelf(id);
            self.node_event(id, NodeEvent::DrainStarted)?;
        }
        Ok(())
    }

    /// A node is gone with its claims, which come again.
    pub(super) fn node_lost(&mut self, id: u32) -> Result<(), SimError> {
        if !self.is_alive(id) {
            return Ok(());
        }
        self.count_money(id);
        let node = &self.nodes[id as usize];
        let (p, hours) = (node.offer as usize, (self.now_ms - node.born_ms) as f64 / 3.6e6);
        let now_s = self.now_s();
        // What the cloud takes back is supply's; what breaks is the place's.
        let fault = self.offers[p].key.market != Market::Spot;
        let (gpus, booting) = (node.gpus, node.state == NodeState::Booting);
        self.supply[p].observe_life(now_s, hours, u32::from(!fault));
        self.places.lived(p, gpus, hours, fault && !booting, now_s);
        if booting {
            self.places.booted(p, false, now_s);
            self.answered(id, Learnt::Unhealthy);
        }
        self.estimates[p] = self.estimate(p);
        self.off_the_shelf(id);
        let claims = self.nodes[id as usize].claims.clone();
        for claim in &claims {
            self.unplace(*claim);
            let at_s = self.now_s();
            let state = &mut self.claims[*claim as usize].state;
            *state = state.after(ClaimEvent::NodeLost).map_err(|source| SimError::Claim { at_s, source })?;
        }
        self.gone(id)?;
        for claim in claims {
            self.out.counts.interrupted += u64::from(self.measured());
            let (class, end_ms) = (self.claims[claim as usize].class, self.claims[claim as usize].end_ms);
            if end_ms > self.now_ms {
                self.claim_comes(ClaimSpec { at_ms: self.now_ms, end_ms, class })?;
            }
        }
        Ok(())
    }

    pub(super) fn lose_all(&mut self, offers: &[usize]) -> Result<(), SimError> {
        let lost: Vec<u32> = self
            .alive
            .iter()
            .copied()
            .filter(|id| offers.contains(&(self.nodes[*id as usize].offer as usize)))
            .collect();
        lost.into_iter().try_for_each(|id| self.node_lost(id))
    }

    /// A fault on a numbered server strikes the node in that place, if there are so many.
    pub(super) fn fault(&mut self, server: u32) -> Result<(), SimError> {
        let Some(&id) = self.alive.get(server as usize) else { return Ok(()) };
        if !self.nodes[id as usize].state.is_arriving() {
            self.out.counts.faults += u64::from(self.measured());
            self.node_lost(id)?;
        }
        Ok(())
    }

    /// The cloud takes back what is above its capacity, the youngest nodes first.
    pub(super) fn reclaim_excess(&mut self, p: usize) -> Result<(), SimError> {
        let excess = self.cloud.excess(self.now_s(), p) as usize;
        let leaving = |id: &u32| self.nodes[*id as usize].state == NodeState::Draining;
        let here: Vec<u32> =
            self.alive.iter().copied().filter(|id| self.nodes[*id as usize].offer as usize == p).collect();
        let already = here.iter().filter(|id| leaving(id)).count();
        let staying: Vec<u32> = here.iter().rev().copied().filter(|id| !leaving(id)).collect();
        for id in staying.into_iter().take(excess.saturating_sub(already)) {
            self.notice(id)?;
            self.queue.push(self.now_ms + ms(self.setup.notice_s), Event::Gone(id));
        }
        Ok(())
    }

    /// The policy gives a node back, if it is still idle.
    pub(super) fn release(&mut self, id: u32) -> Result<bool, SimError> {
        let node = &self.nodes[id as usize];
        if node.state != NodeState::Idle {
            return Ok(false);
        }
        let lived_s = (self.now_ms - node.born_ms) as f64 / 1000.0;
        let p = node.offer as usize;
        let unused_s = (f64::from(self.setup.min_hold_s) - lived_s).max(0.0);
        self.count_money(id);
        self.off_the_shelf(id);
        if self.measured() {
            self.out.money.churn_usd += unused_s * self.price_usd_per_s[p];
            self.out.counts.releases += 1;
        }
        let now_s = self.now_s();
        self.supply[p].observe_life(now_s, lived_s / 3600.0, 0);
        let gpus = self.nodes[id as usize].gpus;
        self.places.lived(p, gpus, lived_s / 3600.0, false, now_s);
        self.end(id)?;
        Ok(true)
    }

    fn end(&mut self, id: u32) -> Result<(), SimError> {
        self.node_event(id, NodeEvent::TerminationSent)?;
        self.gone(id)
    }

    /// The last of a node.
    fn gone(&mut self, id: u32) -> Result<(), SimError> {
        self.node_event(id, NodeEvent::Gone)?;
        let node = &self.nodes[id as usize];
        let p = node.offer as usize;
        let gpus = i64::from(node.gpus);
        if node.joined {
            self.gpus.idle -= gpus;
        } else {
            self.gpus.arriving -= gpus;
        }
        self.spend_usd_per_s -= self.price_usd_per_s[p];
        self.cloud.ended(p);
        if let Ok(place) = self.alive.binary_search(&id) {
            self.alive.remove(place);
        }
        Ok(())
    }

    pub(super) fn reprice(&mut self, p: usize, factor: f64) {
        let of_offer: Vec<u32> =
            self.alive.iter().copied().filter(|id| self.nodes[*id as usize].offer as usize == p).collect();
        of_offer.iter().for_each(|id| self.count_money(*id));
        let usd = self.setup.offers[p].price_usd_micros_per_h.usd() * factor;
        self.offers[p].price_usd_micros_per_h =
            UsdMicros::from_usd(usd).unwrap_or(self.offers[p].price_usd_micros_per_h);
        self.spend_usd_per_s += of_offer.len() as f64 * (usd / 3600.0 - self.price_usd_per_s[p]);
        self.price_usd_per_s[p] = usd / 3600.0;
    }

    /// Counts a node's money up to now. Called before anything about it changes.
    pub(super) fn count_money(&mut self, id: u32) {
        let node = &mut self.nodes[id as usize];
        let from = node.counted_ms.max(self.measure_ms);
        node.counted_ms = self.now_ms;
        if self.now_ms <= from {
            return;
        }
        let seconds = (self.now_ms - from) as f64 / 1000.0;
        let usd = seconds * self.price_usd_per_s[node.offer as usize];
        let gpus = f64::from(node.gpus);
        let used = f64::from(node.gpus - node.free);
        self.out.paid_gpu_s += seconds * gpus;
        self.out.claimed_gpu_s += seconds * used;
        let money = &mut self.out.money;
        if node.state.is_arriving() {
            money.boot_usd += usd;
        } else {
            money.claimed_usd += usd * used / gpus;
            money.idle_usd += usd * (gpus - used) / gpus;
        }
    }
}
