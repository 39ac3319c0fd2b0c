//! Conditions: raised by evidence, ended by their rule, and nothing in between.

use health::condition::{Change, Event, HostConditions, What};
use health::kernel_log::{PciAddress, Places, read};
use health::policy::{Cause, ClearRule, Effect, Policy};
use proptest::prelude::*;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

fn gpu(n: u8) -> PciAddress {
    format!("0000:{n:02x}:00").parse().expect("an address")
}

/// A host and its clock.
struct Bench {
    policy: Policy,
    host: HostConditions,
    boot: String,
    seq: u64,
    now_ms: i64,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Self { policy, host: HostConditions::default(), boot: "b1".into(), seq: 0, now_ms: 1_700_000_000_000 }
    }

    fn send(&mut self, what: What) -> Vec<Change> {
        self.seq += 1;
        let event = Event { at_ms: Some(self.now_ms), boot: self.boot.clone(), seq: self.seq, what };
        self.host.observe(&self.policy, &event)
    }

    fn fault(&mut self, cause: &str) -> Vec<Change> {
        let cause = cause.parse().expect("a cause");
        self.send(What::Fault { cause, gpu: Some(gpu(1)), decoded: None, text: "evidence".into() })
    }

    /// The gate begins now, and passes.
    fn gate(&mut self, gpu: Option<PciAddress>) -> Vec<Change> {
        self.send(What::GatePassed { gpu, after_seq: self.seq })
    }

    fn effect(&self) -> Option<Effect> {
        self.host.standing().effect
    }

    fn reboot(&mut self) {
        self.boot += "x";
        self.seq = 0;
        self.send(What::Booted);
    }
}

fn bench() -> Bench {
    Bench::new(Policy::default())
}

/// What was contained keeps serving, is not given to another before a reset, and is free after reset and gate.
#[test]
fn a_pending_reset_serves_on_and_is_not_claimable() {
    for cause in ["xid:63", "xid:94", "remap-pending"] {
        let mut b = bench();
        assert!(matches!(b.fault(cause)[..], [Change::Raised(_)]), "{cause}");
        assert_eq!(b.effect(), Some(Effect::ResetAtIdle));
        assert!(!b.host.standing().claimable);
        b.now_ms += 30 * DAY_MS;
        b.host.tick(b.now_ms);
        assert!(!b.host.standing().claimable, "time mends nothing");
        b.gate(None);
        assert!(!b.host.standing().claimable, "nor does a gate without a reset");
        b.send(What::Reset { gpu: gpu(2) });
        b.gate(None);
        assert!(!b.host.standing().claimable, "nor another GPU's reset");
        b.send(What::Reset { gpu: gpu(1) });
        assert!(!b.host.standing().claimable, "the gate has to say so");
        assert!(matches!(b.gate(Some(gpu(1)))[..], [Change::Cleared(_)]));
        assert!(b.host.standing().claimable);
    }
}

/// A burst is one episode; episodes that come again are worse.
#[test]
fn episodes_are_counted_not_lines() {
    let mut b = bench();
    for _ in 0..1000 {
        b.fault("xid:13");
        b.now_ms += 1000;
    }
    assert_eq!(b.effect(), Some(Effect::Record), "a storm of one application");
    b.now_ms += 20 * MINUTE_MS;
    b.host.tick(b.now_ms);
    assert_eq!(b.effect(), None, "over");
    b.fault("xid:13");
    assert_eq!(b.effect(), Some(Effect::Record));
    b.now_ms += 20 * MINUTE_MS;
    assert!(matches!(b.fault("xid:13")[..], [Change::Cleared(_), Change::Raised(_)]));
    assert_eq!(b.effect(), Some(Effect::Recheck), "the third within a week");
    b.now_ms += 20 * MINUTE_MS;
    b.host.tick(b.now_ms);
    assert_eq!(b.effect(), Some(Effect::Recheck), "which silence does not end");
    // A week later it is the first again.
    let mut b = bench();
    for _ in 0..5 {
        b.fault("xid:13");
        b.now_ms += 8 * DAY_MS;
    }
    b.host.tick(b.now_ms);
    assert_eq!(b.effect(), None);
}

#[test]
fn what_a_reset_did_not_mend_is_taken_out() {
    let mut b = bench();
    b.fault("xid:95");
    assert_eq!(b.effect(), Some(Effect::DrainReset));
    b.send(What::Reset { gpu: gpu(1) });
    b.gate(None);
    assert_eq!(b.effect(), None);
    b.now_ms += DAY_MS;
    b.fault("xid:95");
    assert_eq!(b.effect(), Some(Effect::Quarantine));
    b.send(What::Reset { gpu: gpu(1) });
    b.reboot();
    b.gate(None);
    assert_eq!(b.effect(), Some(Effect::Quarantine), "only another GPU ends that");
    b.send(What::Replaced { gpu: Some(gpu(1)) });
    assert_eq!(b.effect(), None);
}

