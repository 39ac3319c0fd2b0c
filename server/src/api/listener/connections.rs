//! Who is connected: how many, from where, and which connection goes when there is no room.
//!
//! A connection is a stranger's until a request on it was let in. Strangers get a half of the room and each address a half of
//! theirs, so that whoever opens connections without end finds only his own closed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections at the same time, where descriptors allow.
pub const CONNECTIONS_MAX: usize = 10_000;
/// Descriptors that are kept for the database, the log and the calls to clouds.
const DESCRIPTORS_KEPT: u64 = 128;
/// A client must finish the TLS handshake and send its first request's head within this time.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A stranger's connection without a request is closed after this time.
const IDLE_STRANGER: Duration = Duration::from_secs(30);
/// Any other.
const IDLE_KNOWN: Duration = Duration::from_secs(300);
/// A client that takes nothing of what is written to it for so long is gone.
const STALLED: Duration = Duration::from_secs(30);
/// Bytes that a connection may send without a request that explains them, at once and a second in the long run: pings and
/// settings of HTTP/2 are 9 to 50 bytes each.
const UNASKED_BYTES: i64 = 2 * 1024 * 1024;
const UNASKED_BYTES_PER_S: i64 = 4 * 1024;

/// Where a connection comes from: one IPv4 address, or the /64 of an IPv6 address, which is what one customer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin(IpAddr);

impl Origin {
    /// Of an address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => {
                Self(IpAddr::V6(std::net::Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))))
            }
            other => Self(other),
        }
    }
}

/// One connection, as its tasks and its requests share it.
#[derive(Debug)]
pub struct Connection {
    /// Where it comes from.
    pub origin: Origin,
    since: Instant,
    known: AtomicBool,
    /// Requests that were begun, ever.
    begun: AtomicU64,
    /// Requests whose answers are not sent yet.
    open: AtomicU32,
    /// When its last request ended, milliseconds after `since`.
    rests_since_ms: AtomicU64,
    /// Since when the client takes nothing, milliseconds after `since`, one more; 0: it does.
    stalled_since_ms: AtomicU64,
    unasked: Mutex<(i64, Instant)>,
    /// Set once it is to end at once.
    close: Notify,
    /// Set once it is to end when what is open has been answered.
    retire: Notify,
}

impl Connection {
    fn new(origin: Origin) -> Self {
        let since = Instant::now();
        Self {
            origin,
            since,
            known: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            open: AtomicU32::new(0),
            rests_since_ms: AtomicU64::new(0),
            stalled_since_ms: AtomicU64::new(0),
            unasked: Mutex::new((UNASKED_BYTES, since)),
            close: Notify::new(),
            retire: Notify::new(),
        }
    }

    fn age_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A request begins, which explains so many bytes; it ends when what is returned is dropped.
    pub fn request(self: &Arc<Self>, bytes: i64) -> OpenRequest {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut unasked = self.unasked.lock();
        unasked.0 = (unasked.0 + bytes).min(UNASKED_BYTES);
        OpenRequest(Arc::clone(self))
    }

    /// Bytes were received. Returns whether that is too many without a request that explains them.
    pub fn received(&self, bytes: usize) -> bool {
        let mut unasked = self.unasked.lock();
        let passed_ms = i64::try_from(unasked.1.elapsed().as_millis()).unwrap_or(0);
        if passed_ms > 100 {
            unasked.0 = (unasked.0 + passed_ms * UNASKED_BYTES_PER_S / 1000).min(UNASKED_BYTES);
            unasked.1 = Instant::now();
        }
        unasked.0 -= i64::try_from(bytes).unwrap_or(i64::MAX);
        unasked.0 < 0
    }

