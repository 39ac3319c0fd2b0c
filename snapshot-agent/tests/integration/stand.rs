//! A host of which a test says what it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A program of the workspace, built beside the tests.
pub fn binary(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let beside = tests.parent().and_then(Path::parent).unwrap().join(name);
    assert!(beside.exists(), "build it first: cargo build --workspace --bins ({} is missing)", beside.display());
    beside
}

/// A host in a folder.
pub struct Stand {
    folder: TempDir,
    pub script: Value,
    pub variables: Vec<(&'static str, String)>,
}

impl Stand {
    /// A healthy host of so many H200.
    pub fn healthy(gpus: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("dev")).unwrap();
        std::fs::create_dir_all(root.join("sys/bus/pci/devices")).unwrap();
        for name in ["nvidiactl", "nvidia-uvm"] {
            std::fs::write(root.join("dev").join(name), "").unwrap();
        }
        let addresses: Vec<String> = (0..gpus).map(|i| format!("0000:{:02x}:00", 0x10 + i)).collect();
        for (i, address) in addresses.iter().enumerate() {
            std::fs::write(root.join(format!("dev/nvidia{i}")), "").unwrap();
            let device = root.join("sys/bus/pci/devices").join(format!("{address}.0"));
            std::fs::create_dir(&device).unwrap();
            for (file, text) in [("vendor", "0x10de\n"), ("class", "0x030200\n"), ("device", "0x2335\n")] {
                std::fs::write(device.join(file), text).unwrap();
            }
        }
        std::fs::write(root.join("kmsg"), "5,0,0,-;Linux version 6.1\n6,1,10,-;NVRM: loading\n").unwrap();
        let gpus: Vec<Value> = addresses.iter().map(|a| json!({ "address": a })).collect();
        Self { folder, script: json!({ "gpus": gpus }), variables: vec![("STAND_IN_PATIENCE", "0.1".into())] }
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    pub fn kernel_log(&self) -> PathBuf {
        self.root().join("kmsg")
    }

    /// The agent on this host.
    pub fn agent(&self, args: &[&str]) -> Command {
        let script = self.root().join("script.json");
        std::fs::write(&script, self.script.to_string()).unwrap();
        let mut command = Command::new(binary("pilotlight-agent-stand-in"));
        command.args(args).env("STAND_IN_SCRIPT", script).env("STAND_IN_ROOT", self.root());
        command.envs(self.variables.iter().map(|(k, v)| (*k, v.as_str())));
        command
    }

    /// Its gate, once: exit code, and what it printed.
    pub fn check(&self, args: &[&str]) -> (i32, String) {
        let log = self.kernel_log().display().to_string();
        let fixed = ["check", "--tensor-s", "0.1", "--fp32-s", "0.1", "--kernel-log", &log];
        let Output { status, stdout, stderr } = self.agent(&[&fixed, args].concat()).output().unwrap();
        let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
        (status.code().unwrap(), text)
    }
}
