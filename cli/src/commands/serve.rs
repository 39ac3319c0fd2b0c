//! `pilotlight serve`: the control plane.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;

use server::config::Config;
use server::serve::{demo_config, start};
use tokio::sync::watch;

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration; without it simulated clouds, demo classes and a SQLite file.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where to listen, in place of the configuration's.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Listens beyond this machine although there are no tokens or no TLS.
    #[arg(long)]
    insecure: bool,
    /// `sqlite:FILE` or `postgres://…`, in place of the configuration's.
    #[arg(long, env = "DATABASE_URL")]
    database: Option<String>,
}

/// Runs it until it is told to stop.
///
/// # Errors
/// It cannot start.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info,sqlx=warn".into());
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(colours).with_target(false).init();
    let mut config = match &args.config {
        Some(path) => Config::read(path)?,
        None => demo_config()?,
    };
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (stop_in, stop) = watch::channel(false);
        let server = start(config, args.database.clone(), args.insecure, stop).await?;
        eprintln!("pilotlight listens on {} (API reference at /docs); end it with Ctrl-C", server.url);
        ended().await;
        eprintln!("ending: open requests finish, nothing is released");
        let _ = stop_in.send(true);
        server.end().await;
        Ok(())
    })
}

/// Ctrl-C or SIGTERM.
async fn ended() {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let terminated = async {
        match &mut term {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
}
