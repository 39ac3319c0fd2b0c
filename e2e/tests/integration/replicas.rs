//! Two servers on one PostgreSQL, one of which is killed again and again while clients claim. `SOAK_S` makes it longer.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fleet::rng::Rng;
use reqwest::Client;
use serde_json::{Value, json};
use server::secrets::host_secret;
use server::store::{DocumentKey, Store};

use crate::databases;
use crate::serving::{Serving, serve, setting, until};

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = { lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }
[limits]
lease_max_ms = 600000
[[provider]]
kind = "static"
name = "lab"
offers = "lab.csv"
hosts = { h8 = ["lab-1", "lab-2", "lab-3", "lab-4"] }
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
gpus_per_claim = 1
hit_rate = 0.9
miss_cost_usd = 1000.0
wait_s = 20
"#;

const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
lab,r,a,h8,on-demand,H100-SXM,8,1,,0
";

/// What clients hold at this moment, and what they found wrong.
#[derive(Default)]
struct Held {
    gpus: Mutex<HashSet<(String, u64)>>,
    wrong: Mutex<Vec<String>>,
    granted: AtomicU64,
    unanswered: AtomicU64,
}

/// Where the servers are now.
type Urls = Arc<Mutex<Vec<String>>>;

async fn post(http: &Client, url: &str, body: &Value) -> Option<(u16, Value)> {
    let sent = http.post(url).body(body.to_string()).timeout(Duration::from_secs(10)).send().await.ok()?;
    Some((sent.status().as_u16(), sent.json().await.ok()?))
}

/// A client that claims one GPU, holds it for a moment, and gives it back; it asks whichever server answers.
async fn client(number: u64, urls: Urls, held: Arc<Held>, until: Instant) {
    let (http, mut rng) = (Client::new(), Rng::new(number));
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let key = format!("{number}-{round}");
        let ask = json!({ "class": "chat", "idempotency_key": key, "on_empty": "queue", "wait_s": 60, "lease_s": 120 });
        // The same key until there is an answer: whatever was killed, the claim is made once.
        let claim = anyone(&http, &urls, "/v1/claims", &ask, &mut rng, &held).await;
        let Some(id) = claim["id"].as_str() else { continue };
        let mut claim = claim.clone();
        let waiting_since = Instant::now();
        while claim["state"] == "queued" && waiting_since.elapsed() < Duration::from_secs(60) {
            claim = read(&http, &urls, id, &mut rng).await;
        }
        if claim["state"] != "granted" {
            continue;
        }
        let gpu = (
            claim["gpus"][0]["node"].as_str().unwrap_or_default().to_owned(),
            claim["gpus"][0]["indices"][0].as_u64().unwrap_or(99),
        );
        let beat = anyone(&http, &urls, &format!("/v1/claims/{id}/heartbeat"), &json!({}), &mut rng, &held).await;
        if beat["state"] != "active" {
            // Not confirmed in time: it is not ours any more.
            continue;
        }
        held.granted.fetch_add(1, Ordering::Relaxed);
        if !held.gpus.lock().unwrap_or_else(PoisonError::into_inner).insert(gpu.clone()) {
            held.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{gpu:?} was given twice"));
        }
        tokio::time::sleep(Duration::from_millis((rng.unit() * 20.0) as u64)).await;
        held.gpus.lock().unwrap_or_else(PoisonError::into_inner).remove(&gpu);
        anyone(&http, &urls, &format!("/v1/claims/{id}/release"), &json!({}), &mut rng, &held).await;
    }
}

