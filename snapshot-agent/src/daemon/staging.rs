//! The staging subsystem of the daemon: hears which snapshots the host is to have, has them brought, and says what is there. On
//! threads of its own: a store that hangs stops neither the watching nor a workload.

use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::Context;
use fleet::StagingRoom;
use protocol::staging::{CopyOrder, StagingOrder, StagingReport};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::client::{Client, ClientError};
use super::config;
use super::link::Token;
use crate::snapshots::host::arena::Arena;
use crate::snapshots::host::cache::Cache;
use crate::snapshots::host::peers::{self, Peers};
use crate::snapshots::host::stage::{Facts, Stage};
use crate::snapshots::store::seal::{SealError, SealKey, StoreKeys};

/// What changes is said at most this often.
const SAID_EVERY: Duration = Duration::from_secs(2);
/// And said again after this time: the node may be another to the control plane since.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// Threads that fetch and verify: a GPU host has many, and its workload comes first.
const THREADS: usize = 4;

/// The subsystem.
#[derive(Debug)]
pub struct Staging {
    orders: watch::Sender<Option<StagingOrder>>,
}

/// What others of this host use of it.
#[derive(Debug)]
pub struct Shared {
    /// The leaves of all copies.
    pub cache: Arc<Cache>,
    /// Memory for copies.
    pub arena: Option<Arc<Arena>>,
    /// What is there, as it changes.
    pub facts: watch::Receiver<Facts>,
}

/// The keys of sealed stores.
///
/// # Errors
/// One cannot be read.
pub fn keys(part: &config::Staging) -> Result<StoreKeys, SealError> {
    let keys = part.key.iter().map(|key| Ok((key.store.clone(), SealKey::read(&key.file)?)));
    Ok(StoreKeys::new(keys.collect::<Result<Vec<_>, SealError>>()?))
}

impl Staging {
    /// Starts it, on threads of its own: memory takes a while to be had, and a disk that fails is no reason not to watch GPUs.
    pub fn start(
        part: config::Staging,
        keys: StoreKeys,
        (client, token): (Client, Token),
        (boot, patience): (String, f64),
        share: Sender<Shared>,
    ) -> Self {
        let (orders, heard) = watch::channel(None);
        std::thread::spawn(move || {
            if let Err(error) = run(&part, keys, heard, (client, token), (&boot, patience), share) {
                tracing::error!("no snapshots are staged here: {error:#}");
            }
        });
        Self { orders }
    }

    /// What is to be there; the same again changes nothing, and who else has it interrupts nothing.
    pub fn order(&self, order: StagingOrder) {
        let alone = |order: &StagingOrder| -> Vec<CopyOrder> {
            order.copies.iter().map(|copy| CopyOrder { members: Vec::new(), ..copy.clone() }).collect()
        };
        self.orders.send_if_modified(|known| {
            let same = |known: &StagingOrder| alone(known) == alone(&order) && known.peer_key == order.peer_key;
            let news = !known.as_ref().is_some_and(same);
            *known = Some(order);
            news
        });
    }
}

fn run(
    part: &config::Staging,
    keys: StoreKeys,
    heard: watch::Receiver<Option<StagingOrder>>,
    (client, token): (Client, Token),
    (boot, patience): (&str, f64),
    share: Sender<Shared>,
) -> anyhow::Result<()> {
    let own = part.listen.map(|listen| peers::own_address(listen, part.advertise)).transpose()?;
    let bytes = |gib: f64| (gib * f64::from(1 << 30)) as u64;
    let arena = match part.memory_gib {
        gib if gib > 0.0 => Some(Arc::new(Arena::allocate(bytes(gib))?)),
        _ => None,
    };
    if let Some(arena) = &arena {
        tracing::info!("{} bytes for copies in memory: {}", arena.bytes(), arena.about);
    }
    let memory_bytes = arena.as_ref().map_or(0, |arena| arena.bytes());
    let peers = Peers::new(own.clone());
    let stage = Stage::open(&part.folder, bytes(part.disk_gib), peers.clone(), arena.clone(), keys)?;
    // Who brings nothing up has no use for it.
    let _ = share.send(Shared { cache: stage.cache(), arena, facts: stage.facts() });
    drop(share);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    runtime.context("cannot start threads")?.block_on(async {
        if let Some(listen) = part.listen {
            let bound = TcpListener::bind(listen).await;
            let listener =
                bound.with_context(|| format!("cannot listen at {listen}: choose another staging.listen"))?;
            tokio::spawn(peers::serve(listener, stage.cache(), peers));
        }
        let room = StagingRoom { disk_bytes: stage.room_bytes(), memory_bytes, peer: own, ..StagingRoom::default() };
        let facts = stage.facts();
        tokio::join!(stage.run(heard), say(client, token, boot, (facts, room), patience));
        Ok(())
    })
}

/// Says what is there, as it changes, for ever.
async fn say(
    client: Client,
    token: Token,
    boot: &str,
    (mut facts, room): (watch::Receiver<Facts>, StagingRoom),
    patience: f64,
) {
    let mut last_error = String::new();
    loop {
        let known = facts.borrow_and_update().clone();
        let secret = token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = match secret {
            Some(secret) => {
                let (client, report) = (client.clone(), report(boot, &known, &room));
                let told = tokio::task::spawn_blocking(move || client.staged(&secret, &report)).await;
                told.ok()
            }
            None => None,
        };
        let done = match told {
            Some(Ok(_)) => {
                last_error.clear();
                true
            }
            Some(Err(error)) => {
                let text = error.to_string();
                if text != last_error && !matches!(error, ClientError::Unreachable(_)) {
                    tracing::warn!("the control plane does not hear what is staged here: {text}");
                }
                last_error = text;
                false
            }
            None => false,
        };
        tokio::time::sleep(SAID_EVERY.mul_f64(patience)).await;
        if done {
            let again = SAID_AGAIN.mul_f64(patience);
            if let Ok(Err(_)) = tokio::time::timeout(again, facts.changed()).await {
                return;
            }
        }
    }
}

fn report(boot: &str, facts: &Facts, room: &StagingRoom) -> StagingReport {
    StagingReport {
        boot: boot.to_owned(),
        // What changes a little is no news.
        room: StagingRoom {
            fetch_bytes_per_s: facts.fetch_bytes_per_s.map(two_digits),
            disk_bytes_per_s: facts.disk_bytes_per_s.map(two_digits),
            ..room.clone()
        },
        copies: facts.copies.values().cloned().collect(),
        traffic: facts.traffic,
    }
}

/// A number to two digits.
fn two_digits(value: f64) -> f64 {
    let unit = 10f64.powf(value.abs().max(1.0).log10().floor() - 1.0);
    (value / unit).round() * unit
}

#[cfg(test)]
mod tests {
    use super::two_digits;

    #[test]
    fn two_digits_are_enough() {
        let rounded = [1_234_567.0, 987.6, 0.0, 1.04].map(two_digits);
        for (got, wanted) in rounded.into_iter().zip([1_200_000.0, 990.0, 0.0, 1.0]) {
            assert!((got - wanted).abs() < 1e-6, "{got} {wanted}");
        }
    }
}
