//! Passive watching: what the kernel log, the driver and the counters say while workloads run.
//!
//! Evidence becomes events, events become conditions ([`health::condition`]); levels are told again with each look, and one
//! that has ended is not told any more.

use std::path::Path;
use std::time::Duration;

use health::condition::{Change, Event, What};
use health::gate::{HARDWARE_SLOWDOWN, Limits, Look, Reading, Unseen};
use health::kernel_log::{PciAddress, Places, Record};
use health::policy::{Cause, Policy};

use super::state::State;
use crate::kmsg::KernelLog;
use crate::probe::{Answer, Ask, Watched};
use crate::worker::Worker;

/// Deadline of one look at all GPUs. A GPU that degrades makes its driver slow: that is a signal of its own.
const DEADLINE: Duration = Duration::from_secs(10);
/// Looks in a row that the hardware must hold clocks down in.
const THERMAL_LOOKS: u32 = 2;

/// Watches one host.
#[derive(Debug)]
pub struct Watcher {
    log: KernelLog,
    library: Worker,
    driver_major: Option<u32>,
    gpus: Vec<PciAddress>,
    slowed: Vec<(PciAddress, u32)>,
    /// What could not be looked at in the last look; empty where all was.
    pub unseen: Vec<String>,
}

impl Watcher {
    /// Reads the log on from where the state has it.
    #[must_use]
    pub fn new(log: &Path, library: Worker, state: &State) -> Self {
        let log = KernelLog::from_line(log, state.log_next);
        Self { log, library, driver_major: None, gpus: Vec::new(), slowed: Vec::new(), unseen: Vec::new() }
    }

