//! Accepts connections: plain or TLS, with limits on how many, how slow and how large a request head may be.

mod connections;
mod metered;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use hyper::body::{Body as _, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use connections::{Connections, Entered, IDLE_KNOWN};
pub use connections::{Origin, Peer};
use metered::{Answer, Metered};

/// Largest request head, bytes.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Open requests may finish within this time when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections are looked through this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 250;

/// A certificate with its key.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads a PEM certificate chain and its key.
    ///
    /// # Errors
    /// They do not read or do not belong together.
    pub fn read(certificate: &Path, key: &Path) -> anyhow::Result<Self> {
        let chain = CertificateDer::pem_file_iter(certificate)
            .with_context(|| format!("cannot read the certificate {}", certificate.display()))?
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("{} is no PEM certificate", certificate.display()))?;
        let key_der =
            PrivateKeyDer::from_pem_file(key).with_context(|| format!("{} is no PEM private key", key.display()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key_der)
            .context("the certificate and the key do not belong together")?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// A bound port.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    tls: Option<Tls>,
}

impl Listener {
    /// Binds a port.
    ///
    /// # Errors
    /// It is taken, or not ours to bind.
    pub async fn bind(address: SocketAddr, tls: Option<Tls>) -> anyhow::Result<Self> {
        let socket = TcpListener::bind(address).await;
        let socket = socket.with_context(|| format!("cannot listen on {address}; is another server running?"))?;
        Ok(Self { socket, tls })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Serves until `stop` says so, then lets open requests finish.
pub async fn serve(listener: Listener, router: Router, mut stop: watch::Receiver<bool>) {
    let connections = Connections::new();
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    loop {
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            _ = sweep.tick() => {
                connections.sweep();
                continue;
            }
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: somebody idle goes.
                tracing::warn!(%error, "cannot accept a connection");
                connections.make_room();
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let entered = connections.enter(Origin::of(address.ip()));
        let service = Service { router: router.clone(), entered: Arc::new(entered) };
        let (tls, stop) = (listener.tls.clone(), stop.clone());
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls {
                None => connection(stream, service, stop).await,
                Some(Tls(acceptor)) => tokio::select! {
                    // The sweep ends a handshake that takes too long.
                    () = service.entered.connection.closed() => {}
                    shaken = acceptor.accept(stream) => if let Ok(stream) = shaken {
                        connection(stream, service.clone(), stop).await;
                    },
                },
            }
        });
    }
    let drained = async {
        while connections.len() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

/// What answers the requests of one connection.
#[derive(Clone)]
struct Service {
    router: Router,
    entered: Arc<Entered>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Answer>;
    type Error = std::convert::Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let body = if request.body().is_end_stream() { 0 } else { super::BODY_BYTES_MAX };
        let open = self.entered.connection.request(i64::try_from(HEAD_BYTES_MAX + body).unwrap_or(i64::MAX));
        request.extensions_mut().insert(self.entered.peer());
        let answer = self.router.clone().oneshot(request.map(Body::new));
        Box::pin(async move {
            let Ok(response) = answer.await;
            Ok(response.map(|body| Answer::new(body, open)))
        })
    }
}

async fn connection<S>(stream: S, service: Service, mut stop: watch::Receiver<bool>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    // Of an idle connection too; half a head is looked for by the sweep.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_KNOWN).max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(super::BODY_BYTES_MAX as u32)
        .initial_connection_window_size(1024 * 1024)
        .max_header_list_size(HEAD_BYTES_MAX as u32);
    let entered = Arc::clone(&service.entered.connection);
    let io = TokioIo::new(Metered::new(stream, Arc::clone(&entered)));
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    // A client that breaks off is its own affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = entered.closed() => return,
        () = entered.retired() => connection.as_mut().graceful_shutdown(),
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = entered.closed() => {}
    }
}
