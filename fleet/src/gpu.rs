//! GPU models under one canonical name, with what a claim may ask of them.
//!
//! Memory, power and interconnect are the vendors' data-sheet figures; the aliases are the names that clouds and
//! price feeds use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How the GPU sits in the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FormFactor {
    /// A card in a PCIe slot.
    Pcie,
    /// NVIDIA's socketed module on an NVLink board.
    Sxm,
    /// AMD's socketed module (OCP accelerator module).
    Oam,
    /// CPU and GPU on one module (Grace Hopper, Grace Blackwell).
    Superchip,
}

/// The fastest link between the GPUs of one node. Ordered: a class states a floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interconnect {
    /// Through the host's PCIe.
    Pcie,
    /// NVLink bridge between pairs of cards.
    Bridge,
    /// NVLink switch or AMD Infinity Fabric between all GPUs of the node.
    Nvlink,
}

struct Spec {
    name: &'static str,
    memory_gib: u32,
    tdp_w: u32,
    form: FormFactor,
    link: Interconnect,
    aliases: &'static [&'static str],
}

const fn spec(
    name: &'static str,
    memory_gib: u32,
    tdp_w: u32,
    form: FormFactor,
    link: Interconnect,
    aliases: &'static [&'static str],
) -> Spec {
    Spec { name, memory_gib, tdp_w, form, link, aliases }
}

use FormFactor::{Oam, Pcie, Superchip, Sxm};
use Interconnect::{Bridge, Nvlink, Pcie as PcieLink};

/// Every model that Pilotlight can plan with. Aliases are compared without case, blanks, '-', '_' and vendor.
static SPECS: &[Spec] = &[
    spec("GB200", 186, 1200, Superchip, Nvlink, &["GB200NVL"]),
    spec("B300", 288, 1100, Sxm, Nvlink, &["B300SXM", "B300SXM6"]),
    spec("B200", 180, 1000, Sxm, Nvlink, &["B200SXM", "B200SXM6", "B200180GB"]),
    spec("GH200", 96, 1000, Superchip, Nvlink, &["GH20096GB", "GH200480GB"]),
    spec("H200", 141, 700, Sxm, Nvlink, &["H200SXM", "H200SXM5", "H200141GB", "H200141GBSXM5"]),
    spec("H100-NVL", 94, 400, Pcie, Bridge, &["H10094GB", "H100NVL94GB"]),
    spec(
        "H100-SXM",
        80,
        700,
        Sxm,
        Nvlink,
        &["H100", "H100SXM5", "H10080GBSXM5", "H10080GB", "H100MEGA", "H100MEGA80GB"],
    ),
    spec("H100-PCIe", 80, 350, Pcie, Bridge, &["H10080GBPCIe"]),
    spec("A100-80GB-SXM", 80, 400, Sxm, Nvlink, &["A10080GB", "A10080GBSXM4", "A100SXM480GB", "A100SXM80GB"]),
    spec("A100-80GB-PCIe", 80, 300, Pcie, Bridge, &["A100PCIe80GB"]),
    spec("A100-40GB-SXM", 40, 400, Sxm, Nvlink, &["A100", "A10040GB", "A10040GBSXM4", "A100SXM440GB"]),
    spec("V100-32GB", 32, 300, Sxm, Nvlink, &["V10032GBSXM2", "V100SXM232GB"]),
    spec("V100-16GB", 16, 300, Sxm, Nvlink, &["V100", "V100SXM2", "V100SXM216GB"]),
    spec("P100", 16, 250, Pcie, PcieLink, &["P10016GB"]),
    spec("P40", 24, 250, Pcie, PcieLink, &[]),
    spec("P4", 8, 75, Pcie, PcieLink, &[]),
    spec("M60", 8, 150, Pcie, PcieLink, &[]),
    spec("K80", 12, 150, Pcie, PcieLink, &[]),
    spec("L40S", 48, 350, Pcie, PcieLink, &["L40S48GB"]),
    spec("L40", 48, 300, Pcie, PcieLink, &[]),
    spec("L4", 24, 72, Pcie, PcieLink, &["L424GB"]),
    spec("A10G", 24, 300, Pcie, PcieLink, &[]),
    spec("A10", 24, 150, Pcie, PcieLink, &["A1024GB"]),
    spec("A40", 48, 300, Pcie, Bridge, &["A4048GB"]),
    spec("A30", 24, 165, Pcie, Bridge, &[]),
    spec("T4", 16, 70, Pcie, PcieLink, &["T416GB"]),
    spec("T4g", 16, 70, Pcie, PcieLink, &[]),
    spec("RTX-PRO-6000", 96, 600, Pcie, PcieLink, &["RTXPROServer6000", "RTXPRO6000SE", "RTXPRO6000Blackwell"]),
    spec("RTX-PRO-4500", 32, 200, Pcie, PcieLink, &[]),
    spec("RTX-6000-Ada", 48, 300, Pcie, PcieLink, &["RTX6000Ada", "6000Ada"]),
    spec("RTX-A6000", 48, 300, Pcie, Bridge, &["A6000"]),
    spec("RTX-A5000", 24, 230, Pcie, Bridge, &["A5000"]),
    spec("RTX-A4000", 16, 140, Pcie, PcieLink, &["A4000"]),
    spec("RTX-5090", 32, 575, Pcie, PcieLink, &[]),
    spec("RTX-4090", 24, 450, Pcie, PcieLink, &[]),
    spec("RTX-3090", 24, 350, Pcie, Bridge, &[]),
    spec("MI325X", 256, 1000, Oam, Nvlink, &[]),
    spec("MI300X", 192, 750, Oam, Nvlink, &[]),
    spec("MI250", 128, 560, Oam, Nvlink, &[]),
];

