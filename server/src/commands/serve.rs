//! `pilotlight serve`: the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use tokio::sync::{Notify, watch};

use crate::api::{self, App, Listener, Metrics, Rates, Tls, Tokens};
use crate::config::{ClassSpec, Config, DemoPart};
use crate::loops::{self, Board, Cloud, Context};
use crate::store::{Document, Ledger, Store, write_demand, write_document, write_new_document};
use crate::{clock, clouds, demo, output};

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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
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
        let _ = server.serving.await;
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

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub url: String,
    /// Its state.
    pub app: Arc<App>,
    /// Ends when the server has.
    pub serving: tokio::task::JoinHandle<()>,
}

/// Starts everything.
///
/// # Errors
/// The database, the certificate or the port cannot be used, or the configuration makes no sense.
pub async fn start(
    config: Config,
    database: Option<String>,
    insecure: bool,
    stop: watch::Receiver<bool>,
) -> anyhow::Result<Server> {
    let url = config.database_url(database);
    let store = Store::open(&url).await?;
    let ledger = Ledger::start(&store, config.limits).await?;
    for spec in &config.class {
        seed_class(&store, &ledger, spec).await?;
    }
    if let Some(part) = &config.demo
        && store.demand(0).await?.is_empty()
    {
        let names = config.class.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
        write_demand(&ledger, demo::past(part, &names, clock::now_ms()), None).await?;
        tracing::info!("demo: two hours of past demand were made up, so that the planner has something to go by");
    }
    let tokens = Tokens::default();
    let rows = store.tokens().await?;
    let tls = match &config.tls {
        Some(part) => Some(Tls::read(&config.folder.join(&part.certificate), &config.folder.join(&part.key))?),
        None => None,
    };
    if !config.listen.ip().is_loopback() && !insecure && (rows.is_empty() || tls.is_none()) {
        bail!(
            "{} is open to other machines: make a token ('pilotlight token new NAME operator') and set [tls], or say --insecure",
            config.listen
        );
    }
    let open = config.listen.ip().is_loopback() || insecure;
    tokens.set(&rows, open && !store.any_token_was_made().await?);
    let paused = store.document("switch", "paused").await?.is_some_and(|d| d.body == "true");
    let board = Board::default();
    board.set_paused(paused);
    let app = Arc::new(App {
        join_key: join_key(&store, &ledger).await?,
        store,
        ledger,
        metrics: Metrics::default(),
        tokens,
        rates: Rates::new(config.requests_per_s_max),
        loops: board,
        planner: Notify::new(),
        configured_budget: config.budget.clone(),
        ready: AtomicBool::new(false),
    });
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener = Listener::bind(config.listen, tls).await?;
    let address = listener.address()?;
    let (clouds, sims) = clouds::open(&config).await?;
    let router = api::router(Arc::clone(&app));
    let context = Context {
        app: Arc::clone(&app),
        clouds: Arc::new(clouds.into_iter().map(Cloud::new).collect()),
        planning: Arc::new(config.planning.clone()),
        diagnostics: Arc::new(config.diagnostics.clone()),
        holder: format!("{}-{address}-{}", std::process::id(), clock::now_ms()).into(),
    };
    app.ready.store(true, Ordering::Release);
    let serving = tokio::spawn(api::serve(listener, router.clone(), stop.clone()));
    loops::start(&context, &stop);
    tokio::spawn(refresh_tokens(Arc::clone(&app), open, stop.clone()));
    if !sims.is_empty() {
        demo::play_hosts(router.clone(), sims, stop.clone());
    }
    if let Some(part) = config.demo {
        let classes = config.class.iter().map(|c| c.name.clone()).collect();
        demo::play_clients(router, part, classes, stop);
    }
    Ok(Server { url: format!("{scheme}://{address}"), app, serving })
}

/// Tokens are made and revoked by the command line, on any replica: they are read again every few seconds.
async fn refresh_tokens(app: Arc<App>, open: bool, mut stop: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(std::time::Duration::from_secs(5)) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
        let read = async {
            Ok::<_, crate::store::StoreError>((app.store.tokens().await?, app.store.any_token_was_made().await?))
        };
        match read.await {
            // Open to all only until the first token is made, and never again.
            Ok((rows, made)) => app.tokens.set(&rows, open && !made),
            Err(error) => tracing::warn!(error = %output::chain_of(&error), "cannot read the tokens"),
        }
    }
}

async fn seed_class(store: &Store, ledger: &Ledger, spec: &ClassSpec) -> anyhow::Result<()> {
    if store.document("class", &spec.name).await?.is_some() {
        // What operators edited stays.
        return Ok(());
    }
    let body = serde_json::to_string(&spec.rule()?)?;
    let document = Document { kind: "class".into(), name: spec.name.clone(), version: 0, body };
    write_document(ledger, document, None).await?;
    Ok(())
}

async fn join_key(store: &Store, ledger: &Ledger) -> anyhow::Result<Arc<str>> {
    if let Some(document) = store.document("secret", "join").await? {
        return Ok(document.body.into());
    }
    let body = api::new_secret().context("the system has no randomness")?;
    let document = Document { kind: "secret".into(), name: "join".into(), version: 0, body };
    // Another replica may be faster: whatever is there then is the key.
    write_new_document(ledger, document).await?;
    let document = store.document("secret", "join").await?;
    Ok(document.context("the join key was not written")?.body.into())
}

/// What runs without a configuration: simulated clouds, twenty times as fast as real ones.
fn demo_config() -> anyhow::Result<Config> {
    let mut config: Config = toml::from_str(include_str!("serve_demo.toml")).context("the built-in demo")?;
    config.demo = Some(DemoPart { claims_per_min: 30.0, claim_mean_s: 60.0 });
    config.check()?;
    Ok(config)
}
