//! Amazon EC2: the provider's logic against a stand-in, and with feature `aws` against a real API server.

mod fake_ec2;
#[cfg(feature = "aws")]
mod real;

use std::collections::BTreeMap;
use std::sync::Arc;

use fleet::{GpuModel, Market, Offer, OfferKey, UsdMicros};
use providers::aws::ec2::{Ec2, Reservation, Template, Warning};
use providers::aws::{Account, AwsProvider, Region};
use providers::{ErrorKind, InstanceState, Provider};

use crate::conformance::{conforms, request, running, stops_and_starts};
use fake_ec2::FakeEc2;

fn clock() -> i64 {
    1_700_000_000_000
}

/// `aws/us-east-1/us-east-1a/p5.48xlarge` in a market.
pub fn key(market: Market) -> OfferKey {
    OfferKey {
        provider: "aws".into(),
        region: "us-east-1".into(),
        zone: "us-east-1a".into(),
        instance_type: "p5.48xlarge".into(),
        market,
    }
}

fn list_price() -> Offer {
    let gpu: GpuModel = "H100-SXM".parse().expect("known");
    Offer {
        key: key(Market::OnDemand),
        gpu,
        gpus_per_node: 8,
        interconnect: gpu.interconnect(),
        price_usd_micros_per_h: UsdMicros(55_040_000),
        price_day: None,
        interruption_per_h: 0.0,
    }
}

/// The account of the tests.
pub fn account(fleet: &str) -> Account {
    Account {
        name: "aws".into(),
        fleet: fleet.into(),
        instance_types: ["p5.48xlarge", "p5e.48xlarge", "p5en.48xlarge"].map(str::to_owned).to_vec(),
        markets: vec![Market::OnDemand, Market::Spot, Market::Reserved],
        user_data: "secret = {secret} image = {image}".into(),
        // The table has spot rows as well, whose prices are of some other day.
        list_prices: vec![
            Offer {
                key: key(Market::Spot),
                price_usd_micros_per_h: UsdMicros(1),
                interruption_per_h: 0.01,
                ..list_price()
            },
            list_price(),
        ],
    }
}

/// A provider of one region.
pub fn provider(ec2: Arc<dyn Ec2>, fleet: &str, image: &str) -> AwsProvider {
    let template = Template { image: Some(image.into()), ..Template::default() };
    let region = Region { name: "us-east-1".into(), template, subnets: BTreeMap::new(), ec2 };
    AwsProvider::new(account(fleet), vec![region], providers::Clock::new(clock))
}

fn fake(room: usize) -> (Arc<FakeEc2>, AwsProvider) {
    let ec2 = Arc::new(FakeEc2::with_room(room));
    (Arc::clone(&ec2), provider(ec2, "tests", "ami-1"))
}

#[tokio::test]
async fn it_conforms() {
    conforms(&fake(4).1, &key(Market::OnDemand)).await;
    conforms(&fake(4).1, &key(Market::Spot)).await;
    stops_and_starts(&fake(4).1, &key(Market::OnDemand)).await;
}

/// What is sold: list prices from the table, the newest spot price of the pool, reservations where there are any.
#[tokio::test]
async fn offers_have_present_prices() {
    let (ec2, cloud) = fake(4);
    let price = |sold: &[providers::RawOffer], market| sold.iter().find(|o| o.key == key(market))?.price_usd_per_h;
    let sold = cloud.offers().await.expect("sells");
    assert_eq!(price(&sold, Market::OnDemand), Some(55.04));
    assert_eq!(price(&sold, Market::Spot), Some(20.0), "the newest, whatever the order");
    let spot = sold.iter().find(|o| o.key == key(Market::Spot)).expect("sold");
    assert!((spot.interruption_per_h - 0.01).abs() < 1e-9, "spot nodes are lost, on-demand nodes are not");
    assert_eq!(sold.iter().filter(|o| o.key.instance_type == "p5.48xlarge").count(), 2, "no reservation is there");
    assert_eq!(spot.gpu, "H100-SXM", "the type tells more than EC2's word");

    let reservation = |id: &str, total, available| Reservation {
        id: id.into(),
        instance_type: "p5.48xlarge".into(),
        zone: "us-east-1a".into(),
        total,
        available,
    };
    ec2.lock().reservations = vec![reservation("cr-1", 4, 0), reservation("cr-2", 3, 2)];
    let hints = cloud.hints().await.expect("answers");
    let reserved = hints.iter().find(|h| h.offer == key(Market::Reserved)).expect("hinted");
    assert_eq!((reserved.committed_nodes, reserved.launch_limit_nodes), (7, Some(2)));
    let spot = hints.iter().find(|h| h.offer == key(Market::Spot)).expect("scored");
    assert_eq!(spot.fill, Some(0.3));
    cloud.hints().await.expect("answers");
    assert_eq!(ec2.lock().scores_asked, 1, "EC2 limits how often it may be asked");
    let sold = cloud.offers().await.expect("sells");
    assert_eq!(sold.iter().filter(|o| o.key.market == Market::Reserved).count(), 1);
    let launched = cloud.launch(&request(&key(Market::Reserved), "r1", 1)).await.expect("room");
    assert_eq!(launched[0].offer.market, Market::Reserved);
    assert_eq!(ec2.lock().instances[0].reservation.as_deref(), Some("cr-2"), "the one with room");
}

