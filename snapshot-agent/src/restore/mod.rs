//! Processes at rest, and brought back: `pilotlight-agent capture` and `pilotlight-agent restore`.
//!
//! A workload runs in a namespace of processes of its own, below a [`holder`] that is its first process: numbers of processes
//! never collide with others', and whatever happens, the end of the holder is the end of all of them. An [`engine`] writes
//! the tree to files and brings it back; [`capture`] and [`start`] are what is done around that.

mod answer;
pub mod capture;
pub mod commands;
mod criu;
mod described;
mod device;
mod engine;
mod facts;
mod held;
mod holder;
mod library;
mod recipe;
mod records;
mod standby;
mod start;

pub use described::{Described, NotCaptured};
pub use device::driver::Driver;
pub use facts::Here;
pub use held::{Held, Where};
pub use holder::hold;
pub use library::built as built_library;
pub use standby::Standbys;
pub use start::{Ground, Known, Tried};

/// The version of CRIU that works here, or why none does.
///
/// # Errors
/// Its words.
pub fn usable_criu(program: Option<std::path::PathBuf>) -> Result<String, String> {
    use engine::Engine;
    criu::Criu::new(program).probe().map(|version| version.to_string()).map_err(|error| error.to_string())
}
