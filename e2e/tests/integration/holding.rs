//! `pilotlight claim` as a person uses it: a claim lives as long as a command does, or until Ctrl-C.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::serving::{Serving, serve, until, write_sim_fleet};
use crate::stand::binary;

struct Lab {
    serving: Serving,
    _folder: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_sim_fleet(folder.path(), "", "gpus_per_claim = 2\non_empty = \"queue\"");
        let database = format!("sqlite:{}", folder.path().join("x.db").display());
        Self { serving: serve(folder.path(), &database, &[]).await, _folder: folder }
    }

    /// `pilotlight claim chat`, with a lease that runs out within two seconds.
    fn claim(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(binary("pilotlight"));
        command.args(["claim", "chat", "--server", &self.serving.url, "--lease-s", "2"]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    }

    async fn only_claim(&self) -> Value {
        self.serving.get("/v1/claims").await["items"].as_array().unwrap().last().cloned().unwrap_or_default()
    }

    async fn is_active(&self) -> bool {
        self.only_claim().await["state"] == "active"
    }
}

fn signal(child: &Child, which: &str) {
    let sent = std::process::Command::new("kill").args([which, &child.id().unwrap().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_lives_as_long_as_its_command_and_ends_as_it_does() {
    let lab = Lab::new().await;
    let script = "sleep 5; echo \"$PILOTLIGHT_CLAIM $PILOTLIGHT_GPU_INDICES $PILOTLIGHT_INSTANCES\"; exit 7";
    let running = lab.claim(&["--", "sh", "-c", script]);
    until("the claim is active", Duration::from_secs(30), async || lab.is_active().await).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(lab.is_active().await, "it is kept beyond its lease: {}", lab.only_claim().await);
    let ended = running.wait_with_output().await.unwrap();
    let (out, said) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert_eq!(ended.status.code(), Some(7), "{out}{said}");
    let claim = lab.only_claim().await;
    let told = format!("{} 0+1 {}", claim["id"].as_str().unwrap(), claim["gpus"][0]["instance"].as_str().unwrap());
    assert!(out.lines().any(|line| line == told), "{out}: {told}");
    assert_eq!((&claim["state"], &claim["reason"]), (&json!("released"), &json!("given back by its client")));
    let missing = lab.claim(&["--", "/no/such/program"]).wait_with_output().await.unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert_eq!(lab.only_claim().await["state"], "released", "a command that does not start keeps nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_claim_is_lost_is_told_and_one_that_is_ended_gives_it_back() {
    let lab = Lab::new().await;
    let script = "trap 'echo saved; exit 0' TERM; while :; do sleep 0.1; done";
    let running = lab.claim(&["--", "sh", "-c", script]);
    until("the claim is active", Duration::from_secs(30), async || lab.is_active().await).await;
    let id = lab.only_claim().await["id"].as_str().unwrap().to_owned();
    let (status, _) = lab.serving.post(&format!("/v1/claims/{id}/release"), None, &json!({})).await;
    assert!(status.is_success());
    let ended = running.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{said}");
    assert!(String::from_utf8_lossy(&ended.stdout).contains("saved") && said.contains("the claim is lost"), "{said}");
    // A batch system ends the command line.
    let running = lab.claim(&["--", "sh", "-c", script]);
    until("the claim is active", Duration::from_secs(30), async || lab.is_active().await).await;
    signal(&running, "-TERM");
    let ended = running.wait_with_output().await.unwrap();
    assert_eq!((ended.status.code(), lab.only_claim().await["state"].clone()), (Some(0), json!("released")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_held_until_a_person_ends_it() {
    let lab = Lab::new().await;
    let holding = lab.claim(&["--hold"]);
    until("the claim is active", Duration::from_secs(30), async || lab.is_active().await).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(lab.is_active().await);
    signal(&holding, "-INT");
    let ended = holding.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(lab.only_claim().await["state"], "released");
    // One that is not kept says so.
    let taken = lab.claim(&[]).wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(said.contains("given back in") && said.contains("--hold"), "{said}");
    // One that waits and is not waited for any more is given back.
    let waiting = lab.claim(&["--count", "64", "--wait-s", "600"]);
    until("it waits", Duration::from_secs(10), async || lab.only_claim().await["state"] == "queued").await;
    signal(&waiting, "-INT");
    assert_eq!(waiting.wait_with_output().await.unwrap().status.code(), Some(130));
    assert_eq!(lab.only_claim().await["state"], "released");
}
