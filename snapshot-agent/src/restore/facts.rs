//! What this host has, for what a snapshot needs.

use std::collections::BTreeSet;

use snapshots::compatibility::{Devices, Host, Requirements, Version, instruction_sets};

use super::engine::Engine;

fn kernel() -> Version {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Version::leading(&release).unwrap_or(Version(vec![0]))
}

/// Instruction sets of the first processor.
fn cpu_features() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| {
        let (name, flags) = line.split_once(':')?;
        matches!(name.trim(), "flags" | "Features").then(|| flags.to_owned())
    });
    instruction_sets(flags.unwrap_or_default().split_whitespace())
}

/// This host, with the engines that work on it, and its GPUs as far as they are asked for.
#[must_use]
pub fn host(engines: &[&dyn Engine], devices: Option<Devices>) -> Host {
    let works = |engine: &&dyn Engine| Some((engine.name().to_owned(), engine.probe().ok()?));
    Host {
        arch: std::env::consts::ARCH.to_owned(),
        engines: engines.iter().filter_map(works).collect(),
        kernel: kernel(),
        cpu_features: cpu_features(),
        devices,
    }
}

/// What a process that is captured here needs elsewhere.
#[must_use]
pub fn requirements(engine: &dyn Engine, engine_version: Version, devices: Option<Devices>) -> Requirements {
    Requirements {
        arch: std::env::consts::ARCH.to_owned(),
        engine: engine.name().to_owned(),
        engine_version,
        kernel: kernel(),
        cpu_features: cpu_features(),
        devices,
    }
}
