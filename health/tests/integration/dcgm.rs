//! `dcgmi diag -j`: documents of both versions, and every way in which they lie, break or leave something out.

use fleet::Remedy;
use health::Verdict;
use health::dcgm::{Document, Exit, Expected, Plan, Problem, Reason, Severity, Version, judge};
use proptest::prelude::*;
use serde_json::{Value, json};

const TESTS: [&str; 3] = ["software", "memory", "pcie"];

fn gpus(count: u32) -> Vec<Expected> {
    (0..count).map(|entity| Expected { entity, serial: Some(format!("16{entity}")) }).collect()
}

fn plan(count: u32) -> Plan {
    Plan::of_level(2, Version(4, 5, 2), gpus(count))
}

/// A level 2 run of version 4 in which all is well.
fn v4(count: u32) -> Value {
    let result = |gpu: u32| json!({ "entity_group": "GPU", "entity_group_id": 1, "entity_id": gpu, "status": "Pass" });
    let test = |name: &str| json!({ "name": name, "results": (0..count).map(result).collect::<Vec<_>>(), "test_summary": { "status": "Pass" } });
    let entity = |gpu: u32| json!({ "device_id": "2335", "entity_id": gpu, "serial_num": format!("16{gpu}") });
    json!({
        "DCGM Diagnostic": { "test_categories": [
            { "category": "Deployment", "tests": [test("software")] },
            { "category": "Hardware", "tests": [test("memory")] },
            { "category": "Integration", "tests": [test("pcie")] },
        ]},
        "entity_groups": [{ "entity_group": "GPU", "entity_group_id": 1,
            "entities": (0..count).map(entity).collect::<Vec<_>>() }],
        "metadata": { "Driver Version Detected": "580.82.09", "version": "4.5.2" },
    })
}

/// The same of version 3.
fn v3(count: u32, version: &str) -> Value {
    let own = |gpu: u32| json!({ "gpu_id": gpu.to_string(), "status": "Pass", "info": "GPU 0 GPU 0 Allocated, 97.3%" });
    let test = |name: &str| json!({ "name": name, "results": (0..count).map(own).collect::<Vec<_>>() });
    let deployment =
        ["Denylist", "NVML Library", "CUDA Main Library", "Persistence Mode", "Page Retirement/Row Remap", "Inforom"];
    let software: Vec<Value> =
        deployment.iter().map(|n| json!({ "name": n, "results": [{ "status": "Pass" }] })).collect();
    let serials: Value =
        (0..count).map(|g| (g.to_string(), json!(format!("16{g}")))).collect::<serde_json::Map<_, _>>().into();
    json!({ "DCGM GPU Diagnostic": {
        "version": version, "Driver Version Detected": "535.1", "GPU Device Serials": serials,
        "test_categories": [
            { "category": "Deployment", "tests": software },
            { "category": "Integration", "tests": [test("PCIe")] },
            { "category": "Hardware", "tests": [test("GPU Memory")] },
        ],
    }})
}

fn at<'a>(document: &'a mut Value, test: &str) -> &'a mut Value {
    let root = if document.get("DCGM Diagnostic").is_some() { "DCGM Diagnostic" } else { "DCGM GPU Diagnostic" };
    let categories = document[root]["test_categories"].as_array_mut().expect("categories");
    let tests = categories.iter_mut().flat_map(|c| c["tests"].as_array_mut().expect("tests"));
    tests.into_iter().find(|t| t["name"] == test).expect("there")
}

fn warn(document: &mut Value, test: &str, gpu: usize, status: &str, warning: Value) {
    let result = &mut at(document, test)["results"][gpu];
    result["status"] = json!(status);
    result["warnings"] = json!([warning]);
}

fn judged(document: &Value, code: u8, count: u32) -> health::dcgm::Judgement {
    judge(&document.to_string(), Exit::Code(code), &plan(count))
}

#[test]
fn a_good_run_of_either_version_passes() {
    for document in [v4(8), v3(8, "3.3.9"), v3(8, "3.1.8")] {
        let made = judged(&document, 0, 8);
        assert_eq!((made.verdict, made.remedy), (Verdict::Pass, Remedy::Nothing), "{made:?}");
        assert_eq!(made.tests.len(), 8 * TESTS.len());
    }
}

