//! Copies are ordered where claims are expected.

use std::collections::BTreeMap;

use control::staging::{Orders, Outlook, decide, order, worth};
use fleet::book::{Book, CopyFact, Gate, Limits};
use fleet::{LaunchAnswer, Market, Offer, OfferKey, Presence, Snapshot, StagingRoom, UsdMicros};

const GIB: u64 = 1 << 30;

/// Idle nodes of eight GPUs in two zones, with room for 100 GiB each, and a class with a popular and a rare snapshot.
pub fn fleet(nodes: u32) -> Book {
    let mut book = Book::new(Limits::default());
    let gpu = "H100-SXM".parse::<fleet::GpuModel>().expect("known");
    let offer = |zone: &str| Offer {
        key: OfferKey {
            provider: "lab".into(),
            region: "r".into(),
            zone: zone.into(),
            instance_type: "h8".into(),
            market: Market::OnDemand,
        },
        gpu,
        gpus_per_node: 8,
        interconnect: gpu.interconnect(),
        price_usd_micros_per_h: UsdMicros(20_000_000),
        price_day: None,
        interruption_per_h: 0.0,
    };
    book.set_offers(vec![offer("a"), offer("b")]);
    let spec =
        serde_json::json!({ "name": "chat", "gpus": [{ "model": "H100-SXM" }], "gpus_per_claim": 8, "hit_rate": 0.9 });
    book.set_classes([serde_json::from_value::<protocol::ClassSpec>(spec).expect("a class").rule().expect("sensible")]);
    let snapshot = |name: &str, share: f64| Snapshot {
        name: name.into(),
        class: "chat".into(),
        store: "s3://x".into(),
        object: name.into(),
        bytes: 60 * GIB,
        gpu: None,
        cold_s: 300.0,
        restore_s: 2.0,
        share,
        wait_cost_usd_micros_per_s: UsdMicros::ZERO,
        started_by: fleet::StartedBy::Client,
    };
    book.set_snapshots([snapshot("popular", 0.9), snapshot("rare", 0.1)]);
    for zone in 0..2 {
        let key = book.offers()[zone].key.clone();
        let intent = book.intend_launch(1, &key, nodes, 60_000, 0).expect("known offer");
        book.intent_sent(intent, 0).expect("open");
        let instances: Vec<String> = (0..nodes).map(|i| format!("x-{zone}-{i}")).collect();
        book.launched(intent, &instances, LaunchAnswer::Launched, "done", 0).expect("open");
    }
    let ids: Vec<u64> = book.nodes().keys().copied().collect();
    for id in ids {
        book.register(id, "boot", 8, 0).expect("booting");
        book.gate(id, "boot", &Gate::passed(), "passed", 0).expect("checking");
        has(&mut book, id, &[]);
    }
    book
}

fn has(book: &mut Book, node: u64, objects: &[&str]) {
    let room = StagingRoom { disk_bytes: 100 * GIB, fetch_bytes_per_s: Some(1e9), ..StagingRoom::default() };
    let fact = |object: &&str| ((*object).to_owned(), CopyFact { presence: Presence::Disk, ..CopyFact::default() });
    book.staged(node, "boot", (&room, &objects.iter().map(fact).collect()), 1).expect("of this boot");
}

