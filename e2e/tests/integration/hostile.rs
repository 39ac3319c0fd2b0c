//! Claims go on beside whoever means harm, or is broken: the rate of honest claims beside each attack against the rate
//! without it, and a claim that lives through all of them. `HOSTILE_S=5` measures longer.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use providers::Clock;
use reqwest::Client;
use serde_json::{Value, json};
use server::store::{Ledger, Options, Store, TokenRow, Write};
use server::tokens::hash_of;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::serving::{Serving, serve, setting, until, write_sim_fleet};

/// The rest of the class that is claimed, and one that nobody can have.
const CLASSES: &str = r#"
gpus_per_claim = 1
[[class]]
name = "never"
gpus = [{ model = "B200" }]
gpus_per_claim = 1
hit_rate = 0.5
miss_cost_usd = 1.0
wait_s = 600
"#;

/// Clients that claim and give back, all the time.
const CLIENTS: usize = 16;
/// How long the claim that lives through everything may go without a heartbeat.
const LEASE_S: u64 = 5;

struct Arena {
    serving: Serving,
    folder: tempfile::TempDir,
    /// The claim that must live.
    claim: String,
    beats: tokio::task::JoinHandle<()>,
    /// Pairs a second without any attack.
    alone_per_s: f64,
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

async fn make_tokens(database: &str, tokens: &[(&str, &str)]) {
    let store = Store::open(database).await.unwrap();
    let ledger = Ledger::start(&store, Options::of_a_command(Clock::system())).await.unwrap();
    for (name, role) in tokens {
        let token =
            TokenRow { name: (*name).into(), role: (*role).into(), hash: hash_of(&format!("secret-of-{name}")) };
        ledger.record(Write::PutToken(token), None).await.unwrap();
    }
}

impl Arena {
    /// `descriptors`: how many the server may have.
    async fn new(descriptors: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_sim_fleet(folder.path(), "requests_per_s_max = 100000", CLASSES);
        let database = format!("sqlite:{}", folder.path().join("x.db").display());
        make_tokens(&database, &[("honest", "scheduler"), ("greedy", "scheduler"), ("viewer", "viewer")]).await;
        let limited = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
        let serving = serve(folder.path(), &database, &["sh", "-c", &limited]).await;
        let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60, "lease_s": LEASE_S });
        let claim = serving.post("/v1/claims", Some("secret-of-honest"), &ask).await.1;
        let claim = claim["id"].as_str().expect("a claim").to_owned();
        let (url, id) = (serving.url.clone(), claim.clone());
        let beats = tokio::spawn(async move {
            loop {
                // A connection of its own each time: new ones must find room.
                let beat = Client::new().post(format!("{url}/v1/claims/{id}/heartbeat"));
                let beat = beat.bearer_auth("secret-of-honest").body("{}").timeout(Duration::from_secs(2));
                let _ = beat.send().await;
                tokio::time::sleep(Duration::from_millis(700)).await;
            }
        });
        let mut arena = Self { serving, folder, claim, beats, alone_per_s: 0.0 };
        until("the claim is active", Duration::from_secs(60), async || arena.lives().await).await;
        arena.pairs_per_s().await;
        arena.alone_per_s = arena.pairs_per_s().await;
        arena
    }

    async fn lives(&self) -> bool {
        let got = Client::new().get(format!("{}/v1/claims/{}", self.serving.url, self.claim));
        let got = got.bearer_auth("secret-of-honest").timeout(Duration::from_secs(5)).send().await;
        let Ok(got) = got else { return false };
        got.json::<Value>().await.is_ok_and(|claim| claim["state"] == "active")
    }

    /// Claims that are granted and given back by honest clients.
    async fn pairs_per_s(&self) -> f64 {
        let seconds = setting("HOSTILE_S", 2.0);
        let (done, until) = (Arc::new(AtomicU64::new(0)), Instant::now() + Duration::from_secs_f64(seconds));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (done, url) = (Arc::clone(&done), self.serving.url.clone());
            clients.spawn(async move {
                let http = Client::builder().timeout(Duration::from_secs(3)).build().unwrap();
                let post = async |path: &str, body: &str| {
                    let sent = http.post(format!("{url}{path}")).bearer_auth("secret-of-honest").body(body.to_owned());
                    let sent = sent.send().await.ok()?;
                    sent.json::<Value>().await.ok()
                };
                while Instant::now() < until {
                    let claim = post("/v1/claims", r#"{"class":"chat","on_empty":"fail"}"#).await.unwrap_or_default();
                    match claim["id"].as_str() {
                        Some(id) => {
                            post(&format!("/v1/claims/{id}/release"), "{}").await;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        None => tokio::time::sleep(Duration::from_millis(1)).await,
                    }
                }
            });
        }
        clients.join_all().await;
        done.load(Ordering::Relaxed) as f64 / seconds
    }

    /// The rate beside an attack that goes on, and what is left of the claim.
    async fn beside(&self, attack: &str, mut attackers: JoinSet<()>) {
        // Until the claim's lease has run out, were it not kept.
        tokio::time::sleep(Duration::from_secs(LEASE_S + 1)).await;
        let mut best: f64 = 0.0;
        for _ in 0..3 {
            best = best.max(self.pairs_per_s().await);
            if best > self.alone_per_s * 0.7 {
                break;
            }
        }
        let still = attackers.len();
        attackers.abort_all();
        let share = best / self.alone_per_s;
        println!("{attack}: {best:.0} pairs/s against {:.0} alone, {:.0} %", self.alone_per_s, share * 100.0);
        assert!(still > 0 || attack.contains("ended"), "{attack}: nobody attacked at the end");
        assert!(share >= 0.5, "{attack}: {best:.0} of {:.0} pairs a second", self.alone_per_s);
        assert!(self.lives().await, "{attack}: the claim that was kept has ended");
    }

    fn address(&self) -> String {
        self.serving.url.strip_prefix("http://").unwrap().to_owned()
    }

    /// So many connections that send this and no more, opened again whenever they are closed.
    fn connections(&self, count: usize, bytes: &'static [u8]) -> JoinSet<()> {
        let mut all = JoinSet::new();
        for _ in 0..count {
            let address = self.address();
            all.spawn(async move {
                loop {
                    if let Ok(mut stream) = TcpStream::connect(&address).await {
                        let _ = stream.write_all(bytes).await;
                        let mut answer = [0; 1024];
                        while stream.read(&mut answer).await.is_ok_and(|n| n > 0) {}
                    }
                    // As a client that is broken does it; what they cost themselves is not the server's.
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
            });
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_half_begun_connections_take_nobodys_room() {
    let arena = Arena::new(1024).await;
    arena.beside("1,500 silent connections at 1,024 descriptors", arena.connections(1500, b"")).await;
    arena.beside("1,500 half prefaces of HTTP/2", arena.connections(1500, b"PRI * HTTP/2.0\r\n")).await;
    arena.beside("1,500 half heads", arena.connections(1500, b"GET /v1/claims HTTP/1.1\r\nHost: x\r\n")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_requests_of_one_caller_are_his_own_affair() {
    let arena = Arena::new(20_000).await;
    // From where the honest ones come too.
    let half = b"POST /v1/agents/register HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer plj_x\r\nContent-Length: 100\r\n\r\n{";
    arena.beside("4,500 unfinished registrations", arena.connections(4500, half)).await;
    let ask = json!({ "class": "never", "on_empty": "queue", "wait_s": 600 });
    let (status, waits) = arena.serving.post("/v1/claims", Some("secret-of-greedy"), &ask).await;
    assert_eq!(status, 202, "{waits}");
    let poll = format!(
        "GET /v1/claims/{}?wait_s=60 HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret-of-greedy\r\n\r\n",
        waits["id"].as_str().unwrap()
    );
    arena.beside("4,500 long polls of one caller", arena.connections(4500, poll.leak().as_bytes())).await;
}

/// A stream that is read, again whenever it ends.
async fn follow(url: String) {
    let http = Client::new();
    loop {
        if let Ok(mut stream) = http.get(format!("{url}/v1/events/stream")).bearer_auth("secret-of-viewer").send().await
        {
            while let Ok(Some(_)) = stream.chunk().await {}
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_cost_little_and_end_with_their_token() {
    let arena = Arena::new(20_000).await;
    let followers = || {
        let mut all = JoinSet::new();
        (0..500).for_each(|_| drop(all.spawn(follow(arena.serving.url.clone()))));
        all
    };
    arena.beside("500 event streams", followers()).await;
    let mut stream = Client::new()
        .get(format!("{}/v1/events/stream", arena.serving.url))
        .bearer_auth("secret-of-viewer")
        .send()
        .await
        .unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let store = Store::open(&format!("sqlite:{}", arena.folder.path().join("x.db").display())).await.unwrap();
    let ledger = Ledger::start(&store, Options::of_a_command(Clock::system())).await.unwrap();
    ledger.record(Write::RevokeToken("viewer".into()), None).await.unwrap();
    let ended = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("it ends with its token");
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 0], payload].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_pings_and_settings_are_ended() {
    let arena = Arena::new(20_000).await;
    for (name, one) in [("pings", frame(6, 0, &[0; 8])), ("settings", frame(4, 0, &[0, 4, 0, 1, 0, 0]))] {
        let ended = Arc::new(AtomicU64::new(0));
        let mut floods = JoinSet::new();
        for _ in 0..8 {
            let (address, one, ended) = (arena.address(), one.clone(), Arc::clone(&ended));
            floods.spawn(async move {
                loop {
                    let Ok(mut stream) = TcpStream::connect(&address).await else { continue };
                    let _ = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
                    let _ = stream.write_all(&frame(4, 0, &[])).await;
                    let (mut read, mut write) = stream.split();
                    let many = one.repeat(1000);
                    let flood = async { while write.write_all(&many).await.is_ok() {} };
                    let mut answer = [0; 65536];
                    let drain = async { while read.read(&mut answer).await.is_ok_and(|n| n > 0) {} };
                    tokio::select! { () = flood => {}, () = drain => {} }
                    ended.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
        }
        arena.beside(&format!("floods of {name}, ended again and again"), floods).await;
        assert!(ended.load(Ordering::Relaxed) > 8, "{name}: each is ended");
    }
}

/// The database is its owner's alone, and everything is in it when the server was told to end.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_closed_to_others_and_whole_at_the_end() {
    use std::os::unix::fs::PermissionsExt;
    let arena = Arena::new(20_000).await;
    let file = |end: &str| arena.folder.path().join(format!("x.db{end}"));
    for end in ["", "-wal", "-shm"] {
        let mode = std::fs::metadata(file(end)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "x.db{end}");
    }
    assert!(std::fs::metadata(file("-wal")).unwrap().len() > 100_000);
    arena.serving.signal("-TERM");
    let ended = async || !Path::new(&format!("/proc/{}/exe", arena.serving.id())).exists();
    until("it has ended", Duration::from_secs(20), ended).await;
    let left = std::fs::metadata(file("-wal")).map_or(0, |m| m.len());
    assert_eq!(left, 0, "bytes in the log after its end");
}

/// What is done to a folder with a database, and its name.
type Harm = (&'static str, fn(&Path));

/// A database file that is moved away, replaced or cut short under a server: nothing is promised any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_there_any_more_takes_no_claims() {
    let what: [Harm; 4] = [
        ("removed", |folder| std::fs::remove_file(folder.join("x.db")).unwrap()),
        ("replaced", |folder| {
            std::fs::copy(folder.join("x.db"), folder.join("y.db")).unwrap();
            std::fs::rename(folder.join("y.db"), folder.join("x.db")).unwrap();
        }),
        ("log cut", |folder| {
            let log = std::fs::OpenOptions::new().write(true).open(folder.join("x.db-wal")).unwrap();
            // Its head is left: frames before the last checkpoint could be spared.
            log.set_len(32).unwrap();
        }),
        ("log removed", |folder| std::fs::remove_file(folder.join("x.db-wal")).unwrap()),
    ];
    for (name, harm) in what {
        let arena = Arena::new(20_000).await;
        let ready = async || {
            let got = arena.serving.http.get(format!("{}/readyz", arena.serving.url)).send().await.unwrap();
            (got.status().as_u16(), got.text().await.unwrap())
        };
        assert_eq!(ready().await.0, 200, "{name}");
        harm(arena.folder.path());
        let ask = json!({ "class": "chat", "on_empty": "fail" });
        let (status, said) = arena.serving.post("/v1/claims", Some("secret-of-honest"), &ask).await;
        assert_eq!(status, 503, "{name}: {said}");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (status, text) = ready().await;
        if name == "log removed" && status == 200 {
            // Its last connection was closed, which moves the log into the file, and another was opened: all is there.
            arena.serving.signal("-KILL");
            let database = format!("sqlite:{}", arena.folder.path().join("x.db").display());
            let again = serve(arena.folder.path(), &database, &[]).await;
            let got =
                again.http.get(format!("{}/v1/claims/{}", again.url, arena.claim)).bearer_auth("secret-of-honest");
            assert_eq!(got.send().await.unwrap().status(), 200, "{name}: what was acknowledged is there");
            continue;
        }
        assert_eq!(status, 503, "{name}");
        assert!(text.contains("x.db"), "{name}: it says which file: {text}");
    }
}
