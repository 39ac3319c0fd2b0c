//! Lines of the kernel log, in the forms in which the driver, switches and PCIe write them.

use health::kernel_log::{Fatality, Fault, PciAddress, read, sequence};
use proptest::prelude::*;

fn gpu(text: &str) -> Option<PciAddress> {
    Some(text.parse().expect("an address"))
}

#[test]
fn lines_of_every_kind_read() {
    let xid = |code| Fault::Xid { code, registers: vec![] };
    for (line, device, fault) in [
        (
            "NVRM: Xid (PCI:0000:3b:00): 31, pid=123, name=python3, Ch 00000008, intr 00000000. MMU Fault",
            "0000:3b:00",
            xid(31),
        ),
        (
            "NVRM: Xid (PCI:0000:19:00): 63, pid='<unknown>', name=<unknown>, Row Remapper: New row marked",
            "0000:19:00",
            xid(63),
        ),
        (
            "NVRM: Xid (PCI:0000:3B:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            "0000:3b:00",
            Fault::OffTheBus,
        ),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9)", "0000:01:00", xid(94)),
        (
            "pcieport 0000:00:01.0: AER: Correctable error message received from 0000:3b:00.0",
            "0000:3b:00",
            Fault::PcieCorrected,
        ),
        ("NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.", "0000:3b:00", Fault::OffTheBus),
        (
            "NVRM: Xid (PCI:0002:00:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 8 (0x004505c6 0x00000001 0x0 0x0 0x0 0x0)",
            "0002:00:00",
            Fault::Xid { code: 149, registers: vec![0x0045_05c6, 1, 0, 0, 0, 0] },
        ),
        (
            "NVRM: Xid (PCI:0000:05:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)",
            "0000:05:00",
            Fault::RecoveryAction { action: 2 },
        ),
        (
            "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 28006, Non-fatal, Link 46 MC TS crumbstore MCTO (First)",
            "0000:c1:00",
            Fault::SXid { code: 28006, fatality: Fatality::NonFatal },
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 LTSSM Fault Up",
            "0000:c1:00",
            Fault::SXid { code: 20034, fatality: Fatality::Fatal },
        ),
        (
            "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 11012, Non-Fatal, Link 30",
            "0000:c1:00",
            Fault::SXid { code: 11012, fatality: Fatality::NonFatal },
        ),
        ("NVRM: RmInitAdapter failed! (0x62:0x40:1784)", "", Fault::InitFailed),
        ("pcieport 0000:00:01.0: AER: Corrected error received: 0000:3b:00.0", "0000:3b:00", Fault::PcieCorrected),
        (
            "pcieport 0000:00:01.0: AER: Uncorrected (Fatal) error received: 0000:3b:00.0",
            "0000:3b:00",
            Fault::PcieUncorrected { fatal: true },
        ),
        (
            "nvidia 0000:3b:00.0: PCIe Bus Error: severity=Uncorrected (Non-Fatal), type=Transaction Layer",
            "0000:3b:00",
            Fault::PcieUncorrected { fatal: false },
        ),
    ] {
        let record = read(line).unwrap_or_else(|| panic!("{line}"));
        let device = if device.is_empty() { None } else { gpu(device) };
        assert_eq!((record.device, record.fault), (device, fault), "{line}");
    }
    for line in ["", "usb 1-1: new device", "NVRM: loading NVIDIA UNIX x86_64 Kernel Module", "AER: enabled"] {
        assert_eq!(read(line), None, "{line}");
    }
}

#[test]
fn stamps_read() {
    let record = read("3,1234,5678901,-;NVRM: Xid (PCI:0000:3b:00): 48, pid=1").expect("reads");
    assert_eq!((record.seq, record.at_us), (Some(1234), Some(5_678_901)));
    let record = read("[   12.500000] NVRM: Xid (PCI:0000:3b:00): 48, pid=1").expect("reads");
    assert_eq!((record.seq, record.at_us), (None, Some(12_500_000)));
    assert_eq!(sequence("6,77,1,-;hello; world"), Some(77));
    assert_eq!(sequence("hello; world"), None);
}

proptest! {
    #[test]
    fn any_line_gets_an_answer(text in ".{0,120}") {
        let _ = read(&text);
        let _ = read(&format!("NVRM: Xid (PCI:{text}"));
        let _ = read(&format!("NVRM: Xid (PCI:0000:3b:00): 149, ({text})"));
        let _ = read(&format!("3,{text};AER: Corrected {text}"));
    }
}
