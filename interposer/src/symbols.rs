//! How a program finds functions: by linking this library before the driver's, by `dlsym`, by `cuGetProcAddress`. Each leads to
//! the functions here that stand before the driver's.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::driver::{Code, INVALID_VALUE, NOT_INITIALIZED, SUCCESS, optional};
use crate::{hazards, memory, nccl, peers};

/// A function that stands before one of the same type.
struct Hook {
    /// As it is linked.
    symbol: &'static [u8],
    /// As `cuGetProcAddress` is asked for it, and from which version of CUDA on that is this function.
    asked: Option<(&'static [u8], c_int)>,
    function: fn() -> *mut c_void,
}

macro_rules! hooks {
    ($($symbol:ident = $function:path $(, $asked:literal since $version:literal)?;)*) => {
        const HOOKS: &[Hook] = &[$(Hook {
            symbol: stringify!($symbol).as_bytes(),
            asked: hooks!(@asked $($asked $version)?),
            function: || $function as *mut c_void,
        },)*];
    };
    (@asked $asked:literal $version:literal) => { Some(($asked, $version)) };
    (@asked) => { None };
}

hooks! {
    cuGetProcAddress = get_proc_address_v1, b"cuGetProcAddress" since 11030;
    cuGetProcAddress_v2 = get_proc_address, b"cuGetProcAddress" since 12000;
    cuInit = memory::cuInit, b"cuInit" since 2000;
    cuMemAlloc_v2 = memory::cuMemAlloc_v2, b"cuMemAlloc" since 3020;
    cuMemAllocPitch_v2 = memory::cuMemAllocPitch_v2, b"cuMemAllocPitch" since 3020;
    cuMemFree_v2 = memory::cuMemFree_v2, b"cuMemFree" since 3020;
    cuMemFreeAsync = memory::cuMemFreeAsync, b"cuMemFreeAsync" since 11020;
    cuMemGetAddressRange_v2 = memory::cuMemGetAddressRange_v2, b"cuMemGetAddressRange" since 3020;
    cuCtxDestroy_v2 = memory::cuCtxDestroy_v2, b"cuCtxDestroy" since 4000;
    cuDevicePrimaryCtxRelease_v2 = memory::cuDevicePrimaryCtxRelease_v2, b"cuDevicePrimaryCtxRelease" since 11000;
    cuDevicePrimaryCtxReset_v2 = memory::cuDevicePrimaryCtxReset_v2, b"cuDevicePrimaryCtxReset" since 11000;
    cuCtxEnablePeerAccess = peers::cuCtxEnablePeerAccess, b"cuCtxEnablePeerAccess" since 4000;
    cuCtxDisablePeerAccess = peers::cuCtxDisablePeerAccess, b"cuCtxDisablePeerAccess" since 4000;
    cuMemAllocManaged = hazards::cuMemAllocManaged, b"cuMemAllocManaged" since 6000;
    cuIpcGetMemHandle = memory::cuIpcGetMemHandle, b"cuIpcGetMemHandle" since 4010;
    cuIpcOpenMemHandle_v2 = hazards::cuIpcOpenMemHandle_v2, b"cuIpcOpenMemHandle" since 11000;
    cuIpcCloseMemHandle = hazards::cuIpcCloseMemHandle, b"cuIpcCloseMemHandle" since 4010;
    cuMemImportFromShareableHandle = hazards::cuMemImportFromShareableHandle,
        b"cuMemImportFromShareableHandle" since 10020;
    cuMemMap = hazards::cuMemMap, b"cuMemMap" since 10020;
    cuMemUnmap = hazards::cuMemUnmap, b"cuMemUnmap" since 10020;
    cuMemRelease = hazards::cuMemRelease, b"cuMemRelease" since 10020;
    cuMulticastCreate = hazards::cuMulticastCreate, b"cuMulticastCreate" since 12010;
    ncclCommInitRank = nccl::ncclCommInitRank;
    ncclCommInitRankConfig = nccl::ncclCommInitRankConfig;
    ncclCommInitRankScalable = nccl::ncclCommInitRankScalable;
    ncclCommInitAll = nccl::ncclCommInitAll;
    ncclCommSplit = nccl::ncclCommSplit;
    ncclCommShrink = nccl::ncclCommShrink;
    ncclGroupEnd = nccl::ncclGroupEnd;
    ncclCommDestroy = nccl::ncclCommDestroy;
    ncclCommAbort = nccl::ncclCommAbort;
}

unsafe extern "C" {
    fn dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char) -> *mut c_void;
}

/// The loader's own `dlsym`, once it was asked for.
static REAL: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

type Lookup = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

fn lookup() -> Option<Lookup> {
    if REAL.load(Ordering::Acquire).is_null() {
        // From glibc 2.34 on it is a part of libc itself.
        for version in [c"GLIBC_2.34", c"GLIBC_2.2.5", c"GLIBC_2.17"] {
            let found = unsafe { dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) };
            if !found.is_null() {
                REAL.store(found, Ordering::Release);
                break;
            }
        }
    }
    let found = REAL.load(Ordering::Acquire);
    (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Lookup>(found) })
}

/// What a library itself has under a name.
pub fn real(library: *mut c_void, name: &CStr) -> *mut c_void {
    lookup().map_or(std::ptr::null_mut(), |lookup| unsafe { lookup(library, name.as_ptr()) })
}

/// A library, if the process has loaded it.
pub fn loaded(name: &CStr) -> Option<*mut c_void> {
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
    (!library.is_null()).then_some(library)
}

