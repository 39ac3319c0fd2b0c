//! The control plane from the outside: its API and its store on every backend.
#![allow(clippy::print_stdout, reason = "tests say what they skip")]

mod api;
mod breakers;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod databases;
mod doors;
mod gpus;
mod learning;
mod lending;
mod old_database;
mod store;
mod virtual_day;
