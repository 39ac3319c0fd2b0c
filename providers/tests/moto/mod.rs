//! A real EC2 API server, moto, with a proxy in front that plays what moto does not: capacity, refusals, answers that are
//! lost, instances that show late, and calls moto has not.

#![allow(dead_code, reason = "two test binaries share it and use different parts")]
#![allow(clippy::disallowed_methods, reason = "a real server takes real time")]

mod proxy;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

pub use proxy::{Fault, Proxy};

/// A server of its own for one test.
#[derive(Debug)]
pub struct Moto {
    /// Where calls go to.
    pub proxy: Proxy,
    // Ends with the test.
    _server: Child,
}

/// `MOTO_SERVER`, or what `scripts/setup-moto` installed, or what is on the path.
fn binary() -> PathBuf {
    let installed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/moto/bin/moto_server"));
    match std::env::var_os("MOTO_SERVER") {
        Some(path) => path.into(),
        None if installed.exists() => installed,
        None => "moto_server".into(),
    }
}

/// Starts a server and the proxy; `room` instances can run at once.
pub async fn start(room: usize) -> Moto {
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        free.local_addr().expect("bound").port()
    };
    let address = format!("127.0.0.1:{port}");
    let server = Command::new(binary())
        .args(["-H", "127.0.0.1", "-p", &port.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("moto_server starts: scripts/setup-moto installs it");
    let began = Instant::now();
    while TcpStream::connect(&address).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "moto does not listen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Moto { proxy: Proxy::start(address, room).await, _server: server }
}
