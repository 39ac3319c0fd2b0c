//! What cannot be used: exit code 2, the place in the error, nothing half-written.

use std::path::Path;

use crate::{Ran, edit, run_in, small};

/// Plans a changed fixture that must be refused; no file may be left behind.
fn refused(change: impl FnOnce(&Path)) -> String {
    let folder = small();
    change(folder.path());
    let ran = run_in(folder.path(), &["plan", "plan.toml", "--save", "plan.json", "--write-mps", "plan.mps"]);
    check_refused(&ran, folder.path());
    ran.err
}

fn check_refused(ran: &Ran, folder: &Path) {
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{}", ran.err);
    assert!(ran.err.starts_with("error: "), "{}", ran.err);
    let left: Vec<_> = std::fs::read_dir(folder)
        .expect("folder")
        .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
        .filter(|n| !["plan.toml", "offers.csv", "demand.csv", "demand.csv.zst"].contains(&n.as_str()))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Replaces `from` by `to` in a file and expects each of `places` in the error.
fn broken(name: &str, from: &str, to: &str, places: &[&str]) {
    let error = refused(|folder| edit(folder, name, from, to));
    for place in places {
        assert!(error.contains(place), "'{place}' is not in: {error}");
    }
}

#[test]
fn plan_files() {
    let class = "name = \"chat\"";
    broken("plan.toml", class, "name = \"chat\"\nnam = 3", &["plan.toml", "nam"]);
    broken("plan.toml", "name = \"embed\"", "name = \"chat\"", &["chat", "twice"]);
    broken(
        "plan.toml",
        "{ model = \"L4\" }, { model = \"T4\" }",
        "{ model = \"B200\" }",
        &["embed", "no offer can serve"],
    );
    broken("plan.toml", "\"H200\"", "\"H2000\"", &["plan.toml", "H2000"]);
    broken("plan.toml", "hit_rate = 0.99", "hit_rate = nan", &["chat", "hit_rate"]);
    broken("plan.toml", "hit_rate = 0.99", "hit_rate = 1.5", &["chat", "hit_rate"]);
    broken("plan.toml", "miss_cost_usd = 10.0", "miss_cost_usd = -1", &["chat", "miss_cost_usd"]);
    broken("plan.toml", "miss_cost_usd = 10.0", "miss_cost_usd = 1e30", &["chat", "miss_cost_usd"]);
    broken("plan.toml", "miss_cost_usd = 10.0", "miss_cost_usd = inf", &["chat", "miss_cost_usd"]);
    broken("plan.toml", "gpus_per_claim = 3", "gpus_per_claim = 0", &["chat", "gpus_per_claim"]);
    broken("plan.toml", "limit_gpus = 8", "limit_gpus = -8", &["alpha H100"]);
    broken("plan.toml", "fill = 0.9", "fill = 1.9", &["fill"]);
    broken("plan.toml", "[180, 0.8]", "[180, 1.8]", &["lead_time"]);
    broken("plan.toml", "[policy]", "[policy]\nbudget_usd_per_h = 0", &["budget"]);
    broken("plan.toml", "periods_s = [60,", "periods_s = [0,", &["period"]);
    broken("plan.toml", "claims = { chat = 2 }", "claims = { chat = 9 }", &["nodes[0]", "h200-8x", "claims"]);
    broken("plan.toml", "count = 1", "count = 4000000000", &["nodes[0]", "4000000000"]);
    broken("plan.toml", "provider = \"alpha\"", "provider = \"alfa\"", &["alpha H100"]);
    broken("plan.toml", "hit_rate = 0.99", "hit_rate = 0.99\nclaim_mean_s = nan", &["chat", "claim_mean_s"]);
    broken("plan.toml", "periods_s = [60,", "periods_s = [4294967295, 4294967295,", &["periods_s"]);
    broken("plan.toml", "zone = \"us-east-1\"", "zone = \"us-east-9\"", &["nodes", "us-east-9"]);
    broken("plan.toml", "as_of = \"2026-09-16\"", "as_of = \"soon\"", &["as_of", "soon"]);
    broken("plan.toml", "file = \"demand.csv\"", "file = \"gone.csv\"", &["gone.csv"]);
    broken("plan.toml", "file = \"demand.csv\"", "file = \"demand.csv\"\nstep_s = 0", &["step_s"]);
    broken("plan.toml", "season_s = 7200", "season_s = 0", &["season_s"]);
    broken("plan.toml", "paths = 8", "paths = 0", &["paths"]);
}

#[test]
fn offer_tables() {
    broken("offers.csv", "H100-SXM,8,20.00", "H100-SXM,8,twenty", &["offers.csv", "line 2", "price_usd_per_h"]);
    broken("offers.csv", "H100-SXM,8,20.00", "H100-SXM,-8,20.00", &["offers.csv", "line 2", "gpus_per_node"]);
    broken("offers.csv", "h100-8x,spot", "h100-8x,sport", &["offers.csv", "line 3", "market"]);
    broken("offers.csv", "2026-09-01,0.05", "2026-09-01,NaN", &["offers.csv", "line 3", "interruption_per_h"]);
    broken("offers.csv", "provider,region", "supplier,region", &["offers.csv", "column 'provider'"]);
    let error = refused(|folder| std::fs::write(folder.join("offers.csv"), "").expect("written"));
    assert!(error.contains("offers.csv") && error.contains("empty"), "{error}");
}

#[test]
fn demand_files() {
    broken("demand.csv", "\n60,", "\n60,NaN,3\n120,", &["demand.csv", "line 3"]);
    broken("demand.csv", "t_s,chat,embed", "t_s,talk,embed", &["chat", "talk"]);
    let error = refused(|folder| std::fs::write(folder.join("demand.csv"), "").expect("written"));
    assert!(error.contains("demand.csv"), "{error}");
    let error = refused(|folder| {
        let text = std::fs::read(folder.join("demand.csv")).expect("readable").repeat(20);
        let packed = zstd::encode_all(&text[..], 3).expect("zstd");
        std::fs::write(folder.join("demand.csv.zst"), &packed[..packed.len() / 2]).expect("written");
        edit(folder, "plan.toml", "file = \"demand.csv\"", "file = \"demand.csv.zst\"\nkind = \"replicas\"");
    });
    assert!(error.contains("demand.csv.zst") && error.contains("ends in the middle"), "{error}");
}

#[test]
fn questions() {
    let folder = small();
    for (question, hint) in [
        ("nonsense", "KIND"),
        ("quota:alpha H100", "quota:NAME=+8"),
        ("quota:nobody=+1", "nobody"),
        ("price:alpha*NaN", "price:TEXT*1.2"),
        ("price:nothing*2", "nothing"),
        ("hit-rate:chat=2", "hit_rate"),
        ("hit-rate:nobody=0.9", "nobody"),
        ("lift-regions:nobody", "nobody"),
        ("budget:-1", "budget"),
        ("budget:0", "budget"),
    ] {
        let ran = run_in(folder.path(), &["plan", "plan.toml", "--save", "plan.json", "--what-if", question]);
        check_refused(&ran, folder.path());
        assert!(ran.err.contains(hint), "{question}: {}", ran.err);
    }
}

#[test]
fn a_parent_that_is_no_plan() {
    let folder = small();
    let ran = run_in(folder.path(), &["plan", "plan.toml", "--parent", "offers.csv"]);
    check_refused(&ran, folder.path());
    assert!(ran.err.contains("offers.csv is no plan"), "{}", ran.err);
}

#[test]
fn imports() {
    let folder = small();
    for (source, hint) in [
        ("offers.csv", "KIND:PLACE"),
        ("skypilot:offers.csv", "skypilot:CLOUD=FILE"),
        ("skypilot:aws=offers.csv", "InstanceType"),
        ("aws-spot:offers.csv", "describe-spot-price-history"),
        ("magic:offers.csv", "the kinds are"),
        ("own:gone.csv", "gone.csv"),
        ("public:gone", "gone"),
    ] {
        let ran = run_in(folder.path(), &["offers", "import", "--from", source, "--out", "table.csv"]);
        assert_eq!(ran.code, 2, "{source}: {}", ran.out);
        assert!(ran.err.contains(hint), "{source}: {}", ran.err);
        assert!(!folder.path().join("table.csv").exists());
    }
}
