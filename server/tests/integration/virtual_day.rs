//! A day of the whole server in virtual time: store, loops, API, simulated clouds, agents and clients. It runs as fast as it can
//! be computed, and the same day gives the same log, byte for byte.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "says how long it took")]

use std::fmt::Write as _;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use fleet::rng::Rng;
use providers::Clock;
use serde_json::{Value, json};
use server::config::Config;
use server::serve::{Assembled, Door, assemble};
use server::store::{Page, Store};
use server::{demo, loops};
use tokio::sync::watch;

const NODES: u32 = 1000;
const DAY_S: u64 = 86_400;
/// Time between claims, and how long each is used on average, seconds.
const CLAIM_EVERY_S: u64 = 2;
const CLAIM_MEAN_S: f64 = 1600.0;
/// 2026-11-02, a Monday, 0:00 UTC.
const START_MS: i64 = 1_793_577_600_000;

/// Agents of a large fleet beat each five minutes here, and are silent after ten.
const CONFIG: &str = r#"
[limits]
silent_ms = 600_000
proof_max_age_ms = 900_000
[planning]
every_s = 60
observe_every_s = 60
periods_s = [60, 60, 120, 300, 300]
paths = 8
[budget]
launch_guard_nodes_per_min = 5_000
[diagnostics]
every_s = 60
[[provider]]
kind = "sim"
offers = "offers.csv"
speed = 1.0
capacity = 3000
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
gpus_per_claim = 1
hit_rate = 0.999
miss_cost_usd = 100.0
wait_s = 20
claim_mean_s = 1600
"#;

const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
sim,r,a,h1,on-demand,H100-SXM,1,2,,0
";

#[derive(Clone)]
struct Client(Router);

impl Client {
    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let request =
            Request::builder().method(Method::POST).uri(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_string())).expect("a request");
        let response = tower::ServiceExt::oneshot(self.0.clone(), request).await.expect("no error of its own");
        let status = response.status();
        let bytes = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Claims, uses, gives back.
    async fn one(self, number: u64, life: Duration) {
        let ask =
            json!({ "class": "chat", "holder": format!("client-{number}"), "on_empty": "queue", "wait_s": 120.0 });
        let (_, claim) = self.post("/v1/claims", &ask).await;
        let Some(id) = claim.get("id").and_then(Value::as_str) else { return };
        let lease = json!({ "lease_s": life.as_secs_f64() + 120.0 });
        let mut tries = 0;
        while self.post(&format!("/v1/claims/{id}/heartbeat"), &lease).await.0 != StatusCode::OK {
            // It waits, or has waited for too long.
            tries += 1;
            if tries > 12 {
                return;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        tokio::time::sleep(life).await;
        self.post(&format!("/v1/claims/{id}/release"), &json!({})).await;
    }
}

/// What is left of a day: its log, its fleet.
struct Day {
    text: String,
    events: i64,
    nodes: usize,
    hits: u64,
    misses: u64,
}

async fn live(seconds: u64) -> Day {
    let folder = tempfile::tempdir().expect("temp");
    std::fs::write(folder.path().join("offers.csv"), OFFERS).expect("written");
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).expect("written");
    let config = Config::read(&folder.path().join("pilotlight.toml")).expect("sensible");
    let start = tokio::time::Instant::now();
    let clock = Clock::new(move || START_MS + start.elapsed().as_millis() as i64);
    let assembled = assemble(
        &config,
        Store::in_memory(server::store::MemoryTables::default()),
        clock.clone(),
        Door::OpenWithoutTokens,
        "day",
    )
    .await;
    let Assembled { context, router, sims } = assembled.expect("assembled");
    let app = context.app.clone();
    app.ready.store(true, std::sync::atomic::Ordering::Release);
    let (stop, stopped) = watch::channel(false);
    loops::start(&context, &stopped);
    // By hand: the first thousand, once the loops know what is sold.
    tokio::time::sleep(Duration::from_millis(5_003)).await;
    let habits = demo::Habits { beat_every: Duration::from_secs(300), look_every: Duration::from_secs(60) };
    demo::play_hosts(router.clone(), sims, clock, habits, stopped);
    let launched = app.ledger.write(move |book, now_ms| {
        let key = book.offers()[0].key.clone();
        book.intend_launch(0, &key, NODES, 600_000, now_ms).map(|_| ())
    });
    launched.await.expect("written").expect("known");
    tokio::time::sleep(Duration::from_millis(900_110)).await;
    let (client, mut rng) = (Client(router), Rng::new(5));
    for number in 0..seconds / CLAIM_EVERY_S {
        let life_s = (-rng.unit().max(1e-9).ln() * CLAIM_MEAN_S).min(36_000.0);
        tokio::spawn(client.clone().one(number, Duration::from_millis(1000 * life_s as u64 + 7)));
        tokio::time::sleep(Duration::from_secs(CLAIM_EVERY_S)).await;
    }
    stop.send(true).expect("they listen");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut text, mut after, mut events) = (String::new(), 0, 0);
    loop {
        let page = app.store.events(Page { after, limit: 5_000 }).await.expect("in memory");
        let Some(last) = page.last() else { break };
        (after, events) = (last.seq, events + page.len() as i64);
        for event in &page {
            writeln!(text, "{}", serde_json::to_string(&event.change).expect("JSON")).expect("a string");
        }
    }
    let book = app.book().expect("known");
    for node in book.nodes().values() {
        writeln!(text, "{}", serde_json::to_string(node).expect("JSON")).expect("a string");
    }
    let tally = book.tallies().get("chat").copied().unwrap_or_default();
    assert_eq!(book.breaches(), vec![]);
    Day { text, events, nodes: book.nodes().len(), hits: tally.hits, misses: tally.misses }
}

fn day(seconds: u64) -> Day {
    let began = std::time::Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let day = runtime.expect("a runtime").block_on(live(seconds));
    println!(
        "{} h with {} nodes: {} events, {} hits, {} misses, in {:.1} s",
        seconds / 3600,
        day.nodes,
        day.events,
        day.hits,
        day.misses,
        began.elapsed().as_secs_f64()
    );
    day
}

#[test]
fn the_same_day_twice_is_the_same_bytes() {
    // All of a day in `make soak`.
    let hours: u64 = std::env::var("DAY_H").ok().and_then(|h| h.parse().ok()).unwrap_or(6);
    let seconds = (hours * 3600).min(DAY_S);
    // Both at once, or one after the other, to see how long one takes that has the machine to itself.
    let (one, other) = if std::env::var_os("DAYS_APART").is_some() {
        (day(seconds), day(seconds))
    } else {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| day(seconds));
            (day(seconds), other.join().expect("no panic"))
        })
    };
    let first = one.text.lines().zip(other.text.lines()).position(|(a, b)| a != b);
    if let Some(at) = first {
        let line = |day: &Day| day.text.lines().nth(at).unwrap_or_default().to_owned();
        panic!("line {at} differs:\n{}\n{}", line(&one), line(&other));
    }
    assert!(one.text == other.text, "the same length");
    assert!(one.nodes > 700, "{} nodes", one.nodes);
    // Demand begins all at once: the first claims come before the planner expects any.
    assert!(one.hits > 95 * (one.hits + one.misses) / 100, "{} hits, {} misses", one.hits, one.misses);
}
