//! What was measured by doing it.

use fleet::Remedy;

use super::evidence::{Copies, Evidence, Look, Unseen};
use super::judged::Judged;
use super::limits::Limits;
use super::reading::Reading;
use super::report::{Bound, Check, Number, Outcome};
use crate::verdict::Verdict;

/// Shares of a model's memory: what must be tested, and what may be held by the driver.
const MEMORY_SHARE: f64 = 0.90;
/// Products that must be compared at least.
const REPEATS_MIN: u32 = 64;

/// What was seen, or the check is unmeasured.
fn seen<'a, T>(outcome: &mut Outcome, look: &'a Look<T>) -> Option<&'a T> {
    match look {
        Ok(seen) => Some(seen),
        Err(why) => {
            let (verdict, mend) = match why {
                // It was there when the gate began.
                Unseen::GpuLost => (Verdict::Fail, Remedy::Replace),
                Unseen::Stuck { .. } => (Verdict::Unmeasured, Remedy::Reboot),
                _ => (Verdict::Unmeasured, Remedy::TryAgain),
            };
            outcome.find(verdict, mend, why.to_string());
            None
        }
    }
}

fn at_least(fail_below: Option<f64>) -> Bound {
    Bound { fail_below, ..Bound::default() }
}

pub(super) fn context(judged: &Judged<'_>) -> Outcome {
    let mut outcome = Outcome::pass(Check::Context, Some(judged.gpu.index));
    if let Some(context) = seen(&mut outcome, &judged.gpu.context) {
        for (name, seconds) in [
            ("init_s", context.init_s),
            ("create_s", context.create_s),
            ("load_s", context.load_s),
            ("answer_s", context.answer_s),
            ("tries", f64::from(context.tries)),
        ] {
            outcome.numbers.push(Number::of(name, seconds));
        }
    }
    outcome
}

pub(super) fn memory(judged: &Judged<'_>) -> Outcome {
    let mut outcome = Outcome::pass(Check::Memory, Some(judged.gpu.index));
    let whole = judged.model.and_then(|m| m.memory_mib);
    if let Some(total) = whole
        && let Some(Ok(told)) = judged.gpu.before.get(&Reading::MemoryTotal)
        && (*told as f64) < total * 0.98
    {
        outcome.find(Verdict::Fail, Remedy::Replace, format!("it has {told} MiB where its model has {total:.0}"));
    }
    let Some(memory) = seen(&mut outcome, &judged.gpu.memory) else { return outcome };
    if memory.bad_words > 0 {
        let first = memory.first_bad_byte.map_or_else(String::new, |b| format!(", the first at byte {b:#x}"));
        let what =
            format!("{} words did not hold what was written{first} (bits {:#010x})", memory.bad_words, memory.bad_bits);
        outcome.find(Verdict::Fail, Remedy::Replace, what);
    }
    if memory.patterns < 8 {
        outcome.find(
            Verdict::Unmeasured,
            Remedy::TryAgain,
            format!("only {} of 8 patterns were tested", memory.patterns),
        );
    }
    let tested_mib = memory.tested_bytes as f64 / f64::from(1 << 20);
    if let Some(total) = whole
        && tested_mib < total * MEMORY_SHARE
    {
        let held = match judged.gpu.before.get(&Reading::Processes) {
            Some(Ok(n)) if *n > 0 => format!(": {n} processes hold memory; end them"),
            _ => ": something holds the rest".to_owned(),
        };
        outcome.find(
            Verdict::Unmeasured,
            Remedy::SetUp,
            format!("only {tested_mib:.0} of {total:.0} MiB could be tested{held}"),
        );
    }
    outcome.numbers.extend([
        Number::of("tested_mib", tested_mib.round()),
        Number::of("write_gbps", memory.write_gbps),
        Number::of("verify_gbps", memory.verify_gbps),
        Number::of("seconds", memory.seconds),
    ]);
    outcome
}

