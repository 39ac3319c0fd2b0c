//! The boot gate: a healthy host passes, and nothing that is missing or wrong does.

use std::collections::BTreeMap;

use fleet::Remedy;
use health::Verdict;
use health::gate::{
    Bandwidth, Context, Copies, CopyRates, Driver, Evidence, Expected, Gpu, Identity, Learned, Limits, MemoryPatterns,
    Peer, Products, Reading, Readings, Report, Scope, Unseen, judge, learn,
};
use health::kernel_log;
use health::policy::Policy;
use serde_json::{Value, json};

fn readings(loaded: bool) -> Readings {
    let value = |r: &Reading| match r {
        Reading::Temperature => 34 + i64::from(loaded) * 30,
        Reading::MarginTemperature => 50,
        Reading::Power => 120_000,
        Reading::PowerLimit | Reading::DefaultPowerLimit => 700_000,
        Reading::SmClock | Reading::MaxSmClock => 1980,
        Reading::PcieGen | Reading::MaxPcieGen => 5,
        Reading::PcieWidth | Reading::MaxPcieWidth => 16,
        Reading::Ecc | Reading::EccPending => 1,
        Reading::NvlinksActive => 18,
        Reading::FabricState => 3,
        Reading::MemoryTotal => 143_771,
        Reading::MemoryFree => 143_000,
        _ => 0,
    };
    Reading::ALL.iter().map(|r| (*r, Ok(value(r)))).collect()
}

fn healthy(gpus: u32) -> Evidence {
    let gpu = |index: u32| Gpu {
        index,
        address: format!("0000:{:02x}:00", 16 + index).parse().expect("an address"),
        identity: Ok(Identity { name: "NVIDIA H200".into(), pci_device: "2335".into(), ..Identity::default() }),
        before: readings(false),
        loaded: readings(true),
        after: readings(false),
        context: Ok(Context { tries: 1, ..Context::default() }),
        memory: Ok(MemoryPatterns { tested_bytes: 135_000 << 20, patterns: 8, ..MemoryPatterns::default() }),
        bandwidth: Ok(Bandwidth { read_gbps: 4600.0, copy_gbps: 4000.0, driver_copy_gbps: 4200.0 }),
        copies_alone: Ok(copies()),
        copies_together: Ok(copies()),
        products: Ok(Products {
            repeats: 2000,
            digest: "ab".into(),
            tensor_tflops: 283.0,
            fp32_gflops: 59_000.0,
            fp32_digest: "cd".into(),
            fp32_repeats: 400,
            ..Products::default()
        }),
    };
    let gpus: Vec<Gpu> = (0..gpus).map(gpu).collect();
    let next = |from: u32| (from + 1) % gpus.len() as u32;
    let peer = |from: u32| Peer { from, to: next(from), direct: true, gbps: 380.0, bad_words: 0 };
    Evidence {
        scope: Scope::Whole,
        expected: Expected { gpus: Some(gpus.len() as u32), pci_device: Some("2335".into()), driver: None },
        missing_files: Ok(Vec::new()),
        on_bus: Ok(gpus.iter().map(|g| (g.address, "2335".to_owned())).collect()),
        driver: Ok(Driver { version: "580.159.04".into(), cuda: "13.0".into() }),
        log_before: Ok(Vec::new()),
        log_during: Ok(Vec::new()),
        peers: Ok(if gpus.len() > 1 { (0..gpus.len() as u32).map(peer).collect() } else { Vec::new() }),
        gpus,
        seconds: 9.0,
    }
}

fn copies() -> Copies {
    Copies { rates: CopyRates { h2d_gbps: 55.0, d2h_gbps: 55.0, bad_words: 0 }, link: readings(true) }
}

fn judged(evidence: &Evidence) -> Report {
    judge(evidence, &Limits::default(), &Policy::default())
}

#[test]
fn a_healthy_host_passes() {
    for gpus in [1, 2, 8] {
        let report = judged(&healthy(gpus));
        assert_eq!(report.verdict, Verdict::Pass, "{gpus} GPUs: {:#?}", report.findings());
        assert_eq!(report.mend, Remedy::Nothing);
    }
}

