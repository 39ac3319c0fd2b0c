//! Real prices and traces, from the folder that `PILOTLIGHT_DATA` names; skipped without it.

use std::path::PathBuf;

use crate::run_in;

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("PILOTLIGHT_DATA").map(PathBuf::from).unwrap_or_default();
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no data");
    None
}

#[test]
fn public_prices_make_a_catalogue_of_thousands() {
    let Some(data) = data() else { return };
    let folder = tempfile::tempdir().expect("temp");
    let source = format!("public:{}", data.display());
    let ran = run_in(folder.path(), &["offers", "import", "--from", &source, "--out", "offers.csv"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let table = std::fs::read_to_string(folder.path().join("offers.csv")).expect("written");
    assert!(table.lines().count() > 2000, "{} offers", table.lines().count());
    for provider in ["aws,", "gcp,", "azure,", "lambda,"] {
        assert!(table.lines().any(|l| l.starts_with(provider)), "none of {provider}");
    }
    assert!(!table.lines().any(|l| l.contains(",0.000000,")), "a price of 0 went through");
}

#[test]
fn every_kind_of_trace_is_read() {
    let Some(data) = data() else { return };
    for trace in [
        "servegen/servegen_client_rates_10min.csv.zst",
        "derived/dlrm_gpu_replicas_5min.csv.zst",
        "azure_llm_2023/AzureLLMInferenceTrace_code.csv.zst",
        "azure_llm_2024_digitised/azure_llm_2024_code_rate_5min.csv",
        "burstgpt_derived/burstgpt_week1_min.json",
        "alibaba_spot_gpu_2026/derived_hourly_concurrency_top_models.csv.zst",
        "nab_tweets/Twitter_volume_AMZN.csv.zst",
        "mooncake/conversation_trace.jsonl.zst",
    ] {
        let path = data.join(trace);
        if !path.exists() {
            println!("skipped: no data {trace}");
            continue;
        }
        let ran = run_in(&data, &["demand", "show", trace]);
        assert_eq!(ran.code, 0, "{trace}: {}", ran.err);
    }
}
