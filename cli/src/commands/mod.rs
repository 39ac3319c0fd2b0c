//! One module for each command.

pub mod client;
pub mod demand;
pub mod demo;
pub mod explain;
pub mod health;
pub mod offers;
pub mod plan;
pub mod serve;
pub mod simulate;
pub mod token;

use clap::ValueEnum;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people.
    Table,
    /// JSON for programs.
    Json,
}
