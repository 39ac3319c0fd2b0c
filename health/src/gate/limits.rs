//! Limits of the gate: a table by model, an operator's file over it, and what the fleet has taught above both.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::learned::Learned;
use super::reading::Reading;
use super::report::Bound;

/// What a GPU model must do. What is not said is not judged, unless it says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// PCI device id, `2335`.
    pub pci_device: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Whole memory as NVML tells it, MiB.
    pub memory_mib: Option<f64>,
    /// Reading its memory, GB/s: below it fails.
    pub read_fail_gbps: Option<f64>,
    /// What a good one reads, GB/s; below 0.88 of it is degraded.
    pub read_ref_gbps: Option<f64>,
    /// Least generation of PCIe, where the host tells it.
    pub pcie_gen_min: Option<u32>,
    /// Fewest lanes.
    pub pcie_width_min: Option<u32>,
    /// Host copies in either direction, GB/s; without it [`link_gbps`] of the link says.
    pub copy_fail_gbps: Option<f64>,
    /// Direct copies between GPUs, GB/s.
    pub peer_fail_gbps: Option<f64>,
    /// NVLinks that must be up on a host of several GPUs.
    pub nvlinks: Option<u32>,
    /// What the vendor specifies for dense half precision, TFLOP/s.
    pub tensor_peak_tflops: Option<f64>,
    /// What this gate's own kernel reached on a good one, TFLOP/s; without it a share of the vendor's figure holds.
    pub tensor_ref_tflops: Option<f64>,
    /// Single-precision multiply-adds, GFLOP/s: below it fails.
    pub fp32_fail_gflops: Option<f64>,
    /// Power limit that it comes with, watts.
    pub power_w: Option<f64>,
    /// 1: remaps rows (Ampere and later); 0: retires pages.
    pub remaps: Option<u8>,
    /// Where the figures are from.
    #[serde(default)]
    pub source: String,
}

/// Share of a reference below which a GPU fails, and below which it is degraded (DCGM takes 0.75).
const FAIL_SHARE: f64 = 0.75;
const WARN_SHARE: f64 = 0.88;
/// Least share of the vendor's figure that is asked of the gate's kernel on a model that it was never calibrated on: on an H200
/// it reaches 0.29 (at the GPU's power limit), and earlier models give `mma.sync` more of their whole.
const KERNEL_SHARE: f64 = 0.2;

impl Model {
    /// Reading memory.
    #[must_use]
    pub fn read(&self) -> Bound {
        let warn_below = self.read_ref_gbps.map(|r| r * WARN_SHARE);
        Bound { fail_below: self.read_fail_gbps, warn_below, ..Bound::default() }
    }

    /// Host copies over a link of `gen` and `width`; without them, of the least that the model has.
    #[must_use]
    pub fn copy(&self, link: Option<(u32, u32)>) -> Bound {
        let link = link.or(self.pcie_gen_min.zip(self.pcie_width_min));
        let practical = link.map(|(generation, width)| link_gbps(generation, width));
        let fail_below = self.copy_fail_gbps.or(practical.map(|p| p * FAIL_SHARE));
        let warn_below = if self.copy_fail_gbps.is_some() { None } else { practical.map(|p| p * WARN_SHARE) };
        Bound { fail_below, warn_below, ..Bound::default() }
    }

    /// Rate of the products.
    #[must_use]
    pub fn tensor(&self) -> Bound {
        match (self.tensor_ref_tflops, self.tensor_peak_tflops) {
            (Some(reference), _) => Bound {
                fail_below: Some(reference * FAIL_SHARE),
                warn_below: Some(reference * WARN_SHARE),
                ..Bound::default()
            },
            (None, Some(peak)) => Bound { fail_below: Some(peak * KERNEL_SHARE * FAIL_SHARE), ..Bound::default() },
            (None, None) => Bound::default(),
        }
    }

    fn over(&mut self, other: &Self) {
        macro_rules! take {
            ($($field:ident)*) => { $( if other.$field.is_some() { self.$field = other.$field; } )* };
        }
        take!(memory_mib read_fail_gbps read_ref_gbps pcie_gen_min pcie_width_min copy_fail_gbps peer_fail_gbps nvlinks
              tensor_peak_tflops tensor_ref_tflops fp32_fail_gflops power_w remaps);
        if !other.name.is_empty() {
            self.name.clone_from(&other.name);
        }
        if !other.source.is_empty() {
            self.source.clone_from(&other.source);
        }
    }

    /// A limit that a check needs, by name, where it is missing.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let needed = [
            ("memory_mib", self.memory_mib.is_none()),
            ("read_fail_gbps", self.read().fail_below.is_none()),
            ("copy_fail_gbps", self.copy(None).fail_below.is_none()),
            ("tensor_ref_tflops", self.tensor().fail_below.is_none()),
            ("fp32_fail_gflops", self.fp32_fail_gflops.is_none()),
            ("power_w", self.power_w.is_none()),
            ("remaps", self.remaps.is_none()),
        ];
        needed.into_iter().filter(|(_, missing)| *missing).map(|(name, _)| name).collect()
    }
}

