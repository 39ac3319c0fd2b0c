//! What a GPU and the kernel remember, before the work of the gate and after it.

use fleet::Remedy;

use super::evidence::{Evidence, Look, Readings, Scope, Unseen};
use super::judged::{Judged, of_effect};
use super::reading::Reading;
use super::report::{Bound, Check, Number, Outcome};
use crate::condition::{Event, HostConditions, What};
use crate::kernel_log::{Places, Record};
use crate::policy::{Cause, Effect, Policy};
use crate::verdict::Verdict;

/// Bits of [`Reading::ThrottleReasons`] that the hardware sets to save itself (`nvmlClocksEventReason…`).
pub const HARDWARE_SLOWDOWN: [(i64, &str); 3] =
    [(0x8, "a slowdown"), (0x40, "a thermal slowdown"), (0x80, "a power brake")];

impl Judged<'_> {
    /// A reading; where it is missing, the check is unmeasured. One that the GPU does not offer is fine where it need not.
    pub(super) fn read(&self, outcome: &mut Outcome, from: &Readings, reading: Reading, needed: bool) -> Option<i64> {
        let missing = Err(Unseen::NotReached("it was not asked for".into()));
        match from.get(&reading).unwrap_or(&missing) {
            Ok(value) => Some(*value),
            Err(Unseen::NotSupported) if !needed => None,
            Err(_) if self.limits.accepts_without(reading) => None,
            Err(why) => {
                let mend = if *why == Unseen::GpuLost { Remedy::Replace } else { Remedy::TryAgain };
                outcome.find(Verdict::Unmeasured, mend, format!("{}: {why}", reading.name()));
                None
            }
        }
    }
}

/// What lines of the kernel log ask for, by the policy: `(GPU or host, effect, line)`.
fn asked(records: &[Record], evidence: &Evidence, policy: &Policy) -> Vec<(Effect, String)> {
    let places = Places::of(evidence.gpus.iter().map(|g| g.address));
    let major = evidence.driver.as_ref().ok().and_then(super::Driver::major);
    let mut host = HostConditions::default();
    for (seq, record) in (1..).zip(records) {
        let Some(what) = What::of_record(record, major, &places) else { continue };
        let at_ms = record.at_us.and_then(|us| i64::try_from(us / 1000).ok());
        host.observe(policy, &Event { at_ms, boot: "this".into(), seq, what });
    }
    host.conditions().filter(|c| !c.shadow).map(|c| (c.effect, format!("{}: {}", c.cause, c.text))).collect()
}

pub(super) fn log_before(evidence: &Evidence, policy: &Policy) -> Outcome {
    let mut outcome = Outcome::pass(Check::KernelLog, None);
    match &evidence.log_before {
        Ok(records) => {
            outcome.numbers.push(Number::of("lines", records.len() as f64));
            for (effect, text) in asked(records, evidence, policy) {
                if let Some(mend) = of_effect(effect) {
                    outcome.find(Verdict::Fail, mend, text);
                }
            }
        }
        Err(why) => outcome.find(Verdict::Unmeasured, Remedy::SetUp, format!("the kernel log was not read: {why}")),
    }
    outcome
}

pub(super) fn errors(judged: &Judged<'_>, policy: &Policy) -> Outcome {
    let mut outcome = Outcome::pass(Check::ErrorState, Some(judged.gpu.index));
    remembered(judged, &judged.gpu.before, &mut outcome, policy);
    outcome
}

