//! Whole logs: the same faults give the same answer in whatever form they come, and what a log does not tell is not known.

use health::condition::{Event, HostConditions, What};
use health::kernel_log::Fault;
use health::kernel_log::form::{self, Speaker};
use health::kernel_log::log::{Log, LogError, Said, Whole};
use health::policy::{Cause, Effect, Policy};
use proptest::prelude::*;

fn whole(text: &str) -> Whole {
    let mut log = Log::default();
    for line in text.lines() {
        log.read(line.as_bytes()).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
    log.finish()
}

fn effect(whole: &Whole) -> Option<Effect> {
    let (policy, mut host) = (Policy::default(), HostConditions::default());
    for (seq, entry) in (1..).zip(&whole.entries) {
        let what = match &entry.said {
            Said::Record(record) => What::of_record(record, entry.driver_major, &whole.places),
            Said::Gap(lost) => {
                let text = lost.to_string();
                Some(What::Fault { cause: Cause::LogGap, gpu: None, decoded: None, text })
            }
        };
        let Some(what) = what else { continue };
        host.observe(&policy, &Event { at_ms: entry.at_ms, boot: entry.boot.to_string(), seq, what });
    }
    host.standing().effect
}

fn answer(text: &str) -> Option<Effect> {
    effect(&whole(text))
}

const DAY_S: u64 = 86_400;

/// The first of March 2026, as the kernel's clock and the wall's have it.
fn forms(faults: &[(u64, &str)]) -> Vec<(&'static str, String)> {
    let clock = |at: u64| {
        let (day, rest) = (1 + at / DAY_S, at % DAY_S);
        (day, format!("{:02}:{:02}:{:02}", rest / 3600, rest % 3600 / 60, rest % 60))
    };
    let all = |of: &dyn Fn(u64, u64, &str) -> String| {
        let mut last = 0;
        let line = |(at, text): &(u64, &str)| {
            let made = of(*at, *at - last, text);
            last = *at;
            made + "\n"
        };
        faults.iter().map(line).collect::<String>()
    };
    let dated = |at: u64| {
        let (day, time) = clock(at);
        (format!("Mar {day:2}"), format!("2026-03-{day:02}"), time)
    };
    vec![
        ("dmesg", all(&|at, _, text| format!("[{at:5}.000000] {text}"))),
        ("with callers", all(&|at, _, text| format!("[{at:5}.000000][  T812] {text}"))),
        ("kmsg", {
            let mut seq = 0;
            let lines = faults.iter().map(|(at, text)| {
                seq += 1;
                format!("3,{seq},{},-,caller=T9;{text}\n SUBSYSTEM=pci\n", at * 1_000_000)
            });
            lines.collect()
        }),
        (
            "dmesg -T",
            all(&|at, _, text| {
                let (short, _, time) = dated(at);
                format!("[Sun {short} {time} 2026] {text}")
            }),
        ),
        ("dmesg -x", all(&|at, _, text| format!("kern  :err   : [{at:5}.000000] {text}"))),
        ("dmesg -r", all(&|at, _, text| format!("<3>[{at:5}.000000] {text}"))),
        ("dmesg -d", all(&|at, passed, text| format!("[{at:5}.000000 <{passed:5}.000000>] {text}"))),
        ("dmesg -t -d", all(&|_, passed, text| format!("[<{passed:5}.000000>] {text}"))),
        (
            "dmesg iso",
            all(&|at, _, text| {
                let (_, iso, time) = dated(at);
                format!("{iso}T{time},123456+00:00 {text}")
            }),
        ),
        ("colours", all(&|at, _, text| format!("\u{1b}[32m[{at:5}.000000] \u{1b}[0m\u{1b}[31m{text}\u{1b}[0m"))),
        (
            "short",
            all(&|at, _, text| {
                let (short, _, time) = dated(at);
                format!("{short} {time} node-1 kernel: {text}")
            }),
        ),
        (
            "kern.log",
            all(&|at, _, text| {
                let (short, _, time) = dated(at);
                format!("{short} {time} node-1 kernel: [{at:5}.000000] {text}")
            }),
        ),
        (
            "short-iso",
            all(&|at, _, text| {
                let (_, iso, time) = dated(at);
                format!("{iso}T{time}+0000 node-1 kernel: {text}")
            }),
        ),
        (
            "short-full",
            all(&|at, _, text| {
                let (_, iso, time) = dated(at);
                format!("Sun {iso} {time} UTC node-1 kernel: {text}")
            }),
        ),
        ("short-unix", all(&|at, _, text| format!("{}.123456 node-1 kernel: {text}", 1_772_323_200 + at))),
        ("short-monotonic", all(&|at, _, text| format!("[{at:5}.000000] node-1 kernel: {text}"))),
        (
            "rfc 5424",
            all(&|at, _, text| {
                let (_, iso, time) = dated(at);
                format!("<3>1 {iso}T{time}.1Z node-1 kernel - - - {text}")
            }),
        ),
        (
            "json",
            all(&|at, _, text| {
                let real = (1_772_323_200 + at) * 1_000_000;
                serde_json::json!({ "_TRANSPORT": "kernel", "MESSAGE": text, "__REALTIME_TIMESTAMP": real.to_string(),
                "__MONOTONIC_TIMESTAMP": (at * 1_000_000).to_string(), "_BOOT_ID": "b1", "_HOSTNAME": "node-1" })
                .to_string()
            }),
        ),
    ]
}

const DBE: &str =
    "NVRM: Xid (PCI:0000:3b:00): 48, pid=9, name=job, An uncorrectable double bit error has been detected";
const CORRECTED: &str = "nvidia 0000:3b:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer, (Receiver ID)";

#[test]
fn the_form_of_a_log_changes_nothing() {
    let same = vec![(1000, DBE)];
    let apart = vec![(1000, DBE), (90_000, DBE)];
    let all_day: Vec<(u64, &str)> = (1..700).map(|n| (n * 120, CORRECTED)).collect();
    let hourly: Vec<(u64, &str)> = (1..6).map(|n| (n * 3600, CORRECTED)).collect();
    let once = vec![(1000, CORRECTED)];
    for (faults, expected) in [
        (same, Effect::DrainReset),
        (apart, Effect::Quarantine),
        (all_day, Effect::Recheck),
        (hourly, Effect::Recheck),
        (once, Effect::Record),
    ] {
        for (form, text) in forms(&faults) {
            let read = whole(&text);
            assert_eq!(read.entries.len(), faults.len(), "{form}: {text}");
            assert_eq!(effect(&read), Some(expected), "{form}: {text:.300}");
        }
    }
}

/// Without times two lines may be one episode or two: neither is taken for granted.
#[test]
fn no_time_is_invented() {
    assert_eq!(answer(&format!("{DBE}\n{DBE}\n")), Some(Effect::DrainReset), "nor does it escalate");
    let five = format!("{CORRECTED}\n").repeat(5);
    assert_eq!(answer(&five), Some(Effect::Recheck), "what may be five episodes is looked at");
    assert_eq!(answer(&format!("{CORRECTED}\n")), Some(Effect::Record));
    assert!(whole(&five).entries.iter().all(|e| e.at_ms.is_none()));
}

#[test]
fn boots_are_seen() {
    for (text, boots) in [
        (format!("[0.0] Linux version 6.8\n[9.0] {DBE}\n[0.0] Linux version 6.8\n[5.0] {DBE}"), 2),
        (format!("[900.0] {DBE}\n[5.0] {DBE}"), 2),
        (format!("3,900,9000000,-;{DBE}\n3,5,9100000,-;{DBE}"), 2),
        (format!("Mar 01 10:00:00 n kernel: {DBE}\n-- Boot 83ab --\nMar 01 11:00:00 n kernel: {DBE}"), 2),
        (format!("Mar  1 10:00:00 n kernel: [ 900.0] {DBE}\nMar  1 11:00:00 n kernel: [ 5.0] {DBE}"), 2),
        (
            format!(
                "Mar 01 10:00:00 n kernel: Linux version 6\nMar 01 10:00:09 n kernel: {DBE}\nMar 01 11:00:00 n kernel: Linux version 6\nMar 01 11:00:09 n kernel: {DBE}"
            ),
            2,
        ),
        (
            format!(
                "Mar 01 10:00:09 n kernel: {DBE}\nMar 01 11:00:00 n kernel: Linux version 6\nMar 01 11:00:09 n kernel: {DBE}"
            ),
            2,
        ),
        (format!("[0.0] Linux version 6.8\n[9.0] {DBE}\n[8.9] {DBE}"), 1),
    ] {
        let read = whole(&text);
        assert_eq!(read.boots, boots, "{text}");
        // What a boot did not mend.
        let expected = if boots == 2 { Effect::Quarantine } else { Effect::DrainReset };
        assert_eq!(effect(&read), Some(expected), "{text}");
    }
}

/// A year is not told in syslog's files; December is followed by January.
#[test]
fn the_year_turns() {
    let text =
        format!("Dec 31 23:59:00 n kernel: {DBE}\nJan  1 00:00:30 n kernel: {DBE}\nJan  3 00:00:00 n kernel: {DBE}");
    let at: Vec<i64> = whole(&text).entries.iter().filter_map(|e| e.at_ms).collect();
    assert_eq!((at[1] - at[0], at[2] - at[0]), (90_000, 2 * 86_400_000 + 60_000));
}

#[test]
fn only_the_kernel_is_a_witness() {
    let quoted = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.";
    for line in [
        format!("Mar 01 10:00:00 node-1 bot[811]: {quoted}"),
        format!("Mar 01 10:00:00 node-1 bot: {quoted}"),
        format!("30,77,5,-;{quoted}"),
        format!("<14>[ 5.0] {quoted}"),
        format!("daemon:info  : [ 5.0] {quoted}"),
        format!("[ 5.0] systemd[1]: {quoted}"),
        format!("[ 5.0] node-1 bot[811]: {quoted}"),
        format!("[ 5.0] audit: type=1400 comm=\"{quoted}\""),
        format!("Mar 01 10:00:00 node-1 kernel: audit: comm=\"{quoted}\""),
        serde_json::json!({ "_TRANSPORT": "journal", "SYSLOG_IDENTIFIER": "kernel", "MESSAGE": quoted }).to_string(),
    ] {
        assert_eq!(answer(&line), None, "{line}");
    }
    assert_eq!(form::split("systemd[1]: hello").expect("reads").speaker, Speaker::Process);
}

/// Words of the kernel's own that look like a host and a program.
#[test]
fn the_kernels_words_are_no_hosts() {
    for text in
        ["Command line: quiet", "Hypervisor detected: KVM", "random crng: init done", "usb usb1: New USB device"]
    {
        for stamp in ["[    0.000000]", "[Sun Mar  1 10:16:40 2026]", "2026-03-01T10:16:40,123456+00:00", "6,1,0,-;"] {
            let line = format!("{stamp}{}{text}", if stamp.ends_with(';') { "" } else { " " });
            let read = form::split(&line).expect("reads");
            assert_eq!((read.host, read.speaker, &*read.text), (None, Speaker::Kernel, text), "{line}");
        }
    }
}

#[test]
fn hosts_are_not_mixed() {
    let text = format!("Mar 01 10:00:00 a kernel: {DBE}\nMar 01 10:00:00 b kernel: usb\n");
    let mut log = Log::default();
    let mut lines = text.lines();
    log.read(lines.next().expect("one").as_bytes()).expect("reads");
    let error = log.read(lines.next().expect("two").as_bytes()).expect_err("two hosts");
    assert_eq!(error, LogError::Hosts("a".into(), "b".into()));
    let mut of_b = Log::of_host(Some("b".into()));
    text.lines().for_each(|line| of_b.read(line.as_bytes()).expect("reads"));
    assert_eq!(effect(&of_b.finish()), None);
}

/// What cannot be understood is never taken for nothing.
#[test]
fn unknown_lines_are_looked_at() {
    let sxid = "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0)";
    for (line, expected) in [
        ("NVRM: Xid (0000:af:00): 48, pid=1, name=a, Ch 8".to_owned(), Effect::DrainReset),
        ("NVRM: Xid: 48 on GPU 3".into(), Effect::Recheck),
        ("NVRM: Xid (PCI:0000:3b:00): ".into(), Effect::Recheck),
        ("NVRM: Xid (PCI:0000:3b:00): 4".into(), Effect::Recheck),
        ("NVRM: Xid (PCI:0000:3b".into(), Effect::Recheck),
        ("NVRM: Xid (PCI:0000:3b:00): 9999999999, x".into(), Effect::Recheck),
        (format!("{sxid}: 31999, a code of a later driver"), Effect::Recheck),
        (format!("{sxid}: 20034, Severity 1 Engine instance 60"), Effect::DrainReboot),
        (format!("{sxid}: 11012, Severity 0 Engine instance 60"), Effect::Record),
        (format!("{sxid}: 11012, Fata"), Effect::Recheck),
        (format!("{sxid}: 11012, Non-fatal error"), Effect::Record),
        (
            "NVRM: knvlinkDiscoverPostRxDetLinks_GH100: Getting peer0's postRxDetLinkMask failed!".into(),
            Effect::Recheck,
        ),
        (format!("{sxid}: 11012, Data {{0x1, 0x2}}"), Effect::Recheck),
        ("nvidia-nvswitch0: SXid".into(), Effect::Recheck),
        ("pcieport 0000:3a:00.0: DPC: containment event, status:0x1f01 source:0x0000".into(), Effect::Recheck),
        (
            "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error 0x60, requiring os reboot".into(),
            Effect::DrainReboot,
        ),
        ("NVRM: GPU0 _kgspIsHeartbeatTimedOut: Heartbeat timed out, timeout 5200".into(), Effect::DrainReset),
        ("NVRM: GPU 0000:39:00.0: rm_init_adapter failed, device minor number 2".into(), Effect::DrainReboot),
        (
            "NVRM: Xid (PCI:0000:3b:00): 160, Marking Channel 1 in FBPA 2 along with its pair for repair.".into(),
            Effect::ResetAtIdle,
        ),
        (
            "NVRM: Xid (PCI:0000:3b:00): 161, Repairing Channel failed as there are no more spare channels.".into(),
            Effect::Quarantine,
        ),
        (
            "NVRM: Xid (PCI:0000:3b:00): 64, DRAM Retirement failed due to pending bank remap at 0x1".into(),
            Effect::ResetAtIdle,
        ),
        (
            "NVRM: Xid (PCI:0000:3b:00): 64, DRAM Retirement failed due to no spare for retirement at 0x1".into(),
            Effect::Quarantine,
        ),
    ] {
        for stamp in ["[5.0]", "[...]", "kernel:", ""] {
            assert_eq!(answer(&format!("{stamp} {line}")), Some(expected), "{stamp} {line}");
        }
    }
}

/// A switch tells an error in three lines: the registers add nothing to what the first two have said.
#[test]
fn registers_of_a_switch_belong_to_its_error() {
    let at = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006,";
    let text = format!(
        "[1.0] {at} Non-fatal, Link 46 MC TS (First)\n[1.0] {at} Severity 0 Engine instance 46\n[1.0] {at} Data {{0x1}}"
    );
    assert_eq!(answer(&text), Some(Effect::Record));
}

/// What a port, or firmware, says of a GPU.
#[test]
fn ports_and_firmware_speak_of_gpus() {
    let known = "[0.5] pci 0000:3a:00.0: PCI bridge to [bus 3b-3c]\n[0.6] pci 0000:4a:00.0: PCI bridge to [bus 4b]\n\
        [0.7] pci 0000:3b:00.0: [10de:2330] type 00 class 0x030200 PCIe Endpoint\n";
    let firmware = |severity: &str, device: &str| {
        format!(
            "[9.0] {{1}}[Hardware Error]: Hardware error from APEI Generic Hardware Error Source: 5\n\
             [9.0] {{1}}[Hardware Error]: event severity: {severity}\n\
             [9.0] {{1}}[Hardware Error]:   section_type: PCIe error\n\
             [9.0] {{1}}[Hardware Error]:   device_id: {device}\n"
        )
    };
    for (lines, expected) in [
        (
            "[9.0] pcieport 0000:3a:00.0: DPC: containment event, status:0x1f01 source:0x0000".to_owned(),
            Some(Effect::DrainReset),
        ),
        ("[9.0] pcieport 0000:3a:00.0: pciehp: Slot(12): Link Down".into(), Some(Effect::DrainReset)),
        ("[9.0] pcieport 0000:4a:00.0: pciehp: Slot(13): Card not present".into(), None),
        (
            "[9.0] pcieport 0000:3a:00.0: AER: Uncorrected (Fatal) error received: 0000:3a:00.0".into(),
            Some(Effect::DrainReset),
        ),
        ("[9.0] pcieport 0000:4a:00.0: AER: Uncorrected (Fatal) error received: 0000:4b:00.0".into(), None),
        (firmware("fatal", "0000:3b:00.0"), Some(Effect::DrainReset)),
        (firmware("corrected", "0000:3b:00.0"), Some(Effect::Record)),
        (firmware("fatal", "0000:4b:00.0"), None),
    ] {
        assert_eq!(answer(&format!("{known}{lines}")), expected, "{lines}");
    }
}

#[test]
fn a_lines_gpu_and_process_are_told() {
    let text = "[1.0] NVRM: GPU at PCI:0000:3b:00: GPU-6ab4\n[2.0] NVRM: Xid (PCI:0000:3b:00): 154, pid=7, name=steps to win, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)\n\
        [3.0] NVRM: The NVIDIA GPU 0000:3b:00.0 (PCI ID: 10de:2330)\n[3.0] NVRM: installed in this system has\n[3.0] NVRM: fallen off the bus and is not responding to commands.";
    let read = whole(text);
    let records: Vec<_> = read
        .entries
        .iter()
        .map(|e| match &e.said {
            Said::Record(r) => r,
            Said::Gap(_) => panic!("no gap"),
        })
        .collect();
    assert_eq!(records[0].uuid.as_deref(), Some("GPU-6ab4"));
    let process = records[0].process.as_ref().expect("a process");
    assert_eq!((process.pid, process.name.as_str()), (7, "steps to win"));
    assert_eq!(records[0].fault, Fault::RecoveryAction { action: 2 });
    assert_eq!(records[1].device.map(|d| d.to_string()).as_deref(), Some("0000:3b:00"));
}

/// The driver that a log names reads its sub-codes; where none is named, the worse meaning counts.
#[test]
fn sub_codes_are_those_of_the_driver() {
    let line = "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 09 (0x025525c6 0x00000000 0x0 0x0 0x0 0x0)";
    let of = |driver: &str| {
        answer(&format!(
            "[1.0] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  {driver}.148.08  Release Build\n[2.0] {line}"
        ))
    };
    assert_ne!(of("570"), of("580"));
    let unnamed = answer(&format!("[2.0] {line}"));
    assert!(unnamed >= of("570").min(of("580")), "{unnamed:?}");
}

/// Inputs that were found by reading: each once gave a wrong answer, or a panic.
#[test]
fn what_was_answered_wrongly() {
    let gone = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.";
    let json = |more: &str| format!(r#"{{"_TRANSPORT":"kernel",{more}"MESSAGE":"{gone}"}}"#);
    let gpu = "[0.7] pci 0000:3b:00.0: [10de:2330] type 00 class 0x030200 PCIe Endpoint";
    let corrected = "{1}[Hardware Error]: event severity: corrected\n{1}[Hardware Error]: device_id: 0000:3b:00.0\n{1}[Hardware Error]: device_id: 0000:3b:00.0";
    for (text, expected) in [
        (format!("Mar 01 10:00:00 n bot[8]: one\n                              {gone}"), None),
        (json(r#""SYSLOG_FACILITY":"1","#), None),
        (json(r#""SYSLOG_FACILITY":"0","#), Some(Effect::Quarantine)),
        (format!("[Sun Mar  1 10:16:40 2026 <    0.000123>] {gone}"), Some(Effect::Quarantine)),
        (format!("Mar 01 10:16:40 kernel: {gone}"), Some(Effect::Quarantine)),
        (format!("2026-03-01T10:16:40+00:00 fe80::1 kernel: {gone}"), Some(Effect::Quarantine)),
        (
            format!("<3>1 2026-03-01T10:16:40Z n kernel - - [timeQuality tzKnown=\"1\"] {gone}"),
            Some(Effect::Quarantine),
        ),
        (format!("[So Mär  1 10:16:40 2026] {gone}"), Some(Effect::Recheck)),
        ("6,5,1,-;a\n14,900,2,-;systemd[1]: hi\n6,901,3,-;b".into(), Some(Effect::Recheck)),
        ("[9.0] nvme 0000:81:00.0: not ready 65535ms after FLR; giving up".into(), None),
        (
            format!("{gpu}\n[9.0] pci 0000:3b:00.0: not ready 65535ms after bus reset; giving up"),
            Some(Effect::DrainReboot),
        ),
        (
            format!("Mar 01 10:00:00 localhost kernel: Linux version 6\nMar 01 10:00:09 n kernel: {gone}"),
            Some(Effect::Quarantine),
        ),
        (format!("{gpu}\n{corrected}"), Some(Effect::Record)),
        (
            format!(
                "2030-01-01T00:00:00+00:00 n kernel: Linux version 6\n2026-03-01T00:00:00+00:00 n kernel: {DBE}\n2026-03-02T00:00:00+00:00 n kernel: {DBE}"
            ),
            Some(Effect::Quarantine),
        ),
        (format!("{DBE}\n[1000.0] {DBE}"), Some(Effect::DrainReset)),
        (format!("Feb 29 10:00:00 n kernel: {DBE}\nMar 01 10:00:00 n kernel: {DBE}"), Some(Effect::Quarantine)),
        (
            format!("[0.0] Booting Linux on physical CPU 0x0\n[0.0] Linux version 6\n[9.0] {DBE}"),
            Some(Effect::DrainReset),
        ),
        (format!("[Sun Mar  1 10:16:40 9223372036854775807] {gone}"), Some(Effect::Recheck)),
        ("Mar 9223372036854775807 10:16:40 n kernel: x".into(), None),
        ("2026-03-01T10:16:40+009223372036854775807 n kernel: x".into(), None),
        ("6,1,1,-;a\n6,2,18446744073709551615,-;b\n6,3,7,-;c".into(), None),
        ("99999999999999999999.0 n kernel: x\nMar 1 1:1:1 n kernel: Linux version 6\n[ 5.0] x".into(), None),
        ("[<999999999.0>] x\n".repeat(40), None),
    ] {
        assert_eq!(answer(&text), expected, "{text}");
    }
    let booted = whole("[0.0] Booting Linux on physical CPU 0x0\n[0.0] Linux version 6\n[9.0] x");
    assert_eq!(booted.boots, 1);
}

#[test]
fn a_number_that_nothing_can_follow_is_named() {
    let line = format!("3,{},5,-;{DBE}", u64::MAX);
    let error = Log::default().read(line.as_bytes()).expect_err("no number");
    assert!(error.to_string().starts_with("line 1: 18446744073709551615"), "{error}");
}

proptest! {
    /// HLT: more of the same is never better, however often it comes.
    #[test]
    fn more_often_is_never_milder(step_s in 10_u64..7200, lines in 1_usize..400, more in 1_usize..400) {
        for fault in [CORRECTED, "NVRM: Xid (PCI:0000:3b:00): 31, pid=1, name=a, MMU Fault", "NVRM: Xid (PCI:0000:3b:00): 92, High rate"] {
            let text = |n: usize| (1..=n as u64).map(|i| format!("[{}.0] {fault}\n", i * step_s)).collect::<String>();
            prop_assert!(answer(&text(lines + more)) >= answer(&text(lines)));
        }
    }

    #[test]
    fn any_bytes_get_an_answer(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20)) {
        let mut log = Log::default();
        for line in &lines {
            let _ = log.read(line);
        }
        let _ = log.finish();
    }

    #[test]
    fn any_stamp_gets_an_answer(stamp in "[\\[<{0-9A-Za-z:.,+ -]{0,40}", text in ".{0,40}") {
        let _ = form::split(&format!("{stamp}] {text}"));
        let _ = form::split(&format!("{stamp} host kernel: {text}"));
        let _ = form::split(&format!("Mar 9999999999 {stamp} {text}"));
    }
}
