//! What a workload has that the driver's Restore would refuse, counted as it comes and goes.

use std::collections::BTreeSet;
use std::ffi::{c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use interposer_protocol::Hazards;

use crate::driver::{self, Code, IpcHandle, NOT_INITIALIZED, SUCCESS, optional};
use crate::nccl;

#[derive(Default)]
struct Known {
    ipc: BTreeSet<u64>,
    imported: BTreeSet<u64>,
    managed: BTreeSet<u64>,
    multicast: BTreeSet<u64>,
    /// Where memory of one of these is mapped: that outlives its handle.
    mapped: BTreeSet<u64>,
}

static KNOWN: Mutex<Known> = Mutex::new(Known {
    ipc: BTreeSet::new(),
    imported: BTreeSet::new(),
    managed: BTreeSet::new(),
    multicast: BTreeSet::new(),
    mapped: BTreeSet::new(),
});

fn known() -> MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All of them.
pub fn count() -> Hazards {
    let known = known();
    let of = |set: &BTreeSet<u64>| u32::try_from(set.len()).unwrap_or(u32::MAX);
    Hazards {
        ipc: of(&known.ipc),
        imported: of(&known.imported).saturating_add(of(&known.mapped)),
        managed: of(&known.managed),
        multicast: of(&known.multicast),
        communicators: nccl::count(),
    }
}

/// An address was freed.
pub fn freed(address: u64) {
    known().managed.remove(&address);
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemAllocManaged(address: *mut u64, bytes: usize, flags: c_uint) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let code = unsafe { (driver.alloc_managed)(address, bytes, flags) };
    if code == SUCCESS {
        known().managed.insert(unsafe { *address });
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuIpcOpenMemHandle_v2(address: *mut u64, handle: IpcHandle, flags: c_uint) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let code = unsafe { (driver.open_ipc)(address, handle, flags) };
    if code == SUCCESS {
        known().ipc.insert(unsafe { *address });
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuIpcCloseMemHandle(address: u64) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    known().ipc.remove(&address);
    unsafe { (driver.close_ipc)(address) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemImportFromShareableHandle(handle: *mut u64, from: *mut c_void, kind: c_uint) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let code = unsafe { (driver.import)(handle, from, kind) };
    if code == SUCCESS {
        known().imported.insert(unsafe { *handle });
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let code = unsafe { (driver.map)(address, bytes, offset, handle, flags) };
    let mut known = known();
    if code == SUCCESS && (known.imported.contains(&handle) || known.multicast.contains(&handle)) {
        known.mapped.insert(address);
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemUnmap(address: u64, bytes: usize) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    known().mapped.retain(|at| !(address..address.saturating_add(bytes as u64)).contains(at));
    unsafe { (driver.unmap)(address, bytes) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemRelease(handle: u64) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let mut known = known();
    known.imported.remove(&handle);
    known.multicast.remove(&handle);
    drop(known);
    unsafe { (driver.release)(handle) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMulticastCreate(handle: *mut u64, properties: *const c_void) -> Code {
    type Create = unsafe extern "C" fn(*mut u64, *const c_void) -> Code;
    let real = optional(c"cuMulticastCreate");
    if real.is_null() {
        return NOT_INITIALIZED;
    }
    let real = unsafe { std::mem::transmute::<*mut c_void, Create>(real) };
    let code = unsafe { real(handle, properties) };
    if code == SUCCESS {
        known().multicast.insert(unsafe { *handle });
    }
    code
}