/// What a GPU need not offer: everything else must have been seen.
const OPTIONAL: [&str; 20] = [
    "margin_temperature_c",
    "power_mw",
    "default_power_limit_mw",
    "sm_clock_mhz",
    "max_sm_clock_mhz",
    "pcie_gen",
    "pcie_width",
    "max_pcie_gen",
    "max_pcie_width",
    "pcie_replays",
    "ecc_pending",
    "volatile_corrected",
    "remapped_correctable",
    "remapped_uncorrectable",
    "retirement_pending",
    "sram_threshold",
    "recovery_action",
    "fabric_state",
    "fabric_unhealthy",
    "memory_total_mib",
];

/// What is looked at again after the work.
const AFTERWARDS: [&str; 5] = ["ecc", "volatile_uncorrected", "remap_pending", "remap_failed", "throttle_reasons"];

/// Every place of the evidence in which something was seen is taken away in turn. None of them may leave a pass behind,
/// unless the GPU need not offer it.
#[test]
fn whatever_is_not_seen_never_passes() {
    let whole = serde_json::to_value(healthy(2)).expect("evidence is JSON");
    let mut paths = Vec::new();
    walk(&whole, String::new(), &mut paths);
    assert!(paths.len() > 200, "only {} places", paths.len());
    let mut optional_passes = 0;
    for path in &paths {
        for why in [json!("not-supported"), json!({"stuck": {"deadline_ms": 1000}}), json!({"error": "?"})] {
            let mut changed = whole.clone();
            *changed.pointer_mut(path).expect("the path is from there") = json!({ "Err": why });
            let evidence: Evidence = serde_json::from_value(changed).expect("it still reads");
            let report = judged(&evidence);
            let name = path.rsplit('/').next().unwrap_or_default();
            let only_written_down = match path.split('/').nth(3) {
                Some("loaded") => !["throttle_reasons", "temperature_c"].contains(&name),
                Some("after") => !AFTERWARDS.contains(&name),
                _ => path.contains("/link/") || ["memory_free_mib", "processes"].contains(&name),
            };
            if report.verdict == Verdict::Pass {
                assert!(OPTIONAL.contains(&name) || only_written_down, "passes without {path} ({why})");
                optional_passes += 1;
            }
        }
    }
    assert!(optional_passes > 0, "optional readings are optional");
}

fn walk(value: &Value, path: String, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if map.contains_key("Ok") {
                into.push(path.clone());
            }
            for (key, inner) in map {
                walk(inner, format!("{path}/{key}"), into);
            }
        }
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                walk(inner, format!("{path}/{i}"), into);
            }
        }
        _ => {}
    }
}

/// A fault, what it must be found as, and what would mend it.
type Planted = (&'static str, fn(&mut Evidence), Verdict, Remedy, &'static str);

