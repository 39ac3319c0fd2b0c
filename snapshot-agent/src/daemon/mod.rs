//! `pilotlight-agent run`: the daemon on a host. It registers, watches, runs the gate when it is told to, mends, and reports.
//!
//! One thread decides. Calls of the control plane, and work that takes time, are made by others that send their results; so
//! nothing here waits, and a control plane that is away for hours, or says nonsense, stops neither the watching nor a
//! workload.

mod client;
mod config;
mod link;
mod repair;
mod state;
mod tasks;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use health::Verdict;
use health::condition::{Change, What};
use health::gate::Learned;
use health::policy::{ClearRule, Effect};
use protocol::agent::{self, Desired, Work};

use crate::diagnose::Tests;
use crate::host::Host;
use crate::worker::{Program, Worker};
use client::Client;
use config::Config;
use link::{Link, Sent, Subject};
use repair::Tools;
use state::{State, Store, UnreportedDiagnosis, UnreportedGate};
use tasks::{Done, Task};
use watch::{Watcher, observe};

/// The kernel log is read this often; it costs next to nothing when nothing is said.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// The driver is asked this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The state is stored this often at most, if nothing important changed.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// Work that could not be done since workloads run is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);

/// Options of the daemon.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How to join: url and secret, from the instance's user data.
    #[arg(long, value_name = "FILE", default_value = "/etc/pilotlight/join.toml")]
    pub config: PathBuf,
    /// What outlives the process.
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/pilotlight-agent")]
    pub state: PathBuf,
    /// The kernel's log.
    #[arg(long, value_name = "FILE", default_value = "/dev/kmsg")]
    pub kernel_log: PathBuf,
}

/// What tests put in place of the host's own.
#[derive(Debug, Clone)]
pub struct Ground {
    /// How to start a probe.
    pub program: Program,
    /// The host's folders.
    pub host: Host,
    /// What deadlines and pauses are multiplied by.
    pub patience: f64,
    /// How the host is mended; none: by the system's own tools.
    pub tools: Option<Vec<String>>,
    /// The boot's name; none: the kernel's.
    pub boot: Option<String>,
}

/// What others tell the thread that decides.
#[derive(Debug)]
enum Message {
    /// What to do.
    Desired(Desired),
    /// What became of a call.
    Sent(Sent),
    /// Work is done.
    Done(Box<Done>),
}

struct Daemon {
    options: Options,
    config: Config,
    ground: Ground,
    store: Store,
    stored_at: Option<Instant>,
    state: State,
    watcher: Watcher,
    link: Link,
    messages: Receiver<Message>,
    sender: SyncSender<Message>,
    desired: Option<Desired>,
    /// The version of the desired state that was acted on.
    acted_on: Option<i64>,
    /// Work that is under way, and which gate it ends with.
    busy: bool,
    /// Diagnostics that run: the version of the desired state that they are for, and what stops them.
    diagnosing: Option<(i64, Arc<AtomicBool>)>,
    /// Work that could not be done yet is tried again then.
    not_before: Option<Instant>,
    tools: Tools,
}

#[allow(clippy::disallowed_methods, reason = "the daemon's clock")]
fn now() -> Instant {
    Instant::now()
}