#[test]
fn severities_are_those_of_the_version() {
    let warning = |severity: i64| json!({ "warning": "x", "error_id": 38, "error_severity": severity });
    for (document, severity, expected) in [
        (v4(8), 2, Severity::Isolate),
        (v4(8), 1, Severity::Monitor),
        (v4(8), 5, Severity::Config),
        (v4(8), 6, Severity::Reset),
        (v4(8), 4, Severity::Triage),
        (v4(8), 99, Severity::Triage),
        (v3(8, "3.1.8"), 1, Severity::Isolate),
        (v3(8, "3.1.8"), 0, Severity::Monitor),
        (v3(8, "3.3.9"), 1, Severity::Monitor),
        (v3(8, "3.3.9"), 2, Severity::Isolate),
    ] {
        let mut document = document;
        let test = if document.get("DCGM Diagnostic").is_some() { "memory" } else { "GPU Memory" };
        warn(&mut document, test, 3, "Fail", warning(severity));
        let code = if expected == Severity::Isolate { 205 } else { 226 };
        let made = judged(&document, code, 8);
        assert_eq!(made.findings.iter().map(|f| (f.severity, f.gpu)).collect::<Vec<_>>(), [(expected, Some(3))]);
        let (verdict, action) = match expected {
            Severity::Monitor => (Verdict::Degraded, Remedy::Record),
            Severity::Config => (Verdict::Unmeasured, Remedy::SetUp),
            Severity::Triage => (Verdict::Fail, Remedy::Recheck),
            Severity::Reset => (Verdict::Fail, Remedy::Reset),
            Severity::Isolate => (Verdict::Fail, Remedy::Replace),
        };
        assert_eq!((made.verdict, made.remedy), (verdict, action), "{severity} {expected:?}");
    }
}

#[test]
fn a_gpu_that_is_missing_is_found() {
    let mut document = v4(8);
    document["entity_groups"][0]["entities"].as_array_mut().expect("list").remove(5);
    for test in TESTS {
        at(&mut document, test)["results"].as_array_mut().expect("list").remove(5);
    }
    let made = judged(&document, 0, 8);
    assert_eq!((made.verdict, made.remedy), (Verdict::Fail, Remedy::Replace));
    assert_eq!(made.missing_gpus, [5]);
    // Another board where the one that was bought was.
    let mut document = v4(8);
    document["entity_groups"][0]["entities"][2]["serial_num"] = json!("999");
    assert_eq!(judged(&document, 0, 8).missing_gpus, [2]);
    // A GPU without a serial number is no other GPU.
    let mut document = v4(8);
    document["entity_groups"][0]["entities"][2]["serial_num"] = json!("<<<NOT_SUPPORTED>>>");
    assert_eq!(judged(&document, 0, 8).verdict, Verdict::Pass);
}

