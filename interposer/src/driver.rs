//! The driver's own functions.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::symbols;

/// `CUresult`.
pub type Code = c_uint;
/// `CUcontext`, `CUstream`: what the driver has behind them is its own affair.
pub type Opaque = *mut c_void;

/// `CUDA_SUCCESS` and the others that mean something here.
pub const SUCCESS: Code = 0;
pub const INVALID_VALUE: Code = 1;
pub const OUT_OF_MEMORY: Code = 2;
pub const NOT_INITIALIZED: Code = 3;
pub const NOT_SUPPORTED: Code = 801;
/// `CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED` and what follows it.
pub const CAPTURE: std::ops::RangeInclusive<Code> = 900..=908;

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Location {
    /// `CU_MEM_LOCATION_TYPE_DEVICE`.
    kind: c_uint,
    device: c_int,
}

impl Location {
    pub const fn on(device: c_int) -> Self {
        Self { kind: 1, device }
    }
}

/// `CUmemAllocationProp`.
#[repr(C)]
pub struct Properties {
    /// `CU_MEM_ALLOCATION_TYPE_PINNED`.
    kind: c_uint,
    /// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
    handle_types: c_uint,
    location: Location,
    windows: *mut c_void,
    compression: u8,
    /// What network adapters may read, where the GPU can do that.
    direct_rdma: u8,
    usage: u16,
    reserved: [u8; 4],
}

impl Properties {
    pub fn bulk(device: c_int, direct_rdma: bool) -> Self {
        let windows = std::ptr::null_mut();
        let (location, direct_rdma) = (Location::on(device), u8::from(direct_rdma));
        Self { kind: 1, handle_types: 1, location, windows, compression: 0, direct_rdma, usage: 0, reserved: [0; 4] }
    }
}

/// `CUmemAccessDesc`: reading and writing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Access {
    location: Location,
    flags: c_uint,
}

impl Access {
    pub fn of(device: c_int) -> Self {
        Self { location: Location::on(device), flags: 3 }
    }
}

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub const POSIX_FD: c_uint = 1;
/// `CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED`.
pub const DIRECT_RDMA: c_int = 110;

macro_rules! functions {
    ($($name:ident: $symbol:literal($($argument:ty),*);)*) => {
        /// The functions that this library calls.
        pub struct Driver { $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)* }

        impl Driver {
            fn load() -> Option<Self> {
                let library = symbols::loaded(c"libcuda.so.1")?;
                Some(Self { $($name: {
                    let found = symbols::real(library, $symbol);
                    if found.is_null() {
                        return None;
                    }
                    unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> Code>(found) }
                },)* })
            }
        }
    };
}

functions! {
    init: c"cuInit"(c_uint);
    device_count: c"cuDeviceGetCount"(*mut c_int);
    device_get: c"cuDeviceGet"(*mut c_int, c_int);
    device_uuid: c"cuDeviceGetUuid"(*mut [u8; 16], c_int);
    device_attribute: c"cuDeviceGetAttribute"(*mut c_int, c_int, c_int);
    current_context: c"cuCtxGetCurrent"(*mut Opaque);
    use_context: c"cuCtxSetCurrent"(Opaque);
    current_device: c"cuCtxGetDevice"(*mut c_int);
    synchronize: c"cuCtxSynchronize"();
    stream_synchronize: c"cuStreamSynchronize"(Opaque);
    destroy_context: c"cuCtxDestroy_v2"(Opaque);
    reset_primary: c"cuDevicePrimaryCtxReset_v2"(c_int);
    retain_primary: c"cuDevicePrimaryCtxRetain"(*mut Opaque, c_int);
    release_primary: c"cuDevicePrimaryCtxRelease_v2"(c_int);
    primary_state: c"cuDevicePrimaryCtxGetState"(c_int, *mut c_uint, *mut c_int);
    alloc: c"cuMemAlloc_v2"(*mut u64, usize);
    alloc_pitch: c"cuMemAllocPitch_v2"(*mut u64, *mut usize, usize, usize, c_uint);
    alloc_managed: c"cuMemAllocManaged"(*mut u64, usize, c_uint);
    free: c"cuMemFree_v2"(u64);
    free_async: c"cuMemFreeAsync"(u64, Opaque);
    address_range: c"cuMemGetAddressRange_v2"(*mut u64, *mut usize, u64);
    reserve: c"cuMemAddressReserve"(*mut u64, usize, usize, u64, u64);
    unreserve: c"cuMemAddressFree"(u64, usize);
    create: c"cuMemCreate"(*mut u64, usize, *const Properties, u64);
    release: c"cuMemRelease"(u64);
    map: c"cuMemMap"(u64, usize, usize, u64, u64);
    unmap: c"cuMemUnmap"(u64, usize);
    set_access: c"cuMemSetAccess"(u64, usize, *const Access, usize);
    granularity: c"cuMemGetAllocationGranularity"(*mut usize, *const Properties, c_uint);
    export: c"cuMemExportToShareableHandle"(*mut c_int, u64, c_uint, u64);
    import: c"cuMemImportFromShareableHandle"(*mut u64, *mut c_void, c_uint);
    enable_peer: c"cuCtxEnablePeerAccess"(Opaque, c_uint);
    disable_peer: c"cuCtxDisablePeerAccess"(Opaque);
    get_ipc: c"cuIpcGetMemHandle"(*mut IpcHandle, u64);
    open_ipc: c"cuIpcOpenMemHandle_v2"(*mut u64, IpcHandle, c_uint);
    close_ipc: c"cuIpcCloseMemHandle"(u64);
}

/// `CUipcMemHandle`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IpcHandle(pub [c_char; 64]);

/// The driver, where the process has loaded one that has all of these.
pub fn get() -> Option<&'static Driver> {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    // A process that has none yet may load it later.
    if DRIVER.get().is_none()
        && let Some(driver) = Driver::load()
    {
        drop(DRIVER.set(driver));
    }
    DRIVER.get()
}

/// Looks a function of the driver up that only some have.
pub fn optional(name: &CStr) -> *mut c_void {
    symbols::loaded(c"libcuda.so.1").map_or(std::ptr::null_mut(), |library| symbols::real(library, name))
}
