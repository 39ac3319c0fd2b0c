//! What was seen of a host.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::reading::Reading;
use crate::kernel_log::{PciAddress, Record};

/// Why something could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unseen {
    /// The library of the driver is not there, or not of a version that works.
    NoDriver(String),
    /// The library lacks a function.
    MissingSymbol(String),
    /// This model, or this driver, does not offer it.
    NotSupported,
    /// The GPU does not answer any more.
    GpuLost,
    /// We may not.
    NoPermission(String),
    /// No answer within the deadline: the process that asked is stuck.
    Stuck {
        /// Milliseconds that it had.
        deadline_ms: u64,
    },
    /// The process that asked ended.
    Crashed(String),
    /// An error.
    Error(String),
    /// Something before it failed, or time was up.
    NotReached(String),
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver(why) => write!(f, "no driver: {why}"),
            Self::MissingSymbol(name) => write!(f, "the driver's library has no {name}"),
            Self::NotSupported => f.write_str("not offered by this GPU or driver"),
            Self::GpuLost => f.write_str("the GPU does not answer any more"),
            Self::NoPermission(what) => write!(f, "no permission: {what}"),
            Self::Stuck { deadline_ms } => write!(f, "stuck: no answer within {deadline_ms} ms"),
            Self::Crashed(how) => write!(f, "the probe ended: {how}"),
            Self::Error(what) => f.write_str(what),
            Self::NotReached(why) => write!(f, "not reached: {why}"),
        }
    }
}

/// What was seen, or why it was not.
pub type Look<T> = Result<T, Unseen>;

/// Numbers of one GPU at one time.
pub type Readings = BTreeMap<Reading, Look<i64>>;

/// How much of the gate was run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Every check.
    #[default]
    Whole,
    /// What takes seconds: after diagnostics, on a host that passed all of it in this boot.
    Short,
}

/// What the host was bought as. What is not said is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// GPUs. None: the host is asked alone, and a GPU that is missing everywhere is not noticed.
    pub gpus: Option<u32>,
    /// PCI device id of the model, `2335`.
    pub pci_device: Option<String>,
    /// Driver version that the image comes with.
    pub driver: Option<String>,
}

/// Who a GPU is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// The driver's id.
    pub uuid: String,
    /// Serial number of the board, where it tells.
    pub serial: Option<String>,
    /// Version of its firmware.
    pub vbios: Option<String>,
    /// Version of its InfoROM.
    pub inforom: Option<String>,
    /// PCI device id, `2335`.
    pub pci_device: String,
    /// PCI subsystem id.
    pub pci_subsystem: String,
    /// NVLink domain over several hosts: cluster and clique of its fabric; none where its NVLinks end in the host.
    #[serde(default)]
    pub nvlink_domain: Option<String>,
}

/// The driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// `580.159.04`.
    pub version: String,
    /// Newest CUDA that it runs, `13.0`.
    pub cuda: String,
}

impl Driver {
    /// `580` of `580.159.04`.
    #[must_use]
    pub fn major(&self) -> Option<u32> {
        self.version.split('.').next()?.parse().ok()
    }
}

/// The first steps on a GPU, seconds each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// `cuInit`.
    pub init_s: f64,
    /// Making the context.
    pub create_s: f64,
    /// Loading the kernels.
    pub load_s: f64,
    /// Running one that answers.
    pub answer_s: f64,
    /// Tries that it took.
    pub tries: u32,
}

/// Patterns written to memory and read back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryPatterns {
    /// Bytes that were tested.
    pub tested_bytes: u64,
    /// Patterns.
    pub patterns: u32,
    /// Words of 32 bits that did not hold what was written.
    pub bad_words: u64,
    /// Address of the first within what was tested, bytes.
    pub first_bad_byte: Option<u64>,
    /// Bits that were wrong anywhere.
    pub bad_bits: u32,
    /// Rate of writing, GB/s; the best of the patterns.
    pub write_gbps: f64,
    /// Rate of reading back, GB/s; the best of the patterns.
    pub verify_gbps: f64,
    /// All of it, allocation too, seconds.
    pub seconds: f64,
}

