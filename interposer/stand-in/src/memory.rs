//! Memory: files of the kernel, mapped at the addresses that were reserved.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Code, INVALID, OK, fails};

const GRANULE: usize = 2 << 20;

/// A handle.
struct Handle {
    fd: c_int,
    bytes: usize,
    users: usize,
}

#[derive(Default)]
struct Memory {
    last: u64,
    handles: BTreeMap<u64, Handle>,
    mapped: BTreeMap<u64, u64>,
    small: BTreeMap<u64, usize>,
}

static MEMORY: Mutex<Memory> =
    Mutex::new(Memory { last: 0, handles: BTreeMap::new(), mapped: BTreeMap::new(), small: BTreeMap::new() });

fn memory() -> MutexGuard<'static, Memory> {
    MEMORY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn add(&mut self, fd: c_int, bytes: usize) -> u64 {
        self.last += 1;
        self.handles.insert(self.last, Handle { fd, bytes, users: 1 });
        self.last
    }

    fn drop_one(&mut self, handle: u64) -> Code {
        let Some(known) = self.handles.get_mut(&handle) else { return INVALID };
        known.users -= 1;
        if known.users == 0 {
            unsafe { libc::close(known.fd) };
            self.handles.remove(&handle);
        }
        OK
    }
}

fn nothing_at(address: *mut c_void, bytes: usize, fixed: c_int) -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
    unsafe { libc::mmap(address, bytes, libc::PROT_NONE, flags, -1, 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAddressReserve(
    address: *mut u64,
    bytes: usize,
    _align: usize,
    _at: u64,
    _flags: u64,
) -> Code {
    // At a whole granule, as the driver gives it.
    let found = nothing_at(std::ptr::null_mut(), bytes + GRANULE, 0) as usize;
    let start = found.next_multiple_of(GRANULE);
    unsafe {
        libc::munmap(found as *mut c_void, start - found);
        libc::munmap((start + bytes) as *mut c_void, found + GRANULE - start);
        *address = start as u64;
    }
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAddressFree(address: u64, bytes: usize) -> Code {
    unsafe { libc::munmap(address as *mut c_void, bytes) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemCreate(handle: *mut u64, bytes: usize, _of: *const c_void, _flags: u64) -> Code {
    if let Some(code) = fails("cuMemCreate") {
        return code;
    }
    let fd = unsafe { libc::memfd_create(c"device".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 || unsafe { libc::ftruncate(fd, bytes as i64) } != 0 {
        return 2;
    }
    unsafe { *handle = memory().add(fd, bytes) };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemRelease(handle: u64) -> Code {
    memory().drop_one(handle)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemMap(address: u64, bytes: usize, _offset: usize, handle: u64, _flags: u64) -> Code {
    if let Some(code) = fails("cuMemMap") {
        return code;
    }
    let mut memory = memory();
    let Some(known) = memory.handles.get_mut(&handle).filter(|known| known.bytes >= bytes) else { return INVALID };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let at = unsafe { libc::mmap(address as *mut c_void, bytes, libc::PROT_NONE, flags, known.fd, 0) };
    if at == libc::MAP_FAILED {
        return 2;
    }
    known.users += 1;
    memory.mapped.insert(address, handle);
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemSetAccess(address: u64, bytes: usize, _access: *const c_void, _count: usize) -> Code {
    unsafe { libc::mprotect(address as *mut c_void, bytes, libc::PROT_READ | libc::PROT_WRITE) };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemUnmap(address: u64, bytes: usize) -> Code {
    let mut memory = memory();
    let Some(handle) = memory.mapped.remove(&address) else { return INVALID };
    nothing_at(address as *mut c_void, bytes, libc::MAP_FIXED);
    memory.drop_one(handle)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetAllocationGranularity(bytes: *mut usize, _of: *const c_void, _which: c_uint) -> Code {
    unsafe { *bytes = GRANULE };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemExportToShareableHandle(fd: *mut c_int, handle: u64, _kind: c_uint, _flags: u64) -> Code {
    if let Some(code) = fails("cuMemExportToShareableHandle") {
        return code;
    }
    let memory = memory();
    let Some(known) = memory.handles.get(&handle) else { return INVALID };
    unsafe { *fd = libc::fcntl(known.fd, libc::F_DUPFD_CLOEXEC, 0) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemImportFromShareableHandle(handle: *mut u64, from: *mut c_void, _kind: c_uint) -> Code {
    if let Some(code) = fails("cuMemImportFromShareableHandle") {
        return code;
    }
    unsafe {
        let fd = libc::fcntl(from as c_int, libc::F_DUPFD_CLOEXEC, 0);
        let bytes = libc::lseek(fd, 0, libc::SEEK_END);
        *handle = memory().add(fd, bytes as usize);
    }
    OK
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> Code {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    memory().small.insert(at as u64, bytes);
    unsafe { *address = at as u64 };
    OK
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFree_v2(address: u64) -> Code {
    match memory().small.remove(&address) {
        Some(bytes) => {
            unsafe { libc::munmap(address as *mut c_void, bytes) };
            OK
        }
        None => INVALID,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: u64, _stream: usize) -> Code {
    cuMemFree_v2(address)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocManaged(address: *mut u64, bytes: usize, _flags: c_uint) -> Code {
    unsafe { cuMemAlloc_v2(address, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocPitch_v2(
    address: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    _element: c_uint,
) -> Code {
    unsafe {
        *pitch = width;
        cuMemAlloc_v2(address, width * height)
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, address: u64) -> Code {
    let memory = memory();
    match memory.small.range(..=address).next_back() {
        Some((start, length)) if address < start + *length as u64 => {
            unsafe { (*base, *bytes) = (*start, *length) };
            OK
        }
        _ => INVALID,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Code {
    let of = std::env::var("CUDA_STAND_IN_FREE_MIB").ok().and_then(|text| text.parse::<usize>().ok());
    unsafe { (*free, *total) = (of.unwrap_or(8 << 10) << 20, 8 << 30) };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(_at: *mut c_void, _bytes: usize, _flags: c_uint) -> Code {
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(_at: *mut c_void) -> Code {
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Code {
    unsafe { libc::memcpy(to as *mut c_void, from, bytes) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Code {
    unsafe { libc::memcpy(to, from as *const c_void, bytes) };
    OK
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, _stream: usize) -> Code {
    if let Some(code) = fails("cuMemcpyHtoDAsync") {
        return code;
    }
    unsafe { cuMemcpyHtoD_v2(to, from, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, _stream: usize) -> Code {
    unsafe { cuMemcpyDtoH_v2(to, from, bytes) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, _stream: usize) -> Code {
    unsafe { libc::memset(to as *mut c_void, value.into(), bytes) };
    OK
}