    /// The GPUs that the host has, each with its UUID where it tells it.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn survey(&mut self) -> Look<Vec<(PciAddress, Option<String>)>> {
        let answer = self.ask(&Ask::Survey)?;
        let Answer::Survey(driver, gpus) = answer else { return Err(Unseen::Crashed("another answer".into())) };
        self.driver_major = driver.major();
        self.gpus = gpus.iter().map(|(_, address)| *address).collect();
        let mut found = Vec::new();
        for (index, address) in gpus {
            let uuid = match self.ask(&Ask::Identity(index)) {
                Ok(Answer::Identity(identity)) => Some(identity.uuid),
                _ => None,
            };
            found.push((address, uuid));
        }
        // To tell CUDA's version the library loads CUDA, which stays in memory; a new child watches without it.
        self.library.renew();
        Ok(found)
    }

    fn ask(&mut self, ask: &Ask) -> Look<Answer> {
        self.library.ask_renewed(ask, DEADLINE)
    }

    /// Lets go of the driver: a GPU is reset only when nobody holds it.
    pub fn let_go(&mut self) {
        self.library.renew();
    }

    /// Reads the kernel log on.
    pub fn read_log(&mut self, state: &mut State, policy: &Policy, now_ms: i64) -> Vec<Change> {
        let mut changes = Vec::new();
        match self.log.read_on() {
            Ok(said) => {
                if said.gap {
                    changes.extend(fault(
                        state,
                        policy,
                        Cause::LogGap,
                        None,
                        "lines of the kernel log were lost",
                        now_ms,
                    ));
                }
                let places = Places::of(self.gpus.iter().copied());
                let meant = |record: &Record| What::of_record(record, self.driver_major, &places);
                for what in said.records.iter().filter_map(meant) {
                    changes.extend(observe(state, policy, what, now_ms));
                }
                state.log_next = self.log.next_line();
            }
            Err(why) => changes.extend(fault(state, policy, Cause::LogUnreadable, None, &why.to_string(), now_ms)),
        }
        changes
    }

    /// Looks at the counters of all GPUs.
    pub fn look(&mut self, state: &mut State, policy: &Policy, limits: &Limits, now_ms: i64) -> Vec<Change> {
        self.unseen.clear();
        let mut changes = state.host.tick(now_ms);
        let watched = match self.ask(&Ask::Watch) {
            Ok(Answer::Watch(watched)) => watched,
            Ok(_) => {
                self.unseen.push("the driver's library: another answer".into());
                return changes;
            }
            Err(why @ Unseen::Stuck { .. }) => {
                self.unseen.push(why.to_string());
                changes.extend(fault(state, policy, Cause::ProbeStuck, None, &why.to_string(), now_ms));
                return changes;
            }
            Err(why) => {
                self.unseen.push(why.to_string());
                return changes;
            }
        };
        for (cause, gpu, text) in self.causes(&watched, limits) {
            changes.extend(fault(state, policy, cause, gpu, &text, now_ms));
        }
        changes
    }

    /// What numbers say.
    fn causes(&mut self, watched: &Watched, limits: &Limits) -> Vec<(Cause, Option<PciAddress>, String)> {
        let mut causes = Vec::new();
        for gone in self.gpus.iter().filter(|g| watched.gpus.iter().all(|(address, _)| address != *g)) {
            causes.push((Cause::Xid(79), Some(*gone), "the driver does not see it any more".to_owned()));
        }
        // Where events cannot be had the kernel log says the same, and more.
        if let Ok(xids) = &watched.xids {
            let told = |(gpu, code): &(PciAddress, u32)| {
                (Cause::Xid(*code), Some(*gpu), format!("the driver announced Xid {code}"))
            };
            causes.extend(xids.iter().map(told));
        }
        for (gpu, readings) in &watched.gpus {
            let mut value = |reading: Reading| match readings.get(&reading) {
                Some(Ok(value)) => Some(*value),
                Some(Err(Unseen::NotSupported)) | None => None,
                // The operator knows that this host cannot tell it.
                Some(Err(_)) if limits.accepts_without(reading) => None,
                Some(Err(why)) => {
                    if *why == Unseen::GpuLost {
                        causes.push((Cause::Xid(79), Some(*gpu), why.to_string()));
                    }
                    self.unseen.push(format!("{gpu} {}: {why}", reading.name()));
                    None
                }
            };
            let action = value(Reading::RecoveryAction).unwrap_or(0);
            let flags = [
                (Cause::RemapPending, Reading::RemapPending),
                (Cause::RemapPending, Reading::RetirementPending),
                (Cause::RemapFailed, Reading::RemapFailed),
                (Cause::SramThreshold, Reading::SramThreshold),
            ];
            let raised: Vec<_> = flags.into_iter().filter(|(_, r)| value(*r).is_some_and(|v| v != 0)).collect();
            let slow = value(Reading::ThrottleReasons)
                .is_some_and(|bits| HARDWARE_SLOWDOWN.iter().any(|(bit, _)| bits & bit != 0));
            causes.extend(raised.into_iter().map(|(cause, r)| (cause, Some(*gpu), r.name().to_owned())));
            if action != 0 {
                let cause = Cause::Driver(u32::try_from(action).unwrap_or(u32::MAX));
                causes.push((cause, Some(*gpu), format!("the driver's recovery action is {action}")));
            }
            let looks = self.slowed.iter().find(|(g, _)| g == gpu).map_or(0, |(_, n)| *n);
            let looks = if slow { looks + 1 } else { 0 };
            self.slowed.retain(|(g, _)| g != gpu);
            self.slowed.push((*gpu, looks));
            if looks >= THERMAL_LOOKS {
                causes.push((Cause::Thermal, Some(*gpu), "the hardware holds its clocks down".to_owned()));
            }
        }
        causes
    }
}

fn fault(
    state: &mut State,
    policy: &Policy,
    cause: Cause,
    gpu: Option<PciAddress>,
    text: &str,
    now_ms: i64,
) -> Vec<Change> {
    observe(state, policy, What::Fault { cause, gpu, decoded: None, text: text.to_owned() }, now_ms)
}

/// One more event of this boot.
pub fn observe(state: &mut State, policy: &Policy, what: What, now_ms: i64) -> Vec<Change> {
    state.event_seq += 1;
    let event = Event { at_ms: Some(now_ms), boot: state.boot.clone(), seq: state.event_seq, what };
    state.host.observe(policy, &event)
}
