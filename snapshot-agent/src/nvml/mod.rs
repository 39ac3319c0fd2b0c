//! What NVIDIA's management library tells. One trait, so that everything above it runs without a GPU too.

mod real;

use health::gate::{Driver, Identity, Look, Reading, Readings};
use health::kernel_log::PciAddress;

pub use real::Library;

/// NVIDIA's management library. Any call may block for ever on a sick GPU, so calls are made in a process of their own
/// (see [`crate::worker`]).
pub trait Nvml {
    /// The driver.
    ///
    /// # Errors
    /// It cannot be asked.
    fn driver(&self) -> Look<Driver>;

    /// The GPUs that answer, with the library's numbers for them.
    ///
    /// # Errors
    /// They cannot be counted.
    fn gpus(&self) -> Look<Vec<(u32, PciAddress)>>;

    /// Who a GPU is.
    ///
    /// # Errors
    /// It does not answer.
    fn identity(&self, index: u32) -> Look<Identity>;

    /// Errors that the driver announced since the last call: `(GPU, Xid)`. The kernel log is the first witness; of a burst
    /// this tells the last one only.
    ///
    /// # Errors
    /// Events cannot be had.
    fn xids(&self) -> Look<Vec<(PciAddress, u32)>>;

    /// One number of a GPU.
    ///
    /// # Errors
    /// It does not answer, or does not offer it.
    fn read(&self, index: u32, reading: Reading) -> Look<i64>;
}

/// Numbers that are watched while workloads run; the rest change with a reset alone, or say nothing of health.
pub const WATCHED: [Reading; 10] = [
    Reading::Temperature,
    Reading::ThrottleReasons,
    Reading::RecoveryAction,
    Reading::RemapPending,
    Reading::RemapFailed,
    Reading::RetirementPending,
    Reading::SramThreshold,
    Reading::VolatileUncorrected,
    Reading::PcieReplays,
    Reading::MarginTemperature,
];

/// All numbers of a GPU.
pub fn read_all(nvml: &dyn Nvml, index: u32) -> Readings {
    Reading::ALL.iter().map(|r| (*r, nvml.read(index, *r))).collect()
}
