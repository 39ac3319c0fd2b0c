//! A store behind a server that is slow, fails, hangs, or lies about lengths: what comes is right, or is refused by name, and
//! nothing half written stays.
#![allow(clippy::disallowed_methods, reason = "a real server takes real time")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use snapshot_agent::snapshots::store::{self, Store, StoreError};
use snapshots::ObjectId;

use crate::store::{Place, noise, ok};

/// What a server does to whoever reads packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// A piece of every answer now and then.
    Slow,
    /// Three of four requests fail.
    Failing,
    Down,
    /// Every answer ends in its middle.
    Cut,
    /// Something else of the right length.
    Else,
    /// More bytes than the head of the answer says that there are of the object.
    Longer,
    /// Everything that it has is a petabyte long.
    Huge,
    /// It takes requests and says nothing more.
    Hanging,
    /// It says that it is sealed, in a petabyte.
    HugeSeal,
}

const TIB: u64 = 1 << 40;

/// As much of S3 as a reader needs, over the files of a folder.
struct Server {
    address: String,
    requests: Arc<AtomicU64>,
}

impl Server {
    fn start(folder: PathBuf, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let requests = Arc::new(AtomicU64::new(0));
        let counted = requests.clone();
        // It ends with the test.
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let (folder, counted) = (folder.clone(), counted.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(connection.try_clone().expect("a socket"));
                    let mut connection = connection;
                    while answer(&mut reader, &mut connection, &folder, fault, &counted).is_some() {}
                });
            }
        });
        Self { address, requests }
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight-agent"));
        command.args(args).env("PILOTLIGHT_STORE", "s3://bucket/store");
        command.env("AWS_ENDPOINT", format!("http://{}", self.address)).env("AWS_ALLOW_HTTP", "true");
        command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "secret");
        command.output().expect("runs")
    }
}

/// Answers one request; none: the connection is over.
fn answer(
    reader: &mut BufReader<TcpStream>,
    connection: &mut TcpStream,
    folder: &Path,
    fault: Fault,
    counted: &AtomicU64,
) -> Option<()> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.trim_start_matches("/bucket/store/").to_owned());
    let (mut length, mut range) = (0_u64, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let (name, value) = header.trim().split_once(": ").unwrap_or(("", ""));
        match name.to_ascii_lowercase().as_str() {
            "" => break,
            "content-length" => length = value.parse().ok()?,
            "range" => {
                let (from, until) = value.strip_prefix("bytes=")?.split_once('-')?;
                range = Some((from.parse::<u64>().ok()?, until.parse::<u64>().ok()? + 1));
            }
            _ => {}
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).ok()?;
    let counted = counted.fetch_add(1, Ordering::Relaxed);
    let mut say = |head: &str, body: &[u8]| {
        let head = format!("HTTP/1.1 {head}\r\nETag: \"x\"\r\nLast-Modified: Sat, 28 Nov 2026 12:00:00 GMT\r\n\r\n");
        connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(body)).ok()
    };
    match fault {
        Fault::Down => return say("500 No\r\nContent-Length: 0", b""),
        Fault::Failing if counted % 4 != 3 => return say("503 Slow Down\r\nContent-Length: 0", b""),
        Fault::Hanging if path.starts_with("packs/") => {
            std::thread::sleep(Duration::from_secs(60));
            return None;
        }
        _ => {}
    }
    if method == "PUT" {
        return say("200 OK\r\nContent-Length: 0", b"");
    }
    if fault == Fault::HugeSeal && path == "sealed.json" {
        say(&format!("200 OK\r\nContent-Length: {}", 1024 * TIB), b"{")?;
        connection.write_all(&[b' '; 8192]).ok()?;
        return None;
    }
    let Ok(content) = std::fs::read(folder.join(&path)) else { return say("404 Not Found\r\nContent-Length: 0", b"") };
    let all = content.len() as u64;
    let (from, until) = range.map_or((0, all), |(from, until)| (from.min(all), until.min(all)));
    let mut body = content[from as usize..until as usize].to_vec();
    let (mut size, mut sent) = (all, body.len() as u64);
    if path.starts_with("packs/") {
        match fault {
            Fault::Else => body.reverse(),
            Fault::Longer => {
                body.resize(body.len() + (80 << 20), 7);
                sent = body.len() as u64;
            }
            Fault::Cut => body.truncate(body.len() / 2),
            _ => {}
        }
    }
    if fault == Fault::Huge {
        (size, sent) = (1024 * TIB, 1024 * TIB);
    }
    let head = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{size}", until.saturating_sub(1)),
        None => "200 OK".to_owned(),
    };
    say(&format!("{head}\r\nContent-Length: {sent}"), b"")?;
    let pieces = if fault == Fault::Slow { body.len() / 8 + 1 } else { body.len().max(1) };
    for piece in body.chunks(pieces) {
        if fault == Fault::Slow {
            std::thread::sleep(Duration::from_millis(150));
        }
        connection.write_all(piece).ok()?;
    }
    // What was cut is not waited for.
    if fault == Fault::Cut || fault == Fault::Huge { None } else { Some(()) }
}

