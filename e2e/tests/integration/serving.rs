//! `pilotlight serve` as a process.
#![allow(clippy::disallowed_methods, reason = "a real server takes real time")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::stand::binary;

/// A server that runs, until it is killed or forgotten.
pub struct Serving {
    /// Where it listens.
    pub url: String,
    /// For calls to it.
    pub http: Client,
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let told = log.iter().find(|line| line.contains(SECRET) || line.contains("plj_"));
        assert!(std::thread::panicking() || told.is_none(), "a secret in the log: {told:?}");
    }
}

/// The configuration of a server over one offer of simulated hosts, with the class `chat`. `top`: keys of the whole file;
/// `class`: more keys of the class, and what comes after it.
pub fn write_sim_fleet(folder: &Path, top: &str, class: &str) {
    let config = format!(
        r#"
listen = "127.0.0.1:0"
{top}
[planning]
every_s = 1
observe_every_s = 1
periods_s = [5, 5, 10, 20]
prior = {{ lead_time = [[1, 0.0], [2, 1.0]], min_hold_s = 1 }}
[[provider]]
kind = "sim"
offers = "offers.csv"
speed = 200.0
[[class]]
name = "chat"
gpus = [{{ model = "H100-SXM" }}]
hit_rate = 0.99
miss_cost_usd = 100.0
wait_s = 20
{class}
"#
    );
    let offers =
        "provider,region,zone,instance_type,market,gpu,gpus_per_node,price_usd_per_h,price_date,interruption_per_h
sim,r,a,h8,on-demand,H100-SXM,8,20,,0
";
    std::fs::write(folder.join("pilotlight.toml"), config).expect("written");
    std::fs::write(folder.join("offers.csv"), offers).expect("written");
}

/// What no log may have.
pub const SECRET: &str = "a-secret-nobody-may-log";

/// Starts the server in a folder that has `pilotlight.toml`. `wrapper`: a command in front of it.
pub async fn serve(folder: &Path, database: &str, wrapper: &[&str]) -> Serving {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = binary("pilotlight").display().to_string();
    let all = [wrapper, &[server.as_str(), "serve", "--config", "pilotlight.toml", "--database", database]].concat();
    let mut process = Command::new(all[0])
        .args(&all[1..])
        .current_dir(folder)
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
    let log = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&log);
    let note = move |line: &str| {
        eprintln!("{line}");
        noted.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    };
    let url = loop {
        let line = lines.next_line().await.expect("text").expect("it says where it listens");
        note(&line);
        if let Some(rest) = line.strip_prefix("pilotlight listens on ") {
            break rest.split(' ').next().expect("a URL").to_owned();
        }
    };
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            note(&line);
        }
    });
    Serving { url, http: Client::new(), process, log }
}

impl Serving {
    /// Lines of its log so far that have a word.
    pub fn logged(&self, word: &str) -> usize {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|line| line.contains(word)).count()
    }

    /// A read that succeeds.
    pub async fn get(&self, path: &str) -> Value {
        let got = self.http.get(format!("{}{path}", self.url)).send().await.expect("answers");
        assert!(got.status().is_success(), "{path}: {}", got.status());
        got.json().await.expect("JSON")
    }

    /// A call; status 0 where nobody answers.
    pub async fn try_post(&self, path: &str, secret: Option<&str>, body: &Value) -> (u16, Value) {
        let mut request = self.http.post(format!("{}{path}", self.url)).body(body.to_string());
        if let Some(secret) = secret {
            request = request.bearer_auth(secret);
        }
        match request.timeout(Duration::from_secs(20)).send().await {
            Ok(sent) => (sent.status().as_u16(), sent.json().await.unwrap_or_default()),
            Err(_) => (0, Value::Null),
        }
    }

    /// A call that is answered.
    pub async fn post(&self, path: &str, secret: Option<&str>, body: &Value) -> (StatusCode, Value) {
        let (status, answer) = self.try_post(path, secret, body).await;
        (StatusCode::from_u16(status).expect("answers"), answer)
    }

    /// Stops it where it stands (`-STOP`), as a machine does that loses power with its connections open; `-CONT` thaws it.
    pub fn signal(&self, signal: &str) {
        let sent = std::process::Command::new("kill").args([signal, &self.id().to_string()]).status();
        assert!(sent.is_ok_and(|s| s.success()), "{signal}");
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id().expect("runs")
    }

    /// Kills it without warning.
    pub async fn kill(mut self) {
        self.process.kill().await.expect("killed");
    }
}

/// How long or how often a test does something: a soak says more in the environment.
pub fn setting<T: std::str::FromStr>(name: &str, other: T) -> T {
    std::env::var(name).ok().and_then(|t| t.parse().ok()).unwrap_or(other)
}

/// A server whose database is on a disk of its own, of 8 MiB.
pub struct SmallDisk {
    pub serving: Serving,
    /// The disk as others see it.
    pub path: PathBuf,
}

/// Starts one in a folder that has `pilotlight.toml`, with `sqlite:disk/x.db`; none where there are no user namespaces.
pub async fn serve_on_small_disk(folder: &Path) -> Option<SmallDisk> {
    let namespaces = std::process::Command::new("unshare").args(["-rm", "true"]).status();
    if !namespaces.is_ok_and(|s| s.success()) {
        println!("skipped: no user namespaces here, so no small disk");
        return None;
    }
    std::fs::create_dir(folder.join("disk")).expect("made");
    let mount = "mount -t tmpfs -o size=8m tmpfs disk && exec \"$0\" \"$@\"";
    let serving = serve(folder, "sqlite:disk/x.db", &["unshare", "-rm", "sh", "-c", mount]).await;
    let root = PathBuf::from(format!("/proc/{}/root", serving.id()));
    let path = root.join(folder.join("disk").strip_prefix("/").expect("absolute"));
    Some(SmallDisk { serving, path })
}

/// Waits until something is so.
pub async fn until(what: &str, limit: Duration, mut met: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !met().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
