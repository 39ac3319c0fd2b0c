//! What any store must do, run on SQLite, on PostgreSQL, and in memory.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control::gpus::{GpuChange, Tested};
use fleet::book::{Book, ClaimError, ClaimRequest, ClassRule, Held, HeldCause, Limits};
use fleet::{ClaimState, LaunchAnswer, Offer, OnEmpty};
use protocol::{BudgetSpec, ClassSpec};
use providers::Clock;
use server::store::{
    Crossed, DocumentKey, EventRow, EvidenceRow, Ledger, MemoryTables, OfferTable, Options, Page, Single, Store,
    StoreError, Write, WriteError, text_of,
};

use crate::databases;

const CLASS: &str = r#"
name = "small"
gpus = [{ model = "H100-SXM" }]
hit_rate = 0.99
wait_s = 5
"#;

fn rule() -> ClassRule {
    toml::from_str::<ClassSpec>(CLASS).expect("a class").rule().expect("sensible")
}

fn offer() -> Offer {
    let text = r#"{"key":{"provider":"sim","region":"r","zone":"a","instance_type":"h","market":"on-demand"},
        "gpu":"H100-SXM","gpus_per_node":8,"interconnect":"nvlink","price_usd_micros_per_h":16000000,
        "price_day":null,"interruption_per_h":0.0}"#;
    serde_json::from_str(text).expect("an offer")
}

pub fn ask(key: Option<&str>) -> ClaimRequest {
    ClaimRequest {
        key: key.map(str::to_owned),
        digest: "d".into(),
        on_empty: Some(OnEmpty::Fail),
        ..ClaimRequest::of("small")
    }
}

/// Nodes that are idle.
pub fn idle(book: &mut Book, nodes: u32, now_ms: i64) {
    let intent = book.intend_launch(1, &offer().key, nodes, 60_000, now_ms).expect("known");
    let instances: Vec<String> = (0..nodes).map(|i| format!("x-{intent}-{i}")).collect();
    book.launched(intent, &instances, LaunchAnswer::Launched, "done", now_ms).expect("open");
    let ids: Vec<u64> = book.nodes().values().filter(|n| n.intent == Some(intent)).map(|n| n.id).collect();
    for id in ids {
        book.register(id, "b", 8, now_ms).expect("booting");
        book.gate(id, "b", &fleet::book::Gate::passed(), "passed", now_ms).expect("checking");
    }
}

/// A store that can be opened again and again.
pub enum Place {
    Database(databases::Database),
    Memory(MemoryTables),
}

impl Place {
    pub async fn store(&self) -> Store {
        match self {
            Self::Database(database) => Store::open(&database.url).await.expect("opens"),
            Self::Memory(memory) => Store::in_memory(memory.clone()),
        }
    }
}

fn options(clock: Clock) -> Options {
    let on_breach = Arc::new(|breach: &fleet::invariants::Breach| panic!("{breach}"));
    Options { limits: Limits::default(), clock, ticks: true, on_breach }
}

async fn opened(place: &Place) -> (Store, Ledger) {
    let store = place.store().await;
    let ledger = Ledger::start(&store, options(Clock::system())).await.expect("reads");
    (store, ledger)
}

/// With a class, an offer and `nodes` idle nodes of 8 GPUs.
async fn filled(place: &Place, nodes: u32) -> (Store, Ledger) {
    let (store, ledger) = opened(place).await;
    let class = text_of(&rule(), "class").expect("text");
    ledger.edit(DocumentKey::Class("small".into()), class, None, None).await.expect("written").expect("new");
    ledger.put(&OfferTable(vec![offer()]), None).await.expect("written");
    ledger.write(move |book, now_ms| idle(book, nodes, now_ms)).await.expect("written");
    (store, ledger)
}

async fn claim(ledger: &Ledger, key: Option<&str>) -> Result<u64, ClaimError> {
    let ask = ask(key);
    let done = ledger.write_keyed(ask.key.clone(), move |book, now_ms| book.claim(ask.clone(), now_ms)).await;
    done.expect("durable").map(|(id, _)| id)
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                let database = super::databases::sqlite().expect("always there");
                super::check::$name(&super::Place::Database(database)).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn memory() {
                super::check::$name(&super::Place::Memory(super::MemoryTables::default())).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                if let Some(database) = super::databases::postgres() {
                    super::check::$name(&super::Place::Database(database)).await;
                }
            }
        }
    )* };
}

conformance!(
    n_gpus_are_given_n_times,
    what_was_acknowledged_survives,
    a_retry_finds_its_claim_on_any_replica,
    edits_that_cross_are_refused,
    an_old_leader_writes_nothing,
    the_log_has_every_change_in_order,
    one_bad_operation_fails_alone,
    what_is_known_of_gpus_is_kept,
    a_replica_that_fell_far_behind_reads_everything,
    time_in_which_nobody_could_be_heard_counts_for_nobody,
);

