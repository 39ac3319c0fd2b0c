//! Replays demand: trace readers and their conversion to concurrent GPU claims.

pub mod demand;
