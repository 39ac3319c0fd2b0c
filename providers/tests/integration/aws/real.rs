//! The same provider through the SDK and a real EC2 API server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fleet::Market;
use providers::aws::ec2::Template;
use providers::aws::sdk::SdkEc2;
use providers::aws::{AwsProvider, Region};
use providers::{ErrorKind, Provider};

use super::{account, clock, key, provider};
use crate::conformance::{conforms, request, running, stops_and_starts};
use crate::moto::{self, Fault, Moto};

/// An image that moto knows.
const IMAGE: &str = "ami-03cf127a";

async fn cloud(room: usize) -> (Moto, AwsProvider) {
    let moto = moto::start(room).await;
    moto.proxy.answer("DescribeCapacityReservations", "<capacityReservationSet/>");
    moto.proxy.answer("GetSpotPlacementScores", "<spotPlacementScoreSet/>");
    let ec2 = SdkEc2::connect("us-east-1", Some(&moto.proxy.url), Some(("key", "secret"))).await;
    (moto, provider(Arc::new(ec2), "tests", IMAGE))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms() {
    let (moto, aws) = cloud(4).await;
    moto.proxy.set_spot_price(21.0);
    conforms(&aws, &key(Market::OnDemand)).await;
    for instance in aws.list().await.expect("lists") {
        aws.terminate(&instance.id).await.expect("ends");
    }
    stops_and_starts(&aws, &key(Market::OnDemand)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spot_instances_are_told_apart() {
    let (moto, aws) = cloud(4).await;
    moto.proxy.set_spot_price(21.0);
    let launched = aws.launch(&request(&key(Market::Spot), "t1", 2)).await.expect("room");
    assert_eq!(launched.len(), 2);
    let listed = aws.list().await.expect("lists");
    assert!(listed.iter().all(|i| i.offer == key(Market::Spot)), "{listed:?}");
    let sold = aws.offers().await.expect("sells");
    let spot = sold.iter().find(|o| o.key == key(Market::Spot)).expect("sold");
    assert_eq!((spot.price_usd_per_h, spot.gpu.as_str(), spot.gpus_per_node), (Some(21.0), "H100-SXM", 8));
}

/// Each way to refuse is told apart; none launches anything.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_keep_their_meaning() {
    let (moto, aws) = cloud(4).await;
    let cases = [
        (400, "InsufficientInstanceCapacity", ErrorKind::Capacity),
        (400, "VcpuLimitExceeded", ErrorKind::Quota),
        (503, "RequestLimitExceeded", ErrorKind::Throttled),
        (400, "SpotMaxPriceTooLow", ErrorKind::Price),
        (400, "InvalidSubnetID.NotFound", ErrorKind::Configuration),
        (403, "UnauthorizedOperation", ErrorKind::Authorisation),
        (500, "InternalError", ErrorKind::Transient),
    ];
    for (i, (status, code, kind)) in cases.into_iter().enumerate() {
        moto.proxy.next("RunInstances", Fault::Refused { status, code });
        let calls = moto.proxy.calls("RunInstances");
        let error = aws.launch(&request(&key(Market::OnDemand), &format!("t{i}"), 1)).await.expect_err("it fails");
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(code), "{error}");
        assert_eq!(moto.proxy.calls("RunInstances"), calls + 1, "the SDK tries nothing again by itself");
    }
    assert_eq!(running(&aws).await, 0);
    // What moto itself refuses.
    let ec2 = SdkEc2::connect("us-east-1", Some(&moto.proxy.url), Some(("key", "secret"))).await;
    let template = Template { image: Some(IMAGE.into()), ..Template::default() };
    let subnets = BTreeMap::from([("us-east-1a".to_owned(), "subnet-0123456789abcdef0".to_owned())]);
    let region = Region { name: "us-east-1".into(), template, subnets, ec2: Arc::new(ec2) };
    let wrong = AwsProvider::new(account("tests"), vec![region], providers::Clock::new(clock));
    let error = wrong.launch(&request(&key(Market::OnDemand), "t9", 1)).await.expect_err("no such subnet");
    assert_eq!(error.kind, ErrorKind::Configuration, "{error}");
}

/// The answer of a launch is lost after it took effect. moto knows no client tokens, so only our own guard is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_launches_once() {
    let (moto, aws) = cloud(8).await;
    let order = request(&key(Market::OnDemand), "t1", 3);
    moto.proxy.next("RunInstances", Fault::Lost);
    let lost = aws.launch(&order).await.expect_err("no answer");
    assert!(lost.kind.is_ambiguous(), "{lost}");
    assert_eq!(moto.proxy.running(), 3, "it took effect");
    assert_eq!(aws.launch(&order).await.expect("found").len(), 3);
    assert_eq!((moto.proxy.running(), moto.proxy.launches().len()), (3, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server_is_an_answer_that_may_pass() {
    let ec2 = SdkEc2::connect("us-east-1", Some("http://127.0.0.1:1"), Some(("key", "secret"))).await;
    let aws = provider(Arc::new(ec2), "tests", IMAGE);
    assert_eq!(aws.list().await.expect_err("nobody there").kind, ErrorKind::Transient);
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_scores_and_warnings_are_read() {
    let (moto, aws) = cloud(8).await;
    moto.proxy.set_spot_price(21.0);
    let launched = aws.launch(&request(&key(Market::Spot), "t1", 1)).await.expect("room");
    let item = "<item><capacityReservationId>cr-1</capacityReservationId><instanceType>p5.48xlarge</instanceType>\
                <availabilityZone>us-east-1a</availabilityZone><totalInstanceCount>4</totalInstanceCount>\
                <availableInstanceCount>3</availableInstanceCount><state>active</state></item>";
    moto.proxy
        .answer("DescribeCapacityReservations", &format!("<capacityReservationSet>{item}</capacityReservationSet>"));
    moto.proxy.answer(
        "GetSpotPlacementScores",
        "<spotPlacementScoreSet><item><region>us-east-1</region><availabilityZoneId>use1-az6</availabilityZoneId>\
         <score>7</score></item></spotPlacementScoreSet>",
    );
    let hints = aws.hints().await.expect("answers");
    let reserved = hints.iter().find(|h| h.offer == key(Market::Reserved)).expect("reserved");
    assert_eq!((reserved.committed_nodes, reserved.launch_limit_nodes), (4, Some(3)));
    let scored = hints.iter().find(|h| h.offer.market == Market::Spot).expect("scored");
    assert_eq!((scored.offer.zone.as_str(), scored.fill), ("us-east-1a", Some(0.7)));
    assert!(aws.notices().await.expect("answers").is_empty());
    moto.proxy.answer(
        "DescribeSpotInstanceRequests",
        &format!(
            "<spotInstanceRequestSet><item><instanceId>{}</instanceId><status><code>marked-for-termination</code>\
             </status></item></spotInstanceRequestSet>",
            launched[0].id
        ),
    );
    let notices = aws.notices().await.expect("answers");
    assert_eq!(notices.iter().map(|n| n.instance.as_str()).collect::<Vec<_>>(), [launched[0].id.as_str()]);
}

/// What was launched a moment ago may be missing from lists.
#[tokio::test(flavor = "multi_thread")]
async fn instances_that_show_late_are_found_by_their_token() {
    let (moto, aws) = cloud(8).await;
    let order = request(&key(Market::OnDemand), "t1", 2);
    moto.proxy.hide_instances(Duration::from_secs(4));
    aws.launch(&order).await.expect("room");
    assert_eq!(running(&aws).await, 0, "not shown yet");
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(aws.launch(&order).await.expect("found").len(), 2);
    assert_eq!(moto.proxy.running(), 2);
}
