//! What stands in for CUDA's driver library where there is no GPU: device memory is memory files, which are handed from process
//! to process as the driver's handles are, at the addresses that the driver's calls give. Checkpoints are names in a folder
//! (`CUDA_STAND_IN_FOLDER`), by the number that a process has in its own namespace; they hold nothing, since there is nothing on a
//! GPU. Like the driver, Checkpoint takes a process that has access between GPUs, and Restore refuses it.
//!
//! `CUDA_STAND_IN_GPUS` says how many GPUs there are, `CUDA_STAND_IN_FAIL` which function fails (`cuMemMap=2`).

#![allow(unsafe_code)]
// SAFETY (of every block below): callers are this project's tests and pass pointers that live as long as a call; addresses of
// memory are those that this library mapped.
#![allow(clippy::undocumented_unsafe_blocks)]

mod checkpoints;
mod memory;

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Mutex;

pub(crate) type Code = c_uint;
pub(crate) const OK: Code = 0;
pub(crate) const INVALID: Code = 1;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}
/// Contexts are numbers: those of GPUs, from this one on.
const CONTEXTS: usize = 0x1000;

static PEERS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

pub(crate) fn gpus() -> c_int {
    std::env::var("CUDA_STAND_IN_GPUS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What a function is to return in place of what it would.
pub(crate) fn fails(function: &str) -> Option<Code> {
    let text = std::env::var("CUDA_STAND_IN_FAIL").ok()?;
    let (name, code) = text.split_once('=')?;
    if name == function { code.parse().ok() } else { None }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: c_uint) -> Code {
    checkpoints::uses();
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Code {
    unsafe { *version = 13000 };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: Code, name: *mut *const c_char) -> Code {
    let known = match code {
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => c"CUDA_ERROR_UNKNOWN",
    };
    unsafe { *name = known.as_ptr() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Code {
    unsafe { *count = gpus() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, number: c_int) -> Code {
    unsafe { *device = number };
    if (0..gpus()).contains(&number) { OK } else { INVALID }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) -> Code {
    unsafe { *uuid = [device as u8 + 1; 16] };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) -> Code {
    unsafe { cuDeviceGetUuid(uuid, device) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, _which: c_int, _device: c_int) -> Code {
    unsafe { *value = 0 };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: c_int) -> Code {
    unsafe { *context = CONTEXTS + device as usize };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Code {
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxGetState(_device: c_int, flags: *mut c_uint, active: *mut c_int) -> Code {
    unsafe { (*flags, *active) = (0, 1) };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxReset_v2(_device: c_int) -> Code {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(_context: usize) -> Code {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> Code {
    CURRENT.set(context);
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(context: *mut usize) -> Code {
    unsafe { *context = CURRENT.get() };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetDevice(device: *mut c_int) -> Code {
    match CURRENT.get().checked_sub(CONTEXTS) {
        Some(number) => {
            unsafe { *device = number as c_int };
            OK
        }
        None => 201,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> Code {
    fails("cuCtxSynchronize").unwrap_or(OK)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(_stream: usize) -> Code {
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut usize, _flags: c_uint) -> Code {
    unsafe { *stream = 1 };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxEnablePeerAccess(peer: usize, _flags: c_uint) -> Code {
    let mut peers = PEERS.lock().expect("sound");
    let pair = (CURRENT.get(), peer);
    if peers.contains(&pair) {
        return 704;
    }
    peers.push(pair);
    checkpoints::peers(peers.len());
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDisablePeerAccess(peer: usize) -> Code {
    let mut peers = PEERS.lock().expect("sound");
    let before = peers.len();
    let pair = (CURRENT.get(), peer);
    peers.retain(|known| *known != pair);
    checkpoints::peers(peers.len());
    if peers.len() < before { OK } else { 705 }
}

#[repr(C)]
struct IpcHandle([u64; 8]);

#[unsafe(no_mangle)]
extern "C" fn cuIpcGetMemHandle(_handle: *mut IpcHandle, _address: u64) -> Code {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuIpcOpenMemHandle_v2(_address: *mut u64, _handle: IpcHandle, _flags: c_uint) -> Code {
    801
}

#[unsafe(no_mangle)]
extern "C" fn cuIpcCloseMemHandle(_address: u64) -> Code {
    OK
}

/// As CUDA's runtime finds functions.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    function: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    _status: *mut c_uint,
) -> Code {
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let known: [(&str, *mut c_void); 3] = [
        ("cuMemAlloc", memory::cuMemAlloc_v2 as *mut c_void),
        ("cuMemFree", memory::cuMemFree_v2 as *mut c_void),
        ("cuCtxEnablePeerAccess", cuCtxEnablePeerAccess as *mut c_void),
    ];
    match known.iter().find(|(known, _)| *known == name) {
        Some((_, found)) => {
            unsafe { *function = *found };
            OK
        }
        None => 500,
    }
}
