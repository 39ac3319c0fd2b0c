//! One GPU through the CUDA driver, as little as the gate needs, safe to use. Whatever is wrong ends as [`Unseen`].

#![allow(unsafe_code)]
// SAFETY (of every block below): calls of the CUDA driver take handles that this module made and keeps alive, of the context
// that is current on the only thread that uses it; sizes are those of the allocations. What a kernel does to memory is
// bounded by the lengths that it is given.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use health::gate::{Look, Unseen};
use health::kernel_log::PciAddress;

/// PTX for GPUs from Turing on, and from Ampere on.
const TURING: &str = include_str!("../../kernels/gate_75.ptx");
const AMPERE: &str = include_str!("../../kernels/gate_80.ptx");

/// An error of the driver, as what could not be seen.
pub fn unseen(doing: &'static str) -> impl Fn(DriverError) -> Unseen {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE | sys::CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => Unseen::GpuLost,
        sys::CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            Unseen::NoDriver("CUDA's library and the module are of different versions: reboot after the upgrade".into())
        }
        sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            Unseen::NoDriver("it is older than 520, which the kernels need".into())
        }
        _ => {
            let name = error.error_name().ok().map(|n| n.to_string_lossy().into_owned());
            Unseen::Error(format!("{doing}: {}", name.unwrap_or_else(|| format!("{:?}", error.0))))
        }
    }
}

/// Starts CUDA in this process.
///
/// # Errors
/// There is no driver.
pub fn start() -> Look<()> {
    // Without the library any call would panic.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unseen::NoDriver("libcuda.so.1 is not there: install NVIDIA's driver".into()));
    }
    result::init().map_err(unseen("start CUDA"))
}

/// A GPU with a context and the kernels.
#[derive(Debug)]
pub struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: Option<sys::CUmodule>,
    /// Multiprocessors.
    pub processors: u32,
}

/// Memory of a GPU. Freed when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    /// Its address.
    pub at: sys::CUdeviceptr,
    /// Its length, bytes.
    pub bytes: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // In a context that is broken nothing can be freed; the process ends soon, and the driver frees all.
        let _ = unsafe { result::free_sync(self.at) };
    }
}

/// Pinned memory of the host. Freed when it is dropped.
#[derive(Debug)]
pub struct Pinned {
    at: *mut c_void,
    bytes: usize,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = unsafe { result::free_host(self.at) };
    }
}

impl Pinned {
    /// Takes it.
    ///
    /// # Errors
    /// The host has not so much that can be pinned.
    pub fn new(bytes: usize) -> Look<Self> {
        let at = unsafe { result::malloc_host(bytes, 0) }.map_err(unseen("pin host memory"))?;
        Ok(Self { at, bytes })
    }

    /// Its words.
    pub fn words(&mut self) -> &mut [u32] {
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.bytes / 4) }
    }
}

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// 64 bits, addresses too.
    Long(u64),
    /// 32 bits.
    Int(u32),
}

/// How often, and by how many threads, a kernel runs.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    /// Blocks.
    pub blocks: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Shared memory of a block, bytes.
    pub shared_bytes: u32,
}

/// A function of the kernels.
#[derive(Debug, Clone, Copy)]
pub struct Kernel(sys::CUfunction);

impl Gpu {
    /// Makes the context of the GPU at an address.
    ///
    /// # Errors
    /// It is not there, or does not start.
    pub fn open(address: PciAddress) -> Look<Self> {
        let name = CString::new(address.to_string()).map_err(|e| Unseen::Error(e.to_string()))?;
        let mut device = 0;
        let found = unsafe { sys::cuDeviceGetByPCIBusId(&mut device, name.as_ptr()) }.result();
        found.map_err(unseen("find the GPU"))?;
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(unseen("make a context"))?;
        let mut gpu = Self { device, context, module: None, processors: 0 };
        gpu.use_here()?;
        gpu.processors = gpu.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        Ok(gpu)
    }

