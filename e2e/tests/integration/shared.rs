//! Two servers on one database: what one has acknowledged the other knows, and neither waits for the other.
//! `FREEZES=20` makes it longer.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::databases::{self, Database};
use crate::serving::{Serving, serve, setting, until};

pub const CONFIG: &str = r#"
listen = "127.0.0.1:0"
[planning]
dry_run = true
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
hit_rate = 0.99
miss_cost_usd = 1.0
"#;

struct Pair {
    servers: [Serving; 2],
    _folder: tempfile::TempDir,
    _database: Database,
}

async fn pair() -> Option<Pair> {
    let database = databases::postgres()?;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).unwrap();
    let servers = [serve(folder.path(), &database.url, &[]).await, serve(folder.path(), &database.url, &[]).await];
    Some(Pair { servers, _folder: folder, _database: database })
}

/// Clients that make claims and give them back, one after the other; the count of claims acknowledged.
pub fn load(urls: &[String], clients: usize, done: &Arc<AtomicBool>) -> (JoinSet<()>, Arc<AtomicU64>) {
    let (mut tasks, made) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
    for number in 0..clients {
        let (url, done, made) = (urls[number % urls.len()].clone(), Arc::clone(done), Arc::clone(&made));
        tasks.spawn(async move {
            let http = reqwest::Client::new();
            while !done.load(Ordering::Relaxed) {
                let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 }).to_string();
                let sent = http.post(format!("{url}/v1/claims")).body(ask).timeout(Duration::from_secs(3)).send().await;
                let Ok(sent) = sent else { continue };
                if sent.status() != 202 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                made.fetch_add(1, Ordering::Relaxed);
                let claim: Value = sent.json().await.unwrap_or_default();
                let release = format!("{url}/v1/claims/{}/release", claim["id"].as_str().unwrap_or_default());
                let _ = http.post(release).body("{}").timeout(Duration::from_secs(3)).send().await;
            }
        });
    }
    (tasks, made)
}

/// A claim that is made, and given back: whether it was acknowledged.
async fn made(server: &Serving) -> bool {
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 });
    let (status, claim) = server.try_post("/v1/claims", None, &ask).await;
    if status == 202 {
        let release = format!("/v1/claims/{}/release", claim["id"].as_str().unwrap_or_default());
        server.try_post(&release, None, &json!({})).await;
    }
    status == 202
}

/// Waits until every server takes claims at its usual pace.
pub async fn until_both_serve(servers: &[&Serving]) {
    for server in servers {
        let serves = async || {
            let began = Instant::now();
            made(server).await && began.elapsed() < Duration::from_millis(300)
        };
        until("both serve", Duration::from_secs(20), serves).await;
    }
}