#[test]
fn what_was_not_run_is_not_healthy() {
    let mut skipped = v4(8);
    at(&mut skipped, "memory")["results"][1]["status"] = json!("Skip");
    let made = judged(&skipped, 0, 8);
    assert_eq!((made.verdict, made.remedy), (Verdict::Unmeasured, Remedy::TryAgain));
    assert_eq!(made.unmeasured, [Reason::Skipped { test: "memory".into(), gpu: Some(1) }]);

    let mut omitted = v4(8);
    omitted["DCGM Diagnostic"]["test_categories"].as_array_mut().expect("list").remove(1);
    assert_eq!(judged(&omitted, 0, 8).verdict, Verdict::Unmeasured);

    let mut one = v4(8);
    at(&mut one, "pcie")["results"].as_array_mut().expect("list").remove(7);
    let made = judged(&one, 0, 8);
    assert_eq!(made.unmeasured, [Reason::Missing { test: "pcie".into(), gpu: Some(7) }]);

    let mut word = v4(8);
    at(&mut word, "pcie")["results"][0]["status"] = json!("Probably");
    assert_eq!(judged(&word, 0, 8).verdict, Verdict::Unmeasured);

    // A summary proves nothing of any GPU, nor does another device, nor one of version 3's many checks.
    let level_1 = Plan::of_level(1, Version(4, 5, 2), gpus(8));
    let summary = json!({ "DCGM Diagnostic": { "test_categories": [{ "category": "Deployment", "tests": [
        { "name": "software", "results": [], "test_summary": { "status": "Pass" } }] }] } });
    assert_eq!(judge(&summary.to_string(), Exit::Code(0), &level_1).verdict, Verdict::Unmeasured);
    let cpu = json!({ "DCGM Diagnostic": { "test_categories": [{ "category": "Deployment", "tests": [
        { "name": "software", "results": [{ "entity_group": "CPU", "entity_id": 0, "status": "Pass" }] }] }] } });
    assert_eq!(judge(&cpu.to_string(), Exit::Code(0), &level_1).verdict, Verdict::Unmeasured);
    let one = json!({ "DCGM GPU Diagnostic": { "test_categories": [{ "category": "Deployment", "tests": [
        { "name": "NVML Library", "results": [{ "status": "Pass" }] }] }] } });
    assert_eq!(judge(&one.to_string(), Exit::Code(0), &level_1).verdict, Verdict::Unmeasured);

    // A model without the test needs none.
    let mut plan = plan(8);
    plan.not_applicable.insert("memory".into());
    let made = judge(&skipped.to_string(), Exit::Code(0), &plan);
    assert_eq!(made.verdict, Verdict::Pass);
    // Nothing asked for proves nothing.
    let none = Plan::of_tests(&[], gpus(8));
    assert_eq!(judge(&v4(8).to_string(), Exit::Code(0), &none).verdict, Verdict::Unmeasured);
    assert_eq!(judged(&v4(8), 0, 0).verdict, Verdict::Unmeasured);
}

#[test]
fn exit_code_and_document_must_agree() {
    let mut failed = v4(8);
    warn(&mut failed, "memory", 0, "Fail", json!({ "warning": "x", "error_id": 38, "error_severity": 2 }));
    for (document, code, verdict) in [
        (&failed, 205, Verdict::Fail),
        (&failed, 226, Verdict::Fail),
        (&failed, 0, Verdict::Unmeasured),
        (&v4(8), 226, Verdict::Unmeasured),
        (&v4(8), 205, Verdict::Unmeasured),
        (&v4(8), 1, Verdict::Unmeasured),
        (&v4(8), 254, Verdict::Unmeasured),
    ] {
        assert_eq!(judged(document, code, 8).verdict, verdict, "code {code}");
    }
    assert_ne!(judged(&failed, 0, 8).remedy, Remedy::Nothing, "what was found is not dropped");
    assert_eq!(judged(&v4(8), 217, 8).unmeasured, [Reason::AlreadyRunning]);
    for exit in [Exit::TimedOut, Exit::Preempted, Exit::Signal(9)] {
        let made = judge(&v4(8).to_string(), exit, &plan(8));
        assert_eq!((made.verdict, made.remedy), (Verdict::Unmeasured, Remedy::TryAgain), "{exit:?}");
    }
}

#[test]
fn warnings_are_read_in_every_form() {
    // An error beside a pass.
    let mut passed = v4(8);
    warn(
        &mut passed,
        "memory",
        0,
        "Pass",
        json!({ "warning": "allocation failed", "error_id": 3, "error_severity": 1 }),
    );
    assert_eq!(judged(&passed, 0, 8).remedy, Remedy::Recheck);
    // An id that is not in the table, without a severity.
    let mut unknown = v4(8);
    warn(&mut unknown, "memory", 0, "Fail", json!({ "warning": "new", "error_id": 4711 }));
    assert_eq!(judged(&unknown, 226, 8).findings[0].severity, Severity::Triage);
    // A failure without a reason.
    let mut silent = v4(8);
    at(&mut silent, "memory")["results"][0]["status"] = json!("Fail");
    assert_eq!(judged(&silent, 226, 8).remedy, Remedy::Recheck);
    // Version 3 as text.
    let mut text = v3(8, "3.1.3");
    let result = &mut at(&mut text, "GPU Memory")["results"][4];
    result["status"] = json!("Fail");
    result["warnings"] = json!("GPU 4 failed");
    let made = judged(&text, 226, 8);
    assert_eq!((made.findings[0].gpu, made.findings[0].text.as_str()), (Some(4), "GPU 4 failed"));
    // The summary says it again: once is enough; and what it alone says counts.
    let mut twice = v4(8);
    let same = json!({ "warning": "x", "error_id": 29, "error_severity": 5 });
    warn(&mut twice, "software", 0, "Fail", same.clone());
    at(&mut twice, "software")["test_summary"] = json!({ "status": "Fail", "warnings": [same] });
    assert_eq!(judged(&twice, 226, 8).findings.len(), 1);
    let mut alone = v4(8);
    at(&mut alone, "pcie")["test_summary"] =
        json!({ "status": "Fail", "warnings": [{ "warning": "x", "error_id": 38, "error_severity": 2 }] });
    assert_eq!(judged(&alone, 205, 8).remedy, Remedy::Replace);
}

