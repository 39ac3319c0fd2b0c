//! Small fleets for tests.

use fleet::book::{Book, ClaimRequest, ClassRule, Limits};
use fleet::{
    AcceptedGpu, Class, GpuModel, Interconnect, LaunchAnswer, Market, Offer, OfferKey, OnEmpty, PriceCap, UsdMicros,
};

pub fn offer(zone: &str, gpu: &str, gpus_per_node: u32, usd_per_gpu_h: f64) -> Offer {
    let gpu: GpuModel = gpu.parse().expect("known");
    Offer {
        key: OfferKey {
            provider: "sim".into(),
            region: "r1".into(),
            zone: zone.into(),
            instance_type: format!("{}x{gpus_per_node}", gpu.name()),
            market: Market::OnDemand,
        },
        gpu,
        gpus_per_node,
        interconnect: gpu.interconnect(),
        price_usd_micros_per_h: UsdMicros::from_usd(usd_per_gpu_h * f64::from(gpus_per_node)).expect("finite"),
        price_day: None,
        interruption_per_h: 0.0,
    }
}

pub fn class(name: &str, gpus_per_claim: u32, gpus: &[(&str, Option<f64>)]) -> ClassRule {
    let accepted = |(model, cap): &(&str, Option<f64>)| AcceptedGpu {
        model: model.parse().expect("known"),
        cap: cap.map(|usd| PriceCap::UsdMicrosPerGpuH(UsdMicros::from_usd(usd).expect("finite"))),
    };
    ClassRule {
        class: Class {
            name: name.into(),
            gpus: gpus.iter().map(accepted).collect(),
            gpus_per_claim,
            multi_node: false,
            max_node_gpus: None,
            min_memory_gib: 0,
            min_interconnect: Interconnect::Pcie,
            regions: vec![],
            markets: vec![],
            hit_rate_target: 0.99,
            miss_cost_usd_micros: UsdMicros(1_000_000),
            borrows_usd_micros_per_gpu_h: None,
        },
        wait_ms: 5_000,
        on_empty: OnEmpty::Queue,
        lease_ms: 60_000,
        claim_mean_s: 600.0,
    }
}

/// Two zones of H100s, one of dearer H200s, a small class and a large one.
pub fn book() -> Book {
    let mut book = Book::new(Limits::default());
    book.set_offers(vec![offer("a", "H100", 8, 2.0), offer("b", "H100", 8, 2.5), offer("a", "H200", 8, 4.0)]);
    book.set_classes([
        class("small", 1, &[("H100", None), ("H200", Some(3.0))]),
        class("large", 8, &[("H100", None), ("H200", None)]),
    ]);
    book
}

pub fn ask(class: &str, on_empty: OnEmpty) -> ClaimRequest {
    ClaimRequest { on_empty: Some(on_empty), ..ClaimRequest::of(class) }
}

/// Launches nodes of an offer that boot, register and pass the gate at once.
pub fn idle_nodes(book: &mut Book, offer: usize, count: u32, now_ms: i64) -> Vec<u64> {
    let key = book.offers()[offer].key.clone();
    let intent = book.intend_launch(1, &key, count, 60_000, now_ms).expect("known offer");
    book.intent_sent(intent, now_ms).expect("open");
    let before: Vec<u64> = book.nodes().keys().copied().collect();
    let instances: Vec<String> = (0..count).map(|i| format!("x-{intent}-{i}")).collect();
    book.launched(intent, &instances, LaunchAnswer::Launched, "done", now_ms).expect("open");
    let ids = before.into_iter().filter(|id| book.nodes()[id].intent == Some(intent)).collect::<Vec<_>>();
    for id in &ids {
        let gpus = book.nodes()[id].gpus;
        book.register(*id, "boot-1", gpus, now_ms).expect("booting");
        book.gate(*id, "boot-1", &fleet::book::Gate::passed(), "passed", now_ms).expect("checking");
    }
    ids
}