/// The longest time without a claim at a server in the eight seconds from now on.
pub async fn longest_gap_s(server: &Serving) -> f64 {
    let (began, mut last, mut gap_s) = (Instant::now(), Instant::now(), 0.0_f64);
    while began.elapsed() < Duration::from_secs(8) {
        if made(server).await {
            gap_s = gap_s.max(last.elapsed().as_secs_f64());
            last = Instant::now();
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    gap_s.max(last.elapsed().as_secs_f64())
}

/// Where one replica stops as it stands, with whatever it holds, claims go on at the other within three seconds, and the
/// thawed one writes nothing that the other did not see.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_holds_nobody_up() {
    let Some(pair) = pair().await else { return };
    let urls = pair.servers.each_ref().map(|s| s.url.clone());
    let done = Arc::new(AtomicBool::new(false));
    let (tasks, _) = load(&urls, 16, &done);
    let rounds = setting("FREEZES", 3);
    let mut longest_s: f64 = 0.0;
    for round in 0..rounds {
        tokio::time::sleep(Duration::from_millis(1_300 + 37 * round as u64)).await;
        let (frozen, other) = (&pair.servers[round % 2], &pair.servers[(round + 1) % 2]);
        // Both serve: what the last round left to be caught up with is another matter.
        until_both_serve(&[frozen, other]).await;
        frozen.signal("-STOP");
        let gap_s = longest_gap_s(other).await;
        longest_s = longest_s.max(gap_s);
        println!("round {round}: the longest time without a claim at the other was {gap_s:.2} s");
        frozen.signal("-CONT");
        assert!(gap_s < 3.0, "round {round}: {gap_s:.2} s without a claim");
    }
    done.store(true, Ordering::Relaxed);
    tasks.join_all().await;
    // What both wrote is one order of events, and both have the same claims.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let [one, two] = &pair.servers;
    let of = async |s: &Serving| {
        let events = s.get("/v1/events?limit=1000").await;
        events["items"].as_array().unwrap().iter().map(|e| (e["seq"].clone(), e["subject"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(of(one).await, of(two).await);
    println!("{rounds} rounds, the longest {longest_s:.2} s");
}

/// Each acknowledged edit adds one: none is undone, whichever replica was asked.
#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_edit_is_undone() {
    let Some(pair) = pair().await else { return };
    let urls = pair.servers.each_ref().map(|s| s.url.clone());
    let wanted = setting("EDITS", 250_u64);
    let (acknowledged, crossed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut editors = JoinSet::new();
    for number in 0..4 {
        let (urls, acknowledged, crossed) = (urls.clone(), Arc::clone(&acknowledged), Arc::clone(&crossed));
        editors.spawn(async move {
            let (http, mut turn) = (reqwest::Client::new(), number);
            while acknowledged.load(Ordering::Relaxed) < wanted {
                turn += 1;
                // Read at one replica, written at the other, as a load balancer does.
                let (from, to) = (&urls[turn % 2], &urls[(turn / 2) % 2]);
                let read = http.get(format!("{from}/v1/classes/chat")).send().await.unwrap();
                let version = read.headers()["etag"].to_str().unwrap().to_owned();
                let mut spec = read.json::<Value>().await.unwrap()["spec"].clone();
                spec["miss_cost_usd"] = json!(spec["miss_cost_usd"].as_f64().unwrap() + 1.0);
                let put = http.put(format!("{to}/v1/classes/chat")).header("if-match", version).body(spec.to_string());
                match put.send().await.unwrap().status().as_u16() {
                    200 => acknowledged.fetch_add(1, Ordering::Relaxed),
                    412 | 409 => crossed.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other}"),
                };
            }
        });
    }
    while let Some(done) = editors.join_next().await {
        done.expect("no editor panics");
    }
    let acknowledged = acknowledged.load(Ordering::Relaxed);
    for server in &pair.servers {
        let class = server.get("/v1/classes/chat").await;
        assert_eq!(class["spec"]["miss_cost_usd"].as_f64(), Some(1.0 + acknowledged as f64), "{class}");
    }
    println!(
        "{acknowledged} edits acknowledged, {} refused since they crossed, 0 lost",
        crossed.load(Ordering::Relaxed)
    );
}

/// A class that one replica has acknowledged is claimed at the other at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_class_is_known_at_once_everywhere() {
    let Some(pair) = pair().await else { return };
    for number in 0..40 {
        let (here, there) = (&pair.servers[number % 2], &pair.servers[(number + 1) % 2]);
        let name = format!("class-{number}");
        let spec = json!({ "name": name, "gpus": [{ "model": "H100-SXM" }], "hit_rate": 0.9 });
        let put = here.http.put(format!("{}/v1/classes/{name}", here.url)).header("if-none-match", "*");
        let put = put.body(spec.to_string()).send().await.unwrap();
        assert!(put.status().is_success(), "{}", put.text().await.unwrap());
        let ask = json!({ "class": name, "on_empty": "queue", "wait_s": 60 });
        let (status, claim) = there.post("/v1/claims", None, &ask).await;
        assert_eq!(status.as_u16(), 202, "{claim}");
    }
}

/// What PostgreSQL cannot store is refused at the door, and nobody else is served worse for it.
#[tokio::test(flavor = "multi_thread")]
async fn text_that_no_database_stores_harms_nobody() {
    let Some(pair) = pair().await else { return };
    let urls = [pair.servers[0].url.clone()];
    let rate = async |liars: usize| {
        let (done, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut lying = JoinSet::new();
        for _ in 0..liars {
            let (url, done, refused) = (urls[0].clone(), Arc::clone(&done), Arc::clone(&refused));
            lying.spawn(async move {
                let http = reqwest::Client::new();
                while !done.load(Ordering::Relaxed) {
                    let ask = json!({ "class": "chat", "idempotency_key": "a\u{0}b", "on_empty": "queue" });
                    let sent = http.post(format!("{url}/v1/claims")).body(ask.to_string()).send().await.unwrap();
                    assert!(sent.status().is_client_error(), "{}", sent.status());
                    refused.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            });
        }
        let (honest, made) = load(&urls, 8, &done);
        tokio::time::sleep(Duration::from_secs(3)).await;
        done.store(true, Ordering::Relaxed);
        honest.join_all().await;
        lying.join_all().await;
        (made.load(Ordering::Relaxed) as f64 / 3.0, refused.load(Ordering::Relaxed))
    };
    rate(0).await;
    let (before, _) = rate(0).await;
    for liars in [1, 8] {
        let (beside, refused) = rate(liars).await;
        println!(
            "{before:.0} claims a second alone, {beside:.0} beside {liars} clients of whom {refused} calls were refused"
        );
        assert!(refused > 10, "{refused} refused");
        // Timing is noisy; a batch that fails halves it at the least.
        assert!(beside > before * 0.6, "{before:.0} claims a second became {beside:.0}");
    }
}
