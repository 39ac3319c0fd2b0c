//! What the kernel log says of GPUs: the primary witness, since NVML tells of the last Xid of a burst only.
//!
//! Lines are those of the NVIDIA driver (`NVRM: Xid (PCI:…): 79, …`), of NVSwitches (`SXid`), and of PCIe error reporting.

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
    /// Xid 154: the driver says what the GPU needs (the numbers of NVML field 230).
    RecoveryAction {
        /// 0 nothing, 1 reset, 2 reboot, 3 drain peer-to-peer, 4 drain and reset; newer drivers have more.
        action: u32,
    },
    /// An NVSwitch reports an error.
    SXid {
        /// Its code.
        code: u32,
        /// Whether the switch says that it is fatal.
        fatal: bool,
    },
    /// The GPU does not answer on PCIe any more.
    OffTheBus,
    /// The driver cannot start the GPU.
    InitFailed,
    /// PCIe reports an error that was corrected.
    PcieCorrected,
    /// PCIe reports an error that was not.
    PcieUncorrected {
        /// The link is lost.
        fatal: bool,
    },
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
    /// What is reported.
    pub fault: Fault,
    /// The line.
    pub text: String,
}

/// Longest text that is kept.
const TEXT_MAX: usize = 500;

/// Reads a line of `/dev/kmsg` (`6,1234,5678,-;text`), of `dmesg` (`[ 12.345] text`), or the text alone. None where it
/// says nothing of GPUs.
#[must_use]
pub fn read(line: &str) -> Option<Record> {
    let (seq, at_us, text) = split(line);
    let (device, fault) = nvrm(text).or_else(|| switch(text)).or_else(|| pcie(text))?;
    Some(Record { seq, at_us, device, fault, text: text.trim().chars().take(TEXT_MAX).collect() })
}

/// The number of a line of `/dev/kmsg`, whatever it says: a gap in them means that lines were lost.
#[must_use]
pub fn sequence(line: &str) -> Option<u64> {
    split(line).0
}

fn split(line: &str) -> (Option<u64>, Option<u64>, &str) {
    if let Some((head, text)) = line.split_once(';') {
        let mut cells = head.split(',');
        let level = cells.next().and_then(|c| c.parse::<u32>().ok());
        let (seq, at_us) = (cells.next().and_then(|c| c.parse().ok()), cells.next().and_then(|c| c.parse().ok()));
        if level.is_some() && seq.is_some() {
            return (seq, at_us, text);
        }
    }
    if let Some((stamp, text)) = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'))
        && let Ok(seconds) = stamp.trim().parse::<f64>()
    {
        return (None, Some((seconds * 1e6) as u64), text);
    }
    (None, None, line)
}

fn nvrm(text: &str) -> Option<(Option<PciAddress>, Fault)> {
    let at = text.find("NVRM:")?;
    let said = text[at + 5..].trim();
    if let Some(rest) = said.strip_prefix("Xid (PCI:") {
        let (address, rest) = rest.split_once(')')?;
        let rest = rest.trim_start_matches([':', ' ']);
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let code: u32 = digits.parse().ok()?;
        let fault = match (code, recovery_action(rest)) {
            (154, Some(action)) => Fault::RecoveryAction { action },
            (79, _) => Fault::OffTheBus,
            _ => Fault::Xid { code, registers: registers(rest) },
        };
        // With MIG the instance follows: `0000:01:00 GPU-I:05`.
        return Some((address.split(' ').next()?.parse().ok(), fault));
    }
    if said.contains("RmInitAdapter failed") {
        return Some((address_in(said), Fault::InitFailed));
    }
    // A line of its own beside Xid 79.
    said.contains("fallen off the bus").then(|| (address_in(said), Fault::OffTheBus))
}

/// `GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)`.
fn recovery_action(text: &str) -> Option<u32> {
    let new = text.split(" to ").nth(1)?.trim();
    let number = new.strip_prefix("0x")?.chars().take_while(char::is_ascii_hexdigit).collect::<String>();
    u32::from_str_radix(&number, 16).ok()
}

/// The numbers in the last brackets: `(0x004505c6 0x00000000 …)`.
fn registers(text: &str) -> Vec<u32> {
    let inside = text.rsplit_once('(').map_or("", |(_, rest)| rest.split(')').next().unwrap_or(""));
    let number = |word: &str| u32::from_str_radix(word.trim().strip_prefix("0x")?, 16).ok();
    let read: Vec<u32> = inside.split_whitespace().map_while(number).take(16).collect();
    // One number in brackets is something else: a channel, a unit.
    if read.len() >= 2 { read } else { Vec::new() }
}

fn switch(text: &str) -> Option<(Option<PciAddress>, Fault)> {
    let rest = &text[text.find("SXid (PCI:")? + 10..];
    let (address, rest) = rest.split_once(')')?;
    let rest = rest.trim_start_matches([':', ' ']);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let code = digits.parse().ok()?;
    let said = rest.to_ascii_lowercase();
    // "Non-fatal" has the word in it.
    let fatal = said.contains("fatal") && !said.contains("non-fatal");
    Some((address.parse().ok(), Fault::SXid { code, fatal: fatal || is_always_fatal(code) }))
}

/// Codes that are fatal whatever the line says (NVIDIA Fabric Manager user guide, SXid errors).
fn is_always_fatal(code: u32) -> bool {
    let row = |line: &str| line.split(',').next().and_then(|c| c.parse().ok()) == Some(code);
    include_str!("../data/sxid.csv").lines().any(|line| line.ends_with(",always_fatal") && row(line))
}

fn pcie(text: &str) -> Option<(Option<PciAddress>, Fault)> {
    if !text.contains("AER:") && !text.contains("PCIe Bus Error") {
        return None;
    }
    // "Corrected" and "Uncorrected" until Linux 6.8, "Correctable" and "Uncorrectable" after it.
    let fault = if text.contains("Uncorrect") {
        Fault::PcieUncorrected { fatal: text.contains("(Fatal)") }
    } else if text.contains("Correct") {
        Fault::PcieCorrected
    } else {
        return None;
    };
    // The port reports; the device that it speaks of comes last.
    Some((text.rsplit(' ').find_map(full_address).or_else(|| address_in(text)), fault))
}

/// The first full address in a text.
fn address_in(text: &str) -> Option<PciAddress> {
    text.split([' ', ',', '(', ')']).find_map(|word| full_address(word.trim_start_matches("PCI:")))
}

fn full_address(word: &str) -> Option<PciAddress> {
    let word = word.trim_end_matches([':', ',', '.']);
    (word.matches(':').count() == 2).then(|| word.parse().ok()).flatten()
}
