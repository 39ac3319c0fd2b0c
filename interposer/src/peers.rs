//! Access between GPUs. The driver's Restore refuses a process that has it after its Checkpoint took it; so it is taken down
//! before and made again after. Memory of handles is reached by what is set for each stretch, which follows what a program
//! enables between its contexts.

use std::ffi::{c_int, c_uint};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::{self, Code, Driver, NOT_INITIALIZED, Opaque, SUCCESS};
use crate::memory::{self, Tried, tried};

/// Access that a program has enabled.
#[derive(Clone, Copy)]
struct Reach {
    from: usize,
    to: usize,
    from_device: c_int,
    to_device: c_int,
}

static REACHES: Mutex<Vec<Reach>> = Mutex::new(Vec::new());

fn reaches() -> MutexGuard<'static, Vec<Reach>> {
    REACHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// GPUs that reach a GPU.
pub fn reaching(device: c_int) -> Vec<c_int> {
    let mut found: Vec<c_int> =
        reaches().iter().filter(|reach| reach.to_device == device).map(|reach| reach.from_device).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Pairs of GPUs, the first of which reaches the second.
pub fn pairs() -> Vec<(u32, u32)> {
    let of = |reach: &Reach| (reach.from_device.cast_unsigned(), reach.to_device.cast_unsigned());
    let mut pairs: Vec<_> = reaches().iter().map(of).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

pub fn forget_context(context: Opaque) {
    reaches().retain(|reach| reach.from != context as usize && reach.to != context as usize);
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuCtxEnablePeerAccess(to: Opaque, flags: c_uint) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let code = unsafe { (driver.enable_peer)(to, flags) };
    if code != SUCCESS {
        return code;
    }
    let (mut from, mut from_device, mut to_device) = (std::ptr::null_mut(), 0, 0);
    unsafe {
        (driver.current_context)(&raw mut from);
        (driver.current_device)(&raw mut from_device);
        (driver.use_context)(to);
        (driver.current_device)(&raw mut to_device);
        (driver.use_context)(from);
    }
    reaches().push(Reach { from: from as usize, to: to as usize, from_device, to_device });
    match memory::let_reach(driver, from_device, to_device) {
        Ok(()) => SUCCESS,
        Err((_, code)) => code,
    }
}

// What was in bulk stays reachable: nothing may rely on that it is not.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cuCtxDisablePeerAccess(to: Opaque) -> Code {
    let Some(driver) = driver::get() else { return NOT_INITIALIZED };
    let mut from = std::ptr::null_mut();
    unsafe { (driver.current_context)(&raw mut from) };
    reaches().retain(|reach| reach.from != from as usize || reach.to != to as usize);
    unsafe { (driver.disable_peer)(to) }
}

/// In each context, with the one that was current before.
fn each(driver: &Driver, function: &'static str, call: impl Fn(Opaque) -> Code) -> Tried {
    for reach in reaches().iter() {
        tried("cuCtxSetCurrent", unsafe { (driver.use_context)(reach.from as Opaque) })?;
        tried(function, call(reach.to as Opaque))?;
    }
    Ok(())
}

pub fn take_down(driver: &Driver) -> Tried {
    each(driver, "cuCtxDisablePeerAccess", |to| unsafe { (driver.disable_peer)(to) })
}

pub fn make_again(driver: &Driver) -> Tried {
    each(driver, "cuCtxEnablePeerAccess", |to| unsafe { (driver.enable_peer)(to, 0) })
}