mod check {
    use super::*;

    /// 64 clients on two replicas against 40 GPUs: 40 get one, nobody gets another's, nobody is sent away while one is
    /// free.
    pub async fn n_gpus_are_given_n_times(place: &Place) {
        let (_, first) = filled(place, 5).await;
        let (store, second) = opened(place).await;
        let clients = (0..64).map(|i| {
            let ledger = if i % 2 == 0 { first.clone() } else { second.clone() };
            tokio::spawn(async move { claim(&ledger, None).await })
        });
        let mut granted = 0;
        for client in clients.collect::<Vec<_>>() {
            granted += u32::from(client.await.expect("runs").is_ok());
        }
        assert_eq!(granted, 40, "exactly the GPUs that there are");
        let claims = store.claims(Some("granted"), Page { after: 0, limit: 1000 }).await.expect("read");
        let gpus: BTreeSet<(u64, String)> =
            claims.iter().flat_map(|c| c.parts.iter().map(|p| (p.node, p.gpus.to_string()))).collect();
        assert_eq!(gpus.len(), 40, "no GPU twice");
        // Given back on one replica, free on the other at once.
        let id = claims[0].id;
        first.write(move |book, now_ms| book.release(id, "done", now_ms)).await.expect("durable").expect("open");
        claim(&second, None).await.expect("one is free");
        assert!(matches!(claim(&first, None).await, Err(ClaimError::Empty { .. })));
        assert_eq!(second.book().expect("read").breaches(), []);
    }

    pub async fn what_was_acknowledged_survives(place: &Place) {
        let id = {
            let (_, ledger) = filled(place, 1).await;
            claim(&ledger, None).await.expect("free")
        };
        let (store, ledger) = opened(place).await;
        let book_claim = ledger.book().expect("read").claims().get(&id).cloned().expect("known after a restart");
        assert_eq!(book_claim.state, ClaimState::Granted);
        assert_eq!(store.claim(id).await.expect("read"), Some(book_claim));
        assert_eq!(ledger.book().expect("read").free_gpus(0), 7);
        assert_eq!(ledger.book().expect("read").breaches(), []);
        let next = claim(&ledger, None).await.expect("free");
        assert!(next > id, "numbers are never given again");
    }

    pub async fn a_retry_finds_its_claim_on_any_replica(place: &Place) {
        let (_, first) = filled(place, 1).await;
        let (_, second) = opened(place).await;
        let id = claim(&first, Some("k")).await.expect("free");
        assert_eq!(claim(&second, Some("k")).await, Ok(id));
        first.write(move |book, now_ms| book.release(id, "done", now_ms)).await.expect("durable").expect("open");
        assert_eq!(claim(&second, Some("k")).await, Ok(id), "also after it has ended");
        let mut other = ask(Some("k"));
        other.digest = "another request".into();
        let refused = second.write_keyed(Some("k".into()), move |book, now_ms| book.claim(other.clone(), now_ms)).await;
        assert_eq!(refused.expect("durable"), Err(ClaimError::KeyReused(id)));
    }

    pub async fn edits_that_cross_are_refused(place: &Place) {
        let (store, ledger) = opened(place).await;
        let edit = async |expected: i64| {
            let body = text_of(&BudgetSpec::default(), "budget").expect("text");
            ledger.edit(BudgetSpec::KEY, body, Some(expected), Some(("ops".into(), "edit"))).await.expect("durable")
        };
        assert!(matches!(edit(3).await, Err(Crossed { now: 0, .. })));
        assert_eq!(edit(0).await, Ok(1));
        assert_eq!(edit(1).await, Ok(2));
        assert!(matches!(edit(1).await, Err(Crossed { now: 2, .. })));
        let now = store.single::<BudgetSpec>().await.expect("read").expect("there");
        assert_eq!((now.version, now.record), (2, BudgetSpec::default()));
        let audits = store.audits(Page { after: 0, limit: 10 }).await.expect("read");
        assert_eq!(audits.len(), 2, "an edit that is refused is not in the audit log: {audits:?}");
        ledger.edit(BudgetSpec::KEY, String::new(), Some(2), None).await.expect("durable").expect("deleted");
        assert_eq!(store.single::<BudgetSpec>().await.expect("read"), None);
        assert_eq!(edit(0).await, Ok(4), "versions go on after a deletion");
    }

