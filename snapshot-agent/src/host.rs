//! What the host shows without a driver: device files, the PCI bus.

use std::path::{Path, PathBuf};

use health::gate::{Look, Unseen};
use health::kernel_log::PciAddress;

/// Folders of the host; others in tests.
#[derive(Debug, Clone)]
pub struct HostFolders {
    /// `/dev`.
    pub dev: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for HostFolders {
    fn default() -> Self {
        Self { dev: "/dev".into(), sys: "/sys".into() }
    }
}

fn cannot(path: &Path) -> impl Fn(std::io::Error) -> Unseen {
    let path = path.display().to_string();
    move |e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => Unseen::NoPermission(path.clone()),
        _ => Unseen::Error(format!("{path}: {e}")),
    }
}

impl HostFolders {
    /// NVIDIA's GPUs on the PCI bus with their device ids, in the order of their addresses.
    ///
    /// # Errors
    /// The bus is not shown here.
    pub fn on_bus(&self) -> Look<Vec<(PciAddress, String)>> {
        let folder = self.sys.join("bus/pci/devices");
        let mut gpus = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(cannot(&folder))? {
            let entry = entry.map_err(cannot(&folder))?;
            let read = |file: &str| {
                let path = entry.path().join(file);
                let text = std::fs::read_to_string(&path).map_err(cannot(&path))?;
                Ok(text.trim().trim_start_matches("0x").to_owned())
            };
            let class: String = read("class")?;
            // Display controllers: VGA, and 3D.
            if read("vendor")? != "10de" || !(class.starts_with("0300") || class.starts_with("0302")) {
                continue;
            }
            if let Ok(address) = entry.file_name().to_string_lossy().parse() {
                gpus.push((address, read("device")?));
            }
        }
        gpus.sort();
        Ok(gpus)
    }

    /// Device files of the driver that are missing, for so many GPUs.
    ///
    /// # Errors
    /// Device files are not shown here.
    pub fn missing_files(&self, gpus: usize) -> Look<Vec<String>> {
        let mut missing = Vec::new();
        for name in ["nvidiactl", "nvidia-uvm"] {
            let path = self.dev.join(name);
            if !path.exists() {
                missing.push(path.display().to_string());
            }
        }
        let names = std::fs::read_dir(&self.dev).map_err(cannot(&self.dev))?.flatten().map(|e| e.file_name());
        let of_gpu = |name: &str| name.strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok());
        let there = names.filter(|n| of_gpu(&n.to_string_lossy())).count();
        if there < gpus {
            missing.push(format!("{}/nvidiaN of {} GPUs", self.dev.display(), gpus - there));
        }
        Ok(missing)
    }
}
