//! What an operator says of a workload: how it starts, when it is ready, what it must answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// Longest recipe, bytes.
const BYTES_MAX: usize = 64 << 10;
/// Longest wait, seconds.
const WAIT_MAX_S: f64 = 86_400.0;

/// A recipe (TOML).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where it runs; `/` without it.
    #[serde(default = "root")]
    pub folder: PathBuf,
    /// Variables beside `PATH`, `HOME` and `LANG`: nothing else of the agent's own environment gets into a snapshot.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// When it serves.
    pub ready: Ready,
    /// Run one after the other once it serves, before it is captured: what is compiled or loaded on first use is in the
    /// snapshot then.
    #[serde(default)]
    pub warm_up: Vec<Vec<String>>,
    /// Run just before it is captured: such as an engine's call to sleep.
    #[serde(default)]
    pub before_capture: Vec<Vec<String>>,
    /// Run after a restore, before it counts as ready.
    #[serde(default)]
    pub after_restore: Vec<Vec<String>>,
    /// How its device memory is captured.
    #[serde(default)]
    pub device_memory: DeviceMemory,
    /// A question whose answer after a restore must be the one that it gave when it was captured.
    #[serde(default)]
    pub canary: Option<Canary>,
}

/// How device memory is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceMemory {
    /// Bulk memory by the agent, at the speed of the bus: a library is preloaded into the workload. The rest by the driver.
    #[default]
    Split,
    /// All of it by the driver.
    Driver,
}

/// When a workload serves: an answer, never a state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// Asked until it answers with a status below 300.
    pub url: String,
    /// How long at most, seconds.
    #[serde(default = "ten_minutes")]
    pub within_s: f64,
}

/// A question with one right answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Where it is asked.
    pub url: String,
    /// What is posted; without it, it is fetched.
    #[serde(default)]
    pub body: Option<String>,
    /// Parts of a JSON answer that must be the same, as JSON pointers (RFC 6901) such as `/choices/0/text`; without any, all of
    /// the answer, byte by byte.
    #[serde(default)]
    pub fields: Vec<String>,
    /// How long an answer may take, seconds.
    #[serde(default = "half_a_minute")]
    pub within_s: f64,
}

fn root() -> PathBuf {
    "/".into()
}

fn ten_minutes() -> f64 {
    600.0
}

fn half_a_minute() -> f64 {
    30.0
}

impl Recipe {
    /// Reads it from a file.
    ///
    /// # Errors
    /// It does not read, or says something that makes no sense.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = || format!("recipe {}", path.display());
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(shown)
    }

    /// Reads it from text.
    ///
    /// # Errors
    /// It says something that makes no sense.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        ensure!(text.len() <= BYTES_MAX, "it has {} bytes: at most {BYTES_MAX} are read", text.len());
        let recipe: Self = toml::from_str(text)?;
        let commands = [&recipe.warm_up, &recipe.before_capture, &recipe.after_restore].into_iter().flatten();
        for command in std::iter::once(&recipe.command).chain(commands) {
            ensure!(!command.is_empty() && !command[0].is_empty(), "a command without a program");
            ensure!(command.iter().all(|word| !word.contains('\0')), "a command with a zero in it");
        }
        ensure!(recipe.folder.is_absolute(), "folder = \"{}\": give a path from /", recipe.folder.display());
        let asked = recipe.canary.iter().map(|canary| ("canary", &canary.url, canary.within_s));
        for (what, url, within_s) in asked.chain([("ready", &recipe.ready.url, recipe.ready.within_s)]) {
            if !url.starts_with("http://") {
                bail!("{what}.url = \"{url}\": give http:// and an address of this host");
            }
            ensure!(
                within_s > 0.0 && within_s <= WAIT_MAX_S,
                "{what}.within_s = {within_s}: give seconds, at most a day"
            );
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_named() {
        let good = "command = ['x']\n[ready]\nurl = 'http://127.0.0.1:1/'\n";
        assert_eq!(Recipe::parse(good).expect("a recipe").folder, Path::new("/"));
        for (text, why) in [
            ("command = []\n[ready]\nurl = 'http://x/'", "a command without a program"),
            ("command = ['x']\nfolder = 'here'\n[ready]\nurl = 'http://x/'", "give a path from /"),
            ("command = ['x']\n[ready]\nurl = 'https://x/'", "give http://"),
            ("command = ['x']\n[ready]\nurl = 'http://x/'\nwithin_s = nan", "give seconds"),
            ("command = ['x']\ncomand = 1\n[ready]\nurl = 'http://x/'", "unknown field `comand`"),
            ("command = ['x']", "missing field `ready`"),
        ] {
            let said = format!("{:#}", Recipe::parse(text).expect_err("refused"));
            assert!(said.contains(why), "{said}");
        }
    }
}
