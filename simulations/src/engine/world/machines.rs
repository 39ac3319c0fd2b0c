//! Machines: calls are answered by the simulated clouds, machines boot, pass or fail the gate, are lost, and cost money all
//! the while. What becomes of their nodes is the book's.

use control::calls::{self, EndStep, LaunchStep};
use control::observation::most_ended;
use fleet::book::{Gate, Intent, IntentAction, IntentError, NodeError};
use fleet::cloud::ErrorKind;
use fleet::{Cause, LaunchAnswer, Market, NodeState, UsdMicros};
use providers::sim::{Grant, Refusal};

use super::super::SimError;
use super::super::events::Event;
use super::copies::Copies;
use super::{LOOK_EVERY_MS, World, ms};

/// What a cloud runs.
#[derive(Debug)]
pub(super) struct Machine {
    pub offer: usize,
    /// Its node.
    pub node: u64,
    pub gpus: u32,
    /// Class that a simple policy launched it for.
    pub label: Option<usize>,
    /// The gate's answer, when it comes.
    passes: bool,
    born_ms: u64,
    /// When it will be lost; nobody knows but perfect foresight.
    pub lost_ms: Option<u64>,
    /// Money is counted up to here.
    counted_ms: u64,
    /// State of its node and GPUs of it without a claim, since then.
    state: NodeState,
    pub free: u32,
    /// When it passed its gate.
    pub proven_ms: Option<u64>,
    pub copies: Copies,
}

/// What is paid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// It has ended.
    Nothing,
    /// On its way, or it failed its first gate.
    Booting,
    /// It has claims, or could have.
    Serving,
    /// Out of service for a fault.
    Out,
}

impl Machine {
    /// Whether giving it back takes its launch back: it has not served for as long as it took to boot.
    pub(super) fn is_new(&self, now_ms: u64) -> bool {
        self.proven_ms.is_none_or(|proven| now_ms - proven < proven - self.born_ms)
    }

    pub(super) fn doing(&self) -> Doing {
        use NodeState as S;
        match self.state {
            S::Requested | S::Terminating | S::Terminated => Doing::Nothing,
            _ if self.proven_ms.is_none() => Doing::Booting,
            S::Idle | S::Claimed | S::Draining | S::Diagnosing => Doing::Serving,
            S::Booting | S::Checking | S::Quarantined | S::Repairing | S::Lost => Doing::Out,
        }
    }
}

/// The one boot of each machine.
pub(super) const BOOT: &str = "boot";

