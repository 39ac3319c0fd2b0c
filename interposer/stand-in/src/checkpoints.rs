//! Checkpoints of processes: what state each is in, in a folder.

use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;

use crate::{Code, INVALID, OK, fails};

fn file(what: &str, number: i32) -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os("CUDA_STAND_IN_FOLDER")?).join(format!("{what}-{number}")))
}

fn write(what: &str, number: i32, value: usize) {
    if let Some(path) = file(what, number) {
        let _ = std::fs::write(path, value.to_string());
    }
}

fn read(what: &str, number: i32) -> Option<usize> {
    std::fs::read_to_string(file(what, number)?).ok()?.parse().ok()
}

/// This process uses CUDA.
pub(crate) fn uses() {
    write("state", std::process::id().cast_signed(), 0);
}

/// So many accesses between GPUs are enabled in this process.
pub(crate) fn peers(count: usize) {
    write("peers", std::process::id().cast_signed(), count);
}

/// The number that a process has in its own namespace.
fn own_number(pid: c_int) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}

fn step(pid: c_int, from: usize, to: usize) -> Code {
    match own_number(pid) {
        Some(number) if read("state", number) == Some(from) => {
            write("state", number, to);
            OK
        }
        Some(_) => 401,
        None => INVALID,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCheckpointProcessGetState(pid: c_int, state: *mut c_uint) -> Code {
    match own_number(pid).and_then(|number| read("state", number)) {
        Some(known) => {
            unsafe { *state = known as c_uint };
            OK
        }
        None => INVALID,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn cuCheckpointProcessGetRestoreThreadId(pid: c_int, thread: *mut c_int) -> Code {
    unsafe { *thread = pid };
    OK
}

#[unsafe(no_mangle)]
extern "C" fn cuCheckpointProcessLock(pid: c_int, _args: *mut c_void) -> Code {
    fails("cuCheckpointProcessLock").unwrap_or_else(|| step(pid, 0, 1))
}

#[unsafe(no_mangle)]
extern "C" fn cuCheckpointProcessCheckpoint(pid: c_int, _args: *mut c_void) -> Code {
    if let Some(number) = own_number(pid) {
        write("lost", number, read("peers", number).unwrap_or(0));
    }
    step(pid, 1, 2)
}

#[unsafe(no_mangle)]
extern "C" fn cuCheckpointProcessRestore(pid: c_int, _args: *mut c_void) -> Code {
    if let Some(code) = fails("cuCheckpointProcessRestore") {
        return code;
    }
    if own_number(pid).and_then(|number| read("lost", number)).is_some_and(|count| count > 0) {
        return INVALID;
    }
    step(pid, 2, 1)
}

#[unsafe(no_mangle)]
extern "C" fn cuCheckpointProcessUnlock(pid: c_int, _args: *mut c_void) -> Code {
    step(pid, 1, 0)
}
