//! One suite for all providers: what callers rely on, whatever the cloud.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use fleet::{GpuModel, Market, Offer, OfferKey, UsdMicros};
use providers::sim::{Dist, SimOffer, Steps};
use providers::static_provider::Owned;
use providers::{ErrorKind, InstanceState, LaunchRequest, Provider, SimProvider, StaticProvider};

/// Providers that simulate do not wait for anything: one poll is enough.
fn now<T>(future: impl Future<Output = T>) -> T {
    struct Nothing;
    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }
    let waker = Waker::from(Arc::new(Nothing));
    let mut future = Box::pin(future);
    match future.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

fn offer() -> Offer {
    let gpu: GpuModel = "H100".parse().expect("known");
    Offer {
        key: OfferKey {
            provider: "p".into(),
            region: "r".into(),
            zone: "a".into(),
            instance_type: "h8".into(),
            market: Market::OnDemand,
        },
        gpu,
        gpus_per_node: 8,
        interconnect: gpu.interconnect(),
        price_usd_micros_per_h: UsdMicros(20_000_000),
        price_day: None,
        interruption_per_h: 0.0,
    }
}

fn clock() -> i64 {
    1_000_000
}

fn sim() -> SimProvider {
    let supply = SimOffer { capacity: Steps::constant(4.0), lead: Dist::Fixed(10.0), ..SimOffer::ideal() };
    SimProvider::new("p", vec![offer()], vec![supply], 1.0, 1, clock)
}

fn own() -> StaticProvider {
    let hosts = (0..4).map(|i| format!("host-{i}")).collect();
    StaticProvider::new("p", vec![Owned { offer: offer(), hosts }], clock)
}

fn request(token: &str, count: u32) -> LaunchRequest {
    LaunchRequest { offer: offer().key, count, token: token.into(), join: "secret".into() }
}

fn running(provider: &dyn Provider) -> usize {
    now(provider.list()).expect("lists").iter().filter(|i| i.state == InstanceState::Running).count()
}

/// A provider with room for four machines of one offer.
fn conforms(provider: &dyn Provider) {
    let sold = now(provider.offers()).expect("sells");
    assert_eq!((sold.len(), sold[0].gpus_per_node), (1, 8));
    assert!(sold.iter().all(|o| o.key.provider == provider.name()), "offers carry the provider's name");

    let first = now(provider.launch(&request("t1", 3))).expect("there is room");
    assert_eq!(first.len(), 3);
    assert!(first.iter().all(|i| i.token == "t1" && i.offer == offer().key));
    let again = now(provider.launch(&request("t1", 3))).expect("the same launch");
    let ids = |list: &[providers::Instance]| list.iter().map(|i| i.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&first), "one token launches once");
    assert_eq!(running(provider), 3);

    let fewer = now(provider.launch(&request("t2", 3))).expect("one is left");
    assert_eq!(fewer.len(), 1, "fewer than asked is a success");
    let none = now(provider.launch(&request("t3", 1))).expect_err("nothing is left");
    assert_eq!(none.kind, ErrorKind::Capacity);
    let unknown = LaunchRequest { offer: OfferKey { instance_type: "x".into(), ..offer().key }, ..request("t4", 1) };
    assert_eq!(now(provider.launch(&unknown)).expect_err("not sold").kind, ErrorKind::Configuration);

    now(provider.terminate(&first[0].id)).expect("ends");
    now(provider.terminate(&first[0].id)).expect("twice is no error");
    assert_eq!(now(provider.terminate("nobody")).expect_err("unknown").kind, ErrorKind::Gone);
    assert_eq!(running(provider), 3);
    assert_eq!(now(provider.launch(&request("t5", 1))).expect("room again").len(), 1);
    assert!(now(provider.notices()).expect("answers").is_empty());
}

#[test]
fn simulated_clouds_conform() {
    conforms(&sim());
}

#[test]
fn own_machines_conform() {
    conforms(&own());
}

/// The token finds what a launch made whose answer was lost.
#[test]
fn a_lost_answer_is_found_by_its_token() {
    let cloud = sim();
    cloud.fail_next(ErrorKind::Transient, true);
    let lost = now(cloud.launch(&request("t1", 2))).expect_err("the answer is lost");
    assert!(lost.kind.is_ambiguous());
    let found = now(cloud.list()).expect("lists");
    assert_eq!(found.iter().filter(|i| i.token == "t1").count(), 2);
    cloud.fail_next(ErrorKind::Throttled, false);
    let refused = now(cloud.launch(&request("t2", 1))).expect_err("throttled");
    assert!(refused.kind.may_pass() && !refused.kind.is_ambiguous());
    assert_eq!(running(&cloud), 2, "a refused call did nothing");
}

/// What the taxonomy promises to those who act on it.
#[test]
fn only_what_may_pass_is_tried_again() {
    let again: Vec<&str> = ErrorKind::ALL.into_iter().filter(|k| k.may_pass()).map(ErrorKind::name).collect();
    assert_eq!(again, ["throttled", "transient"]);
}
