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
}

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
        }
    }

    fn needed() -> Requirements {
        let host = host();
        let (engine, engine_version) = host.engines[0].clone();
        let (arch, kernel, cpu_features) = (host.arch, host.kernel, host.cpu_features);
        Requirements { arch, engine, engine_version, kernel, cpu_features }
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