const PLANTED: &[Planted] = &[
    ("a GPU gone from the bus", |e| drop(e.on_bus.as_mut().map(Vec::pop)), Verdict::Fail, Remedy::Replace, "census"),
    ("a GPU the driver does not see", |e| drop(e.gpus.pop()), Verdict::Fail, Remedy::Replace, "census"),
    ("fewer GPUs than bought", |e| e.expected.gpus = Some(4), Verdict::Fail, Remedy::Replace, "census"),
    ("another model", |e| e.expected.pci_device = Some("2330".into()), Verdict::Fail, Remedy::Replace, "identity"),
    ("another driver", |e| e.expected.driver = Some("570.1".into()), Verdict::Fail, Remedy::SetUp, "identity"),
    (
        "no device file",
        |e| e.missing_files = Ok(vec!["/dev/nvidia-uvm".into()]),
        Verdict::Fail,
        Remedy::SetUp,
        "device-files",
    ),
    (
        "Xid 79",
        |e| e.log_before = lines("NVRM: Xid (PCI:0000:10:00): 79, GPU has fallen off the bus."),
        Verdict::Fail,
        Remedy::Replace,
        "kernel-log",
    ),
    (
        "Xid 63",
        |e| e.log_before = lines("NVRM: Xid (PCI:0000:10:00): 63, pid=1, Row remapper"),
        Verdict::Fail,
        Remedy::Reset,
        "kernel-log",
    ),
    (
        "Xid 31 while only the gate runs",
        |e| e.log_during = lines("NVRM: Xid (PCI:0000:10:00): 31, pid=1, MMU fault"),
        Verdict::Fail,
        Remedy::Reset,
        "afterwards",
    ),
    (
        "a switch fails while the gate runs",
        |e| e.log_during = lines("nvidia-nvswitch0: SXid (PCI:0000:85:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"),
        Verdict::Fail,
        Remedy::Reboot,
        "afterwards",
    ),
    (
        "the driver asks for a reset",
        |e| set(e, Reading::RecoveryAction, 1),
        Verdict::Fail,
        Remedy::Reset,
        "error-state",
    ),
    (
        "the driver asks for a reboot",
        |e| set(e, Reading::RecoveryAction, 2),
        Verdict::Fail,
        Remedy::Reboot,
        "error-state",
    ),
    (
        "the driver asks for something new",
        |e| set(e, Reading::RecoveryAction, 99),
        Verdict::Unmeasured,
        Remedy::Reset,
        "error-state",
    ),
    ("a remap waits", |e| set(e, Reading::RemapPending, 1), Verdict::Fail, Remedy::Reset, "error-state"),
    ("a remap failed", |e| set(e, Reading::RemapFailed, 1), Verdict::Fail, Remedy::Replace, "error-state"),
    ("SRAM errors", |e| set(e, Reading::SramThreshold, 1), Verdict::Fail, Remedy::Replace, "error-state"),
    ("ECC is off", |e| set(e, Reading::Ecc, 0), Verdict::Fail, Remedy::SetUp, "error-state"),
    ("a power brake", |e| set(e, Reading::ThrottleReasons, 0x80), Verdict::Fail, Remedy::Replace, "thermal"),
    ("hot at idle", |e| set(e, Reading::Temperature, 75), Verdict::Degraded, Remedy::TryAgain, "thermal"),
    ("a lower power limit", |e| set(e, Reading::PowerLimit, 500_000), Verdict::Degraded, Remedy::SetUp, "thermal"),
    ("a link is down", |e| set(e, Reading::NvlinksActive, 17), Verdict::Fail, Remedy::Reboot, "links"),
    ("the fabric is not up", |e| set(e, Reading::FabricState, 2), Verdict::Fail, Remedy::SetUp, "links"),
    ("MIG is on", |e| set(e, Reading::Mig, 1), Verdict::Unmeasured, Remedy::SetUp, "identity"),
    ("less memory than the model", |e| set(e, Reading::MemoryTotal, 120_000), Verdict::Fail, Remedy::Replace, "memory"),
    (
        "a GPU goes away in a check",
        |e| e.gpus[0].memory = Err(Unseen::GpuLost),
        Verdict::Fail,
        Remedy::Replace,
        "memory",
    ),
    (
        "a stuck probe",
        |e| e.gpus[0].memory = Err(Unseen::Stuck { deadline_ms: 1 }),
        Verdict::Unmeasured,
        Remedy::Reboot,
        "memory",
    ),
    ("a bad word", |e| memory(e, |m| m.bad_words = 1), Verdict::Fail, Remedy::Replace, "memory"),
    (
        "a process holds memory",
        |e| memory(e, |m| m.tested_bytes = 100_000 << 20),
        Verdict::Unmeasured,
        Remedy::SetUp,
        "memory",
    ),
    ("fewer patterns", |e| memory(e, |m| m.patterns = 7), Verdict::Unmeasured, Remedy::TryAgain, "memory"),
    ("slow memory", |e| bandwidth(e, 2400.0), Verdict::Fail, Remedy::Replace, "memory-bandwidth"),
    ("memory that is a little slow", |e| bandwidth(e, 4000.0), Verdict::Degraded, Remedy::Replace, "memory-bandwidth"),
    ("a number that is none", |e| bandwidth(e, f64::NAN), Verdict::Fail, Remedy::Replace, "memory-bandwidth"),
    (
        "a slow link",
        |e| {
            let c = of(&mut e.gpus[0].copies_alone);
            c.rates.h2d_gbps = 26.0;
        },
        Verdict::Fail,
        Remedy::Replace,
        "host-copies",
    ),
    (
        "a narrow link",
        |e| {
            let c = of(&mut e.gpus[0].copies_alone);
            drop(c.link.insert(Reading::PcieWidth, Ok(8)));
        },
        Verdict::Fail,
        Remedy::Replace,
        "host-copies",
    ),
    (
        "words change on the link",
        |e| {
            let c = of(&mut e.gpus[0].copies_together);
            c.rates.bad_words = 1;
        },
        Verdict::Fail,
        Remedy::Replace,
        "host-copies",
    ),
    ("slow products", |e| products(e, |p| p.tensor_tflops = 200.0), Verdict::Fail, Remedy::Replace, "products"),
    ("a product that differs", |e| products(e, |p| p.odd_count = 1), Verdict::Fail, Remedy::Replace, "repeatability"),
    (
        "multiply-adds that differ",
        |e| products(e, |p| p.fp32_odd_count = 1),
        Verdict::Fail,
        Remedy::Replace,
        "repeatability",
    ),
    ("too few products", |e| products(e, |p| p.repeats = 63), Verdict::Unmeasured, Remedy::TryAgain, "repeatability"),
    (
        "other bits than its neighbour",
        |e| products(e, |p| p.digest = "ef".into()),
        Verdict::Fail,
        Remedy::Replace,
        "repeatability",
    ),
    (
        "slow peers",
        |e| {
            let p = of(&mut e.peers);
            p[0].gbps = 100.0;
        },
        Verdict::Fail,
        Remedy::Replace,
        "peer-copies",
    ),
    (
        "peers through the host",
        |e| {
            let p = of(&mut e.peers);
            p[0].direct = false;
        },
        Verdict::Fail,
        Remedy::Reboot,
        "peer-copies",
    ),
    (
        "a copy that is missing",
        |e| drop(e.peers.as_mut().map(Vec::pop)),
        Verdict::Unmeasured,
        Remedy::TryAgain,
        "peer-copies",
    ),
    (
        "errors in the work",
        |e| drop(e.gpus[0].after.insert(Reading::VolatileUncorrected, Ok(1))),
        Verdict::Fail,
        Remedy::Reset,
        "afterwards",
    ),
    (
        "replays in the work",
        |e| drop(e.gpus[0].after.insert(Reading::PcieReplays, Ok(3))),
        Verdict::Degraded,
        Remedy::TryAgain,
        "afterwards",
    ),
];