/// What a PCIe link carries in practice, GB/s: 13 for 16 lanes of generation 3, 25 for 4, 55 for 5.
#[must_use]
pub fn link_gbps(generation: u32, width: u32) -> f64 {
    let of_16 = match generation {
        0..=2 => 6.5 * f64::from(generation) / 2.0,
        3 => 13.0,
        4 => 25.0,
        5 => 55.0,
        _ => 110.0,
    };
    of_16 * f64::from(width) / 16.0
}

/// A limits file that does not read.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// The text.
    #[error("the limits do not read")]
    Toml(#[from] toml::de::Error),
    /// A limit that nothing, or everything, passes.
    #[error("{model}: {field} = {value} is no limit: it must be above 0")]
    Senseless {
        /// PCI device id.
        model: String,
        /// Which.
        field: &'static str,
        /// What it says.
        value: f64,
    },
    /// A reading that does not exist.
    #[error("accept_unmeasured: there is no reading '{0}'")]
    NoReading(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<Model>,
    #[serde(default)]
    accept_unmeasured: Vec<String>,
}

/// All limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    models: BTreeMap<String, Model>,
    /// Readings that a host may lack.
    accepted: BTreeSet<Reading>,
    learned: Learned,
}

impl Default for Limits {
    fn default() -> Self {
        let mut lines = include_str!("../../data/models.csv").lines();
        let names: Vec<&str> = lines.next().unwrap_or_default().split(',').collect();
        let row = |line: &str| {
            let cell = |name: &str| line.split(',').nth(names.iter().position(|n| *n == name)?);
            let number = |name: &str| cell(name)?.parse::<f64>().ok();
            let whole = |name: &str| cell(name)?.parse::<u32>().ok();
            Some(Model {
                pci_device: cell("pci_device")?.to_owned(),
                name: cell("name")?.to_owned(),
                memory_mib: number("memory_mib"),
                read_fail_gbps: number("read_fail_gbps"),
                read_ref_gbps: number("read_ref_gbps"),
                pcie_gen_min: whole("pcie_gen_min"),
                pcie_width_min: whole("pcie_width_min"),
                copy_fail_gbps: number("copy_fail_gbps"),
                peer_fail_gbps: number("peer_fail_gbps"),
                nvlinks: whole("nvlinks"),
                tensor_peak_tflops: number("tensor_peak_tflops"),
                tensor_ref_tflops: number("tensor_ref_tflops"),
                fp32_fail_gflops: number("fp32_fail_gflops"),
                power_w: number("power_w"),
                remaps: cell("remaps")?.parse().ok(),
                source: cell("source")?.to_owned(),
            })
        };
        let models = lines.filter_map(row).map(|m| (m.pci_device.clone(), m)).collect();
        Self { models, accepted: BTreeSet::new(), learned: Learned::default() }
    }
}

impl Limits {
    /// The shipped table with an operator's file over it: `[[model]]` with `pci_device` and what is to be another, and
    /// `accept_unmeasured`, the readings that a host may lack.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub fn overridden(mut self, text: &str) -> Result<Self, LimitsError> {
        let file: File = toml::from_str(text)?;
        for model in &file.model {
            let fields = [
                ("memory_mib", model.memory_mib),
                ("read_fail_gbps", model.read_fail_gbps),
                ("read_ref_gbps", model.read_ref_gbps),
                ("copy_fail_gbps", model.copy_fail_gbps),
                ("peer_fail_gbps", model.peer_fail_gbps),
                ("tensor_peak_tflops", model.tensor_peak_tflops),
                ("tensor_ref_tflops", model.tensor_ref_tflops),
                ("fp32_fail_gflops", model.fp32_fail_gflops),
                ("power_w", model.power_w),
            ];
            let senseless = |v: f64| !v.is_finite() || v <= 0.0;
            if let Some((field, Some(value))) = fields.into_iter().find(|(_, v)| v.is_some_and(senseless)) {
                return Err(LimitsError::Senseless { model: model.pci_device.clone(), field, value });
            }
            self.models.entry(model.pci_device.clone()).or_insert_with(|| model.clone()).over(model);
        }
        for name in file.accept_unmeasured {
            let reading = Reading::ALL.iter().find(|r| r.name() == name);
            self.accepted.insert(*reading.ok_or(LimitsError::NoReading(name))?);
        }
        Ok(self)
    }

    /// With what the fleet has taught. A learned limit only ever asks for more than the table.
    #[must_use]
    pub fn with_learned(mut self, learned: Learned) -> Self {
        self.learned = learned;
        self
    }

    /// The row of a model.
    #[must_use]
    pub fn model(&self, pci_device: &str) -> Option<&Model> {
        self.models.get(pci_device)
    }

    /// Whether a host may lack a reading.
    #[must_use]
    pub fn accepts_without(&self, reading: Reading) -> bool {
        self.accepted.contains(&reading)
    }

    /// A bound, raised to what was learned for that number.
    pub(super) fn raised(&self, name: &str, bound: Bound) -> Bound {
        self.learned.raise(name, bound)
    }
}
