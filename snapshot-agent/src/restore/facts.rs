//! What this host has, for what a snapshot needs.

use std::collections::BTreeSet;

use snapshots::compatibility::{Devices, Host, Requirements, Version, instruction_sets};

use super::criu::Criu;
use super::device::driver::{Driver, Gpus};
use super::engine::Engine;
use super::held::Where;

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

/// This host, with the engines that work on it, and its GPUs.
#[derive(Debug, Clone)]
pub struct Here {
    host: Host,
    /// None without a driver, or where nobody asked.
    pub gpus: Option<Gpus>,
}

impl Here {
    /// Looks: at GPUs, if there is somebody to ask.
    #[must_use]
    pub fn look(engines: &Where, driver: Option<&mut Driver>) -> Self {
        let criu = Criu::new(engines.criu.clone());
        let works = |engine: &dyn Engine| Some((engine.name().to_owned(), engine.probe().ok()?));
        let gpus = driver.and_then(Driver::gpus);
        let host = Host {
            arch: std::env::consts::ARCH.to_owned(),
            engines: works(&criu).into_iter().collect(),
            kernel: kernel(),
            cpu_features: cpu_features(),
            devices: None,
        };
        Self { host, gpus }
    }

    /// For a workload that gets these GPUs; without any, all of them.
    ///
    /// # Errors
    /// There is no such GPU.
    pub fn with(&self, gpus: Option<&[u32]>) -> anyhow::Result<Host> {
        let devices = self.gpus.as_ref().map(|all| all.only(gpus)).transpose()?;
        Ok(Host { devices: devices.map(|gpus| gpus.devices()), ..self.host.clone() })
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