pub(super) fn bandwidth(judged: &Judged<'_>) -> Outcome {
    let mut outcome = Outcome::pass(Check::MemoryBandwidth, Some(judged.gpu.index));
    if let Some(bandwidth) = seen(&mut outcome, &judged.gpu.bandwidth) {
        let bound = judged.limits.raised("read_gbps", judged.model.map(super::Model::read).unwrap_or_default());
        outcome.measure("read_gbps", bandwidth.read_gbps, bound, Remedy::Replace);
        outcome.numbers.push(Number::of("copy_gbps", bandwidth.copy_gbps));
        outcome.numbers.push(Number::of("driver_copy_gbps", bandwidth.driver_copy_gbps));
    }
    outcome
}

pub(super) fn host_copies(judged: &Judged<'_>) -> Outcome {
    let mut outcome = Outcome::pass(Check::HostCopies, Some(judged.gpu.index));
    if let Some(alone) = seen(&mut outcome, &judged.gpu.copies_alone) {
        let link = link_of(alone);
        if let (Some((generation, width)), Some(model)) = (link, judged.model) {
            let least = (model.pcie_gen_min.unwrap_or(0), model.pcie_width_min.unwrap_or(0));
            if generation < least.0 || width < least.1 {
                let what = format!(
                    "the link is of generation {generation} with {width} lanes, where {} and {} are the least",
                    least.0, least.1
                );
                outcome.find(Verdict::Fail, Remedy::Replace, what);
            }
            outcome.numbers.push(Number::of("pcie_gen", f64::from(generation)));
            outcome.numbers.push(Number::of("pcie_width", f64::from(width)));
        }
        let bound = judged.model.map(|m| m.copy(link)).unwrap_or_default();
        for (name, rate) in [("h2d_gbps", alone.rates.h2d_gbps), ("d2h_gbps", alone.rates.d2h_gbps)] {
            outcome.measure(name, rate, judged.limits.raised(name, bound), Remedy::Replace);
        }
        spoiled(&mut outcome, alone);
    }
    if let Some(together) = seen(&mut outcome, &judged.gpu.copies_together) {
        // GPUs may share a switch: half of what one alone must reach, so that a switch that is broken shows.
        let bound = judged.model.map(|m| m.copy(link_of(together))).unwrap_or_default();
        let half = at_least(bound.fail_below.map(|l| l / 2.0));
        outcome.measure("h2d_together_gbps", together.rates.h2d_gbps, half, Remedy::Replace);
        outcome.measure("d2h_together_gbps", together.rates.d2h_gbps, half, Remedy::Replace);
        spoiled(&mut outcome, together);
    }
    outcome
}

fn spoiled(outcome: &mut Outcome, copies: &Copies) {
    if copies.rates.bad_words > 0 {
        let what = format!("{} words came back other than they went", copies.rates.bad_words);
        outcome.find(Verdict::Fail, Remedy::Replace, what);
    }
}

/// Generation and lanes under load, where the host tells them.
fn link_of(copies: &Copies) -> Option<(u32, u32)> {
    let read = |r: Reading| copies.link.get(&r)?.as_ref().ok().and_then(|v| u32::try_from(*v).ok()).filter(|v| *v > 0);
    read(Reading::PcieGen).zip(read(Reading::PcieWidth))
}

pub(super) fn products(judged: &Judged<'_>) -> Outcome {
    let mut outcome = Outcome::pass(Check::Products, Some(judged.gpu.index));
    if let Some(products) = seen(&mut outcome, &judged.gpu.products) {
        let tensor = judged.limits.raised("tensor_tflops", judged.model.map(super::Model::tensor).unwrap_or_default());
        outcome.measure("tensor_tflops", products.tensor_tflops, tensor, Remedy::Replace);
        let fp32 = at_least(judged.model.and_then(|m| m.fp32_fail_gflops));
        let fp32 = judged.limits.raised("fp32_gflops", fp32);
        outcome.measure("fp32_gflops", products.fp32_gflops, fp32, Remedy::Replace);
    }
    outcome
}

