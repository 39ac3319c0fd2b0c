//! One test binary for the crate.

mod analytic;
mod as_live;
mod copies;
mod readers;
mod weekly;
