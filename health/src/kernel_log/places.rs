//! Which devices are GPUs, and which of them are behind a port.

use std::collections::{BTreeMap, BTreeSet};

use super::PciAddress;

/// Devices and ports that are remembered.
const KNOWN_MAX: usize = 4096;

/// The GPUs of a host, and its ports as far as they were told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    gpus: BTreeSet<PciAddress>,
    /// The first and last bus behind each port.
    ports: BTreeMap<PciAddress, (u8, u8)>,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A GPU, or a port with one GPU behind it.
    Gpu(PciAddress),
    /// A port with several GPUs behind it.
    Several,
    /// Something else, such as a disk, or a port with none behind it.
    Other,
    /// Nobody said.
    Unknown,
}

impl Places {
    /// With these GPUs.
    #[must_use]
    pub fn of(gpus: impl IntoIterator<Item = PciAddress>) -> Self {
        Self { gpus: gpus.into_iter().collect(), ports: BTreeMap::new() }
    }

    /// The GPUs.
    pub fn gpus(&self) -> impl Iterator<Item = PciAddress> {
        self.gpus.iter().copied()
    }

    /// A device is a GPU.
    pub fn add_gpu(&mut self, gpu: PciAddress) {
        if self.gpus.len() < KNOWN_MAX {
            self.gpus.insert(gpu);
        }
    }

    /// A port leads to these buses.
    pub fn add_port(&mut self, port: PciAddress, buses: (u8, u8)) {
        if self.ports.len() < KNOWN_MAX {
            self.ports.insert(port, buses);
        }
    }

    /// All of both.
    pub fn extend(&mut self, other: &Self) {
        other.gpus.iter().for_each(|gpu| self.add_gpu(*gpu));
        other.ports.iter().for_each(|(port, buses)| self.add_port(*port, *buses));
    }

    /// What a device is.
    #[must_use]
    pub fn place(&self, device: PciAddress) -> Place {
        if self.gpus.contains(&device) {
            return Place::Gpu(device);
        }
        let Some((first, last)) = self.ports.get(&device) else { return Place::Unknown };
        let is_behind = |gpu: &&PciAddress| gpu.domain == device.domain && (*first..=*last).contains(&gpu.bus);
        let mut behind = self.gpus.iter().filter(is_behind);
        match (behind.next(), behind.next()) {
            (None, _) => Place::Other,
            (Some(gpu), None) => Place::Gpu(*gpu),
            (Some(_), Some(_)) => Place::Several,
        }
    }
}
