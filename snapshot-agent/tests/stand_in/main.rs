//! The agent with faults that a test asks for, in environment variables. It is built for tests and never shipped.
//!
//! | variable | effect |
//! |---|---|
//! | `STAND_IN_SCRIPT` | a file: what the scripted host answers, in place of this host's own GPUs |
//! | `STAND_IN_SPOIL` | the number of a product in which one bit is turned |
//! | `STAND_IN_HANG`, `STAND_IN_CRASH` | the question at which a probe hangs, or dies |
//! | `STAND_IN_ROOT` | a folder in place of `/`, with `dev` and `sys` in it |
//! | `STAND_IN_PATIENCE` | what deadlines are multiplied by |
//! | `STAND_IN_TOOLS` | what resets and reboots, with `reset ADDRESS` and `reboot` behind it |
//! | `STAND_IN_BOOT` | the name of the boot |
//! | `STAND_IN_HIDE` | the number of a GPU that the management library does not count |

mod script;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use health::gate::Look;
use snapshot_agent::cli;
use snapshot_agent::host::HostFolders;
use snapshot_agent::probe::{Answer, Ask, Hardware, Probe};
use snapshot_agent::switches::Switches;

/// A probe with faults.
#[derive(Debug)]
struct Faulty<P> {
    inner: P,
    hang: Option<String>,
    crash: Option<String>,
    hide: Option<u32>,
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl<P: Probe> Probe for Faulty<P> {
    fn answer(&mut self, ask: &Ask) -> Look<Answer> {
        let name = serde_json::to_string(ask).unwrap_or_default();
        let asked = |which: &Option<String>| which.as_ref().is_some_and(|w| name.contains(&format!("\"{w}\"")));
        if asked(&self.hang) {
            std::thread::sleep(Duration::from_secs(86_400));
        }
        if asked(&self.crash) {
            std::process::abort();
        }
        let answer = self.inner.answer(ask)?;
        Ok(match (answer, self.hide) {
            (Answer::Survey(driver, gpus), Some(hidden)) => {
                Answer::Survey(driver, gpus.into_iter().filter(|(i, _)| *i != hidden).collect())
            }
            (answer, _) => answer,
        })
    }
}

fn main() -> ExitCode {
    let number = |name: &str| variable(name).and_then(|n| n.parse().ok());
    let root = variable("STAND_IN_ROOT").map(PathBuf::from);
    let switches = Switches {
        spoil: variable("STAND_IN_SPOIL").and_then(|n| n.parse().ok()),
        host: root.map_or_else(HostFolders::default, |r| HostFolders { dev: r.join("dev"), sys: r.join("sys") }),
        patience: number("STAND_IN_PATIENCE").unwrap_or(1.0),
        tools: variable("STAND_IN_TOOLS").map(|t| t.split(' ').map(str::to_owned).collect()),
        boot: variable("STAND_IN_BOOT"),
    };
    let (hang, crash) = (variable("STAND_IN_HANG"), variable("STAND_IN_CRASH"));
    let hide = variable("STAND_IN_HIDE").and_then(|n| n.parse().ok());
    match variable("STAND_IN_SCRIPT") {
        Some(path) => match script::Script::read(&path) {
            Ok(inner) => cli::main(&mut Faulty { inner, hang, crash, hide }, &switches),
            Err(error) => {
                eprintln!("{path}: {error}");
                ExitCode::FAILURE
            }
        },
        None => cli::main(&mut Faulty { inner: Hardware::default(), hang, crash, hide }, &switches),
    }
}
