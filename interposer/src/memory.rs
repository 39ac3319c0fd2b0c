//! Bulk memory: what a workload allocates, from handles that can be handed on.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};

use interposer_protocol::Segment;

use crate::driver::{
    self, Access, CAPTURE, Code, DIRECT_RDMA, Driver, INVALID_VALUE, IpcHandle, NOT_INITIALIZED, NOT_SUPPORTED,
    OUT_OF_MEMORY, Opaque, POSIX_FD, Properties, SUCCESS,
};
use crate::{control, hazards, peers};

/// Smaller ones stay with the driver: what they take of its checkpoint is nothing, and a handle has at least 2 MiB.
const BULK_BYTES_MIN: usize = 1 << 20;
/// Rows of a pitched allocation begin at multiples of this (the texture alignment of every GPU that the driver supports).
const PITCH_BYTES: usize = 512;

/// A stretch in bulk.
struct Stretch {
    /// Nothing is mapped without one.
    handle: Option<u64>,
    /// What was asked for, and what that takes.
    asked_bytes: usize,
    bytes: usize,
    device: c_int,
    /// What it was allocated in.
    context: usize,
}

/// All stretches by their addresses.
#[derive(Default)]
struct Table {
    /// Whether allocations wait.
    held: bool,
    stretches: BTreeMap<u64, Stretch>,
    /// Freed while a graph was captured, when nothing can be waited for: let go of after the next wait.
    parked: Vec<u64>,
    /// Of a GPU: the granule, and whether network adapters may read it.
    gpus: BTreeMap<c_int, (usize, bool)>,
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { held: false, stretches: BTreeMap::new(), parked: Vec::new(), gpus: BTreeMap::new() });
static GOES_ON: Condvar = Condvar::new();

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The table, as soon as the workload may change it.
fn table_to_change() -> MutexGuard<'static, Table> {
    GOES_ON.wait_while(table(), |table| table.held).unwrap_or_else(PoisonError::into_inner)
}