pub(super) fn repeatability(judged: &Judged<'_>, evidence: &Evidence) -> Outcome {
    let mut outcome = Outcome::pass(Check::Repeatability, Some(judged.gpu.index));
    let Some(products) = seen(&mut outcome, &judged.gpu.products) else { return outcome };
    outcome.numbers.push(Number::of("repeats", f64::from(products.repeats)));
    outcome.numbers.push(Number::of("fp32_repeats", f64::from(products.fp32_repeats)));
    if products.odd_count > 0 {
        let what = format!(
            "{} of {} products had other bits than the first (repeats {:?})",
            products.odd_count, products.repeats, products.odd
        );
        outcome.find(Verdict::Fail, Remedy::Replace, what);
    }
    if products.fp32_odd_count > 0 {
        let what = format!(
            "{} of {} runs of multiply-adds had other bits than the first",
            products.fp32_odd_count, products.fp32_repeats
        );
        outcome.find(Verdict::Fail, Remedy::Replace, what);
    }
    if products.repeats < REPEATS_MIN || products.fp32_repeats < 2 {
        let what = format!("only {} products were compared, {REPEATS_MIN} are needed", products.repeats);
        outcome.find(Verdict::Unmeasured, Remedy::TryAgain, what);
    }
    let of_its_model = |g: &&super::Gpu| match (&g.identity, &judged.gpu.identity) {
        (Ok(theirs), Ok(mine)) => theirs.pci_device == mine.pci_device,
        _ => false,
    };
    let made: Vec<_> = evidence.gpus.iter().filter(of_its_model).filter_map(|g| g.products.as_ref().ok()).collect();
    let agree =
        made.iter().filter(|p| (&p.digest, &p.fp32_digest) == (&products.digest, &products.fp32_digest)).count();
    if agree < made.len() {
        // Who is right is not known of two; of more, the larger half is.
        let blamed = agree * 2 <= made.len();
        if blamed {
            let what = format!("its products have other bits than those of {} GPUs beside it", made.len() - agree);
            outcome.find(Verdict::Fail, Remedy::Replace, what);
        }
    }
    outcome
}

pub(super) fn peers(evidence: &Evidence, limits: &Limits) -> Outcome {
    let mut outcome = Outcome::pass(Check::PeerCopies, None);
    let Some(peers) = seen(&mut outcome, &evidence.peers) else { return outcome };
    let models: Vec<_> = evidence
        .gpus
        .iter()
        .map(|g| (g.index, g.identity.as_ref().ok().and_then(|i| limits.model(&i.pci_device))))
        .collect();
    if models.is_empty() {
        outcome.find(Verdict::Unmeasured, Remedy::SetUp, "no GPU to copy from");
    }
    let needed = if models.len() > 1 { models.len() } else { 0 };
    if peers.len() < needed {
        let what = format!("{} of {needed} copies of the ring were made", peers.len());
        outcome.find(Verdict::Unmeasured, Remedy::TryAgain, what);
    }
    for peer in peers {
        let fail_below =
            models.iter().find(|(i, _)| *i == peer.from).and_then(|(_, m)| m.and_then(|m| m.peer_fail_gbps));
        if fail_below.is_some() && !peer.direct {
            let what = format!("GPU {} does not reach GPU {} directly", peer.from, peer.to);
            outcome.find(Verdict::Fail, Remedy::Reboot, what);
        }
        let bound = limits.raised("peer_gbps", at_least(fail_below));
        let before = outcome.findings.len();
        outcome.measure("peer_gbps", peer.gbps, bound, Remedy::Replace);
        for finding in &mut outcome.findings[before..] {
            *finding = format!("GPU {} to {}: {finding}", peer.from, peer.to);
        }
        if peer.bad_words > 0 {
            let what =
                format!("{} words arrived at GPU {} other than GPU {} sent them", peer.bad_words, peer.to, peer.from);
            outcome.find(Verdict::Fail, Remedy::Replace, what);
        }
    }
    outcome
}