    pub async fn an_old_leader_writes_nothing(place: &Place) {
        let (_, first) = filled(place, 1).await;
        let (_, second) = opened(place).await;
        let old = first.lead("a").await.expect("durable").expect("nobody led");
        assert_eq!(second.lead("b").await.expect("durable"), None, "one leads");
        assert_eq!(first.lead("a").await.expect("durable"), Some(old), "keeping the lead keeps the term");
        first.record(Write::StepDown { holder: "a".into() }, None).await.expect("durable");
        let new = second.lead("b").await.expect("durable").expect("it is free");
        assert!(new > old);
        let late = first.write_as_leader(old, |book, now_ms| book.intend_release(1, 2, now_ms).is_ok()).await;
        assert!(matches!(late, Err(WriteError::NotLeader)), "{late:?}");
        let late = first.record(Write::Demand(vec![("small".into(), 1, 1.0)]), Some(old)).await;
        assert!(matches!(late, Err(WriteError::NotLeader)), "{late:?}");
        assert!(first.book().expect("read").intents().is_empty(), "nothing was changed");
        second.write_as_leader(new, |_, _| ()).await.expect("the new one may");
    }

    pub async fn the_log_has_every_change_in_order(place: &Place) {
        let (store, ledger) = filled(place, 1).await;
        let id = claim(&ledger, None).await.expect("free");
        ledger.write(move |book, now_ms| book.heartbeat(id, None, now_ms)).await.expect("durable").expect("open");
        ledger.write(move |book, now_ms| book.release(id, "done", now_ms)).await.expect("durable").expect("open");
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(0, |e: &EventRow| e.seq);
            let page = store.events(Page { after, limit: 3 }).await.expect("read");
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        assert!(all.windows(2).all(|w| w[0].seq < w[1].seq));
        let of = |subject: &str| -> Vec<String> {
            let mine = all.iter().filter(|e| e.change.what.subject() == subject);
            mine.map(|e| e.change.what.states()).map(|(from, to)| format!("{from}>{to}")).collect()
        };
        assert_eq!(of("claim"), [">granted", "granted>active", "active>released"]);
        let life =
            [">requested", "requested>booting", "booting>checking", "checking>idle", "idle>claimed", "claimed>idle"];
        assert_eq!(of("node"), life);
        assert!(all.iter().all(|e| !e.change.reason.is_empty()), "every change has its reason");
    }

