//! Who is connected: how many, from where, and which connection goes when there is no room.
//!
//! A connection is a stranger's until a request on it was let in, and from then on its caller's. Strangers get a half of the room
//! and each address a half of theirs. Where there is no room, one of whoever has the most goes: whoever opens connections
//! without end finds only his own closed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::admission::Who;

/// Connections at the same time, where descriptors allow.
const CONNECTIONS_MAX: usize = 10_000;
/// Descriptors that are kept for the database, the log and the calls to clouds.
const DESCRIPTORS_KEPT: u64 = 128;
/// A client must finish the TLS handshake and send its first request's head within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A stranger's request is answered, and its answer taken, within this time.
const BUSY_STRANGER: Duration = Duration::from_secs(100);
/// A stranger's connection without a request is closed after this time.
const IDLE_STRANGER: Duration = Duration::from_secs(30);
/// Any other.
pub const IDLE_KNOWN: Duration = Duration::from_secs(300);
/// A client that takes nothing of what is written to it for so long is gone.
const STALLED: Duration = Duration::from_secs(30);
/// Bytes that a connection may send without a request that explains them, at once and a second in the long run: pings and
/// settings of HTTP/2 are 9 to 50 bytes each.
const UNASKED_BYTES: i64 = 2 * 1024 * 1024;
const UNASKED_BYTES_PER_S: i64 = 4 * 1024;
/// Bytes that are written explain one that is received: windows are updated.
const WRITTEN_PER_UNASKED: i64 = 32;

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
    /// When its last request ended, or the oldest that is open now began, milliseconds after `since`.
    since_ms: AtomicU64,
    /// It speaks HTTP/2, where bytes without a request are no half head.
    is_h2: AtomicBool,
    /// When the first byte came that no request has taken yet, milliseconds after `since`, one more; 0: none.
    head_since_ms: AtomicU64,
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
            since_ms: AtomicU64::new(0),
            is_h2: AtomicBool::new(false),
            head_since_ms: AtomicU64::new(0),
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
        self.head_since_ms.store(0, Ordering::Relaxed);
        if self.open.fetch_add(1, Ordering::Relaxed) == 0 {
            self.since_ms.store(self.age_ms(), Ordering::Relaxed);
        }
        let mut unasked = self.unasked.lock();
        unasked.0 = (unasked.0 + bytes).min(UNASKED_BYTES);
        OpenRequest(Arc::clone(self))
    }

    /// Bytes were received. Returns whether that is too many without a request that explains them.
    pub fn received(&self, bytes: &[u8]) -> bool {
        if self.begun.load(Ordering::Relaxed) == 0 && bytes.starts_with(b"PRI") {
            self.is_h2.store(true, Ordering::Relaxed);
        }
        if self.is_idle() && self.head_since_ms.load(Ordering::Relaxed) == 0 {
            self.head_since_ms.store(self.age_ms() + 1, Ordering::Relaxed);
        }
        let mut unasked = self.unasked.lock();
        let passed_ms = i64::try_from(unasked.1.elapsed().as_millis()).unwrap_or(0);
        if passed_ms > 100 {
            unasked.0 = (unasked.0 + passed_ms * UNASKED_BYTES_PER_S / 1000).min(UNASKED_BYTES);
            unasked.1 = Instant::now();
        }
        unasked.0 -= i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        unasked.0 < 0
    }

    /// The client took so many bytes of what is written; none: it takes nothing now.
    pub fn takes(&self, bytes: Option<usize>) {
        if let Some(bytes) = bytes {
            self.stalled_since_ms.store(0, Ordering::Relaxed);
            let explained = i64::try_from(bytes).unwrap_or(0) / WRITTEN_PER_UNASKED;
            let mut unasked = self.unasked.lock();
            unasked.0 = (unasked.0 + explained).min(UNASKED_BYTES);
        } else if self.stalled_since_ms.load(Ordering::Relaxed) == 0 {
            self.stalled_since_ms.store(self.age_ms() + 1, Ordering::Relaxed);
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
        let known = self.known.load(Ordering::Relaxed);
        let since_ms = self.since_ms.load(Ordering::Relaxed);
        if !self.is_idle() {
            return if !known && over(since_ms, BUSY_STRANGER) { Due::Close } else { Due::Stay };
        }
        let head_ms = self.head_since_ms.load(Ordering::Relaxed);
        if head_ms > 0 && !self.is_h2.load(Ordering::Relaxed) && over(head_ms - 1, HEAD_TIMEOUT) {
            return Due::Close;
        }
        let limit = if known { IDLE_KNOWN } else { IDLE_STRANGER };
        match since_ms {
            // Whoever was told to go and stays is closed.
            since_ms if over(since_ms, limit + HEAD_TIMEOUT) => Due::Close,
            since_ms if over(since_ms, limit) => Due::Retire,
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
        self.0.since_ms.store(self.0.age_ms(), Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whose connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Holder {
    /// Nobody's that is known, from there.
    Stranger(Origin),
    /// A caller's.
    Caller(Who),
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By age, the oldest first.
    all: BTreeMap<u64, (Arc<Connection>, Holder)>,
    of: HashMap<Holder, usize>,
    strangers: usize,
}

impl Table {
    fn count(&mut self, holder: &Holder, one_more: bool) {
        let is_stranger = matches!(holder, Holder::Stranger(_));
        if one_more {
            *self.of.entry(holder.clone()).or_default() += 1;
            self.strangers += usize::from(is_stranger);
        } else if let Some(count) = self.of.get_mut(holder) {
            *count -= 1;
            self.strangers -= usize::from(is_stranger);
            if *count == 0 {
                self.of.remove(holder);
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Connection>> {
        let (gone, holder) = self.all.remove(&id)?;
        self.count(&holder, false);
        Some(gone)
    }

    /// Closes one of a holder's: the oldest that has no open request, or else the oldest.
    fn close_one_of(&mut self, holder: &Holder) -> bool {
        let mine = || self.all.iter().filter(|(_, (_, h))| h == holder);
        let found = mine().find(|(_, (c, _))| c.is_idle()).or_else(|| mine().next()).map(|(id, _)| *id);
        let closed = found.and_then(|id| self.remove(id));
        closed.inspect(|connection| connection.close.notify_one()).is_some()
    }

    /// Whoever has the most, among strangers or all.
    fn greediest(&self, strangers_only: bool) -> Option<Holder> {
        let among = self.of.iter().filter(|(holder, _)| !strangers_only || matches!(holder, Holder::Stranger(_)));
        among.max_by_key(|(_, count)| **count).map(|(holder, _)| holder.clone())
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

    /// Takes a new one in. Where there is no room another goes.
    pub fn enter(self: &Arc<Self>, origin: Origin) -> Entered {
        let mut table = self.table.lock();
        let mine = Holder::Stranger(origin);
        if table.of.get(&mine).is_some_and(|count| *count >= self.most / 4) {
            table.close_one_of(&mine);
        } else if table.strangers >= self.most / 2 || table.all.len() >= self.most {
            let strangers_only = table.strangers >= self.most / 2;
            if let Some(greediest) = table.greediest(strangers_only) {
                table.close_one_of(&greediest);
            }
        }
        let id = table.next;
        table.next += 1;
        let connection = Arc::new(Connection::new(origin));
        table.count(&mine, true);
        table.all.insert(id, (Arc::clone(&connection), mine));
        Entered { id, connection, all: Arc::clone(self) }
    }

    /// Out of descriptors: one of whoever has the most goes.
    pub fn make_room(&self) {
        let mut table = self.table.lock();
        if let Some(holder) = table.greediest(false) {
            table.close_one_of(&holder);
        }
    }

    /// A request of a caller on it was let in.
    fn let_in(&self, id: u64, connection: &Connection, who: &Who) {
        if connection.known.load(Ordering::Relaxed) {
            return;
        }
        let mut table = self.table.lock();
        // One that is being closed is counted no more.
        if !table.all.contains_key(&id) || connection.known.swap(true, Ordering::Relaxed) {
            return;
        }
        let holder = Holder::Caller(who.clone());
        table.count(&holder, true);
        if let Some((_, before)) = table.all.get_mut(&id) {
            let before = std::mem::replace(before, holder);
            table.count(&before, false);
        }
    }

    /// Ends those whose time is over.
    pub fn sweep(&self) {
        for (connection, _) in self.table.lock().all.values() {
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

/// The connection that a request came over.
#[derive(Debug, Clone)]
pub struct Peer {
    id: u64,
    connection: Arc<Connection>,
    all: Arc<Connections>,
}

impl Peer {
    /// Where it comes from.
    pub fn origin(&self) -> Origin {
        self.connection.origin
    }

    /// Its request was let in: it is no stranger's any more.
    pub fn let_in(&self, who: &Who) {
        self.all.let_in(self.id, &self.connection, who);
    }
}

impl Entered {
    /// For the requests that come over it.
    pub fn peer(&self) -> Peer {
        Peer { id: self.id, connection: Arc::clone(&self.connection), all: Arc::clone(&self.all) }
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

    fn token(name: &str) -> Who {
        Who::Token(Arc::from(name))
    }

    async fn is_closed(entered: &Entered) -> bool {
        tokio::time::timeout(Duration::from_millis(1), entered.connection.closed()).await.is_ok()
    }

    #[tokio::test]
    async fn whoever_opens_without_end_finds_his_own_closed() {
        let all = Connections::with_room(40);
        let honest: Vec<Entered> = (0..10).map(|_| all.enter(from(1))).collect();
        honest.iter().for_each(|e| e.peer().let_in(&token("honest")));
        // Busy ones too: whoever begins requests and does not end them.
        let busy = |e: &Entered| e.connection.request(0);
        let flood: Vec<_> = (0..1000).map(|_| all.enter(from(3))).map(|e| (busy(&e), e)).collect();
        assert_eq!(all.len(), 10 + 10, "a quarter of the room is the most for one address");
        assert!(is_closed(&flood[0].1).await && !is_closed(&flood[999].1).await, "the oldest goes");
        let many: Vec<_> = (10..250).map(|last| all.enter(from(last))).collect();
        assert_eq!(all.len(), 10 + 20, "strangers have a half of the room");
        assert!(!is_closed(&many[239]).await, "the newest is there");
        // One caller with a token.
        let greedy: Vec<_> = (0..100).map(|_| all.enter(from(2))).map(|e| (busy(&e), e)).collect();
        greedy.iter().for_each(|(_, e)| e.peer().let_in(&token("greedy")));
        for entered in &honest {
            assert!(!is_closed(entered).await, "others take nothing of it");
        }
        drop((honest, flood, many, greedy));
        let table = all.table.lock();
        assert_eq!((table.all.len(), table.of.len(), table.strangers), (0, 0, 0));
    }

    #[tokio::test]
    async fn one_caller_with_a_token_leaves_room_for_others() {
        let all = Connections::with_room(40);
        let greedy: Vec<_> = (0..100)
            .map(|_| {
                let entered = all.enter(from(2));
                let open = entered.connection.request(0);
                entered.peer().let_in(&token("greedy"));
                (open, entered)
            })
            .collect();
        assert_eq!(all.len(), 40);
        let modest = all.enter(from(4));
        modest.peer().let_in(&token("modest"));
        assert_eq!(all.len(), 40, "one of whoever has the most went");
        assert!(!is_closed(&modest).await);
        assert_eq!(greedy.iter().filter(|(_, e)| all.table.lock().all.contains_key(&e.id)).count(), 39);
    }

    #[tokio::test(start_paused = true)]
    async fn the_silent_the_idle_and_the_stalled_are_over() {
        let all = Connections::with_room(40);
        let [silent, stranger, known, stalled] = [1, 1, 1, 1].map(|last| all.enter(from(last)));
        for entered in [&stranger, &known] {
            drop(entered.connection.request(0));
        }
        for entered in [&known, &stalled] {
            entered.peer().let_in(&token("t"));
        }
        let _open = stalled.connection.request(0);
        stalled.connection.takes(None);
        let due = || [&silent, &stranger, &known, &stalled].map(|e| e.connection.due());
        assert_eq!(due(), [Due::Stay; 4]);
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(due(), [Due::Close, Due::Stay, Due::Stay, Due::Stay]);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(due(), [Due::Close, Due::Retire, Due::Stay, Due::Close]);
        stalled.connection.takes(Some(1));
        tokio::time::advance(Duration::from_secs(275)).await;
        assert_eq!(due(), [Due::Close, Due::Close, Due::Retire, Due::Stay], "an open request is no idleness");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_no_request_explains_are_too_many_at_last() {
        let all = Connections::with_room(4);
        let entered = all.enter(from(1));
        let pings = |connection: &Connection| (0..1_000_000).position(|_| connection.received(&[0; 17]));
        let at_once = pings(&entered.connection).expect("ended");
        assert_eq!(at_once as i64, UNASKED_BYTES / 17);
        let quiet = all.enter(from(1));
        for _ in 0..10_000 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(!quiet.connection.received(&[0; 17]), "a ping a second is well");
            let _request = quiet.connection.request(300_000);
            assert!(!quiet.connection.received(&[0; 290_000]), "requests explain what they bring");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_much_of_http_2_is_no_flood_and_half_a_head_is_over() {
        let all = Connections::with_room(4);
        let [reader, half, h2] = [1, 2, 3].map(|last| all.enter(from(last)));
        let _stream = reader.connection.request(0);
        for _ in 0..100_000 {
            reader.connection.takes(Some(4096));
            assert!(!reader.connection.received(&[0; 26]), "it updates its windows");
        }
        for entered in [&half, &h2] {
            entered.peer().let_in(&token("t"));
        }
        h2.connection.received(b"PRI * HTTP/2.0");
        for entered in [&half, &h2] {
            drop(entered.connection.request(0));
            entered.connection.received(b"GET /");
        }
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!([&half, &h2].map(|e| e.connection.due()), [Due::Close, Due::Stay]);
    }
}
