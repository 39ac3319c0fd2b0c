//! NVIDIA's diagnostics, with a stand-in for `dcgmi` that replays documents, hangs, crashes, and answers late.
#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fleet::Remedy;
use health::Verdict;
use health::dcgm::{Exit, Expected, Reason};
use serde_json::{Value, json};
use snapshot_agent::diagnose::{Diagnosed, Diagnosis, Tests};
use tempfile::TempDir;

/// A document of level 2 in which two GPUs pass.
fn passing() -> Value {
    let result = |gpu: u32| json!({ "entity_group": "GPU", "entity_group_id": 1, "entity_id": gpu, "status": "Pass" });
    let test = |name: &str| json!({ "name": name, "results": [result(0), result(1)] });
    let entity = |gpu: u32| json!({ "device_id": "2335", "entity_id": gpu, "serial_num": format!("165{gpu}") });
    json!({
        "DCGM Diagnostic": { "test_categories": [
            { "category": "Deployment", "tests": [test("software")] },
            { "category": "Hardware", "tests": [test("memory")] },
            { "category": "Integration", "tests": [test("pcie")] },
        ] },
        "entity_groups": [{ "entity_group": "GPU", "entity_group_id": 1, "entities": [entity(0), entity(1)] }],
        "metadata": { "version": "4.5.2", "Driver Version Detected": "580.82.09" },
    })
}

/// A stand-in that runs a script, in a folder in which it can leave traces.
fn dcgmi(script: &str) -> (TempDir, Diagnosis) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("passing.json"), passing().to_string()).unwrap();
    let program = folder.path().join("dcgmi");
    let text = format!("#!/bin/bash\ncd {}\necho \"$@\" >> asked\n{script}\n", folder.path().display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let gpu = |entity: u32| Expected { entity, serial: Some(format!("165{entity}")) };
    let diagnosis = Diagnosis {
        program,
        tests: Tests::Level(2),
        gpus: vec![gpu(0), gpu(1)],
        not_applicable: Vec::new(),
        deadline: Duration::from_secs(20),
        lock: folder.path().join("lock"),
        patience: 0.04,
    };
    (folder, diagnosis)
}

fn run(diagnosis: &Diagnosis) -> Diagnosed {
    diagnosis.run(&AtomicBool::new(false)).unwrap()
}

#[test]
fn documents_are_replayed_and_judged() {
    let (folder, diagnosis) = dcgmi("cat passing.json");
    assert_eq!(run(&diagnosis).judgement.verdict, Verdict::Pass);
    assert_eq!(std::fs::read_to_string(folder.path().join("asked")).unwrap(), "diag -r 2 -j\n");
    let (_folder, late) = dcgmi("sleep 1\ncat passing.json");
    assert_eq!(run(&late).judgement.verdict, Verdict::Pass, "late is in time");
    let (_folder, isolating) = dcgmi(
        r#"sed 's/"entity_id":1,"status":"Pass"/"entity_id":1,"status":"Fail","warnings":[{"warning":"x","error_id":14,"error_severity":2}]/' passing.json
exit 205"#,
    );
    let done = run(&isolating);
    assert_eq!((done.judgement.verdict, done.judgement.remedy), (Verdict::Fail, Remedy::Replace), "{}", done.document);
    let (folder, mut slice) = dcgmi("cat passing.json");
    slice.tests = Tests::List(vec!["memory".into(), "pcie".into()]);
    assert_eq!(run(&slice).judgement.verdict, Verdict::Pass);
    assert_eq!(std::fs::read_to_string(folder.path().join("asked")).unwrap(), "diag -r memory,pcie -j\n");
}

/// A wrapper that starts the host engine leaves a process behind which has the output open: nobody waits for that one.
#[test]
fn what_is_left_behind_is_not_waited_for() {
    #[allow(clippy::disallowed_methods, reason = "real processes take real time")]
    let began = Instant::now();
    let (_folder, diagnosis) = dcgmi("(exec sleep 30) &\ncat passing.json");
    assert_eq!(run(&diagnosis).judgement.verdict, Verdict::Pass, "what it printed itself is all there");
    let (_folder, mut late) =
        dcgmi("(trap '' INT TERM; exec sleep 30) &\ntrap 'exit 1' INT\nwhile true; do sleep 0.1; done");
    late.deadline = Duration::from_secs(1);
    assert_eq!(run(&late).judgement.unmeasured, [Reason::TimedOut]);
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
}

#[test]
fn what_is_not_a_result_proves_nothing() {
    for (script, reason) in [
        ("kill -SEGV $$", Reason::Killed(11)),
        ("exit 217", Reason::AlreadyRunning),
        ("exit 250", Reason::ExitCode(250)),
    ] {
        let (_folder, diagnosis) = dcgmi(script);
        let judgement = run(&diagnosis).judgement;
        assert_eq!((judgement.verdict, judgement.unmeasured), (Verdict::Unmeasured, vec![reason]), "{script}");
    }
    let (_folder, half) = dcgmi("head -c 300 passing.json");
    assert_eq!(run(&half).judgement.verdict, Verdict::Unmeasured);
    let (_folder, empty) = dcgmi("true");
    assert_eq!(run(&empty).judgement.verdict, Verdict::Unmeasured);
}

#[test]
fn one_that_hangs_is_interrupted_first_and_killed_last() {
    let (folder, mut polite) = dcgmi("trap 'echo INT >> signals; exit 1' INT\nwhile true; do sleep 0.1; done");
    polite.deadline = Duration::from_millis(500);
    let done = run(&polite);
    assert_eq!((done.exit, done.judgement.verdict), (Exit::TimedOut, Verdict::Unmeasured));
    assert_eq!(std::fs::read_to_string(folder.path().join("signals")).unwrap(), "INT\n", "nothing worse was needed");
    let stubborn = "trap 'echo INT >> signals' INT\ntrap 'echo TERM >> signals' TERM\nwhile true; do sleep 0.1; done";
    let (folder, mut stubborn) = dcgmi(stubborn);
    stubborn.deadline = Duration::from_millis(500);
    let began = Instant::now();
    assert_eq!(run(&stubborn).exit, Exit::TimedOut);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(std::fs::read_to_string(folder.path().join("signals")).unwrap(), "INT\nTERM\n", "in this order");
}

#[test]
fn a_claim_stops_it_and_only_one_runs_at_a_time() {
    let (_folder, diagnosis) = dcgmi("trap 'exit 1' INT\nwhile true; do sleep 0.1; done");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| diagnosis.run(&stop).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        let second = diagnosis.run(&AtomicBool::new(false)).unwrap_err();
        assert!(second.to_string().contains("another diagnostic runs"), "{second}");
        stop.store(true, Ordering::Relaxed);
        let done = running.join().unwrap();
        assert_eq!((done.exit, done.judgement.unmeasured), (Exit::Preempted, vec![Reason::Preempted]));
        assert!(done.yield_s.unwrap() < 1.0, "{:?}", done.yield_s);
    });
}

#[test]
fn a_tool_that_is_not_there_is_said() {
    let (_folder, mut diagnosis) = dcgmi("true");
    diagnosis.program = PathBuf::from("/nowhere/dcgmi");
    let error = diagnosis.run(&AtomicBool::new(false)).unwrap_err();
    assert!(error.to_string().contains("install datacenter-gpu-manager"), "{error}");
}
