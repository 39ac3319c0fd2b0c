//! The simulated cloud behind the [`Provider`] trait, in real or accelerated time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use fleet::rng::Rng;
use fleet::{Market, Offer, OfferKey};

use crate::catalogue::RawOffer;
use crate::clock::Clock;
use crate::provider::{LaunchRequest, Provider, ProviderError};
use crate::sim::{Refusal, SimCloud, SimOffer};
use fleet::cloud::{ErrorKind, Instance, InstanceState, Notice};

/// Seconds of warning before a spot instance is taken back.
const NOTICE_S: f64 = 120.0;
/// Instances that ended are listed for so long, seconds.
const ENDED_SHOWN_S: f64 = 600.0;

/// A simulated cloud that runs by the clock.
#[derive(Debug)]
pub struct SimProvider {
    name: String,
    offers: Vec<Offer>,
    clock: Clock,
    /// Simulated seconds in a second.
    speed: f64,
    start_ms: i64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    cloud: SimCloud,
    rng: Rng,
    next: u64,
    instances: BTreeMap<u64, Arc<SimHost>>,
    /// Errors that the next calls answer with, for tests.
    errors: Vec<(ErrorKind, bool)>,
}

/// A simulated host.
#[derive(Debug, Clone)]
pub struct SimHost {
    /// Its instance.
    pub instance: Instance,
    /// What its agent was told to join with.
    pub join: String,
    /// GPUs that it has.
    pub gpus: u32,
    /// When its agent starts, milliseconds since 1970.
    pub agent_at_ms: i64,
    /// When its gate has an answer, milliseconds since 1970.
    pub gate_at_ms: i64,
    /// The gate's answer.
    pub passes: bool,
    offer: usize,
    lost_at_ms: Option<i64>,
    ended_at_ms: Option<i64>,
}