#[allow(clippy::disallowed_methods, reason = "the daemon's clock")]
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
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
    let link = Link::start(client, config.join.secret.clone(), sender.clone(), ground.patience);
    let watcher = Watcher::new(&options.kernel_log, Worker::new(ground.program.clone()), &state);
    let tools = ground.tools.clone().map_or_else(Tools::default, |t| Tools {
        reset: t.iter().cloned().chain(["reset".into()]).collect(),
        reboot: t.iter().cloned().chain(["reboot".into()]).collect(),
        stops_persistence: false,
    });
    let daemon = Daemon {
        options: options.clone(),
        config,
        ground,
        store,
        stored_at: None,
        state,
        watcher,
        link,
        messages,
        sender,
        desired: None,
        acted_on: None,
        busy: false,
        diagnosing: None,
        not_before: None,
        tools,
    };
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
        let gpus = self.count_gpus();
        self.link.gpus = gpus;
        let patience = self.ground.patience;
        let (mut looked_at, mut heard_at): (Option<Instant>, Option<Instant>) = (None, None);
        let due = |at: Option<Instant>, every: Duration| at.is_none_or(|at| at.elapsed() >= every.mul_f64(patience));
        loop {
            let mut changes = self.watcher.read_log(&mut self.state, &self.config.policy, now_ms());
            if due(looked_at, LOOK_EVERY) && !self.busy {
                looked_at = Some(now());
                changes.extend(self.watcher.look(&mut self.state, &self.config.policy, &self.config.limits, now_ms()));
            }
            let news = !changes.is_empty();
            changes.iter().for_each(log);
            if news || due(heard_at, self.link.heartbeat) {
                heard_at = Some(now());
                self.report();
            }
            self.link.tick(&mut self.state);
            if std::mem::take(&mut self.link.stale_gate) {
                tracing::info!("what the gate said is out of date; it runs again if it is still wanted");
                self.acted_on = None;
            }
            self.keep(news);
            self.act();
            match self.messages.recv_timeout(LOG_EVERY.mul_f64(patience)) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the agent's threads have ended"),
            }
        }
    }

    /// GPUs that are there: those of the bus where the driver does not see all, so that the gate says what is wrong.
    fn count_gpus(&mut self) -> u32 {
        let seen = self.survey();
        let on_bus = self.ground.host.on_bus().map_or(0, |g| g.len());
        u32::try_from(seen.max(on_bus)).unwrap_or(u32::MAX)
    }

    /// Asks which GPUs are there. Another one in the place of one that was broken is a new one.
    fn survey(&mut self) -> usize {
        let found = match self.watcher.survey() {
            Ok(found) => found,
            Err(why) => {
                tracing::warn!(%why, "the driver does not answer");
                return 0;
            }
        };
        for (gpu, uuid) in &found {
            let Some(uuid) = uuid else { continue };
            let before = self.state.uuids.insert(gpu.to_string(), uuid.clone());
            if before.is_some_and(|b| b != *uuid) {
                let replaced = What::Replaced { gpu: Some(*gpu) };
                observe(&mut self.state, &self.config.policy, replaced, now_ms()).iter().for_each(log);
            }
        }
        found.len()
    }

    /// Hands all that is wrong to the link.
    fn report(&mut self) {
        let verdict = self.verdict();
        let reason = self.watcher.unseen.first().cloned().unwrap_or_default();
        let conditions = self.state.host.conditions().cloned().collect();
        self.link.say(Subject::Passive { verdict, reason, conditions });
    }

    fn verdict(&self) -> Verdict {
        let worst = self.state.host.standing().effect;
        match worst {
            Some(Effect::DrainReset | Effect::DrainReboot | Effect::Quarantine) => Verdict::Fail,
            _ if !self.watcher.unseen.is_empty() => Verdict::Unmeasured,
            Some(Effect::Recheck | Effect::ResetAtIdle) => Verdict::Degraded,
            Some(Effect::Record) | None => Verdict::Pass,
        }
    }

    fn keep(&mut self, news: bool) {
        if news || self.link.changed || self.stored_at.is_none_or(|at| at.elapsed() >= STORE_EVERY) {
            self.link.changed = false;
            self.stored_at = Some(now());
            if let Err(error) = self.store.write(&self.state) {
                tracing::error!("{error:#}; free some space: what is wrong with this host is only in memory");
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Desired(desired) => {
                if self.desired.as_ref() != Some(&desired) {
                    tracing::info!(work = desired.health.name(), "desired");
                }
                if let Some((version, stop)) = &self.diagnosing
                    && (!matches!(desired.health, Work::Diagnose { .. }) || desired.version != *version)
                {
                    stop.store(true, Ordering::Relaxed);
                }
                self.desired = Some(desired);
            }
            Message::Sent(sent) => self.link.sent(sent, &mut self.state),
            Message::Done(done) => self.done(*done),
        }
    }

    /// Begins what is desired, once for each version of it.
    fn act(&mut self) {
        let waits = !self.link.registered || self.busy || self.not_before.is_some_and(|at| now() < at);
        let Some(desired) = self.desired.clone().filter(|d| !waits && self.acted_on != Some(d.version)) else {
            return;
        };
        self.acted_on = Some(desired.version);
        if self.state.unreported.as_ref().is_some_and(|g| g.said.version.is_some_and(|v| v != desired.version)) {
            // Something else is wanted by now: it is no answer to that.
            self.state.unreported = None;
        }
        let told = self.state.undiagnosed.as_ref().is_some_and(|d| d.version == Some(desired.version));
        let repairs = matches!(desired.health, Work::Reset | Work::Reboot);
        // It is done, and about to be told; or was begun before a restart.
        let gated = desired.health.ends_with_gate() && self.state.unreported.is_some();
        if gated || (repairs && self.state.repair_begun == Some(desired.version)) {
            return;
        }
        let task = match &desired.health {
            Work::Diagnose { .. } if told => return,
            Work::Gate { scope, .. } => Task::Gate(*scope),
            Work::Diagnose { tests } => self.diagnosis(tests, desired.version),
            Work::Reboot => Task::Reboot,
            Work::Reset => Task::Reset(self.to_reset()),
            Work::Serve | Work::Drain | Work::Hold | Work::End => return,
        };
        tracing::info!(?task, "begins");
        if repairs {
            // Written down before it is done: a reboot takes the memory of it away.
            self.state.repair_begun = Some(desired.version);
            self.keep(true);
        }
        self.busy = true;
        self.watcher.let_go();
        tasks::start(self.gate_run(), task, self.tools.clone(), self.sender.clone());
    }

    fn diagnosis(&mut self, tests: &str, version: i64) -> Task {
        let stop = Arc::new(AtomicBool::new(false));
        self.diagnosing = Some((version, Arc::clone(&stop)));
        let join = &self.config.join;
        Task::Diagnose(Box::new(tasks::DiagnoseWith {
            dcgmi: join.dcgmi.clone().unwrap_or_else(|| "dcgmi".into()),
            tests: Tests::named(tests),
            not_applicable: join.not_applicable.clone(),
            stop,
        }))
    }

    fn gate_run(&self) -> tasks::GateRun {
        let learned = match self.desired.as_ref().map(|d| &d.health) {
            Some(Work::Gate { learned, .. }) => learned.clone(),
            _ => Default::default(),
        };
        tasks::GateRun {
            expected: self.config.expected.clone(),
            program: self.ground.program.clone(),
            host: self.ground.host.clone(),
            patience: self.ground.patience,
            limits: self.config.limits.clone().with_learned(Learned { medians: learned }),
            policy: self.config.policy.clone(),
            kernel_log: self.options.kernel_log.clone(),
            log_next: self.state.gate_log_next,
            event_seq: self.state.event_seq,
            evidence: self.options.state.clone(),
        }
    }

    /// GPUs that wait for a reset; all, where none is named.
    fn to_reset(&self) -> Vec<health::kernel_log::PciAddress> {
        let waits = |c: &&health::condition::Condition| !c.shadow && c.clear == ClearRule::AfterReset;
        let mut named: Vec<_> = self.state.host.conditions().filter(waits).filter_map(|c| c.gpu).collect();
        named.sort();
        named.dedup();
        if named.is_empty() {
            self.ground.host.on_bus().unwrap_or_default().into_iter().map(|(a, _)| a).collect()
        } else {
            named
        }
    }

    fn done(&mut self, done: Done) {
        self.busy = false;
        self.diagnosing = None;
        if let Some(why) = done.busy {
            tracing::warn!("{why}; it is tried again");
            (self.acted_on, self.state.repair_begun) = (None, None);
            self.not_before = Some(now() + AGAIN.mul_f64(self.ground.patience));
            return;
        }
        for gpu in &done.reset {
            observe(&mut self.state, &self.config.policy, What::Reset { gpu: *gpu }, now_ms()).iter().for_each(log);
        }
        if let Some(next) = done.log_mended_at {
            self.state.gate_log_next = next;
        }
        if let Some(diagnosis) = done.diagnosis {
            let diagnosis = UnreportedDiagnosis { version: self.acted_on, ..diagnosis };
            tracing::info!(
                tests = diagnosis.said.tests,
                verdict = diagnosis.verdict.name(),
                remedy = diagnosis.said.remedy.name(),
                reason = diagnosis.reason,
                "diagnostics have ended"
            );
            self.state.undiagnosed = Some(diagnosis);
            self.keep(true);
        }
        let Some(gate) = done.gate else { return };
        tracing::info!(
            verdict = gate.verdict.name(),
            mend = gate.mend.name(),
            reason = gate.reason,
            "the gate has run"
        );
        if gate.verdict == Verdict::Pass {
            let passed = What::GatePassed { gpu: None, after_seq: gate.after_seq };
            observe(&mut self.state, &self.config.policy, passed, now_ms()).iter().for_each(log);
            self.state.gate_log_next = gate.log_next;
        }
        // A reset may have changed what is there.
        self.survey();
        let identity = agent::Identity {
            serials: gate.serials,
            driver: gate.driver,
            image: self.config.join.image.clone(),
            domain: self.config.join.domain.clone().or(gate.nvlink_domain),
        };
        let said = agent::Gate {
            mend: Some(gate.mend),
            failed_check: gate.failed_check,
            rates: gate.rates,
            version: self.acted_on,
            identity,
            evidence: gate.evidence,
        };
        let (verdict, reason, at_ms) = (gate.verdict, gate.reason, now_ms());
        self.state.unreported = Some(UnreportedGate { said, verdict, reason, at_ms, seq: None });
        self.keep(true);
    }
}

fn log(change: &Change) {
    let (what, c) = match change {
        Change::Raised(c) => ("raised", c),
        Change::Worsened(c) => ("worse", c),
        Change::Cleared(c) => ("ended", c),
    };
    let gpu = c.gpu.map(|g| g.to_string());
    tracing::warn!(cause = %c.cause, gpu, effect = c.effect.name(), shadow = c.shadow, text = c.text, "{what}");
}
