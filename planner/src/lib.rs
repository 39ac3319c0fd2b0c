//! Sizes GPU buffers: forecast, supply estimate, linear program, whole-number plan and a report that says why.
//!
//! Nothing here does I/O, reads a clock or draws a random number: [`plan::plan`] is a function of one input.

pub mod base_stock;
pub mod check;
pub mod columns;
pub mod decompose;
pub mod error_budget;
pub mod explain;
pub mod extensive;
pub mod forecast;
pub mod gather;
pub mod input;
pub mod instance;
pub mod model;
pub mod plan;
pub mod report;
pub mod rolling;
pub mod round;
pub mod scenarios;
pub mod serves;
pub mod supply;
pub mod validate;
pub mod what_if;

pub use input::PlanInput;
pub use plan::{Options, Plan, PlanError, plan};
