//! Plans and explanations of a small, fixed problem.

use expect_test::expect_file;
use serde_json::Value;

use crate::{Ran, edit, run_in, small};

fn plan(args: &[&str]) -> Ran {
    let folder = small();
    let ran = run_in(folder.path(), &[&["plan", "plan.toml"], args].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    ran
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn tables() {
    let asked = ["--what-if", "quota:alpha H100=+8", "--what-if", "hit-rate:chat=0.999", "--what-if", "price:spot*1.5"];
    expect_file!["../fixtures/small/plan.txt"].assert_eq(&plan(&asked).out);
}

#[test]
fn explained() {
    let folder = small();
    let ran = run_in(folder.path(), &["explain", "plan.toml", "chat"]);
    expect_file!["../fixtures/small/explain.txt"].assert_eq(&ran.out);
    let ran = run_in(folder.path(), &["explain", "plan.toml", "chta"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("chta") && ran.err.contains("chat"), "{}", ran.err);
}

#[test]
fn json_is_stable_and_says_what_the_tables_say() {
    let (first, second) = (plan(&["--output", "json"]).out, plan(&["--output", "json"]).out);
    assert_eq!(first, second, "two runs differ");
    let made = json(&first);
    let report = &made["report"];
    assert!(report["rounding_gap"].as_f64().expect("a gap") >= 0.0);
    assert!(report["certificate_gap"].as_f64().expect("a gap") <= 1e-3);
    assert!(made["targets"].as_array().is_some_and(|t| !t.is_empty()));
}

#[test]
fn every_question_is_answered() {
    let questions = [
        "quota:alpha H100=+1",
        "price:alpha*0.5",
        "lift-regions:chat",
        "hit-rate:embed=0.99",
        "budget:10",
        "budget:none",
    ];
    let args: Vec<&str> = questions.iter().flat_map(|q| ["--what-if", q]).chain(["--output", "json"]).collect();
    let made = json(&plan(&args).out);
    assert_eq!(made["what_if"].as_array().map(Vec::len), Some(questions.len()));
}

#[test]
fn the_plan_before_is_compared() {
    let folder = small();
    let ran = run_in(folder.path(), &["plan", "plan.toml", "--save", "first.json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    edit(folder.path(), "offers.csv", "H100-SXM,8,12.00", "H100-SXM,8,19.00");
    let ran = run_in(folder.path(), &["plan", "plan.toml", "--parent", "first.json", "--output", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let made = json(&ran.out);
    assert_eq!(made["epoch"], 2);
    assert!(made["report"]["changes"].as_array().is_some_and(|c| !c.is_empty()), "{}", made["report"]);
}

#[test]
fn mps_is_written_whole() {
    let folder = small();
    let ran = run_in(folder.path(), &["plan", "plan.toml", "--write-mps", "problem.mps"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let text = std::fs::read_to_string(folder.path().join("problem.mps")).expect("written");
    assert!(text.starts_with("NAME") && text.trim_end().ends_with("ENDATA"));
    assert!(ran.err.contains("columns") && ran.err.contains("rows"), "{}", ran.err);
    let ran = run_in(folder.path(), &["plan", "plan.toml", "--write-mps", "no/such/folder.mps"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("no/such/folder.mps"), "{}", ran.err);
}

#[test]
fn the_demo_plans() {
    let folder = tempfile::tempdir().expect("temp");
    let ran = run_in(folder.path(), &["demo", "demo"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let ran = run_in(folder.path(), &["plan", "demo/plan.toml", "--output", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let report = &json(&ran.out)["report"];
    assert!(report["rounding_gap"].as_f64().expect("a gap") < 0.005, "{}", report["rounding_gap"]);
    assert!(report["certificate_gap"].as_f64().expect("a gap") <= 1e-3, "{}", report["certificate_gap"]);
}

#[test]
fn an_unmeetable_target_is_reported() {
    let folder = small();
    edit(folder.path(), "plan.toml", "launch_limit_nodes = 4", "launch_limit_nodes = 0");
    let ran = run_in(folder.path(), &["plan", "plan.toml"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("Not met") && ran.out.contains("embed: hit rate 90.0 %"), "{}", ran.out);
    assert!(!ran.out.contains("Everything that was asked for is met"), "{}", ran.out);
}
