//! Whether what was bought is there.

use fleet::Remedy;

use super::evidence::Evidence;
use super::judged::Judged;
use super::reading::Reading;
use super::report::{Check, Number, Outcome};
use crate::verdict::Verdict;

pub(super) fn files(evidence: &Evidence) -> Outcome {
    let mut outcome = Outcome::pass(Check::DeviceFiles, None);
    match &evidence.missing_files {
        Ok(missing) => {
            for file in missing {
                outcome.find(Verdict::Fail, Remedy::SetUp, format!("{file} is missing: load the driver's modules"));
            }
        }
        Err(why) => outcome.find(Verdict::Unmeasured, Remedy::TryAgain, why.to_string()),
    }
    outcome
}

pub(super) fn census(evidence: &Evidence) -> Outcome {
    let mut outcome = Outcome::pass(Check::Census, None);
    let driver_sees = match &evidence.driver {
        Ok(_) => Some(evidence.gpus.len()),
        Err(why) => {
            outcome.find(Verdict::Unmeasured, Remedy::SetUp, format!("the driver's count is not known: {why}"));
            None
        }
    };
    let bus_sees = match &evidence.on_bus {
        Ok(on_bus) => Some(on_bus.len()),
        Err(why) => {
            outcome.find(Verdict::Unmeasured, Remedy::TryAgain, format!("the PCI bus was not read: {why}"));
            None
        }
    };
    let bought = evidence.expected.gpus.map(|n| n as usize);
    let mut differs = |what: &str, sees: Option<usize>, than: &str, other: Option<usize>| {
        if let (Some(sees), Some(other)) = (sees, other)
            && sees != other
        {
            outcome.find(Verdict::Fail, Remedy::Replace, format!("{what} {sees} GPUs, {than} {other}"));
        }
    };
    differs("the PCI bus has", bus_sees, "bought were", bought);
    differs("the driver sees", driver_sees, "the PCI bus has", bus_sees);
    differs("the driver sees", driver_sees, "bought were", bought);
    if evidence.gpus.is_empty() {
        outcome.find(Verdict::Unmeasured, Remedy::SetUp, "no GPU to check");
    }
    if let (Ok(on_bus), Ok(_)) = (&evidence.on_bus, &evidence.driver) {
        for (address, _) in on_bus.iter().filter(|(a, _)| evidence.gpus.iter().all(|g| g.address != *a)) {
            outcome.find(
                Verdict::Fail,
                Remedy::Replace,
                format!("{address} is on the bus and the driver does not see it"),
            );
        }
    }
    outcome.numbers.extend(bus_sees.map(|n| Number::of("on_bus", n as f64)));
    outcome.numbers.extend(driver_sees.map(|n| Number::of("in_driver", n as f64)));
    outcome
}

pub(super) fn identity(judged: &Judged<'_>, evidence: &Evidence) -> Outcome {
    let mut outcome = Outcome::pass(Check::Identity, Some(judged.gpu.index));
    let identity = match &judged.gpu.identity {
        Ok(identity) => identity,
        Err(why) => {
            outcome.find(Verdict::Unmeasured, Remedy::TryAgain, why.to_string());
            return outcome;
        }
    };
    match judged.model {
        None => {
            let what = format!(
                "no limits are known for {} ({}): write a [[model]] into the limits file",
                identity.name, identity.pci_device
            );
            outcome.find(Verdict::Unmeasured, Remedy::SetUp, what);
        }
        Some(model) => {
            for limit in model.missing() {
                outcome.find(Verdict::Unmeasured, Remedy::SetUp, format!("{} has no limit {limit}", model.name));
            }
        }
    }
    if let Some(bought) = evidence.expected.pci_device.as_ref().filter(|d| **d != identity.pci_device) {
        let what = format!("{} ({}) where {bought} was bought", identity.name, identity.pci_device);
        outcome.find(Verdict::Fail, Remedy::Replace, what);
    }
    let first = evidence.gpus.iter().find_map(|g| g.identity.as_ref().ok());
    if let Some(first) = first.filter(|f| f.pci_device != identity.pci_device) {
        let what = format!("{} beside {}: GPUs of a host are of one model", identity.pci_device, first.pci_device);
        outcome.find(Verdict::Fail, Remedy::Replace, what);
    }
    if let (Some(wanted), Ok(driver)) = (&evidence.expected.driver, &evidence.driver)
        && *wanted != driver.version
    {
        outcome.find(Verdict::Fail, Remedy::SetUp, format!("driver {} where the image has {wanted}", driver.version));
    }
    for (reading, what) in [
        (Reading::Mig, "MIG is on: the gate measures whole GPUs; turn it off, or hand the instances out yourself"),
        (Reading::ConfidentialComputing, "confidential computing is on: the limits do not hold for it"),
    ] {
        if judged.read(&mut outcome, &judged.gpu.before, reading, true).is_some_and(|value| value != 0) {
            outcome.find(Verdict::Unmeasured, Remedy::SetUp, what);
        }
    }
    outcome
}