/// What the first loaded library has under a name, other than a function of ours.
pub fn anywhere(name: &CStr, ours: *mut c_void) -> *mut c_void {
    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, names: *mut c_void) -> c_int {
        unsafe {
            let (name, names) = ((*info).dlpi_name, &mut *names.cast::<Vec<std::ffi::CString>>());
            if !name.is_null() {
                names.push(CStr::from_ptr(name).to_owned());
            }
        }
        0
    }
    let mut names: Vec<std::ffi::CString> = Vec::new();
    // The loader is not to be asked for libraries while it tells them.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut names).cast()) };
    let has = |library: &std::ffi::CString| {
        let found = real(loaded(library)?, name);
        (!found.is_null() && found != ours).then_some(found)
    };
    names.iter().filter(|name| !name.is_empty()).find_map(has).unwrap_or(std::ptr::null_mut())
}

/// What a program gets that asks a library for a name: a function of ours, where the library has one of that name; else
/// nothing, and the loader is to answer.
#[cfg_attr(test, allow(dead_code))]
unsafe extern "C" fn choose(library: *mut c_void, name: *const c_char) -> *mut c_void {
    let nothing = std::ptr::null_mut();
    let Some(lookup) = lookup() else { return nothing };
    // What is asked of all libraries together finds ours by itself, or was meant to pass it over.
    if name.is_null() || library == libc::RTLD_DEFAULT || library == libc::RTLD_NEXT {
        return nothing;
    }
    let asked = unsafe { CStr::from_ptr(name) }.to_bytes();
    if !(asked.starts_with(b"cu") || asked.starts_with(b"nccl")) {
        return nothing;
    }
    match HOOKS.iter().find(|hook| hook.symbol == asked) {
        Some(hook) if !unsafe { lookup(library, name) }.is_null() => (hook.function)(),
        _ => nothing,
    }
}

// A jump, not a call: the loader answers some questions by who asks.
#[cfg(all(target_arch = "x86_64", not(test)))]
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn dlsym(_library: *mut c_void, _name: *const c_char) -> *mut c_void {
    std::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {choose}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jne 2f",
        "mov rax, qword ptr [rip + {real}]",
        "jmp rax",
        "2:",
        "ret",
        choose = sym choose,
        real = sym REAL,
    )
}

type GetProcAddress = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64, *mut c_uint) -> Code;
type GetProcAddressV1 = unsafe extern "C" fn(*const c_char, *mut *mut c_void, c_int, u64) -> Code;

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`: functions of another meaning.
const PER_THREAD_STREAM: u64 = 2;

/// Puts a function of ours in the place of the one that the driver named.
unsafe fn replace(name: *const c_char, function: *mut *mut c_void, version: c_int, flags: u64) {
    if name.is_null() || function.is_null() || unsafe { *function }.is_null() {
        return;
    }
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    if flags & PER_THREAD_STREAM != 0 && name == b"cuMemFreeAsync" {
        return;
    }
    // Of several versions the newest that the caller knows.
    let known = HOOKS.iter().filter_map(|hook| hook.asked.map(|asked| (asked, hook)));
    let fitting = known.filter(|((asked, since), _)| *asked == name && *since <= version);
    if let Some((_, hook)) = fitting.max_by_key(|((_, since), _)| *since) {
        unsafe { *function = (hook.function)() };
    }
}

#[cfg_attr(not(test), unsafe(export_name = "cuGetProcAddress_v2"))]
unsafe extern "C" fn get_proc_address(
    name: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
    status: *mut c_uint,
) -> Code {
    let real = optional(c"cuGetProcAddress_v2");
    if real.is_null() {
        return if name.is_null() { INVALID_VALUE } else { NOT_INITIALIZED };
    }
    let real = unsafe { std::mem::transmute::<*mut c_void, GetProcAddress>(real) };
    let code = unsafe { real(name, function, version, flags, status) };
    if code == SUCCESS {
        unsafe { replace(name, function, version, flags) };
    }
    code
}

#[cfg_attr(not(test), unsafe(export_name = "cuGetProcAddress"))]
unsafe extern "C" fn get_proc_address_v1(
    name: *const c_char,
    function: *mut *mut c_void,
    version: c_int,
    flags: u64,
) -> Code {
    let real = optional(c"cuGetProcAddress");
    if real.is_null() {
        return NOT_INITIALIZED;
    }
    let real = unsafe { std::mem::transmute::<*mut c_void, GetProcAddressV1>(real) };
    let code = unsafe { real(name, function, version, flags) };
    if code == SUCCESS {
        unsafe { replace(name, function, version, flags) };
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_get_the_function_of_their_version() {
        let driver = 0x1000 as *mut c_void;
        let asked = |name: &CStr, version, flags| {
            let mut function = driver;
            unsafe { replace(name.as_ptr(), &raw mut function, version, flags) };
            function
        };
        assert_eq!(asked(c"cuMemAlloc", 12000, 0), memory::cuMemAlloc_v2 as *mut c_void);
        assert_eq!(asked(c"cuMemAlloc", 3000, 0), driver, "it had other types then");
        assert_eq!(asked(c"cuMemAlloc_v2", 12000, 0), driver);
        assert_eq!(asked(c"cuGetProcAddress", 11030, 0), get_proc_address_v1 as *mut c_void);
        assert_eq!(asked(c"cuGetProcAddress", 13000, 0), get_proc_address as *mut c_void);
        assert_eq!(asked(c"cuMemFreeAsync", 12000, 0), memory::cuMemFreeAsync as *mut c_void);
        assert_eq!(asked(c"cuMemFreeAsync", 12000, PER_THREAD_STREAM), driver);
        assert_eq!(asked(c"cuLaunchKernel", 12000, 0), driver);
    }
}
