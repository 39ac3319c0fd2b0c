//! What the kernel says, understood from line to line: one line names a GPU that the next ones are about.

use std::collections::BTreeMap;

use super::form::{self, Speaker};
use super::nvidia::{self, Switch};
use super::pcie::{self, Firmware, Severity};
use super::{Fatality, Fault, PciAddress, Places, Process, Record, TEXT_MAX, address_in};

/// Lines after one that names a GPU which may be about it.
const CONTINUED_LINES: u8 = 4;
/// GPUs and switches of which something is remembered.
const KNOWN_MAX: usize = 1024;

/// Reads lines in their order. It knows what they have told: GPUs, ports, UUIDs, the driver.
#[derive(Debug, Clone, Default)]
pub struct Listener {
    places: Places,
    uuids: BTreeMap<PciAddress, String>,
    driver_major: Option<u32>,
    /// The GPU that the last lines were about, and how many more may be.
    about: Option<(PciAddress, u8)>,
    /// The last error of each switch: its registers follow.
    switches: BTreeMap<PciAddress, u32>,
    firmware: Option<Severity>,
}

/// What a text says.
struct Heard {
    device: Option<PciAddress>,
    process: Option<Process>,
    fault: Fault,
}

impl Heard {
    fn of(device: Option<PciAddress>, fault: Fault) -> Self {
        Self { device, process: None, fault }
    }
}

/// An error that stands where nobody expects it, in a form that nobody knows: it is not taken for nothing. What an audit
/// record quotes is a user's.
fn unheard(text: &str) -> Option<Heard> {
    if text.contains("audit") || text.starts_with("nvidia-nvswitch") || text.starts_with("NVRM:") {
        return None;
    }
    let unknown = Fault::SXid { code: 0, fatality: Fatality::Unknown };
    let faults = [("NVRM: Xid", Fault::XidUnreadable), ("SXid (", unknown)];
    faults.into_iter().find_map(|(words, fault)| {
        let (_, rest) = text.split_once(words)?;
        Some(Heard::of(address_in(rest), fault))
    })
}

impl Listener {
    /// GPUs and ports that lines have named.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Major version of the driver, where a line has named it.
    #[must_use]
    pub fn driver_major(&self) -> Option<u32> {
        self.driver_major
    }

    /// Reads a line in any form. None where it says nothing of GPUs, or is not the kernel's.
    pub fn read(&mut self, line: &str) -> Option<Record> {
        let line = form::split(line).ok()?;
        self.take(&line)
    }

    /// The same of a line that was taken apart.
    pub fn take(&mut self, line: &form::Line<'_>) -> Option<Record> {
        if line.speaker != Speaker::Kernel {
            return None;
        }
        let text = line.text.trim();
        let Heard { device, process, fault } = self.hear(text).or_else(|| unheard(text))?;
        let uuid = device.and_then(|device| self.uuids.get(&device).cloned());
        let text = text.chars().take(TEXT_MAX).collect();
        Some(Record { seq: line.seq, at_us: line.since_boot_us, device, uuid, process, fault, text })
    }

    fn hear(&mut self, text: &str) -> Option<Heard> {
        let about = self.about.take().map(|(gpu, left)| (gpu, left.saturating_sub(1))).filter(|(_, left)| *left > 0);
        self.about = about;
        if let Some((device, said)) = pcie::of_driver(text).filter(|_| text.starts_with("nvidia ")) {
            self.places.add_gpu(device);
            if said.starts_with("NVRM:") {
                return self.hear(said);
            }
        }
        if let Some(said) = text.strip_prefix("NVRM:") {
            return self.driver(said.trim());
        }
        if text.starts_with("nvidia-nvswitch") {
            return self.switch(text);
        }
        if let Some(firmware) = pcie::firmware(text) {
            return self.firmware(firmware);
        }
        if let Some((port, buses)) = pcie::bridge(text) {
            self.places.add_port(port, buses);
        } else if let Some(gpu) = pcie::gpu(text) {
            self.places.add_gpu(gpu);
        }
        pcie::reported(text).map(|(device, fault)| Heard::of(device, fault))
    }

    fn driver(&mut self, said: &str) -> Option<Heard> {
        if let Some(rest) = said.strip_prefix("Xid") {
            let nvidia::Xid { device, process, fault } = nvidia::xid(rest);
            device.into_iter().for_each(|gpu| self.places.add_gpu(gpu));
            return Some(Heard { device, process, fault });
        }
        self.driver_major = nvidia::driver_major(said).or(self.driver_major);
        if let Some((gpu, uuid)) = nvidia::uuid(said) {
            self.places.add_gpu(gpu);
            if self.uuids.len() < KNOWN_MAX {
                self.uuids.insert(gpu, uuid);
            }
            return None;
        }
        if let Some(gpu) = address_in(said).filter(|_| said.starts_with("GPU ") || said.starts_with("The NVIDIA GPU "))
        {
            self.places.add_gpu(gpu);
            self.about = Some((gpu, CONTINUED_LINES));
        }
        let fault = if said.contains("RmInitAdapter failed") || said.contains("rm_init_adapter failed") {
            Fault::InitFailed
        } else if said.contains("fallen off the bus") {
            Fault::OffTheBus
        } else if said.contains("heartbeat timed out") || said.contains("Heartbeat timed out") {
            Fault::GspSilent
        } else if said.contains("postRxDetLinkMask failed") || said.contains("Failed to update Rx Detect Link mask") {
            Fault::LinksDown
        } else if said.contains("uvm encountered global fatal error") {
            return Some(Heard::of(None, Fault::UvmFatal));
        } else {
            return None;
        };
        Some(Heard::of(address_in(said).or(self.about.map(|(gpu, _)| gpu)), fault))
    }

    fn switch(&mut self, text: &str) -> Option<Heard> {
        let unknown = |code| Fault::SXid { code, fatality: Fatality::Unknown };
        let (device, fault) = match nvidia::switch(text)? {
            Switch::Unreadable(device) => (device, unknown(0)),
            Switch::Error(device, code, fatality) => {
                if let Some(device) = device.filter(|_| self.switches.len() < KNOWN_MAX) {
                    self.switches.insert(device, code);
                }
                (device, Fault::SXid { code, fatality })
            }
            // They belong to an error that was told; without it something is missing.
            Switch::Data(device, code) if device.is_some_and(|d| self.switches.get(&d) == Some(&code)) => return None,
            Switch::Data(device, code) => (device, unknown(code)),
        };
        Some(Heard::of(device, fault))
    }

    fn firmware(&mut self, said: Firmware) -> Option<Heard> {
        match said {
            Firmware::Severity(severity) => self.firmware = Some(severity),
            Firmware::More => {}
            Firmware::Device(device) => {
                let fault = match self.firmware {
                    Some(Severity::Corrected) => Fault::PcieCorrected,
                    Some(Severity::Recoverable) => Fault::PcieUncorrected { fatal: false },
                    Some(Severity::Fatal) | None => Fault::PcieUncorrected { fatal: true },
                };
                return Some(Heard::of(Some(device), fault));
            }
        }
        None
    }
}