/// Without a version the number of a severity is taken for the worse of what it may mean.
#[test]
fn severities_of_no_version_are_not_thrown_away() {
    let mut document = v4(8);
    document["metadata"].as_object_mut().expect("map").remove("version");
    warn(&mut document, "memory", 0, "Fail", json!({ "warning": "x", "error_id": 51, "error_severity": 6 }));
    assert_eq!(judged(&document, 226, 8).remedy, Remedy::Reset, "the form of version 4 says which");
    let mut document = v3(8, "3.1.8");
    document["DCGM GPU Diagnostic"].as_object_mut().expect("map").remove("version");
    warn(&mut document, "GPU Memory", 0, "Fail", json!({ "warning": "x", "error_id": 10, "error_severity": 1 }));
    assert_eq!(judged(&document, 205, 8).remedy, Remedy::Replace);
}

/// One wrong setting on all GPUs is the image's fault, on one of them it is not.
#[test]
fn the_image_is_told_from_the_gpus() {
    let config = json!({ "warning": "persistence mode", "error_id": 29, "error_severity": 5 });
    let mut all = v4(8);
    for gpu in 0..8 {
        warn(&mut all, "software", gpu, "Fail", config.clone());
    }
    let made = judged(&all, 226, 8);
    assert!(made.image_fault);
    assert_eq!(made.remedy, Remedy::SetUp, "never quarantine");
    let mut one = v4(8);
    warn(&mut one, "software", 0, "Fail", config);
    assert!(!judged(&one, 226, 8).image_fault);
}

#[test]
fn repetitions_are_all_counted() {
    let mut second = v4(2);
    warn(&mut second, "memory", 1, "Fail", json!({ "warning": "x", "error_id": 38, "error_severity": 2 }));
    let wrapped = |documents: Vec<Value>| json!({ "iterations": documents, "Overall Result": "Pass" });
    assert_eq!(judged(&wrapped(vec![v4(2), v4(2)]), 0, 2).verdict, Verdict::Pass);
    assert_eq!(judged(&wrapped(vec![v4(2), second]), 205, 2).remedy, Remedy::Replace);
    let mut short = v4(2);
    at(&mut short, "memory")["results"].as_array_mut().expect("list").remove(0);
    assert_eq!(judged(&wrapped(vec![v4(2), short]), 0, 2).verdict, Verdict::Unmeasured);
    assert_eq!(judged(&json!({ "iterations": [] }), 0, 2).verdict, Verdict::Unmeasured);
}

