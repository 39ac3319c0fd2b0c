//! Snapshots on a host: the store that they come from, and what is done there.

pub mod collect;
pub mod commands;
pub mod get;
pub mod host;
pub mod image;
pub mod mount;
pub mod put;
pub mod store;
pub mod verify;

/// An error with its causes, in one line.
pub(crate) fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
