//! What the loop that learns keeps for later is learnt once, whoever leads by then.
#![allow(clippy::disallowed_methods, reason = "virtual time")]

use std::time::Duration;

use control::learning::Learnt;
use fleet::LaunchAnswer;
use fleet::book::Gate;
use providers::Clock;
use server::config::Config;
use server::loops::Loop;
use server::serve::{Assembled, Door, assemble};
use server::store::{MemoryTables, Page, Store};

const START_MS: i64 = 1_793_577_600_000;
// Nobody plays the agent: it is never silent.
const CONFIG: &str = r#"
[limits]
silent_ms = 86_400_000
proof_max_age_ms = 86_400_000
[[provider]]
kind = "sim"
offers = "offers.csv"
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
hit_rate = 0.99
miss_cost_usd = 1.0
"#;
const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
sim,r,a,h1,on-demand,H100-SXM,1,2,,0
";

#[tokio::test(start_paused = true)]
async fn what_waits_is_learnt_once_also_by_the_next_leader() {
    let folder = tempfile::tempdir().expect("temp");
    std::fs::write(folder.path().join("offers.csv"), OFFERS).expect("written");
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).expect("written");
    let config = Config::read(&folder.path().join("pilotlight.toml")).expect("sensible");
    let start = tokio::time::Instant::now();
    let clock = Clock::new(move || START_MS + start.elapsed().as_millis() as i64);
    let store = Store::in_memory(MemoryTables::default());
    let assembled = assemble(&config, store, clock, Door::OpenWithoutTokens, "a").await;
    let Assembled { context, .. } = assembled.expect("assembled");
    let app = context.app.clone();
    let learnt = async || {
        let read = app.store.single::<Learnt>().await.expect("reads");
        read.map_or((0, 0), |v| (v.version, v.record.seq))
    };
    let last_event = async || {
        let events = app.store.events(Page { after: 0, limit: 1000 }).await.expect("reads");
        events.last().expect("some").seq
    };
    let step = async |term: i64| Loop::Learn.step(context.clone(), term).await.expect("learns");

    let first = app.ledger.lead("a").await.expect("written").expect("nobody else");
    Loop::Offers.step(context.clone(), first).await.expect("asked");
    let made = app.ledger.write(|book, now_ms| {
        let offer = book.offers()[0].key.clone();
        let intent = book.intend_launch(1, &offer, 1, 600_000, now_ms).expect("known");
        book.intent_sent(intent, now_ms).expect("open");
        book.launched(intent, &["i-1".to_owned()], LaunchAnswer::Launched, "here", now_ms).expect("open");
        let id = book.nodes().values().find(|n| n.intent == Some(intent)).expect("made").id;
        book.register(id, "b", 1, now_ms).expect("booting");
        book.gate(id, "b", &Gate::passed(), "passed", now_ms + 1).expect("checking");
        id
    });
    let id = made.await.expect("written");
    step(first).await;
    let at_once = learnt().await;
    assert_eq!(at_once.1, last_event().await, "the answer of a launch is heard at once");

    let tested = app.ledger.write(move |book, now_ms| {
        book.lend(id, "2", now_ms + 60_000, now_ms).expect("idle");
        book.call_back(id, "claims wait", now_ms + 1).expect("lent");
        book.gate(id, "b", &Gate::passed(), "passed", now_ms + 2).expect("checking");
    });
    tested.await.expect("written");
    let last = last_event().await;
    step(first).await;
    step(first).await;
    assert_eq!(learnt().await, at_once, "that it was tested can wait");

    // Another leads before it was heard: it reads again what was read, and keeps it for its own minute.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let second = app.ledger.lead("b").await.expect("written").expect("the lease is over");
    assert!(second > first);
    step(second).await;
    assert_eq!(learnt().await, at_once);
    tokio::time::sleep(Duration::from_secs(61)).await;
    let third = app.ledger.lead("b").await.expect("written").expect("nobody else");
    step(third).await;
    if third != second {
        tokio::time::sleep(Duration::from_secs(61)).await;
        step(third).await;
    }
    let later = learnt().await;
    assert_eq!(later, (at_once.0 + 1, last), "once");
    tokio::time::sleep(Duration::from_secs(61)).await;
    step(third).await;
    assert_eq!(learnt().await, later, "nothing is heard twice");
}