/// A fault that comes again between reset and gate is not ended by the gate.
#[test]
fn the_gate_of_before_proves_nothing_after() {
    let mut b = bench();
    b.fault("xid:95");
    b.send(What::Reset { gpu: gpu(1) });
    b.now_ms += 1000;
    assert!(matches!(b.fault("xid:95")[..], [Change::Worsened(_)]));
    b.gate(None);
    assert_eq!(b.effect(), Some(Effect::Quarantine), "a second one after a reset, however soon");
    // Nor one that was seen while the gate ran.
    let mut b = bench();
    let began = b.seq;
    b.fault("log-gap");
    b.send(What::GatePassed { gpu: None, after_seq: began });
    assert_eq!(b.effect(), Some(Effect::Recheck));
    b.gate(None);
    assert_eq!(b.effect(), None);
}

/// A burst that goes on while gates pass is one episode all the same.
#[test]
fn gates_do_not_cut_a_burst() {
    let mut b = bench();
    for second in 0..40 {
        b.fault("thermal");
        if second % 8 == 7 {
            b.gate(None);
        }
        b.now_ms += 30_000;
    }
    b.fault("thermal");
    assert_eq!(b.effect(), Some(Effect::Recheck));
}

/// What was announced late, twice, or not at all.
#[test]
fn boots_only_go_forward() {
    let mut b = bench();
    b.send(What::Booted);
    b.fault("xid:63");
    let first = b.boot.clone();
    b.reboot();
    let now = b.host.clone();
    let late = Event { at_ms: Some(b.now_ms), boot: first, seq: 99, what: What::Booted };
    b.host.observe(&b.policy, &late);
    assert_eq!(b.host, now, "an earlier boot does not come back");
    b.fault("xid:79");
    assert_eq!(b.effect(), Some(Effect::Quarantine), "and nothing of this one is lost");
    // A fault of a boot that nobody announced.
    let mut b = bench();
    b.send(What::Booted);
    b.boot = "b2".into();
    b.seq = 0;
    b.fault("xid:79");
    assert_eq!(b.effect(), Some(Effect::Quarantine));
}

/// Which GPU it was is not known: only what holds for all of them mends it.
#[test]
fn a_fault_without_a_gpu_is_nobody_elses() {
    let mut b = bench();
    b.send(What::Fault { cause: Cause::Xid(94), gpu: None, decoded: None, text: String::new() });
    b.send(What::Reset { gpu: gpu(1) });
    b.gate(None);
    assert_eq!(b.effect(), Some(Effect::ResetAtIdle));
    b.reboot();
    b.gate(None);
    assert_eq!(b.effect(), None);
}

/// The driver's own verdict, unknown codes, sub-codes.
#[test]
fn unknown_is_never_healthy() {
    for cause in ["xid:9999", "xid:5", "xid:164", "driver:77", "log-gap", "log-unreadable", "probe-stuck"] {
        let mut b = bench();
        b.fault(cause);
        assert_eq!(b.effect(), Some(Effect::Recheck), "{cause}");
        b.gate(None);
        assert_eq!(b.effect(), None, "{cause}: the gate decides");
    }
    let mut b = bench();
    b.fault("driver:2");
    assert_eq!(b.effect(), Some(Effect::DrainReboot));
    b.send(What::Reset { gpu: gpu(1) });
    b.gate(None);
    assert_eq!(b.effect(), Some(Effect::DrainReboot), "a reset is no reboot");
    b.reboot();
    b.gate(None);
    assert_eq!(b.effect(), None);
}

#[test]
fn nvlink_sub_codes_decide() {
    // Unit SAW_MVB of Xid 144, driver 575 and later: bit 0 is to be ignored, bit 1 needs a reset.
    for (status, effect) in [
        ("0x1", Effect::Record),
        ("0x2", Effect::DrainReset),
        ("0x3", Effect::DrainReset),
        ("0x40000000", Effect::Recheck),
        ("0x40000001", Effect::Recheck),
    ] {
        let mut b = bench();
        let line = format!(
            "NVRM: Xid (PCI:0000:01:00): 144, SAW_MVB Non-fatal XC0 i0 Link 0 (0x00000001 {status} 0x0 0x0 0x0 0x0)"
        );
        let record = read(&line).expect("reads");
        b.send(What::of_record(&record, Some(580), &Places::default()).expect("a GPU's"));
        assert_eq!(b.effect(), Some(effect), "{status}");
    }
}

#[test]
fn evidence_counts_once_and_of_this_boot_only() {
    let mut b = bench();
    b.send(What::Booted);
    let fault = What::Fault { cause: Cause::Xid(95), gpu: Some(gpu(1)), decoded: None, text: String::new() };
    let event = Event { at_ms: Some(b.now_ms), boot: "b1".into(), seq: 50, what: fault.clone() };
    assert_eq!(b.host.observe(&b.policy, &event).len(), 1);
    let after = b.host.clone();
    b.host.observe(&b.policy, &event);
    let older = Event { seq: 49, ..event.clone() };
    b.host.observe(&b.policy, &older);
    assert_eq!(b.host, after);
}

