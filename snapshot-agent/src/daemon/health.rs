//! The health subsystem: it watches the host, does what is ordered of it (gates, diagnostics, repairs), and has something to
//! say. The daemon carries it, as it would carry another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use health::Verdict;
use health::condition::{Change, Condition, What};
use health::gate::Learned;
use health::kernel_log::PciAddress;
use health::policy::{ClearRule, Effect};
use protocol::agent::{self, HealthOrder, Work};

use super::clock::{now, now_ms};
use super::config::Config;
use super::options::{Ground, Options};
use super::repair::Tools;
use super::state::{State, UnreportedDiagnosis, UnreportedGate};
use super::tasks::{self, Done, Task};
use super::watch::{Watcher, observe};
use crate::diagnose::Tests;

/// The driver is asked this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Work that could not be done since workloads run is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// A pass of the gate that is older is not told any more, milliseconds.
const PASS_LIFE_MS: i64 = 120_000;

/// What health has to say.
#[derive(Debug, Clone)]
pub enum HealthSubject {
    /// All that is wrong now.
    Passive {
        /// In a word.
        verdict: Verdict,
        /// What could not be seen.
        reason: String,
        /// Every condition that holds now.
        conditions: Vec<Condition>,
    },
    /// What the gate said.
    Gate(Box<UnreportedGate>),
    /// What diagnostics said.
    Diagnosis(Box<UnreportedDiagnosis>),
}

/// What it stands on: how the daemon was started, and what the host is.
#[derive(Debug, Clone, Copy)]
pub struct Stand<'a> {
    /// Options of the command.
    pub options: &'a Options,
    /// The configuration.
    pub config: &'a Config,
    /// What tests put in the host's place.
    pub ground: &'a Ground,
}

/// Told when work is done.
pub type Over = Arc<dyn Fn(Done) + Send + Sync>;

/// The subsystem.
pub struct Health {
    watcher: Watcher,
    tools: Tools,
    over: Over,
    looked_at: Option<Instant>,
    order: Option<HealthOrder>,
    /// The version of the order that was acted on.
    acted_on: Option<i64>,
    /// Work is under way.
    busy: bool,
    /// Diagnostics that run: the version of the order that they are for, and what stops them.
    diagnosing: Option<(i64, Arc<AtomicBool>)>,
    /// Work that could not be done yet is tried again then.
    not_before: Option<Instant>,
}

impl Health {
    /// Has done nothing yet.
    pub fn new(watcher: Watcher, tools: Tools, over: Over) -> Self {
        Self {
            watcher,
            tools,
            over,
            looked_at: None,
            order: None,
            acted_on: None,
            busy: false,
            diagnosing: None,
            not_before: None,
        }
    }

    /// GPUs that are there: those of the bus where the driver does not see all, so that the gate says what is wrong.
    pub fn count_gpus(&mut self, on: Stand<'_>, state: &mut State) -> u32 {
        let seen = self.survey(on, state);
        let on_bus = on.ground.host.on_bus().map_or(0, |g| g.len());
        u32::try_from(seen.max(on_bus)).unwrap_or(u32::MAX)
    }

    /// Asks which GPUs are there. Another one in the place of one that was broken is a new one.
    fn survey(&mut self, on: Stand<'_>, state: &mut State) -> usize {
        let found = match self.watcher.survey() {
            Ok(found) => found,
            Err(why) => {
                tracing::warn!(%why, "the driver does not answer");
                return 0;
            }
        };
        for (gpu, uuid) in &found {
            let Some(uuid) = uuid else { continue };
            let before = state.uuids.insert(gpu.to_string(), uuid.clone());
            if before.is_some_and(|b| b != *uuid) {
                let replaced = What::Replaced { gpu: Some(*gpu) };
                observe(state, &on.config.policy, replaced, now_ms()).iter().for_each(log);
            }
        }
        found.len()
    }

