//! What NVML tells of a GPU as a number.

use serde::{Deserialize, Serialize};

macro_rules! readings {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// One number that NVML tells of a GPU.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reading {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
        }

        impl Reading {
            /// Every reading.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name used in output, its unit last.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

readings! {
    /// Of the GPU, degrees Celsius.
    Temperature = "temperature_c",
    /// Degrees that are left before the GPU slows down (T.Limit).
    MarginTemperature = "margin_temperature_c",
    /// Now, milliwatts.
    Power = "power_mw",
    /// The limit that holds, milliwatts.
    PowerLimit = "power_limit_mw",
    /// The limit that the model comes with, milliwatts.
    DefaultPowerLimit = "default_power_limit_mw",
    /// Of the multiprocessors, megahertz.
    SmClock = "sm_clock_mhz",
    /// The highest, megahertz.
    MaxSmClock = "max_sm_clock_mhz",
    /// Why clocks are held down, bits (`nvmlClocksEventReason…`).
    ThrottleReasons = "throttle_reasons",
    /// Generation of the link now.
    PcieGen = "pcie_gen",
    /// Lanes of the link now.
    PcieWidth = "pcie_width",
    /// The highest that GPU and slot can do.
    MaxPcieGen = "max_pcie_gen",
    /// The most that GPU and slot can do.
    MaxPcieWidth = "max_pcie_width",
    /// Packets that were sent again, since the start of the driver.
    PcieReplays = "pcie_replays",
    /// 1: ECC is on.
    Ecc = "ecc",
    /// 1: ECC will be on after a reset.
    EccPending = "ecc_pending",
    /// Since the start of the driver.
    VolatileUncorrected = "volatile_uncorrected",
    /// Since the start of the driver.
    VolatileCorrected = "volatile_corrected",
    /// Rows remapped for corrected errors, in the GPU's life.
    RemappedCorrectable = "remapped_correctable",
    /// Rows remapped for uncorrected errors, in the GPU's life.
    RemappedUncorrectable = "remapped_uncorrectable",
    /// 1: a remap waits for a reset.
    RemapPending = "remap_pending",
    /// 1: a row could not be remapped.
    RemapFailed = "remap_failed",
    /// 1: pages wait to be retired (before Ampere).
    RetirementPending = "retirement_pending",
    /// 1: more errors in SRAM than NVIDIA allows.
    SramThreshold = "sram_threshold",
    /// The driver's verdict (NVML field 230): 0 nothing, 1 reset, 2 reboot, …
    RecoveryAction = "recovery_action",
    /// State of the fabric: 1 not started, 2 in progress, 3 completed.
    FabricState = "fabric_state",
    /// What the fabric is not healthy by, bits.
    FabricUnhealthy = "fabric_unhealthy",
    /// NVLinks that are up.
    NvlinksActive = "nvlinks_active",
    /// 1: MIG is on.
    Mig = "mig",
    /// 1: confidential computing is on.
    ConfidentialComputing = "confidential_computing",
    /// Whole memory, MiB.
    MemoryTotal = "memory_total_mib",
    /// Not in use, MiB.
    MemoryFree = "memory_free_mib",
    /// Processes that compute on it.
    Processes = "processes",
}