#[test]
fn shadow_rules_only_show() {
    let text = "[[rule]]\non = \"xid:13\"\neffect = \"quarantine\"\nclear = \"after-replace\"\nshadow = true";
    let mut b = Bench::new(Policy::default().overridden(text).expect("reads"));
    assert!(matches!(&b.fault("xid:13")[..], [Change::Raised(c)] if c.shadow && c.effect == Effect::Quarantine));
    assert_eq!((b.effect(), b.host.standing().claimable), (None, true));
}

#[test]
fn policies_that_make_no_sense_are_refused() {
    for (text, says) in [
        ("[[rule]]\non = \"xid:63\"\neffect = \"quarantine\"\nclear = \"quiet\"", "silence proves no health"),
        ("[[rule]]\non = \"xid:x\"\neffect = \"record\"\nclear = \"quiet\"", "does not read"),
        ("[[rule]]\non = \"xid:1\"\neffect = \"record\"\nclear = \"never\"", "does not read"),
        ("[[rule]]\non = \"xid:1\"\neffect = \"record\"\nclear = \"quiet\"\ncolour = 1", "does not read"),
        (
            "[[rule]]\non = \"xid:1\"\neffect = \"record\"\nclear = \"quiet\"\n\n[[rule]]\non = \"xid:1\"\neffect = \"record\"\nclear = \"quiet\"",
            "two rules",
        ),
        (
            "[[rule]]\non = \"xid:1\"\neffect = \"recheck\"\nclear = \"after-gate\"\nescalate = { episodes = 1, within_h = 1, to = \"record\" }",
            "a worse effect",
        ),
    ] {
        let error = Policy::default().overridden(text).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// Our rules are there, and differ from the catalogue where they say so.
#[test]
fn the_default_shows_as_a_difference() {
    let (catalogue, default) = (Policy::catalogue(), Policy::default());
    assert!(catalogue.rules().count() >= 170);
    let changed: Vec<String> = default.differences(&catalogue).iter().map(|(_, ours)| ours.on.to_string()).collect();
    for cause in ["xid:63", "xid:64", "xid:79", "xid:94", "remap-failed", "sram-threshold"] {
        assert!(changed.iter().any(|c| c == cause), "{cause}: {changed:?}");
    }
    assert!(!changed.iter().any(|c| c == "xid:62"), "NVIDIA's own word stays where we say nothing");
    for (_, rule) in default.differences(&catalogue) {
        assert!(!rule.why.is_empty(), "{} has no reason", rule.on);
    }
}

fn any_event() -> impl Strategy<Value = (i64, What)> {
    let cause = prop_oneof![
        (1_u32..200).prop_map(Cause::Xid),
        (0_u32..8).prop_map(Cause::Driver),
        Just(Cause::RemapPending),
        Just(Cause::RemapFailed),
        Just(Cause::LogGap),
        Just(Cause::PcieCorrected),
    ];
    let place = prop_oneof![Just(None), (0_u8..4).prop_map(|n| Some(gpu(n)))];
    let fault =
        (cause, place.clone()).prop_map(|(cause, gpu)| What::Fault { cause, gpu, decoded: None, text: String::new() });
    let what = prop_oneof![
        6 => fault,
        1 => (0_u8..4).prop_map(|n| What::Reset { gpu: gpu(n) }),
        1 => place.prop_map(|gpu| What::GatePassed { gpu, after_seq: u64::MAX }),
        1 => Just(What::Booted),
    ];
    (0_i64..3 * 3_600_000, what)
}

proptest! {
    /// HLT-3: whatever happened, all that can be done about a host ends every condition.
    #[test]
    fn every_condition_can_be_ended(events in prop::collection::vec(any_event(), 0..60)) {
        let mut b = bench();
        for (passed_ms, what) in events {
            b.now_ms += passed_ms;
            if what == What::Booted { b.reboot() } else { b.send(what); }
            // A condition asks for no less than its rule, and silence ends only what is written down.
            for c in b.host.conditions() {
                prop_assert!(c.effect == Effect::Record || c.clear != ClearRule::Quiet, "{:?}", c);
            }
        }
        b.reboot();
        b.gate(None);
        b.now_ms += DAY_MS;
        b.host.tick(b.now_ms);
        for c in b.host.conditions() {
            prop_assert_eq!(c.clear, ClearRule::AfterReplace, "{:?}", c);
        }
        for n in 0..4 {
            b.send(What::Replaced { gpu: Some(gpu(n)) });
        }
        prop_assert!(b.host.conditions().all(|c| c.gpu.is_none()));
        b.send(What::Replaced { gpu: None });
        let left: Vec<_> = b.host.conditions().cloned().collect();
        prop_assert!(left.is_empty(), "{:?}", left);
    }

    /// What is known survives being written down and read again.
    #[test]
    fn it_can_be_written_down(events in prop::collection::vec(any_event(), 0..30)) {
        let mut b = bench();
        for (passed_ms, what) in events {
            b.now_ms += passed_ms;
            b.send(what);
        }
        let text = serde_json::to_string(&b.host).expect("text");
        prop_assert_eq!(serde_json::from_str::<HostConditions>(&text).expect("reads"), b.host);
    }
}
