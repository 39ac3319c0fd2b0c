//! Areas: memory of one GPU by handles, mapped in one piece in this process.

#![allow(unsafe_code)]
// SAFETY (of every block below): addresses, sizes and handles are those that the driver gave for this area, which alone uses them.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use cudarc::driver::sys;
use health::gate::{Look, Unseen};

use super::Gpu;
use crate::gpu::cuda::unseen;

const POSIX_FD: sys::CUmemAllocationHandleType =
    sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
/// Most GPUs of a host.
const GPUS_MAX: i32 = 64;

/// All GPUs of the host, each with a context and a stream for copies.
pub(super) fn gpus() -> Look<Vec<Gpu>> {
    let mut count = 0;
    unsafe { sys::cuDeviceGetCount(&raw mut count) }.result().map_err(unseen("count GPUs"))?;
    let of = |number: i32| -> Look<Gpu> {
        let (mut device, mut uuid, mut context) = (0, sys::CUuuid { bytes: [0; 16] }, std::ptr::null_mut());
        let mut stream = std::ptr::null_mut();
        unsafe {
            sys::cuDeviceGet(&raw mut device, number).result().map_err(unseen("find the GPU"))?;
            sys::cuDeviceGetUuid_v2(&raw mut uuid, device).result().map_err(unseen("ask for its identity"))?;
            let retained = sys::cuDevicePrimaryCtxRetain(&raw mut context, device);
            retained.result().map_err(unseen("make a context"))?;
            sys::cuCtxSetCurrent(context).result().map_err(unseen("use the context"))?;
            let kind = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            sys::cuStreamCreate(&raw mut stream, kind).result().map_err(unseen("make a stream"))?;
        }
        Ok(Gpu { uuid: uuid.bytes.map(|byte| byte as u8), device, context, stream })
    };
    (0..count.min(GPUS_MAX)).map(of).collect()
}

impl Gpu {
    pub(super) fn use_here(&self) -> Look<()> {
        unsafe { sys::cuCtxSetCurrent(self.context) }.result().map_err(unseen("use the context"))
    }

    fn location(&self) -> sys::CUmemLocation {
        sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: self.device }
    }
}

/// An area. All of it is let go of when it is dropped; what another process has of it stays that one's.
#[derive(Debug)]
pub(super) struct Area {
    pub(super) gpu: Gpu,
    pub(super) base: sys::CUdeviceptr,
    pub(super) bytes: u64,
    /// Handles, with where they are mapped and the bytes of each.
    segments: Vec<(u64, u64, sys::CUmemGenericAllocationHandle)>,
}

impl Area {
    fn reserve(gpu: Gpu, bytes: u64) -> Look<Self> {
        gpu.use_here()?;
        let mut base = 0;
        let reserved = unsafe { sys::cuMemAddressReserve(&raw mut base, bytes as usize, 0, 0, 0) };
        reserved.result().map_err(unseen("reserve addresses"))?;
        Ok(Self { gpu, base, bytes, segments: Vec::new() })
    }

    /// Makes memory of segments of these bytes.
    pub(super) fn create(gpu: Gpu, segments: &[u64]) -> Look<Self> {
        let mut area = Self::reserve(gpu, total(segments.iter().copied())?)?;
        let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
        properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.requestedHandleTypes = POSIX_FD;
        properties.location = gpu.location();
        // As the library allocates: what network adapters could read they can read again.
        let rdma = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED;
        let mut can = 0;
        let asked = unsafe { sys::cuDeviceGetAttribute(&raw mut can, rdma, gpu.device) };
        asked.result().map_err(unseen("ask the GPU"))?;
        properties.allocFlags.gpuDirectRDMACapable = u8::from(can != 0);
        let mut at = 0;
        for bytes in segments {
            let mut handle = 0;
            let made = unsafe { sys::cuMemCreate(&raw mut handle, *bytes as usize, &raw const properties, 0) };
            made.result().map_err(unseen("take memory"))?;
            area.map(at, *bytes, handle)?;
            at += bytes;
        }
        area.open()
    }

    /// Maps what a process handed over.
    pub(super) fn import(gpu: Gpu, segments: Vec<(u64, OwnedFd)>) -> Look<Self> {
        let mut area = Self::reserve(gpu, total(segments.iter().map(|(bytes, _)| *bytes))?)?;
        let mut at = 0;
        for (bytes, fd) in segments {
            let mut handle = 0;
            let number = fd.as_raw_fd() as usize as *mut std::ffi::c_void;
            let taken = unsafe { sys::cuMemImportFromShareableHandle(&raw mut handle, number, POSIX_FD) };
            taken.result().map_err(unseen("take memory over"))?;
            area.map(at, bytes, handle)?;
            at += bytes;
        }
        area.open()
    }

    fn map(&mut self, at: u64, bytes: u64, handle: sys::CUmemGenericAllocationHandle) -> Look<()> {
        let mapped = unsafe { sys::cuMemMap(self.base + at, bytes as usize, 0, handle, 0) };
        if let Err(error) = mapped.result() {
            unsafe { sys::cuMemRelease(handle) };
            return Err(unseen("map memory")(error));
        }
        self.segments.push((at, bytes, handle));
        Ok(())
    }

    /// Lets its GPU read and write all of it.
    fn open(self) -> Look<Self> {
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location: self.gpu.location(), flags };
        let set = unsafe { sys::cuMemSetAccess(self.base, self.bytes as usize, &raw const access, 1) };
        set.result().map_err(unseen("open memory"))?;
        Ok(self)
    }

    /// How many segments it has.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// The handle of a segment, for another process.
    pub(super) fn handle(&self, n: usize) -> Look<OwnedFd> {
        let (_, _, handle) = self.segments.get(n).ok_or_else(|| Unseen::Error("no such segment".into()))?;
        let mut fd: i32 = -1;
        let given = unsafe { sys::cuMemExportToShareableHandle((&raw mut fd).cast(), *handle, POSIX_FD, 0) };
        given.result().map_err(unseen("hand memory over"))?;
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // A driver that refuses frees all when this process ends.
        unsafe {
            for (at, bytes, handle) in &self.segments {
                sys::cuMemUnmap(self.base + at, *bytes as usize);
                sys::cuMemRelease(*handle);
            }
            sys::cuMemAddressFree(self.base, self.bytes as usize);
        }
    }
}

fn total(mut each: impl Iterator<Item = u64>) -> Look<u64> {
    let all = each.try_fold(0_u64, u64::checked_add).filter(|bytes| *bytes > 0);
    all.ok_or_else(|| Unseen::Error("an area without memory".into()))
}
