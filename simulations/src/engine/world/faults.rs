//! What breaks machines, and what the causes are.

use fleet::Cause;
use fleet::rng::Rng;

use super::super::SimError;
use super::World;

/// Hardware faults of GPUs that stopped training jobs of Llama 3 405B (arXiv 2407.21783, table 5): faulty GPUs, HBM3, SRAM;
/// with the Xid that says so (NVIDIA's Xid catalogue).
const FAULTS: [(&str, u32); 3] = [("xid:79", 148), ("xid:48", 72), ("xid:95", 19)];
/// Checks of the boot gate that fail, as often as each other.
const GATE_CHECKS: [&str; 5] = ["memory", "compute", "pcie", "nvlink", "ecc"];

/// What has broken a machine in service.
fn drawn(rng: &mut Rng) -> Cause {
    let all: u32 = FAULTS.iter().map(|f| f.1).sum();
    let mut place = rng.below(all as usize) as u32;
    let hit = FAULTS.iter().find(|(_, weight)| {
        let here = place < *weight;
        place = place.saturating_sub(*weight);
        here
    });
    Cause::condition(hit.map_or(FAULTS[0].0, |f| f.0))
}

impl World<'_> {
    /// A fault on a numbered server strikes the node in that place, if there are so many.
    pub(super) fn fault_on(&mut self, server: u32) -> Result<(), SimError> {
        let machine = self.machine_of.values().nth(server as usize).copied();
        let in_service = |m: &u32| self.machines[*m as usize].proven_ms.is_some();
        machine.filter(in_service).map_or(Ok(()), |m| self.breaks(m))
    }

    /// A machine breaks: its agent says so.
    pub(super) fn breaks(&mut self, machine: u32) -> Result<(), SimError> {
        let cause = drawn(&mut self.fault_rng);
        let node = self.machines[machine as usize].node;
        // One that is out already is no worse for it.
        if self.book.fault(node, cause, "a fault of its GPUs", self.book_ms()).is_ok() {
            self.out.counts.faults += u64::from(self.measured());
        }
        Ok(())
    }

    /// The check of the gate that a machine does not pass.
    pub(super) fn failed_check(&mut self) -> &'static str {
        GATE_CHECKS[self.fault_rng.below(GATE_CHECKS.len())]
    }
}
