//! `pilotlight health` as people see it.

use expect_test::expect;

use crate::{fixtures, run_in};

#[test]
fn a_kernel_log_is_replayed() {
    let ran = run_in(&fixtures().join("health"), &["health", "replay", "kernel.log"]);
    assert_eq!(ran.code, 5, "{}", ran.err);
    expect![[r#"
           after  GPU                 cause           the node       evidence                                                                          
         120.0 s  0000:19:00  raised  xid:13          record         13, pid=4711, name=python3, Graphics SM Warp Exception on (GPC 2, TPC 1, SM 0):   
         900.0 s  0000:19:00  over    xid:13          record                                                                                           
         900.0 s  0000:3b:00  raised  xid:63          reset-at-idle  63, pid='<unknown>', name=<unknown>, Row Remapper: New row (0x1f3a) marked for r  
         900.1 s  0000:3b:00  raised  xid:94          reset-at-idle  94, pid=5001, name=python3, Contained: SM (0x1). RST: No, D-RST: No               
        1800.0 s  host        raised  log-gap         recheck        4 lines are missing                                                               
        1800.0 s  0000:5d:00  raised  pcie-corrected  record         pcieport 0000:00:01.0: AER: Corrected error received: 0000:5d:00.0                
        2400.0 s  0000:5d:00  over    pcie-corrected  record                                                                                           
        2400.0 s  0000:5d:00  raised  xid:149         drain-reset    149, NETIR_LINK_EVT Fatal XC0 i0 Link 8 (0x00000011 0x00000004 0x00000000 0x0000  
        2400.2 s  0000:5d:00  raised  driver:1        drain-reset    154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)      
        3600.0 s  0000:9b:00  raised  xid:79          quarantine     79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.                  

        cause           GPU         lines  episodes  NVIDIA        here           
        xid:13          0000:19:00      3         1  record        record         
        xid:63          0000:3b:00      1         1  record        reset-at-idle  
        xid:79          0000:9b:00      2         1  drain-reboot  quarantine     
        xid:94          0000:3b:00      1         1  record        reset-at-idle  
        xid:149         0000:5d:00      1         1  recheck       drain-reset    
        driver:1        0000:5d:00      1         1  -             drain-reset    
        pcie-corrected  0000:5d:00      1         1  -             record         
        log-gap         host            1         1  -             recheck        

        At the end of the log the host is not claimable: quarantine (6 conditions).
    "#]].assert_eq(&ran.out);
}

/// A host without a fault may be claimed; the answer for programs says it in one word, and in the exit code.
#[test]
fn the_answer_is_for_programs_too() {
    let folder = tempfile::tempdir().expect("temp");
    let quiet = "[0.0] Linux version 6.8\n[1.0] nvidia 0000:3b:00.0: enabling device\n";
    for (more, code, verdict) in [
        ("", 0, "pass"),
        ("[9.0] NVRM: Xid (PCI:0000:3b:00): 9999, new\n", 4, "unmeasured"),
        ("[9.0] NVRM: Xid (PCI:0000:3b:00): 95, bad\n", 5, "fail"),
    ] {
        std::fs::write(folder.path().join("log"), format!("{quiet}{more}")).expect("written");
        let ran = run_in(folder.path(), &["health", "replay", "log", "--output", "json"]);
        let answer: serde_json::Value = serde_json::from_str(&ran.out).expect("JSON");
        assert_eq!((ran.code, answer["verdict"].as_str()), (code, Some(verdict)), "{}", ran.out);
        assert_eq!(answer["standing"]["claimable"], serde_json::json!(code == 0));
    }
}

#[test]
fn a_diagnostic_is_judged() {
    let folder = fixtures().join("health");
    let args = ["health", "diag", "diag.json", "--exit-code", "226", "--level", "2", "--gpus", "3"];
    let ran = run_in(&folder, &args);
    assert_eq!(ran.code, 5, "{}", ran.err);
    expect![[r#"
        fail: replace
          GPU 2 is missing
          memory on GPU 1, DCGM_FR_UNCORRECTABLE_ROW_REMAP (reset): A pending row remap was found on GPU 1.
          not measured: memory has no result on GPU 2
          not measured: pcie was left out on GPU 1
          not measured: pcie has no result on GPU 2
          not measured: software has no result on GPU 2
    "#]]
    .assert_eq(&ran.out);
}

#[test]
fn the_policy_shows_where_it_differs() {
    let ran = run_in(&fixtures(), &["health", "policy"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for text in ["xid:63", "reset-at-idle", "xid:79", "quarantine", "after-replace", "remap-failed"] {
        assert!(ran.out.contains(text), "{text}: {}", ran.out);
    }
    assert!(!ran.out.contains("xid:62 "), "what is the catalogue's is not shown");
    let all = run_in(&fixtures(), &["health", "policy", "--all", "--output", "json"]);
    let rules: Vec<serde_json::Value> = serde_json::from_str(&all.out).expect("JSON");
    assert!(rules.len() > 170);
}

#[test]
fn what_does_not_read_is_said() {
    let folder = tempfile::tempdir().expect("temp");
    std::fs::write(
        folder.path().join("bad.toml"),
        "[[rule]]\non = \"xid:63\"\neffect = \"quarantine\"\nclear = \"quiet\"",
    )
    .expect("written");
    std::fs::write(folder.path().join("empty.log"), "usb 1-1: new device\n").expect("written");
    let ran = run_in(folder.path(), &["health", "policy", "--policy", "bad.toml"]);
    assert!(
        ran.code == 2 && ran.err.contains("bad.toml") && ran.err.contains("silence proves no health"),
        "{}",
        ran.err
    );
    for (name, text, said) in [
        ("quiet.log", "[1.0] usb 1-1: new device\n", "no line of it names a GPU"),
        ("nothing.log", "", "no line of it is the kernel's"),
        ("quoted.log", "Mar 01 10:00:00 n bot[8]: NVRM: Xid (PCI:0000:3b:00): 79\n", "1 lines are those of processes"),
    ] {
        std::fs::write(folder.path().join(name), text).expect("written");
        let ran = run_in(folder.path(), &["health", "replay", name]);
        assert!(ran.code == 4 && ran.out.contains(said) && ran.out.contains("Unmeasured"), "{}", ran.out);
    }
    std::fs::write(folder.path().join("two.log"), "Mar 01 10:00:00 a kernel: x\nMar 01 10:00:00 b kernel: y\n")
        .expect("written");
    let ran = run_in(folder.path(), &["health", "replay", "two.log"]);
    assert!(
        ran.code == 2 && ran.err.contains("it has lines of a and of b: take one host's with --host"),
        "{}",
        ran.err
    );
    assert_eq!(run_in(folder.path(), &["health", "replay", "two.log", "--host", "a"]).code, 4);
    std::fs::write(folder.path().join("number.log"), "3,18446744073709551615,5,-;x\n").expect("written");
    let ran = run_in(folder.path(), &["health", "replay", "number.log"]);
    assert!(ran.code == 2 && ran.err.contains("line 1: 18446744073709551615 is no number of a line"), "{}", ran.err);
    let ran =
        run_in(folder.path(), &["health", "diag", "empty.log", "--exit-code", "0", "--level", "1", "--gpus", "1"]);
    assert_eq!((ran.code, ran.out.contains("unmeasured")), (4, true), "no document is no proof: {}", ran.out);
}