fn lines(text: &str) -> Result<Vec<kernel_log::Record>, Unseen> {
    Ok(text.lines().filter_map(kernel_log::read).collect())
}

fn set(e: &mut Evidence, reading: Reading, value: i64) {
    let gpu = &mut e.gpus[0];
    gpu.before.insert(reading, Ok(value));
}

fn of<T>(look: &mut Result<T, Unseen>) -> &mut T {
    look.as_mut().expect("it was seen")
}

fn memory(e: &mut Evidence, change: fn(&mut MemoryPatterns)) {
    change(of(&mut e.gpus[0].memory));
}

fn bandwidth(e: &mut Evidence, read_gbps: f64) {
    {
        let b = of(&mut e.gpus[0].bandwidth);
        b.read_gbps = read_gbps;
    }
}

fn products(e: &mut Evidence, change: fn(&mut Products)) {
    change(of(&mut e.gpus[0].products));
}

#[test]
fn each_planted_fault_is_found_where_it_is() {
    for (name, plant, verdict, mend, check) in PLANTED {
        let mut evidence = healthy(2);
        plant(&mut evidence);
        let report = judged(&evidence);
        assert_eq!((report.verdict, report.mend), (*verdict, *mend), "{name}: {:#?}", report.findings());
        let found: Vec<_> = report.outcomes.iter().filter(|o| !o.findings.is_empty()).map(|o| o.check.name()).collect();
        assert!(found.contains(check), "{name} was found in {found:?}");
    }
}

#[test]
fn of_several_gpus_the_odd_one_is_blamed() {
    let mut evidence = healthy(8);
    {
        let p = of(&mut evidence.gpus[5].products);
        p.digest = "ef".into();
    }
    let report = judged(&evidence);
    let blamed: Vec<_> = report.outcomes.iter().filter(|o| !o.findings.is_empty()).map(|o| o.gpu).collect();
    assert_eq!(blamed, [Some(5)]);
}

