//! The library of the driver. What nvml-wrapper does not wrap goes through its raw layer.

use std::cell::RefCell;

use health::gate::{Driver, Identity, Look, Reading, Unseen};
use health::kernel_log::PciAddress;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::{NvmlError, nvml_try};
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
use nvml_wrapper::{Device, EventSet, Nvml as Wrapped};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEccSramErrorStatus_t, nvmlGpuFabricInfo_v2_t, nvmlGpuFabricInfo_v3_t, nvmlGpuFabricInfoV_t,
    nvmlMarginTemperature_t, nvmlReturn_t,
};

use super::Nvml;

/// Events of one call.
const EVENTS_MAX: usize = 256;
/// Links that a GPU may have at most (`NVML_NVLINK_MAX_LINKS`).
const LINKS_MAX: u32 = 18;

/// The library, loaded once for the life of the process.
#[derive(Debug)]
pub struct Library(&'static Wrapped, RefCell<Option<EventSet<'static>>>);

/// `nvidia-smi` calls what it cannot read so; NVML gives empty text.
fn told(text: Result<String, NvmlError>) -> Option<String> {
    text.ok().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

fn unseen(error: NvmlError) -> Unseen {
    match error {
        NvmlError::NotSupported => Unseen::NotSupported,
        NvmlError::FailedToLoadSymbol(name) => Unseen::MissingSymbol(name),
        NvmlError::FunctionNotFound => Unseen::MissingSymbol("this function".into()),
        NvmlError::GpuLost => Unseen::GpuLost,
        NvmlError::NoPermission => Unseen::NoPermission("NVML refuses this user".into()),
        NvmlError::DriverNotLoaded => Unseen::NoDriver("its module is not loaded".into()),
        NvmlError::LibraryNotFound | NvmlError::LibloadingError(_) => {
            Unseen::NoDriver("libnvidia-ml.so.1 is not there: install NVIDIA's driver".into())
        }
        NvmlError::LibRmVersionMismatch => {
            Unseen::NoDriver("its library and its module are of different versions: reboot after the upgrade".into())
        }
        other => Unseen::Error(other.to_string()),
    }
}

impl Library {
    /// Loads it.
    ///
    /// # Errors
    /// There is no driver, or it does not start.
    pub fn load() -> Look<Self> {
        let library = Wrapped::init().map_err(unseen)?;
        // A process loads it once, and needs it to its end.
        Ok(Self(Box::leak(Box::new(library)), RefCell::new(None)))
    }

    fn device(&self, index: u32) -> Look<Device<'_>> {
        self.0.device_by_index(index).map_err(unseen)
    }

    fn raw<T: Copy>(
        &self,
        device: &Device<'_>,
        call: Result<unsafe extern "C" fn(nvmlDevice_t, *mut T) -> nvmlReturn_t, String>,
        mut value: T,
    ) -> Result<T, NvmlError> {
        let call = call.map_err(NvmlError::FailedToLoadSymbol)?;
        #[allow(unsafe_code)]
        // SAFETY: the handle belongs to the library that the function was loaded from, both live as long as `self`, and
        // `value` is of the type that the function writes.
        let code = unsafe { call(device.handle(), &mut value) };
        nvml_try(code).map(|()| value)
    }
}

/// The library's way to say which version of a structure is meant: its size, and a number in the top byte.
const fn version_of<T>(number: u32) -> u32 {
    size_of::<T>() as u32 | number << 24
}

#[allow(unsafe_code)]
fn zeroed<T: Copy>() -> T {
    // SAFETY: used for structures of the C API alone, which consist of numbers.
    unsafe { std::mem::zeroed() }
}

fn symbol<T: Copy, E>(found: &Result<T, E>, name: &str) -> Result<T, String> {
    found.as_ref().map(|f| *f).map_err(|_| name.to_owned())
}

impl Nvml for Library {
    fn driver(&self) -> Look<Driver> {
        let version = self.0.sys_driver_version().map_err(unseen)?;
        let cuda = self.0.sys_cuda_driver_version().map_err(unseen)?;
        Ok(Driver { version, cuda: format!("{}.{}", cuda / 1000, cuda % 1000 / 10) })
    }

    fn gpus(&self) -> Look<Vec<(u32, PciAddress)>> {
        let count = self.0.device_count().map_err(unseen)?;
        let answers = |i| {
            let pci = self.0.device_by_index(i).and_then(|d| d.pci_info()).ok()?;
            Some((i, pci.bus_id.parse().ok()?))
        };
        Ok((0..count).filter_map(answers).collect())
    }

