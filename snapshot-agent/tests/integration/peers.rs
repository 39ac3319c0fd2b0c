//! Hosts of a zone have copies from each other, and believe nothing.
#![allow(clippy::disallowed_methods, reason = "real sockets take real time")]

use std::io::{Read, Write};
use std::net::TcpListener as Plain;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fleet::{Presence, Tier};
use protocol::staging::{CopyOrder, StagingOrder, Traffic};
use snapshot_agent::snapshots::host::arena::Arena;
use snapshot_agent::snapshots::host::peers::{Peers, serve};
use snapshot_agent::snapshots::host::stage::{Facts, Stage};
use snapshot_agent::snapshots::store::seal::StoreKeys;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::store::{Place, noise, ok};

pub const BYTES: usize = 96 << 20;

/// A host that stages.
pub struct Host {
    address: String,
    orders: watch::Sender<Option<StagingOrder>>,
    pub facts: watch::Receiver<Facts>,
    pub cache: tempfile::TempDir,
}

impl Host {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    pub async fn start_with(arena: Option<Arc<Arena>>) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arena).await
    }

    /// The same disk, in another process.
    pub async fn restarted(self) -> Self {
        let Self { cache, orders, .. } = self;
        drop(orders);
        Self::start_in(cache, None).await
    }

    async fn start_in(cache: tempfile::TempDir, arena: Option<Arc<Arena>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let peers = Peers::new(Some(address.clone()));
        let stage = Stage::open(cache.path(), 1 << 30, peers.clone(), arena, StoreKeys::default()).unwrap();
        let (orders, heard) = watch::channel(None);
        let facts = stage.facts();
        tokio::spawn(serve(listener, stage.cache(), peers));
        tokio::spawn(stage.run(heard));
        Self { address, orders, facts, cache }
    }

    fn order(&self, object: &str, store: &Path, peers: &[String], key: &str) {
        self.order_in(object, store, Tier::Disk, (peers, key));
    }

    pub fn order_in(&self, object: &str, store: &Path, tier: Tier, (peers, key): (&[String], &str)) {
        let members = peers.to_vec();
        let store = store.display().to_string();
        let copy = CopyOrder { object: object.into(), store, bytes: BYTES as u64, tier, members };
        let order = StagingOrder { copies: vec![copy], peer_key: Some(key.into()), version: 1 };
        self.orders.send_replace(Some(order));
    }

    /// What it moved, once its copy is whole.
    async fn whole(&mut self) -> Traffic {
        self.is(Presence::Disk).await
    }

    pub async fn is(&mut self, presence: Presence) -> Traffic {
        let whole = |facts: &Facts| facts.copies.values().any(|copy| copy.presence == presence);
        let waited = tokio::time::timeout(Duration::from_secs(60), self.facts.wait_for(whole)).await;
        let late = waited.is_err();
        drop(waited);
        let facts = self.facts.borrow().clone();
        assert!(!late, "not whole: {facts:?}");
        assert_eq!(facts.copies.values().map(|copy| copy.bytes).sum::<u64>(), BYTES as u64);
        facts.traffic
    }
}

pub fn stored(place: &Place) -> (String, std::path::PathBuf) {
    let store = place.store();
    let model = place.path("large");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(format!("{model}/weights"), noise(BYTES, 11)).unwrap();
    (ok(&store, &["put", &model]).0, store)
}

