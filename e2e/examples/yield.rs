//! From a waiting claim to a granted one, out of a diagnostic: `yield AGENT [TIMES]`, on a host with GPUs.
//!
//! A control plane in this process, and the agent AGENT on this host. In place of `dcgmi` run the gate's own products, which
//! heat the GPUs; an interrupt ends them, within a second. What is measured is all but DCGM's own abort.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "it is a report, and reads the clock")]

use std::error::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use server::config::Config;
use server::secrets::host_secret;
use server::serve::{Server, start};
use tokio::sync::watch;

type Failed = Box<dyn Error>;

fn config(gpus: usize) -> String {
    format!(
        r#"
listen = "127.0.0.1:0"
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = {{ lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }}
[diagnostics]
enabled = false
[[provider]]
kind = "static"
name = "lab"
offers = "lab.csv"
hosts = {{ h = ["host"] }}
[[class]]
name = "chat"
gpus = [{{ model = "H200" }}]
gpus_per_claim = {gpus}
hit_rate = 0.99
miss_cost_usd = 100.0
wait_s = 60
"#
    )
}

struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Plane {
    server: Server,
    http: Client,
}

impl Plane {
    async fn get(&self, path: &str) -> Result<Value, Failed> {
        Ok(self.http.get(format!("{}{path}", self.server.url)).send().await?.json().await?)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        let request = self.http.post(format!("{}{path}", self.server.url)).body(body.to_string());
        Ok(request.send().await?.json().await?)
    }

    /// The state of a host's node.
    async fn state_of(&self, instance: &str) -> Result<String, Failed> {
        let nodes = self.get("/v1/nodes?limit=1000").await?;
        let mut mine = nodes["items"].as_array().into_iter().flatten().filter(|n| n["instance"] == instance);
        Ok(mine.next_back().and_then(|n| n["state"].as_str()).unwrap_or("none").to_owned())
    }
}

fn agent(binary: &Path, folder: &Path, plane: &Plane, gpus: usize) -> Result<Ends, Failed> {
    let dcgmi = folder.join("dcgmi");
    let text = format!(
        "#!/bin/bash\nset -m\n{} check --repeats 100000000 --tensor-s 3000 >/dev/null 2>&1 & burn=$!\n\
         trap 'kill -TERM -- -$burn; sleep 1; kill -KILL -- -$burn; exit 1' INT TERM\nwait $burn\n",
        binary.display()
    );
    std::fs::write(&dcgmi, text)?;
    std::fs::set_permissions(&dcgmi, std::fs::Permissions::from_mode(0o755))?;
    let secret = host_secret(&plane.server.app.join_key, "host");
    let join = folder.join("join.toml");
    let text = format!(
        "url = \"{}\"\nsecret = \"{secret}\"\ninstance = \"host\"\ngpus = {gpus}\ndcgmi = \"{}\"\n",
        plane.server.url,
        dcgmi.display()
    );
    std::fs::write(&join, text)?;
    let log = std::fs::File::create("yield-agent.log")?;
    let mut command = Command::new(binary);
    command.arg("run").arg("--config").arg(&join).arg("--state").arg(folder.join("state"));
    Ok(Ends(command.stdout(Stdio::null()).stderr(log).spawn()?))
}

async fn once(plane: &Plane) -> Result<f64, Failed> {
    let began = Instant::now();
    while plane.state_of("host").await? != "idle" {
        if began.elapsed() > Duration::from_secs(120) {
            return Err(format!("after two minutes the host is {}", plane.state_of("host").await?).into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ledger = &plane.server.app.ledger;
    let host = ledger.book()?.nodes_of("host").next().ok_or("no host")?.id;
    ledger.write(move |book, now_ms| book.lend(host, "2", now_ms + 600_000, now_ms)).await??;
    // The stand-in heats the GPUs for a while.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 60, "lease_s": 600 });
    let claim = plane.post("/v1/claims", &ask).await?;
    let claim = claim["id"].as_str().ok_or("no claim")?;
    let granted = plane.get(&format!("/v1/claims/{claim}?wait_s=55")).await?;
    let at = |name: &str| granted[name].as_i64().ok_or_else(|| format!("{granted}"));
    if granted["state"] != "granted" {
        return Err(format!("it was not granted: {granted}").into());
    }
    let seconds = (at("granted_at_ms")? - at("asked_at_ms")?) as f64 / 1000.0;
    plane.post(&format!("/v1/claims/{claim}/release"), &json!({})).await?;
    Ok(seconds)
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let binary = std::fs::canonicalize(args.next().ok_or("give the agent's binary")?)?;
    let times: usize = args.next().map_or(Ok(10), |t| t.parse())?;
    let listed = Command::new("nvidia-smi").arg("-L").output()?;
    let gpus = String::from_utf8(listed.stdout)?.lines().count();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir()?;
    let offers = format!(
        "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h\n\
         lab,lab,lab,h,on-demand,H200,{gpus},8,,0\n"
    );
    std::fs::write(folder.path().join("lab.csv"), offers)?;
    std::fs::write(folder.path().join("pilotlight.toml"), config(gpus))?;
    let (_stop, stopped) = watch::channel(false);
    let database = format!("sqlite:{}", folder.path().join("x.db").display());
    let server = start(Config::read(&folder.path().join("pilotlight.toml"))?, Some(database), false, stopped).await?;
    let plane = Plane { server, http: Client::new() };
    let now_ms = plane.server.app.now_ms();
    let forecast = json!({ "class": "chat", "from_ms": now_ms, "until_ms": now_ms + 3_600_000, "claims": 1.0 });
    let url = format!("{}/v1/forecasts/one", plane.server.url);
    plane.http.put(url).header("if-none-match", "*").body(forecast.to_string()).send().await?.error_for_status()?;
    let _agent = agent(&binary, folder.path(), &plane, gpus)?;
    println!("a host of {gpus} GPUs in a diagnostic; a claim waits for it");
    let mut seconds = Vec::new();
    for n in 1..=times {
        seconds.push(once(&plane).await?);
        println!("{n:>4}  granted after {:>6.2} s", seconds[n - 1]);
    }
    seconds.sort_by(f64::total_cmp);
    let at = |p: f64| seconds[((p * times as f64).ceil() as usize).clamp(1, times) - 1];
    println!(
        "p50 {:.2} s, p90 {:.2} s, worst {:.2} s of {times}; the target is 45 s at p99",
        at(0.5),
        at(0.9),
        at(1.0)
    );
    Ok(())
}
