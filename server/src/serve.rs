//! Starts the control plane: the store, the state that API and loops share, the clouds, the loops, the listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use control::sampler;
use providers::{Clock, SimProvider};
use tokio::sync::{Notify, watch};

use crate::api::{self, Feed, Listener, Tls};
use crate::app::App;
use crate::board::Board;
use crate::config::{Config, DemoPart};
use crate::loops::{self, Cloud, Context};
use crate::metrics::Metrics;
use crate::pacing::Rates;
use crate::store::{DocumentKey, Ledger, Named, Options, Paused, Store, StoreError, Write, text_of};
use crate::tokens::{Tokens, new_secret};
use crate::{clouds, demo, errors};

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub url: String,
    /// Its state.
    pub app: Arc<App>,
    /// Ends when the server has answered what was open.
    pub serving: tokio::task::JoinHandle<()>,
    /// Ends when it has given up the lead.
    pub leading: tokio::task::JoinHandle<()>,
}

/// Everything but the port: what a socket, or a test on virtual time, speaks to.
#[derive(Debug)]
pub struct Assembled {
    /// What the loops work with.
    pub context: Context,
    /// The API.
    pub router: axum::Router,
    /// Simulated clouds, for whoever plays their hosts.
    pub sims: Vec<Arc<SimProvider>>,
}

/// Who may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Whoever has a token.
    Tokens,
    /// Everybody is an operator while no token was ever made.
    OpenWithoutTokens,
}

impl Server {
    /// After `stop` was told: waits until open requests are answered and the lead is given up, and leaves the database in one
    /// file.
    pub async fn end(self) {
        // A panic of theirs has been logged.
        self.serving.await.ok();
        tokio::time::timeout(END_TIMEOUT, self.leading).await.ok();
        if let Ok(Err(error)) = tokio::time::timeout(END_TIMEOUT, self.app.store.checkpoint()).await {
            tracing::warn!(error = errors::chain_of(&error), "the database's log stays beside it");
        }
    }
}

