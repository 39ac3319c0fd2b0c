//! A host as a file says that it is: the fake behind the trait of the management library, and GPUs that answer by numbers.

use std::collections::BTreeMap;

use health::gate::{
    Bandwidth, Context, CopyRates, Driver, Identity, Look, MemoryPatterns, Peer, Products, Reading, Unseen,
};
use health::kernel_log::PciAddress;
use serde::Deserialize;
use snapshot_agent::gpu::Effort;
use snapshot_agent::nvml::Nvml;
use snapshot_agent::probe::{Answer, Ask, Hardware, Probe, asked};

/// One GPU. What is not said is that of a healthy H200.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptedGpu {
    address: PciAddress,
    #[serde(default)]
    serial: Option<String>,
    /// Numbers that are other than a healthy one's.
    #[serde(default)]
    readings: BTreeMap<Reading, i64>,
    /// Numbers that cannot be read, and why.
    #[serde(default)]
    unseen: BTreeMap<Reading, Unseen>,
    /// Errors that the driver announces.
    #[serde(default)]
    xids: Vec<u32>,
    /// A call that never comes back.
    #[serde(default)]
    hangs: bool,
    /// Work on it fails.
    #[serde(default)]
    lost: bool,
    #[serde(default)]
    bad_words: u64,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    h2d_gbps: Option<f64>,
    #[serde(default)]
    tensor_tflops: Option<f64>,
}

/// A host.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    #[serde(default)]
    no_driver: Option<String>,
    gpus: Vec<ScriptedGpu>,
    #[serde(skip)]
    open: Option<PciAddress>,
    /// Processes are asked about as ever, of whatever driver there is.
    #[serde(skip)]
    cuda: Hardware,
}

impl Script {
    /// Reads a file.
    pub fn read(path: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let mut script: Self = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        // Each host has GPUs of its own.
        let host: u64 = path.bytes().fold(7, |sum, byte| (sum * 31 + u64::from(byte)) % 1_000_000_007);
        for (index, gpu) in script.gpus.iter_mut().enumerate() {
            gpu.serial.get_or_insert_with(|| format!("{host:010}{index:03}"));
        }
        Ok(script)
    }

    fn gpu(&self, index: u32) -> Look<&ScriptedGpu> {
        self.gpus.get(index as usize).ok_or(Unseen::GpuLost)
    }
}

impl Nvml for Script {
    fn driver(&self) -> Look<Driver> {
        match &self.no_driver {
            Some(why) => Err(Unseen::NoDriver(why.clone())),
            None => Ok(Driver { version: "580.159.04".into(), cuda: "13.0".into() }),
        }
    }

    fn gpus(&self) -> Look<Vec<(u32, PciAddress)>> {
        Ok((0..).zip(&self.gpus).map(|(i, g)| (i, g.address)).collect())
    }

    fn identity(&self, index: u32) -> Look<Identity> {
        let gpu = self.gpu(index)?;
        Ok(Identity {
            name: "NVIDIA H200".into(),
            // As the stand-in for CUDA's driver has it.
            uuid: format!(
                "GPU-{0}-{1}-{1}-{1}-{0}{1}",
                format!("{:02x}", index + 1).repeat(4),
                format!("{:02x}", index + 1).repeat(2)
            ),
            serial: gpu.serial.clone(),
            vbios: Some("96.00.B1.00.01".into()),
            inforom: None,
            pci_device: "2335".into(),
            pci_subsystem: "18be10de".into(),
            nvlink_domain: None,
        })
    }

    fn xids(&self) -> Look<Vec<(PciAddress, u32)>> {
        Ok(self.gpus.iter().flat_map(|g| g.xids.iter().map(|x| (g.address, *x))).collect())
    }