fn remembered(judged: &Judged<'_>, from: &Readings, outcome: &mut Outcome, policy: &Policy) {
    let remaps = judged.model.and_then(|m| m.remaps) != Some(0);
    if let Some(action) = judged.read(outcome, from, Reading::RecoveryAction, false) {
        let rule = policy.rule(Cause::Driver(u32::try_from(action).unwrap_or(u32::MAX)));
        match of_effect(rule.effect) {
            Some(mend) => outcome.find(Verdict::Fail, mend, format!("the driver asks for {action}: {}", rule.why)),
            None if action != 0 => {
                let what = format!("the driver asks for {action}, which is not known");
                outcome.find(Verdict::Unmeasured, Remedy::Reset, what);
            }
            None => {}
        }
    }
    let flags = [
        (Reading::RemapPending, remaps, Remedy::Reset, "a row waits to be remapped: reset the GPU"),
        (Reading::RemapFailed, remaps, Remedy::Replace, "a row could not be remapped: the GPU is to be replaced"),
        (Reading::SramThreshold, false, Remedy::Replace, "more errors in SRAM than NVIDIA allows: replace the GPU"),
        (Reading::RetirementPending, !remaps, Remedy::Reset, "pages wait to be retired: reset the GPU"),
        (Reading::VolatileUncorrected, true, Remedy::Reset, "memory errors that were not corrected since the start"),
    ];
    for (reading, needed, mend, what) in flags {
        // A card that remaps retires no pages, and the other way round.
        if !needed && matches!(reading, Reading::RetirementPending | Reading::RemapPending | Reading::RemapFailed) {
            continue;
        }
        if let Some(value) = judged.read(outcome, from, reading, needed)
            && value != 0
        {
            outcome.find(Verdict::Fail, mend, format!("{what} ({} = {value})", reading.name()));
        }
    }
    if judged.read(outcome, from, Reading::Ecc, true) == Some(0) {
        outcome.find(Verdict::Fail, Remedy::SetUp, "ECC is off: turn it on (nvidia-smi -e 1) and reset the GPU");
    }
    for reading in [Reading::RemappedCorrectable, Reading::RemappedUncorrectable, Reading::VolatileCorrected] {
        if let Some(Ok(value)) = from.get(&reading) {
            outcome.numbers.push(Number::of(reading.name(), *value as f64));
        }
    }
}

pub(super) fn thermal(judged: &Judged<'_>, scope: Scope) -> Outcome {
    let mut outcome = Outcome::pass(Check::Thermal, Some(judged.gpu.index));
    let (before, loaded) = (&judged.gpu.before, &judged.gpu.loaded);
    let idle = scope == Scope::Whole;
    if let Some(reasons) = judged.read(&mut outcome, before, Reading::ThrottleReasons, true) {
        slowed(&mut outcome, reasons, "idle", Verdict::Fail);
    }
    if idle && let Some(reasons) = judged.read(&mut outcome, loaded, Reading::ThrottleReasons, true) {
        slowed(&mut outcome, reasons, "under load", Verdict::Degraded);
    }
    if let Some(c) = judged.read(&mut outcome, before, Reading::Temperature, true) {
        // After diagnostics it is as hot as under load.
        let warn_above = Some(if idle { 70.0 } else { 83.0 });
        let bound = Bound { warn_above, fail_above: Some(90.0), ..Bound::default() };
        outcome.measure("idle_temperature_c", c as f64, bound, Remedy::TryAgain);
    }
    if idle && let Some(c) = judged.read(&mut outcome, loaded, Reading::Temperature, true) {
        // Azure's limits: 83 warns, 90 is an error.
        let bound = Bound { warn_above: Some(83.0), fail_above: Some(90.0), ..Bound::default() };
        outcome.measure("load_temperature_c", c as f64, bound, Remedy::TryAgain);
    }
    if idle && let Some(margin) = judged.read(&mut outcome, before, Reading::MarginTemperature, false) {
        outcome.measure(
            "idle_margin_c",
            margin as f64,
            Bound { warn_below: Some(15.0), ..Bound::default() },
            Remedy::TryAgain,
        );
    }
    if let Some(limit) = judged.read(&mut outcome, before, Reading::PowerLimit, true) {
        let warn_below = judged.model.and_then(|m| m.power_w).map(|w| w * 0.95);
        outcome.measure("power_limit_w", limit as f64 / 1e3, Bound { warn_below, ..Bound::default() }, Remedy::SetUp);
    }
    for (reading, name, scale) in [
        (Reading::Power, "load_power_w", 1e-3),
        (Reading::SmClock, "load_sm_clock_mhz", 1.0),
        (Reading::MaxSmClock, "max_sm_clock_mhz", 1.0),
    ] {
        if let Some(Ok(value)) = loaded.get(&reading) {
            outcome.numbers.push(Number::of(name, *value as f64 * scale));
        }
    }
    outcome
}

