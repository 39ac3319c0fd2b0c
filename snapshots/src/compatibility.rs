//! Whether a captured process can come back on a host: what it needs, what the host has, and each reason against it. Asked
//! before anything is fetched or started (SNAP-2).

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a captured process needs of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requirements {
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// What captured it.
    pub engine: String,
    /// Its version: it reads what it or an older one of the same major version wrote.
    pub engine_version: Version,
    /// Kernel where it was captured: an older one may lack what the process uses.
    pub kernel: Version,
    /// Instruction sets of the processor, as the kernel calls them: libraries have chosen their code by them.
    pub cpu_features: BTreeSet<String>,
    /// The GPUs that it used; none: it used none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
}

/// GPUs of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// Version of the driver.
    pub driver: String,
    /// Names of the GPUs, in the driver's order.
    pub gpus: Vec<String>,
}

/// Oldest driver whose checkpoints of processes can be relied on: 570 has the functions and refuses what PyTorch does
/// (NVIDIA/cuda-checkpoint, issue 34).
pub const DRIVER_MIN: u32 = 580;

/// What a host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// `x86_64`, `aarch64`.
    pub arch: String,
    /// Engines that work here, with their versions.
    pub engines: Vec<(String, Version)>,
    /// The running kernel.
    pub kernel: Version,
    /// Instruction sets of the processor.
    pub cpu_features: BTreeSet<String>,
    /// Its GPUs, if it has any.
    pub devices: Option<Devices>,
}

/// Numbers of a version, the most important first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub Vec<u32>);

impl Version {
    /// The numbers that a text begins with: `6.18.44-cloud` is 6.18.44.
    #[must_use]
    pub fn leading(text: &str) -> Option<Self> {
        let end = text.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(text.len());
        let parts = text[..end].trim_end_matches('.').split('.').map(str::parse);
        parts.collect::<Result<Vec<u32>, _>>().ok().map(Self)
    }

    /// Major and minor number.
    fn series(&self) -> (u32, u32) {
        let part = |n: usize| self.0.get(n).copied().unwrap_or(0);
        (part(0), part(1))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&parts.join("."))
    }
}

/// A reason against a restore.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another processor.
    #[error("it was captured on {needed}, this host is {found}")]
    Arch {
        /// Of the capture.
        needed: String,
        /// Of the host.
        found: String,
    },
    /// The engine is not there.
    #[error("it needs {0}, which does not work on this host: 'pilotlight-agent doctor' says why")]
    NoEngine(String),
    /// The engine is older, or of another major version.
    #[error(
        "{engine} {needed} captured it, this host has {found}: bring that version or a later one of its major version"
    )]
    EngineVersion {
        /// Which engine.
        engine: String,
        /// Of the capture.
        needed: Version,
        /// Of the host.
        found: Version,
    },
    /// The kernel is older.
    #[error("it was captured on Linux {needed}, this host has {found}, which is older")]
    Kernel {
        /// Of the capture.
        needed: Version,
        /// Of the host.
        found: Version,
    },
    /// Instruction sets are missing.
    #[error("this host's processor lacks {}", .0.iter().cloned().collect::<Vec<_>>().join(", "))]
    CpuFeatures(BTreeSet<String>),
    /// There are no GPUs.
    #[error("it used GPUs, and no driver answers on this host")]
    NoDevices,
    /// Another driver.
    #[error("it was captured with driver {needed}, this host has {found}: capture it anew")]
    Driver {
        /// Of the capture.
        needed: String,
        /// Of the host.
        found: String,
    },
    /// The driver is too old.
    #[error("driver {0} cannot be relied on to bring processes back: install {DRIVER_MIN} or later")]
    OldDriver(String),
    /// Other GPUs.
    #[error("it was captured on {}, this host has {}", count(needed), count(found))]
    Gpus {
        /// Of the capture.
        needed: Vec<String>,
        /// Of the host.
        found: Vec<String>,
    },
}

/// `2 NVIDIA H200`: alike ones together, in their order.
fn count(gpus: &[String]) -> String {
    let parts = gpus.chunk_by(|a, b| a == b).map(|alike| format!("{} {}", alike.len(), alike[0]));
    if gpus.is_empty() { "none".to_owned() } else { parts.collect::<Vec<_>>().join(", ") }
}

/// Every reason against a restore; none: it may be tried.
#[must_use]
pub fn refusals(needed: &Requirements, host: &Host) -> Vec<Refusal> {
    let mut found = Vec::new();
    if needed.arch != host.arch {
        found.push(Refusal::Arch { needed: needed.arch.clone(), found: host.arch.clone() });
    }
    match host.engines.iter().find(|(name, _)| *name == needed.engine) {
        None => found.push(Refusal::NoEngine(needed.engine.clone())),
        Some((_, version))
            if version.series().0 != needed.engine_version.series().0 || *version < needed.engine_version =>
        {
            let (needed, engine) = (needed.engine_version.clone(), needed.engine.clone());
            found.push(Refusal::EngineVersion { engine, needed, found: version.clone() });
        }
        Some(_) => {}
    }
    if host.kernel.series() < needed.kernel.series() {
        found.push(Refusal::Kernel { needed: needed.kernel.clone(), found: host.kernel.clone() });
    }
    let missing: BTreeSet<String> = needed.cpu_features.difference(&host.cpu_features).cloned().collect();
    if !missing.is_empty() {
        found.push(Refusal::CpuFeatures(missing));
    }
    if let Some(needed) = &needed.devices {
        found.extend(device_refusals(needed, host.devices.as_ref()));
    }
    found
}

