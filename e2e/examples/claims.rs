//! Measures the claim path, durable, with the clients in a process of their own:
//!
//!     claims pairs DATABASE [--gpus N] [--clients N] [--seconds N] [--rate PAIRS_PER_S]
//!     claims exact DATABASE [--gpus N] [--clients N]
//!     claims gather DATABASE [--nodes N]
//!     claims disk FOLDER          what a durable write costs there, without any of this
//!
//! Without a rate every client goes on as soon as it is answered, and times are those of a queue that is always full. With
//! one, pairs begin at fixed moments, and times count from there, also where the client is behind.
//!
//! DATABASE is `sqlite:FILE` or `postgres://…`, and should be empty.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures time")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fleet::book::{Book, ClaimRequest, Limits};
use fleet::{GpuModel, LaunchAnswer, Market, Offer, OfferKey, UsdMicros};
use protocol::ClassSpec;
use server::config::{Config, Planning};
use server::serve::{Server, start};
use server::store::{OfferTable, Write};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, otherwise: u64| -> u64 {
        let at = args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
        at.and_then(|v| v.parse().ok()).unwrap_or(otherwise)
    };
    let (what, target) = match args.as_slice() {
        [what, target, ..] => (what.as_str(), target.clone()),
        _ => bail!("claims pairs|exact|gather DATABASE; see the head of e2e/examples/claims.rs"),
    };
    let (gpus, clients, seconds) = (number("--gpus", 500), number("--clients", 64), number("--seconds", 10));
    let rate = number("--rate", 0);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        match what {
            "load" => load(&target, clients, seconds, rate).await,
            "rush" => rush(&target, clients).await,
            "pairs" | "exact" => {
                let (server, stop) = serve(&target, gpus).await?;
                let child = if what == "pairs" { "load" } else { "rush" };
                print!("{}, {gpus} GPUs, {clients} clients: ", target.split(':').next().unwrap_or(""));
                std::io::Write::flush(&mut std::io::stdout())?;
                let ran = tokio::process::Command::new(std::env::current_exe()?)
                    .args([child, &server.url, "--clients", &clients.to_string(), "--seconds", &seconds.to_string()])
                    .args(["--rate", &rate.to_string()])
                    .stdin(Stdio::null())
                    .status()
                    .await?;
                let breaches = server.app.book()?.breaches();
                anyhow::ensure!(breaches.is_empty(), "an invariant is broken: {breaches:?}");
                let _ = stop.send(true);
                let _ = server.serving.await;
                if ran.success() { Ok(()) } else { bail!("the clients failed") }
            }
            "disk" => disk(&target),
            "gather" => gather(&target, number("--nodes", 10_000)).await,
            other => bail!("'{other}' is none of pairs, exact, gather"),
        }
    })
}

fn offers() -> Vec<Offer> {
    let gpu: GpuModel = "H100-SXM".parse().unwrap();
    let offer = |i: usize| Offer {
        key: OfferKey {
            provider: "bench".into(),
            region: "r".into(),
            zone: format!("z{i}"),
            instance_type: "h8".into(),
            market: Market::OnDemand,
        },
        gpu,
        gpus_per_node: 8,
        interconnect: gpu.interconnect(),
        price_usd_micros_per_h: UsdMicros(20_000_000 + i as i64),
        price_day: None,
        interruption_per_h: 0.0,
    };
    (0..20).map(offer).collect()
}

/// A server with so many idle GPUs and no providers.
async fn serve(database: &str, gpus: u64) -> anyhow::Result<(Server, watch::Sender<bool>)> {
    let class = "name = \"bench\"\ngpus = [{ model = \"H100-SXM\" }]\nhit_rate = 0.99\nlease_s = 3600\n";
    let class: ClassSpec = toml::from_str(class)?;
    let hour = 3_600_000;
    let limits = Limits { confirm_ms: hour, proof_max_age_ms: hour, silent_ms: hour, ..Limits::default() };
    let config = Config { listen: ([127, 0, 0, 1], 0).into(), limits, class: vec![class], ..Config::default() };
    let (stop_in, stop) = watch::channel(false);
    let server = start(config, Some(database.to_owned()), false, stop).await?;
    let offers = offers();
    server.app.ledger.put(&OfferTable(offers.clone()), None).await?;
    let nodes = gpus.div_ceil(8);
    server.app.ledger.write(move |book, now_ms| fill(book, &offers, nodes, now_ms)).await?;
    Ok((server, stop_in))
}

fn fill(book: &mut Book, offers: &[Offer], nodes: u64, now_ms: i64) {
    for (i, offer) in offers.iter().enumerate() {
        let count = (nodes / 20 + u64::from((i as u64) < nodes % 20)) as u32;
        let intent = book.intend_launch(1, &offer.key, count, 60_000, now_ms).unwrap();
        let instances: Vec<String> = (0..count).map(|n| format!("b-{i}-{n}")).collect();
        book.launched(intent, &instances, LaunchAnswer::Launched, "bench", now_ms).unwrap();
        let ids: Vec<u64> = book.nodes().values().filter(|n| n.intent == Some(intent)).map(|n| n.id).collect();
        for id in ids {
            book.register(id, "b", 8, now_ms).unwrap();
            book.gate(id, "b", &fleet::book::Gate::passed(), "bench", now_ms).unwrap();
        }
    }
}