#[test]
fn an_unknown_model_is_not_measured() {
    let mut evidence = healthy(1);
    evidence.expected.pci_device = None;
    {
        let i = of(&mut evidence.gpus[0].identity);
        i.pci_device = "ffff".into();
    }
    let report = judged(&evidence);
    assert_eq!((report.verdict, report.mend), (Verdict::Unmeasured, Remedy::SetUp));
    let limits = Limits::default().overridden(
        "[[model]]\npci_device = 'ffff'\nmemory_mib = 143771\nread_fail_gbps = 3000\ncopy_fail_gbps = 40\n\
         tensor_ref_tflops = 280\nfp32_fail_gflops = 40000\npower_w = 700\nremaps = 1",
    );
    let report = judge(&evidence, &limits.expect("the file reads"), &Policy::default());
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.findings());
}

#[test]
fn a_host_may_lack_what_an_operator_accepts() {
    let mut evidence = healthy(2);
    for gpu in &mut evidence.gpus {
        for readings in [&mut gpu.before, &mut gpu.after] {
            readings.insert(Reading::SramThreshold, Err(Unseen::MissingSymbol("nvmlDeviceGetSram…".into())));
        }
    }
    assert_eq!(judged(&evidence).verdict, Verdict::Unmeasured, "an old library is a finding");
    let limits = Limits::default().overridden("accept_unmeasured = ['sram_threshold']").expect("it reads");
    assert_eq!(judge(&evidence, &limits, &Policy::default()).verdict, Verdict::Pass);
    assert!(Limits::default().overridden("accept_unmeasured = ['everything']").is_err());
    assert!(Limits::default().overridden("[[model]]\npci_device = '2335'\nread_fail_gbps = 0.0").is_err());
}

#[test]
fn a_fleet_teaches_its_limits_and_only_upwards() {
    let report = judged(&healthy(2));
    assert_eq!(learn(std::iter::repeat_n(&report, 19)), Learned::default(), "19 hosts teach nothing");
    let learned = learn(std::iter::repeat_n(&report, 20));
    assert_eq!(learned.medians.get("read_gbps"), Some(&4600.0));
    let limits = Limits::default().with_learned(learned);
    let mut slow = healthy(2);
    bandwidth(&mut slow, 3800.0);
    assert_eq!(judged(&slow).verdict, Verdict::Degraded, "the table lets it through");
    assert_eq!(judge(&slow, &limits, &Policy::default()).verdict, Verdict::Fail, "3800 is below 0.85 of 4600");
    let weak = Learned { medians: BTreeMap::from([("read_gbps".to_owned(), 100.0)]) };
    bandwidth(&mut slow, 3000.0);
    let limits = Limits::default().with_learned(weak);
    assert_eq!(judge(&slow, &limits, &Policy::default()).verdict, Verdict::Fail, "never below the table");
}

/// After diagnostics a host need not show again what takes time; what takes seconds it must.
#[test]
fn the_short_gate_asks_for_less_and_forgives_nothing() {
    let not_reached = || Unseen::NotReached("the short gate".into());
    let mut short = healthy(2);
    short.scope = Scope::Short;
    for gpu in &mut short.gpus {
        gpu.before.insert(Reading::Temperature, Ok(78));
        (gpu.memory, gpu.bandwidth, gpu.products) = (Err(not_reached()), Err(not_reached()), Err(not_reached()));
        (gpu.copies_alone, gpu.copies_together) = (Err(not_reached()), Err(not_reached()));
        gpu.loaded = Readings::new();
    }
    short.peers = Err(not_reached());
    let report = judged(&short);
    assert_eq!(report.verdict, Verdict::Pass, "{:#?}", report.findings());
    let as_whole = judged(&Evidence { scope: Scope::Whole, ..short.clone() });
    assert_eq!(as_whole.verdict, Verdict::Unmeasured, "the whole gate is not passed so");
    let mut without = short.clone();
    without.gpus[1].context = Err(Unseen::Stuck { deadline_ms: 12_000 });
    assert_eq!(judged(&without).verdict, Verdict::Unmeasured);
    let mut errors = short.clone();
    errors.gpus[0].after.insert(Reading::RemapPending, Ok(1));
    assert_eq!((judged(&errors).verdict, judged(&errors).mend), (Verdict::Fail, Remedy::Reset));
    short.gpus.remove(1);
    assert_eq!(judged(&short).verdict, Verdict::Fail, "a GPU is gone");
}
