//! What any database must do, run on SQLite and on PostgreSQL.

use std::collections::BTreeSet;
use std::time::Duration;

use fleet::book::{Book, ClaimError, ClaimRequest, ClassRule, Held, Limits};
use fleet::{ClaimState, Offer, OnEmpty};
use server::config::ClassSpec;
use server::store::{
    Document, EditError, EvidenceRow, Ledger, Page, Store, StoreError, WriteError, change_gpus, edit_document,
    write_document, write_evidence,
};

use crate::databases::{self, Database};

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
        class: "small".into(),
        count: 1,
        key: key.map(str::to_owned),
        digest: "d".into(),
        holder: String::new(),
        on_empty: Some(OnEmpty::Fail),
        wait_ms: None,
        lease_ms: None,
        answer_by_ms: None,
    }
}

/// Nodes that are idle.
pub fn idle(book: &mut Book, nodes: u32, now_ms: i64) {
    let intent = book.intend_launch(1, &offer().key, nodes, 60_000, now_ms).expect("known");
    let instances: Vec<String> = (0..nodes).map(|i| format!("x-{intent}-{i}")).collect();
    book.launched(intent, &instances, "done", now_ms).expect("open");
    let ids: Vec<u64> = book.nodes().values().filter(|n| n.intent == Some(intent)).map(|n| n.id).collect();
    for id in ids {
        book.register(id, "b", 8, now_ms).expect("booting");
        book.gate(id, "b", &fleet::book::Gate::Passed, "passed", now_ms).expect("checking");
    }
}

async fn opened(database: &Database) -> (Store, Ledger) {
    let store = Store::open(&database.url).await.expect("opens");
    let ledger = Ledger::start(&store, Limits::default()).await.expect("reads");
    (store, ledger)
}

/// With a class, an offer and `nodes` idle nodes of 8 GPUs.
async fn filled(database: &Database, nodes: u32) -> (Store, Ledger) {
    let (store, ledger) = opened(database).await;
    for (kind, name, body) in [
        ("class", "small", serde_json::to_string(&rule()).expect("text")),
        ("offers", "all", serde_json::to_string(&vec![offer()]).expect("text")),
    ] {
        let document = Document { kind: kind.into(), name: name.into(), version: 0, body };
        write_document(&ledger, document, None).await.expect("written");
    }
    ledger.write(move |book, now_ms| idle(book, nodes, now_ms)).await.expect("written");
    (store, ledger)
}

async fn claim(ledger: &Ledger, key: Option<&str>) -> Result<u64, ClaimError> {
    let ask = ask(key);
    let done = ledger.write_keyed(ask.key.clone(), move |book, now_ms| book.claim(ask, now_ms)).await;
    done.expect("durable").map(|(id, _)| id)
}

