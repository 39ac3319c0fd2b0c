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
