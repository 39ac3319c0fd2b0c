//! Health logic from the outside.
#![allow(clippy::print_stdout, reason = "tests say what they skip")]

mod breakers;
mod conditions;
mod dcgm;
mod gate;
mod kernel;
mod logs;
mod rates;
mod weekly;