impl World<'_> {
    fn node_error(&self, source: NodeError) -> SimError {
        SimError::Node { at_s: self.now_s(), source }
    }

    fn intent_error(&self, source: IntentError) -> SimError {
        SimError::Intent { at_s: self.now_s(), source }
    }

    /// A fleet for the claims of the first moment, on the cheapest offers that have room, healthy at once: every policy
    /// starts from a fleet that was bought at leisure.
    pub(super) fn start_fleet(&mut self) -> Result<(), SimError> {
        self.starting = true;
        for k in (0..self.setup.classes.len()).filter(|k| !self.setup.classes[*k].class.borrows()) {
            let first = self.setup.claims.iter().take_while(|c| c.at_ms == 0).filter(|c| c.class as usize == k).count();
            let class = &self.setup.classes[k].class;
            let mut missing_gpus = first as u32 * class.gpus_per_claim;
            for p in self.book.offers_of(&class.name).to_vec() {
                let offer = &self.setup.offers[p];
                let Ok(share) = fleet::offer_share(offer, class, None) else { continue };
                let usable = (share * f64::from(offer.gpus_per_node)).round().max(1.0) as u32;
                let room = self.setup.supply[p].capacity.at(0.0) as u32;
                let nodes = missing_gpus.div_ceil(usable).min(room);
                let from = self.machines.len();
                if nodes > 0 {
                    let asked = self.book.intend_launch(0, &offer.key, nodes, EXPIRES_MS, 0);
                    let intent = asked.map_err(|e| self.intent_error(e))?;
                    self.labels.insert(intent, self.by_name(k));
                    self.act()?;
                    if self.book.intents().contains_key(&intent) {
                        // Not all could be asked for at this moment: the next offer is next.
                        let why = "more than the provider lets be asked for at once";
                        let closed = self.book.launched(intent, &[], LaunchAnswer::NoCapacity, why, 0);
                        closed.map_err(|e| self.intent_error(e))?;
                    }
                }
                for machine in from..self.machines.len() {
                    self.machines[machine].passes = true;
                    self.gate_answers(machine as u32)?;
                    missing_gpus = missing_gpus.saturating_sub(usable);
                }
                self.settle()?;
            }
        }
        self.starting = false;
        Ok(())
    }

    /// Place among the classes by name of one of the setup's.
    pub(super) fn by_name(&self, class: usize) -> usize {
        self.setup_class.iter().position(|k| *k == class).unwrap_or_default()
    }

    /// Makes the calls that are due, as the server's loop does.
    pub(super) fn act(&mut self) -> Result<(), SimError> {
        self.settle()?;
        for intent in calls::due(&self.book, self.book_ms()) {
            match &intent.action {
                IntentAction::Launch { .. } => self.call_launch(&intent)?,
                IntentAction::Terminate { node } => self.call_end(&intent, *node)?,
            }
            self.settle()?;
        }
        self.act_ms = self.act_ms.filter(|at| *at > self.now_ms);
        let later = self.book.intents().values().map(|i| i.not_before_ms as u64).filter(|at| *at > self.now_ms).min();
        if let Some(at) = later.filter(|at| self.act_ms.is_none_or(|known| *at < known)) {
            self.act_ms = Some(at);
            self.queue.push(at, Event::Act);
        }
        Ok(())
    }

    fn call_launch(&mut self, intent: &Intent) -> Result<(), SimError> {
        let (id, now_ms) = (intent.id, self.book_ms());
        let IntentAction::Launch { offer, nodes } = &intent.action else { return Ok(()) };
        let Some(p) = self.book.offer(offer) else { return Ok(()) };
        // No answer is lost here: nothing is to be looked for.
        if calls::launch_step(intent, now_ms) == LaunchStep::GiveUp {
            let answer = LaunchAnswer::TimedOut;
            let closed = self.book.launched(id, &[], answer, "it was not launched in time", now_ms);
            return closed.map_err(|e| self.intent_error(e));
        }
        self.book.intent_sent(id, now_ms).map_err(|e| self.intent_error(e))?;
        let (grants, refusal) = self.ask_cloud(p, nodes.len());
        let names: Vec<String> = (0..grants.len()).map(|i| format!("i-{}", self.machines.len() + i)).collect();
        let done = match refusal.filter(|_| grants.is_empty()) {
            Some(kind) if kind.may_pass() => {
                let again = calls::again(intent, kind);
                self.book.intent_again(id, now_ms + again.wait_ms, again.no_effect, kind.name())
            }
            Some(kind) => self.book.launched(id, &[], kind.answer(), kind.name(), now_ms),
            None => {
                let (answer, reason) = calls::answer_of(intent, grants.len());
                self.book.launched(id, &names, answer, reason, now_ms)
            }
        };
        done.map_err(|e| self.intent_error(e))?;
        for (grant, name) in grants.into_iter().zip(&names) {
            let node = self.book.nodes_of(name).next().map(|n| n.id);
            self.starts(p, node.unwrap_or_default(), self.labels.get(&id).copied(), grant);
        }
        if self.book.intents().get(&id).is_none_or(|i| !i.state.is_open()) {
            self.labels.remove(&id);
        }
        Ok(())
    }

    /// Asks for machines, one after the other until one is refused.
    fn ask_cloud(&mut self, p: usize, count: usize) -> (Vec<Grant>, Option<ErrorKind>) {
        let mut grants = Vec::new();
        while grants.len() < count {
            match self.cloud.launch(self.now_s(), p, &mut self.cloud_rng) {
                Ok(grant) => grants.push(grant),
                Err(refusal) => {
                    let counts = &mut self.out.counts;
                    let (count, kind) = match refusal {
                        Refusal::Capacity => (&mut counts.refused_capacity, ErrorKind::Capacity),
                        Refusal::Quota => (&mut counts.refused_quota, ErrorKind::Quota),
                        Refusal::Throttled => (&mut counts.refused_throttled, ErrorKind::Throttled),
                    };
                    *count += u64::from(self.now_ms >= self.measure_ms);
                    return (grants, Some(kind));
                }
            }
        }
        (grants, None)
    }

    fn starts(&mut self, p: usize, node: u64, label: Option<usize>, grant: Grant) {
        let (machine, gpus) = (self.machines.len() as u32, self.setup.offers[p].gpus_per_node);
        self.machines.push(Machine {
            offer: p,
            node,
            gpus,
            label,
            passes: grant.passes,
            born_ms: self.now_ms,
            lost_ms: grant.lost_after_s.is_finite().then(|| self.now_ms + ms(grant.lost_after_s)),
            counted_ms: self.now_ms,
            state: NodeState::Requested,
            free: gpus,
            proven_ms: None,
            copies: Copies::default(),
        });
        self.machine_of.insert(node, machine);
        self.out.counts.launches += u64::from(self.measured());
        let ready_ms = self.now_ms + ms(grant.ready_after_s);
        self.queue.push(ready_ms, Event::Gate(machine));
        let given_up_ms = self.now_ms + self.book.limits().boot_max_ms as u64 + 1;
        if ready_ms > given_up_ms {
            self.queue.push(given_up_ms, Event::Look);
        }
        if grant.lost_after_s.is_finite() {
            if self.setup.offers[p].key.market == Market::Spot {
                let noticed_after_s = (grant.lost_after_s - self.setup.notice_s).max(0.0);
                self.queue.push(self.now_ms + ms(noticed_after_s), Event::Notice(machine));
            }
            self.queue.push(self.now_ms + ms(grant.lost_after_s), Event::Gone(machine));
        }
    }

    fn call_end(&mut self, intent: &Intent, node: u64) -> Result<(), SimError> {
        let (id, now_ms) = (intent.id, self.book_ms());
        if calls::provider_of(&self.book, intent).is_none() {
            // The cloud was first.
            return self.book.termination_taken(id, true, now_ms).map_err(|e| self.intent_error(e));
        }
        match calls::end_step(&self.book, intent, node) {
            EndStep::Held(_) | EndStep::NotLaunched => return Ok(()),
            EndStep::Call { .. } => {}
        }
        self.book.intent_sent(id, now_ms).map_err(|e| self.intent_error(e))?;
        self.book.termination_taken(id, false, now_ms).map_err(|e| self.intent_error(e))?;
        if let Some(machine) = self.machine_of.get(&node).map(|m| &self.machines[*m as usize]) {
            let (p, lived_s) = (machine.offer, (self.now_ms - machine.born_ms) as f64 / 1000.0);
            let label = machine.label;
            if self.measured() {
                let unused_s = (f64::from(self.setup.min_hold_s) - lived_s).max(0.0);
                let usd = unused_s * self.price_usd_per_s[p];
                self.out.money.churn_usd += usd;
                if let Some(k) = label {
                    self.out.classes[self.setup_class[k]].cost_usd += usd;
                }
            }
            self.cloud.ended(p);
        }
        self.book.gone(node, "the provider says that it has ended", now_ms).map_err(|e| self.node_error(e))
    }

    /// The boot gate's answer.
    pub(super) fn gate_answers(&mut self, machine: u32) -> Result<(), SimError> {
        let Machine { node, gpus, passes, .. } = self.machines[machine as usize];
        if self.book.nodes().get(&node).is_none_or(|n| n.state != NodeState::Booting) {
            return Ok(());
        }
        let now_ms = self.book_ms();
        self.book.register(node, BOOT, gpus, now_ms).map_err(|e| self.node_error(e))?;
        let said = if passes { Gate::passed() } else { Gate::Failed { mend: None } };
        let reason = if passes { "every check passed" } else { "a check failed" };
        if !passes {
            let check = self.failed_check();
            self.book.blame(node, Cause::Gate(Some(check.into())));
            self.out.counts.boot_failures += u64::from(self.measured());
        }
        self.book.gate(node, BOOT, &said, reason, now_ms).map_err(|e| self.node_error(e))
    }

    /// The book changed a node.
    pub(super) fn node_changed(&mut self, node: u64) -> Result<(), SimError> {
        let Some(&machine) = self.machine_of.get(&node) else { return Ok(()) };
        let Some(found) = self.book.nodes().get(&node) else { return Ok(()) };
        let (state, free) = (found.state, found.free.count());
        self.count_money(machine);
        let now_ms = self.now_ms;
        let known = &mut self.machines[machine as usize];
        (known.state, known.free) = (state, free);
        known.proven_ms = known.proven_ms.or_else(|| state.takes_claims().then_some(now_ms));
        if state == NodeState::Terminated {
            self.machine_of.remove(&node);
        }
        if needs_a_look(state) {
            self.look_soon();
        }
        self.copies_ordered(machine)
    }

    /// Nodes are looked at when the next look is due.
    fn look_soon(&mut self) {
        let at = (self.now_ms / LOOK_EVERY_MS + 1) * LOOK_EVERY_MS;
        if self.look_ms.is_none_or(|known| at < known) {
            self.look_ms = Some(at);
            self.queue.push(at, Event::Look);
        }
    }

    /// Looks at nodes, as the server's loops do: who needs care, which faults have a cause in common, who is to end.
    pub(super) fn look(&mut self) -> Result<(), SimError> {
        let now_ms = self.book_ms();
        self.look_ms = self.look_ms.filter(|at| *at > self.now_ms);
        self.book.tick_nodes(now_ms);
        self.faults.forget(&[], now_ms);
        if !self.faults.is_quiet() {
            self.faults.look(&self.book, &self.learnt.health.faults_per_gpu_h(), now_ms);
            let held = self.faults.held();
            if held != *self.book.held() {
                self.book.set_held(held);
                self.learnt.health.know(&self.book);
            }
        }
        let ended = self.faults.ended(now_ms);
        let most = most_ended(&self.book);
        self.book.clean_up(most, &ended, now_ms);
        self.act()?;
        if self.book.nodes().values().any(|n| needs_a_look(n.state)) {
            self.look_soon();
        }
        Ok(())
    }

    /// The cloud takes a spot machine back; another breaks.
    pub(super) fn machine_lost(&mut self, machine: u32) -> Result<(), SimError> {
        let (node, p) = (self.machines[machine as usize].node, self.machines[machine as usize].offer);
        if !self.machine_of.contains_key(&node) {
            return Ok(());
        }
        let spot = self.setup.offers[p].key.market == Market::Spot;
        if !spot && self.machines[machine as usize].proven_ms.is_some() {
            return self.breaks(machine);
        }
        self.out.counts.reclaims += u64::from(self.measured());
        self.gone(node, p)
    }

    fn gone(&mut self, node: u64, p: usize) -> Result<(), SimError> {
        self.cloud.ended(p);
        self.book.gone(node, "the provider no longer lists it", self.book_ms()).map_err(|e| self.node_error(e))
    }

    pub(super) fn lose_all(&mut self, offers: &[usize]) -> Result<(), SimError> {
        let lost: Vec<(u64, usize)> = self
            .machine_of
            .iter()
            .map(|(node, m)| (*node, self.machines[*m as usize].offer))
            .filter(|(_, p)| offers.contains(p))
            .collect();
        lost.into_iter().try_for_each(|(node, p)| self.gone(node, p))
    }

    /// The cloud takes back what is above its capacity, the youngest machines first.
    pub(super) fn reclaim_excess(&mut self, p: usize) {
        let excess = self.cloud.excess(self.now_s(), p) as usize;
        let here: Vec<u32> =
            self.machine_of.values().copied().filter(|m| self.machines[*m as usize].offer == p).collect();
        let leaving = |m: &u32| self.machines[*m as usize].state == NodeState::Draining;
        let already = here.iter().filter(|m| leaving(m)).count();
        let staying: Vec<u32> = here.iter().rev().copied().filter(|m| !leaving(m)).collect();
        for machine in staying.into_iter().take(excess.saturating_sub(already)) {
            self.book.reclaim_noticed(self.machines[machine as usize].node, self.book_ms());
            self.queue.push(self.now_ms + ms(self.setup.notice_s), Event::Gone(machine));
        }
    }

    pub(super) fn reprice(&mut self, p: usize, factor: f64) {
        let of_offer: Vec<u32> =
            self.machine_of.values().copied().filter(|m| self.machines[*m as usize].offer == p).collect();
        of_offer.iter().for_each(|m| self.count_money(*m));
        let usd = self.setup.offers[p].price_usd_micros_per_h.usd() * factor;
        let mut offer = self.book.offers()[p].clone();
        offer.price_usd_micros_per_h = UsdMicros::from_usd(usd).unwrap_or(offer.price_usd_micros_per_h);
        self.book.set_offers(vec![offer]);
        self.price_usd_per_s[p] = usd / 3600.0;
    }

    /// Counts a machine's money up to now, for what it did until now.
    pub(super) fn count_money(&mut self, machine: u32) {
        let machine = &mut self.machines[machine as usize];
        let from = machine.counted_ms.max(self.measure_ms);
        machine.counted_ms = self.now_ms;
        let doing = machine.doing();
        if self.now_ms <= from || doing == Doing::Nothing {
            return;
        }
        let seconds = (self.now_ms - from) as f64 / 1000.0;
        let usd = seconds * self.price_usd_per_s[machine.offer];
        let gpus = f64::from(machine.gpus);
        let used = f64::from(machine.gpus - machine.free);
        if let Some(k) = machine.label {
            self.out.classes[self.setup_class[k]].cost_usd += usd;
        }
        self.out.paid_gpu_s += seconds * gpus;
        let money = &mut self.out.money;
        match doing {
            Doing::Nothing => {}
            Doing::Booting => money.boot_usd += usd,
            Doing::Out => money.out_usd += usd,
            Doing::Serving => {
                self.out.claimed_gpu_s += seconds * used;
                money.claimed_usd += usd * used / gpus;
                money.idle_usd += usd * (gpus - used) / gpus;
            }
        }
    }
}

/// A launch that has no answer after this time is given up, milliseconds: the server's default.
pub(super) const EXPIRES_MS: i64 = 600_000;

/// Whether something is to be done for a node in this state, now or when its claims have ended.
fn needs_a_look(state: NodeState) -> bool {
    matches!(state, NodeState::Draining | NodeState::Quarantined | NodeState::Repairing | NodeState::Lost)
}
