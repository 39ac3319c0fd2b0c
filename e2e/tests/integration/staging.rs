//! Snapshots come to a host before claims ask for them.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::secrets::host_secret;

use crate::daemon::{Plane, daemon_with, plane, said, stand};
use crate::stand::Stand;

/// Puts files of so many bytes that are no other's into a store; the object's id.
fn put(stand: &Stand, store: &Path, bytes: usize, seed: u8) -> String {
    let folder = stand.root().join(format!("model-{seed}"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut noise = u64::from(seed) + 1;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (noise >> 56) as u8
    })
    .take(bytes)
    .collect();
    std::fs::write(folder.join("weights.bin"), content).unwrap();
    let args = ["store", "put", "--store", store.to_str().unwrap(), folder.to_str().unwrap()];
    let done = stand.agent(&args).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

fn spec(store: &Path, object: &str, bytes: usize) -> Value {
    json!({ "class": "chat", "store": store, "object": object, "bytes": bytes, "cold_s": 300.0, "restore_s": 1.0 })
}

/// Has the planner keep a host: somebody is expected for a while.
async fn expect_somebody(plane: &Plane) {
    let now_ms = plane.server.app.now_ms();
    let somebody = json!({ "class": "chat", "from_ms": now_ms - 1000, "until_ms": now_ms + 600_000, "claims": 1 });
    plane.put("/v1/forecasts/somebody", &somebody).await;
}

/// Waits until the copies are so.
async fn copies(plane: &Plane, stand: &Stand, what: &str, so: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let copies = plane.get("/v1/staging").await["items"].as_array().cloned().unwrap_or_default();
        if so(&copies) {
            return copies;
        }
        let log = said(&stand.root().join("said"));
        assert!(began.elapsed() < Duration::from_secs(40), "not {what}: {copies:?}\n{log}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn claimed(plane: &Plane) -> Value {
    let claim = plane.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    plane.get(&format!("/v1/claims/{}?wait_s=40", claim["id"].as_str().unwrap())).await
}

fn leaves(folder: &Path) -> Vec<PathBuf> {
    let groups = std::fs::read_dir(folder.join("leaves")).into_iter().flatten().map(|group| group.unwrap().path());
    groups.flat_map(|group| std::fs::read_dir(group).unwrap().filter_map(|leaf| Some(leaf.ok()?.path()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declared_snapshot_comes_to_an_idle_host_and_serves_the_next_claim() {
    let (plane, stand) = (plane().await, stand());
    let store = stand.root().join("store");
    std::fs::create_dir(&store).unwrap();
    let bytes = 9 << 20;
    let object = put(&stand, &store, bytes, 1);
    plane.put("/v1/snapshots/chat-8b", &spec(&store, &object, bytes)).await;
    expect_somebody(&plane).await;
    let cache = stand.root().join("cache");
    let more = format!("[staging]\nfolder = \"{}\"\ndisk_gib = 0.1\n", cache.display());
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let agent = daemon_with("lab-1", &stand, &plane.server.url, &secret, &more);

    // The first claim has its host started, and starts cold.
    let first = claimed(&plane).await;
    assert_eq!((&first["state"], &first["ready"]["from"]), (&json!("granted"), &json!("cold")), "{first}");
    assert_eq!(first["ready"]["p50_s"], 300.0);
    plane.post(&format!("/v1/claims/{}/release", first["id"].as_str().unwrap()), &json!({})).await;
    let whole = |copies: &[Value]| copies.len() == 1 && copies[0]["state"] == "verified";
    let there = copies(&plane, &stand, "verified", whole).await;
    assert_eq!((&there[0]["snapshot"], &there[0]["bytes"]), (&json!("chat-8b"), &json!(bytes)));

    // The next is served from the copy, and says how soon it was ready.
    let second = claimed(&plane).await;
    assert_eq!(second["ready"]["from"], "disk", "{second}");
    assert!(second["ready"]["p50_s"].as_f64().unwrap() < 2.0, "{second}");
    let path = format!("/v1/claims/{}", second["id"].as_str().unwrap());
    let beat = plane.post(&format!("{path}/heartbeat"), &json!({ "ready_s": 1.5 })).await;
    assert_eq!(beat["ready_s"], 1.5, "{beat}");
    let metrics = plane.text("/metrics").await;
    assert!(metrics.contains("pilotlight_readiness_seconds_sum{from=\"disk\"} 1.5"), "{metrics}");
    assert!(metrics.contains("pilotlight_snapshot_copies{snapshot=\"chat-8b\",state=\"verified\"} 1"), "{metrics}");
    plane.post(&format!("{path}/release"), &json!({})).await;

    // A disk that forgets while the agent is away: what is damaged comes anew.
    drop(agent);
    let leaf = leaves(&cache).into_iter().next().unwrap();
    let sound = std::fs::read(&leaf).unwrap();
    let mut damaged = sound.clone();
    damaged[17] ^= 1;
    std::fs::write(&leaf, &damaged).unwrap();
    let agent = daemon_with("lab-1", &stand, &plane.server.url, "plj_used", &more);
    let began = Instant::now();
    while std::fs::read(&leaf).unwrap_or_default() != sound {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", said(&stand.root().join("said")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    copies(&plane, &stand, "verified again", whole).await;

    // One that no store has says so, and stands in nobody's way.
    plane.put("/v1/snapshots/lost", &spec(&store, &"0".repeat(64), 1)).await;
    let lost = |copies: &[Value]| {
        copies.iter().any(|copy| copy["snapshot"] == "lost" && !copy["problem"].as_str().unwrap_or("").is_empty())
    };
    let all = copies(&plane, &stand, "named as lost", lost).await;
    assert!(all.iter().any(|copy| copy["snapshot"] == "chat-8b" && copy["state"] == "verified"), "{all:?}");
    assert!(all.iter().any(|copy| copy["problem"].as_str().unwrap().contains("there is no object")), "{all:?}");

    // What is declared no more goes, and its life can be read.
    let http = reqwest::Client::new();
    for name in ["chat-8b", "lost"] {
        let url = format!("{}/v1/snapshots/{name}", plane.server.url);
        http.delete(url).header("if-match", "\"1\"").send().await.unwrap().error_for_status().unwrap();
    }
    copies(&plane, &stand, "gone", |copies: &[Value]| copies.is_empty()).await;
    drop(agent);
    let events = plane.get("/v1/events?limit=1000").await;
    // Under its name as long as it has one.
    let known = ["chat-8b on n-".to_owned(), format!("{} on n-", &object[..12])];
    let of_copy =
        |e: &&Value| e["subject"].as_str().is_some_and(|s| known.iter().any(|name| s.starts_with(name.as_str())));
    let mine = events["items"].as_array().unwrap().iter().filter(of_copy);
    let life: Vec<&str> = mine.filter_map(|e| e["to"].as_str()).collect();
    assert!(
        life.starts_with(&["wanted", "fetching", "verified"]) || life.starts_with(&["wanted", "verified"]),
        "{life:?}"
    );
    assert_eq!(life.last(), Some(&"gone"), "{life:?}");
}

/// Killed at random moments of staging, KILLS times: what was begun goes on, and no leaf is there that is not whole.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_while_it_stages_goes_on() {
    let kills: u64 = std::env::var("KILLS").ok().map_or(6, |n| n.parse().unwrap());
    let seed: u64 = std::env::var("SEED").ok().map_or(7, |n| n.parse().unwrap());
    println!("seed {seed}, {kills} kills");
    let mut rng = fleet::rng::Rng::new(seed);
    let (plane, stand) = (plane().await, stand());
    let store = stand.root().join("store");
    std::fs::create_dir(&store).unwrap();
    let bytes = 100 << 20;
    let object = put(&stand, &store, bytes, 3);
    plane.put("/v1/snapshots/chat-8b", &spec(&store, &object, bytes)).await;
    expect_somebody(&plane).await;
    let cache = stand.root().join("cache");
    let more = format!("[staging]\nfolder = \"{}\"\ndisk_gib = 1\n", cache.display());
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let mut agent = daemon_with("lab-1", &stand, &plane.server.url, &secret, &more);
    let first = claimed(&plane).await;
    plane.post(&format!("/v1/claims/{}/release", first["id"].as_str().unwrap()), &json!({})).await;
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(rng.below(1500) as u64)).await;
        drop(agent);
        // What lies there is whole, at every moment; and half of it is lost now and then.
        for leaf in leaves(&cache) {
            let name = leaf.file_name().unwrap().to_str().unwrap().to_owned();
            if name.len() == 64 {
                assert_eq!(snapshots::LeafId::of(&std::fs::read(&leaf).unwrap()).to_string(), name);
                if rng.below(4) == 0 {
                    std::fs::remove_file(leaf).unwrap();
                }
            }
        }
        agent = daemon_with("lab-1", &stand, &plane.server.url, "plj_used", &more);
    }
    // It may have been taken for lost meanwhile: a claim has it come back, or another node be made of it.
    let again = claimed(&plane).await;
    assert_eq!(again["state"], "granted", "{again}");
    plane.post(&format!("/v1/claims/{}/release", again["id"].as_str().unwrap()), &json!({})).await;
    let whole = || leaves(&cache).iter().filter_map(|leaf| Some(std::fs::metadata(leaf).ok()?.len())).sum::<u64>();
    let began = Instant::now();
    while whole() != bytes as u64 {
        assert!(began.elapsed() < Duration::from_secs(60), "{} of {bytes}", whole());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    copies(&plane, &stand, "verified", |copies: &[Value]| copies.iter().any(|copy| copy["state"] == "verified")).await;
    assert_eq!(whole(), bytes as u64, "all of it, once");
    drop(agent);
}
