//! What outlives the agent's process: who it is to the control plane, and what is wrong with the host.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use health::Verdict;
use health::condition::HostConditions;
use protocol::agent::{Diagnosis, Gate};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// A gate that was run and is to be reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnreportedGate {
    /// What it said, as it is told.
    pub said: Gate,
    /// In a word.
    pub verdict: Verdict,
    /// Why, for people.
    pub reason: String,
    /// When it ended, milliseconds since 1970.
    pub at_ms: i64,
    /// Number of the report, once it was sent: sent again, it counts once.
    pub seq: Option<u64>,
}

/// Diagnostics that were run and are to be reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnreportedDiagnosis {
    /// What they said, as it is told.
    pub said: Diagnosis,
    /// In a word.
    pub verdict: Verdict,
    /// Why, for people.
    pub reason: String,
    /// The version of the desired state that asked for them.
    #[serde(default)]
    pub version: Option<i64>,
    /// Number of the report, once it was sent.
    pub seq: Option<u64>,
}

/// What is stored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The boot that it is of.
    pub boot: String,
    /// Number of the last report.
    pub report_seq: u64,
    /// Number of the last event.
    pub event_seq: u64,
    /// The host's token.
    pub token: Option<String>,
    /// The first line of the kernel log that was not read.
    pub log_next: u64,
    /// The first line of it that the next gate counts: what came before was mended, or passed.
    pub gate_log_next: u64,
    /// What is wrong.
    pub host: HostConditions,
    /// The repair that was begun, by the version of the desired state: it is not begun twice.
    pub repair_begun: Option<i64>,
    /// Which GPU was where, by its UUID: another one in its place ends what was wrong with it.
    pub uuids: BTreeMap<String, String>,
    /// A gate that the control plane does not know of.
    #[serde(default, alias = "unreported", deserialize_with = "if_it_reads")]
    pub unreported_gate: Option<UnreportedGate>,
    /// Diagnostics that the control plane does not know of.
    #[serde(default, alias = "undiagnosed", deserialize_with = "if_it_reads")]
    pub unreported_diagnosis: Option<UnreportedDiagnosis>,
}

/// What another version of the agent left to be told may not read; the host keeps its token all the same.
fn if_it_reads<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_else(|error| {
        tracing::warn!(%error, "what was to be told does not read, and is made anew");
        None
    }))
}

/// The file that it is stored in.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// In a folder, which is made.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { path: folder.join("state.json") })
    }

    /// What was stored; nothing where nothing was, or where it does not read: then the host is looked at anew.
    #[must_use]
    pub fn read(&self) -> State {
        let Ok(text) = std::fs::read_to_string(&self.path) else { return State::default() };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!(file = %self.path.display(), %error, "the state does not read; the host is looked at anew");
            State::default()
        })
    }

    /// Stores it, whole or not at all.
    ///
    /// # Errors
    /// The disk is full, say. The agent goes on with what it has in memory.
    pub fn write(&self, state: &State) -> anyhow::Result<()> {
        let beside = self.path.with_extension("new");
        let written = || -> std::io::Result<()> {
            let mut file = File::create(&beside)?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.write_all(&serde_json::to_vec(state)?)?;
            file.sync_all()?;
            std::fs::rename(&beside, &self.path)
        };
        written().with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_version_left_to_be_told_costs_no_token() {
        let folder = tempfile::tempdir().expect("works");
        let store = Store::in_folder(folder.path()).expect("works");
        let text = r#"{"token":"pla_1","repair_begun":7,"unreported":{"boot":"b"},"undiagnosed":{"verdict":"pass"}}"#;
        std::fs::write(folder.path().join("state.json"), text).expect("works");
        let state = store.read();
        assert_eq!((state.token.as_deref(), state.repair_begun), (Some("pla_1"), Some(7)));
        assert!(state.unreported_gate.is_none() && state.unreported_diagnosis.is_none());
    }
}
