//! GPUs of instance types by the clouds' own naming rules (AWS, Google Cloud and Azure instance documentation).
//! A count of 0 stands for a part of a GPU.

/// GPU name and count of an AWS type, `None` for types without a GPU that Pilotlight knows.
#[must_use]
pub fn aws(instance_type: &str) -> Option<(&'static str, u32)> {
    let (family, size) = instance_type.split_once('.')?;
    let by_size = |counts: &[(&str, u32)]| counts.iter().find(|(s, _)| *s == size).map_or(1, |(_, n)| *n);
    Some(match family {
        "p2" => ("K80", by_size(&[("8xlarge", 8), ("16xlarge", 16)])),
        "p3" => ("V100-16GB", by_size(&[("8xlarge", 4), ("16xlarge", 8)])),
        "p3dn" => ("V100-32GB", 8),
        "p4d" => ("A100-40GB-SXM", 8),
        "p4de" => ("A100-80GB-SXM", 8),
        "p5" => ("H100-SXM", by_size(&[("48xlarge", 8)])),
        "p5e" | "p5en" => ("H200", by_size(&[("48xlarge", 8)])),
        "p6-b200" => ("B200", by_size(&[("48xlarge", 8)])),
        "p6-b300" => ("B300", by_size(&[("48xlarge", 8)])),
        "g4dn" => ("T4", by_size(&[("12xlarge", 4), ("metal", 8)])),
        "g5" => ("A10G", by_size(&[("12xlarge", 4), ("24xlarge", 4), ("48xlarge", 8)])),
        "g5g" => ("T4g", by_size(&[("16xlarge", 2), ("metal", 2)])),
        "g6" => ("L4", by_size(&[("12xlarge", 4), ("24xlarge", 4), ("48xlarge", 8)])),
        "g6e" => ("L40S", by_size(&[("12xlarge", 4), ("24xlarge", 4), ("48xlarge", 8)])),
        "gr6" => ("L4", 1),
        "g6f" | "gr6f" => ("L4", 0),
        "g7" => ("RTX-PRO-4500", by_size(&[("12xlarge", 2), ("24xlarge", 4), ("48xlarge", 8)])),
        "g7e" => ("RTX-PRO-6000", by_size(&[("12xlarge", 2), ("24xlarge", 4), ("48xlarge", 8)])),
        _ => return None,
    })
}

/// GPU name and count of a Google Cloud machine type.
#[must_use]
pub fn gcp(machine_type: &str) -> Option<(&'static str, u32)> {
    let (family, size) = machine_type.rsplit_once('-')?;
    let gpus = || size.strip_suffix('g').and_then(|n| n.parse().ok());
    Some(match family {
        "a2-highgpu" | "a2-megagpu" => ("A100-40GB-SXM", gpus()?),
        "a2-ultragpu" => ("A100-80GB-SXM", gpus()?),
        "a3-highgpu" | "a3-edgegpu" | "a3-megagpu" => ("H100-SXM", gpus()?),
        "a3-ultragpu" => ("H200", gpus()?),
        "a4-highgpu" => ("B200", gpus()?),
        "g2-standard" => (
            "L4",
            match size {
                "24" => 2,
                "48" => 4,
                "96" => 8,
                _ => 1,
            },
        ),
        "g4-standard" => (
            "RTX-PRO-6000",
            match size {
                "48" => 1,
                "96" => 2,
                "192" => 4,
                "384" => 8,
                _ => 0,
            },
        ),
        _ => return None,
    })
}

/// GPU name and count of an Azure size, with or without `Standard_`.
#[must_use]
pub fn azure(sku: &str) -> Option<(&'static str, u32)> {
    let name = sku.strip_prefix("Standard_").unwrap_or(sku);
    let digits: String = name.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let vcpus: u32 = digits.parse().ok()?;
    let family: String = name.chars().take_while(|c| !c.is_ascii_digit()).collect();
    let has = |part: &str| name.contains(part);
    let by_vcpus = |counts: &[(u32, u32)]| counts.iter().find(|(v, _)| *v == vcpus).map_or(1, |(_, n)| *n);
    Some(match family.as_str() {
        "ND" if has("GB200") => ("GB200", 4),
        "ND" if has("H200") => ("H200", 8),
        "ND" if has("H100") => ("H100-SXM", 8),
        "ND" if has("MI300X") => ("MI300X", 8),
        "ND" if has("A100_v4") && has("96am") => ("A100-80GB-SXM", 8),
        "ND" if vcpus == 96 => ("A100-40GB-SXM", 8),
        "ND" if vcpus == 40 => ("V100-32GB", 8),
        "ND" => ("P40", by_vcpus(&[(12, 2), (24, 4)])),
        "NC" | "NCC" if has("H100") => ("H100-NVL", by_vcpus(&[(80, 2)])),
        "NC" if has("A100") => ("A100-80GB-PCIe", by_vcpus(&[(48, 2), (96, 4)])),
        "NC" if has("T4") => ("T4", by_vcpus(&[(64, 4)])),
        "NC" if has("A10") => ("A10", by_vcpus(&[(32, 2)])),
        "NC" if has("s_v3") => ("V100-16GB", by_vcpus(&[(12, 2), (24, 4)])),
        "NC" if has("s_v2") => ("P100", by_vcpus(&[(12, 2), (24, 4)])),
        "NC" => ("K80", by_vcpus(&[(12, 2), (24, 4)])),
        "NV" if has("A10") => (
            "A10",
            match vcpus {
                36 => 1,
                72 => 2,
                _ => 0,
            },
        ),
        "NV" if has("s_v3") || has("s_v2") => ("M60", by_vcpus(&[(24, 2), (48, 4)])),
        "NV" if !has("_v") => ("M60", by_vcpus(&[(12, 2), (24, 4)])),
        "NV" => ("Radeon", 0),
        "NG" => ("Radeon Pro V620", 0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_names() {
        assert_eq!(aws("p5.48xlarge"), Some(("H100-SXM", 8)));
        assert_eq!(aws("p5.4xlarge"), Some(("H100-SXM", 1)));
        assert_eq!(aws("g6.16xlarge"), Some(("L4", 1)));
        assert_eq!(aws("g6f.large"), Some(("L4", 0)));
        assert_eq!(aws("m5.large"), None);
        assert_eq!(gcp("a3-highgpu-2g"), Some(("H100-SXM", 2)));
        assert_eq!(gcp("g2-standard-96"), Some(("L4", 8)));
        assert_eq!(gcp("n1-standard-4"), None);
        assert_eq!(azure("Standard_ND96isr_H100_v5"), Some(("H100-SXM", 8)));
        assert_eq!(azure("Standard_ND96amsr_A100_v4"), Some(("A100-80GB-SXM", 8)));
        assert_eq!(azure("Standard_ND96asr_v4"), Some(("A100-40GB-SXM", 8)));
        assert_eq!(azure("Standard_NC24ads_A100_v4"), Some(("A100-80GB-PCIe", 1)));
        assert_eq!(azure("Standard_NV6ads_A10_v5"), Some(("A10", 0)));
        assert_eq!(azure("Standard_ND128isr_NDR_GB200_v6"), Some(("GB200", 4)));
    }

    #[test]
    fn every_name_is_a_known_gpu() {
        for name in
            ["p2.xlarge", "p3.2xlarge", "p4d.24xlarge", "p6-b300.48xlarge", "g7.xlarge", "g7e.2xlarge", "g5g.xlarge"]
        {
            let (gpu, _) = aws(name).expect(name);
            assert!(gpu.parse::<fleet::GpuModel>().is_ok(), "{gpu}");
        }
    }
}
