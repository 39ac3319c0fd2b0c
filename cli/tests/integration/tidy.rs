//! Rules of docs/ARCHITECTURE.md that no compiler checks: the pure rooms have no clock, randomness, files or threads.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Words that the code of a pure room must not have; tests at the end of a file may.
fn forbidden(code: &str) -> Option<&'static str> {
    let words = [
        "std::time",
        "Instant::",
        "SystemTime",
        "std::fs",
        "std::env",
        "std::thread",
        "std::process",
        "std::net",
        "rand::",
        "async fn",
        "HashMap",
        "HashSet",
        "println!",
        "eprintln!",
        "dbg!",
    ];
    let code = code.split("#[cfg(test)]").next().unwrap_or(code);
    let lines = code.lines().map(|l| l.split("//").next().unwrap_or(l));
    lines.flat_map(|l| words.iter().find(|w| l.contains(**w))).next().copied()
}

#[test]
fn pure_rooms_are_pure() {
    assert_eq!(forbidden("fn f() {\n  let t = std::time::Instant::now();\n}"), Some("std::time"), "finds nothing");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for room in ["fleet", "health", "protocol", "control", "planner", "solver", "snapshots"] {
        sources(&root.join(room).join("src"), &mut found);
    }
    assert_eq!(forbidden("use std::collections::HashMap;"), Some("HashMap"), "the order of a hash is no input");
    assert!(found.len() > 20, "only {} files: the rooms have moved", found.len());
    for path in found {
        let code = std::fs::read_to_string(&path).expect("readable");
        assert_eq!(forbidden(&code), None, "{}", path.display());
    }
}

#[test]
fn files_stay_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).expect("the workspace") {
        let room = entry.expect("an entry").path();
        if room.join("Cargo.toml").exists() && room.join("src").exists() {
            sources(&room.join("src"), &mut found);
        }
    }
    for path in found {
        let lines = std::fs::read_to_string(&path).expect("readable").lines().count();
        assert!(lines <= 600, "{} has {lines} lines: split it by meaning", path.display());
    }
}

/// docs/invariants.md is written from the list in `fleet`: `UPDATE_EXPECT=1` writes it.
#[test]
fn invariants_are_documented() {
    let mut text = String::from(
        "# Invariants\n\n\
         Properties that hold at every moment. `fleet/src/invariants.rs` is the one list; this page is written from it.\n\n\
         - **book**: every server checks its own book, after each commit what changed, and each minute all of it.\n\
         - **decision**: whoever decides it counts anew, once it is done: launches against the guards (CAP-6), plans \
         against the\n  checker (CAP-7), idle nodes after some were lent (HLT-3), bills against what is known (CAP-3).\n\
         - **tests**: types and tests hold it; no moment's state would show a breach.\n\n\
         A breach is a bug: `pilotlight_invariant_breaches_total` counts it by number, the log says who broke it, and \
         an alarm\non more than 0 is worth being woken for.\n\n\
         | number | what holds | why | checked by |\n|---|---|---|---|\n",
    );
    for invariant in fleet::invariants::Invariant::ALL {
        let by = match invariant.checked_by() {
            fleet::invariants::CheckedBy::Book => "book",
            fleet::invariants::CheckedBy::Decision => "decision",
            fleet::invariants::CheckedBy::Tests => "tests",
        };
        text += &format!("| {invariant} | {} | {} | {by} |\n", invariant.text(), invariant.why());
    }
    expect_test::expect_file!["../../../docs/invariants.md"].assert_eq(&text);
}