    /// Makes it the one that calls are about.
    ///
    /// # Errors
    /// Its context is broken.
    pub fn use_here(&self) -> Look<()> {
        unsafe { result::ctx::set_current(self.context) }.map_err(unseen("use the context"))
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> Look<u32> {
        let value = unsafe { result::device::get_attribute(self.device, which) }.map_err(unseen("ask the GPU"))?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Whether its memory and another's are reachable from each other; makes it so where they are.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn reach(&self, other: &Self) -> Look<bool> {
        let mut can = 0;
        let asked = unsafe { sys::cuDeviceCanAccessPeer(&mut can, self.device, other.device) }.result();
        asked.map_err(unseen("ask for peers"))?;
        if can == 0 {
            return Ok(false);
        }
        self.use_here()?;
        let code = unsafe { sys::cuCtxEnablePeerAccess(other.context, 0) };
        match code {
            sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => Ok(true),
            code => code.result().map(|()| true).map_err(unseen("reach the peer")),
        }
    }

    /// Loads the kernels, which the driver compiles for this GPU.
    ///
    /// # Errors
    /// The driver is too old for them, or the GPU.
    pub fn load(&mut self) -> Look<()> {
        let major = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let ptx = match major * 10 + minor {
            80.. => AMPERE,
            75.. => TURING,
            _ => return Err(Unseen::NotSupported),
        };
        let text = CString::new(ptx).map_err(|e| Unseen::Error(e.to_string()))?;
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
        self.module = Some(module.map_err(unseen("load the kernels"))?);
        Ok(())
    }

    /// A kernel by its name; `shared_bytes` is how much it may take of a processor's shared memory.
    ///
    /// # Errors
    /// The kernels are not loaded, or have none of that name.
    pub fn kernel(&self, name: &str, shared_bytes: u32) -> Look<Kernel> {
        let module = self.module.ok_or_else(|| Unseen::Error("the kernels are not loaded".into()))?;
        let name = CString::new(name).map_err(|e| Unseen::Error(e.to_string()))?;
        let function = unsafe { result::module::get_function(module, name) }.map_err(unseen("find a kernel"))?;
        if shared_bytes > 48 << 10 {
            let which = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = unsafe { sys::cuFuncSetAttribute(function, which, shared_bytes.cast_signed()) }.result();
            set.map_err(unseen("take shared memory"))?;
        }
        Ok(Kernel(function))
    }

    /// Whether it is of Ampere or later, for which the product takes more shared memory.
    ///
    /// # Errors
    /// The GPU does not answer.
    pub fn is_ampere(&self) -> Look<bool> {
        Ok(self.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? >= 8)
    }

    /// Starts a kernel.
    ///
    /// # Errors
    /// The GPU refuses; faults inside it show at the next [`wait`](Self::wait).
    pub fn launch(&self, kernel: Kernel, grid: Grid, args: &[Arg]) -> Look<()> {
        let mut words: Vec<u64> = args
            .iter()
            .map(|a| match *a {
                Arg::Long(v) => v,
                // The lower half comes first in memory.
                Arg::Int(v) => v.into(),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|w| std::ptr::from_mut(w).cast()).collect();
        let (blocks, threads) = ((grid.blocks, 1, 1), (grid.threads, 1, 1));
        let stream = std::ptr::null_mut();
        unsafe { result::launch_kernel(kernel.0, blocks, threads, grid.shared_bytes, stream, &mut pointers) }
            .map_err(unseen("start a kernel"))
    }

    /// Takes memory.
    ///
    /// # Errors
    /// There is not so much.
    pub fn take(&self, bytes: usize) -> Look<Buffer> {
        let at = unsafe { result::malloc_sync(bytes) }.map_err(unseen("take memory"))?;
        Ok(Buffer { at, bytes })
    }

    /// Memory that is not in use, bytes.
    ///
    /// # Errors
    /// The GPU does not answer.
    pub fn free_bytes(&self) -> Look<usize> {
        result::mem_get_info().map(|(free, _)| free).map_err(unseen("ask for free memory"))
    }

    /// Waits until all is done.
    ///
    /// # Errors
    /// Something that was started failed.
    pub fn wait(&self) -> Look<()> {
        result::ctx::synchronize().map_err(unseen("run a kernel"))
    }

    /// Seconds that the GPU takes for what `work` starts.
    ///
    /// # Errors
    /// Of `work`, or of the GPU.
    pub fn time(&self, work: impl FnOnce() -> Look<()>) -> Look<f64> {
        let timing = unseen("take the time");
        let stream = std::ptr::null_mut();
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(&timing);
        let (start, end) = (event()?, event()?);
        unsafe { result::event::record(start, stream) }.map_err(&timing)?;
        work()?;
        unsafe { result::event::record(end, stream) }.map_err(&timing)?;
        unsafe { result::event::synchronize(end) }.map_err(unseen("run a kernel"))?;
        let ms = unsafe { result::event::elapsed(start, end) }.map_err(&timing)?;
        for event in [start, end] {
            unsafe { result::event::destroy(event) }.map_err(&timing)?;
        }
        Ok(f64::from(ms) / 1e3)
    }

    /// Copies within the GPU.
    ///
    /// # Errors
    /// The GPU refuses.
    pub fn copy_within(&self, from: &Buffer, to: &Buffer, bytes: usize) -> Look<()> {
        assert!(bytes <= from.bytes && bytes <= to.bytes, "a copy stays within its buffers");
        unsafe { result::memcpy_dtod_async(to.at, from.at, bytes, std::ptr::null_mut()) }.map_err(unseen("copy"))
    }

    /// Copies from the host. The pinned memory must not change before [`wait`](Self::wait).
    ///
    /// # Errors
    /// The GPU refuses.
    pub fn copy_in(&self, from: &Pinned, to: &Buffer) -> Look<()> {
        let bytes = from.bytes.min(to.bytes);
        unsafe { sys::cuMemcpyHtoDAsync_v2(to.at, from.at, bytes, std::ptr::null_mut()) }
            .result()
            .map_err(unseen("copy from the host"))
    }

    /// Copies to the host. The pinned memory must not be read before [`wait`](Self::wait).
    ///
    /// # Errors
    /// The GPU refuses.
    pub fn copy_out(&self, from: &Buffer, to: &mut Pinned) -> Look<()> {
        let bytes = to.bytes.min(from.bytes);
        unsafe { sys::cuMemcpyDtoHAsync_v2(to.at, from.at, bytes, std::ptr::null_mut()) }
            .result()
            .map_err(unseen("copy to the host"))
    }

    /// Copies to another GPU.
    ///
    /// # Errors
    /// A GPU refuses.
    pub fn copy_to(&self, from: &Buffer, other: &Self, to: &Buffer) -> Look<()> {
        let bytes = from.bytes.min(to.bytes);
        let stream = std::ptr::null_mut();
        unsafe { result::memcpy_peer_async(other.context, to.at, self.context, from.at, bytes, stream) }
            .map_err(unseen("copy to the peer"))
    }

    /// Writes a few words, and waits.
    ///
    /// # Errors
    /// The GPU refuses.
    pub fn write(&self, to: &Buffer, words: &[u64]) -> Look<()> {
        assert!(words.len() * 8 <= to.bytes, "what is written fits");
        unsafe { result::memcpy_htod_sync(to.at, words) }.map_err(unseen("write"))
    }

    /// Reads a few words, waiting for what was started.
    ///
    /// # Errors
    /// Something that was started failed.
    pub fn read(&self, from: &Buffer, words: usize) -> Look<Vec<u64>> {
        assert!(words * 8 <= from.bytes, "what is read is there");
        let mut into = vec![0; words];
        unsafe { result::memcpy_dtoh_sync(&mut into, from.at) }.map_err(unseen("read"))?;
        Ok(into)
    }
}