/// What EC2 refuses is told apart by what has to be done.
#[tokio::test]
async fn refusals_keep_their_meaning() {
    let (ec2, cloud) = fake(4);
    let cases = [
        (Some("InsufficientInstanceCapacity"), true, ErrorKind::Capacity),
        (Some("VcpuLimitExceeded"), true, ErrorKind::Quota),
        (Some("MaxSpotInstanceCountExceeded"), true, ErrorKind::Quota),
        (Some("RequestLimitExceeded"), false, ErrorKind::Throttled),
        (Some("SpotMaxPriceTooLow"), true, ErrorKind::Price),
        (Some("InvalidAMIID.NotFound"), true, ErrorKind::Configuration),
        (Some("UnauthorizedOperation"), true, ErrorKind::Authorisation),
        (Some("InternalError"), false, ErrorKind::Transient),
        (None, false, ErrorKind::Transient),
    ];
    for (i, (code, refused, kind)) in cases.into_iter().enumerate() {
        // The first call of a launch looks for its token.
        ec2.fail_next(code, refused, false);
        let token = format!("t{i}");
        let error = cloud.launch(&request(&key(Market::OnDemand), &token, 1)).await.expect_err("it fails");
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(code.unwrap_or("no answer")), "{error}");
    }
    assert_eq!(running(&cloud).await, 0);
}

/// A launch whose answer was lost is found by its token, and the same token launches no more.
#[tokio::test]
async fn a_lost_answer_launches_once() {
    let (ec2, cloud) = fake(4);
    let order = request(&key(Market::OnDemand), "t1", 2);
    ec2.fail_next(None, false, true);
    assert!(cloud.launch(&order).await.expect_err("lost").kind.is_ambiguous());
    assert_eq!(cloud.launch(&order).await.expect("found").len(), 2);
    assert_eq!(ec2.lock().launches, 1);
    assert_eq!(ec2.lock().user_data, ["secret = secret image = ami-1"]);
}

/// Another fleet in the same account is left alone.
#[tokio::test]
async fn fleets_in_one_account_do_not_see_each_other() {
    let ec2 = Arc::new(FakeEc2::with_room(4));
    let (one, other) = (provider(ec2.clone(), "one", "ami-1"), provider(ec2.clone(), "other", "ami-1"));
    one.launch(&request(&key(Market::OnDemand), "t1", 2)).await.expect("room");
    assert_eq!(running(&other).await, 0);
    let launched = other.launch(&request(&key(Market::OnDemand), "t1", 1)).await.expect("its own");
    assert_eq!((launched.len(), running(&one).await), (1, 2), "tokens of two fleets may be the same");
}

/// Warnings become notices with a time, also where EC2 gives none.
#[tokio::test]
async fn warnings_are_notices() {
    let (ec2, cloud) = fake(4);
    let warning = |id: &str, at_ms| Warning { instance: id.into(), code: "instance-stop".into(), at_ms };
    ec2.lock().warnings = vec![warning("i-1", Some(5)), warning("i-2", None)];
    let notices = cloud.notices().await.expect("answers");
    let told: Vec<(&str, i64)> = notices.iter().map(|n| (n.instance.as_str(), n.at_ms)).collect();
    assert_eq!(told, [("i-1", 5), ("i-2", clock() + 120_000)]);
}

/// `us-east-1`, `us-west-2`, and an account in both.
fn two_regions() -> (Arc<FakeEc2>, Arc<FakeEc2>, AwsProvider) {
    let (east, west) = (Arc::new(FakeEc2::with_room(4)), Arc::new(FakeEc2::with_room(4)));
    let region = |name: &str, ec2: &Arc<FakeEc2>| Region {
        name: name.into(),
        template: Template::default(),
        subnets: BTreeMap::new(),
        ec2: Arc::clone(ec2) as Arc<dyn Ec2>,
    };
    let regions = vec![region("us-east-1", &east), region("us-west-2", &west)];
    let cloud = AwsProvider::new(account("tests"), regions, providers::Clock::new(clock));
    (east, west, cloud)
}

/// A region that does not answer takes nothing from the others.
#[tokio::test]
async fn regions_fail_one_by_one() {
    let (east, west, cloud) = two_regions();
    let all = cloud.offers().await.expect("sells").len();
    east.lock().down = true;
    west.lock().warnings = vec![Warning { instance: "i-1".into(), code: "instance-stop".into(), at_ms: Some(5) }];
    assert_eq!(cloud.offers().await.expect("the other answers").len(), all, "what it sold a moment ago");
    assert_eq!(cloud.notices().await.expect("the other answers").len(), 1);
    assert!(cloud.list().await.is_err(), "a list that is not whole would make nodes look gone");
    west.lock().down = true;
    assert!(cloud.offers().await.is_err() && cloud.notices().await.is_err());
}

/// An instance is ended in its own region, known or not.
#[tokio::test]
async fn calls_go_to_the_region_of_the_instance() {
    let (east, west, cloud) = two_regions();
    let offer = OfferKey { region: "us-west-2".into(), zone: "us-west-2a".into(), ..key(Market::OnDemand) };
    let made = cloud.launch(&request(&offer, "t1", 1)).await.expect("room");
    // Not told where it is, it asks the others first.
    cloud.terminate(&made[0].id).await.expect("found");
    assert_eq!(west.lock().instances[0].state, InstanceState::Ended);
    let made = cloud.launch(&request(&offer, "t2", 1)).await.expect("room");
    cloud.recall(&made);
    east.fail_next(Some("UnauthorizedOperation"), true, false);
    cloud.terminate(&made[0].id).await.expect("the other region is not asked");
}

/// The cloud hears what is wrong with its machine; one that sells none of the kind hears nothing.
#[tokio::test]
async fn a_broken_instance_is_reported() {
    let (ec2, aws) = fake(4);
    let launched = aws.launch(&request(&key(Market::OnDemand), "t-1", 1)).await.expect("launched");
    assert!(aws.report_fault(&launched[0].id, "xid:79: fallen off the bus").await.expect("told"));
    assert_eq!(ec2.lock().reported, [(launched[0].id.clone(), "xid:79: fallen off the bus".to_owned())]);
}