/// Bandwidth of the GPU's memory, GB/s (1e9 bytes), the best of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Reading.
    pub read_gbps: f64,
    /// Copying, bytes read and written, by a kernel.
    pub copy_gbps: f64,
    /// Copying, bytes read and written, by the driver.
    pub driver_copy_gbps: f64,
}

/// Copies between pinned host memory and a GPU, GB/s, the median of several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CopyRates {
    /// Host to device.
    pub h2d_gbps: f64,
    /// Device to host.
    pub d2h_gbps: f64,
    /// Words of 32 bits that came back other than they went.
    pub bad_words: u64,
}

/// Copies with the link as it was while they ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Copies {
    /// Rates.
    pub rates: CopyRates,
    /// Readings of the link under load.
    pub link: Readings,
}

/// Products that were made again and again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Products {
    /// Times.
    pub repeats: u32,
    /// Digest of the first product, hexadecimal.
    pub digest: String,
    /// Repeats whose digest was another, the first sixteen.
    pub odd: Vec<u32>,
    /// How many there were.
    pub odd_count: u32,
    /// Rate over all of them, TFLOP/s.
    pub tensor_tflops: f64,
    /// Rate of single-precision multiply-adds, GFLOP/s.
    pub fp32_gflops: f64,
    /// Digest of those, hexadecimal.
    pub fp32_digest: String,
    /// Repeats of those whose digest was another.
    pub fp32_odd_count: u32,
    /// Times of those.
    pub fp32_repeats: u32,
    /// Seconds.
    pub seconds: f64,
}

/// A copy from one GPU to another.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// From, as [`Gpu::index`].
    pub from: u32,
    /// To.
    pub to: u32,
    /// Without the host in between.
    pub direct: bool,
    /// GB/s, the best of several.
    pub gbps: f64,
    /// Words of 32 bits that arrived other than they were sent.
    pub bad_words: u64,
}

/// What was seen of one GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// NVML's number of it.
    pub index: u32,
    /// Where it is.
    pub address: PciAddress,
    /// Who it is.
    pub identity: Look<Identity>,
    /// Numbers before anything ran.
    pub before: Readings,
    /// Numbers while products were made.
    pub loaded: Readings,
    /// Numbers after all.
    pub after: Readings,
    /// First steps.
    pub context: Look<Context>,
    /// Patterns.
    pub memory: Look<MemoryPatterns>,
    /// Bandwidth of its memory.
    pub bandwidth: Look<Bandwidth>,
    /// Host copies, no other GPU copying.
    pub copies_alone: Look<Copies>,
    /// Host copies, all GPUs copying.
    pub copies_together: Look<Copies>,
    /// Products.
    pub products: Look<Products>,
}

/// What was seen of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// How much of the gate was run.
    #[serde(default)]
    pub scope: Scope,
    /// What it was bought as.
    pub expected: Expected,
    /// Device files that are missing.
    pub missing_files: Look<Vec<String>>,
    /// NVIDIA's GPUs on the PCI bus, with their device ids.
    pub on_bus: Look<Vec<(PciAddress, String)>>,
    /// The driver.
    pub driver: Look<Driver>,
    /// The kernel log since the boot, or since the last reset: the agent leaves out what a reset has mended.
    pub log_before: Look<Vec<Record>>,
    /// What it said while the gate ran.
    pub log_during: Look<Vec<Record>>,
    /// GPUs, as NVML counts them.
    pub gpus: Vec<Gpu>,
    /// Copies in a ring; empty where there is one GPU.
    pub peers: Look<Vec<Peer>>,
    /// Time that the gate took, seconds.
    pub seconds: f64,
}

impl Evidence {
    /// Serial numbers of the GPUs, where each tells its own.
    #[must_use]
    pub fn serials(&self) -> Vec<String> {
        let told: Option<Vec<String>> =
            self.gpus.iter().map(|g| g.identity.as_ref().ok()?.serial.clone().filter(|s| !s.is_empty())).collect();
        told.unwrap_or_default()
    }

    /// The NVLink domain over several hosts that the GPUs are in, if they are.
    #[must_use]
    pub fn nvlink_domain(&self) -> Option<String> {
        self.gpus.iter().find_map(|g| g.identity.as_ref().ok()?.nvlink_domain.clone())
    }
}
