//! What the kernel log says of GPUs: the primary witness, since NVML tells of the last Xid of a burst only.
//!
//! Lines are those of the NVIDIA driver (`NVRM: Xid (PCI:…): 79, …`), of NVSwitches (`SXid`), and of PCIe error reporting.
//! [`form`] takes a line apart in whatever form a log comes, [`listener`] understands what the kernel says from line to line,
//! and [`log`] reads a whole log with its boots and times.

pub mod form;
pub mod listener;
pub mod log;
mod nvidia;
mod pcie;
pub mod places;

pub use listener::Listener;
pub use places::Places;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A PCI device, `0000:3b:00`; the function does not matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}", self.domain, self.bus, self.device)
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for PciAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for PciAddress {
    type Err = String;

    /// Reads `0000:3b:00.0`, `0000:3b:00`, `00000000:3B:00.0` and `3b:00`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no PCI address");
        let hex = |part: &str| u32::from_str_radix(part, 16).map_err(|_| wrong());
        let parts: Vec<&str> = text.split('.').next().unwrap_or_default().split(':').collect();
        let (domain, bus, device) = match parts[..] {
            [domain, bus, device] => (hex(domain)?, hex(bus)?, hex(device)?),
            [bus, device] => (0, hex(bus)?, hex(device)?),
            _ => return Err(wrong()),
        };
        let small = |n: u32| u8::try_from(n).map_err(|_| wrong());
        Ok(Self { domain, bus: small(bus)?, device: small(device)? })
    }
}

/// Whether an NVSwitch says that an error is fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fatality {
    /// It is.
    Fatal,
    /// It is not.
    NonFatal,
    /// It does not say: a line that was cut, or a code of a later driver.
    Unknown,
}

/// What a line reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The driver reports an error.
    Xid {
        /// Its code.
        code: u32,
        /// Registers that follow an NVLink error, the first is `intrinfo`, the second the error status.
        registers: Vec<u32>,
    },
    /// The driver reports an error in a way that nobody knows.
    XidUnreadable,
    /// Xid 154: the driver says what the GPU needs (the numbers of NVML field 230).
    RecoveryAction {
        /// 0 nothing, 1 reset, 2 reboot, 3 drain peer-to-peer, 4 drain and reset; newer drivers have more.
        action: u32,
    },
    /// A row is to be remapped at the next reset: Xid 64 says so too, of one that is remapped already.
    RemapPending,
    /// An NVSwitch reports an error.
    SXid {
        /// Its code.
        code: u32,
        /// What the switch says of it.
        fatality: Fatality,
    },
    /// The GPU does not answer on PCIe any more.
    OffTheBus,
    /// The driver cannot start the GPU.
    InitFailed,
    /// A device does not come back from a reset.
    ResetFailed,
    /// The GPU's system processor gives no sign of life.
    GspSilent,
    /// Links of NVLink did not come up again.
    LinksDown,
    /// The driver of unified memory has given up, for all GPUs.
    UvmFatal,
    /// PCIe reports an error that was corrected.
    PcieCorrected,
    /// PCIe reports an error that was not.
    PcieUncorrected {
        /// The link is lost.
        fatal: bool,
    },
    /// A port has cut off what is behind it (DPC), or found it gone (hot plug).
    LinkLost,
}

/// A process that a line names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name: the user's text, for people only.
    pub name: String,
}

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the line in `/dev/kmsg`, where it has one.
    pub seq: Option<u64>,
    /// Microseconds since the boot, where the line says.
    pub at_us: Option<u64>,
    /// Device; none where it does not say.
    pub device: Option<PciAddress>,
    /// UUID of the GPU, where the log has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Process, where the line has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// What is reported.
    pub fault: Fault,
    /// The line.
    pub text: String,
}

/// Longest line that is looked at, bytes.
pub const LINE_MAX: usize = 64 << 10;
/// Longest text that is kept.
const TEXT_MAX: usize = 500;

/// Reads one line by itself, in any form that [`form`] knows. None where it says nothing of GPUs, or is not the kernel's.
#[must_use]
pub fn read(line: &str) -> Option<Record> {
    Listener::default().read(line)
}

/// The number of a line of `/dev/kmsg`, whatever it says: a gap in them means that lines were lost.
#[must_use]
pub fn sequence(line: &str) -> Option<u64> {
    form::split(line).ok()?.seq
}

/// The first full address in a text.
fn address_in(text: &str) -> Option<PciAddress> {
    text.split([' ', ',', '(', ')']).find_map(|word| full_address(word.trim_start_matches("PCI:")))
}

fn full_address(word: &str) -> Option<PciAddress> {
    let word = word.trim_end_matches([':', ',', '.']);
    (word.matches(':').count() == 2).then(|| word.parse().ok()).flatten()
}
