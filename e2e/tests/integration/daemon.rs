//! The daemon as a process, against a real control plane, and against none.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use server::config::Config;
use server::secrets::host_secret;
use server::serve::{Server, start};
use tokio::sync::watch;

use crate::stand::Stand;

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = { lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }
[[provider]]
kind = "static"
name = "lab"
offers = "lab.csv"
hosts = { h2 = ["lab-1", "lab-2"] }
[diagnostics]
every_s = 1
rules = { idle_min_s = 0 }
[[class]]
name = "chat"
gpus = [{ model = "H200" }]
gpus_per_claim = 2
hit_rate = 0.99
miss_cost_usd = 100.0
wait_s = 20
"#;

const OFFERS: &str =
    "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
lab,lab,lab,h2,on-demand,H200,2,8,,0
";

/// A child that ends with the test.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Plane {
    pub server: Server,
    http: Client,
    _stop: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

pub async fn plane() -> Plane {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("lab.csv"), OFFERS).unwrap();
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).unwrap();
    let config = Config::read(&folder.path().join("pilotlight.toml")).unwrap();
    let (stop, stopped) = watch::channel(false);
    let database = format!("sqlite:{}", folder.path().join("x.db").display());
    let server = start(config, Some(database), false, stopped).await.unwrap();
    Plane { server, http: Client::new(), _stop: stop, _folder: folder }
}

impl Plane {
    pub async fn get(&self, path: &str) -> Value {
        self.http.get(format!("{}{path}", self.server.url)).send().await.unwrap().json().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let sent = self.http.post(format!("{}{path}", self.server.url)).body(body.to_string()).send();
        sent.await.unwrap().json().await.unwrap_or_default()
    }

    pub async fn put(&self, path: &str, body: &Value) {
        let url = format!("{}{path}", self.server.url);
        let sent = self.http.put(url).header("if-none-match", "*").body(body.to_string()).send().await.unwrap();
        assert!(sent.status().is_success(), "{}", sent.text().await.unwrap());
    }

    pub async fn text(&self, path: &str) -> String {
        self.http.get(format!("{}{path}", self.server.url)).send().await.unwrap().text().await.unwrap()
    }

    /// Waits until the node is so.
    async fn node(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let node = self.get("/v1/nodes").await["items"][0].clone();
            if so(&node) {
                return node;
            }
            assert!(began.elapsed() < Duration::from_secs(40), "not {what}: {node}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn daemon(stand: &Stand, url: &str, secret: &str) -> Running {
    daemon_of("lab-1", stand, url, secret)
}

pub fn daemon_of(instance: &str, stand: &Stand, url: &str, secret: &str) -> Running {
    daemon_with(instance, stand, url, secret, "")
}

/// The same, with more lines at the end of what it joins by.
pub fn daemon_with(instance: &str, stand: &Stand, url: &str, secret: &str, more: &str) -> Running {
    let config = stand.root().join("join.toml");
    let dcgmi = stand.root().join("dcgmi");
    let text = format!(
        "url = \"{url}\"\nsecret = \"{secret}\"\ninstance = \"{instance}\"\ngpus = 2\ndcgmi = \"{}\"\n{more}",
        dcgmi.display()
    );
    std::fs::write(&config, text).unwrap();
    let (config, state) = (config.display().to_string(), stand.root().join("state").display().to_string());
    let log = stand.kernel_log().display().to_string();
    let mut command = stand.agent(&["run", "--config", &config, "--state", &state, "--kernel-log", &log]);
    let said = std::fs::File::options().create(true).append(true).open(stand.root().join("said")).unwrap();
    Running(command.stderr(said).stdout(Stdio::null()).spawn().unwrap())
}

fn say(stand: &Stand, line: &str) {
    let mut log = std::fs::File::options().append(true).open(stand.kernel_log()).unwrap();
    writeln!(log, "{line}").unwrap();
}

pub fn said(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A host with two GPUs, tools that write down what they are told, and a boot of its own.
pub fn stand() -> Stand {
    let mut stand = Stand::healthy(2);
    let tools = stand.root().join("tools");
    std::fs::write(&tools, format!("echo \"$@\" >> {}\n", stand.root().join("mended").display())).unwrap();
    stand.variables.push(("STAND_IN_TOOLS", format!("sh {}", tools.display())));
    stand.variables.push(("STAND_IN_BOOT", "boot-1".into()));
    stand
}

/// A host joins, passes the gate, serves; a row waits to be remapped: it serves on, takes no new claim, and is reset when it
/// is empty; the gate passes, and it serves again.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_serves_and_is_mended_when_it_is_empty() {
    let (plane, stand) = (plane().await, stand());
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let _agent = daemon(&stand, &plane.server.url, &secret);
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60, "lease_s": 600 });
    let claim = plane.post("/v1/claims", &ask).await;
    let id = claim["id"].as_str().unwrap();
    let granted = plane.get(&format!("/v1/claims/{id}?wait_s=40")).await;
    assert_eq!(granted["state"], "granted", "{granted}\n{}", said(&stand.root().join("said")));
    plane.post(&format!("/v1/claims/{id}/heartbeat"), &json!({})).await;
    say(&stand, "6,2,20,-;NVRM: Xid (PCI:0000:11:00): 63, pid=1, name=x, Row Remapper: New row marked for remapping");
    let node = plane.node("in need of a reset", |n| n["care"] == "reset").await;
    assert_eq!((&node["state"], &node["care_cause"]), (&json!("claimed"), &json!("xid:63")), "it serves on");
    assert!(!stand.root().join("mended").exists(), "nothing is reset under a workload");
    plane.post(&format!("/v1/claims/{id}/release"), &json!({})).await;
    plane.node("healthy again", |n| n["state"] == "idle" && n["care"].is_null()).await;
    assert_eq!(said(&stand.root().join("mended")), "reset 0000:11:00.0\n", "that GPU, once");
    let events = plane.get("/v1/events?limit=1000").await;
    let node = node["id"].clone();
    let mine = events["items"].as_array().unwrap().iter().filter(|e| e["subject"] == node);
    let life: Vec<&str> = mine.filter_map(|e| e["to"].as_str()).collect();
    let end = ["claimed", "idle", "repairing", "checking", "idle"];
    assert!(life.ends_with(&end), "{life:?}");
    assert!(stand.root().join("state/gate-2.json").exists(), "the evidence of both gates is kept");
}