    fn read(&self, index: u32, reading: Reading) -> Look<i64> {
        let gpu = self.gpu(index)?;
        if gpu.hangs {
            std::thread::sleep(std::time::Duration::from_secs(86_400));
        }
        if let Some(why) = gpu.unseen.get(&reading) {
            return Err(why.clone());
        }
        if let Some(value) = gpu.readings.get(&reading) {
            return Ok(*value);
        }
        Ok(match reading {
            Reading::Temperature => 35,
            Reading::MarginTemperature => 50,
            Reading::Power => 120_000,
            Reading::PowerLimit | Reading::DefaultPowerLimit => 700_000,
            Reading::SmClock | Reading::MaxSmClock => 1980,
            Reading::PcieGen | Reading::MaxPcieGen => 5,
            Reading::PcieWidth | Reading::MaxPcieWidth => 16,
            Reading::Ecc | Reading::EccPending => 1,
            Reading::NvlinksActive => 18,
            Reading::FabricState => 3,
            Reading::MemoryTotal => 143_771,
            Reading::MemoryFree => 143_000,
            _ => 0,
        })
    }
}

impl Probe for Script {
    fn answer(&mut self, ask: &Ask) -> Look<Answer> {
        if let Ask::Context(address) = ask {
            self.open = Some(*address);
        }
        let at = self.open;
        let gpu = || {
            let gpu = self.gpus.iter().find(|g| Some(g.address) == at).ok_or(Unseen::GpuLost)?;
            if gpu.lost { Err(Unseen::GpuLost) } else { Ok(gpu) }
        };
        match ask {
            Ask::Survey | Ask::Identity(_) | Ask::Read(_) | Ask::Watch => asked(self, ask),
            Ask::Context(_) => gpu().map(|_| {
                Answer::Context(Context { init_s: 0.5, create_s: 0.2, load_s: 0.1, answer_s: 0.01, tries: 1 })
            }),
            Ask::Memory => {
                let gpu = gpu()?;
                Ok(Answer::Memory(MemoryPatterns {
                    tested_bytes: 135_000 << 20,
                    patterns: 8,
                    bad_words: gpu.bad_words,
                    first_bad_byte: (gpu.bad_words > 0).then_some(0x1000),
                    bad_bits: u32::from(gpu.bad_words > 0),
                    write_gbps: 4000.0,
                    verify_gbps: 4000.0,
                    seconds: 1.0,
                }))
            }
            Ask::Bandwidth => {
                gpu()?;
                Ok(Answer::Bandwidth(Bandwidth { read_gbps: 4200.0, copy_gbps: 4000.0, driver_copy_gbps: 4000.0 }))
            }
            Ask::Copies => {
                let h2d_gbps = gpu()?.h2d_gbps.unwrap_or(55.0);
                Ok(Answer::Copies(CopyRates { h2d_gbps, d2h_gbps: 55.0, bad_words: 0 }))
            }
            Ask::Products(effort) => Ok(Answer::Products(products(gpu()?, *effort))),
            Ask::Checkpoint(..) | Ask::Pause(_) | Ask::GoOn | Ask::Bulk(_) => self.cuda.answer(ask),
            Ask::Peers(ring) => {
                let to = ring.iter().cycle().skip(1);
                let copy = |(from, to): (&(u32, PciAddress), &(u32, PciAddress))| Peer {
                    from: from.0,
                    to: to.0,
                    direct: true,
                    gbps: 380.0,
                    bad_words: 0,
                };
                Ok(Answer::Peers(ring.iter().zip(to).map(copy).collect()))
            }
        }
    }
}

fn products(gpu: &ScriptedGpu, effort: Effort) -> Products {
    let odd: Vec<u32> = effort.spoil.into_iter().collect();
    Products {
        repeats: effort.repeats_min,
        digest: gpu.digest.clone().unwrap_or_else(|| "00ff".into()),
        odd_count: odd.len() as u32,
        odd,
        tensor_tflops: gpu.tensor_tflops.unwrap_or(600.0),
        fp32_gflops: 55_000.0,
        fp32_digest: "11".into(),
        fp32_odd_count: 0,
        fp32_repeats: 100,
        seconds: 0.1,
    }
}
