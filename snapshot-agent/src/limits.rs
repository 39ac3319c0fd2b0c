//! What this process may use of the host.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Has as many files open as it may: leaves and connections of a mount, handles of device memory.
pub fn open_many_files() {
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
}
