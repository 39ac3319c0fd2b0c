//! Clients: they claim, confirm what they get, keep it by heartbeats, give it back, and ask again where their node was lost.

use fleet::book::{ClaimError, ClaimRequest};
use fleet::{ClaimState, OnEmpty};

use super::super::events::Event;
use super::super::{ClaimSpec, SimError};
use super::World;

/// Who asks for a claim.
#[derive(Debug)]
pub(super) struct Client {
    class: usize,
    at_ms: u64,
    /// When it needs no GPUs any more; of a borrower, once it has GPUs.
    end_ms: u64,
    /// Of a borrower: how long it still needs them, and since when it has them, ms.
    work_ms: u64,
    since_ms: Option<u64>,
    /// Its claim; none where nothing was given and it does not wait.
    claim: Option<u64>,
    /// Where its claim was when it was last looked at.
    state: ClaimState,
    /// Whether it is known to be a hit or a miss.
    judged: bool,
}

impl World<'_> {
    fn claim_error(&self, source: ClaimError) -> SimError {
        SimError::Claim { at_s: self.now_s(), source }
    }

    /// A client asks: of the demand, or one whose node was lost.
    pub(super) fn claim_comes(&mut self, spec: ClaimSpec) -> Result<(), SimError> {
        let class = self.by_name(spec.class as usize);
        if class >= self.planned {
            return self.asks_to_borrow(class, spec.end_ms.saturating_sub(spec.at_ms));
        }
        self.asks(class, spec.at_ms, spec.end_ms)
    }

    /// A borrower asks for idle GPUs, and waits for them; what it has done is not lost when it is called back.
    fn asks_to_borrow(&mut self, class: usize, work_ms: u64) -> Result<(), SimError> {
        let client = self.clients.len() as u32;
        self.clients.push(Client {
            class,
            at_ms: self.now_ms,
            end_ms: u64::MAX,
            work_ms,
            since_ms: None,
            claim: None,
            state: ClaimState::Queued,
            judged: true,
        });
        let limits = *self.book.limits();
        let request = ClaimRequest {
            wait_ms: Some(limits.queue_max_ms),
            lease_ms: Some(limits.lease_max_ms),
            on_empty: Some(OnEmpty::Queue),
            ..ClaimRequest::of(self.rules[class].class.name.clone())
        };
        match self.book.claim(request, self.book_ms()) {
            Ok((claim, _)) => {
                self.waits_for(client, claim);
                Ok(())
            }
            Err(ClaimError::Empty { .. } | ClaimError::QueueFull { .. }) => Ok(()),
            Err(source) => Err(self.claim_error(source)),
        }
    }

    /// A borrower has GPUs from now on.
    fn borrowed(&mut self, client: u32) -> Result<(), SimError> {
        let now_ms = self.now_ms;
        let known = &mut self.clients[client as usize];
        (known.since_ms, known.end_ms) = (Some(now_ms), now_ms + known.work_ms);
        let (claim, end_ms) = (known.claim, known.end_ms);
        self.queue.push(end_ms, Event::ClaimEnd(client));
        let Some(claim) = claim else { return Ok(()) };
        let lease_ms = self.book.limits().lease_max_ms;
        self.book.heartbeat(claim, Some(lease_ms), self.book_ms()).map_err(|e| self.claim_error(e))
    }

    /// Counts what a borrower has paid, up to now.
    pub(super) fn count_loan(&mut self, client: u32) {
        let known = &mut self.clients[client as usize];
        let Some(since_ms) = known.since_ms.take() else { return };
        known.work_ms = known.work_ms.saturating_sub(self.now_ms - since_ms);
        let class = &self.rules[known.class].class;
        let price = class.borrows_usd_micros_per_gpu_h.map_or(0.0, fleet::UsdMicros::usd);
        let hours = self.now_ms.saturating_sub(since_ms.max(self.measure_ms)) as f64 / 3.6e6;
        self.out.money.lent_usd += price * f64::from(class.gpus_per_claim) * hours;
    }

    /// A borrowed claim has ended: one that was called back or lost goes on later.
    fn returned(&mut self, client: u32, was_live: bool) -> Result<(), SimError> {
        self.count_loan(client);
        let Client { class, work_ms, .. } = self.clients[client as usize];
        if work_ms == 0 {
            return Ok(());
        }
        self.out.counts.called_back += u64::from(was_live && self.measured());
        self.asks_to_borrow(class, work_ms)
    }

    fn asks(&mut self, class: usize, at_ms: u64, end_ms: u64) -> Result<(), SimError> {
        let client = self.clients.len() as u32;
        let queued = ClaimState::Queued;
        let (work_ms, since_ms) = (0, None);
        self.clients.push(Client {
            class,
            at_ms,
            end_ms,
            work_ms,
            since_ms,
            claim: None,
            state: queued,
            judged: false,
        });
        if self.measured() {
            self.out.counts.claims += 1;
            self.out.classes[self.setup_class[class]].claims += 1;
        }
        let request = ClaimRequest {
            lease_ms: Some(self.lease_ms(end_ms)),
            snapshot: self.snapshot_of(class, end_ms),
            ..ClaimRequest::of(self.rules[class].class.name.clone())
        };
        match self.book.claim(request, self.book_ms()) {
            Ok((claim, _)) => {
                self.waits_for(client, claim);
                self.queue.push(end_ms, Event::ClaimEnd(client));
            }
            Err(ClaimError::Empty { .. } | ClaimError::QueueFull { .. }) => self.judge(client, false),
            Err(source) => return Err(self.claim_error(source)),
        }
        let demand = self.active[class] + self.queued[class] + u32::from(self.clients[client as usize].claim.is_none());
        self.peak[class] = self.peak[class].max(demand);
        Ok(())
    }

    /// A client has a claim: it is granted when the book says so.
    fn waits_for(&mut self, client: u32, claim: u64) {
        let known = &mut self.clients[client as usize];
        known.claim = Some(claim);
        self.queued[known.class] += 1;
        self.client_of.insert(claim, client);
    }

    /// A lease until a moment after the end, as far as one can be had.
    fn lease_ms(&self, end_ms: u64) -> i64 {
        let until_end_ms = i64::try_from(end_ms.saturating_sub(self.now_ms)).unwrap_or(i64::MAX / 2);
        (until_end_ms + 1000).min(self.book.limits().lease_max_ms)
    }

    pub(super) fn heartbeat(&mut self, client: u32) -> Result<(), SimError> {
        let Client { claim, state, end_ms, .. } = self.clients[client as usize];
        let Some(claim) = claim.filter(|_| state.is_live()) else { return Ok(()) };
        if self.clients[client as usize].class >= self.planned {
            return Ok(());
        }
        let lease_ms = self.lease_ms(end_ms);
        self.book.heartbeat(claim, Some(lease_ms), self.book_ms()).map_err(|e| self.claim_error(e))?;
        if (lease_ms as u64) < end_ms.saturating_sub(self.now_ms) {
            self.queue.push(self.now_ms + lease_ms as u64 / 2, Event::Heartbeat(client));
        }
        Ok(())
    }

    /// The book changed a claim.
    pub(super) fn claim_changed(&mut self, claim: u64) -> Result<(), SimError> {
        let Some(&client) = self.client_of.get(&claim) else { return Ok(()) };
        let Some(found) = self.book.claims().get(&claim) else { return Ok(()) };
        let (state, hit) = (found.state, found.hit);
        if let Some(hit) = hit {
            self.judge(client, hit);
        }
        let known = &mut self.clients[client as usize];
        let (before, class, end_ms) = (known.state, known.class, known.end_ms);
        known.state = state;
        if state == before {
            return Ok(());
        }
        (if before.is_live() { &mut self.active } else { &mut self.queued })[class] -= 1;
        if state.is_live() {
            self.active[class] += 1;
            if !before.is_live() {
                if class >= self.planned {
                    return self.borrowed(client);
                }
                self.granted(client);
                self.starts_from_copy(claim, self.clients[client as usize].at_ms)?;
                return self.heartbeat(client);
            }
            return Ok(());
        }
        self.client_of.remove(&claim);
        if class >= self.planned {
            return self.returned(client, before.is_live());
        }
        if before.is_live() && state == ClaimState::Failed {
            self.out.counts.interrupted += u64::from(self.measured());
            if end_ms > self.now_ms {
                return self.asks(class, self.now_ms, end_ms);
            }
        }
        Ok(())
    }

    fn granted(&mut self, client: u32) {
        // Of all grants, so that what is measured does not change what is drawn.
        let phases: f64 = self.setup.cold_start.iter().map(|(_, dist)| dist.sample(&mut self.claim_rng)).sum();
        let at_ms = self.clients[client as usize].at_ms;
        if at_ms >= self.measure_ms {
            let wait_s = (self.now_ms - at_ms) as f64 / 1000.0;
            self.out.waits.add(wait_s);
            self.out.cold_starts.add(wait_s + phases);
        }
    }

    /// A claim is known to be a hit or a miss, once.
    fn judge(&mut self, client: u32, hit: bool) {
        let client = &mut self.clients[client as usize];
        if std::mem::replace(&mut client.judged, true) || client.at_ms < self.measure_ms {
            return;
        }
        let (class, counts) = (&self.rules[client.class].class, &mut self.out.counts);
        let of_class = &mut self.out.classes[self.setup_class[client.class]];
        if hit {
            counts.hits += 1;
            of_class.hits += 1;
        } else {
            counts.misses += 1;
            of_class.misses += 1;
            of_class.cost_usd += class.miss_cost_usd_micros.usd();
            self.out.money.misses_usd += class.miss_cost_usd_micros.usd();
        }
    }

    /// The client needs nothing more.
    pub(super) fn claim_ends(&mut self, client: u32) -> Result<(), SimError> {
        let Client { claim, state, judged, at_ms, .. } = self.clients[client as usize];
        let Some(claim) = claim.filter(|_| state.is_live() || state == ClaimState::Queued) else { return Ok(()) };
        let given_up = state == ClaimState::Queued && !judged && at_ms >= self.measure_ms;
        self.book.release(claim, "its client is done", self.book_ms()).map_err(|e| self.claim_error(e))?;
        // One that ends as its wait does is a miss.
        let missed = self.book.claims().get(&claim).is_some_and(|c| c.hit.is_some());
        self.out.counts.given_up += u64::from(given_up && !missed);
        Ok(())
    }
}