    /// The client takes what is written, or does not.
    pub fn takes(&self, takes: bool) {
        let since = if takes { 0 } else { self.age_ms() + 1 };
        if takes {
            self.stalled_since_ms.store(since, Ordering::Relaxed);
        } else {
            let _ = self.stalled_since_ms.compare_exchange(0, since, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Waits until it is to end at once.
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    /// Waits until it is to end when what is open has been answered.
    pub async fn retired(&self) {
        self.retire.notified().await;
    }

    fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// What is to become of it after so much time.
    fn due(&self) -> Due {
        let age_ms = self.age_ms();
        let over = |since_ms: u64, limit: Duration| u128::from(age_ms.saturating_sub(since_ms)) > limit.as_millis();
        let stalled_ms = self.stalled_since_ms.load(Ordering::Relaxed);
        if stalled_ms > 0 && over(stalled_ms - 1, STALLED) {
            return Due::Close;
        }
        if self.begun.load(Ordering::Relaxed) == 0 {
            return if over(0, HEAD_TIMEOUT) { Due::Close } else { Due::Stay };
        }
        let limit = if self.known.load(Ordering::Relaxed) { IDLE_KNOWN } else { IDLE_STRANGER };
        let rests_ms = self.rests_since_ms.load(Ordering::Relaxed);
        match self.is_idle() {
            // Whoever was told to go and stays is closed.
            true if over(rests_ms, limit + HEAD_TIMEOUT) => Due::Close,
            true if over(rests_ms, limit) => Due::Retire,
            _ => Due::Stay,
        }
    }
}

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Stay,
    Retire,
    Close,
}

/// A request whose answer is not sent yet.
#[derive(Debug)]
pub struct OpenRequest(Arc<Connection>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.rests_since_ms.store(self.0.age_ms(), Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By age, the oldest first.
    all: BTreeMap<u64, Arc<Connection>>,
    /// Connections of strangers by where they come from.
    strangers: HashMap<Origin, usize>,
}

impl Table {
    fn forget_stranger(&mut self, origin: Origin) {
        if let Some(count) = self.strangers.get_mut(&origin) {
            *count -= 1;
            if *count == 0 {
                self.strangers.remove(&origin);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(gone) = self.all.remove(&id)
            && !gone.known.load(Ordering::Relaxed)
        {
            self.forget_stranger(gone.origin);
        }
    }

    /// Closes the oldest one without an open request of those that `is` says. Returns whether there was one.
    fn close_oldest(&mut self, is: impl Fn(&Connection) -> bool) -> bool {
        let found = self.all.iter().find(|(_, c)| c.is_idle() && is(c)).map(|(id, c)| (*id, Arc::clone(c)));
        let Some((id, connection)) = found else { return false };
        connection.close.notify_one();
        self.remove(id);
        true
    }
}

/// All that are open.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    table: Mutex<Table>,
}

impl Connections {
    /// Room for as many as the descriptors of the process allow.
    pub fn new() -> Arc<Self> {
        Self::with_room(room(descriptors()))
    }

    fn with_room(most: usize) -> Arc<Self> {
        Arc::new(Self { most, table: Mutex::default() })
    }

    /// Takes a new one in. Where there is no room an idle one goes: of the address with the most strangers first, then of any
    /// stranger, then the one that has rested. None where all are busy.
    pub fn enter(self: &Arc<Self>, origin: Origin) -> Option<Entered> {
        let mut table = self.table.lock();
        let strangers_max = self.most / 2;
        let mine = table.strangers.get(&origin).copied().unwrap_or(0);
        let strangers: usize = table.strangers.values().sum();
        let is_stranger = |c: &Connection| !c.known.load(Ordering::Relaxed);
        if mine >= strangers_max / 2 {
            table.close_oldest(|c| is_stranger(c) && c.origin == origin).then_some(())?;
        } else if strangers >= strangers_max || table.all.len() >= self.most {
            let most = table.strangers.iter().max_by_key(|(_, count)| **count).map(|(origin, _)| *origin);
            let made_room = table.close_oldest(|c| is_stranger(c) && Some(c.origin) == most)
                || table.close_oldest(is_stranger)
                || strangers < strangers_max && table.close_oldest(|_| true);
            made_room.then_some(())?;
        }
        let id = table.next;
        table.next += 1;
        let connection = Arc::new(Connection::new(origin));
        table.all.insert(id, Arc::clone(&connection));
        *table.strangers.entry(origin).or_default() += 1;
        Some(Entered { id, connection, all: Arc::clone(self) })
    }

    /// Out of descriptors: an idle one goes.
    pub fn make_room(&self) {
        let mut table = self.table.lock();
        if !table.close_oldest(|c| !c.known.load(Ordering::Relaxed)) {
            table.close_oldest(|_| true);
        }
    }

    /// A request on it was let in.
    pub fn let_in(&self, connection: &Connection) {
        if !connection.known.load(Ordering::Relaxed) {
            let mut table = self.table.lock();
            if !connection.known.swap(true, Ordering::Relaxed) {
                table.forget_stranger(connection.origin);
            }
        }
    }

    /// Ends those whose time is over.
    pub fn sweep(&self) {
        for connection in self.table.lock().all.values() {
            match connection.due() {
                Due::Stay => {}
                Due::Retire => connection.retire.notify_one(),
                Due::Close => connection.close.notify_one(),
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.lock().all.len()
    }
}

/// A connection that was taken in; dropping it gives its place back.
#[derive(Debug)]
pub struct Entered {
    id: u64,
    /// What its tasks share.
    pub connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.table.lock().remove(self.id);
    }
}

/// How many connections so many descriptors allow.
fn room(descriptors: u64) -> usize {
    let left = descriptors.saturating_sub(DESCRIPTORS_KEPT).max(descriptors / 2);
    usize::try_from(left).unwrap_or(CONNECTIONS_MAX).clamp(8, CONNECTIONS_MAX)
}

/// How many descriptors this process may have, after it has asked for as many as it may.
fn descriptors() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = CONNECTIONS_MAX as u64 + DESCRIPTORS_KEPT;
    let current = now.current.unwrap_or(u64::MAX);
    let most = now.maximum.unwrap_or(u64::MAX).min(wanted);
    if current >= most {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: now.maximum }) {
        Ok(()) => most,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(last: u8) -> Origin {
        Origin::of(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn descriptors_leave_room_for_the_rest() {
        assert_eq!([room(1024), room(20_000), room(100), room(0)], [896, CONNECTIONS_MAX, 50, 8]);
    }

    #[test]
    fn one_customer_of_ipv6_is_one_origin() {
        let origin = |text: &str| Origin::of(text.parse().expect("an address"));
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), from(1));
    }

    #[tokio::test]
    async fn whoever_opens_without_end_finds_his_own_closed() {
        let all = Connections::with_room(40);
        let mut honest: Vec<Entered> = (0..10).map(|_| all.enter(from(1)).expect("room")).collect();
        honest.iter().for_each(|e| all.let_in(&e.connection));
        let one = all.enter(from(2)).expect("room");
        let flood: Vec<Entered> = (0..1000).filter_map(|_| all.enter(from(3))).collect();
        assert_eq!(flood.len(), 1000, "a new one finds room: an older one of the same address goes");
        assert_eq!(all.len(), 10 + 1 + 10, "a quarter of the room is the most for one address");
        // Many addresses.
        let _many: Vec<Entered> = (10..250).filter_map(|last| all.enter(from(last))).collect();
        assert_eq!(all.len(), 10 + 20, "strangers have a half of the room");
        tokio::time::timeout(Duration::from_millis(1), one.connection.closed()).await.expect("a stranger that rested");
        for known in &honest {
            let closed = tokio::time::timeout(Duration::from_millis(1), known.connection.closed()).await;
            assert!(closed.is_err(), "nobody with a token is closed for strangers");
        }
        honest.clear();
        assert_eq!(all.len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn the_silent_the_idle_and_the_stalled_are_over() {
        let all = Connections::with_room(40);
        let (silent, stranger) = (all.enter(from(1)).expect("room"), all.enter(from(1)).expect("room"));
        let (known, stalled) = (all.enter(from(1)).expect("room"), all.enter(from(1)).expect("room"));
        for entered in [&stranger, &known] {
            drop(entered.connection.request(0));
        }
        all.let_in(&known.connection);
        let _open = stalled.connection.request(0);
        stalled.connection.takes(false);
        let due = || [&silent, &stranger, &known, &stalled].map(|e| e.connection.due());
        assert_eq!(due(), [Due::Stay; 4]);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(due(), [Due::Close, Due::Stay, Due::Stay, Due::Stay]);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(due(), [Due::Close, Due::Retire, Due::Stay, Due::Close]);
        stalled.connection.takes(true);
        tokio::time::advance(Duration::from_secs(275)).await;
        assert_eq!(due(), [Due::Close, Due::Close, Due::Retire, Due::Stay], "an open request is no idleness");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_no_request_explains_are_too_many_at_last() {
        let all = Connections::with_room(4);
        let entered = all.enter(from(1)).expect("room");
        let pings = |connection: &Connection| (0..1_000_000).position(|_| connection.received(17));
        let at_once = pings(&entered.connection).expect("ended");
        assert_eq!(at_once as i64, UNASKED_BYTES / 17);
        let quiet = all.enter(from(1)).expect("room");
        for _ in 0..10_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!quiet.connection.received(17), "a ping a second is well");
            let _request = quiet.connection.request(300_000);
            assert!(!quiet.connection.received(290_000), "requests explain what they bring");
        }
    }
}
