//! Every trace format, with good and bad rows of our own making.

use std::io::Write;

use simulations::demand::convert::Params;
use simulations::demand::{Kind, Series, read};

fn with(name: &str, text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("temp");
    let path = folder.path().join(name);
    std::fs::File::create(&path).and_then(|mut f| f.write_all(text.as_bytes())).expect("write");
    (folder, path)
}

fn good(name: &str, kind: Kind, text: &str) -> Series {
    let (_folder, path) = with(name, text);
    assert_eq!(Kind::guess(&path).expect("a known kind"), kind);
    read(&path, kind, &Params::default()).expect("readable")
}

fn bad(name: &str, kind: Kind, text: &str) -> String {
    let (_folder, path) = with(name, text);
    read(&path, kind, &Params::default()).expect_err("broken").to_string()
}

#[test]
fn azure_llm() {
    let head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
    let rows = "2023-11-16 18:00:00.5000000,8000,1500\n2023-11-16 18:01:30.0000000,10,1\n";
    let series = good("a.csv", Kind::AzureLlm, &format!("{head}{rows}"));
    assert_eq!((series.step_s, series.steps()), (60, 2));
    let error = bad("a.csv", Kind::AzureLlm, &format!("{head}2023-11-16 18:00:00.5,8000,x\n"));
    assert!(error.contains("line 2, column 'GeneratedTokens'"), "{error}");
    let back = "2023-11-16 18:01:30.0,10,1\n2023-11-16 18:00:00.5,8000,1500\n";
    let error = bad("a.csv", Kind::AzureLlm, &format!("{head}{back}"));
    assert!(error.contains("line 3") && error.contains("back in time"), "{error}");
    assert!(bad("a.csv", Kind::AzureLlm, head).contains("has no requests"));
}

#[test]
fn burstgpt_and_mooncake() {
    let head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n";
    good("b.csv", Kind::BurstGpt, &format!("{head}5,ChatGPT,472,18,490,Conversation log\n65,GPT-4,1,1,2,API log\n"));
    assert!(
        bad("b.csv", Kind::BurstGpt, &format!("{head}5,ChatGPT,-1,18,490,x\n")).contains("column 'Request tokens'")
    );
    let line = "{\"timestamp\": 0, \"input_length\": 6758, \"output_length\": 500, \"hash_ids\": [0]}\n";
    good("m.jsonl", Kind::Mooncake, &line.repeat(3));
    let error = bad("m.jsonl", Kind::Mooncake, &format!("{line}{{\"timestamp\": 0}}\n"));
    assert!(error.contains("line 2"), "{error}");
}

#[test]
fn servegen_gaps_are_interpolated_and_said() {
    let head = "model,client_id,t_start_s,rate_req_per_s,cv,arrival_family,param1,param2\n";
    let row = |w: u32, c: u32, rate: f64| format!("m,{c},{},{rate},1.5,Gamma,1,1\n", w * 600);
    let rows = [row(0, 0, 4.0), row(0, 1, 2.0), row(3, 0, 10.0), row(3, 1, 2.0)].concat();
    let series = good("s.csv", Kind::ServeGen, &format!("{head}{rows}"));
    assert_eq!(series.classes, ["m/0", "m/1"]);
    assert_eq!(series.steps(), 40);
    assert!(series.notes[0].contains("2 windows"), "{:?}", series.notes);
    let twice = [row(0, 0, 4.0), row(0, 0, 2.0)].concat();
    let error = bad("s.csv", Kind::ServeGen, &format!("{head}{twice}"));
    assert!(error.contains("line 3") && error.contains("twice"), "{error}");
}

#[test]
fn replicas_long_wide_and_uneven() {
    let series = good("r.csv", Kind::Replicas, "t_s,a,b\n0,1,2\n300,3,4\n600,5,6\n");
    assert_eq!(series.values, vec![vec![1.0, 3.0, 5.0], vec![2.0, 4.0, 6.0]]);
    let series = good("r.csv", Kind::Replicas, "t_s,class,gpus\n0,a,1\n0,b,2\n60,a,3\n");
    assert_eq!(series.values, vec![vec![1.0, 3.0], vec![2.0, 0.0]]);
    assert_eq!(series.notes, ["b: 1 missing steps are 0"]);
    let error = bad("r.csv", Kind::Replicas, "t_s,a\n0,1\n300,3\n900,3\n");
    assert!(error.contains("line 4, column 't_s'"), "{error}");
    let error = bad("r.csv", Kind::Replicas, "t_s,a\n0,1\n300,\n600,1\n");
    assert!(error.contains("line 3, column 'a': is empty"), "{error}");
    assert!(bad("r.csv", Kind::Replicas, "t_s,a\n0,1\n").contains("fewer than two"));
}

#[test]
fn prometheus_matrix() {
    let text = |values: &str| {
        format!(
            r#"{{"status":"success","data":{{"resultType":"matrix","result":[{{"metric":{{"class":"chat"}},"values":[{values}]}}]}}}}"#
        )
    };
    let series = good("p.json", Kind::Prometheus, &text(r#"[100,"1"],[160,"2"],[280,"4"]"#));
    assert_eq!((series.step_s, series.values[0].clone()), (60, vec![1.0, 2.0, 2.0, 4.0]));
    assert_eq!(series.notes, ["chat: 1 missing steps keep the last value"]);
    let error = bad("p.json", Kind::Prometheus, &text(r#"[100,"1"],[160,"NaN"]"#));
    assert!(error.contains("data.result[0].values[1]"), "{error}");
    let error = bad("p.json", Kind::Prometheus, r#"{"status":"error","error":"query timed out"}"#);
    assert!(error.contains("query timed out"), "{error}");
}

#[test]
fn rate_tables() {
    let series = good(
        "x.csv",
        Kind::Rate,
        "timestamp,value\n2015-02-26 21:42:53,300\n2015-02-26 21:47:53,600\n2015-02-26 21:57:53,0\n",
    );
    assert_eq!(series.notes, ["1 missing steps are interpolated"]);
    // Gaps of 60 and 84 s in turn: an hour of them is an hour, not 50 minutes.
    let jitter: String = (0..=50).map(|i| format!("{},4\n", i * 72 + i % 2 * 12)).collect();
    let series = good("x.csv", Kind::Rate, &format!("timestamp,rate\n{jitter}"));
    let minutes = series.values[0].len() * series.step_s as usize / 60;
    assert!((60..=61).contains(&minutes), "{minutes} minutes");
    let error = bad("x.csv", Kind::Rate, "timestamp,value\n2015-02-26 21:42:53,1\n2015-02-26 21:42:53,2\n");
    assert!(error.contains("line 3, column 'timestamp'"), "{error}");
}

#[test]
fn unknown_files_are_refused_with_the_choices() {
    let (_folder, path) = with("u.csv", "foo,bar\n1,2\n");
    let error = Kind::guess(&path).expect_err("unknown").to_string();
    assert!(error.contains("--kind") && error.contains("servegen"), "{error}");
}
