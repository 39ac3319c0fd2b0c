//! A database of an older version: it is migrated when it is opened, and reads as what it was.

use std::sync::Arc;

use control::breakers::FaultLog;
use control::learning::Learnt;
use control::plan::PlanRecord;
use control::weekly::WeeklyMemory;
use fleet::book::{Asked, What};
use fleet::{ClaimState, IntentState, LaunchAnswer, NodeState};
use providers::Clock;
use server::store::{Ledger, OfferTable, Options, Page, Paused, Store};

/// What `server` of version 6f6d72f wrote in a minute of simulated clouds and clients; of plans, demand and evidence only the
/// last.
const OLD: &str = include_str!("fixtures/old_database.sql");
/// A moment after it was written.
const NOW_MS: i64 = 1_795_785_005_000;

async fn old_store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().expect("temp");
    let url = format!("sqlite:{}", folder.path().join("old.db").display());
    sqlx::any::install_default_drivers();
    let mut connection: sqlx::AnyConnection =
        <sqlx::AnyConnection as sqlx::Connection>::connect(&format!("{url}?mode=rwc")).await.expect("a new file");
    sqlx::raw_sql(OLD).execute(&mut connection).await.expect("the dump reads");
    sqlx::Connection::close(connection).await.expect("closed");
    let store = Store::open(&url).await.expect("it is migrated");
    (folder, store)
}

#[tokio::test]
async fn a_database_of_an_older_version_reads_as_what_it_was() {
    let (_folder, store) = old_store().await;
    let options = Options { on_breach: Arc::new(|b| panic!("{b}")), ..Options::of_a_command(Clock::new(|| NOW_MS)) };
    let ledger = Ledger::start(&store, options).await.expect("it reads");
    let book = ledger.book().expect("read");
    let nodes = |state| book.nodes().values().filter(|n| n.state == state).count();
    assert_eq!((nodes(NodeState::Claimed), nodes(NodeState::Idle), nodes(NodeState::Requested)), (11, 8, 2));
    assert_eq!(book.claims().values().filter(|c| c.state == ClaimState::Active).count(), 18);
    assert_eq!(book.intents().len(), 1, "a launch that was never made");
    assert_eq!((book.classes().len(), book.breaches()), (3, vec![]));
    let judged: u64 = book.tallies().values().map(|t| t.hits + t.misses).sum();
    assert_eq!(judged, 30);
    drop(book);
    let Paused(paused) = store.single_or_default().await.expect("reads");
    assert!(paused, "the switch is as it was left");
    assert!(!store.single_or_default::<OfferTable>().await.expect("reads").0.is_empty());
    store.single::<FaultLog>().await.expect("reads").expect("there");
    store.single::<WeeklyMemory>().await.expect("reads").expect("there");
    assert_eq!(store.gpus("", 1000).await.expect("reads").len(), 20);
    // A plan of that version is shown where it reads; where it does not, it wants nothing.
    let plans = store.plans(i64::MAX, 1).await.expect("reads");
    assert!(plans[0].epoch > 20);
    let plan: Result<PlanRecord, _> = serde_json::from_str(&plans[0].body);
    assert!(plan.is_ok(), "{plan:?}");
}

/// Events of that time were words; what is learnt of them is what that version learnt.
#[tokio::test]
async fn old_events_teach_what_they_taught() {
    let (_folder, store) = old_store().await;
    let events = store.events(Page { after: 0, limit: 10_000 }).await.expect("they read");
    assert_eq!(events.len(), 229, "each has a meaning");
    let refused = |change: &What| match change {
        What::Intent(intent) if matches!(intent.to, IntentState::Refused | IntentState::Partial) => {
            match &intent.action {
                Asked::Launch { answer, .. } => *answer,
                Asked::Terminate { .. } => None,
            }
        }
        _ => None,
    };
    let answers: Vec<LaunchAnswer> = events.iter().filter_map(|e| refused(&e.change.what)).collect();
    assert_eq!(answers, [LaunchAnswer::NoCapacity; 3]);
    let known: Learnt = store.single().await.expect("reads").expect("there").record;
    let mut again = Learnt::default();
    for event in events.iter().filter(|e| e.seq <= known.seq) {
        again.hear(&event.change);
    }
    assert!(known.seq > 0 && !known.supply.is_empty());
    let supply = |learnt: &Learnt| {
        let rows: Vec<_> = learnt.supply.iter().collect();
        rounded(serde_json::to_value(&rows).expect("JSON"))
    };
    assert_eq!(supply(&again), supply(&known));
}

/// The last digit of a number may change on its way through text.
fn rounded(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(n) => Value::String(format!("{:.9e}", n.as_f64().unwrap_or(f64::NAN))),
        Value::Array(items) => items.into_iter().map(rounded).collect(),
        Value::Object(fields) => fields.into_iter().map(|(k, v)| (k, rounded(v))).collect(),
        other => other,
    }
}