    fn identity(&self, index: u32) -> Look<Identity> {
        let device = self.device(index)?;
        let pci = device.pci_info().map_err(unseen)?;
        Ok(Identity {
            name: device.name().map_err(unseen)?,
            uuid: device.uuid().map_err(unseen)?,
            serial: told(device.serial()),
            vbios: told(device.vbios_version()),
            inforom: told(device.info_rom_image_version()),
            pci_device: format!("{:04x}", pci.pci_device_id >> 16),
            pci_subsystem: pci.pci_sub_system_id.map(|s| format!("{s:08x}")).unwrap_or_default(),
            // Drivers and cards that know no fabric are in none.
            nvlink_domain: self.fabric(&device).ok().and_then(|f| nvlink_domain(f.clusterUuid, f.cliqueId)),
        })
    }

    fn xids(&self) -> Look<Vec<(PciAddress, u32)>> {
        let mut set = self.1.borrow_mut();
        if set.is_none() {
            let mut made = self.0.create_event_set().map_err(unseen)?;
            for index in 0..self.0.device_count().map_err(unseen)? {
                let device = self.0.device_by_index(index).map_err(unseen)?;
                made = device.register_events(EventTypes::CRITICAL_XID_ERROR, made).map_err(|e| unseen(e.error))?;
            }
            *set = Some(made);
        }
        let Some(events) = set.as_ref() else { return Ok(Vec::new()) };
        let mut xids = Vec::new();
        while xids.len() < EVENTS_MAX {
            match events.wait(0) {
                Ok(event) => {
                    let address = event.device.pci_info().ok().and_then(|p| p.bus_id.parse().ok());
                    if let (Some(address), Some(XidError::Value(code))) = (address, event.event_data) {
                        xids.push((address, u32::try_from(code).unwrap_or(u32::MAX)));
                    }
                }
                Err(NvmlError::Timeout) => break,
                Err(other) => return Err(unseen(other)),
            }
        }
        Ok(xids)
    }

