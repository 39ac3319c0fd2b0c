//! The whole of it on Amazon EC2's API, served by moto: `pilotlight serve` as a process, which is killed and started again.

#![allow(clippy::disallowed_methods, reason = "a real server takes real time")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use crate::moto::{self, Fault, Moto, Proxy};
use crate::serving::{Serving, serve, until};

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
advertise_url = "https://pilotlight.example:7070"
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = { lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }
[[provider]]
kind = "aws"
fleet = "tests"
instance_types = ["p5.48xlarge"]
markets = ["on-demand"]
offers = "offers.csv"
[[provider.region]]
name = "us-east-1"
image = "ami-03cf127a"
endpoint_url = "ENDPOINT"
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
gpus_per_claim = 8
min_interconnect = "nvlink"
hit_rate = 0.9
miss_cost_usd = 1000.0
wait_s = 60
"#;

const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
aws,us-east-1,us-east-1a,p5.48xlarge,on-demand,H100-SXM,8,55.04,,0
";

/// What the tests do with a server.
impl Serving {
    async fn claim(&self, key: &str) -> String {
        let ask =
            json!({ "class": "chat", "idempotency_key": key, "on_empty": "queue", "wait_s": 240, "lease_s": 600 });
        let (status, claim) = self.post("/v1/claims", None, &ask).await;
        assert!(status.is_success(), "{claim}");
        claim["id"].as_str().expect("text").to_owned()
    }

    /// Plays the agents of all hosts that have started: what they join with is in their user data.
    async fn play_agents(&self, proxy: &Proxy) {
        for node in self.get("/v1/nodes").await["items"].as_array().expect("list") {
            let (Some(instance), Some(state)) = (node["instance"].as_str(), node["state"].as_str()) else { continue };
            if state != "booting" && state != "checking" {
                continue;
            }
            let secret = join_secret(&self.http, proxy, instance).await;
            let boot = format!("boot-{instance}");
            let host = json!({ "instance": instance, "boot": boot, "gpus": 8 });
            let (_, told) = self.post("/v1/agents/register", Some(&secret), &host).await;
            let Some(token) = told["token"].as_str() else { continue };
            let report = json!({ "boot": boot, "checks": "gate", "verdict": "pass" });
            self.post(&format!("/v1/agents/{instance}/report"), Some(token), &report).await;
        }
    }