#[test]
fn a_store_that_is_slow_fails_or_lies() {
    let place = Place::new();
    let store = place.store();
    let content = noise(5 << 20, 5);
    std::fs::write(place.path("weights"), &content).expect("written");
    let (id, _) = ok(&store, &["put", &place.path("weights")]);
    let one = |fault: Fault| {
        let server = Server::start(store.clone(), fault);
        let (copy, began) = (place.path("copy"), Instant::now());
        let done = server.run(&["store", "get", &id, &copy]);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        let whole = std::fs::read(Path::new(&copy).join("weights")).ok();
        // Whole and right, or nothing at all.
        assert_eq!(whole.is_some(), done.status.success(), "{fault:?}: {said}");
        assert!(whole.is_none_or(|whole| whole == content), "{fault:?}");
        let _ = std::fs::remove_dir_all(&copy);
        let left = std::fs::read_dir(Path::new(&copy).parent().expect("a folder")).expect("read");
        assert!(left.flatten().all(|entry| !entry.file_name().to_string_lossy().starts_with(".partial")), "{fault:?}");
        let requests = server.requests.load(Ordering::Relaxed);
        assert!(requests < 60 && began.elapsed() < Duration::from_secs(60), "{fault:?}: {requests} requests");
        (done.status.success(), said)
    };
    for fault in [Fault::Nothing, Fault::Slow, Fault::Failing] {
        let (whole, said) = one(fault);
        assert!(whole, "{fault:?}: {said}");
    }
    for (fault, why) in [
        (Fault::Down, "the store failed at"),
        (Fault::Cut, "the store failed at packs/"),
        (Fault::Else, "fetch it from another copy"),
        (Fault::Longer, "where at most 67108864 make sense"),
        (Fault::Huge, "where at most 65536 make sense"),
        (Fault::Hanging, "the store failed at packs/"),
        (Fault::HugeSeal, "where at most 4096 make sense"),
    ] {
        let (whole, said) = one(fault);
        assert!(!whole && said.contains(why), "{fault:?}: {said}");
    }
}

/// The same behind a key: what is longer than it says is not held, what is changed is refused.
#[test]
fn a_sealed_store_that_lies() {
    let place = Place::new();
    let store = place.store();
    std::fs::write(place.path("weights"), noise(5 << 20, 5)).expect("written");
    let key = place.path("key");
    ok(&store, &["keygen", &key]);
    let (id, _) = ok(&store, &["put", &place.path("weights"), "--key-file", &key]);
    for fault in [Fault::Nothing, Fault::Else, Fault::Longer, Fault::Cut, Fault::Huge] {
        let server = Server::start(store.clone(), fault);
        let copy = place.path("copy");
        let done = server.run(&["store", "get", &id, &copy, "--key-file", &key]);
        assert_eq!(
            done.status.success(),
            fault == Fault::Nothing,
            "{fault:?}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert_eq!(Path::new(&copy).exists(), fault == Fault::Nothing, "{fault:?}");
        let _ = std::fs::remove_dir_all(copy);
    }
}

/// A stretch of a pack is never longer than what was asked for, whatever a server sends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_held_than_was_asked_for() {
    let place = Place::new();
    std::fs::write(place.path("weights"), noise(5 << 20, 5)).expect("written");
    let id: ObjectId = ok(&place.store(), &["put", &place.path("weights")]).0.parse().expect("an id");
    for (fault, refused) in [(Fault::Nothing, false), (Fault::Longer, true)] {
        let server = Server::start(place.store(), fault);
        let variables = [
            ("AWS_ENDPOINT", format!("http://{}", server.address)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_ACCESS_KEY_ID", "key".into()),
            ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value));
        let store = Store::open_with("s3://bucket/store", None, variables).expect("a store");
        let manifest = store.manifest(id).await.expect("there");
        let bytes = store.index(manifest.index).await.expect("there");
        let pack = store::index(&bytes, manifest.index).expect("an index").packs().next().expect("one");
        let got = store.pack_range(pack, 4096..1_000_000).await;
        assert_eq!(matches!(got, Err(StoreError::TooLong { most: 995_904, .. })), refused, "{fault:?}");
        assert_eq!(got.is_ok_and(|bytes| bytes.len() == 995_904), !refused, "{fault:?}");
    }
}
