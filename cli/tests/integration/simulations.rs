//! `pilotlight simulate` on small scenarios of the project's own.

use std::path::Path;

use crate::{edit, run_in, small};

/// A folder with a scenario of a few hours.
fn scenario() -> tempfile::TempDir {
    let folder = small();
    let text = r#"
name = "small"
title = "Two services"
seeds = [1, 2]

[demand]
file = "demand.csv"
kind = "replicas"
season_s = 7200

[window]
history_days = 0.15
tune_days = 0.04
test_days = 0.1

[offers]
file = "offers.csv"

[supply]
nodes = 10
lead_time = { median_s = 120, p99_s = 300 }

[plan]
every_s = 300
periods_s = [300, 300, 600]
paths = 4

[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }, { model = "H200" }]
gpus_per_claim = 2
hit_rate = 0.9
miss_cost_usd = 5.0

[[class]]
name = "embed"
gpus = [{ model = "L4" }, { model = "T4" }]
hit_rate = 0.9
miss_cost_usd = 0.5
"#;
    std::fs::write(folder.path().join("small.toml"), text).expect("written");
    folder
}

fn simulate(folder: &Path, args: &[&str]) -> crate::Ran {
    run_in(folder, &[&["simulate", "small.toml", "--out", "out"], args].concat())
}

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join("out").join(name)).expect("written")
}

#[test]
fn a_league_is_played_shown_and_repeats() {
    let folder = scenario();
    let ran = simulate(folder.path(), &[]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for word in ["planner", "clairvoyant", "base-stock", "above foresight"] {
        assert!(ran.out.contains(word), "{word}: {}", ran.out);
    }
    let page = read(folder.path(), "report.html");
    assert!(page.contains("<svg") && page.ends_with("</html>\n") && !page.contains("http-equiv"));
    let outside = page.matches("http").count() - page.matches("http://www.w3.org").count();
    assert_eq!(outside, 0, "the page fetches nothing");
    let first = read(folder.path(), "results.json");
    std::fs::remove_dir_all(folder.path().join("out")).expect("removed");
    assert_eq!(simulate(folder.path(), &["--threads", "1"]).code, 0);
    assert_eq!(read(folder.path(), "results.json"), first, "byte for byte");
}

#[test]
fn shards_and_interrupted_runs_come_to_the_same() {
    let folder = scenario();
    assert_eq!(simulate(folder.path(), &[]).code, 0);
    let whole = read(folder.path(), "results.json");
    std::fs::remove_dir_all(folder.path().join("out")).expect("removed");
    assert_eq!(simulate(folder.path(), &["--shard", "1/2"]).code, 0);
    let ran = run_in(folder.path(), &["simulate", "merge", "small.toml", "--out", "out"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("runs are missing"), "{}", ran.err);
    assert!(!folder.path().join("out/results.json").exists());
    assert_eq!(simulate(folder.path(), &["--shard", "2/2"]).code, 0);
    let ran = run_in(folder.path(), &["simulate", "merge", "small.toml", "--out", "out"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(read(folder.path(), "results.json"), whole);
    // Half of the results are lost: only they are played again.
    let lost = std::fs::read_dir(folder.path().join("out/runs")).expect("runs");
    for entry in lost.map(|e| e.expect("an entry").path()).step_by(2) {
        std::fs::remove_file(entry).expect("removed");
    }
    assert_eq!(simulate(folder.path(), &[]).code, 0);
    assert_eq!(read(folder.path(), "results.json"), whole);
    // Results of another scenario are not mixed in.
    edit(folder.path(), "small.toml", "nodes = 10", "nodes = 11");
    let ran = simulate(folder.path(), &[]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("another scenario"), "{}", ran.err);
}

#[test]
fn bad_scenarios_name_the_place() {
    let broken = |from: &str, to: &str, places: &[&str]| {
        let folder = scenario();
        edit(folder.path(), "small.toml", from, to);
        let ran = simulate(folder.path(), &[]);
        assert_eq!(ran.code, 2, "{to}: {}", ran.out);
        places.iter().for_each(|place| assert!(ran.err.contains(place), "{to}: '{place}' is not in: {}", ran.err));
        assert!(!folder.path().join("out").exists(), "{to}: something was written");
    };
    broken("seeds = [1, 2]", "seeds = [1, 2, 1]", &["small.toml", "seeds", "1 stands twice"]);
    broken("seeds = [1, 2]", "seeds = []", &["seeds"]);
    broken("name = \"small\"", "name = \"../small\"", &["name"]);
    broken("test_days = 0.1", "test_days = 10", &["window", "10.19 days"]);
    broken("test_days = 0.1", "test_days = nan", &["window.test_days"]);
    broken("nodes = 10", "nodes = -1", &["supply.nodes"]);
    broken("median_s = 120", "median_s = 400", &["supply.lead_time"]);
    broken("{ model = \"L4\" }, { model = \"T4\" }", "{ model = \"B200\" }", &["class 'embed'", "no offer"]);
    broken("name = \"embed\"", "name = \"embd\"", &["class 'embd'", "no series"]);
    broken("every_s = 300", "every_s = 0", &["plan.every_s"]);
    broken("file = \"demand.csv\"", "file = \"gone.csv\"", &["gone.csv"]);
    broken("[plan]", "[plan]\nspeed = 3", &["small.toml", "speed"]);
    let twice = "[[surge]]\nat_h = 1\nfactor = 2\nramp_minutes = 5\nhours = 2\n";
    broken("[plan]", &format!("{twice}{twice}[plan]"), &["surge", "overlap"]);
    let folder = scenario();
    for shard in ["0/2", "3/2", "x"] {
        let ran = simulate(folder.path(), &["--shard", shard]);
        assert_eq!(ran.code, 2);
        assert!(ran.err.contains("I/N"), "{}", ran.err);
    }
    let text = std::fs::read_to_string(folder.path().join("demand.csv")).expect("read");
    std::fs::write(folder.path().join("demand.csv"), text.replacen("\n120,", "\n30,", 1)).expect("written");
    let ran = simulate(folder.path(), &[]);
    assert!(ran.code == 2 && ran.err.contains("demand.csv") && ran.err.contains("line 4"), "{}", ran.err);
}

#[test]
fn without_its_data_a_scenario_is_skipped() {
    let folder = scenario();
    edit(folder.path(), "small.toml", "file = \"demand.csv\"", "file = \"$DATA/none.csv\"");
    let ran = simulate(folder.path(), &[]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert!(ran.err.contains("skipped: no data"), "{}", ran.err);
}
