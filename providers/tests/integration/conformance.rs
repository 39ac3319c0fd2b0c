//! One suite for all providers: what callers rely on, whatever the cloud.

use fleet::{GpuModel, Market, Offer, OfferKey, UsdMicros};
use providers::sim::{Dist, SimOffer, Steps};
use providers::static_provider::Owned;
use providers::{ErrorKind, InstanceState, LaunchRequest, Provider, SimProvider, StaticProvider};

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
    SimProvider::new("p", vec![offer()], vec![supply], 1.0, 1, providers::Clock::new(clock))
}

fn own() -> StaticProvider {
    let hosts = (0..4).map(|i| format!("host-{i}")).collect();
    StaticProvider::new("p", vec![Owned { offer: offer(), hosts }], providers::Clock::new(clock))
}

/// A launch of `count` machines.
pub fn request(offer: &OfferKey, token: &str, count: u32) -> LaunchRequest {
    LaunchRequest { offer: offer.clone(), count, token: token.into(), join: "secret".into() }
}

/// Machines that run.
pub async fn running(provider: &dyn Provider) -> usize {
    provider.list().await.expect("lists").iter().filter(|i| i.state == InstanceState::Running).count()
}

/// A provider with room for four machines of an offer.
pub async fn conforms(provider: &dyn Provider, offer: &OfferKey) {
    let sold = provider.offers().await.expect("sells");
    assert!(sold.iter().any(|o| o.key == *offer && o.gpus_per_node == 8), "{offer} is sold: {sold:?}");
    assert!(sold.iter().all(|o| o.key.provider == provider.name()), "offers carry the provider's name");

    let first = provider.launch(&request(offer, "t1", 3)).await.expect("there is room");
    assert_eq!(first.len(), 3);
    assert!(first.iter().all(|i| i.token == "t1" && i.offer == *offer));
    let again = provider.launch(&request(offer, "t1", 3)).await.expect("the same launch");
    let ids =
        |list: &[providers::Instance]| list.iter().map(|i| i.id.clone()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&again), ids(&first), "one token launches once");
    assert_eq!(running(provider).await, 3);

    let fewer = provider.launch(&request(offer, "t2", 3)).await.expect("one is left");
    assert_eq!(fewer.len(), 1, "fewer than asked is a success");
    let none = provider.launch(&request(offer, "t3", 1)).await.expect_err("nothing is left");
    assert_eq!(none.kind, ErrorKind::Capacity);
    let unknown = OfferKey { instance_type: "x".into(), ..offer.clone() };
    let unknown = provider.launch(&request(&unknown, "t4", 1)).await.expect_err("not sold");
    assert_eq!(unknown.kind, ErrorKind::Configuration);

    provider.terminate(&first[0].id).await.expect("ends");
    provider.terminate(&first[0].id).await.expect("twice is no error");
    assert_eq!(provider.terminate("nobody").await.expect_err("unknown").kind, ErrorKind::Gone);
    assert_eq!(running(provider).await, 3);
    assert_eq!(provider.launch(&request(offer, "t5", 1)).await.expect("room again").len(), 1);
    assert!(provider.notices().await.expect("answers").is_empty());
    let hinted = provider.hints().await.expect("answers");
    assert!(hinted.iter().all(|h| h.fill.is_none_or(|f| f > 0.0 && f < 1.0)), "a share: {hinted:?}");
}

/// A provider with room for four machines, of which none runs, that can stop and start them.
pub async fn stops_and_starts(provider: &dyn Provider, offer: &OfferKey) {
    let state_of = async |id: &str| {
        let listed = provider.list().await.expect("lists");
        listed.iter().find(|i| i.id == id).map(|i| i.state).expect("it is listed")
    };
    let first = provider.launch(&request(offer, "s1", 4)).await.expect("there is room");
    let id = first[0].id.clone();
    provider.stop(&id).await.expect("stops");
    assert_eq!(state_of(&id).await, InstanceState::Stopped);
    let other = provider.launch(&request(offer, "s2", 1)).await.expect("what was stopped makes room");
    let refused = provider.start(&id).await.expect_err("its place is taken");
    assert_eq!(refused.kind, ErrorKind::Capacity);
    provider.terminate(&other[0].id).await.expect("ends");
    provider.start(&id).await.expect("starts");
    assert_eq!(state_of(&id).await, InstanceState::Running);
    assert_eq!(provider.stop("nobody").await.expect_err("unknown").kind, ErrorKind::Gone);
    for instance in &first {
        provider.terminate(&instance.id).await.expect("ends");
    }
    assert_eq!(running(provider).await, 0);
}

#[tokio::test]
async fn simulated_clouds_conform() {
    conforms(&sim(), &offer().key).await;
    stops_and_starts(&sim(), &offer().key).await;
}

#[tokio::test]
async fn own_machines_conform() {
    conforms(&own(), &offer().key).await;
    assert_eq!(own().stop("host-0").await.expect_err("cannot").kind, ErrorKind::Configuration);
}

/// The token finds what a launch made whose answer was lost.
#[tokio::test]
async fn a_lost_answer_is_found_by_its_token() {
    let (cloud, offer) = (sim(), offer().key);
    cloud.fail_next(ErrorKind::Transient, true);
    let lost = cloud.launch(&request(&offer, "t1", 2)).await.expect_err("the answer is lost");
    assert!(lost.kind.is_ambiguous());
    let found = cloud.list().await.expect("lists");
    assert_eq!(found.iter().filter(|i| i.token == "t1").count(), 2);
    cloud.fail_next(ErrorKind::Throttled, false);
    let refused = cloud.launch(&request(&offer, "t2", 1)).await.expect_err("throttled");
    assert!(refused.kind.may_pass() && !refused.kind.is_ambiguous());
    assert_eq!(running(&cloud).await, 2, "a refused call did nothing");
}

/// What the taxonomy promises to those who act on it.
#[test]
fn only_what_may_pass_is_tried_again() {
    let again: Vec<&str> = ErrorKind::ALL.into_iter().filter(|k| k.may_pass()).map(ErrorKind::name).collect();
    assert_eq!(again, ["throttled", "transient"]);
}