#[test]
fn copies_go_where_claims_are_expected_and_stay() {
    let mut book = fleet(4);
    let outlook = Outlook { new_claims: [("chat".to_owned(), vec![(0.5, 3.0), (0.5, 5.0)])].into() };
    let orders = decide(&book, &outlook);
    let count = |orders: &Orders, object: &str| orders.copies.values().filter(|c| c.contains_key(object)).count();
    assert!(orders.copies.values().all(|copies| copies.len() <= 1), "one has room, not two: {orders:?}");
    assert_eq!((count(&orders, "popular"), count(&orders, "rare")), (6, 2), "{orders:?}");
    assert_eq!((orders.changes(&book), orders.carry_out(&mut book, 2)), (8, 8));
    assert_eq!(orders.carry_out(&mut book, 3), 0, "said once");
    // On its way, and then there: the same plan.
    assert_eq!(decide(&book, &outlook).changes(&book), 0);
    for (node, copies) in &orders.copies {
        has(&mut book, *node, &copies.keys().map(String::as_str).collect::<Vec<_>>());
    }
    assert_eq!(decide(&book, &outlook).changes(&book), 0);
    let order = order(&book, &book.nodes()[orders.copies.keys().next().expect("one")]);
    assert_eq!((order.copies.len(), &order.copies[0].store[..]), (1, "s3://x"));
    // A node in use whole keeps what it has, and is planned for nobody.
    let (claim, _) = book.claim(fleet::book::ClaimRequest::of("chat"), 4).expect("free");
    let used = book.claims()[&claim].parts[0].node;
    assert!(!decide(&book, &outlook).copies.contains_key(&used));
    // Who expects nobody has one of each in every zone all the same, as far as there is room.
    let quiet = decide(&fleet(2), &Outlook::default());
    assert_eq!((count(&quiet, "popular"), count(&quiet, "rare")), (2, 2), "{quiet:?}");
    // What is declared no more goes.
    book.set_snapshots([]);
    assert!(decide(&book, &outlook).copies.values().all(BTreeMap::is_empty));
}

/// What a node's copies are worth is what claims would wait for longer without it.
#[test]
fn copies_are_worth_what_claims_would_lose() {
    let mut book = fleet(2);
    let ids: Vec<u64> = book.nodes().keys().copied().collect();
    let outlook = Outlook { new_claims: [("chat".to_owned(), vec![(0.5, 2.0), (0.5, 4.0)])].into() };
    assert_eq!(worth(&book, &outlook), control::staging::Worth::default(), "nothing is there");
    // Two hosts of the first zone have the popular one, one of the second.
    [ids[0], ids[1], ids[2]].iter().for_each(|id| has(&mut book, *id, &["popular"]));
    let two = worth(&book, &outlook);
    let of = |worth: &control::staging::Worth, id: u64| worth.of_node.get(&id).map_or(0.0, |usd| usd.usd());
    assert!(of(&two, ids[1]) > of(&two, ids[0]), "the younger of two in a zone is the last to be spared: {two:?}");
    assert!((of(&two, ids[1]) - of(&two, ids[2])).abs() < 1e-9 && of(&two, ids[3]) == 0.0, "{two:?}");
    assert!(two.of_launch.len() == 2 && two.of_launch.values().all(|usd| *usd > UsdMicros::ZERO), "{two:?}");
    // At most what a start saves: 2 s and 60 GiB at a disk's 2 GB/s instead of 300 s, of a claim that is likelier than not.
    let each_usd = (300.0 - 2.0 - 60.0 * GIB as f64 / 2e9) * 20.0 / 3600.0;
    assert!(of(&two, ids[2]) <= each_usd && of(&two, ids[2]) > 0.5 * each_usd, "{two:?}, {each_usd}");
    // All of them go for nothing only where there are more than anybody asks for.
    let many = Outlook { new_claims: [("chat".to_owned(), vec![(1.0, 1.0)])].into() };
    let few = worth(&book, &many);
    assert!(of(&few, ids[1]) > 0.0 && of(&few, ids[0]) < 0.2 * of(&few, ids[1]), "{few:?}");
    // Who waits at a price of a dollar a second, waits dearer; and one that only comes serves nobody yet.
    let dear: Vec<Snapshot> = book.snapshots().values().cloned().collect();
    let dear = dear.into_iter().map(|s| Snapshot { wait_cost_usd_micros_per_s: UsdMicros(1_000_000), ..s });
    book.set_snapshots(dear);
    let waited = worth(&book, &outlook);
    let factor = (1.0 + 20.0 / 3600.0) / (20.0 / 3600.0);
    assert!((of(&waited, ids[0]) / of(&two, ids[0]) / factor - 1.0).abs() < 1e-3, "{waited:?}");
    let fact = CopyFact { presence: Presence::Fetching, ..CopyFact::default() };
    let room = StagingRoom { disk_bytes: 100 * GIB, ..StagingRoom::default() };
    book.stage(ids[3], &[("popular".to_owned(), fleet::Tier::Disk)].into(), 5).expect("known");
    book.staged(ids[3], "boot", (&room, &[("popular".to_owned(), fact)].into()), 6).expect("of this boot");
    assert_eq!(of(&worth(&book, &outlook), ids[3]), 0.0);
}