/// One GPU model by its canonical name. Only names in the table exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GpuModel(u8);

/// The first of the table, where any will do.
impl Default for GpuModel {
    fn default() -> Self {
        Self(0)
    }
}

/// The name is not in the table of GPU models.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown GPU '{name}'{}", .nearest.map_or(String::new(), |n| format!("; did you mean '{n}'?")))]
pub struct UnknownGpu {
    /// What was given.
    pub name: String,
    /// A canonical name that begins alike.
    pub nearest: Option<&'static str>,
}

fn fold(name: &str) -> String {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    plain.trim_start_matches("nvidia").trim_start_matches("tesla").trim_start_matches("amd").to_owned()
}

impl GpuModel {
    fn spec(self) -> &'static Spec {
        &SPECS[usize::from(self.0)]
    }

    /// The canonical name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.spec().name
    }

    /// Memory of one GPU in GiB (data sheet).
    #[must_use]
    pub fn memory_gib(self) -> u32 {
        self.spec().memory_gib
    }

    /// Most power that one GPU is designed to draw, W (data sheet; of boards with two GPUs a half).
    #[must_use]
    pub fn tdp_w(self) -> u32 {
        self.spec().tdp_w
    }

    /// How it sits in the host.
    #[must_use]
    pub fn form_factor(self) -> FormFactor {
        self.spec().form
    }

    /// The link between the GPUs of one node that this model normally has.
    #[must_use]
    pub fn interconnect(self) -> Interconnect {
        self.spec().link
    }

    /// Every model, in table order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SPECS.len()).map(|i| Self(i as u8))
    }
}

impl FromStr for GpuModel {
    type Err = UnknownGpu;

    fn from_str(name: &str) -> Result<Self, UnknownGpu> {
        let wanted = fold(name);
        let hit = SPECS
            .iter()
            .position(|s| fold(s.name) == wanted)
            .or_else(|| SPECS.iter().position(|s| s.aliases.iter().any(|a| fold(a) == wanted)));
        if let Some(index) = hit {
            return Ok(Self(index as u8));
        }
        let nearest = SPECS
            .iter()
            .map(|s| (fold(s.name).bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count(), s.name))
            .max_by_key(|(same, _)| *same)
            .filter(|(same, _)| *same >= 2)
            .map(|(_, name)| name);
        Err(UnknownGpu { name: name.to_owned(), nearest })
    }
}

impl fmt::Display for GpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for GpuModel {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for GpuModel {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_alias_is_found_and_none_is_ambiguous() {
        let mut seen = std::collections::BTreeMap::new();
        for model in GpuModel::all() {
            assert_eq!(model.name().parse(), Ok(model));
            for text in model.spec().aliases.iter().copied().chain([model.name()]) {
                assert_eq!(text.parse(), Ok(model), "{text}");
                if let Some(other) = seen.insert(fold(text), model) {
                    assert_eq!(other, model, "'{text}' names two models");
                }
            }
        }
    }

    #[test]
    fn cloud_spellings_and_unknown() {
        for (text, name) in [
            ("NVIDIA H100 80GB PCIe", "H100-PCIe"),
            ("H100_80GB_SXM5", "H100-SXM"),
            ("A100-80GB SXM", "A100-80GB-SXM"),
            ("RTX PRO Server 6000", "RTX-PRO-6000"),
            ("rtx 4090", "RTX-4090"),
        ] {
            assert_eq!(text.parse::<GpuModel>().map(GpuModel::name), Ok(name));
        }
        let unknown = "H999".parse::<GpuModel>();
        assert!(unknown.is_err());
        assert!("".parse::<GpuModel>().is_err());
    }
}
