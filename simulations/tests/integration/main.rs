//! One test binary for the crate.

mod analytic;
mod readers;
mod weekly;