/// Eight hosts that are told at the same time take the bytes out of the store about twice, and a later one not at all.
#[allow(clippy::print_stdout, reason = "what a zone fetches is measured here")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_fetches_about_twice() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let mut hosts = Vec::new();
    for _ in 0..8 {
        hosts.push(Host::start().await);
    }
    let addresses: Vec<String> = hosts.iter().map(|host| host.address.clone()).collect();
    for host in &hosts {
        host.order(&object, &store, &addresses, "zone a");
    }
    let (mut from_store, mut from_peers) = (0, 0);
    for host in &mut hosts {
        let moved = host.whole().await;
        from_store += moved.store_bytes;
        from_peers += moved.peer_bytes;
    }
    println!("out of the store {:.2} times, {from_peers} bytes from peers", from_store as f64 / BYTES as f64);
    assert!(from_store <= 3 * BYTES as u64, "{from_store} of 8 times {BYTES}");
    assert!(from_store + from_peers >= 8 * BYTES as u64);
    let mut late = Host::start().await;
    late.order(&object, &store, &addresses, "zone a");
    let moved = late.whole().await;
    assert_eq!((moved.store_bytes, moved.peer_bytes), (0, BYTES as u64));
    // Who does not know the zone's key gets nothing.
    let mut stranger = Host::start().await;
    stranger.order(&object, &store, &addresses, "another");
    let moved = stranger.whole().await;
    assert_eq!((moved.store_bytes, moved.peer_bytes), (BYTES as u64, 0));
}

/// Peers that lie, hang, close, promise too much or are not there: the copy comes from the store, whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peers_cost_time_and_nothing_else() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let mut bad = Vec::new();
    for kind in 0..5 {
        let listener = Plain::bind("127.0.0.1:0").unwrap();
        bad.push(listener.local_addr().unwrap().to_string());
        if kind == 0 {
            // Nobody listens there any more.
            continue;
        }
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || misbehave(stream, kind));
            }
        });
    }
    let mut host = Host::start().await;
    let began = Instant::now();
    host.order(&object, &store, &bad, "zone a");
    let moved = host.whole().await;
    assert_eq!((moved.store_bytes, moved.peer_bytes), (BYTES as u64, 0));
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
}

fn misbehave(mut stream: std::net::TcpStream, kind: u32) {
    let _ = stream.write_all(b"PLPEER01");
    let _ = stream.write_all(&[7; 32]);
    let mut count = [0; 4];
    if stream.read_exact(&mut [0; 32]).is_err() || stream.read_exact(&mut count).is_err() {
        return;
    }
    let _ = stream.read_exact(&mut vec![0; 32 * u32::from_le_bytes(count) as usize]);
    let answer = match kind {
        // Something else, of a length that may be.
        1 => [&(2_u32 << 20).to_le_bytes()[..], &vec![9; 2 << 20]].concat(),
        // More than there is memory for.
        2 => 0xffff_fff0_u32.to_le_bytes().to_vec(),
        // Half of it, and then nothing for ever.
        3 => {
            let _ = stream.write_all(&(1_u32 << 20).to_le_bytes());
            std::thread::sleep(Duration::from_secs(120));
            return;
        }
        // Goes away.
        _ => return,
    };
    let _ = stream.write_all(&answer);
    std::thread::sleep(Duration::from_secs(1));
}

/// A client that knows the key and asks for nonsense ends its own connection, and the host serves on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_serves_on_whatever_it_is_asked() {
    let place = Place::new();
    let (object, store) = stored(&place);
    let mut host = Host::start().await;
    host.order(&object, &store, &[], "zone a");
    host.whole().await;
    let key = blake3::derive_key("pilotlight 2026 leaves between hosts of a zone", b"zone a");
    for text in [&[0_u8; 4][..], &u32::MAX.to_le_bytes(), &65_u32.to_le_bytes(), b"GET / HTTP/1.1\r\n\r\n"] {
        let address = host.address.clone();
        let text = text.to_vec();
        let closed = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut hello = [0; 40];
            stream.read_exact(&mut hello).unwrap();
            assert_eq!(&hello[..8], b"PLPEER01");
            stream.write_all(blake3::keyed_hash(&key, &hello[8..]).as_bytes()).unwrap();
            stream.write_all(&text).unwrap();
            matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
        });
        assert!(closed.await.unwrap());
    }
    let mut late = Host::start().await;
    late.order(&object, &store, std::slice::from_ref(&host.address), "zone a");
    assert_eq!(late.whole().await.store_bytes, 0);
}
