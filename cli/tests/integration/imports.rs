//! `pilotlight offers import` on small files of each kind.

use serde_json::Value;

use crate::{fixtures, run_in};

/// Imports one source and returns `(offers, reasons of what is set aside)`.
fn import(source: &str) -> (Vec<Value>, Vec<String>) {
    let folder = tempfile::tempdir().expect("temp");
    let out = folder.path().join("table.csv");
    let args = ["offers", "import", "--from", source, "--out", out.to_str().expect("UTF-8"), "--output", "json"];
    let ran = run_in(&fixtures().join("imports"), &args);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let shown: Value = serde_json::from_str(&ran.out).expect("JSON");
    let list = |name: &str| shown[name].as_array().cloned().expect("a list");
    // What was written is what is shown.
    let again = run_in(folder.path(), &["offers", "show", "table.csv", "--output", "json"]);
    let again: Value = serde_json::from_str(&again.out).expect("JSON");
    assert_eq!(again["offers"], shown["offers"]);
    let reasons = list("set_aside").iter().map(|s| s["reason"].to_string()).collect();
    (list("offers"), reasons)
}

fn prices(offers: &[Value]) -> Vec<(String, u64)> {
    let name = |o: &Value| {
        let key = &o["key"];
        format!(
            "{}/{}/{}",
            key["zone"].as_str().unwrap_or(""),
            key["instance_type"].as_str().unwrap_or(""),
            key["market"]
        )
    };
    offers.iter().map(|o| (name(o).replace('"', ""), o["price_usd_micros_per_h"].as_u64().expect("micros"))).collect()
}

#[test]
fn skypilot() {
    let (offers, set_aside) = import("skypilot:aws=skypilot.csv");
    assert_eq!(
        prices(&offers),
        [
            ("eu-west-1a/p4d.24xlarge/on-demand".into(), 32_772_600),
            ("eu-west-1a/p4d.24xlarge/spot".into(), 9_831_700),
            ("us-east-1b/g6.xlarge/on-demand".into(), 804_800),
        ]
    );
    assert_eq!(offers[0]["gpu"], "A100-40GB-SXM");
    // A reservation-only type at 0, one without any price, a part of a GPU, an unknown accelerator.
    for reason in ["zero_price", "no_price", "part_of_a_gpu", "unknown_gpu"] {
        assert_eq!(set_aside.iter().filter(|r| r.contains(reason)).count(), 1, "{reason}: {set_aside:?}");
    }
}

#[test]
fn aws_spot_prices() {
    let (offers, set_aside) = import("aws-spot:spot.json");
    // The newest Linux price of each zone; types without a GPU are no offers.
    assert_eq!(
        prices(&offers),
        [("us-east-1a/p5.48xlarge/spot".into(), 31_500_000), ("us-east-1b/p5.48xlarge/spot".into(), 29_000_000)]
    );
    assert!(set_aside.is_empty(), "{set_aside:?}");
    assert_eq!(offers[0]["gpus_per_node"], 8);
}

#[test]
fn several_sources_join_and_the_first_counts() {
    let folder = tempfile::tempdir().expect("temp");
    let out = folder.path().join("table.csv");
    let out = out.to_str().expect("UTF-8");
    let args = ["offers", "import", "--from", "own:own.csv", "--from", "skypilot:aws=skypilot.csv", "--out", out];
    let ran = run_in(&fixtures().join("imports"), &args);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let table = std::fs::read_to_string(out).expect("written");
    assert!(table.contains("p4d.24xlarge,on-demand,A100-40GB-SXM,8,21.000000"), "{table}");
    assert!(ran.out.contains("listed twice"), "{}", ran.out);
}

#[cfg(unix)]
#[test]
fn written_files_can_be_read_by_others() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("temp");
    assert_eq!(run_in(folder.path(), &["demo", "demo"]).code, 0);
    let mode = |path: &str| std::fs::metadata(folder.path().join(path)).expect("there").permissions().mode() & 0o777;
    std::fs::write(folder.path().join("plain"), "").expect("written");
    assert_eq!(mode("demo/plan.toml"), mode("plain"));
}
