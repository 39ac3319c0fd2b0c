//! Machines that you own: they are always there, cost what you say, and are claimed and returned, never bought.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use fleet::Offer;

use crate::catalogue::RawOffer;
use crate::clock::Clock;
use crate::provider::{LaunchRequest, Provider, ProviderError};
use fleet::cloud::{ErrorKind, Hint, Instance, InstanceState, Notice};

/// One kind of machine that you own.
#[derive(Debug, Clone, PartialEq)]
pub struct Owned {
    /// Where it stands and what it has.
    pub offer: Offer,
    /// Host names, one for each machine; the agent on it registers under its name.
    pub hosts: Vec<String>,
}

/// A machine that is in use: the token it was taken with, and since when (milliseconds since 1970).
type Use = (String, i64);

/// Your own machines.
#[derive(Debug)]
pub struct StaticProvider {
    name: String,
    owned: Vec<Owned>,
    clock: Clock,
    in_use: Mutex<BTreeMap<String, Use>>,
}

impl StaticProvider {
    /// With nothing in use.
    #[must_use]
    pub fn new(name: &str, owned: Vec<Owned>, clock: Clock) -> Self {
        Self { name: name.into(), owned, clock, in_use: Mutex::new(BTreeMap::new()) }
    }

    fn instances(&self, in_use: &BTreeMap<String, Use>) -> Vec<Instance> {
        let of = |owned: &Owned| -> Vec<Instance> {
            let used = owned.hosts.iter().filter_map(|h| Some((h, in_use.get(h)?)));
            used.map(|(host, (token, at_ms))| Instance {
                id: host.clone(),
                offer: owned.offer.key.clone(),
                token: token.clone(),
                state: InstanceState::Running,
                launched_at_ms: *at_ms,
            })
            .collect()
        };
        self.owned.iter().flat_map(of).collect()
    }
}

#[async_trait]
impl Provider for StaticProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn recalls(&self) -> bool {
        true
    }

    fn recall(&self, known: &[Instance]) {
        let used = known.iter().map(|i| (i.id.clone(), (i.token.clone(), i.launched_at_ms)));
        *self.in_use.lock().unwrap_or_else(PoisonError::into_inner) = used.collect();
    }

    async fn offers(&self) -> Result<Vec<RawOffer>, ProviderError> {
        Ok(self.owned.iter().map(|o| RawOffer::from(&o.offer)).collect())
    }

    async fn hints(&self) -> Result<Vec<Hint>, ProviderError> {
        let hint = |owned: &Owned| Hint {
            offer: owned.offer.key.clone(),
            fill: None,
            launch_limit_nodes: None,
            nodes_max: u32::try_from(owned.hosts.len()).ok(),
            committed_nodes: 0,
        };
        Ok(self.owned.iter().map(hint).collect())
    }

    async fn launch(&self, request: &LaunchRequest) -> Result<Vec<Instance>, ProviderError> {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let before: Vec<Instance> = self.instances(&in_use).into_iter().filter(|i| i.token == request.token).collect();
        if !before.is_empty() {
            return Ok(before);
        }
        let owned = self.owned.iter().find(|o| o.offer.key == request.offer).ok_or_else(|| {
            ProviderError::new(ErrorKind::Configuration, format!("{} does not have {}", self.name, request.offer))
        })?;
        let free: Vec<&String> =
            owned.hosts.iter().filter(|h| !in_use.contains_key(*h)).take(request.count as usize).collect();
        if free.is_empty() {
            let what = format!("all {} machines of {} are in use", owned.hosts.len(), request.offer);
            return Err(ProviderError::new(ErrorKind::Capacity, what));
        }
        for host in free {
            in_use.insert(host.clone(), (request.token.clone(), self.clock.now_ms()));
        }
        Ok(self.instances(&in_use).into_iter().filter(|i| i.token == request.token).collect())
    }

    async fn terminate(&self, instance: &str) -> Result<(), ProviderError> {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.owned.iter().any(|o| o.hosts.iter().any(|h| h == instance));
        if !known {
            return Err(ProviderError::new(ErrorKind::Gone, format!("there is no machine {instance}")));
        }
        in_use.remove(instance);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Instance>, ProviderError> {
        Ok(self.instances(&self.in_use.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    async fn notices(&self) -> Result<Vec<Notice>, ProviderError> {
        Ok(Vec::new())
    }
}
