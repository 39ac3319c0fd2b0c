//! The boot gate by hand, in real processes.

use std::time::{Duration, Instant};

use expect_test::expect;
use serde_json::json;

use crate::stand::Stand;

/// The time differs from run to run.
fn timeless(text: &str) -> String {
    let end = text.rfind(" (").unwrap_or(text.len());
    text[..end].to_owned() + "\n"
}

#[test]
fn a_healthy_host_passes_with_its_numbers() {
    let stand = Stand::healthy(2);
    let (code, text) = stand.check(&["--gpus", "2", "--pci-device", "2335"]);
    assert_eq!(code, 0, "{text}");
    expect![[r#"
        check             number                  limits                      host   GPU 0   GPU 1
        device-files                                                          pass
        census                                                                pass
                          on_bus                                                 2
                          in_driver                                              2
        identity                                                                      pass    pass
        kernel-log                                                            pass
                          lines                                                  0
        error-state                                                                   pass    pass
                          remapped_correctable                                           0       0
                          remapped_uncorrectable                                         0       0
                          volatile_corrected                                             0       0
        thermal                                                                       pass    pass
                          idle_temperature_c      warn > 70, fail > 90                  35      35
                          load_temperature_c      warn > 83, fail > 90                  35      35
                          idle_margin_c           warn < 15                             50      50
                          power_limit_w           warn < 665                           700     700
                          load_power_w                                                 120     120
                          load_sm_clock_mhz                                           1980    1980
                          max_sm_clock_mhz                                            1980    1980
        links                                                                         pass    pass
                          nvlinks_active          fail < 18                             18      18
        context                                                                       pass    pass
                          init_s                                                     0.500   0.500
                          create_s                                                   0.200   0.200
                          load_s                                                     0.100   0.100
                          answer_s                                                   0.010   0.010
                          tries                                                          1       1
        memory                                                                        pass    pass
                          tested_mib                                                135000  135000
                          write_gbps                                                  4000    4000
                          verify_gbps                                                 4000    4000
                          seconds                                                        1       1
        memory-bandwidth                                                              pass    pass
                          read_gbps               fail < 3450, warn < 4048            4200    4200
                          copy_gbps                                                   4000    4000
                          driver_copy_gbps                                            4000    4000
        host-copies                                                                   pass    pass
                          pcie_gen                                                       5       5
                          pcie_width                                                    16      16
                          h2d_gbps                fail < 48                             55      55
                          d2h_gbps                fail < 48                             55      55
                          h2d_together_gbps       fail < 24                             55      55
                          d2h_together_gbps       fail < 24                             55      55
        products                                                                      pass    pass
                          tensor_tflops           fail < 212.2, warn < 249.0           600     600
                          fp32_gflops             fail < 44500                       55000   55000
        repeatability                                                                 pass    pass
                          repeats                                                       64      64
                          fp32_repeats                                                 100     100
        peer-copies                                                           pass
                          peer_gbps               fail < 335                   380
                          peer_gbps               fail < 335                   380
        afterwards                                                                    pass    pass
                          remapped_correctable                                           0       0
                          remapped_uncorrectable                                         0       0
                          volatile_corrected                                             0       0
                          pcie_replays_more       warn > 0                               0       0
                          corrected_errors_more                                          0       0

        pass
    "#]]
    .assert_eq(&timeless(&text));
}

#[test]
fn json_carries_report_and_evidence() {
    let (code, text) = Stand::healthy(1).check(&["--output", "json"]);
    assert_eq!(code, 0, "{text}");
    let both: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(both["report"]["verdict"], "pass");
    assert_eq!(both["evidence"]["gpus"][0]["identity"]["Ok"]["pci_device"], "2335");
}

/// What is wrong, the exit code, and what a person reads.
fn found(stand: &Stand, args: &[&str], code: i32, words: &str) {
    let (got, text) = stand.check(args);
    assert_eq!(got, code, "{text}");
    assert!(text.contains(words), "'{words}' is not in\n{text}");
}

#[test]
fn faults_are_found_by_name() {
    let host = |change: fn(&mut Stand)| {
        let mut stand = Stand::healthy(2);
        change(&mut stand);
        stand
    };
    let gpu1 = |stand: &mut Stand, key: &str, value: serde_json::Value| stand.script["gpus"][1][key] = value;
    found(&host(|_| {}), &["--gpus", "8"], 5, "the driver sees 2 GPUs, bought were 8");
    let hidden = host(|s| s.variables.push(("STAND_IN_HIDE", "1".into())));
    found(&hidden, &["--gpus", "2"], 5, "0000:11:00 is on the bus and the driver does not see it");
    let spoiled = host(|s| s.variables.push(("STAND_IN_SPOIL", "37".into())));
    found(&spoiled, &[], 5, "1 of 64 products had other bits than the first (repeats [37])");
    let mut stand = Stand::healthy(2);
    gpu1(&mut stand, "bad_words", json!(3));
    found(&stand, &[], 5, "GPU 1: memory: 3 words did not hold what was written, the first at byte 0x1000");
    let mut stand = Stand::healthy(2);
    gpu1(&mut stand, "h2d_gbps", json!(24.0));
    found(&stand, &[], 5, "GPU 1: host-copies: h2d_gbps 24 is below 48");
    let mut stand = Stand::healthy(2);
    gpu1(&mut stand, "readings", json!({ "remap_pending": 1 }));
    found(&stand, &[], 5, "a row waits to be remapped: reset the GPU");
    let mut stand = Stand::healthy(2);
    gpu1(&mut stand, "readings", json!({ "temperature_c": 75 }));
    found(&stand, &[], 3, "GPU 1: thermal: idle_temperature_c 75 is above 70");
    let mut stand = Stand::healthy(2);
    gpu1(&mut stand, "readings", json!({ "mig": 1 }));
    found(&stand, &[], 4, "MIG is on");
    let mut stand = Stand::healthy(2);
    gpu1(&mut stand, "lost", json!(true));
    found(&stand, &[], 5, "GPU 1: context: the GPU does not answer any more");
}

#[test]
fn what_could_not_be_seen_is_named_and_not_healthy() {
    let mut stand = Stand::healthy(1);
    stand.script["no_driver"] = json!("libnvidia-ml.so.1 is not there");
    found(&stand, &[], 4, "no driver: libnvidia-ml.so.1 is not there");
    let mut stand = Stand::healthy(1);
    stand.script["gpus"][0]["unseen"] = json!({ "remap_pending": { "missing-symbol": "nvmlDeviceGetRemappedRows" } });
    found(&stand, &[], 4, "remap_pending: the driver's library has no nvmlDeviceGetRemappedRows");
    let stand = Stand::healthy(1);
    std::fs::remove_file(stand.kernel_log()).unwrap();
    found(&stand, &[], 4, "the kernel log was not read");
    let stand = Stand::healthy(1);
    std::fs::write(stand.kernel_log(), "6,900,10,-;some line\n").unwrap();
    found(&stand, &[], 4, "lines were lost before they were read");
    // A kernel's log is never empty, and what a process wrote is not the kernel's.
    for text in ["", "\n", "30,0,10,-;systemd[1]: hello\n"] {
        let stand = Stand::healthy(1);
        std::fs::write(stand.kernel_log(), text).unwrap();
        found(&stand, &[], 4, "no line of it is the kernel's");
    }
    let mut stand = Stand::healthy(1);
    stand.variables.push(("STAND_IN_CRASH", "bandwidth".into()));
    found(&stand, &[], 4, "the probe ended: signal: 6 (SIGABRT)");
}

/// A child that hangs is a finding on its GPU, within its deadline; the others are checked.
#[test]
fn a_stuck_child_is_a_finding_and_not_a_hang() {
    let mut stand = Stand::healthy(1);
    stand.variables.push(("STAND_IN_HANG", "memory".into()));
    #[allow(clippy::disallowed_methods, reason = "real processes take real time")]
    let began = Instant::now();
    found(&stand, &[], 4, "GPU 0: memory: stuck: no answer within 2000 ms");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let mut stand = Stand::healthy(2);
    stand.script["gpus"][1]["hangs"] = json!(true);
    let (code, text) = stand.check(&[]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("GPU 1: error-state: ecc: stuck"), "{text}");
    assert!(!text.contains("GPU 0: error-state"), "the other GPU was looked at:\n{text}");
}

#[test]
fn senseless_options_are_refused_with_the_reason() {
    let stand = Stand::healthy(1);
    let limits = stand.root().join("limits.toml");
    std::fs::write(&limits, "[[model]]\npci_device = '2335'\nread_fail_gbps = -1.0\n").unwrap();
    found(&stand, &["--limits", &limits.display().to_string()], 1, "read_fail_gbps = -1 is no limit");
    found(&stand, &["--tensor-s", "0"], 2, "cannot be used multiple times");
    std::fs::write(&limits, "[[model]]\npci_device = '2335'\nread_fail_gbps = 9000.0\n").unwrap();
    found(&stand, &["--limits", &limits.display().to_string()], 5, "read_gbps 4200 is below 9000");
}

/// A log of any length is read to its end, and a storm of one kind hides nothing that comes after it.
#[test]
fn the_last_line_of_a_long_log_is_found() {
    let stand = Stand::healthy(1);
    let mut text = "[1.0] EXT4-fs (sda1): mounted filesystem with ordered data mode\n".repeat(1_100_000);
    text += &"[8.0] nvidia 0000:01:00.0: PCIe Bus Error: severity=Corrected, type=Physical Layer\n".repeat(50_000);
    text += "[9.0] NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.\n";
    assert!(text.len() > 64 << 20);
    std::fs::write(stand.kernel_log(), text).unwrap();
    found(&stand, &[], 5, "xid:79: NVRM: Xid (PCI:0000:01:00): 79");
}
