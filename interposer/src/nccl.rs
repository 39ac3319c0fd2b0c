//! Communicators of NCCL that are up (nccl.h, 2.18 to 2.29). The driver's Restore refuses a process that has one.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use crate::symbols;

/// `ncclResult_t`.
type Code = c_int;
/// `ncclSystemError`: said where the library itself is not there.
const SYSTEM_ERROR: Code = 2;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; 128]);

type Communicator = *mut c_void;

static UP: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
/// Where communicators of the group that goes on are to appear.
static PENDING: Mutex<Vec<usize>> = Mutex::new(Vec::new());

pub fn count() -> u32 {
    u32::try_from(UP.lock().unwrap_or_else(PoisonError::into_inner).len()).unwrap_or(u32::MAX)
}

/// Communicators have come up, at these addresses, if that succeeded (or goes on).
unsafe fn up(code: Code, communicators: *mut Communicator, count: c_int) -> Code {
    const IN_PROGRESS: Code = 7;
    if (code == 0 || code == IN_PROGRESS) && !communicators.is_null() {
        let mut up = UP.lock().unwrap_or_else(PoisonError::into_inner);
        for n in 0..usize::try_from(count).unwrap_or(0) {
            let at = unsafe { communicators.add(n) };
            let communicator = unsafe { *at };
            if communicator.is_null() {
                // Of a group: it is there when that ends.
                PENDING.lock().unwrap_or_else(PoisonError::into_inner).push(at as usize);
            } else {
                up.insert(communicator as usize);
            }
        }
    }
    code
}

/// NCCL's own function: of its library, or of one that has NCCL within.
fn real(name: &CStr, ours: *mut c_void) -> Option<*mut c_void> {
    let found = symbols::loaded(c"libnccl.so.2").map(|library| symbols::real(library, name));
    let found = found.filter(|found| !found.is_null()).unwrap_or_else(|| symbols::anywhere(name, ours));
    (!found.is_null()).then_some(found)
}

macro_rules! before {
    ($name:ident($($argument:ident: $kind:ty),*)) => {{
        type Real = unsafe extern "C" fn($($kind),*) -> Code;
        let name = unsafe { CStr::from_bytes_with_nul_unchecked(concat!(stringify!($name), "\0").as_bytes()) };
        match real(name, $name as *mut c_void) {
            Some(found) => unsafe { std::mem::transmute::<*mut c_void, Real>(found)($($argument),*) },
            None => SYSTEM_ERROR,
        }
    }};
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommInitRank(to: *mut Communicator, ranks: c_int, id: UniqueId, rank: c_int) -> Code {
    let code = before!(ncclCommInitRank(to: *mut Communicator, ranks: c_int, id: UniqueId, rank: c_int));
    unsafe { up(code, to, 1) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    to: *mut Communicator,
    ranks: c_int,
    id: UniqueId,
    rank: c_int,
    config: *mut c_void,
) -> Code {
    let code = before!(ncclCommInitRankConfig(
        to: *mut Communicator,
        ranks: c_int,
        id: UniqueId,
        rank: c_int,
        config: *mut c_void
    ));
    unsafe { up(code, to, 1) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommInitRankScalable(
    to: *mut Communicator,
    ranks: c_int,
    rank: c_int,
    count: c_int,
    ids: *mut UniqueId,
    config: *mut c_void,
) -> Code {
    let code = before!(ncclCommInitRankScalable(
        to: *mut Communicator,
        ranks: c_int,
        rank: c_int,
        count: c_int,
        ids: *mut UniqueId,
        config: *mut c_void
    ));
    unsafe { up(code, to, 1) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommInitAll(to: *mut Communicator, count: c_int, devices: *const c_int) -> Code {
    let code = before!(ncclCommInitAll(to: *mut Communicator, count: c_int, devices: *const c_int));
    unsafe { up(code, to, count) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommSplit(
    of: Communicator,
    color: c_int,
    key: c_int,
    to: *mut Communicator,
    config: *mut c_void,
) -> Code {
    let code = before!(ncclCommSplit(
        of: Communicator,
        color: c_int,
        key: c_int,
        to: *mut Communicator,
        config: *mut c_void
    ));
    unsafe { up(code, to, 1) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommShrink(
    of: Communicator,
    without: *mut c_int,
    count: c_int,
    to: *mut Communicator,
    config: *mut c_void,
    flags: c_int,
) -> Code {
    let code = before!(ncclCommShrink(
        of: Communicator,
        without: *mut c_int,
        count: c_int,
        to: *mut Communicator,
        config: *mut c_void,
        flags: c_int
    ));
    unsafe { up(code, to, 1) }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclGroupEnd() -> Code {
    let code = before!(ncclGroupEnd());
    let pending = std::mem::take(&mut *PENDING.lock().unwrap_or_else(PoisonError::into_inner));
    for at in pending {
        let communicator = unsafe { *(at as *const Communicator) };
        if !communicator.is_null() {
            UP.lock().unwrap_or_else(PoisonError::into_inner).insert(communicator as usize);
        }
    }
    code
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommDestroy(communicator: Communicator) -> Code {
    UP.lock().unwrap_or_else(PoisonError::into_inner).remove(&(communicator as usize));
    before!(ncclCommDestroy(communicator: Communicator))
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ncclCommAbort(communicator: Communicator) -> Code {
    UP.lock().unwrap_or_else(PoisonError::into_inner).remove(&(communicator as usize));
    before!(ncclCommAbort(communicator: Communicator))
}