fn device_refusals(needed: &Devices, host: Option<&Devices>) -> Vec<Refusal> {
    let Some(host) = host else { return vec![Refusal::NoDevices] };
    let mut found = Vec::new();
    // What a driver wrote into a process is for that driver to read.
    if needed.driver != host.driver {
        found.push(Refusal::Driver { needed: needed.driver.clone(), found: host.driver.clone() });
    }
    if Version::leading(&host.driver).is_none_or(|version| version.series().0 < DRIVER_MIN) {
        found.push(Refusal::OldDriver(host.driver.clone()));
    }
    if needed.gpus != host.gpus {
        found.push(Refusal::Gpus { needed: needed.gpus.clone(), found: host.gpus.clone() });
    }
    found
}

/// Of the flags that a kernel lists for a processor, those that code is chosen by; others, such as what a hypervisor shows of
/// itself, change from host to host without harm.
#[must_use]
pub fn instruction_sets<'a>(flags: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    const EXACT: [&str; 24] = [
        "aes",
        "bmi1",
        "bmi2",
        "abm",
        "adx",
        "cx16",
        "erms",
        "f16c",
        "fma",
        "fsrm",
        "gfni",
        "lzcnt",
        "movbe",
        "mmx",
        "pclmulqdq",
        "popcnt",
        "rdrand",
        "rdseed",
        "sha_ni",
        "vaes",
        "vpclmulqdq",
        "xsave",
        "xsavec",
        "xsaves",
    ];
    const FAMILIES: [&str; 7] = ["avx", "amx", "sse", "ssse", "asimd", "sve", "sme"];
    let counts = |flag: &&str| EXACT.contains(flag) || FAMILIES.iter().any(|family| flag.starts_with(family));
    flags.into_iter().filter(counts).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::leading(text).expect("a version")
    }

    fn host() -> Host {
        Host {
            arch: "x86_64".into(),
            engines: vec![("criu".into(), version("4.2.1"))],
            kernel: version("6.18.44-cloud-amd64"),
            cpu_features: instruction_sets(["fpu", "avx", "avx2", "avx512f", "amx_tile", "hypervisor", "fma"]),
            devices: None,
        }
    }

    fn needed() -> Requirements {
        let host = host();
        let (engine, engine_version) = host.engines[0].clone();
        let (arch, kernel, cpu_features) = (host.arch, host.kernel, host.cpu_features);
        Requirements { arch, engine, engine_version, kernel, cpu_features, devices: None }
    }

    #[test]
    fn gpus_are_the_same_by_driver_model_and_count() {
        let devices = |driver: &str, gpus: &[&str]| Devices {
            driver: driver.into(),
            gpus: gpus.iter().map(|name| (*name).to_owned()).collect(),
        };
        let two = devices("580.159.04", &["NVIDIA H200", "NVIDIA H200"]);
        let needed = Requirements { devices: Some(two.clone()), ..needed() };
        let of = |found: Option<Devices>| {
            let all = refusals(&needed, &Host { devices: found, ..host() });
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(of(Some(two)).is_empty());
        assert_eq!(of(None), ["it used GPUs, and no driver answers on this host"]);
        let one = of(Some(devices("580.159.04", &["NVIDIA H200"])));
        assert_eq!(one, ["it was captured on 2 NVIDIA H200, this host has 1 NVIDIA H200"]);
        assert_eq!(of(Some(devices("570.158", &["NVIDIA A100"]))).len(), 3);
    }

    #[test]
    fn where_it_was_captured_it_comes_back() {
        assert_eq!(refusals(&needed(), &host()), []);
        let newer = Host { kernel: version("7.1"), engines: vec![("criu".into(), version("4.3"))], ..host() };
        assert_eq!(refusals(&needed(), &newer), []);
    }

    #[test]
    fn every_reason_is_named() {
        let of = |host: Host| refusals(&needed(), &host).iter().map(ToString::to_string).collect::<Vec<_>>();
        let none = Host { engines: vec![], arch: "aarch64".into(), ..host() };
        assert_eq!(of(none).len(), 2);
        for (engine, refused) in [("4.2.1", false), ("4.2", true), ("4.3", false), ("5.0", true), ("3.17.1", true)] {
            let other = Host { engines: vec![("criu".into(), version(engine))], ..host() };
            assert_eq!(!of(other).is_empty(), refused, "{engine}");
        }
        for (kernel, refused) in [("6.18.1", false), ("6.17.99", true), ("5.15", true), ("7.0", false)] {
            assert_eq!(!of(Host { kernel: version(kernel), ..host() }).is_empty(), refused, "{kernel}");
        }
        let older = Host { cpu_features: instruction_sets(["avx", "fma"]), ..host() };
        assert_eq!(of(older), ["this host's processor lacks amx_tile, avx2, avx512f"]);
    }

    #[test]
    fn a_version_is_what_a_text_begins_with() {
        assert_eq!(version("6.18.44-fc-v657").to_string(), "6.18.44");
        assert_eq!(version("4.2.1").series(), (4, 2));
        assert!(version("4.10") > version("4.9.3"));
        for none in ["", "x", ".", "-1", "99999999999"] {
            assert!(Version::leading(none).is_none(), "{none}");
        }
    }
}