    /// Reads the log, and looks at the GPUs where it is time. Returns whether anything is new.
    pub fn watch(&mut self, on: Stand<'_>, state: &mut State) -> bool {
        let mut changes = self.watcher.read_log(state, &on.config.policy, now_ms());
        let every = LOOK_EVERY.mul_f64(on.ground.patience);
        if self.looked_at.is_none_or(|at| at.elapsed() >= every) && !self.busy {
            self.looked_at = Some(now());
            changes.extend(self.watcher.look(state, &on.config.policy, &on.config.limits, now_ms()));
        }
        changes.iter().for_each(log);
        !changes.is_empty()
    }

    /// All that is wrong now.
    pub fn passive(&self, state: &State) -> HealthSubject {
        let reason = self.watcher.unseen.first().cloned().unwrap_or_default();
        let conditions = state.host.conditions().cloned().collect();
        HealthSubject::Passive { verdict: self.verdict(state), reason, conditions }
    }

    /// Takes back a pass that is out of date: it proves what was then, not what was found since, nor what an hour may have
    /// done. Returns whether there was one.
    pub fn take_back_stale_pass(&mut self, state: &mut State) -> bool {
        let is_stale = |g: &UnreportedGate| {
            let old = now_ms().saturating_sub(g.at_ms) > PASS_LIFE_MS;
            g.verdict == Verdict::Pass && (old || !state.host.standing().claimable)
        };
        if !state.unreported_gate.as_ref().is_some_and(is_stale) {
            return false;
        }
        tracing::info!("what the gate said is out of date; it runs again if it is still wanted");
        state.unreported_gate = None;
        self.acted_on = None;
        true
    }

    /// Takes an order.
    pub fn order(&mut self, order: HealthOrder) {
        if self.order.as_ref() != Some(&order) {
            tracing::info!(work = order.work.name(), "desired");
        }
        if let Some((version, stop)) = &self.diagnosing
            && (!matches!(order.work, Work::Diagnose { .. }) || order.version != *version)
        {
            stop.store(true, Ordering::Relaxed);
        }
        self.order = Some(order);
    }

    /// Begins what is ordered, once for each version of it. A repair is stored by `keep` before it is
    /// begun: a reboot takes the memory of it away.
    pub fn act(&mut self, on: Stand<'_>, state: &mut State, keep: impl Fn(&State)) {
        let waits = self.busy || self.not_before.is_some_and(|at| now() < at);
        let Some(order) = self.order.clone().filter(|d| !waits && self.acted_on != Some(d.version)) else {
            return;
        };
        self.acted_on = Some(order.version);
        if state.unreported_gate.as_ref().is_some_and(|g| g.said.version.is_some_and(|v| v != order.version)) {
            // Something else is wanted by now: it is no answer to that.
            state.unreported_gate = None;
        }
        let told = state.unreported_diagnosis.as_ref().is_some_and(|d| d.version == Some(order.version));
        let repairs = matches!(order.work, Work::Reset | Work::Reboot);
        // It is done, and about to be told; or was begun before a restart.
        let gated = order.work.ends_with_gate() && state.unreported_gate.is_some();
        if gated || (repairs && state.repair_begun == Some(order.version)) {
            return;
        }
        let task = match &order.work {
            Work::Diagnose { .. } if told => return,
            Work::Gate { scope, .. } => Task::Gate(*scope),
            Work::Diagnose { tests } => self.diagnosis(on, tests, order.version),
            Work::Reboot => Task::Reboot,
            Work::Reset => Task::Reset(to_reset(on, state)),
            Work::Serve | Work::Drain | Work::Hold | Work::End => return,
        };
        tracing::info!(?task, "begins");
        if repairs {
            state.repair_begun = Some(order.version);
            keep(state);
        }
        self.busy = true;
        self.watcher.let_go();
        let not_begun = tasks::start(self.gate_run(on, state), task, self.tools.clone(), Arc::clone(&self.over));
        if let Some(done) = not_begun {
            self.done(on, state, done, keep);
        }
    }

