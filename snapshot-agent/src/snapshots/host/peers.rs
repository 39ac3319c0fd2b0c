//! Leaves from other hosts of the zone, and for them: whoever has a leaf serves it, so that a pack leaves the object store about
//! twice for each 64 hosts of a zone and not once for each. Whatever a peer sends is verified like anything else that enters the host.
//!
//! A connection: the server sends [`HELLO`] and 32 random bytes; the client answers with their BLAKE3 hash under the zone's key.
//! Then any number of times: a count (u32) and as many leaf ids (32 bytes each); and for each, in their order, a length (u32)
//! and so many bytes, or [`NOT_HERE`]. Numbers are little-endian.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use snapshots::leaf::LEAF_BYTES;
use snapshots::{LeafId, PackId, peers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::{Cache, Content};

/// First bytes of a connection, with the version of what is spoken.
const HELLO: [u8; 8] = *b"PLPEER01";
/// In place of a length.
const NOT_HERE: u32 = u32::MAX;
/// Leaves of one request.
const LEAVES_MAX: usize = 64;
/// Connections that are served at the same time.
const SERVED_MAX: usize = 256;
/// Requests to peers at the same time: each is at most 8 MiB as it is stored, 128 MiB in memory.
const ASKING_MAX: usize = 8;
/// Connections to one peer that are kept.
const IDLE_MAX: usize = 4;
/// A connection that says nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// What a peer may take to answer at all, and for a request.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);
/// A peer that failed is left alone for so long; one that sent something wrong, for longer.
const FAILED_PAUSE: Duration = Duration::from_secs(15);
const LIED_PAUSE: Duration = Duration::from_secs(600);
/// Peers that are asked for a leaf before the store is.
const ASKED_MAX: usize = 3;

/// The zone's key, from the text that the control plane gives.
fn key_of(text: &str) -> [u8; 32] {
    blake3::derive_key("pilotlight 2026 leaves between hosts of a zone", text.as_bytes())
}

/// What was sent and received.
#[derive(Debug, Default)]
pub struct Counts {
    /// Bytes of leaves that peers sent.
    pub received_bytes: AtomicU64,
    /// Bytes of leaves that were sent to peers.
    pub sent_bytes: AtomicU64,
}

/// Other hosts of the zone, as far as this one knows them.
#[derive(Debug)]
pub struct Peers {
    /// Where others reach this host; none: it serves nobody.
    own: Option<String>,
    key: Mutex<Option<[u8; 32]>>,
    known: Mutex<BTreeMap<String, Peer>>,
    asking: Semaphore,
    /// What was sent and received.
    pub counts: Counts,
}

#[derive(Debug, Default)]
struct Peer {
    idle: Vec<TcpStream>,
    left_alone_until: Option<Instant>,
}

impl Peers {
    /// Nobody yet.
    #[must_use]
    pub fn new(own: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            own,
            key: Mutex::default(),
            known: Mutex::default(),
            asking: Semaphore::new(ASKING_MAX),
            counts: Counts::default(),
        })
    }

    /// What hosts prove themselves with from now on.
    pub fn set_key(&self, text: Option<&str>) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = text.map(key_of);
    }

    fn key(&self) -> Option<[u8; 32]> {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Peer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all hosts but these.
    pub fn keep(&self, members: &[String]) {
        self.known().retain(|address, _| members.contains(address));
    }

    /// Whether this host is one of those of `members` that fetch a pack from afar for all of them; without any it is.
    #[must_use]
    pub fn is_home(&self, pack: PackId, members: &[String]) -> bool {
        let all: Vec<&str> = members.iter().map(String::as_str).collect();
        let mut homes = peers::ranked(pack, &all).into_iter().take(peers::HOMES);
        members.is_empty() || homes.any(|member| Some(member) == self.own.as_deref())
    }

    /// A number below `of`, this host's own.
    #[must_use]
    pub fn place_among(&self, of: usize) -> usize {
        let hash = blake3::hash(self.own.as_deref().unwrap_or_default().as_bytes());
        let number = hash.as_bytes().iter().take(4).fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
        number.checked_rem(of).unwrap_or(0)
    }

    /// Leaves of one pack from `members`: those that fetch it for all are asked first. Each leaf is what its id says, or none.
    pub async fn get(&self, pack: PackId, leaves: &[LeafId], members: &[String]) -> Vec<Option<Vec<u8>>> {
        let mut got: Vec<Option<Vec<u8>>> = vec![None; leaves.len()];
        let Some(key) = self.key() else { return got };
        // The semaphore is never closed.
        let _place = self.asking.acquire().await;
        let names: Vec<&str> = self.others(members).collect();
        let able = peers::ranked(pack, &names).into_iter().filter(|name| !self.is_left_alone(name));
        for address in able.take(ASKED_MAX).collect::<Vec<_>>() {
            let missing: Vec<usize> = (0..leaves.len()).filter(|i| got[*i].is_none()).take(LEAVES_MAX).collect();
            if missing.is_empty() {
                break;
            }
            let ids: Vec<LeafId> = missing.iter().map(|i| leaves[*i]).collect();
            match self.ask(address, &key, &ids).await {
                Ok(answers) => missing.into_iter().zip(answers).for_each(|(i, answer)| got[i] = answer),
                Err(error) => {
                    let lied = error.is::<Lie>();
                    self.leave_alone(address, if lied { LIED_PAUSE } else { FAILED_PAUSE });
                    tracing::debug!(peer = address, "a peer is left alone for a while: {error:#}");
                }
            }
        }
        got
    }

    /// Whether any of these hosts can be asked now.
    #[must_use]
    pub fn any(&self, members: &[String]) -> bool {
        self.key().is_some() && self.others(members).any(|member| !self.is_left_alone(member))
    }

    fn others<'a>(&'a self, members: &'a [String]) -> impl Iterator<Item = &'a str> {
        members.iter().map(String::as_str).filter(|member| Some(*member) != self.own.as_deref())
    }

    fn is_left_alone(&self, address: &str) -> bool {
        self.known().get(address).is_some_and(|peer| peer.left_alone_until.is_some_and(|until| until > now()))
    }

    fn leave_alone(&self, address: &str, pause: Duration) {
        let until = Some(now() + pause);
        self.known().insert(address.to_owned(), Peer { idle: Vec::new(), left_alone_until: until });
    }

    /// Leaves from one peer; a kept connection may have been closed meanwhile, so then once more by a new one.
    async fn ask(&self, address: &str, key: &[u8; 32], ids: &[LeafId]) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
        let idle = self.known().get_mut(address).and_then(|peer| peer.idle.pop());
        let first = match idle {
            Some(mut stream) => timeout(ANSWER, request(&mut stream, ids)).await.ok().map(|got| (got, stream)),
            None => None,
        };
        let (answers, stream) = match first {
            Some((Ok(answers), stream)) => (answers, stream),
            _ => {
                let mut stream = timeout(CONNECT, connect(address, key)).await.context("it does not answer")??;
                (timeout(ANSWER, request(&mut stream, ids)).await.context("it does not answer")??, stream)
            }
        };
        for (id, answer) in ids.iter().zip(&answers) {
            let Some(content) = answer else { continue };
            if LeafId::of(content) != *id {
                bail!(Lie);
            }
            self.counts.received_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        }
        let mut known = self.known();
        let peer = known.entry(address.to_owned()).or_default();
        if peer.idle.len() < IDLE_MAX {
            peer.idle.push(stream);
        }
        Ok(answers)
    }
}