    fn read(&self, index: u32, reading: Reading) -> Look<i64> {
        let device = self.device(index)?;
        let number = self.number(&device, reading).map_err(unseen)?;
        Ok(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl Library {
    fn number(&self, device: &Device<'_>, reading: Reading) -> Result<i128, NvmlError> {
        use Reading as R;
        Ok(match reading {
            R::Temperature => device.temperature(TemperatureSensor::Gpu)?.into(),
            R::MarginTemperature => {
                let ask =
                    nvmlMarginTemperature_t { version: version_of::<nvmlMarginTemperature_t>(1), marginTemperature: 0 };
                let call = symbol(&self.0.lib().nvmlDeviceGetMarginTemperature, "nvmlDeviceGetMarginTemperature");
                self.raw(device, call, ask)?.marginTemperature.into()
            }
            R::Power => device.power_usage()?.into(),
            R::PowerLimit => device.enforced_power_limit()?.into(),
            R::DefaultPowerLimit => device.power_management_limit_default()?.into(),
            R::SmClock => device.clock_info(Clock::SM)?.into(),
            R::MaxSmClock => device.max_clock_info(Clock::SM)?.into(),
            R::ThrottleReasons => {
                let lib = self.0.lib();
                // Its name until CUDA 12.2 was the second one.
                let call =
                    symbol(&lib.nvmlDeviceGetCurrentClocksEventReasons, "nvmlDeviceGetCurrentClocksEventReasons")
                        .or_else(|name| symbol(&lib.nvmlDeviceGetCurrentClocksThrottleReasons, &name));
                self.raw(device, call, 0)?.into()
            }
            R::PcieGen => device.current_pcie_link_gen()?.into(),
            R::PcieWidth => device.current_pcie_link_width()?.into(),
            R::MaxPcieGen => device.max_pcie_link_gen()?.into(),
            R::MaxPcieWidth => device.max_pcie_link_width()?.into(),
            R::PcieReplays => device.pcie_replay_counter()?.into(),
            R::Ecc => device.is_ecc_enabled()?.currently_enabled.into(),
            R::EccPending => device.is_ecc_enabled()?.pending_enabled.into(),
            R::VolatileUncorrected => device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile)?.into(),
            R::VolatileCorrected => device.total_ecc_errors(MemoryError::Corrected, EccCounter::Volatile)?.into(),
            R::RemappedCorrectable => self.remapped(device)?[0].into(),
            R::RemappedUncorrectable => self.remapped(device)?[1].into(),
            R::RemapPending => self.remapped(device)?[2].into(),
            R::RemapFailed => self.remapped(device)?[3].into(),
            R::RetirementPending => device.are_pages_pending_retired()?.into(),
            R::SramThreshold => {
                let ask = nvmlEccSramErrorStatus_t { version: version_of::<nvmlEccSramErrorStatus_t>(1), ..zeroed() };
                let call = symbol(&self.0.lib().nvmlDeviceGetSramEccErrorStatus, "nvmlDeviceGetSramEccErrorStatus");
                self.raw(device, call, ask)?.bThresholdExceeded.into()
            }
            R::RecoveryAction => field(device, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION)?,
            R::FabricState => self.fabric(device)?.state.into(),
            R::FabricUnhealthy => unhealthy(self.fabric(device)?.healthMask).into(),
            R::NvlinksActive => active_links(device)?.into(),
            R::Mig => device.mig_mode().map(|m| m.current.into()).or_else(not_offered_is_off)?,
            R::ConfidentialComputing => self.0.device_count().and_then(|_| confidential(device))?,
            R::MemoryTotal => i128::from(device.memory_info()?.total >> 20),
            R::MemoryFree => i128::from(device.memory_info()?.free >> 20),
            R::Processes => device.running_compute_processes()?.len() as i128,
        })
    }

    /// Rows remapped for corrected and uncorrected errors, whether one waits, whether one failed.
    fn remapped(&self, device: &Device<'_>) -> Result<[u32; 4], NvmlError> {
        let call = symbol(&self.0.lib().nvmlDeviceGetRemappedRows, "nvmlDeviceGetRemappedRows");
        let call = call.map_err(NvmlError::FailedToLoadSymbol)?;
        let [mut corrected, mut uncorrected, mut waits, mut failed] = [0; 4];
        #[allow(unsafe_code)]
        // SAFETY: as in `raw`; the function writes four numbers.
        let code = unsafe { call(device.handle(), &mut corrected, &mut uncorrected, &mut waits, &mut failed) };
        nvml_try(code).map(|()| [corrected, uncorrected, waits, failed])
    }

    fn fabric(&self, device: &Device<'_>) -> Result<nvmlGpuFabricInfo_v3_t, NvmlError> {
        let call = symbol(&self.0.lib().nvmlDeviceGetGpuFabricInfoV, "nvmlDeviceGetGpuFabricInfoV");
        // The second version is the first part of the third, and older drivers know it too.
        let ask: nvmlGpuFabricInfoV_t =
            nvmlGpuFabricInfo_v3_t { version: version_of::<nvmlGpuFabricInfo_v2_t>(2), ..zeroed() };
        self.raw(device, call, ask)
    }
}

/// Cluster and clique; none where the cluster is all zeros: the fabric ends in the host.
fn nvlink_domain(cluster: [u8; 16], clique: u32) -> Option<String> {
    let hex: String = cluster.iter().map(|b| format!("{b:02x}")).collect();
    cluster.iter().any(|b| *b != 0).then(|| format!("nvlink:{hex}/{clique}"))
}

/// The bits of a fabric's health mask in which it says that something is wrong (nvml.h, `NVML_GPU_FABRIC_HEALTH_MASK_…`):
/// pairs of bits in which 1 is yes and 2 is no, and four bits in which everything above 1 is a wrong set-up.
fn unhealthy(mask: u32) -> u32 {
    let pairs = [0, 2, 4, 6].into_iter().filter(|shift| mask >> shift & 0b11 == 1).map(|shift| 1 << shift);
    let set_up = mask >> 8 & 0xf;
    pairs.sum::<u32>() | if set_up > 1 { set_up << 8 } else { 0 }
}

/// A card that has no such thing has it not turned on.
fn not_offered_is_off(error: NvmlError) -> Result<i128, NvmlError> {
    if matches!(error, NvmlError::NotSupported) { Ok(0) } else { Err(error) }
}

fn confidential(device: &Device<'_>) -> Result<i128, NvmlError> {
    match device.is_cc_enabled() {
        Ok(on) => Ok(on.into()),
        // Drivers from before it was there.
        Err(NvmlError::FailedToLoadSymbol(_)) => Ok(0),
        Err(other) => not_offered_is_off(other),
    }
}

fn field(device: &Device<'_>, id: u32) -> Result<i128, NvmlError> {
    let sample = device.field_values_for(&[FieldId(id)])?.into_iter().next().ok_or(NvmlError::NoData)??;
    match sample.value? {
        SampleValue::U32(n) => Ok(n.into()),
        SampleValue::U64(n) => Ok(n.into()),
        SampleValue::I64(n) => Ok(n.into()),
        SampleValue::F64(_) => Err(NvmlError::Unknown),
    }
}

fn active_links(device: &Device<'_>) -> Result<u32, NvmlError> {
    let mut active = 0;
    for link in 0..LINKS_MAX {
        match device.link_wrapper_for(link).is_active() {
            Ok(up) => active += u32::from(up),
            // Links beyond those that it has.
            Err(NvmlError::InvalidArg) if link > 0 => break,
            Err(NvmlError::NotSupported) if link > 0 => {}
            Err(other) => return Err(other),
        }
    }
    Ok(active)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_that_says_no_everywhere_is_healthy() {
        assert_eq!(unhealthy(0), 0, "nothing is offered");
        assert_eq!(unhealthy(0b01_10101010), 0, "no, no, no, no; set-up right");
        assert_eq!(unhealthy(0b01_10101001), 1, "degraded bandwidth");
        assert_eq!(unhealthy(0b10_10101010), 0x200, "a wrong set-up");
    }
}
