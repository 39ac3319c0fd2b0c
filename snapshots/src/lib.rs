//! The format of stored snapshots, images, weights and caches. Pure: no clock, no I/O; bytes in, bytes and verdicts out.
//!
//! An object is a list of named streams. Each stream is cut into [`leaf`]s of at most 2 MiB, named by their BLAKE3; leaves lie
//! in [`pack`]s of at most 64 MiB; an [`index`] says which leaves follow each other and where each lies; a small [`manifest`]
//! names the streams and the index, and is published last. Nothing that was published changes.
//!
//! Everything that is read comes from a disk or a network that may lie: readers take any bytes, check every length and
//! every hash, and name what is wrong.

pub mod builder;
pub mod collection;
pub mod compatibility;
pub mod eviction;
pub mod id;
pub mod image;
pub mod index;
pub mod ladder;
pub mod leaf;
pub mod manifest;
mod numbers;
pub mod pack;
pub mod peers;
pub mod staging;
pub mod trace;

pub use builder::ObjectBuilder;
pub use id::{LeafId, ObjectId, PackId};
pub use index::{Index, IndexRecord};
pub use manifest::Manifest;
