//! `pilotlight-agent run`: the daemon on a host. It registers, watches, runs the gate when it is told to, mends, and reports.
//!
//! One thread decides. Calls of the control plane, and work that takes time, are made by others that send their results; so
//! nothing here waits, and a control plane that is away for hours, or says nonsense, stops neither the watching nor a
//! workload. What is done on the host is done by subsystems, each with its own orders and its own things to say; they
//! are health, staging and restores.

mod client;
mod clock;
mod config;
mod health;
mod link;
mod options;
mod repair;
mod staging;
mod starts;
mod state;
mod tasks;
mod watch;

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::health::condition::What;
use anyhow::Context;
use protocol::agent::Work;

use crate::worker::Worker;
use client::Client;
use clock::{now, now_ms};
use config::Config;
use health::{Health, Stand};
use link::{Link, Word};
pub use options::{Ground, Options};
use repair::Tools;
use staging::Staging;
use starts::Starts;
use state::{State, Store};
use tasks::Done;
use watch::{Watcher, observe};

/// The kernel log is read this often; it costs next to nothing when nothing is said.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// The state is stored this often at most, if nothing important changed.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// What other threads tell the one that decides.
#[derive(Debug)]
enum Message {
    /// From the control plane.
    Link(Word),
    /// Work of the health subsystem is done.
    Health(Box<Done>),
}

struct Daemon {
    options: Options,
    config: Config,
    ground: Ground,
    store: Store,
    stored_at: Option<Instant>,
    state: State,
    link: Link,
    messages: Receiver<Message>,
    health: Health,
    staging: Option<Staging>,
    starts: Starts,
}

/// Runs until the process ends.
///
/// # Errors
/// The configuration does not read, or the state's folder cannot be made: what happens later is dealt with.
pub fn run(options: &Options, ground: Ground) -> anyhow::Result<()> {
    let config = Config::read(&options.config)?;
    let store = Store::in_folder(&options.state)?;
    let boot = match &ground.boot {
        Some(boot) => boot.clone(),
        None => {
            let path = "/proc/sys/kernel/random/boot_id";
            std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned()
        }
    };
    let mut state = store.read();
    if state.boot != boot {
        // The log begins anew, and so do the numbers. What was wrong stays until its rule ends it.
        let kept = State { token: state.token, host: state.host, uuids: state.uuids, ..State::default() };
        state = State { boot: boot.clone(), repair_begun: state.repair_begun, ..kept };
        observe(&mut state, &config.policy, What::Booted, now_ms());
    }
    let (sender, messages) = sync_channel(64);
    let client = Client::new(&config)?;
    let token = Arc::new(Mutex::new(None));
    let keys = config.join.staging.as_ref().map(staging::keys).transpose().unwrap_or_else(|error| {
        tracing::error!("sealed stores are closed to this host: {error:#}");
        None
    });
    let keys = keys.unwrap_or_default();
    let (share, shared) = std::sync::mpsc::channel();
    let (line, of_host) = (|| (client.clone(), Arc::clone(&token)), || (boot.clone(), ground.patience));
    let part = config.join.staging.clone();
    let shared = part.is_some().then_some(shared);
    let staging = part.map(|part| Staging::start(part, keys.clone(), line(), of_host(), share));
    let starts = Starts::start(config.join.restore.clone(), keys, shared, line(), of_host());
    let words = sender.clone();
    let tell = Arc::new(move |word| words.send(Message::Link(word)).is_ok());
    let link = Link::start(client, config.join.secret.clone(), token, tell, ground.patience);
    let watcher = Watcher::new(&options.kernel_log, Worker::new(ground.program.clone()), &state);
    let tools = ground.tools.clone().map_or_else(Tools::default, |t| Tools {
        reset: t.iter().cloned().chain(["reset".into()]).collect(),
        reboot: t.iter().cloned().chain(["reboot".into()]).collect(),
        stops_persistence: false,
    });
    // The daemon is there as long as the process.
    let over = Arc::new(move |done| drop(sender.send(Message::Health(Box::new(done)))));
    let health = Health::new(watcher, tools, over);
    let (options, stored_at) = (options.clone(), None);
    let daemon = Daemon { options, config, ground, store, stored_at, state, link, messages, health, staging, starts };
    daemon.decide()
}

/// What a configuration says, for people.
///
/// # Errors
/// It does not read.
pub fn describe(config: &std::path::Path) -> anyhow::Result<String> {
    let config = Config::read(config)?;
    Ok(format!("{} joins {}", config.instance, config.join.url))
}

impl Daemon {
    fn decide(mut self) -> anyhow::Result<()> {
        tracing::info!(instance = self.config.instance, boot = self.state.boot, "the agent runs");
        let patience = self.ground.patience;
        let mut heard_at: Option<Instant> = None;
        let on = Stand { options: &self.options, config: &self.config, ground: &self.ground };
        self.link.gpus = self.health.count_gpus(on, &mut self.state);
        loop {
            let on = Stand { options: &self.options, config: &self.config, ground: &self.ground };
            let news = self.health.watch(on, &mut self.state);
            let heartbeat = self.link.heartbeat.mul_f64(patience);
            if news || heard_at.is_none_or(|at| at.elapsed() >= heartbeat) {
                heard_at = Some(now());
                self.link.say(self.health.passive(&self.state));
            }
            if self.link.is_free() {
                self.link.changed |= self.health.take_back_stale_pass(&mut self.state);
                self.link.tick(&mut self.state);
            }
            self.keep(news);
            if self.link.registered {
                let on = Stand { options: &self.options, config: &self.config, ground: &self.ground };
                self.health.act(on, &mut self.state, |state| stored(&self.store, state));
            }
            match self.messages.recv_timeout(LOG_EVERY.mul_f64(patience)) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the agent's threads have ended"),
            }
        }
    }

    fn keep(&mut self, news: bool) {
        if news || self.link.changed || self.stored_at.is_none_or(|at| at.elapsed() >= STORE_EVERY) {
            self.link.changed = false;
            self.stored_at = Some(now());
            stored(&self.store, &self.state);
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Link(Word::Desired(desired)) => {
                self.starts.serves(matches!(desired.health.work, Work::Serve));
                if let Some((staging, order)) = self.staging.as_ref().zip(desired.staging) {
                    self.starts.copies(order.copies.clone());
                    staging.order(order);
                }
                if let Some(starts) = desired.starts {
                    self.starts.order(starts);
                }
                self.health.order(desired.health);
            }
            Message::Link(Word::Sent(sent)) => self.link.sent(sent, &mut self.state),
            Message::Health(done) => {
                let on = Stand { options: &self.options, config: &self.config, ground: &self.ground };
                self.health.done(on, &mut self.state, *done, |state| stored(&self.store, state));
            }
        }
    }
}

fn stored(store: &Store, state: &State) {
    if let Err(error) = store.write(state) {
        tracing::error!("{error:#}; free some space: what is wrong with this host is only in memory");
    }
}
