//! The control plane: the durable state, the loops that act on it, the API. What it decides is in `control`; what it keeps
//! in memory is `fleet::book`. This is the shell around both that does the I/O.

pub mod api;
pub mod app;
pub mod board;
pub mod clouds;
pub mod config;
pub mod demo;
pub mod errors;
pub mod loops;
pub mod metrics;
pub mod pacing;
pub mod secrets;
pub mod serve;
pub mod store;
pub mod tokens;
