//! A database that goes away under agents and claims that live: nothing is concluded from what cannot be read.
//! `OUTAGES_S="1 6 25 120"` and `ROUNDS=5` make it longer.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use server::secrets::host_secret;
use server::store::{DocumentKey, Store};
use tokio::task::JoinHandle;

use crate::daemon::{Running, daemon_of, said, stand};
use crate::databases;
use crate::serving::{Serving, SmallDisk, serve, serve_on_small_disk, setting, until};
use crate::stand::Stand;

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = { lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }
[[provider]]
kind = "static"
name = "lab"
offers = "lab.csv"
hosts = { h2 = ["lab-1", "lab-2", "lab-3"] }
[[class]]
name = "chat"
gpus = [{ model = "H200" }]
gpus_per_claim = 1
hit_rate = 0.99
miss_cost_usd = 1000.0
wait_s = 20
"#;

const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
lab,lab,lab,h2,on-demand,H200,2,8,,0
";

/// How long claims live without a heartbeat: less than the longer outages.
const LEASE_S: u64 = 20;
const CLAIMS: usize = 6;

/// Three hosts with two GPUs each, and six claims that beat every second.
struct Lab {
    serving: Serving,
    claims: Vec<String>,
    hosts: Vec<(Stand, Running)>,
    beats: JoinHandle<()>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.beats.abort();
    }
}

fn write_config(folder: &Path) {
    std::fs::write(folder.join("pilotlight.toml"), CONFIG).unwrap();
    std::fs::write(folder.join("lab.csv"), OFFERS).unwrap();
}

impl Lab {
    async fn new(serving: Serving, key: &str) -> Self {
        let host = |name: &str| {
            let stand = stand();
            let agent = daemon_of(name, &stand, &serving.url, &host_secret(key, name));
            (stand, agent)
        };
        let hosts = ["lab-1", "lab-2", "lab-3"].map(host).into();
        let mut claims = Vec::new();
        for _ in 0..CLAIMS {
            let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 120, "lease_s": LEASE_S });
            let claim = serving.post("/v1/claims", None, &ask).await.1;
            claims.push(claim["id"].as_str().unwrap().to_owned());
        }
        let (url, http, beating) = (serving.url.clone(), serving.http.clone(), claims.clone());
        let beats = tokio::spawn(async move {
            loop {
                for id in &beating {
                    let beat = http.post(format!("{url}/v1/claims/{id}/heartbeat")).body("{}");
                    let _ = beat.timeout(Duration::from_secs(2)).send().await;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let lab = Self { serving, claims, hosts, beats };
        until("all claims are active", Duration::from_secs(60), async || lab.live().await == CLAIMS).await;
        lab
    }

    async fn try_get(&self, path: &str) -> Option<Value> {
        let sent = self.serving.http.get(format!("{}{path}", self.serving.url)).timeout(Duration::from_secs(5));
        let sent = sent.send().await.ok()?;
        if sent.status() != 200 {
            assert_eq!(sent.status(), 503, "{path}: what is unknown is not served");
            return None;
        }
        sent.json().await.ok()
    }

    /// Claims that still are what they were.
    async fn live(&self) -> usize {
        let mut live = 0;
        for id in &self.claims {
            let claim = self.try_get(&format!("/v1/claims/{id}")).await;
            live += usize::from(claim.is_some_and(|c| c["state"] == "active"));
        }
        live
    }

    /// Nodes that serve and whose agents are heard: told what to do by their tokens.
    async fn hosts_heard(&self) -> usize {
        let Some(nodes) = self.try_get("/v1/nodes").await else { return 0 };
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
        let heard =
            |n: &&Value| n["state"] == "claimed" && n["heard_at_ms"].as_i64().is_some_and(|at| now - at < 5_000);
        nodes.iter().filter(heard).count()
    }

    /// After an outage: every host is heard again, every claim lives, and both stay so.
    async fn expect_all_back(&self, what: &str) {
        let back = async || self.hosts_heard().await == 3 && self.live().await == CLAIMS;
        let began = std::time::Instant::now();
        while !back().await {
            if began.elapsed() > Duration::from_secs(40) {
                let log: Vec<String> = self.hosts.iter().map(|(s, _)| said(&s.root().join("said"))).collect();
                panic!(
                    "after {what}: {} hosts, {} claims\n{}",
                    self.hosts_heard().await,
                    self.live().await,
                    log.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let after_s = began.elapsed().as_secs_f64();
        // Whatever was concluded meanwhile shows within the next rounds of the loops.
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(back().await, "after {what}: lost again");
        println!("{what}: 3 of 3 hosts and {CLAIMS} of {CLAIMS} live claims, {after_s:.1} s after it was back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_away_locks_nobody_out() {
    let Some(mut database) = databases::postgres() else { return };
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let serving = serve(folder.path(), &database.url, &[]).await;
    let store = Store::open(&database.url).await.unwrap();
    let key = store.text(&DocumentKey::JoinKey).await.unwrap().unwrap();
    let lab = Lab::new(serving, &key).await;
    let outages = setting("OUTAGES_S", "1 8".to_owned());
    for round in 0..setting("ROUNDS", 1) {
        for seconds in outages.split_whitespace().map(|s| s.parse::<u64>().unwrap()) {
            let said_before = lab.serving.logged("the database cannot be used");
            database.stop();
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let said = lab.serving.logged("the database cannot be used");
            let most = usize::try_from(seconds).unwrap() / 10 + 2;
            assert!(said - said_before <= most, "{} lines in {seconds} s: one each ten seconds", said - said_before);
            database.start();
            lab.expect_all_back(&format!("round {round}, away for {seconds} s")).await;
            // Again at once, before everything has found its pace.
            database.stop();
            tokio::time::sleep(Duration::from_secs(1)).await;
            database.start();
            lab.expect_all_back(&format!("round {round}, and again for 1 s")).await;
        }
    }
    assert!(lab.serving.logged("the database cannot be used") > 0, "an outage is told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_locks_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path());
    let Some(SmallDisk { serving, path: disk }) = serve_on_small_disk(folder.path()).await else { return };
    // SQLite follows the link out of the other's disk, so a copy is opened.
    for file in ["x.db", "x.db-wal"] {
        std::fs::copy(disk.join(file), folder.path().join(file)).unwrap();
    }
    let store = Store::open(&format!("sqlite:{}", folder.path().join("x.db").display())).await.unwrap();
    let key = store.text(&DocumentKey::JoinKey).await.unwrap().unwrap();
    drop(store);
    let lab = Lab::new(serving, &key).await;
    let seconds = setting("FULL_S", 10);
    let fill = disk.join("fill");
    let mut filler = File::create(&fill).unwrap();
    let full = std::time::Instant::now();
    while full.elapsed() < Duration::from_secs(seconds) {
        while filler.write_all(&[0; 4096]).is_ok() {}
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(filler);
    std::fs::remove_file(&fill).unwrap();
    lab.expect_all_back(&format!("the disk full for {seconds} s")).await;
}