/// A GPU that falls off the bus ends the claim, and the node.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gpu_takes_its_node_out() {
    let (plane, stand) = (plane().await, stand());
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let agent = daemon(&stand, &plane.server.url, &secret);
    let claim = plane.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    let id = claim["id"].as_str().unwrap();
    plane.get(&format!("/v1/claims/{id}?wait_s=40")).await;
    plane.post(&format!("/v1/claims/{id}/heartbeat"), &json!({ "lease_s": 600 })).await;
    // The agent is away for a moment: what the log says meanwhile is not lost.
    drop(agent);
    say(&stand, "6,2,20,-;NVRM: Xid (PCI:0000:10:00): 79, pid=1, GPU has fallen off the bus.");
    let _agent = daemon(&stand, &plane.server.url, "plj_the-first-one-is-used");
    let ended = plane.get(&format!("/v1/claims/{id}?wait_s=0")).await;
    let began = Instant::now();
    let mut claim = ended;
    while claim["state"] == "active" && began.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        claim = plane.get(&format!("/v1/claims/{id}")).await;
    }
    assert_eq!(claim["state"], "failed", "{claim}\n{}", said(&stand.root().join("said")));
    assert!(claim["reason"].as_str().unwrap().contains("xid:79"), "{claim}");
    // The planner hears of it, by its place.
    let began = Instant::now();
    loop {
        let learnt = plane.get("/v1/rates").await;
        let faults = learnt["items"].as_array().unwrap().iter().filter_map(|p| p["faults"].as_f64()).sum::<f64>();
        if faults > 0.9 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{learnt}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whatever the control plane says, or does not say: the agent watches on, and what it found is told when it can be.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_away_or_mad_does_no_harm() {
    let mad = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", mad.local_addr().unwrap());
    std::thread::spawn(move || {
        let answers = ["{}", "[1, 2", "\u{0}\u{1}", r#"{"state":"idle","heartbeat_s":-5,"report_seq":"x"}"#];
        for (n, stream) in mad.incoming().flatten().enumerate() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let text = answers[n % answers.len()];
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}", text.len());
        }
    });
    let mut stand = stand();
    stand.script["gpus"][1]["readings"] = json!({ "recovery_action": 1 });
    // Nothing can be stored either: there is a folder where the file would be.
    std::fs::create_dir_all(stand.root().join("state/state.new")).unwrap();
    let mut agent = daemon(&stand, &url, "plj_x");
    let began = Instant::now();
    let words = ["answers nonsense", "driver:1", "cannot write"];
    while words.iter().any(|w| !said(&stand.root().join("said")).contains(w)) {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", said(&stand.root().join("said")));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(agent.0.try_wait().unwrap().is_none(), "it runs on");
    assert!(!stand.root().join("mended").exists(), "and does nothing that nobody asked for");
}

/// What computes on a GPU is not disturbed, whatever the control plane wants.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_waits_for_workloads_to_end() {
    let (plane, mut stand) = (plane().await, stand());
    stand.variables.retain(|(k, _)| *k != "STAND_IN_PATIENCE");
    stand.variables.push(("STAND_IN_PATIENCE", "0.03".into()));
    stand.script["gpus"][1]["readings"] = json!({ "processes": 1 });
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let agent = daemon(&stand, &plane.server.url, &secret);
    plane.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 100 })).await;
    let began = Instant::now();
    while !said(&stand.root().join("said")).contains("1 processes run on the GPUs, and are not disturbed") {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", said(&stand.root().join("said")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    plane.node("waiting for its gate", |n| n["state"] == "checking").await;
    // The workload ends.
    drop(agent);
    stand.script["gpus"][1]["readings"] = json!({});
    let _agent = daemon(&stand, &plane.server.url, &secret);
    plane.node("claimed", |n| n["state"] == "claimed").await;
}

#[test]
fn secrets_do_not_travel_in_the_open() {
    let stand = stand();
    let mut agent = daemon(&stand, "http://example.com", "plj_x");
    assert_eq!(agent.0.wait().unwrap().code(), Some(1));
    assert!(said(&stand.root().join("said")).contains("secrets go over https:// alone"));
}