    fn diagnosis(&mut self, on: Stand<'_>, tests: &str, version: i64) -> Task {
        let stop = Arc::new(AtomicBool::new(false));
        self.diagnosing = Some((version, Arc::clone(&stop)));
        let join = &on.config.join;
        Task::Diagnose(Box::new(tasks::DiagnoseWith {
            dcgmi: join.dcgmi.clone().unwrap_or_else(|| "dcgmi".into()),
            tests: Tests::named(tests),
            not_applicable: join.not_applicable.clone(),
            stop,
        }))
    }

    fn gate_run(&self, on: Stand<'_>, state: &State) -> tasks::GateRun {
        let learned = match self.order.as_ref().map(|o| &o.work) {
            Some(Work::Gate { learned, .. }) => learned.clone(),
            _ => Default::default(),
        };
        tasks::GateRun {
            expected: on.config.expected.clone(),
            program: on.ground.program.clone(),
            host: on.ground.host.clone(),
            patience: on.ground.patience,
            limits: on.config.limits.clone().with_learned(Learned { medians: learned }),
            policy: on.config.policy.clone(),
            kernel_log: on.options.kernel_log.clone(),
            log_next: state.gate_log_next,
            event_seq: state.event_seq,
            evidence: on.options.state.clone(),
        }
    }

    fn verdict(&self, state: &State) -> Verdict {
        let worst = state.host.standing().effect;
        match worst {
            Some(Effect::DrainReset | Effect::DrainReboot | Effect::Quarantine) => Verdict::Fail,
            _ if !self.watcher.unseen.is_empty() => Verdict::Unmeasured,
            Some(Effect::Recheck | Effect::ResetAtIdle) => Verdict::Degraded,
            Some(Effect::Record) | None => Verdict::Pass,
        }
    }

    /// Notes what work has ended with. It is stored by `keep` before anything else is asked of the driver.
    pub fn done(&mut self, on: Stand<'_>, state: &mut State, done: Done, keep: impl Fn(&State)) {
        self.busy = false;
        self.diagnosing = None;
        if let Some(why) = done.busy {
            tracing::warn!("{why}; it is tried again");
            (self.acted_on, state.repair_begun) = (None, None);
            self.not_before = Some(now() + AGAIN.mul_f64(on.ground.patience));
            return;
        }
        for gpu in &done.reset {
            observe(state, &on.config.policy, What::Reset { gpu: *gpu }, now_ms()).iter().for_each(log);
        }
        if let Some(next) = done.log_mended_at {
            state.gate_log_next = next;
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
            state.unreported_diagnosis = Some(diagnosis);
            keep(state);
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
            observe(state, &on.config.policy, passed, now_ms()).iter().for_each(log);
            state.gate_log_next = gate.log_next;
        }
        // A reset may have changed what is there.
        self.survey(on, state);
        let identity = agent::Identity {
            serials: gate.serials,
            driver: gate.driver,
            image: on.config.join.image.clone(),
            domain: on.config.join.domain.clone().or(gate.nvlink_domain),
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
        state.unreported_gate = Some(UnreportedGate { said, verdict, reason, at_ms, seq: None });
        keep(state);
    }
}

/// GPUs that wait for a reset; all, where none is named.
fn to_reset(on: Stand<'_>, state: &State) -> Vec<PciAddress> {
    let waits = |c: &&health::condition::Condition| !c.shadow && c.clear == ClearRule::AfterReset;
    let mut named: Vec<_> = state.host.conditions().filter(waits).filter_map(|c| c.gpu).collect();
    named.sort();
    named.dedup();
    if named.is_empty() {
        on.ground.host.on_bus().unwrap_or_default().into_iter().map(|(a, _)| a).collect()
    } else {
        named
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
