//! Lines of NVIDIA's driver and of its NVSwitches. Formats: open-gpu-kernel-modules (`nverror.h`, `ras_events.c`,
//! `nv_gpu_ops.c`, `kernel_gsp.c`) and the Fabric Manager user guide.

use super::{Fatality, Fault, PciAddress, Process};

/// What an Xid's line says.
pub(super) struct Xid {
    pub device: Option<PciAddress>,
    pub process: Option<Process>,
    pub fault: Fault,
}

/// What follows `NVRM: Xid`. Whatever does not read is an error that nobody knows.
pub(super) fn xid(rest: &str) -> Xid {
    let rest = rest.trim_start().trim_start_matches(':').trim_start();
    let Some((device, said)) = place_and_rest(rest) else {
        return Xid { device: super::address_in(rest), process: None, fault: Fault::XidUnreadable };
    };
    let digits: String = said.chars().take_while(char::is_ascii_digit).collect();
    let after = &said[digits.len()..];
    let ends = after.is_empty() || after.starts_with([',', ' ', ':']);
    let Some(code) = digits.parse::<u32>().ok().filter(|_| ends) else {
        return Xid { device, process: None, fault: Fault::XidUnreadable };
    };
    let fault = match code {
        154 => recovery_action(said).map(|action| Fault::RecoveryAction { action }),
        79 => Some(Fault::OffTheBus),
        64 if is_pending(said) => Some(Fault::RemapPending),
        _ => None,
    };
    let process = process(after);
    Xid { device, process, fault: fault.unwrap_or_else(|| Fault::Xid { code, registers: registers(said) }) }
}

/// `(PCI:0000:3b:00): …`, with an instance behind the address where there is MIG; without `PCI:` before driver 319.
fn place_and_rest(text: &str) -> Option<(Option<PciAddress>, &str)> {
    let (place, rest) = text.strip_prefix('(')?.split_once(')')?;
    let address = place.strip_prefix("PCI:").unwrap_or(place).split(' ').next()?;
    Some((address.parse().ok(), rest.trim_start_matches([':', ' '])))
}

/// A name has fifteen characters at most, so that it holds none of the phrases that are looked for here.
fn process(text: &str) -> Option<Process> {
    let rest = text.trim_start_matches([',', ' ']).strip_prefix("pid=")?;
    let (pid, rest) = rest.split_once(',')?;
    let name = rest.trim_start().strip_prefix("name=")?.split(", ").next()?;
    Some(Process { pid: pid.trim_matches('\'').parse().ok()?, name: name.chars().take(16).collect() })
}

/// `GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)`.
fn recovery_action(text: &str) -> Option<u32> {
    let (_, said) = text.rsplit_once("GPU recovery action changed from ")?;
    let number = said.split_once(" to 0x")?.1.chars().take_while(char::is_ascii_hexdigit).collect::<String>();
    u32::from_str_radix(&number, 16).ok()
}

/// The driver's words for a row, bank or slice whose repair waits for the next reset.
fn is_pending(text: &str) -> bool {
    let pending = ["that is already pending remapping", "failed due to pending "];
    pending.iter().any(|words| text.contains(words))
}

/// The numbers in the brackets at the end: `(0x004505c6 0x00000000 …)`.
fn registers(text: &str) -> Vec<u32> {
    let inside = text.trim_end().strip_suffix(')').and_then(|t| t.rsplit_once('(')).map_or("", |(_, inside)| inside);
    let number = |word: &str| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok();
    let read: Vec<u32> = inside.split_whitespace().map_while(number).take(16).collect();
    // One number in brackets is something else: a channel, a unit.
    if read.len() >= 2 { read } else { Vec::new() }
}

/// A driver's major version: `NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.148.08  Release Build`.
pub(super) fn driver_major(said: &str) -> Option<u32> {
    let rest = said.strip_prefix("loading NVIDIA UNIX")?;
    let version = |word: &str| {
        let mut numbers = word.split('.').map(str::parse::<u32>);
        let major = numbers.next()?.ok()?;
        numbers.next()?.ok().map(|_| major)
    };
    rest.split_whitespace().find_map(version)
}

/// `GPU at PCI:0000:3b:00: GPU-6ab4…`: what the driver says of each GPU before its first error.
pub(super) fn uuid(said: &str) -> Option<(PciAddress, String)> {
    let rest = said.strip_prefix("GPU at ")?;
    let (address, uuid) = rest.strip_prefix("PCI:").unwrap_or(rest).split_once(": ")?;
    let uuid = uuid.trim();
    uuid.starts_with("GPU-").then_some(())?;
    Some((address.parse().ok()?, uuid.chars().take(60).collect()))
}

/// A line of a switch.
pub(super) enum Switch {
    /// It reports.
    Error(Option<PciAddress>, u32, Fatality),
    /// Registers that belong to the line before it.
    Data(Option<PciAddress>, u32),
    /// It reports something that does not read.
    Unreadable(Option<PciAddress>),
}

/// `SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30 …`; `…, Severity 1 Engine instance 60 …`; `…, Data {0x…`.
pub(super) fn switch(text: &str) -> Option<Switch> {
    let rest = &text[text.find("SXid")? + 4..];
    let Some((device, said)) = place_and_rest(rest.trim_start()) else {
        return Some(Switch::Unreadable(super::address_in(rest)));
    };
    let (code, rest) = said.split_once(',').unwrap_or((said, ""));
    let Ok(code) = code.trim().parse() else { return Some(Switch::Unreadable(device)) };
    let rest = rest.trim();
    if rest.starts_with("Data {") {
        return Some(Switch::Data(device, code));
    }
    let word = rest.split([',', ' ']).next().unwrap_or_default().to_ascii_lowercase();
    let severity = rest.strip_prefix("Severity ").and_then(|r| r.split(' ').next());
    let fatality = match (word.as_str(), severity) {
        _ if is_always_fatal(code) => Fatality::Fatal,
        ("fatal", _) | (_, Some("1")) => Fatality::Fatal,
        ("non-fatal", _) | (_, Some("0")) => Fatality::NonFatal,
        _ => Fatality::Unknown,
    };
    Some(Switch::Error(device, code, fatality))
}

/// Codes that are fatal whatever the line says (NVIDIA Fabric Manager user guide, SXid errors).
fn is_always_fatal(code: u32) -> bool {
    let row = |line: &str| line.split(',').next().and_then(|c| c.parse().ok()) == Some(code);
    include_str!("../../data/sxid.csv").lines().any(|line| line.ends_with(",always_fatal") && row(line))
}