fn slowed(outcome: &mut Outcome, reasons: i64, when: &str, verdict: Verdict) {
    for (bit, what) in HARDWARE_SLOWDOWN {
        if reasons & bit != 0 {
            outcome.find(verdict, Remedy::Replace, format!("{when}, the hardware holds clocks down by {what}"));
        }
    }
}

pub(super) fn links(judged: &Judged<'_>) -> Outcome {
    let mut outcome = Outcome::pass(Check::Links, Some(judged.gpu.index));
    let before = &judged.gpu.before;
    let wanted = judged.model.and_then(|m| m.nvlinks).filter(|n| *n > 0 && judged.count > 1);
    let active = judged.read(&mut outcome, before, Reading::NvlinksActive, wanted.is_some());
    match (active, wanted) {
        (Some(active), Some(wanted)) => {
            let bound = Bound { fail_below: Some(f64::from(wanted)), ..Bound::default() };
            outcome.measure("nvlinks_active", active as f64, bound, Remedy::Reboot);
        }
        (Some(active), None) => outcome.numbers.push(Number::of("nvlinks_active", active as f64)),
        (None, _) => {}
    }
    // 0: not a fabric's GPU; 3: it has joined.
    if let Some(state) = judged.read(&mut outcome, before, Reading::FabricState, false)
        && judged.count > 1
        && !matches!(state, 0 | 3)
    {
        let what = format!("the fabric has not come up (state {state}): is the fabric manager running?");
        outcome.find(Verdict::Fail, Remedy::SetUp, what);
    }
    if let Some(bits) = judged.read(&mut outcome, before, Reading::FabricUnhealthy, false)
        && bits != 0
        && judged.count > 1
    {
        outcome.find(Verdict::Fail, Remedy::Reboot, format!("the fabric is not healthy (bits {bits:#x})"));
    }
    outcome
}

pub(super) fn afterwards(judged: &Judged<'_>, evidence: &Evidence, policy: &Policy) -> Outcome {
    let mut outcome = Outcome::pass(Check::Afterwards, Some(judged.gpu.index));
    let (before, after) = (&judged.gpu.before, &judged.gpu.after);
    remembered(judged, after, &mut outcome, policy);
    if let Some(reasons) = judged.read(&mut outcome, after, Reading::ThrottleReasons, true) {
        slowed(&mut outcome, reasons, "afterwards", Verdict::Fail);
    }
    let rose = |reading: Reading| match (before.get(&reading), after.get(&reading)) {
        (Some(Ok(was)), Some(Ok(is))) => Some(is - was),
        _ => None,
    };
    if let Some(replays) = rose(Reading::PcieReplays) {
        let bound = Bound { warn_above: Some(0.0), ..Bound::default() };
        outcome.measure("pcie_replays_more", replays as f64, bound, Remedy::TryAgain);
    }
    if let Some(corrected) = rose(Reading::VolatileCorrected) {
        outcome.numbers.push(Number::of("corrected_errors_more", corrected as f64));
    }
    during(&mut outcome, &evidence.log_during, judged, evidence, policy);
    outcome
}

/// What the log said while nothing but the gate ran: errors that are an application's elsewhere are the GPU's here.
fn during(outcome: &mut Outcome, log: &Look<Vec<Record>>, judged: &Judged<'_>, evidence: &Evidence, policy: &Policy) {
    let records = match log {
        Ok(records) => records,
        Err(why) => {
            return outcome.find(Verdict::Unmeasured, Remedy::SetUp, format!("the kernel log was not read: {why}"));
        }
    };
    // What a switch or a port says is about all of them.
    let is_gpu = |device| evidence.gpus.iter().any(|g| g.address == device);
    let mine: Vec<Record> =
        records.iter().filter(|r| r.device.is_none_or(|d| d == judged.gpu.address || !is_gpu(d))).cloned().collect();
    for (effect, text) in asked(&mine, evidence, policy) {
        let corrected = text.starts_with(&Cause::PcieCorrected.to_string());
        let verdict = if corrected { Verdict::Degraded } else { Verdict::Fail };
        outcome.find(verdict, of_effect(effect).unwrap_or(Remedy::Reset), text);
    }
}
