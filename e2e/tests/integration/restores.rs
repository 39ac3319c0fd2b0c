//! A claim over the API: its host brings up what it starts from, says how long that took, and ends it with the claim.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use server::secrets::host_secret;

use crate::daemon::{Plane, daemon_with, plane, said, stand};
use crate::stand::Stand;

fn criu() -> Option<PathBuf> {
    let built = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/criu/criu"));
    let found = std::env::var_os("PILOTLIGHT_CRIU").map(PathBuf::from).or_else(|| built.exists().then(|| built.into()));
    let root = std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    let found = found.filter(|_| root);
    if found.is_none() {
        println!("skipped: captured processes need root and CRIU; 'make criu' brings it");
    }
    found
}

/// What a workload answers, if it does.
fn got(port: u16, path: &str) -> Option<String> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let done = Command::new("curl").args(["-sf", "--max-time", "5", &url]).output().unwrap();
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).into_owned())
}

/// A workload of the agent's own tests, captured; the object's id.
fn captured(stand: &Stand, store: &Path, criu: &Path, port: u16, command: &[&str], environment: &str) -> String {
    let (root, recipe) = (stand.root(), stand.root().join("recipe.toml"));
    let workloads = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshot-agent/tests/workloads"));
    let script = workloads.join(command[0]).display().to_string();
    // It takes a while to start, so that a restore is worth it.
    let line = format!("sleep 2; exec python3 {script} {}", command[1..].join(" "));
    let command = ["sh", "-c", &line];
    let text = format!(
        "command = {command:?}\nenvironment = {{ {environment} }}\n\
         [ready]\nurl = 'http://127.0.0.1:{port}/health'\n[canary]\nurl = 'http://127.0.0.1:{port}/canary'\n"
    );
    std::fs::write(&recipe, text).unwrap();
    let mut agent = stand.agent(&["capture", recipe.to_str().unwrap(), "--store", store.to_str().unwrap()]);
    let done = agent.env("PILOTLIGHT_CRIU", criu).env("PILOTLIGHT_INTERPOSERS", root.join("interposers")).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// What a host joins by that brings up captured processes.
fn set_up(stand: &Stand, criu: &Path) -> String {
    let folder = |name: &str| stand.root().join(name).display().to_string();
    format!(
        "[staging]\nfolder = \"{}\"\ndisk_gib = 1\nmemory_gib = 0.25\n\
         [restore]\nfolder = \"{}\"\ncriu = \"{}\"\ninterposers = \"{}\"\n",
        folder("cache"),
        folder("restore"),
        criu.display(),
        folder("interposers")
    )
}

/// Declares what claims start from, and that somebody is expected.
async fn declare(plane: &Plane, store: &Path, object: &str) {
    let spec = json!({ "class": "chat", "store": store, "object": object, "bytes": 80 << 20, "cold_s": 300.0,
        "restore_s": 1.0, "started_by": "agent" });
    plane.put("/v1/snapshots/chat-8b", &spec).await;
    let now_ms = plane.server.app.now_ms();
    let somebody = json!({ "class": "chat", "from_ms": now_ms - 1000, "until_ms": now_ms + 600_000, "claims": 1 });
    plane.put("/v1/forecasts/somebody", &somebody).await;
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A claim, once its host has brought up what it starts from, or cannot.
async fn claimed(plane: &Plane) -> Value {
    let claim = plane.post("/v1/claims", &json!({ "class": "chat", "on_empty": "queue", "wait_s": 60 })).await;
    let id = claim["id"].as_str().unwrap();
    plane.get(&format!("/v1/claims/{id}?wait_s=60&until_ready=true")).await
}

async fn release(plane: &Plane, claim: &Value) {
    plane.post(&format!("/v1/claims/{}/release", claim["id"].as_str().unwrap()), &json!({})).await;
}

async fn wait(what: &str, stand: &Stand, so: impl Fn() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(30), "not {what}:\n{}", said(&stand.root().join("said")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_answered_by_what_its_host_brings_up() {
    let Some(criu) = criu() else { return };
    let (plane, stand) = (plane().await, stand());
    let store = stand.root().join("store");
    std::fs::create_dir(&store).unwrap();
    let port = free_port();
    let (files, number) = (stand.root().join("files"), port.to_string());
    std::fs::create_dir(&files).unwrap();
    let object = captured(&stand, &store, &criu, port, &["server.py", &number, files.to_str().unwrap(), "64", "0"], "");
    declare(&plane, &store, &object).await;
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let agent = daemon_with("lab-1", &stand, &plane.server.url, &secret, &set_up(&stand, &criu));

    // The first claim has its host started; what it starts from comes out of the store.
    let first = claimed(&plane).await;
    assert_eq!(first["start"]["state"], "ready", "{first}\n{}", said(&stand.root().join("said")));
    assert_eq!(first["start"]["attempts"][0]["rung"], "restore", "{first}");
    assert!(got(port, "/canary").is_some(), "it answers");
    release(&plane, &first).await;
    wait("ended with its claim", &stand, || got(port, "/health").is_none()).await;

    // The next one's is on the host, and needs nothing of the store.
    wait("made ready ahead", &stand, || said(&stand.root().join("said")).contains("can be restored at once")).await;
    for name in ["packs", "manifests", "indexes"] {
        std::fs::rename(store.join(name), store.join(format!("away-{name}"))).ok();
    }
    let second = claimed(&plane).await;
    let log = said(&stand.root().join("said"));
    assert_eq!(second["start"]["state"], "ready", "{second}\n{log}");
    let phases = second["start"]["attempts"][0]["phases"].as_array().unwrap();
    let names: Vec<&str> = phases.iter().filter_map(|phase| phase["phase"].as_str()).collect();
    assert!(names.starts_with(&["order", "processes"]) && names.ends_with(&["ready", "canary"]), "{names:?}");
    let ready_s = second["ready_s"].as_f64().unwrap();
    let inside: f64 = phases.iter().filter_map(|phase| phase["seconds"].as_f64()).sum();
    assert!(inside <= ready_s && ready_s < inside + 1.0, "{ready_s} of which its host had {inside}");
    println!("from the grant to the answer: {ready_s:.2} s");

    // What starts took is learnt while claims are open.
    let began = Instant::now();
    let all = loop {
        let starts = plane.get("/v1/starts").await;
        let all = starts["items"].as_array().unwrap().iter().find(|row| row["phase"].is_null()).cloned();
        if let Some(all) = all {
            break all;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{starts}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((&all["class"], &all["rung"]), (&json!("chat"), &json!("restore")), "{all}");
    assert!(all["p99_s"].as_f64().unwrap() >= all["p50_s"].as_f64().unwrap(), "{all}");

    // A workload ends with its agent, and the next one brings it up again: still without the store.
    drop(agent);
    wait("ended with its agent", &stand, || got(port, "/health").is_none()).await;
    let _agent = daemon_with("lab-1", &stand, &plane.server.url, "plj_used", &set_up(&stand, &criu));
    // It answers a moment before its agent has heard its answer.
    wait("up again", &stand, || said(&stand.root().join("said")).matches("is ready").count() == 3).await;

    // One that ends by itself is told, and its claim goes on.
    let _ = Command::new("pkill").args(["-KILL", "-f", &format!("server.py {port} ")]).status().unwrap();
    let path = format!("/v1/claims/{}", second["id"].as_str().unwrap());
    let began = Instant::now();
    let ended = loop {
        let claim = plane.get(&path).await;
        if claim["start"]["state"] == "ended" {
            break claim;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{claim}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(ended["state"], "granted", "{ended}");
    release(&plane, &ended).await;

    // What people see: events, histograms, quantiles.
    let events = plane.get("/v1/events?limit=1000").await;
    let name = format!("start of {}", second["id"].as_str().unwrap());
    let mine: Vec<&Value> = events["items"].as_array().unwrap().iter().filter(|e| e["subject"] == name).collect();
    let life: Vec<&str> = mine.iter().filter_map(|e| e["to"].as_str()).collect();
    assert_eq!(life, ["coming", "ready", "coming", "ready", "ended"], "{mine:?}");
    assert!(mine[1]["reason"].as_str().unwrap().contains(" s after the grant: restore in "), "{mine:?}");
    let metrics = plane.text("/metrics").await;
    let histogram = "pilotlight_start_phase_seconds_count{class=\"chat\",rung=\"restore\",phase=\"processes\"} 2";
    assert!(metrics.contains(histogram), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_not_set_up_says_so() {
    let (plane, stand) = (plane().await, stand());
    let spec = json!({ "class": "chat", "store": "/none", "object": "0".repeat(64), "bytes": 1, "cold_s": 300.0,
        "restore_s": 1.0, "started_by": "agent" });
    plane.put("/v1/snapshots/chat-8b", &spec).await;
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let _agent = daemon_with("lab-1", &stand, &plane.server.url, &secret, "");
    let claim = claimed(&plane).await;
    assert_eq!((&claim["state"], &claim["start"]["state"]), (&json!("granted"), &json!("failed")), "{claim}");
    assert!(claim["start"]["problem"].as_str().unwrap().contains("[restore]"), "{claim}");
}

/// What cargo built of a library beside the tests.
fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let deps = tests.parent().unwrap();
    let found = [deps.join(name), deps.parent().unwrap().join(name)].into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} was not built"))
}

/// Device memory of two GPUs goes there from the memory in which the host keeps its copy, again and again, by the same children.
/// CUDA's driver is one that keeps device memory in memory files; on a GPU the same runs by benchmarks/claimed-restores.
#[tokio::test(flavor = "multi_thread")]
async fn device_memory_comes_from_the_copy_in_memory() {
    let Some(criu) = criu() else { return };
    let (plane, mut stand) = (plane().await, stand());
    let root = stand.root().to_owned();
    for name in ["store", "cuda", "driver"] {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(built("libcuda_stand_in.so"), root.join("driver/libcuda.so.1")).unwrap();
    std::os::unix::fs::symlink(root.join("driver/libcuda.so.1"), root.join("driver/libcuda.so")).unwrap();
    let (driver, cuda) = (root.join("driver").display().to_string(), root.join("cuda").display().to_string());
    stand.variables.push(("LD_LIBRARY_PATH", driver.clone()));
    stand.variables.push(("CUDA_STAND_IN_FOLDER", cuda.clone()));
    stand.variables.push(("CUDA_STAND_IN_GPUS", "2".into()));
    let environment =
        format!("LD_LIBRARY_PATH = '{driver}', CUDA_STAND_IN_FOLDER = '{cuda}', CUDA_STAND_IN_GPUS = '2'");
    let (store, port) = (root.join("store"), free_port());
    let object = captured(&stand, &store, &criu, port, &["device.py", &port.to_string(), "2", "24"], &environment);
    let secret = host_secret(&plane.server.app.join_key, "lab-1");
    let _agent = daemon_with("lab-1", &stand, &plane.server.url, &secret, &set_up(&stand, &criu));
    declare(&plane, &store, &object).await;
    let ready = || said(&root.join("said")).contains("from=\"memory\"");
    wait("made ready ahead", &stand, ready).await;
    let mut answers = std::collections::BTreeSet::new();
    for number in 1..=4 {
        // The stand-in knows a process by its number, which is the same each time.
        std::fs::write(root.join("cuda/state-10000"), "2").unwrap();
        let claim = claimed(&plane).await;
        let log = said(&root.join("said"));
        assert_eq!(claim["start"]["state"], "ready", "claim {number}: {claim}\n{log}");
        let attempts = claim["start"]["attempts"].as_array().unwrap();
        assert_eq!((attempts.len(), &attempts[0]["rung"]), (1, &json!("restore")), "claim {number}: {claim}\n{log}");
        let phases: Vec<&str> =
            attempts[0]["phases"].as_array().unwrap().iter().filter_map(|phase| phase["phase"].as_str()).collect();
        assert!(!phases.contains(&"prepare") && phases.contains(&"device memory"), "claim {number}: {phases:?}");
        answers.insert(got(port, "/canary").unwrap());
        release(&plane, &claim).await;
        wait("ended with its claim", &stand, || got(port, "/health").is_none()).await;
    }
    assert_eq!(answers.len(), 1, "the same each time");
    assert!(!root.join("restore/images").join(&object).join("device").exists(), "its device memory lies there once");
}
