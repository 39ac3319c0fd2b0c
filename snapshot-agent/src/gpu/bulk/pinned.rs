//! Memory of the host that GPUs read and write themselves: a file of memory, which another process fills or reads.

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::ptr::NonNull;

use cudarc::driver::sys;
use health::gate::{Look, Unseen};
use rustix::mm::{MapFlags, ProtFlags};

use crate::gpu::cuda::unseen;

/// Pinned memory. It is let go of when it is dropped.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) base: NonNull<c_void>,
    pub(super) bytes: u64,
}

impl Pinned {
    pub(super) fn new(path: &str, bytes: u64) -> Look<Self> {
        let failed = |error: std::io::Error| Unseen::Error(format!("memory of the agent: {error}"));
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let (length, flags) = (bytes as usize, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address that the kernel chooses, of a file that the agent made as long.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, flags, MapFlags::SHARED, &file, 0) };
        let base = base.map_err(|error| failed(error.into()))?;
        let base = NonNull::new(base).ok_or_else(|| Unseen::Error("memory of the agent: none".into()))?;
        let pinned = Self { base, bytes };
        // SAFETY: the mapping is this one's own.
        let code = unsafe { sys::cuMemHostRegister_v2(base.as_ptr(), length, sys::CU_MEMHOSTREGISTER_PORTABLE) };
        code.result().map_err(unseen("pin memory"))?;
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own; copies from and to it are waited for before it goes.
        unsafe {
            sys::cuMemHostUnregister(self.base.as_ptr());
            let _ = rustix::mm::munmap(self.base.as_ptr(), self.bytes as usize);
        }
    }
}