#[test]
fn what_is_no_document_says_why() {
    for (text, problem) in [
        ("", Problem::NoJson),
        ("Error: unable to connect", Problem::NoJson),
        ("{}", Problem::UnknownRoot(String::new())),
        (
            r#"{"body":{"Overall Health":{"value":"Healthy"}},"header":["x"]}"#,
            Problem::UnknownRoot("body, header".into()),
        ),
        (r#"{"DCGM Diagnostic":{"test_categories":[]}}"#, Problem::NoResults),
        (r#"{"DCGM Diagnostic":{"version":"4.1.0","runtime_error":"lost"}}"#, Problem::RuntimeError("lost".into())),
    ] {
        assert_eq!(Document::read(text), Err(problem.clone()), "{text}");
        let made = judge(text, Exit::Code(0), &plan(8));
        assert_eq!((made.verdict, made.unmeasured), (Verdict::Unmeasured, vec![Reason::NoDocument(problem)]));
    }
    let banner = format!("Successfully ran diagnostic for group.\n+---+\n{}\n", v4(8));
    assert_eq!(judge(&banner, Exit::Code(0), &plan(8)).verdict, Verdict::Pass, "a banner does not matter");
    // What follows may say the opposite.
    let error = r#"{"DCGM Diagnostic":{"runtime_error":"lost"}}"#;
    for after in ["bye", "}", error] {
        let made = judge(&format!("{}{after}", v4(8)), Exit::Code(0), &plan(8));
        assert_eq!(made.unmeasured, vec![Reason::NoDocument(Problem::Trailing(after.into()))]);
    }
}

/// A document that is cut off anywhere proves nothing.
#[test]
fn a_cut_document_never_passes() {
    for document in [v4(2), v3(2, "3.3.9")] {
        let text = document.to_string();
        for end in 0..text.len() {
            let made = judge(&text[..end], Exit::Code(0), &plan(2));
            assert_eq!(made.verdict, Verdict::Unmeasured, "cut at {end}");
        }
    }
}

/// Anything at all may be put in the place of any value: it never panics, and what was a failure never becomes healthy by
/// losing a part.
fn paths(value: &Value, at: &str, all: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                all.push(path.clone());
                paths(inner, &path, all);
            }
        }
        Value::Array(list) => {
            for (i, inner) in list.iter().enumerate() {
                all.push(format!("{at}/{i}"));
                paths(inner, &format!("{at}/{i}"), all);
            }
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn a_failure_is_never_mended_by_a_broken_document(
        pick in any::<prop::sample::Index>(), with in 0_usize..6, old in any::<bool>(), ended in 0_usize..3,
    ) {
        let mut document = if old { v3(2, "3.3.9") } else { v4(2) };
        let test = if old { "GPU Memory" } else { "memory" };
        let warning = json!({ "warning": "x", "error_id": 38, "error_severity": 2 });
        warn(&mut document, test, 1, "Fail", warning);
        let mut all = Vec::new();
        paths(&document, "", &mut all);
        let path = pick.get(&all);
        let value = [Value::Null, json!(7), json!("Pass"), json!([]), json!({}), json!(-1)][with].clone();
        if let Some(place) = document.pointer_mut(path) {
            *place = value;
        }
        let made = judged(&document, [0, 205, 226][ended], 2);
        prop_assert_ne!(made.verdict, Verdict::Pass, "{} {:?}", path, made);
        prop_assert!(made.remedy > Remedy::Record, "{} {:?}", path, made);
    }

    #[test]
    fn any_text_gets_an_answer(text in ".{0,200}", code in any::<u8>()) {
        prop_assert_ne!(judge(&text, Exit::Code(code), &plan(2)).verdict, Verdict::Pass);
    }
}

/// Real documents, read in place.
#[test]
fn real_documents_are_judged() {
    let Some(folder) = std::env::var_os("PILOTLIGHT_DCGM_SAMPLES").map(std::path::PathBuf::from) else {
        println!("skipped: no data (PILOTLIGHT_DCGM_SAMPLES names a folder of 'dcgmi diag -j' documents)");
        return;
    };
    let one = |serial: Option<&str>| vec![Expected { entity: 0, serial: serial.map(str::to_owned) }];
    for (name, level, code, version, verdict, action) in [
        ("v3_t4_r1_pass.json", 1, 0, Version(3, 1, 0), Verdict::Pass, Remedy::Nothing),
        ("v4_4.2.3_gb10_r1_configfail.json", 1, 226, Version(4, 2, 3), Verdict::Unmeasured, Remedy::SetUp),
        ("v4_4.2.3_gb10_r2_skipped.json", 2, 226, Version(4, 2, 3), Verdict::Unmeasured, Remedy::SetUp),
        ("v4_4.5.2_gb10_r2_gated.json", 2, 226, Version(4, 5, 2), Verdict::Unmeasured, Remedy::SetUp),
        ("v4_4.5.2_gb10_r2_plugins_run.json", 2, 226, Version(4, 5, 2), Verdict::Unmeasured, Remedy::SetUp),
        ("extra_dcgmi_health_check.json", 1, 0, Version(4, 5, 2), Verdict::Unmeasured, Remedy::TryAgain),
        ("official_v4_schema.json", 1, 0, Version(4, 5, 2), Verdict::Unmeasured, Remedy::TryAgain),
    ] {
        let text = std::fs::read_to_string(folder.join(name)).expect(name);
        let made = judge(&text, Exit::Code(code), &Plan::of_level(level, version, one(None)));
        assert_eq!((made.verdict, made.remedy), (verdict, action), "{name}: {made:#?}");
    }
    let text = std::fs::read_to_string(folder.join("v3_t4_r3_pass.json")).expect("there");
    let mut plan = Plan::of_level(3, Version(3, 1, 0), one(None));
    let skipped = judge(&text, Exit::Code(0), &plan);
    let gone: Vec<String> = skipped.unmeasured.iter().map(ToString::to_string).collect();
    println!("v3_t4_r3_pass.json: {:?} {gone:?}", skipped.verdict);
    // What this model does not run proves nothing and need not.
    for reason in &skipped.unmeasured {
        if let Reason::Skipped { test, .. } | Reason::Missing { test, .. } = reason {
            plan.not_applicable.insert(test.clone());
        }
    }
    assert_eq!(judge(&text, Exit::Code(0), &plan).verdict, Verdict::Pass);
}

/// A pass that warns is no pass, whatever form the warning has.
#[test]
fn a_pass_that_warns_is_looked_at() {
    for (warning, remedy) in [
        (json!({ "warning": "could not allocate" }), Remedy::Recheck),
        (json!("could not allocate"), Remedy::Recheck),
        (json!({ "warning": "x", "error_id": "6", "error_severity": "2" }), Remedy::Replace),
        (json!({ "warning": "x", "error_id": 6, "error_severity": 2 }), Remedy::Replace),
        (
            json!({ "warning": "x", "error_id": "DCGM_FR_PENDING_PAGE_RETIREMENTS", "error_severity": 2 }),
            Remedy::Replace,
        ),
        (json!({ "warning": "", "error_id": "something new" }), Remedy::Recheck),
    ] {
        let mut document = v4(8);
        warn(&mut document, "memory", 3, "Pass", warning.clone());
        let made = judged(&document, 0, 8);
        assert_eq!((made.verdict, made.remedy), (Verdict::Fail, remedy), "{warning}");
    }
}

/// Two values of one name: which of them the writer meant is not known.
#[test]
fn names_that_come_twice_prove_nothing() {
    let good = v4(2).to_string();
    let twice = [
        format!("{},{}", &good[..good.len() - 1], &good[1..]),
        good.replacen(r#""status":"Pass""#, r#""status":"Fail","status":"Pass""#, 1),
    ];
    for text in twice {
        let made = judge(&text, Exit::Code(0), &plan(2));
        let [Reason::NoDocument(Problem::Malformed(why))] = &made.unmeasured[..] else { panic!("{made:?}") };
        assert!(why.contains("comes twice"), "{why}");
    }
}

#[test]
fn the_result_of_all_is_one_of_the_results() {
    let of = |overall: &str| json!({ "iterations": [v4(2), v4(2)], "Overall Result": overall });
    for (overall, verdict) in [("Pass", Verdict::Pass), ("Fail", Verdict::Unmeasured), ("Killed", Verdict::Unmeasured)]
    {
        assert_eq!(judged(&of(overall), 0, 2).verdict, verdict, "{overall}");
    }
}

/// Version 3's software test has parts, each with GPUs or without: one of them is not the test.
#[test]
fn parts_of_the_software_test_are_all_needed() {
    let part = |name: &str| json!({ "name": name, "results": [{ "gpu_ids": "0,1", "status": "Pass" }] });
    let of = |parts: &[&str]| {
        let tests: Vec<Value> = parts.iter().map(|name| part(name)).collect();
        let text = json!({ "DCGM GPU Diagnostic": { "version": "3.1.0",
            "test_categories": [{ "category": "Deployment", "tests": tests }] } });
        judge(&text.to_string(), Exit::Code(0), &Plan::of_level(1, Version(3, 1, 0), gpus(2))).verdict
    };
    let needed = ["NVML Library", "CUDA Main Library", "Page Retirement/Row Remap", "Inforom"];
    assert_eq!(of(&needed), Verdict::Pass);
    assert_eq!(of(&["Denylist"]), Verdict::Unmeasured);
    for missing in 0..needed.len() {
        let mut parts = needed.to_vec();
        parts.remove(missing);
        assert_eq!(of(&parts), Verdict::Unmeasured, "without {}", needed[missing]);
    }
}

/// Since 4.6 dcgmi's exit code is made of errors, and not of how tests ended.
#[test]
fn the_exit_code_is_that_of_the_version() {
    let of = |version: &str, code: u8| {
        let mut document = v4(8);
        document["metadata"]["version"] = json!(version);
        warn(&mut document, "memory", 3, "Pass", json!({ "warning": "x", "error_id": 56, "error_severity": 4 }));
        judged(&document, code, 8).verdict
    };
    assert_eq!((of("4.6.0", 226), of("4.6.0", 205)), (Verdict::Fail, Verdict::Fail));
    assert_eq!((of("4.5.2", 226), of("4.5.2", 205)), (Verdict::Unmeasured, Verdict::Unmeasured));
}

/// NVIDIA's package does not bring the programs of the NCCL test: it is skipped on every stock host.
#[test]
fn optional_tests_are_optional_and_count_where_they_ran() {
    let plan = Plan::of_level(3, Version(4, 6, 0), gpus(2));
    let with = |nccl: Option<&str>| {
        let mut document = v4(2);
        let result = |gpu: u32, status: &str| json!({ "entity_group": "GPU", "entity_id": gpu, "status": status });
        let test =
            |name: &str, status: &str| json!({ "name": name, "results": [result(0, status), result(1, status)] });
        let mut tests: Vec<Value> =
            ["diagnostic", "memory_bandwidth", "targeted_stress", "targeted_power", "nvbandwidth"]
                .map(|name| test(name, "Pass"))
                .into();
        tests.extend(nccl.map(|status| test("nccl_tests", status)));
        document["DCGM Diagnostic"]["test_categories"]
            .as_array_mut()
            .expect("categories")
            .push(json!({ "category": "Stress", "tests": tests }));
        let code = if nccl == Some("Fail") { 226 } else { 0 };
        judge(&document.to_string(), Exit::Code(code), &plan)
    };
    for skipped in [None, Some("Skip"), Some("Not Run")] {
        let made = with(skipped);
        assert_eq!((made.verdict, made.left_out), (Verdict::Pass, vec!["nccl_tests".to_owned()]), "{skipped:?}");
    }
    let ran = with(Some("Pass"));
    assert_eq!((ran.verdict, ran.left_out), (Verdict::Pass, vec![]));
    assert_eq!(with(Some("Fail")).verdict, Verdict::Fail);
}

/// A document that says two things proves neither, wherever it says them.
#[test]
fn contradictions_prove_nothing() {
    let of = |change: &dyn Fn(&mut Value)| {
        let mut document = v4(2);
        change(&mut document);
        judged(&document, 0, 2)
    };
    let both = of(&|d| d["DCGM GPU Diagnostic"] = v3(2, "3.3.9")["DCGM GPU Diagnostic"].clone());
    assert!(matches!(both.unmeasured[..], [Reason::NoDocument(Problem::Contradiction(_))]), "{both:?}");
    let twice = of(&|d| {
        let other = json!({ "entity_id": 0, "serial_num": "another" });
        d["entity_groups"][0]["entities"].as_array_mut().expect("list").push(other);
    });
    assert!(matches!(twice.unmeasured[..], [Reason::NoDocument(Problem::Contradiction(_))]), "{twice:?}");
    let died = judged(&json!({ "iterations": [v4(2)], "runtime_error": "died" }), 0, 2);
    assert_eq!(died.verdict, Verdict::Unmeasured);
    let word = of(&|d| {
        let test = json!({ "name": "something_new", "results": [{ "entity_group": "GPU", "entity_id": 0, "status": "Exploded" }] });
        d["DCGM Diagnostic"]["test_categories"][0]["tests"].as_array_mut().expect("list").push(test);
    });
    assert_eq!(word.verdict, Verdict::Unmeasured);
    let dying =
        of(&|d| warn(d, "memory", 0, "Pass", json!({ "warning": "dying", "error_id": 0, "error_severity": 2 })));
    assert_eq!(dying.verdict, Verdict::Fail);
}