    /// One operation that no database takes, among many that all take: it alone fails.
    pub async fn one_bad_operation_fails_alone(place: &Place) {
        let (store, ledger) = filled(place, 4).await;
        let seq = store.last_seq().await.expect("read");
        // The same plan a second time: a number that is there already.
        let plan = || ledger.record(Write::Plan { epoch: 7, body: "{}".into() }, None);
        plan().await.expect("the first");
        let tasks = (0..24).map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                if n % 6 == 5 {
                    let again = Write::Plan { epoch: 7, body: "{}".into() };
                    return ledger.record(again, None).await.is_err();
                }
                claim(&ledger, Some(&format!("k{n}"))).await.is_ok()
            })
        });
        for (n, task) in tasks.collect::<Vec<_>>().into_iter().enumerate() {
            assert!(task.await.expect("runs"), "operation {n}");
        }
        assert_eq!(ledger.book().expect("read").free_gpus(0), 32 - 20, "the book is what is committed");
        assert_eq!(ledger.book().expect("read").breaches(), []);
        let (_, other) = opened(place).await;
        assert_eq!(other.book().expect("read").free_gpus(0), 12, "and so are others'");
        assert!(store.last_seq().await.expect("read") > seq);
    }

    /// Two replicas come back from an outage: whoever is first forgives, and the other, and whoever starts next, know it.
    pub async fn time_in_which_nobody_could_be_heard_counts_for_nobody(place: &Place) {
        let now = Arc::new(AtomicI64::new(Clock::system().now_ms()));
        let start = async || {
            let now = Arc::clone(&now);
            let clock = Clock::new(move || now.load(Ordering::SeqCst));
            Ledger::start(&place.store().await, options(clock)).await.expect("reads")
        };
        filled(place, 1).await;
        let (one, two) = (start().await, start().await);
        let id = claim(&one, None).await.expect("free");
        let beat = one.write(move |book, now_ms| book.heartbeat(id, Some(30_000), now_ms)).await;
        beat.expect("durable").expect("ours");
        now.fetch_add(600_000, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(2)).await;
        now.fetch_add(4_000, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(2)).await;
        for (name, ledger) in [("one", one), ("two", two), ("a later one", start().await)] {
            let book = ledger.book().expect("read");
            assert_eq!(book.claims()[&id].state, ClaimState::Active, "{name}");
            assert!(book.nodes().values().all(|n| n.state == fleet::NodeState::Claimed), "{name}");
        }
    }

    pub async fn a_replica_that_fell_far_behind_reads_everything(place: &Place) {
        let (_, first) = filled(place, 2).await;
        let (_, second) = opened(place).await;
        let kept = claim(&second, None).await.expect("free");
        for _ in 0..14 {
            claim(&first, None).await.expect("free");
        }
        first.write(move |book, now_ms| book.release(kept, "done", now_ms)).await.expect("durable").expect("open");
        // Years pass: what changed is not listed any more.
        let late = Ledger::start(&place.store().await, Options::of_a_command(Clock::new(|| i64::MAX / 2)))
            .await
            .expect("reads");
        late.record(Write::ForgetOld, None).await.expect("durable");
        claim(&second, None).await.expect("two are free");
        claim(&second, None).await.expect("one is free");
        assert!(matches!(claim(&second, None).await, Err(ClaimError::Empty { .. })));
        assert_eq!(second.book().expect("read").claims().len(), 16);
        assert_eq!(second.book().expect("read").breaches(), []);
    }

    pub async fn what_is_known_of_gpus_is_kept(place: &Place) {
        let (store, ledger) = filled(place, 1).await;
        let node = ledger.book().expect("read").nodes().values().next().cloned().expect("one");
        let names: Vec<String> = ["g-1", "g-2", "g-3"].map(str::to_owned).to_vec();
        let seen = |tested| GpuChange::Seen { node: Box::new(node.clone()), tested, fault: None };
        let change = async |names: &[String], change| {
            ledger.record(Write::Gpus { names: names.to_vec(), change }, None).await.expect("durable")
        };
        change(&names, seen(Tested::No)).await;
        change(&names[1..2], seen(Tested::Failed)).await;
        let all = store.gpus("", 10).await.expect("reads");
        let known: Vec<(&str, u64, u32)> =
            all.iter().map(|g| (g.serial.as_str(), g.node, g.history.failures)).collect();
        assert_eq!(known, [("g-1", node.id, 0), ("g-2", node.id, 1), ("g-3", node.id, 0)]);
        assert_eq!(store.gpus("g-1", 1).await.expect("reads")[0].serial, "g-2");
        assert_eq!(store.gpus_named(&["g-3".into(), "g-4".into()]).await.expect("reads").len(), 1);
        let row = |node: u64| EvidenceRow {
            id: 0,
            at_ms: 7,
            node,
            checks: "gate".into(),
            verdict: "pass".into(),
            reason: "it's \"fine\"".into(),
            body: serde_json::json!({ "n": 1.5 }),
        };
        for node in [4, 5, 4] {
            ledger.record(Write::Evidence(row(node)), None).await.expect("durable");
        }
        let mine = store.evidence(4, Page { after: 0, limit: 10 }).await.expect("reads");
        assert_eq!(mine.iter().map(|e| e.id).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(mine[0], EvidenceRow { id: 1, ..row(4) });
        // What is held back is known to every replica.
        let (_, second) = opened(place).await;
        let held = Held { causes: vec![HeldCause { cell: "a/b/c".into(), cause: "xid:79".into(), canary: Some(3) }] };
        ledger.put(&held, None).await.expect("durable");
        second.write(|_, _| ()).await.expect("catches up");
        assert_eq!(*second.book().expect("read").held(), held);
        let late = Options::of_a_command(Clock::new(|| i64::MAX / 2));
        let late = Ledger::start(&place.store().await, late).await.expect("reads");
        late.record(Write::ForgetOld, None).await.expect("durable");
        assert!(store.gpus("", 10).await.expect("reads").is_empty(), "long ago");
        assert!(store.evidence(4, Page { after: 0, limit: 10 }).await.expect("reads").is_empty());
    }
}

/// A newer version's database is refused, and nothing in it is changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_database_is_refused() {
    for database in [databases::sqlite(), databases::postgres()].into_iter().flatten() {
        drop(Store::open(&database.url).await.expect("opens"));
        databases::execute(
            &database.url,
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             SELECT 9999, 'newer', success, checksum, 0 FROM _sqlx_migrations LIMIT 1",
        )
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = Store::open(&database.url).await;
        assert!(matches!(refused, Err(StoreError::Newer { migration: 9999 })), "{refused:?}");
    }
}

/// PostgreSQL ends by itself a session that is idle in its transaction, not one whose client takes no answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_of_the_log_that_reads_nothing_is_ended() {
    let Some(database) = databases::postgres() else { return };
    let place = Place::Database(database);
    let (_, ledger) = filled(&place, 1).await;
    let Place::Database(database) = &place else { return };
    let mut holder = database.holder_that_does_not_read();
    // What it prints first says that it has the lock.
    holder.stdout.as_mut().expect("piped").read_exact(&mut [0; 4]).expect("prints");
    let began = tokio::time::Instant::now();
    claim(&ledger, None).await.expect("free");
    let waited = began.elapsed();
    holder.kill().expect("killed");
    holder.wait().expect("ended");
    assert!(waited > Duration::from_millis(300), "it held nothing: {waited:?}");
    assert!(waited < Duration::from_secs(3), "{waited:?}");
}