macro_rules! conformance {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn sqlite() {
                super::check::$name(&super::databases::sqlite().expect("always there")).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn postgres() {
                if let Some(database) = super::databases::postgres() {
                    super::check::$name(&database).await;
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
    a_batch_that_fails_changes_nothing,
    what_is_known_of_gpus_is_kept,
    a_newer_database_is_refused,
    a_replica_that_fell_far_behind_reads_everything,
);

mod check {
    use super::*;

    /// 64 clients on two replicas against 40 GPUs: 40 get one, nobody gets another's, nobody is sent away while one is
    /// free.
    pub async fn n_gpus_are_given_n_times(database: &Database) {
        let (_, first) = filled(database, 5).await;
        let (store, second) = opened(database).await;
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
        second.book().check().expect("sound");
    }

    pub async fn what_was_acknowledged_survives(database: &Database) {
        let id = {
            let (_, ledger) = filled(database, 1).await;
            claim(&ledger, None).await.expect("free")
        };
        let (store, ledger) = opened(database).await;
        let book_claim = ledger.book().claims().get(&id).cloned().expect("known after a restart");
        assert_eq!(book_claim.state, ClaimState::Granted);
        assert_eq!(store.claim(id).await.expect("read"), Some(book_claim));
        assert_eq!(ledger.book().free_gpus(0), 7);
        ledger.book().check().expect("sound");
        let next = claim(&ledger, None).await.expect("free");
        assert!(next > id, "numbers are never given again");
    }

    pub async fn a_retry_finds_its_claim_on_any_replica(database: &Database) {
        let (_, first) = filled(database, 1).await;
        let (_, second) = opened(database).await;
        let id = claim(&first, Some("k")).await.expect("free");
        assert_eq!(claim(&second, Some("k")).await, Ok(id));
        first.write(move |book, now_ms| book.release(id, "done", now_ms)).await.expect("durable").expect("open");
        assert_eq!(claim(&second, Some("k")).await, Ok(id), "also after it has ended");
        let mut other = ask(Some("k"));
        other.digest = "another request".into();
        let refused = second.write_keyed(Some("k".into()), move |book, now_ms| book.claim(other, now_ms)).await;
        assert_eq!(refused.expect("durable"), Err(ClaimError::KeyReused(id)));
    }

    pub async fn edits_that_cross_are_refused(database: &Database) {
        let (store, ledger) = opened(database).await;
        let edit = |expected: i64| {
            let ledger = ledger.clone();
            async move {
                let document = Document { kind: "note".into(), name: "a".into(), version: 0, body: "1".into() };
                edit_document(&ledger, document, Some(expected), None, None).await.expect("durable")
            }
        };
        assert!(matches!(edit(3).await, Err(EditError::Crossed { now: 0, .. })));
        assert_eq!(edit(0).await.expect("new"), 1);
        assert_eq!(edit(1).await.expect("edited"), 2);
        assert!(matches!(edit(1).await, Err(EditError::Crossed { now: 2, .. })));
        assert_eq!(store.document("note", "a").await.expect("read").map(|d| d.version), Some(2));
    }

    pub async fn an_old_leader_writes_nothing(database: &Database) {
        let (store, first) = filled(database, 1).await;
        let (_, second) = opened(database).await;
        let old = store.lead(&first, "a").await.expect("durable").expect("nobody led");
        assert_eq!(store.lead(&second, "b").await.expect("durable"), None, "one leads");
        assert_eq!(store.lead(&first, "a").await.expect("durable"), Some(old), "keeping the lead keeps the term");
        store.step_down(&first, "a").await.expect("durable");
        let new = store.lead(&second, "b").await.expect("durable").expect("it is free");
        assert!(new > old);
        let late = first.write_as_leader(old, |book, now_ms| book.intend_release(1, 2, now_ms).is_ok()).await;
        assert!(matches!(late, Err(WriteError::NotLeader)), "{late:?}");
        assert!(first.book().intents().is_empty(), "nothing was changed");
        second.write_as_leader(new, |_, _| ()).await.expect("the new one may");
    }

    pub async fn the_log_has_every_change_in_order(database: &Database) {
        let (store, ledger) = filled(database, 1).await;
        let id = claim(&ledger, None).await.expect("free");
        ledger.write(move |book, now_ms| book.heartbeat(id, None, now_ms)).await.expect("durable").expect("open");
        ledger.write(move |book, now_ms| book.release(id, "done", now_ms)).await.expect("durable").expect("open");
        let mut all = Vec::new();
        loop {
            let after = all.last().map_or(0, |e: &server::store::EventRow| e.seq);
            let page = store.events(Page { after, limit: 3 }).await.expect("read");
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        assert!(all.windows(2).all(|w| w[0].seq < w[1].seq));
        let of = |subject: &str| -> Vec<String> {
            let mine = all.iter().filter(|e| e.subject == subject);
            mine.map(|e| format!("{}>{}", e.from_state, e.to_state)).collect()
        };
        assert_eq!(of("claim"), [">granted", "granted>active", "active>released"]);
        let life =
            [">requested", "requested>booting", "booting>checking", "checking>idle", "idle>claimed", "claimed>idle"];
        assert_eq!(of("node"), life);
        assert!(all.iter().all(|e| !e.reason.is_empty()), "every change has its reason");
    }

    pub async fn a_batch_that_fails_changes_nothing(database: &Database) {
        let (store, ledger) = filled(database, 1).await;
        let seq = store.last_seq().await.expect("read");
        let (first, broken) = tokio::join!(
            // Both may be of one batch: then both fail.
            ledger.write(|book, now_ms| book.claim(ask(None), now_ms)),
            ledger.statements(
                None,
                Box::new(|_, _| {
                    Box::pin(async {
                        let source = std::sync::Arc::new(sqlx_error());
                        Err(StoreError::Database { doing: "break", source })
                    })
                })
            ),
        );
        assert!(broken.is_err());
        let granted = u64::from(first.is_ok_and(|c| c.is_ok()));
        assert_eq!(ledger.book().free_gpus(0), 8 - granted, "the book is what is committed");
        ledger.book().check().expect("sound");
        // And it goes on.
        claim(&ledger, None).await.expect("free");
        assert!(store.last_seq().await.expect("read") > seq);
    }

    fn sqlx_error() -> sqlx::Error {
        sqlx::Error::RowNotFound
    }

    pub async fn a_replica_that_fell_far_behind_reads_everything(database: &Database) {
        let (_, first) = filled(database, 2).await;
        let (_, second) = opened(database).await;
        let kept = claim(&second, None).await.expect("free");
        for _ in 0..14 {
            claim(&first, None).await.expect("free");
        }
        first.write(move |book, now_ms| book.release(kept, "done", now_ms)).await.expect("durable").expect("open");
        // Years pass: what changed is not listed any more.
        server::store::forget_old(&first, i64::MAX / 2, None).await.expect("durable");
        claim(&second, None).await.expect("two are free");
        claim(&second, None).await.expect("one is free");
        assert!(matches!(claim(&second, None).await, Err(ClaimError::Empty { .. })));
        assert_eq!(second.book().claims().len(), 16);
        second.book().check().expect("sound");
    }

    pub async fn what_is_known_of_gpus_is_kept(database: &Database) {
        let (store, ledger) = opened(database).await;
        let names: Vec<String> = ["g-1", "g-2", "g-3"].map(str::to_owned).to_vec();
        change_gpus(&ledger, names.clone(), |gpu| gpu.seen_at_ms += 5).await.expect("made");
        change_gpus(&ledger, names[1..2].to_vec(), |gpu| gpu.seen_at_ms += 5).await.expect("changed");
        let all = store.gpus("", 10).await.expect("reads");
        let seen: Vec<(&str, i64)> = all.iter().map(|g| (g.serial.as_str(), g.seen_at_ms)).collect();
        assert_eq!(seen, [("g-1", 5), ("g-2", 10), ("g-3", 5)]);
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
            write_evidence(&ledger, row(node)).await.expect("durable");
        }
        let mine = store.evidence(4, Page { after: 0, limit: 10 }).await.expect("reads");
        assert_eq!(mine.iter().map(|e| e.id).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(mine[0], EvidenceRow { id: 1, ..row(4) });
        // What is held back is known to every replica.
        let (_, second) = opened(database).await;
        let held = Held { causes: vec![("a/b/c".into(), "xid:79".into(), Some(3))] };
        let body = serde_json::to_string(&held).expect("JSON");
        let document = Document { kind: "breakers".into(), name: "held".into(), version: 0, body };
        write_document(&ledger, document, None).await.expect("durable");
        second.write(|_, _| ()).await.expect("catches up");
        assert_eq!(*second.book().held(), held);
        server::store::forget_old(&ledger, i64::MAX / 2, None).await.expect("durable");
        assert!(store.gpus("", 10).await.expect("reads").is_empty(), "long ago");
        assert!(store.evidence(4, Page { after: 0, limit: 10 }).await.expect("reads").is_empty());
    }

    pub async fn a_newer_database_is_refused(database: &Database) {
        let (store, ledger) = opened(database).await;
        let run: server::store::OnConnection = Box::new(|connection, _| {
            Box::pin(async move {
                let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                             SELECT 9999, 'newer', success, checksum, 0 FROM _sqlx_migrations LIMIT 1";
                sqlx::query(newer).execute(connection).await.expect("written");
                Ok(())
            })
        });
        ledger.statements(None, run).await.expect("durable");
        drop((store, ledger));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let refused = Store::open(&database.url).await;
        assert!(matches!(refused, Err(StoreError::Newer { migration: 9999 })), "{refused:?}");
    }
}