/// Asks one server after the other until one answers with success, or with a refusal that is final.
async fn anyone(http: &Client, urls: &Urls, path: &str, body: &Value, rng: &mut Rng, held: &Held) -> Value {
    for _ in 0..600 {
        let url = {
            let urls = urls.lock().unwrap_or_else(PoisonError::into_inner);
            urls[(rng.unit() * urls.len() as f64) as usize].clone()
        };
        match post(http, &format!("{url}{path}"), body).await {
            Some((status, answer)) if status < 300 || (400..500).contains(&status) => return answer,
            _ => {
                held.unanswered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    Value::Null
}

async fn read(http: &Client, urls: &Urls, id: &str, rng: &mut Rng) -> Value {
    let url = {
        let urls = urls.lock().unwrap_or_else(PoisonError::into_inner);
        urls[(rng.unit() * urls.len() as f64) as usize].clone()
    };
    let sent = http.get(format!("{url}/v1/claims/{id}?wait_s=2")).timeout(Duration::from_secs(10)).send().await;
    match sent {
        Ok(sent) => sent.json().await.unwrap_or_else(|_| json!({ "state": "queued" })),
        Err(_) => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            json!({ "state": "queued" })
        }
    }
}

/// The agents of the four machines.
async fn agents(key: String, urls: Urls, until: Instant) {
    let http = Client::new();
    let mut tokens: BTreeMap<&str, String> = BTreeMap::new();
    while Instant::now() < until {
        for host in ["lab-1", "lab-2", "lab-3", "lab-4"] {
            let url = urls.lock().unwrap_or_else(PoisonError::into_inner)[0].clone();
            let boot = format!("boot-{host}");
            let send = async |secret: &str, path: String, body: Value| {
                let request = http.post(format!("{url}{path}")).bearer_auth(secret).body(body.to_string());
                let sent = request.timeout(Duration::from_secs(5)).send().await.ok()?;
                sent.json::<Value>().await.ok()
            };
            let report = |checks: &str| json!({ "boot": boot, "checks": checks, "verdict": "pass" });
            let path = format!("/v1/agents/{host}/report");
            let token = tokens.get(host).cloned().unwrap_or_default();
            let told = send(&token, path.clone(), report("passive")).await;
            let state = told.and_then(|t| Some(t.get("state")?.as_str()?.to_owned()));
            if state.is_none_or(|s| s == "booting" || s == "checking") {
                let body = json!({ "instance": host, "boot": boot, "gpus": 8 });
                let told = send(&host_secret(&key, host), "/v1/agents/register".into(), body).await;
                let Some(token) = told.and_then(|t| Some(t.get("token")?.as_str()?.to_owned())) else { continue };
                send(&token, path, report("gate")).await;
                tokens.insert(host, token);
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn start(folder: &Path, url: &str) -> Serving {
    serve(folder, url, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_replicas_lose_and_double_nothing() {
    let Some(database) = databases::postgres() else { return };
    let seconds = setting("SOAK_S", 15);
    let folder = tempfile::tempdir().expect("temp");
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).expect("written");
    std::fs::write(folder.path().join("lab.csv"), OFFERS).expect("written");
    let mut servers = [start(folder.path(), &database.url).await, start(folder.path(), &database.url).await];
    let urls: Urls = Arc::new(Mutex::new(servers.iter().map(|s| s.url.clone()).collect()));
    let store = Store::open(&database.url).await.expect("opens");
    let key = store.text(&DocumentKey::JoinKey).await.expect("read").expect("there");

    let end = Instant::now() + Duration::from_secs(seconds);
    let (held, mut tasks) = (Arc::new(Held::default()), tokio::task::JoinSet::new());
    let playing = tokio::spawn(agents(key, Arc::clone(&urls), end + Duration::from_secs(120)));
    for number in 0..24 {
        tasks.spawn(client(number, Arc::clone(&urls), Arc::clone(&held), end));
    }
    let mut kills = 0;
    while Instant::now() + Duration::from_secs(5) < end {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let victim = kills % 2;
        kills += 1;
        let fresh = start(folder.path(), &database.url).await;
        let old = std::mem::replace(&mut servers[victim], fresh);
        old.kill().await;
        *urls.lock().unwrap_or_else(PoisonError::into_inner) = servers.iter().map(|s| s.url.clone()).collect();
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no client panics");
    }
    let wrong = std::mem::take(&mut *held.wrong.lock().unwrap_or_else(PoisonError::into_inner));
    let granted = held.granted.load(Ordering::Relaxed);
    println!(
        "{seconds} s, {kills} kills, {granted} claims granted and given back, {} calls without an answer",
        held.unanswered.load(Ordering::Relaxed)
    );
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(kills >= 2 && granted > 50, "{kills} kills, {granted} claims");
    // Nothing stays taken: what was granted to nobody runs out by itself.
    let free = async || {
        let pools = servers[0].get("/v1/pools").await;
        pools["items"][0]["used"].as_u64() == Some(0)
    };
    until("all GPUs come back", Duration::from_secs(100), free).await;
    let events = store.last_seq().await.expect("read");
    assert!(events > i64::try_from(granted).unwrap_or(0), "{events} events");
    playing.abort();
}
