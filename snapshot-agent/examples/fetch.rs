//! Benchmark: an object out of a local S3 server, every byte verified, beside a plain parallel download of the same packs to the
//! same disk. In turns, medians of five. `fetch MOTO_SERVER`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a benchmark prints and reads the clock")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fleet::rng::Rng;
use futures::StreamExt;
use snapshot_agent::snapshots::put::About;
use snapshot_agent::snapshots::store::{self, Store};
use snapshot_agent::snapshots::{get, put};
use snapshots::manifest::Kind;

const BYTES: usize = 1 << 30;
const AT_ONCE: usize = 6;

async fn plain(store: &Store, packs: Vec<snapshots::PackId>, folder: &Path) {
    std::fs::create_dir(folder).expect("a folder");
    let downloads = packs.into_iter().map(|pack| {
        let (store, path) = (store.clone(), folder.join(pack.to_string()));
        async move {
            let bytes = store.pack(pack).await.expect("there");
            let written = tokio::task::spawn_blocking(move || {
                let mut file = std::fs::File::create(path).expect("a file");
                std::io::Write::write_all(&mut file, &bytes).expect("written");
                file.sync_all().expect("on the disk");
            });
            written.await.expect("written");
        }
    });
    futures::stream::iter(downloads).buffer_unordered(AT_ONCE).for_each(|()| async {}).await;
}

#[tokio::main]
async fn main() {
    let server = std::env::args().nth(1).expect("give MOTO_SERVER");
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let mut command = Command::new(server);
    command.args(["-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = command.spawn().expect("runs");
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let endpoint = format!("http://127.0.0.1:{port}");
    let made = Command::new("curl").args(["-sf", "-X", "PUT", &format!("{endpoint}/bench")]).status().expect("curl");
    assert!(made.success(), "a bucket");
    let variables = [
        ("AWS_ENDPOINT", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let store =
        Store::open_with("s3://bench/objects", None, variables.map(|(n, v)| (n.into(), v.into()))).expect("a store");
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let model = folder.path().join("model");
    let mut rng = Rng::new(1);
    let content: Vec<u8> = (0..BYTES / 8).flat_map(|_| rng.bits().to_le_bytes()).collect();
    std::fs::write(&model, &content).expect("written");
    drop(content);
    let sources = put::sources(&model).expect("a file");
    let done = put::put(&store, &sources, About::kind(Kind::Weights), |_| {}).await.expect("stored");
    let manifest = store.manifest(done.id).await.expect("there");
    let bytes = store.index(manifest.index).await.expect("there");
    let packs: Vec<_> = store::index(&bytes, manifest.index).expect("an index").packs().collect();
    let (mut plainly, mut verified) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let to = |what: &str| folder.path().join(format!("{what}-{round}"));
        let start = Instant::now();
        plain(&store, packs.clone(), &to("plain")).await;
        plainly.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        get::get(&store, &manifest, &to("verified"), |_| {}).await.expect("got");
        verified.push(start.elapsed().as_secs_f64());
        ["plain", "verified"].iter().for_each(|what| drop(std::fs::remove_dir_all(to(what))));
    }
    plainly.sort_by(f64::total_cmp);
    verified.sort_by(f64::total_cmp);
    let rate = |seconds: f64| BYTES as f64 / seconds / 1e6;
    println!(
        "plain download, {AT_ONCE} at once {:6.0} MB/s; get, verified {:6.0} MB/s: {:.0} %",
        rate(plainly[2]),
        rate(verified[2]),
        100.0 * plainly[2] / verified[2]
    );
    server.kill().expect("ended");
    server.wait().expect("ended");
}