/// A peer sent something else than what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("it sent something else than what it was asked for")]
struct Lie;

async fn connect(address: &str, key: &[u8; 32]) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut hello = [0; HELLO.len() + 32];
    stream.read_exact(&mut hello).await?;
    let (word, nonce) = hello.split_at(HELLO.len());
    if word != HELLO {
        bail!("it speaks another language");
    }
    stream.write_all(blake3::keyed_hash(key, nonce).as_bytes()).await?;
    Ok(stream)
}

async fn request(stream: &mut TcpStream, ids: &[LeafId]) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
    let mut text = Vec::with_capacity(4 + 32 * ids.len());
    text.extend((ids.len() as u32).to_le_bytes());
    ids.iter().for_each(|id| text.extend(id.0));
    stream.write_all(&text).await?;
    let mut answers = Vec::with_capacity(ids.len());
    for _ in ids {
        let bytes = stream.read_u32_le().await?;
        if bytes == NOT_HERE {
            answers.push(None);
            continue;
        }
        if bytes as usize > LEAF_BYTES {
            bail!(Lie);
        }
        let mut content = vec![0; bytes as usize];
        stream.read_exact(&mut content).await?;
        answers.push(Some(content));
    }
    Ok(answers)
}

/// Serves the leaves of a cache to other hosts of the zone, for ever.
pub async fn serve(listener: TcpListener, cache: Arc<Cache>, peers: Arc<Peers>) {
    let served = Arc::new(Semaphore::new(SERVED_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("no peer can be heard: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        // Whoever comes when all places are taken is not kept waiting: the store has it too.
        let Ok(place) = Arc::clone(&served).try_acquire_owned() else { continue };
        let (cache, peers) = (cache.clone(), peers.clone());
        tokio::spawn(async move {
            let _place = place;
            // A peer that goes away is no fault of this host.
            drop(answer(stream, &cache, &peers).await);
        });
    }
}

async fn answer(mut stream: TcpStream, cache: &Arc<Cache>, peers: &Peers) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let key = peers.key().context("no key is known yet")?;
    let mut hello = [0; HELLO.len() + 32];
    let (word, nonce) = hello.split_at_mut(HELLO.len());
    word.copy_from_slice(&HELLO);
    rustix::rand::getrandom(&mut *nonce, rustix::rand::GetRandomFlags::empty())?;
    let expected = blake3::keyed_hash(&key, nonce);
    stream.write_all(&hello).await?;
    let mut proof = [0; 32];
    timeout(ANSWER, stream.read_exact(&mut proof)).await??;
    // Compared in a time that says nothing of where they differ.
    anyhow::ensure!(expected == blake3::Hash::from_bytes(proof), "it does not know the zone's key");
    loop {
        let count = timeout(IDLE, stream.read_u32_le()).await?? as usize;
        anyhow::ensure!((1..=LEAVES_MAX).contains(&count), "{count} leaves in one request");
        let mut ids = vec![0; 32 * count];
        timeout(ANSWER, stream.read_exact(&mut ids)).await??;
        for id in ids.chunks_exact(32) {
            let id = LeafId(id.try_into()?);
            let cache = cache.clone();
            let content = tokio::task::spawn_blocking(move || leaf(&cache, id)).await?;
            let length = content.as_ref().map_or(NOT_HERE, |content| content.len() as u32);
            let sent = async {
                stream.write_u32_le(length).await?;
                stream.write_all(content.as_deref().unwrap_or_default()).await
            };
            timeout(ANSWER, sent).await??;
            peers.counts.sent_bytes.fetch_add(content.map_or(0, |content| content.len() as u64), Ordering::Relaxed);
        }
    }
}

/// A leaf that lies here, verified.
fn leaf(cache: &Cache, id: LeafId) -> Option<Vec<u8>> {
    let Content::File(file) = cache.get(id)? else { return None };
    let bytes = file.metadata().ok()?.len().min(LEAF_BYTES as u64);
    let mut content = vec![0; bytes as usize];
    std::os::unix::fs::FileExt::read_exact_at(&*file, &mut content, 0).ok()?;
    Some(content)
}

/// Where other hosts reach what listens at `listen`: there, or at `advertise`.
///
/// # Errors
/// Neither says a machine.
pub fn own_address(listen: SocketAddr, advertise: Option<SocketAddr>) -> anyhow::Result<String> {
    let address = advertise.unwrap_or(listen);
    anyhow::ensure!(
        !address.ip().is_unspecified() && address.port() > 0,
        "{address} is no address that other hosts reach: write staging.advertise = \"10.0.0.7:7071\""
    );
    Ok(address.to_string())
}

#[allow(clippy::disallowed_methods, reason = "peers take real time")]
fn now() -> Instant {
    Instant::now()
}
