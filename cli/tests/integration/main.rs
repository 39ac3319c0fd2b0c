//! The `pilotlight` command line as a user meets it: its output, its errors, its files.
#![allow(clippy::print_stdout, reason = "tests say what they skip")]

mod bad_input;
mod health;
mod imports;
mod plans;
mod shared_data;
mod simulations;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a run printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs `pilotlight` in `folder`.
pub fn run_in(folder: &Path, args: &[&str]) -> Ran {
    let made = Command::new(env!("CARGO_BIN_EXE_pilotlight")).args(args).current_dir(folder).output().expect("starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: made.status.code().expect("no signal"), out: text(made.stdout), err: text(made.stderr) }
}

/// A copy of the small fixture that a test may change.
pub fn small() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temp");
    for name in ["plan.toml", "offers.csv", "demand.csv"] {
        std::fs::copy(fixtures().join("small").join(name), folder.path().join(name)).expect("copied");
    }
    folder
}

/// Folder of the fixtures.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Replaces text in a file of a folder; the text must be there.
pub fn edit(folder: &Path, name: &str, from: &str, to: &str) {
    let path = folder.join(name);
    let text = std::fs::read_to_string(&path).expect("readable");
    assert!(text.contains(from), "{name} has no '{from}'");
    std::fs::write(path, text.replace(from, to)).expect("written");
}
