//! Lines of PCIe error reporting: AER, DPC, hot plug, and what firmware reports first (APEI).

use super::{Fault, PciAddress, address_in, full_address};

/// `pcieport 0000:3a:00.0: …`: the driver's device, and what it says.
pub(super) fn of_driver(text: &str) -> Option<(PciAddress, &str)> {
    let (driver, rest) = text.split_once(' ')?;
    if driver.ends_with(':') {
        return None;
    }
    let (address, said) = rest.split_once(": ")?;
    // Old kernels: `pciehp 0000:00:1c.0:pcie004: …`.
    let address = address.split(":pcie").next().unwrap_or(address);
    Some((full_address(address)?, said))
}

/// What a driver's line says of its device, or of one behind it.
pub(super) fn reported(text: &str) -> Option<(Option<PciAddress>, Fault)> {
    let (device, said) = of_driver(text)?;
    let lost = ["Link Down", "Card not present"].iter().any(|words| said.contains(words));
    if (said.starts_with("pciehp:") || said.starts_with("Slot(")) && lost {
        return Some((Some(device), Fault::LinkLost));
    }
    if said.starts_with("DPC:") && said.contains("containment event") {
        return Some((Some(device), Fault::LinkLost));
    }
    if said.starts_with("not ready") && said.contains("giving up") {
        return Some((Some(device), Fault::ResetFailed));
    }
    let is_aer = said.starts_with("AER:") || said.starts_with("PCIe Bus Error");
    if !is_aer {
        return None;
    }
    if said.contains("can't recover") || said.contains("device recovery failed") {
        return Some((Some(device), Fault::PcieUncorrected { fatal: true }));
    }
    // "Corrected" and "Uncorrected" until Linux 6.8, "Correctable" and "Uncorrectable" after it.
    let fault = if said.contains("Uncorrect") {
        Fault::PcieUncorrected { fatal: said.contains("(Fatal)") }
    } else if said.contains("Correct") {
        Fault::PcieCorrected
    } else {
        return None;
    };
    // The port reports; the device that it speaks of comes last.
    Some((text.rsplit(' ').find_map(full_address).or_else(|| address_in(text)), fault))
}

/// `pci 0000:3a:00.0: PCI bridge to [bus 3b-3c]`.
pub(super) fn bridge(text: &str) -> Option<(PciAddress, (u8, u8))> {
    let (port, said) = of_driver(text)?;
    let buses = said.strip_prefix("PCI bridge to [bus ")?.split(']').next()?;
    let (first, last) = buses.split_once('-').unwrap_or((buses, buses));
    let bus = |text: &str| u8::from_str_radix(text, 16).ok();
    Some((port, (bus(first)?, bus(last)?)))
}

/// `pci 0000:3b:00.0: [10de:2330] type 00 class 0x030200 …`: an NVIDIA display or 3D controller.
pub(super) fn gpu(text: &str) -> Option<PciAddress> {
    let (device, said) = of_driver(text)?;
    let is_gpu = ["class 0x0300", "class 0x0302"].iter().any(|class| said.contains(class));
    (said.starts_with("[10de:") && is_gpu).then_some(device)
}

/// What firmware says of an error, over several lines: `{1}[Hardware Error]: event severity: fatal`, then the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Firmware {
    /// A line of its beginning: how bad it is.
    Severity(Severity),
    /// The device.
    Device(PciAddress),
    /// Something else.
    More,
}

/// How bad firmware says that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    Corrected,
    Recoverable,
    Fatal,
}

pub(super) fn firmware(text: &str) -> Option<Firmware> {
    let at = text.find("[Hardware Error]:")?;
    let number = text[..at].strip_prefix('{').and_then(|n| n.strip_suffix('}'));
    if at > 0 && number.is_none() {
        return None;
    }
    let said = text[at + 17..].trim();
    if let Some(word) = said.strip_prefix("event severity:") {
        let severity = match word.trim() {
            "corrected" | "info" => Severity::Corrected,
            "recoverable" => Severity::Recoverable,
            // A word that nobody knows is not taken for a mild one.
            _ => Severity::Fatal,
        };
        return Some(Firmware::Severity(severity));
    }
    let device = said.strip_prefix("device_id:").and_then(|address| full_address(address.trim()));
    Some(device.map_or(Firmware::More, Firmware::Device))
}