/// The first call that fails, with its name.
pub type Tried = Result<(), (&'static str, Code)>;

pub fn tried(function: &'static str, code: Code) -> Tried {
    if code == SUCCESS { Ok(()) } else { Err((function, code)) }
}

impl Table {
    fn of_gpu(&mut self, driver: &Driver, device: c_int) -> (usize, bool) {
        *self.gpus.entry(device).or_insert_with(|| {
            let mut can = 0;
            unsafe { (driver.device_attribute)(&raw mut can, DIRECT_RDMA, device) };
            let mut granule = 0;
            unsafe { (driver.granularity)(&raw mut granule, &Properties::bulk(device, can != 0), 0) };
            (granule.max(2 << 20), can != 0)
        })
    }

    fn allocate(&mut self, driver: &Driver, asked_bytes: usize) -> Result<u64, Code> {
        let (mut device, mut context) = (0, std::ptr::null_mut());
        let checked = |code: Code| if code == SUCCESS { Ok(()) } else { Err(code) };
        unsafe {
            checked((driver.current_device)(&raw mut device))?;
            checked((driver.current_context)(&raw mut context))?;
        }
        let (granule, direct_rdma) = self.of_gpu(driver, device);
        let bytes = asked_bytes.checked_next_multiple_of(granule).ok_or(OUT_OF_MEMORY)?;
        let (mut address, mut handle) = (0, 0);
        let properties = Properties::bulk(device, direct_rdma);
        unsafe {
            checked((driver.reserve)(&raw mut address, bytes, granule, 0, 0))?;
            if let Err(code) = checked((driver.create)(&raw mut handle, bytes, &raw const properties, 0)) {
                (driver.unreserve)(address, bytes);
                return Err(code);
            }
        }
        if let Err((_, code)) = mapped(driver, address, bytes, device, handle) {
            unsafe {
                (driver.release)(handle);
                (driver.unreserve)(address, bytes);
            }
            return Err(code);
        }
        let stretch = Stretch { handle: Some(handle), asked_bytes, bytes, device, context: context as usize };
        self.stretches.insert(address, stretch);
        Ok(address)
    }

    /// Takes the stretches away that are meant, without waiting for anything.
    fn forget(&mut self, driver: &Driver, meant: impl Fn(u64, &Stretch) -> bool) -> Tried {
        let mut done = Ok(());
        for (address, stretch) in self.stretches.extract_if(.., |address, stretch| meant(*address, stretch)) {
            unsafe {
                if let Some(handle) = stretch.handle {
                    done = done.and(tried("cuMemUnmap", (driver.unmap)(address, stretch.bytes)));
                    done = done.and(tried("cuMemRelease", (driver.release)(handle)));
                }
                done = done.and(tried("cuMemAddressFree", (driver.unreserve)(address, stretch.bytes)));
            }
        }
        done
    }

    /// The stretch that an address lies in.
    fn around(&self, address: u64) -> Option<(u64, &Stretch)> {
        let (base, stretch) = self.stretches.range(..=address).next_back()?;
        (address - base < stretch.asked_bytes as u64).then_some((*base, stretch))
    }
}

/// Maps a handle at an address, for its own GPU and those that reach it.
fn mapped(driver: &Driver, address: u64, bytes: usize, device: c_int, handle: u64) -> Tried {
    tried("cuMemMap", unsafe { (driver.map)(address, bytes, 0, handle, 0) })?;
    let access: Vec<Access> = std::iter::once(device).chain(peers::reaching(device)).map(Access::of).collect();
    let code = unsafe { (driver.set_access)(address, bytes, access.as_ptr(), access.len()) };
    tried("cuMemSetAccess", code).inspect_err(|_| {
        unsafe { (driver.unmap)(address, bytes) };
    })
}

/// Lets a GPU reach what another has in bulk.
pub fn let_reach(driver: &Driver, from: c_int, to: c_int) -> Tried {
    let access = Access::of(from);
    for (address, stretch) in table_to_change().stretches.iter().filter(|(_, stretch)| stretch.device == to) {
        tried("cuMemSetAccess", unsafe { (driver.set_access)(*address, stretch.bytes, &raw const access, 1) })?;
    }
    Ok(())
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let code = unsafe { (driver.init)(flags) };
    if code == SUCCESS {
        control::start();
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    if bytes < BULK_BYTES_MIN || address.is_null() {
        return unsafe { (driver.alloc)(address, bytes) };
    }
    control::start();
    let allocated = table_to_change().allocate(driver, bytes);
    match allocated {
        Ok(found) => {
            unsafe { *address = found };
            SUCCESS
        }
        Err(OUT_OF_MEMORY) => OUT_OF_MEMORY,
        // A GPU, or a state, in which the driver gives no handles.
        Err(_) => unsafe { (driver.alloc)(address, bytes) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemAllocPitch_v2(
    address: *mut u64,
    pitch: *mut usize,
    width_bytes: usize,
    height: usize,
    element_bytes: c_uint,
) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let row = width_bytes.checked_next_multiple_of(PITCH_BYTES);
    match row.and_then(|row| Some((row, row.checked_mul(height)?))) {
        Some((row, bytes)) if bytes >= BULK_BYTES_MIN && !pitch.is_null() => {
            let code = unsafe { cuMemAlloc_v2(address, bytes) };
            if code == SUCCESS {
                unsafe { *pitch = row };
            }
            code
        }
        _ => unsafe { (driver.alloc_pitch)(address, pitch, width_bytes, height, element_bytes) },
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    hazards::freed(address);
    let context = table_to_change().stretches.get(&address).map(|stretch| stretch.context);
    let Some(context) = context else { return unsafe { (driver.free)(address) } };
    // As the driver's own: what was submitted is done first.
    match synchronize(driver, context as Opaque) {
        Err((_, code)) if CAPTURE.contains(&code) => {
            table_to_change().parked.push(address);
            return SUCCESS;
        }
        Err((_, code)) => return code,
        Ok(()) => {}
    }
    let mut table = table_to_change();
    let parked = std::mem::take(&mut table.parked);
    let (now, later) = parked
        .into_iter()
        .partition::<Vec<u64>, _>(|at| table.stretches.get(at).is_none_or(|stretch| stretch.context == context));
    table.parked = later;
    match table.forget(driver, |at, _| at == address || now.contains(&at)) {
        Ok(()) => SUCCESS,
        Err((_, code)) => code,
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: Opaque) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    if !table().stretches.contains_key(&address) {
        return unsafe { (driver.free_async)(address, stream) };
    }
    match unsafe { (driver.stream_synchronize)(stream) } {
        SUCCESS => unsafe { cuMemFree_v2(address) },
        code => code,
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let table = table();
    let Some((start, stretch)) = table.around(address) else {
        drop(table);
        return unsafe { (driver.address_range)(base, bytes, address) };
    };
    unsafe {
        if !base.is_null() {
            *base = start;
        }
        if !bytes.is_null() {
            *bytes = stretch.asked_bytes;
        }
    }
    SUCCESS
}

// Memory of handles has none of these, and a process that shares memory so could not be captured anyway.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuIpcGetMemHandle(handle: *mut IpcHandle, address: u64) -> Code {
    static SAID: Once = Once::new();
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    if table().around(address).is_none() {
        return unsafe { (driver.get_ipc)(handle, address) };
    }
    SAID.call_once(|| {
        eprintln!(
            "pilotlight: this workload shares device memory by CUDA IPC (cudaIpcGetMemHandle), and cannot be captured while it \
             does. Switch that off in it (vLLM: --disable-custom-all-reduce), or run it without this library."
        );
    });
    NOT_SUPPORTED
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuCtxDestroy_v2(context: Opaque) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    peers::forget_context(context);
    let _ = synchronize(driver, context);
    let _ = table_to_change().forget(driver, |_, stretch| stretch.context == context as usize);
    unsafe { (driver.destroy_context)(context) }
}

/// The primary context of a GPU, if it is there.
fn primary(driver: &Driver, device: c_int) -> Option<Opaque> {
    let (mut flags, mut active, mut context) = (0, 0, std::ptr::null_mut());
    unsafe {
        if (driver.primary_state)(device, &raw mut flags, &raw mut active) != SUCCESS || active == 0 {
            return None;
        }
        // Its handle is given to who retains it.
        if (driver.retain_primary)(&raw mut context, device) != SUCCESS {
            return None;
        }
        (driver.release_primary)(device);
    }
    Some(context)
}

/// Ends a primary context by a call; if it is gone then, so is all that was allocated in it.
fn end_primary(driver: &Driver, device: c_int, end: impl FnOnce() -> Code) -> Code {
    let Some(context) = primary(driver, device) else { return end() };
    let _ = synchronize(driver, context);
    let code = end();
    let (mut flags, mut active) = (0, 0);
    let told = unsafe { (driver.primary_state)(device, &raw mut flags, &raw mut active) };
    if code == SUCCESS && told == SUCCESS && active == 0 {
        peers::forget_context(context);
        let _ = table_to_change().forget(driver, |_, stretch| stretch.context == context as usize);
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    end_primary(driver, device, || unsafe { (driver.release_primary)(device) })
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuDevicePrimaryCtxReset_v2(device: c_int) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    end_primary(driver, device, || unsafe { (driver.reset_primary)(device) })
}

/// Waits for what was submitted in a context; which one is current stays as it was.
fn synchronize(driver: &Driver, context: Opaque) -> Tried {
    let mut current = std::ptr::null_mut();
    unsafe {
        tried("cuCtxGetCurrent", (driver.current_context)(&raw mut current))?;
        tried("cuCtxSetCurrent", (driver.use_context)(context))?;
        let code = (driver.synchronize)();
        (driver.use_context)(current);
        tried("cuCtxSynchronize", code)
    }
}

/// GPUs with what is in bulk on each, bytes.
pub fn extent() -> Vec<(u32, u64)> {
    let mut by_gpu: BTreeMap<u32, u64> = BTreeMap::new();
    for stretch in table().stretches.values() {
        *by_gpu.entry(stretch.device.cast_unsigned()).or_default() += stretch.bytes as u64;
    }
    by_gpu.into_iter().collect()
}

/// Nothing is allocated or freed until [`go_on`].
pub fn hold() {
    table().held = true;
}

/// Allocations go on.
pub fn go_on() {
    table().held = false;
    GOES_ON.notify_all();
}

/// Waits for all that was submitted, then hands each stretch over.
pub fn export(driver: &Driver, mut over: impl FnMut(Segment, OwnedFd) -> Tried) -> Tried {
    let table = table();
    let mut contexts: Vec<usize> = table.stretches.values().map(|stretch| stretch.context).collect();
    contexts.sort_unstable();
    contexts.dedup();
    for context in contexts {
        synchronize(driver, context as Opaque)?;
    }
    for (address, stretch) in &table.stretches {
        let Some(handle) = stretch.handle else { continue };
        let mut fd = -1;
        let code = unsafe { (driver.export)(&raw mut fd, handle, POSIX_FD, 0) };
        tried("cuMemExportToShareableHandle", code)?;
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let device = stretch.device.cast_unsigned();
        over(Segment { address: *address, bytes: stretch.bytes as u64, device }, fd)?;
    }
    Ok(())
}

/// Lets go of all memory; its addresses stay reserved.
pub fn release(driver: &Driver) -> Tried {
    for (address, stretch) in &mut table().stretches {
        if let Some(handle) = stretch.handle.take() {
            tried("cuMemUnmap", unsafe { (driver.unmap)(*address, stretch.bytes) })?;
            tried("cuMemRelease", unsafe { (driver.release)(handle) })?;
        }
    }
    Ok(())
}

/// Takes memory back, at the address that it had.
pub fn give(driver: &Driver, address: u64, fd: &OwnedFd) -> Tried {
    let mut table = table();
    let stretch = table.stretches.get_mut(&address).filter(|stretch| stretch.handle.is_none());
    let Some(stretch) = stretch else { return Err(("no such address", INVALID_VALUE)) };
    let mut handle = 0;
    let number = fd.as_raw_fd() as usize as *mut std::ffi::c_void;
    tried("cuMemImportFromShareableHandle", unsafe { (driver.import)(&raw mut handle, number, POSIX_FD) })?;
    mapped(driver, address, stretch.bytes, stretch.device, handle)?;
    stretch.handle = Some(handle);
    Ok(())
}

/// Whether every stretch has its memory.
pub fn is_whole() -> bool {
    table().stretches.values().all(|stretch| stretch.handle.is_some())
}
