//! Machines whose clocks are set: replicas as processes, each with a clock of its own.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::databases;
use crate::serving::{Serving, serve, setting, until, write_sim_fleet};

/// A server whose clock is as far off as a file in its folder says at each moment (libfaketime); none where that is not
/// installed.
async fn serve_with_clock(folder: &Path, database: &str, name: &str, off_s: i64) -> Option<Serving> {
    let library = ["/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1"];
    let Some(library) = library.into_iter().find(|path| Path::new(path).exists()) else {
        println!("skipped: no libfaketime here");
        return None;
    };
    set(folder, name, off_s);
    let clock = folder.join(name).display().to_string();
    let wrapper = [
        "env",
        &format!("LD_PRELOAD={library}"),
        &format!("FAKETIME_TIMESTAMP_FILE={clock}"),
        "FAKETIME_NO_CACHE=1",
        // The counter that nobody sets is nobody's to fake.
        "DONT_FAKE_MONOTONIC=1",
    ];
    Some(serve(folder, database, &wrapper).await)
}

fn set(folder: &Path, name: &str, off_s: i64) {
    std::fs::write(folder.join(name), format!("{off_s:+}")).unwrap();
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_sim_fleet(folder.path(), "requests_per_s_max = 50", "gpus_per_claim = 1");
    folder
}

async fn active_claim(serving: &Serving, lease_s: u64) -> String {
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60, "lease_s": lease_s });
    let claim = serving.post("/v1/claims", None, &ask).await.1;
    let id = claim["id"].as_str().expect("a claim").to_owned();
    let active =
        async || serving.try_post(&format!("/v1/claims/{id}/heartbeat"), None, &json!({})).await.1["state"] == "active";
    until("the claim is active", Duration::from_secs(60), active).await;
    id
}

async fn state(serving: &Serving, id: &str) -> Value {
    serving.get(&format!("/v1/claims/{id}")).await["state"].clone()
}

async fn leads(serving: &Serving) -> bool {
    let text = serving.http.get(format!("{}/metrics", serving.url)).send().await.unwrap().text().await.unwrap();
    text.lines().any(|line| line == "pilotlight_leads 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_back_an_hour_stops_nothing() {
    let folder = folder();
    let database = format!("sqlite:{}", folder.path().join("x.db").display());
    let Some(serving) = serve_with_clock(folder.path(), &database, "clock", 0).await else { return };
    let (kept, left) = (active_claim(&serving, 3).await, active_claim(&serving, 3).await);
    set(folder.path(), "clock", -3600);
    // The rate limiter's allowance is used up, and comes again.
    let mut refused = 0;
    for _ in 0..400 {
        refused +=
            usize::from(serving.http.get(format!("{}/v1/loops", serving.url)).send().await.unwrap().status() == 429);
    }
    assert!(refused > 0, "it has a limit");
    let beat = async || {
        serving.try_post(&format!("/v1/claims/{kept}/heartbeat"), None, &json!({})).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    for _ in 0..setting("BEATS", 12) {
        beat().await;
    }
    assert_eq!((state(&serving, &kept).await, state(&serving, &left).await), (json!("active"), json!("expired")));
    serving.kill().await;
    let Some(serving) = serve_with_clock(folder.path(), &database, "clock", -3600).await else { return };
    until("it leads again", Duration::from_secs(15), async || leads(&serving).await).await;
    assert!(serving.logged("the clock of this machine is off") > 0, "it says so");
    let again = active_claim(&serving, 3).await;
    let ended = async || state(&serving, &again).await == "expired";
    until("leases end after it", Duration::from_secs(15), ended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_an_hour_ahead_leads_nothing_and_loses_nothing() {
    let Some(database) = databases::postgres() else { return };
    let folder = folder();
    let Some(honest) = serve_with_clock(folder.path(), &database.url, "honest", 0).await else { return };
    until("it leads", Duration::from_secs(15), async || leads(&honest).await).await;
    let claim = active_claim(&honest, 20).await;
    let Some(ahead) = serve_with_clock(folder.path(), &database.url, "ahead", 3600).await else { return };
    for _ in 0..setting("BEATS", 12) {
        honest.post(&format!("/v1/claims/{claim}/heartbeat"), None, &json!({})).await;
        assert!(!leads(&ahead).await, "one that is off does not lead");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(leads(&honest).await && state(&honest, &claim).await == "active");
    assert!(ahead.logged("the clock of this machine is off") > 0, "it says so");
    let lost = honest.get("/v1/nodes?state=lost").await;
    assert_eq!(lost["items"], json!([]), "no node is lost");
    // It serves claims all the same, by the database's clock.
    let (status, other) = ahead.post("/v1/claims", None, &json!({ "class": "chat", "on_empty": "queue" })).await;
    assert!(status.is_success(), "{other}");
    let asked_ms = other["asked_at_ms"].as_i64().unwrap();
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    assert!((asked_ms - now_ms).abs() < 5_000, "{asked_ms} at {now_ms}");
    ahead.kill().await;
    honest.kill().await;
    let Some(next) = serve_with_clock(folder.path(), &database.url, "next", 0).await else { return };
    until("another leads after both", Duration::from_secs(15), async || leads(&next).await).await;
    assert_eq!(state(&next, &claim).await, "active");
}

/// What an outage forgave is written down: a crash after it takes it from nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_outage_forgave_survives_a_crash() {
    let folder = folder();
    let database = format!("sqlite:{}", folder.path().join("x.db").display());
    let serving = serve(folder.path(), &database, &[]).await;
    let mut claims = Vec::new();
    for _ in 0..4 {
        claims.push(active_claim(&serving, 10).await);
    }
    serving.kill().await;
    tokio::time::sleep(Duration::from_secs(setting("AWAY_S", 12))).await;
    let serving = serve(folder.path(), &database, &[]).await;
    until("it leads", Duration::from_secs(15), async || leads(&serving).await).await;
    serving.kill().await;
    let serving = serve(folder.path(), &database, &[]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for id in &claims {
        assert_eq!(state(&serving, id).await, "active", "{id}");
    }
}
