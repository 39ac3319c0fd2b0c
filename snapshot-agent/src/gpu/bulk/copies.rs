//! Copies between areas and pinned memory: a thread for each GPU, so that all buses are busy at once.

#![allow(unsafe_code)]

use std::collections::BTreeMap;

use cudarc::driver::sys;
use health::gate::{Look, Unseen};

use super::{Begun, Bulk, Gpu, Run};
use crate::gpu::cuda::unseen;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// From a GPU.
    Out,
    /// To a GPU.
    In,
}

/// A copy by its addresses.
#[derive(Debug, Clone, Copy)]
struct Copy {
    device: sys::CUdeviceptr,
    /// None: zeros.
    host: Option<usize>,
    bytes: usize,
}

impl Bulk {
    /// Begins copies.
    pub(super) fn begin(&self, runs: &[Run], way: Way) -> Look<Begun> {
        let mut by_gpu: BTreeMap<usize, Vec<Copy>> = BTreeMap::new();
        for run in runs {
            let (gpu, copy) = self.checked(run).ok_or_else(|| Unseen::Error("a copy beyond its memory".into()))?;
            if copy.host.is_none() && way == Way::Out {
                return Err(Unseen::Error("zeros are not copied out".into()));
            }
            by_gpu.entry(gpu).or_default().push(copy);
        }
        let start = |(gpu, copies): (usize, Vec<Copy>)| {
            let gpu = self.gpus[gpu];
            std::thread::spawn(move || copy_all(gpu, &copies, way))
        };
        Ok(by_gpu.into_iter().map(start).collect())
    }

    /// A copy that stays within an area and pinned memory, with the number of its GPU.
    fn checked(&self, run: &Run) -> Option<(usize, Copy)> {
        let area = self.areas.get(run.area as usize)?;
        let within = |at: u64, all: u64| at.checked_add(run.bytes).is_some_and(|end| end <= all);
        if run.bytes == 0 || !within(run.at, area.bytes) {
            return None;
        }
        let host = match run.from {
            Some((number, from)) => {
                let pinned = self.pinned.get(number as usize).filter(|pinned| within(from, pinned.bytes))?;
                Some(pinned.base.as_ptr() as usize + from as usize)
            }
            None => None,
        };
        let gpu = self.gpus.iter().position(|gpu| gpu.uuid == area.gpu.uuid)?;
        Some((gpu, Copy { device: area.base + run.at, host, bytes: run.bytes as usize }))
    }
}

// SAFETY (of the blocks below): `checked` has seen that each stays within memory that is mapped and pinned, and what begins
// copies waits for them before it lets go of that.
#[allow(clippy::undocumented_unsafe_blocks)]
fn copy_all(gpu: Gpu, copies: &[Copy], way: Way) -> Look<()> {
    gpu.use_here()?;
    for copy in copies {
        let (device, bytes, stream) = (copy.device, copy.bytes, gpu.stream);
        let code = match (copy.host, way) {
            (None, _) => unsafe { sys::cuMemsetD8Async(device, 0, bytes, stream) },
            (Some(host), Way::In) => unsafe { sys::cuMemcpyHtoDAsync_v2(device, host as *const _, bytes, stream) },
            (Some(host), Way::Out) => unsafe { sys::cuMemcpyDtoHAsync_v2(host as *mut _, device, bytes, stream) },
        };
        code.result().map_err(unseen("copy"))?;
    }
    unsafe { sys::cuStreamSynchronize(gpu.stream) }.result().map_err(unseen("copy"))
}

/// Waits for copies.
pub(super) fn wait(begun: Begun) -> Look<()> {
    let joined = begun.into_iter().map(|thread| thread.join().map_err(|_| Unseen::Crashed("a copy".into())).flatten());
    joined.fold(Ok(()), Result::and)
}