/// What is done at the end takes no longer.
const END_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// Puts a control plane together on a store, by a clock.
///
/// # Errors
/// The store cannot be used, or the configuration makes no sense.
pub async fn assemble(
    config: &Config,
    store: Store,
    clock: Clock,
    door: Door,
    holder: &str,
) -> anyhow::Result<Assembled> {
    let metrics = Arc::new(Metrics::default());
    let counted = Arc::clone(&metrics);
    let options = Options {
        limits: config.limits,
        clock: clock.clone(),
        ticks: true,
        on_breach: Arc::new(move |breach| counted.breached(breach)),
    };
    let ledger = Ledger::start(&store, options).await?;
    for spec in &config.class {
        seed(&store, &ledger, &spec.name, &spec.rule_of_server()?).await?;
    }
    for (name, spec) in &config.snapshot {
        let snapshot = spec.snapshot(name).map_err(|what| anyhow::anyhow!(what))?;
        seed(&store, &ledger, name, &snapshot).await?;
    }
    if let Some(part) = &config.demo
        && store.demand(0).await?.is_empty()
    {
        let names = config.class.iter().map(|c| c.name.as_str()).collect::<Vec<_>>();
        ledger.record(Write::Demand(demo::past(part, &names, clock.now_ms())), None).await?;
        let hours = demo::PAST_STEPS * i64::from(sampler::STEP_S) / 3600;
        tracing::info!("demo: {hours} hours of past demand were made up, so that the planner has something to go by");
    }
    let Paused(paused) = store.single_or_default().await?;
    let board = Board::default();
    board.set_paused(paused);
    let (clouds, sims) = clouds::open(config, &clock).await?;
    let providers: Vec<String> = clouds.iter().map(|cloud| cloud.name().to_owned()).collect();
    if let Some(quota) = config.budget.of_nobody(&providers) {
        tracing::warn!(quota, "a quota is for a provider that is not configured: it limits nothing");
    }
    let clouds = clouds.into_iter().map(|cloud| Cloud::new(cloud, &clock)).collect();
    let app = Arc::new(App {
        join_key: join_key(&store, &ledger).await?,
        clock: clock.clone(),
        store: store.clone(),
        ledger: ledger.clone(),
        metrics,
        tokens: Tokens::default(),
        rates: Rates::new(config.requests_per_s_max, clock),
        admission: Arc::default(),
        feed: Feed::new(store.clone(), ledger.clone()),
        providers,
        advertised_host: config.advertised_host(),
        board,
        planner: Notify::new(),
        configured_budget: config.budget.clone(),
        probed: tokio::sync::Mutex::default(),
        woken_for_misses: parking_lot::Mutex::default(),
        on_loopback: config.listen.ip().is_loopback(),
        ready: AtomicBool::new(false),
    });
    read_tokens(&app, door).await?;
    let context = Context {
        app: Arc::clone(&app),
        clouds: Arc::new(clouds),
        planning: Arc::new(config.planning.clone()),
        diagnostics: Arc::new(config.diagnostics.clone()),
        holder: holder.into(),
    };
    Ok(Assembled { context, router: api::router(app), sims })
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
    let store = Store::open(&config.database_url(database)).await?;
    let tls = match &config.tls {
        Some(part) => Some(Tls::read(&config.folder.join(&part.certificate), &config.folder.join(&part.key))?),
        None => None,
    };
    let tokens = store.tokens().await?;
    if !config.listen.ip().is_loopback() && !insecure && (tokens.is_empty() || tls.is_none()) {
        bail!(
            "{} is open to other machines: make a token ('pilotlight token new NAME operator') and set [tls], or say --insecure",
            config.listen
        );
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let listener = Listener::bind(config.listen, tls).await?;
    let address = listener.address()?;
    let clock = Clock::system();
    let holder = format!("{}-{address}-{}", std::process::id(), clock.now_ms());
    let open = config.listen.ip().is_loopback() || insecure;
    let door = if open { Door::OpenWithoutTokens } else { Door::Tokens };
    let Assembled { context, router, sims } = assemble(&config, store, clock, door, &holder).await?;
    let app = Arc::clone(&context.app);
    app.ready.store(true, Ordering::Release);
    let serving = tokio::spawn(api::serve(listener, router.clone(), stop.clone()));
    let leading = loops::start(&context, &stop);
    tokio::spawn(refresh_tokens(Arc::clone(&app), door, stop.clone()));
    if !sims.is_empty() {
        demo::play_hosts(router.clone(), sims, app.clock.clone(), demo::Habits::default(), stop.clone());
    }
    if let Some(part) = config.demo {
        let classes = config.class.iter().map(|c| c.name.clone()).collect();
        demo::play_clients(router, part, classes, stop);
    }
    Ok(Server { url: format!("{scheme}://{address}"), app, serving, leading })
}

/// Reads who may come in.
async fn read_tokens(app: &App, door: Door) -> Result<(), StoreError> {
    let (rows, made) = (app.store.tokens().await?, app.store.any_token_was_made().await?);
    // Open to all only until the first token is made, and never again.
    app.tokens.set(&rows, door == Door::OpenWithoutTokens && !made);
    Ok(())
}

/// Tokens are read again this often.
const TOKENS_EVERY: std::time::Duration = std::time::Duration::from_secs(2);

/// Tokens are made and revoked by the command line, on any replica: they are read again every few seconds.
async fn refresh_tokens(app: Arc<App>, door: Door, mut stop: watch::Receiver<bool>) {
    let fails = errors::Seldom::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(TOKENS_EVERY) => {}
            _ = stop.wait_for(|s| *s) => return,
        }
        if let Err(error) = read_tokens(&app, door).await {
            let error = errors::chain_of(&error);
            if let Some(held_back) = fails.now(&error) {
                tracing::warn!(error, held_back, "cannot read the tokens");
            }
        }
    }
}

/// Writes down what the configuration has, where there is none of that name: what operators edited stays.
async fn seed<T: Named>(store: &Store, ledger: &Ledger, name: &str, record: &T) -> anyhow::Result<()> {
    if store.named::<T>(name).await?.is_some() {
        return Ok(());
    }
    let body = text_of(record, "documents")?;
    // Another replica may be faster, with the same.
    drop(ledger.edit(T::KIND.key(name.to_owned()), body, Some(0), None).await?);
    Ok(())
}

async fn join_key(store: &Store, ledger: &Ledger) -> anyhow::Result<Arc<str>> {
    if let Some(key) = store.text(&DocumentKey::JoinKey).await? {
        return Ok(key.into());
    }
    let key = new_secret().context("the system has no randomness")?;
    // Another replica may be faster: whatever is there then is the key.
    drop(ledger.edit(DocumentKey::JoinKey, key, Some(0), None).await?);
    let key = store.text(&DocumentKey::JoinKey).await?;
    Ok(key.context("the join key was not written")?.into())
}

/// What runs without a configuration: simulated clouds, twenty times as fast as real ones.
///
/// # Errors
/// The built-in configuration makes no sense: a bug.
pub fn demo_config() -> anyhow::Result<Config> {
    let mut config: Config = toml::from_str(include_str!("serve_demo.toml")).context("the built-in demo")?;
    config.demo = Some(DemoPart { claims_per_min: 30.0, claim_mean_s: 60.0 });
    config.check()?;
    Ok(config)
}