    /// Plays agents until a claim is granted.
    async fn granted(&self, id: &str, proxy: &Proxy) -> Value {
        let began = Instant::now();
        loop {
            let claim = self.get(&format!("/v1/claims/{id}")).await;
            match claim["state"].as_str() {
                Some("granted") => return claim,
                Some("queued") => assert!(began.elapsed() < Duration::from_secs(200), "not granted: {claim}"),
                _ => panic!("{claim}"),
            }
            self.play_agents(proxy).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// What a host reads from its metadata service: its user data.
async fn join_secret(http: &Client, proxy: &Proxy, instance: &str) -> String {
    let body = format!("Action=DescribeInstanceAttribute&Version=2016-11-15&InstanceId={instance}&Attribute=userData");
    let answer = http.post(&proxy.url).body(body).send().await.expect("answers").text().await.expect("text");
    let encoded = answer.split("<value>").nth(1).and_then(|t| t.split('<').next()).expect("user data");
    let text = base64(encoded);
    assert!(text.contains("url = \"https://pilotlight.example:7070\""), "{text}");
    text.split("secret = \"").nth(1).and_then(|t| t.split('"').next()).expect("a secret").to_owned()
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter_map(|b| DIGITS.iter().position(|d| *d == b)) {
        bits = bits << 6 | u32::try_from(digit).expect("small");
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    String::from_utf8(out).expect("UTF-8")
}

async fn ready(room: usize) -> (Moto, tempfile::TempDir) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let moto = moto::start(room).await;
    let folder = tempfile::tempdir().expect("temp");
    let config = CONFIG.replace("ENDPOINT", &moto.proxy.url);
    std::fs::write(folder.path().join("pilotlight.toml"), config).expect("written");
    std::fs::write(folder.path().join("offers.csv"), OFFERS).expect("written");
    (moto, folder)
}

/// Every instance that runs is a node that is known, but for `others`, and no launch was made twice.
async fn nothing_is_lost(serving: &Serving, proxy: &Proxy, others: usize) {
    let same = async || {
        let nodes = serving.get("/v1/nodes?limit=500").await;
        let gone = ["terminating", "terminated", "requested", "lost"];
        let live = nodes["items"].as_array().expect("list").iter();
        let live = live.filter(|n| !gone.contains(&n["state"].as_str().unwrap_or_default())).count();
        live + others == proxy.running()
    };
    until("as many nodes as instances", Duration::from_secs(60), same).await;
    let launches = proxy.launches();
    let distinct: BTreeSet<&String> = launches.iter().collect();
    assert_eq!(distinct.len(), launches.len(), "a token was launched twice: {launches:?}");
}

/// Throttled, out of capacity, then an answer that is lost while nothing shows: the claim is served all the same, by
/// instances that were launched once.
#[tokio::test(flavor = "multi_thread")]
async fn claims_are_served_through_every_fault() {
    let (moto, folder) = ready(8).await;
    let proxy = &moto.proxy;
    proxy.next("RunInstances", Fault::Refused { status: 503, code: "RequestLimitExceeded" });
    proxy.next("RunInstances", Fault::Refused { status: 500, code: "InternalError" });
    proxy.next("RunInstances", Fault::Lost);
    let serving = serve(folder.path(), "sqlite:x.db", &[]).await;
    let claim = serving.claim("k1").await;
    // An internal error may have launched: for a minute the launch is looked for before the call is made again.
    until("the launch whose answer is lost", Duration::from_secs(120), async || !proxy.launches().is_empty()).await;
    // Longer than the wait before another try, shorter than the minute in which it is looked for.
    proxy.hide_instances(Duration::from_secs(30));
    let granted = serving.granted(&claim, proxy).await;
    assert_eq!(granted["gpus"][0]["indices"].as_array().map(Vec::len), Some(8));
    nothing_is_lost(&serving, proxy, 0).await;
    let loops = serving.get("/v1/loops").await;
    assert!(loops.to_string().contains("calls answered"), "{loops}");

    // No capacity in that zone: another offer is tried, and the refusal is learnt.
    proxy.next("RunInstances", Fault::Refused { status: 400, code: "InsufficientInstanceCapacity" });
    let second = serving.claim("k2").await;
    let third = serving.claim("k3").await;
    serving.granted(&second, proxy).await;
    serving.granted(&third, proxy).await;
    nothing_is_lost(&serving, proxy, 0).await;
    let events = serving.get("/v1/events?limit=1000").await.to_string();
    assert!(events.contains("InsufficientInstanceCapacity"), "the reason is in the log");
}

/// The process is killed while EC2 has launched and not yet answered. What is started next finds the instances.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_launches_nothing_twice() {
    let (moto, folder) = ready(8).await;
    let proxy = &moto.proxy;
    proxy.next("RunInstances", Fault::Held(Duration::from_secs(20)));
    let serving = serve(folder.path(), "sqlite:x.db", &[]).await;
    let claim = serving.claim("k1").await;
    until("a launch", Duration::from_secs(60), async || proxy.running() > 0).await;
    serving.kill().await;
    let serving = serve(folder.path(), "sqlite:x.db", &[]).await;
    serving.granted(&claim, proxy).await;
    nothing_is_lost(&serving, proxy, 0).await;
}

/// An instance with the fleet's tag that nobody asked for is found and ended; so is nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn strays_are_ended_and_what_is_gone_is_noticed() {
    let (moto, folder) = ready(8).await;
    let proxy = &moto.proxy;
    let http = Client::new();
    let run = async |fleet: &str| {
        let body = format!(
            "Action=RunInstances&Version=2016-11-15&ImageId=ami-03cf127a&InstanceType=p5.48xlarge&MinCount=1&MaxCount=1\
             &Placement.AvailabilityZone=us-east-1a&TagSpecification.1.ResourceType=instance\
             &TagSpecification.1.Tag.1.Key=pilotlight%3Afleet&TagSpecification.1.Tag.1.Value={fleet}"
        );
        http.post(&proxy.url).body(body).send().await.expect("answers").text().await.expect("text")
    };
    assert!(run("tests").await.contains("<instanceId>"), "a stray");
    assert!(run("others").await.contains("<instanceId>"), "of another fleet");
    let serving = serve(folder.path(), "sqlite:x.db", &[]).await;
    let claim = serving.claim("k1").await;
    let granted = serving.granted(&claim, proxy).await;
    // Taken away behind its back.
    let node = granted["gpus"][0]["node"].as_str().expect("text").to_owned();
    let instance = serving.get(&format!("/v1/nodes/{node}")).await["instance"].as_str().expect("text").to_owned();
    let body = format!("Action=TerminateInstances&Version=2016-11-15&InstanceId.1={instance}");
    http.post(&proxy.url).body(body).send().await.expect("answers");
    let failed = async || {
        let claim = serving.get(&format!("/v1/claims/{claim}")).await;
        claim["state"].as_str().is_some_and(|s| s == "failed")
    };
    until("the claim on it fails", Duration::from_secs(30), failed).await;
    let adopted = async || serving.get("/v1/events?limit=1000").await.to_string().contains("nobody asked for it");
    until("the stray is adopted", Duration::from_secs(120), adopted).await;
    nothing_is_lost(&serving, proxy, 1).await;
}