/// One keep-alive connection.
struct Client {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Client {
    async fn new(url: &str) -> anyhow::Result<Self> {
        let host = url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&host).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), host })
    }

    async fn post(&mut self, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                bail!("the server closed the connection");
            }
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if let Some(code) = text.strip_prefix("HTTP/1.1 ") {
                status = code[..3].parse()?;
            } else if let Some(value) = text.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.parse()?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status, String::from_utf8(body)?))
    }
}

const CLAIM: &str = r#"{"class":"bench","on_empty":"fail"}"#;

fn id_of(body: &str) -> anyhow::Result<&str> {
    let rest = body.split_once("\"id\":\"").context("an answer without an identity")?.1;
    rest.split('"').next().context("an identity without an end")
}

fn quantile(times: &mut [f64], q: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * q).round() as usize]
}

/// Clients that claim and release as fast as they are answered.
async fn load(url: &str, clients: u64, seconds: u64, rate: u64) -> anyhow::Result<()> {
    let warm_until = Instant::now() + Duration::from_secs(2);
    let until = warm_until + Duration::from_secs(seconds);
    let mut tasks = tokio::task::JoinSet::new();
    let pause = (rate > 0).then(|| Duration::from_secs_f64(clients as f64 / rate as f64));
    for i in 0..clients {
        let mut client = Client::new(url).await?;
        let mut next = Instant::now() + pause.unwrap_or_default() * i as u32 / clients as u32;
        tasks.spawn(async move {
            let (mut claims, mut releases) = (Vec::new(), Vec::new());
            while Instant::now() < until {
                let mut began = Instant::now();
                if let Some(pause) = pause {
                    tokio::time::sleep_until(next.into()).await;
                    began = next;
                    next += pause;
                }
                let (status, body) = client.post("/v1/claims", CLAIM).await?;
                let claimed = Instant::now();
                if status != 201 {
                    bail!("a claim was answered {status}: {body}");
                }
                let path = format!("/v1/claims/{}/release", id_of(&body)?);
                let (status, body) = client.post(&path, "{}").await?;
                if status != 200 {
                    bail!("a release was answered {status}: {body}");
                }
                if began >= warm_until {
                    claims.push((claimed - began).as_secs_f64() * 1e3);
                    releases.push(claimed.elapsed().as_secs_f64() * 1e3);
                }
            }
            Ok((claims, releases))
        });
    }
    let (mut claims, mut releases) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        let (c, r) = done??;
        claims.extend(c);
        releases.extend(r);
    }
    if claims.is_empty() {
        bail!("no pair was finished");
    }
    println!(
        "{:.0} pairs/s; claim p50 {:.2} ms, p99 {:.2} ms; release p50 {:.2} ms, p99 {:.2} ms",
        claims.len() as f64 / seconds as f64,
        quantile(&mut claims, 0.5),
        quantile(&mut claims, 0.99),
        quantile(&mut releases, 0.5),
        quantile(&mut releases, 0.99)
    );
    Ok(())
}

/// Clients that claim until they are refused.
async fn rush(url: &str, clients: u64) -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let mut client = Client::new(url).await?;
        tasks.spawn(async move {
            let mut got = Vec::new();
            loop {
                let (status, body) = client.post("/v1/claims", CLAIM).await?;
                if status != 201 {
                    return Ok::<_, anyhow::Error>(got);
                }
                let gpu = body.split_once("\"gpus\":").context("an answer without GPUs")?.1;
                got.push(gpu.split('}').next().unwrap_or("").to_owned());
            }
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    let granted = all.len();
    all.sort();
    all.dedup();
    println!("{granted} granted, {} given twice", granted - all.len());
    Ok(())
}

/// Time to make 64 KiB durable: no commit is faster, and on a shared disk it changes from minute to minute.
fn disk(folder: &str) -> anyhow::Result<()> {
    let path = std::path::Path::new(folder).join("disk.tmp");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..400 {
        std::io::Write::write_all(&mut file, &[7; 65_536])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    std::fs::remove_file(path)?;
    println!(
        "disk: 64 KiB durable in p50 {:.2} ms, p99 {:.2} ms",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.99)
    );
    Ok(())
}

/// Time to gather a plan's inputs.
async fn gather(database: &str, nodes: u64) -> anyhow::Result<()> {
    let (server, stop) = serve(database, nodes * 8).await?;
    let app = Arc::clone(&server.app);
    let claims = |book: &mut Book, now_ms: i64| {
        for _ in 0..20_000 {
            let ask = ClaimRequest::of("bench");
            book.claim(ask, now_ms).unwrap();
        }
    };
    app.ledger.write(claims).await?;
    let days: Vec<(String, i64, f64)> = (0..8 * 1440).map(|i| ("bench".to_owned(), i * 60_000, i as f64)).collect();
    app.ledger.record(Write::Demand(days), None).await?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let gathered = server::loops::gather(&app, &Planning::default(), None, 8 * 86_400_000).await;
        let (gathered, _) = gathered.map_err(|e| anyhow::anyhow!("{e}"))?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert_eq!(gathered.nodes.len(), nodes as usize);
    }
    println!(
        "{nodes} nodes, 20,000 claims, 8 days of demand gathered: p50 {:.0} ms, p99 {:.0} ms",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.99)
    );
    let _ = stop.send(true);
    let _ = server.serving.await;
    Ok(())
}
