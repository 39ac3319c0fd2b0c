//! The control plane from the outside: its API, its store on every backend, a day of virtual time.
#![allow(clippy::print_stdout, reason = "tests say what they skip")]

mod api;
mod breakers;
#[allow(dead_code, reason = "the end-to-end tests use the rest")]
mod databases;
mod gpus;
mod old_database;
mod store;
mod virtual_day;
