//! A machine that loses power says nothing: no end of its connections reaches the database. `POWER_CUTS=20` makes it longer.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::databases::{self, Database, Network};
use crate::serving::{Serving, serve, setting};
use crate::shared::{CONFIG, load, longest_gap_s, until_both_serve};

/// Two cables to a machine on which only the database runs: each replica has its own.
struct Cables {
    namespace: String,
    subnets: [String; 2],
}

fn ip(arguments: &str) -> bool {
    let done = Command::new("ip").args(arguments.split_whitespace()).output();
    done.is_ok_and(|d| d.status.success())
}

impl Cables {
    /// None where there are no network namespaces: they need root and iproute2.
    fn laid() -> Option<Self> {
        let number = std::process::id() % 10_000;
        let namespace = format!("pl{number}");
        if !ip(&format!("netns add {namespace}")) {
            println!("skipped: no network namespaces here, so no cable to pull");
            return None;
        }
        let cables = Self { namespace, subnets: [0, 1].map(|n| format!("10.{}.{}", 130 + n, number % 250)) };
        for (n, subnet) in cables.subnets.iter().enumerate() {
            let (there, here) = (&cables.namespace, cables.end(n));
            let steps = [
                format!("link add {here} type veth peer name {there}n{n} netns {there}"),
                format!("addr add {subnet}.1/24 dev {here}"),
                format!("link set {here} up"),
                format!("-n {there} addr add {subnet}.2/24 dev {there}n{n}"),
                format!("-n {there} link set {there}n{n} up"),
            ];
            assert!(steps.iter().all(|step| ip(step)), "a cable to {there}");
        }
        Some(cables)
    }

    fn end(&self, n: usize) -> String {
        format!("{}h{n}", self.namespace)
    }

    fn pull(&self, n: usize) {
        assert!(ip(&format!("link set {} down", self.end(n))));
    }

    fn plug(&self, n: usize) {
        assert!(ip(&format!("link set {} up", self.end(n))));
    }

    fn database(&self) -> Option<Database> {
        let addresses = self.subnets.each_ref().map(|s| format!("{s}.2")).join(",");
        databases::postgres_in(Some(&Network { namespace: self.namespace.clone(), addresses }))
    }

    fn url(&self, n: usize) -> String {
        format!("postgres://pilotlight@{}.2/postgres", self.subnets[n])
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.namespace));
    }
}

/// Where one replica's machine loses power, with whatever it holds, claims go on at the other within three seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_power_holds_nobody_up() {
    let Some(cables) = Cables::laid() else { return };
    let Some(_database) = cables.database() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).unwrap();
    let start = async |n: usize| serve(folder.path(), &cables.url(n), &[]).await;
    let mut servers: [Option<Serving>; 2] = [Some(start(0).await), Some(start(1).await)];
    let (rounds, mut longest_s) = (setting("POWER_CUTS", 2), 0.0_f64);
    for round in 0..rounds {
        let both: Vec<&Serving> = servers.iter().flatten().collect();
        let done = Arc::new(AtomicBool::new(false));
        let urls: Vec<String> = both.iter().map(|s| s.url.clone()).collect();
        let (mut tasks, _) = load(&urls, 16, &done);
        until_both_serve(&both).await;
        tokio::time::sleep(Duration::from_millis(1_300 + 37 * round as u64)).await;
        let cut = round % 2;
        cables.pull(cut);
        servers[cut].take().unwrap().kill().await;
        let other = servers[1 - cut].as_ref().unwrap();
        let gap_s = longest_gap_s(other).await;
        longest_s = longest_s.max(gap_s);
        println!("round {round}: the longest time without a claim at the other was {gap_s:.2} s");
        assert!(gap_s < 3.0, "round {round}: {gap_s:.2} s without a claim");
        done.store(true, Ordering::Relaxed);
        tasks.shutdown().await;
        cables.plug(cut);
        servers[cut] = Some(start(cut).await);
    }
    println!("{rounds} rounds, the longest {longest_s:.2} s");
}