impl SimProvider {
    /// A cloud that sells `offers`, which behave as `supply` says (in the same order), `speed` times as fast as real
    /// ones.
    ///
    /// # Panics
    /// The two lists have different lengths.
    #[must_use]
    pub fn new(name: &str, offers: Vec<Offer>, supply: Vec<SimOffer>, speed: f64, seed: u64, clock: Clock) -> Self {
        assert_eq!(offers.len(), supply.len(), "one supply for each offer");
        let cloud = SimCloud::new(supply, Vec::new(), f64::INFINITY);
        let state = State { cloud, rng: Rng::new(seed), next: 1, instances: BTreeMap::new(), errors: Vec::new() };
        let start_ms = clock.now_ms();
        Self { name: name.into(), offers, clock, speed: speed.max(1e-3), start_ms, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next calls fail so; `after` they took effect, or instead.
    pub fn fail_next(&self, kind: ErrorKind, after: bool) {
        self.lock().errors.push((kind, after));
    }

    /// Hosts that are there now, for whoever plays their agents.
    #[must_use]
    pub fn hosts(&self) -> Vec<Arc<SimHost>> {
        let now_ms = self.clock.now_ms();
        let mut state = self.lock();
        self.let_time_pass(&mut state, now_ms);
        state.instances.values().filter(|h| h.instance.state == InstanceState::Running).cloned().collect()
    }

    fn simulated_s(&self, now_ms: i64) -> f64 {
        (now_ms - self.start_ms) as f64 / 1000.0 * self.speed
    }

    fn let_time_pass(&self, state: &mut State, now_ms: i64) {
        let State { cloud, instances, .. } = state;
        for host in instances.values_mut() {
            if host.instance.state == InstanceState::Running && host.lost_at_ms.is_some_and(|at| at <= now_ms) {
                let host = Arc::make_mut(host);
                host.instance.state = InstanceState::Ended;
                host.ended_at_ms = Some(now_ms);
                cloud.ended(host.offer);
            }
        }
        let shown_ms = (ENDED_SHOWN_S * 1000.0 / self.speed) as i64;
        instances.retain(|_, h| h.ended_at_ms.is_none_or(|at| now_ms - at < shown_ms));
    }

    /// An injected error, if one is due; `after` tells whether the call has been made.
    fn injected(state: &mut State, after: bool) -> Result<(), ProviderError> {
        match state.errors.first() {
            Some(&(kind, when)) if when == after => {
                state.errors.remove(0);
                Err(ProviderError::new(kind, "an error that a test asked for"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Provider for SimProvider {
    fn name(&self) -> &str {
        &self.name
    }

    async fn offers(&self) -> Result<Vec<RawOffer>, ProviderError> {
        Self::injected(&mut self.lock(), false)?;
        Ok(self.offers.iter().map(RawOffer::from).collect())
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<Instance>, ProviderError> {
        let now_ms = self.clock.now_ms();
        let mut guard = self.lock();
        let state = &mut *guard;
        Self::injected(state, false)?;
        self.let_time_pass(state, now_ms);
        let before: Vec<Instance> = state
            .instances
            .values()
            .filter(|h| h.instance.token == request.token)
            .map(|h| h.instance.clone())
            .collect();
        if !before.is_empty() {
            return Ok(before);
        }
        let p = self.offers.iter().position(|o| o.key == request.offer).ok_or_else(|| {
            ProviderError::new(ErrorKind::Configuration, format!("{} does not sell {}", self.name, request.offer))
        })?;
        let now_s = self.simulated_s(now_ms);
        let later_ms = |seconds: f64| now_ms + (seconds * 1000.0 / self.speed) as i64;
        let mut made = Vec::new();
        let mut refusal = None;
        for _ in 0..request.count {
            let grant = match state.cloud.launch(now_s, p, &mut state.rng) {
                Ok(grant) => grant,
                Err(why) => {
                    refusal = Some(why);
                    break;
                }
            };
            let instance = Instance {
                id: format!("{}-{:05}", self.name, state.next),
                offer: request.offer.clone(),
                token: request.token.clone(),
                state: InstanceState::Running,
                launched_at_ms: now_ms,
            };
            let host = SimHost {
                instance: instance.clone(),
                join: request.join.clone(),
                gpus: self.offers[p].gpus_per_node,
                agent_at_ms: later_ms(grant.ready_after_s * 0.8),
                gate_at_ms: later_ms(grant.ready_after_s),
                passes: grant.passes,
                offer: p,
                lost_at_ms: grant.lost_after_s.is_finite().then(|| later_ms(grant.lost_after_s)),
                ended_at_ms: None,
            };
            state.instances.insert(state.next, Arc::new(host));
            state.next += 1;
            made.push(instance);
        }
        Self::injected(state, true)?;
        match refusal {
            Some(why) if made.is_empty() => Err(refused(why, &request.offer)),
            _ => Ok(made),
        }
    }

    async fn terminate(&self, instance: &str) -> Result<(), ProviderError> {
        let now_ms = self.clock.now_ms();
        let mut guard = self.lock();
        let state = &mut *guard;
        Self::injected(state, false)?;
        self.let_time_pass(state, now_ms);
        let State { cloud, instances, .. } = state;
        let host = host_of(instances, instance)?;
        if host.instance.state == InstanceState::Running {
            cloud.ended(host.offer);
        }
        if host.instance.state != InstanceState::Ended {
            host.instance.state = InstanceState::Ended;
            host.ended_at_ms = Some(now_ms);
        }
        Self::injected(state, true)
    }

    async fn list(&self) -> Result<Vec<Instance>, ProviderError> {
        let now_ms = self.clock.now_ms();
        let mut state = self.lock();
        Self::injected(&mut state, false)?;
        self.let_time_pass(&mut state, now_ms);
        Ok(state.instances.values().map(|h| h.instance.clone()).collect())
    }

    async fn notices(&self) -> Result<Vec<Notice>, ProviderError> {
        let now_ms = self.clock.now_ms();
        let state = self.lock();
        let ahead_ms = (NOTICE_S * 1000.0 / self.speed) as i64;
        let due = |h: &&Arc<SimHost>| {
            h.instance.offer.market == Market::Spot
                && h.instance.state == InstanceState::Running
                && h.lost_at_ms.is_some_and(|at| at - now_ms <= ahead_ms)
        };
        let notice =
            |h: &Arc<SimHost>| Notice { instance: h.instance.id.clone(), at_ms: h.lost_at_ms.unwrap_or(now_ms) };
        Ok(state.instances.values().filter(due).map(notice).collect())
    }

    async fn stop(&self, instance: &str) -> Result<(), ProviderError> {
        let mut state = self.lock();
        Self::injected(&mut state, false)?;
        let State { cloud, instances, .. } = &mut *state;
        let host = host_of(instances, instance)?;
        if host.instance.state == InstanceState::Running {
            host.instance.state = InstanceState::Stopped;
            cloud.ended(host.offer);
        }
        Ok(())
    }

    async fn start(&self, instance: &str) -> Result<(), ProviderError> {
        let now_s = self.simulated_s(self.clock.now_ms());
        let mut state = self.lock();
        Self::injected(&mut state, false)?;
        let State { cloud, rng, instances, .. } = &mut *state;
        let host = host_of(instances, instance)?;
        if host.instance.state == InstanceState::Stopped {
            cloud.launch(now_s, host.offer, rng).map_err(|why| refused(why, &host.instance.offer))?;
            host.instance.state = InstanceState::Running;
        }
        Ok(())
    }
}

fn host_of<'a>(instances: &'a mut BTreeMap<u64, Arc<SimHost>>, id: &str) -> Result<&'a mut SimHost, ProviderError> {
    let found = instances.values_mut().find(|h| h.instance.id == id);
    found.map(Arc::make_mut).ok_or_else(|| ProviderError::new(ErrorKind::Gone, format!("there is no instance {id}")))
}

fn refused(why: Refusal, offer: &OfferKey) -> ProviderError {
    let (kind, what) = match why {
        Refusal::Capacity => (ErrorKind::Capacity, "no machine of this kind is free"),
        Refusal::Quota => (ErrorKind::Quota, "the quota is used up"),
        Refusal::Throttled => (ErrorKind::Throttled, "too many calls"),
    };
    ProviderError::new(kind, format!("launch {offer}: {what}"))
}
